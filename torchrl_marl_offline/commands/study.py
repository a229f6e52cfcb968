"""Studies from the command line: ``marl-offline study run | plan | list | report | schema``.

A STUDY is a TOML file: methods × datasets × grids × seeds (examples/studies/ holds some). ``run`` may be interrupted
or killed at any moment; the same command goes on. Exit code 0: done; 1: a run failed, or the study cannot be read; 2:
the arguments are wrong; 3: the time was over before the end; 130: interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

from torchrl_marl_offline.commands.parser import add_figures, subcommand_parser
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import GIBIBYTES, HOURS, THREADS_OR_AUTO, argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: by default those of the process.
    """
    parsed = make_parser().parse_args(arguments)
    interrupted = "interrupted; what was trained is saved, the same command goes on."
    work = import_module(f"{__name__}_work")
    return exit_status(lambda: getattr(work, parsed.run)(parsed), interrupted, told=(ValueError,))


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser, add = subcommand_parser("marl-offline study", __doc__)
    command = add("run", "run", "Train what is left of a study, and write its table.")
    _add_study(command)
    command.add_argument(
        "--hours", type=argument(Annotated[float, HOURS]), default=0.0, help="save and stop after so many"
    )
    command.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of these methods and datasets alone")
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="train on a Ray cluster (local: start one here); the output must lie on storage that all machines share",
    )
    _add_machine(command)
    threads = argument(Annotated[int, THREADS_OR_AUTO])
    command.add_argument(
        "--threads",
        type=threads,
        default=0,
        help="of a worker; by default its share of the cores, at most OMP_NUM_THREADS",
    )
    command = add("plan", "plan_runs", "Say what would be trained, and in which populations.")
    _add_study(command)
    _add_machine(command)
    command = add("list", "list_runs", "List every run and its state.")
    _add_study(command)
    _add_machine(command)
    text = "Write report.html of a study, complete or not, and its numbers as Markdown, CSV, LaTeX and JSON."
    command = add("report", "report", text)
    command.add_argument("folder", type=user_path, metavar="FOLDER", help="the study's output")
    add_figures(command, "the figures in report/")
    text = (
        "Print the JSON schema of a study file, or write it. An editor with Taplo, such as Visual Studio Code with "
        "Even Better TOML, completes and checks a study file whose first line is: #:schema ./study.schema.json"
    )
    command = add("schema", "write_schema", text)
    command.add_argument(
        "--output", type=user_path, metavar="FILE", help="such as study.schema.json; else it is printed"
    )
    return parser


def _add_study(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", type=user_path, metavar="STUDY")
    command.add_argument(
        "--recorded",
        action="store_true",
        help="on data of the same tasks and qualities that is recorded first, in the place of published sets",
    )


def _add_machine(command: argparse.ArgumentParser) -> None:
    workers, memory = argument(Annotated[int, THREADS_OR_AUTO]), argument(Annotated[float, GIBIBYTES])
    command.add_argument("--workers", type=workers, default=0, help="populations at once; by default one a GPU or core")
    command.add_argument(
        "--memory", type=memory, default=0.0, metavar="GIB", help="of a device; by default 4/5 of what is free"
    )
