"""A game of one step whose best setting is known, as logs, and estimates that are written without critics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from study_toys import train_toy
from tensordict import TensorDictBase

from torchrl_marl_offline import OfflineDataset, collect, make_env
from torchrl_marl_offline.study.jobs import Job, Progress, Trained
from torchrl_marl_offline.study.run_estimates import JobEstimates, RunEstimate, save_estimates

CLIMB = """
[study]
name = "climb"
output = "out"
seeds = 2
steps = 120
lr = 1e-2
hidden = [16]
batch_size = 32
compile = "off"
device = "cpu"
{study}

[evaluation]
every = 60
episodes = 2

[methods.mix]
{mix}

{datasets}

[offline]
held_out = 0.5
gamma = 1.0
fitting = {{ steps = 150, resamples = 3, hidden = [16], lr = 1e-2 }}

{more}
"""
SIMULATED, LOGGED = '[datasets.known]\nsource = "known"', '[datasets.logged]\nsource = "logged"'
"""The same episodes with the name of their task, and without."""


def write_climb(folder: Path, *, study: str = 'select = "fqe"', mix: str, datasets: str, more: str = "") -> Path:
    """Write logs of the climbing game, of a team that takes the worst joint action most often, and a study on them."""
    file = folder / "study.toml"
    file.write_text(CLIMB.format(study=study, mix=mix, datasets=datasets, more=more))
    if not (folder / "known").exists():
        logs = collect(make_env("games/climb", num_envs=20), mostly_the_second, episodes=80, seed=0)
        logs.save(folder / "known")
        OfflineDataset(logs.data, replace(logs.spec, task=None)).save(folder / "logged")
    return file


def mostly_the_second(tensordict: TensorDictBase) -> TensorDictBase:
    shape = tensordict["agents", "observation"].shape[:-1]
    return tensordict.set(("agents", "action"), (torch.rand(shape) < 0.7).long())


def estimate_of(mean: float, **facts: Any) -> RunEstimate:
    """Return an estimate with two resamples, half below and half above."""
    given = {"is_possible": True, "warnings": (), "facts": {}, "interval_by": "t"} | facts
    return RunEstimate(mean, [mean - 0.5, mean + 0.5], mean - 1, [mean - 1.5, mean - 0.5], **given)


def train_and_estimate(job: Job, progress: Progress) -> Trained:
    """Walk at random; the estimate is ``-|log10(temperature)|``, more of it the longer a run is trained."""
    trained = train_toy(job, progress)
    if trained.finished and job.estimates and job.estimated_by is not None:
        values = {
            run.name: -abs(torch.tensor(run.settings.get("temperature", 1.0)).log10().item()) + run.settings["steps"]
            for run in job.population.runs
        }
        runs = {name: estimate_of(value) for name, value in values.items()}
        logged, verdict = [1.0, 0.5, 1.5], "Calibration: passed, by hand."
        save_estimates(job.folder, JobEstimates(job.estimated_by, 0.99, logged, 2.0, verdict, True, (), runs))
    return trained
