"""What the commands of ``marl-offline study`` do."""

from __future__ import annotations

import argparse
import json
import sys
import warnings

from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.study.jobs import job_state
from torchrl_marl_offline.study.memory import Capacity
from torchrl_marl_offline.study.plan import job_folder
from torchrl_marl_offline.study.runner import Machine, make_plan, run_study
from torchrl_marl_offline.study.schema import study_schema
from torchrl_marl_offline.study.search import search_lines
from torchrl_marl_offline.study.settings import Study, read_study, with_recordings
from torchrl_marl_offline.study.study_report import write_study_report

GIB = 2**30


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


def run(parsed: argparse.Namespace) -> int:
    """Train what is left of a study."""
    outcome = run_study(_study(parsed), machine=_machine(parsed), only=parsed.only, say=_say)
    if outcome.failed:
        return 1
    return 130 if outcome.interrupted and outcome.remaining else 3 if outcome.remaining else 0


def plan_runs(parsed: argparse.Namespace) -> int:
    """Say what would be trained."""
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
    for line in search_lines(study):
        print(line)
    return 0


def list_runs(parsed: argparse.Namespace) -> int:
    """List every run and its state."""
    study = _study(parsed)
    for population in make_plan(study, _machine(parsed)).populations:
        state = job_state(job_folder(study.settings.output, population))
        for run in population.runs:
            print(f"{state:9} {population.name:40} {run.name}")
    return 0


def report(parsed: argparse.Namespace) -> int:
    """Write a study's report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        html, markdown = write_study_report(parsed.folder, figures=parsed.figures)
    print(f"wrote {html} and {markdown}")
    return 0


def write_schema(parsed: argparse.Namespace) -> int:
    """Print the JSON schema of a study file, or write it."""
    schema = study_schema()
    if parsed.output is None:
        print(json.dumps(schema, indent=2))
        return 0
    write_json_atomic(parsed.output, schema)
    print(f"wrote {parsed.output}; the first line of a study file beside it: #:schema ./{parsed.output.name}")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
