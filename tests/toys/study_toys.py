"""A training function that needs no network: a random walk a run, with checkpoints, for the tests of studies."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.study import StudyOutcome, run_study
from torchrl_marl_offline.study.jobs import Job, Progress, Trained, run_job
from torchrl_marl_offline.training import CsvTable

STUDY = """
[study]
name = "toys"
hidden = [16]
batch_size = 32
output = "{output}"
seeds = {seeds}
steps = 40
members = 4
checkpoint_every = 5
device = "cpu"

[evaluation]
every = 10

[methods.mix]
variants.decomposition = ["mixer", "vdn"]

[methods.cloning]
algorithm = "cloning"

[datasets.spread]
task = "mpe/simple_spread"
episodes = 20

[grid]
temperature = [1, 3.0]
"""


def write_study(folder: Path, text: str = STUDY, *, output: str = "out", seeds: object = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(text.format(output=output, seeds=seeds))
    return folder / "study.toml"


class Inline:
    """Runs jobs one after the other in this process; stops when ``tick`` says so, or after ``most`` jobs."""

    def __init__(self, most: int = 10**9) -> None:
        self.most, self.seen = most, []

    def run(self, jobs, train, *, tick):
        for job in jobs[: self.most]:
            if not tick():
                return
            self.seen.append(job.population.name)
            yield run_job(job, train)


def quietly(file: Path, **options: Any) -> StudyOutcome:
    """Run a study of toys in this process."""
    options = {"train": train_toy, "backend": Inline(), "progress": False, "say": lambda _: None} | options
    return run_study(file, **options)


def train_toy(job: Job, progress: Progress, *, seconds: float = 0.0) -> Trained:
    """Walk at random: the state is the generators', saved at every checkpoint; rows after it are dropped."""
    checkpoints, runs = job.folder / "checkpoints", job.population.runs
    state = max(checkpoints.glob("checkpoint-*"), default=None)
    saved = json.loads(state.read_text()) if state else {"step": 0, "values": [0.0] * len(runs)}
    step, values = saved["step"], saved["values"]
    progress.step = lambda: step
    tables = [CsvTable(job.folder / "members" / run.name / "eval.csv") for run in runs]
    for table in tables:
        table.truncate(step)
        table.path.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        write_json_atomic(checkpoints / f"checkpoint-{step:06d}", {"step": step, "values": values})

    while step < job.population.steps:
        if progress.stop_requested(job):
            save()
            return Trained(False, step, {}, 1.0)
        step += 1
        for index, run in enumerate(runs):
            generator = torch.Generator().manual_seed(1000 * run.seed + step)
            drift = {"mixer": 1.0, "vdn": 0.5}.get(run.settings.get("decomposition"), 0.1)
            values[index] += drift + torch.randn((), generator=generator).item()
        time.sleep(seconds)
        if step % job.study.checkpoint_every == 0:
            save()
        if step % job.evaluation.every == 0:
            for table, value in zip(tables, values):
                table.append({"step": step, "evaluator": "mode", "return": value, "normalized": value})
    impossible = {run.name: 20 for run in runs if run.method == "mix-vdn" and run.seed == 1}
    return Trained(True, step, {}, 1.0, impossible)


def train_slowly(job: Job, progress: Progress) -> Trained:
    return train_toy(job, progress, seconds=0.05)


def train_and_die(job: Job, progress: Progress) -> Trained:
    """Kill the process of one population in the middle, the first time."""
    if job.population.name.endswith("mix-mixer--00"):
        marker = job.folder / "died"
        if not marker.exists():
            marker.touch()
            train_toy(_until(job, 20), progress)
            os.kill(os.getpid(), signal.SIGKILL)
    return train_toy(job, progress)


def _until(job: Job, steps: int) -> Job:
    runs = tuple(replace(run, settings={**run.settings, "steps": steps}) for run in job.population.runs)
    return replace(job, population=replace(job.population, runs=runs))


def train_and_fail(job: Job, progress: Progress) -> Trained:
    if job.population.method == "mix-vdn":
        raise ValueError("this one cannot work")
    return train_toy(job, progress)


def train_and_always_die(job: Job, progress: Progress) -> Trained:
    if job.population.method == "cloning":
        os.kill(os.getpid(), signal.SIGKILL)
    return train_toy(job, progress)
