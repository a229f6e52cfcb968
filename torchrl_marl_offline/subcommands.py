"""A command line of several commands: ``python -m torchrl_marl_offline.PART COMMAND``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def subcommand_parser(prog: str, description: str | None) -> tuple[argparse.ArgumentParser, Add]:
    """Return a parser and the function ``add(name, run, text)``, which adds a command and returns its own parser.

    What is parsed has an attribute ``run``: the function of the command that was given.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    return parser, add
