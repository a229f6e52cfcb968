"""Benchmarks that one command makes: ``marl-offline benchmark list | make | run | report``.

A SUITE is a table of datasets, each with a card: the best that can be earned and how it is known, what a random team
and the best recorded play earn, and how much can be stitched. ``make`` and ``run`` may be interrupted or killed at any
moment; the same command goes on. Exit code 0: done; 1: something could not be made, or a run failed; 2: the arguments
are wrong; 3: the time was over before the end; 130: interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

from torchrl_marl_offline.commands.parser import subcommand_parser
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT, FEW, HOURS, RUN_SEED, SIZE, THREADS_OR_AUTO, argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: by default those of the process.
    """
    parsed = make_parser().parse_args(arguments)
    interrupted = "interrupted; what is there is whole, the same command goes on."
    work = import_module(f"{__name__}_work")
    return exit_status(lambda: getattr(work, parsed.run)(parsed), interrupted, told=(ValueError,))


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser, add = subcommand_parser("marl-offline benchmark", __doc__)
    command = add("list", "list_suites", "List the suites, or the datasets of one.")
    command.add_argument("suite", nargs="?", metavar="SUITE", help="e.g. coordination")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add("make", "make", "Make the datasets of a suite that are not there yet, with their cards.")
    _add_suite(command)
    command.add_argument("--more", action="store_true", help="those beyond the core, too")
    _add_only(command)
    command.add_argument("--seed", type=argument(Annotated[int, RUN_SEED]), default=0, help="equal seeds, equal files")
    command.add_argument(
        "--recordings",
        type=user_path,
        metavar="FOLDER",
        help="with recordings by others (hanabi/hanabi_2p_5000_games.npz); by default TORCHRL_MARL_OFFLINE_DATA",
    )

    command = add("run", "run", "Train systems on the datasets that were made, and write the report.")
    _add_suite(command)
    command.add_argument("--algorithms", nargs="+", default=[], metavar="NAME", help="systems; by default all")
    _add_only(command)
    command.add_argument("--seeds", type=argument(Annotated[int, FEW]), default=3, help="of each system and dataset")
    command.add_argument("--updates", type=argument(Annotated[int, COUNT]), default=3000, help="of each run")
    command.add_argument("--episodes", type=argument(Annotated[int, SIZE]), default=512, help="that judge each run")
    command.add_argument(
        "--hours", type=argument(Annotated[float, HOURS]), default=0.0, help="save and stop after so many"
    )
    threads = argument(Annotated[int, THREADS_OR_AUTO])
    command.add_argument("--workers", type=threads, default=0, help="populations at once; by default one a GPU or core")
    command.add_argument("--threads", type=threads, default=0, help="of a worker; by default its share of the cores")
    _add_runs(command)

    command = add("report", "report", "Write the report of the runs that are finished anew.")
    _add_suite(command)
    _add_runs(command)
    return parser


def _add_suite(command: argparse.ArgumentParser) -> None:
    command.add_argument("suite", metavar="SUITE", help="its name, e.g. coordination")
    command.add_argument("--output", type=user_path, required=True, metavar="FOLDER", help="of the suite")


def _add_only(command: argparse.ArgumentParser) -> None:
    command.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of these datasets or groups alone")


def _add_runs(command: argparse.ArgumentParser) -> None:
    text = "folder of the results within that of the suite; other settings need another"
    command.add_argument("--runs", default="runs", metavar="NAME", help=text)
