"""The arguments of what is pushed to the Hugging Face Hub, and of what is pulled from it."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Annotated, Any

from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT, argument


def add_pushing(command: argparse.ArgumentParser) -> None:
    """Add what a push needs beside what is pushed."""
    command.add_argument("name", metavar="OWNER/NAME", help="of the repository, which is made if it is not there")
    command.add_argument("--private", action="store_true", help="make the repository private")
    command.add_argument("--revision", metavar="BRANCH", help="by default main; made if it is not there")
    command.add_argument("--licence", "--license", metavar="NAME", help="by the hub's short name, e.g. mit")
    command.add_argument("--message", metavar="TEXT", help="of the commit")


def pushing(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a push."""
    return {name: getattr(parsed, name) for name in ("private", "revision", "licence", "message")}


def add_pulling(command: argparse.ArgumentParser, target: str, text: str) -> None:
    """Add what a pull needs.

    Args:
        command: of the pull.
        target: what is written.
        text: of its help.
    """
    command.add_argument("name", metavar="OWNER/NAME", help="of the repository, or OWNER/NAME@REVISION")
    command.add_argument("target", nargs="?", type=user_path, metavar=target, help=text)
    command.add_argument("--revision", help="a branch, a tag or a commit; by default main")
    most = argument(Annotated[int, COUNT])
    command.add_argument("--max-bytes", type=most, metavar="N", help="refuse what is larger, before it is fetched")
    command.add_argument("--overwrite", action="store_true", help=f"replace the {target} that is there")


def pulling(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a pull; its size is said on stderr."""
    told = {name: getattr(parsed, name) for name in ("revision", "max_bytes", "overwrite")}
    return told | {"announce": partial(print, file=sys.stderr)}
