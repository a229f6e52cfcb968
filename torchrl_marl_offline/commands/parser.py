"""Command lines: several commands under one name, ``marl-offline PART COMMAND``, and their parser."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn

from torchrl_marl_offline.core.docstrings import plain_text
from torchrl_marl_offline.core.figure_style import FORMATS

Add = Callable[[str, str, str], argparse.ArgumentParser]


def _filled(text: str) -> str:
    """Return paragraphs in lines of a terminal's width; indented ones, which are examples, stay."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        each if each.startswith(" ") else textwrap.fill(" ".join(each.split()), 79) for each in paragraphs
    )


class OneSentenceParser(argparse.ArgumentParser):
    """A parser whose errors are one sentence on stderr, without the usage; options cannot be abbreviated.

    Its description may be a docstring.
    """

    def __init__(self, *args, description: str | None = None, **options) -> None:
        super().__init__(*args, **{"description": _filled(plain_text(description)), "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        said = re.sub(r"^argument ([^:]+): ", r"\1 ", " ".join(message.split()))
        print(f"error: {said}; see --help.", file=sys.stderr)
        sys.exit(2)


def add_figures(command: argparse.ArgumentParser, of: str) -> None:
    """Add the option of the formats in which figures are written.

    Args:
        command: to which it is added.
        of: what the figures are, for the help.
    """
    command.add_argument(
        "--figures",
        nargs="+",
        choices=FORMATS,
        default=[],
        help=f"formats of {of} beside what is written anyway, e.g. pdf svg",
    )


def subcommand_parser(prog: str, description: str | None) -> tuple[argparse.ArgumentParser, Add]:
    """Return a parser and the function ``add(name, run, text)``, which adds a command and returns its own parser.

    What is parsed has an attribute ``run``: the name of the function that does what was asked. It lies in a module of
    its own, so that help and completion need none of what it imports.
    """
    parser = OneSentenceParser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=plain_text(text), description=text)
        command.set_defaults(run=run)
        return command

    return parser, add
