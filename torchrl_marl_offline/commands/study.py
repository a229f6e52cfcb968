"""Studies from the command line: ``marl-offline study run | plan | list | report``.

A STUDY is a TOML file: methods × datasets × grids × seeds (examples/studies/ holds some). ``run`` may be interrupted
or killed at any moment; the same command goes on. Exit code 0: done; 1: a run failed, or the study cannot be read; 2:
the arguments are wrong; 3: the time was over before the end; 130: interrupted.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

from torchrl_marl_offline.commands.parser import subcommand_parser
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import GIBIBYTES, argument, option_of
from torchrl_marl_offline.study.jobs import job_state
from torchrl_marl_offline.study.memory import Capacity
from torchrl_marl_offline.study.runner import Machine, make_plan, run_study
from torchrl_marl_offline.study.settings import Study, read_study, with_recordings
from torchrl_marl_offline.study.study_report import write_study_report
from torchrl_marl_offline.study.table import job_folder

GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: by default those of the process.
    """
    parsed = make_parser().parse_args(arguments)
    interrupted = "interrupted; what was trained is saved, the same command goes on."
    return exit_status(lambda: parsed.run(parsed), interrupted, told=(ValueError,))


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser, add = subcommand_parser("marl-offline study", __doc__)
    command = add("run", _run, "Train what is left of a study, and write its table.")
    _add_study(command)
    command.add_argument(
        "--hours", type=argument(option_of(Machine, "hours")), default=0.0, help="save and stop after so many"
    )
    command.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of these methods and datasets alone")
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="train on a Ray cluster (local: start one here); the output must lie on storage that all machines share",
    )
    _add_machine(command)
    threads = argument(option_of(Machine, "threads"))
    command.add_argument(
        "--threads",
        type=threads,
        default=0,
        help="of a worker; by default its share of the cores, at most OMP_NUM_THREADS",
    )
    command = add("plan", _plan, "Say what would be trained, and in which populations.")
    _add_study(command)
    _add_machine(command)
    command = add("list", _list, "List every run and its state.")
    _add_study(command)
    _add_machine(command)
    command = add("report", _report, "Write report.html and report.md of a study, complete or not.")
    command.add_argument("folder", type=user_path, metavar="FOLDER", help="the study's output")
    return parser


def _add_study(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", type=user_path, metavar="STUDY")
    command.add_argument(
        "--recorded",
        action="store_true",
        help="on data of the same tasks and qualities that is recorded first, in the place of published sets",
    )


def _add_machine(command: argparse.ArgumentParser) -> None:
    workers, memory = argument(option_of(Machine, "workers")), argument(Annotated[float, GIBIBYTES])
    command.add_argument("--workers", type=workers, default=0, help="populations at once; by default one a GPU or core")
    command.add_argument(
        "--memory", type=memory, default=0.0, metavar="GIB", help="of a device; by default 4/5 of what is free"
    )


def _machine(parsed: argparse.Namespace) -> Machine:
    return Machine(
        workers=parsed.workers,
        threads=getattr(parsed, "threads", 0),
        memory=parsed.memory * GIB,
        hours=getattr(parsed, "hours", 0.0),
        ray=getattr(parsed, "ray", None),
    )


def _study(parsed: argparse.Namespace) -> Study:
    study = read_study(parsed.study)
    if not parsed.recorded:
        return study
    study, left_out = with_recordings(study)
    if left_out:
        print(f"left out, for no such data can be recorded: {', '.join(left_out)}", file=sys.stderr)
    return study


def _run(parsed: argparse.Namespace) -> int:
    outcome = run_study(_study(parsed), machine=_machine(parsed), only=parsed.only, say=_say)
    if outcome.failed:
        return 1
    return 130 if outcome.interrupted and outcome.remaining else 3 if outcome.remaining else 0


def _plan(parsed: argparse.Namespace) -> int:
    study = _study(parsed)
    plan = make_plan(study, _machine(parsed))
    capacity = Capacity(0, plan.datasets)
    print(f"{'population':48} {'runs':>5} {'updates':>11} {'GiB':>6}  state")
    for population in plan.populations:
        size = len(population.runs) * capacity.bytes_of(population.runs[0]) / GIB
        state = job_state(job_folder(study.settings.output, population))
        print(f"{population.name:48} {len(population.runs):5} {population.updates:11,} {size:6.2f}  {state}")
    updates = sum(population.updates for population in plan.populations)
    methods = {population.method for population in plan.populations}
    print(
        f"{len(plan.runs):,} runs ({len(methods)} methods, {len(plan.datasets)} datasets) in {len(plan.populations)} "
        f"populations, {updates:,} updates, in {study.settings.output}"
    )
    return 0


def _list(parsed: argparse.Namespace) -> int:
    study = _study(parsed)
    for population in make_plan(study, _machine(parsed)).populations:
        state = job_state(job_folder(study.settings.output, population))
        for run in population.runs:
            print(f"{state:9} {population.name:40} {run.name}")
    return 0


def _report(parsed: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        html, markdown = write_study_report(parsed.folder)
    print(f"wrote {html} and {markdown}")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
