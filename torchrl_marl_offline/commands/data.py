"""Datasets: ``marl-offline data inspect | convert | export | list | verify | record | push | pull``.

A SOURCE is what ``load_dataset`` takes: ``pymarl:FILE``, a published set such as ``og_marl:smac_v1/3m/Good``,
``hf:OWNER/NAME`` for one on the Hugging Face Hub, or a folder that ``OfflineDataset.save`` wrote. Exit code 0: done,
and no error was found; 1: an error was found, or the source cannot be read; 2: the arguments are wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

from torchrl_marl_offline.commands.hub_options import add_pulling, add_pushing
from torchrl_marl_offline.commands.parser import add_figures, subcommand_parser
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT, RUN_SEED, argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: by default those of the process.
    """
    return do(make_parser().parse_args(arguments))


def do(parsed: argparse.Namespace) -> int:
    """Do what was parsed, and return its exit code."""
    work = import_module(f"{__name__}_work")
    return exit_status(
        lambda: work.with_warnings(parsed), "interrupted; nothing was written.", told=(TypeError, ValueError)
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser, add = subcommand_parser("marl-offline data", __doc__)
    command = add("inspect", "inspect", "Say what is in a dataset and what is wrong with it.")
    command.add_argument("sources", nargs="+", metavar="SOURCE", help="more than one are also compared")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--picture", type=user_path, metavar="FILE", help="write a page of pictures (one SOURCE)")
    add_figures(command, "the page of --picture")
    command.add_argument("--strict", action="store_true", help="exit with 1 on a warning, too")
    _add_options(command)

    command = add("convert", "convert", "Write a dataset as a folder that loads memory-mapped.")
    command.add_argument("source", metavar="SOURCE")
    command.add_argument("target", type=user_path, metavar="FOLDER")
    command.add_argument("--repair", action="store_true", help="mend what inspection finds, and record how")
    command.add_argument("--strict", action="store_true", help="write nothing unless it is free of warnings")
    command.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    _add_options(command)

    command = add("export", "export", "Write a dataset as a Parquet table, or as a Minari dataset of one agent.")
    command.add_argument("source", metavar="SOURCE")
    command.add_argument("target", type=user_path, metavar="OUT", help="the file *.parquet, or the folder for Minari")
    command.add_argument("--format", choices=("parquet", "minari"), help="by default by the ending of OUT")
    command.add_argument("--overwrite", action="store_true", help="replace a Parquet file that is there")
    _add_options(command)

    command = add("list", "list_published", "List the published datasets.")
    command.add_argument("source", nargs="?", metavar="SOURCE", help="only of this one, e.g. og_marl")
    command.add_argument("task", nargs="?", metavar="TASK", help="only tasks that start with this, e.g. smac_v1/3m")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add("verify", "verify", "Compare every file with its checksum and check every value.")
    command.add_argument("source", metavar="SOURCE")
    _add_options(command)

    command = add("push", "push", "Publish a dataset folder on the Hugging Face Hub, with a card.")
    command.add_argument("folder", type=user_path, metavar="FOLDER", help="of a dataset that OfflineDataset.save wrote")
    add_pushing(command)

    command = add("pull", "pull", "Fetch a dataset from the Hugging Face Hub, and verify it.")
    add_pulling(command, "FOLDER", "where to copy it to; by default it stays in the cache folder")

    text = "Train a behaviour policy online and record datasets of graded quality; run it again to go on."
    add_recording(add("record", "record_graded", text))
    return parser


def add_recording(command: argparse.ArgumentParser) -> None:
    """Add the arguments of a recording."""
    command.add_argument("task", metavar="TASK", help="family/task, e.g. mpe/simple_spread")
    command.add_argument("folder", type=user_path, metavar="FOLDER", help="of this recording")
    command.add_argument(
        "--qualities",
        nargs="+",
        metavar="QUALITY",
        help="by default random, medium-replay, medium, expert; also untrained, and mixtures such as medium-expert",
    )
    transitions = argument(Annotated[int, COUNT])
    command.add_argument("--transitions", type=transitions, default=100_000, help="of every quality but medium-replay")
    command.add_argument("--seed", type=argument(Annotated[int, RUN_SEED]), default=0)
    _add_options(command, "a setting of the recording, e.g. updates=20000, num_envs=128 or memory=gru")


_READER_OPTION = "an option of the reader, e.g. time_limit=50 or time_limit=null"


def _add_options(command: argparse.ArgumentParser, text: str = _READER_OPTION) -> None:
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=text,
    )
    if text == _READER_OPTION:
        command.add_argument(
            "--columns", type=user_path, metavar="MAP.toml", help="of a table: which columns hold what"
        )
