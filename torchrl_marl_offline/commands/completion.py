"""Print what lets a shell complete commands and options: ``marl-offline completion bash | zsh | tcsh``.

marl-offline completion bash > ~/.local/share/bash-completion/completions/marl-offline
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

import shtab

from torchrl_marl_offline.commands import COMMANDS, PROGRAM
from torchrl_marl_offline.commands.parser import OneSentenceParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the script of a shell, and return the exit status.

    Args:
        arguments: by default those of the process.
    """
    parsed = make_parser().parse_args(arguments)
    print(shtab.complete(whole_parser(), shell=parsed.shell))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = OneSentenceParser(
        prog="marl-offline completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """Return all commands as one parser."""
    parser = argparse.ArgumentParser(prog=PROGRAM)
    parser.add_argument("--version", action="store_true", help="say the version")
    parser.add_argument("--import", metavar="FILE", help="import what registers parts of your own")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, text in COMMANDS.items():
        own = import_module(f"{__package__}.{name}").make_parser()
        commands.add_parser(name, parents=[own], add_help=False, help=text)
    return parser
