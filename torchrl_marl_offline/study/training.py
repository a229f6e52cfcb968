"""How a job is done: its dataset, its members' losses, one population, its evaluations."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from torchrl_marl_offline.algorithms.algorithm import make_loss
from torchrl_marl_offline.core.layout import REWARD, next_key
from torchrl_marl_offline.data import HindsightGoals
from torchrl_marl_offline.data.transitions.buffers import masks_beside
from torchrl_marl_offline.evaluation import evaluate, evaluate_held_out, evaluate_population, make_simulator
from torchrl_marl_offline.evaluation.run_hindsight import hindsight_options
from torchrl_marl_offline.study.checking import StudyError
from torchrl_marl_offline.study.choosing_checks import check_held_out
from torchrl_marl_offline.study.jobs import Job, Progress, Trained
from torchrl_marl_offline.study.run_estimates import estimate_members, save_estimates
from torchrl_marl_offline.study.runs import Run, sampling_of, with_defaults
from torchrl_marl_offline.training import PopulationBuffer, PopulationLearner, Trainer, TrainingInterrupted

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from torch import Tensor
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.data import OfflineDataset
    from torchrl_marl_offline.evaluation import Evaluation
    from torchrl_marl_offline.objectives import OfflineMARLLoss
    from torchrl_marl_offline.study.settings import EvaluationSettings

HELD_OUT = "held-out episodes"
_BETWEEN_SEEDS = 1_000_003
"""More than there are environments, which may be seeded one by one."""


def train_population(job: Job, progress: Progress) -> Trained:
    """Train the population of a job, from its newest checkpoint where there is one."""
    if job.threads:
        torch.set_num_threads(job.threads)
    dataset = job.source.load(job.data)
    if job.others:
        return _train(job, progress, joined_trainer(job, dataset))
    members = len(job.population.runs)
    slots = max(1, min(job.evaluation.episodes, job.evaluation.num_envs // members))  # of each member
    env = make_simulator(dataset, num_envs=members * slots, device=job.device)
    held_out = None
    if env is None or job.estimated_by is not None:
        dataset, held_out = split_for(job, dataset)
    trainer = make_trainer(job, dataset)
    if env is None:
        trainer.evaluators[HELD_OUT] = partial(_held_out, trainer, job.population.runs, held_out, job.device)
    else:
        seed = seed_of_evaluation(job.evaluation, job.population.runs[0])  # another part of the same runs has another
        options = {"episodes": job.evaluation.episodes, "seed": seed}
        trainer.evaluators |= {
            mode: partial(_played, trainer, env, mode=mode, **options) for mode in job.evaluation.modes
        }
    return _train(job, progress, trainer, held_out)


def _train(job: Job, progress: Progress, trainer: Trainer, held_out: OfflineDataset | None = None) -> Trained:
    progress.step = lambda: trainer.step
    if trainer.checkpoints.latest() is not None:
        trainer.resume()
    if progress.stop_requested(job):
        raise KeyboardInterrupt
    with redirect_stdout(io.StringIO()):  # its advice on how to go on is that of a run alone
        result = trainer.train(on_interrupt="return")
    finished = not isinstance(result, TrainingInterrupted)
    if finished and job.estimated_by is not None and job.estimates:
        if progress.stop_requested(job):
            raise KeyboardInterrupt
        save_estimates(job.folder, estimate_members(trainer.learner, held_out, job.estimated_by, job.offline))
    return Trained(finished, trainer.step, trainer.left_out, trainer.seconds, trainer.impossible)


def joined_trainer(job: Job, dataset: OfflineDataset) -> Trainer:
    """Return what trains runs on several datasets at once, each on its own, and lets each play in its own task.

    Raises:
        StudyError: a dataset is of other sizes, or has no simulator.
    """
    datasets = {job.source.name: dataset} | {each.name: each.load(job.data) for each in job.others}
    envs = {}
    for name, each in datasets.items():
        if each.spec != dataset.spec:
            raise StudyError(
                f"{name} is of another task or other sizes than {job.source.name}; leave join_datasets out."
            )
        envs[name] = make_simulator(each, num_envs=min(job.evaluation.episodes, job.evaluation.num_envs))
        if envs[name] is None:
            raise StudyError(f"{name} has no simulator to evaluate its runs in; leave join_datasets out.")
    trainer = make_trainer(job, dataset, datasets)
    trainer.evaluators |= {
        mode: partial(_played_apart, trainer, job, envs, mode=mode, episodes=job.evaluation.episodes)
        for mode in job.evaluation.modes
    }
    return trainer


def seed_of_evaluation(settings: EvaluationSettings, run: Run) -> int:
    """Return the seed of what a run plays in: runs of other seeds play other episodes, or an interval misses those."""
    return (settings.seed + _BETWEEN_SEEDS * run.seed) % 2**31


def split_for(job: Job, dataset: OfflineDataset) -> tuple[OfflineDataset, OfflineDataset]:
    """Return what the runs of a job are trained on, and the episodes that they are held against.

    Raises:
        StudyError: there are too few for an estimate.
    """
    if job.estimated_by is None:
        return dataset.split(fraction=job.evaluation.held_out, seed=job.evaluation.seed)
    train, held_out = dataset.split(fraction=job.offline.held_out, seed=job.offline.seed)
    check_held_out(held_out.n_episodes, job.source.name, job.offline)
    return train, held_out


def make_trainer(job: Job, dataset: OfflineDataset, datasets: Mapping[str, OfflineDataset] | None = None) -> Trainer:
    """Build the members of a job's population and what trains them.

    Args:
        job: whose population it is.
        dataset: of all runs.
        datasets: by name, where runs are on several.
    """
    runs, settings = job.population.runs, with_defaults(job.population.runs[0].settings)
    losses = {run.name: build_loss(run, (datasets or {}).get(run.dataset, dataset)).to(job.device) for run in runs}
    data, rows = (dataset.data, None) if datasets is None else _joined(datasets, runs, losses)
    options = sampling_of(settings)
    buffer = PopulationBuffer(
        data,
        rows=rows,
        batch_size=settings["batch_size"],
        seeds=[run.seed for run in runs],
        device=job.device,
        keys=next(iter(losses.values())).in_keys,
        hindsight=_hindsight(dataset, settings, options, job.device),
        **options,
    )
    return Trainer(
        PopulationLearner(
            losses,
            lr=[run.settings["lr"] for run in runs],
            tau=settings["tau"],
            actor_every=settings["actor_every"],
            critic_first=settings["critic_first"] if _has_critic(losses) else 0,
            anneal_over=settings["steps"] if settings["lr_schedule"] == "cosine" else None,
            clip_grad_norm=settings["clip_grad_norm"] or None,
            precision=settings["precision"],
            compile=job.study.compile,
        ),
        buffer,
        steps=settings["steps"],
        eval_every=job.evaluation.every,
        log_every=job.study.log_every,
        logger=job.study.logger,
        checkpoint_every=job.study.checkpoint_every or max(1, settings["steps"] // 10),
        keep_checkpoints=2,
        output=job.folder,
        on_impossible_values=job.study.on_impossible_values,
        deadline=job.deadline,
        progress=False,
    )


def _hindsight(
    dataset: OfflineDataset, settings: Mapping[str, Any], sampling: Mapping[str, Any], device: str
) -> HindsightGoals | None:
    """Return what relabels the samples of a job's runs."""
    chosen = (settings[name] for name in ("hindsight", "hindsight_share", "hindsight_per"))
    options = hindsight_options(dataset, *chosen)
    return None if options is None else HindsightGoals.drawn_with(dataset, sampling, device=device, **options)


def _joined(
    datasets: Mapping[str, OfflineDataset], runs: Sequence[Run], losses: Mapping[str, OfflineMARLLoss]
) -> tuple[TensorDictBase, list[Tensor]]:
    """Return the rows of all datasets, one after another, and which of them are each run's.

    Masks that say that something does not count in one of them are there in all.
    """
    keys = [*next(iter(losses.values())).in_keys, next_key(REWARD)]
    masks = {}  # a row of each
    for each, key in itertools.product(datasets.values(), masks_beside(keys)):
        mask = each.data.get(key, None)
        if mask is not None and not mask.all():
            masks[key] = torch.ones_like(mask[:1])
    parts, places, count = [], {}, 0
    for name, each in datasets.items():
        part = each.data.select(*keys, *masks, strict=False).to_tensordict()
        for key, row in masks.items():
            if part.get(key, None) is None:
                part.set(key, row.expand(len(each), *row.shape[1:]).clone())
        parts.append(part)
        places[name] = torch.arange(count, count + len(each))
        count += len(each)
    return torch.cat(parts), [places[run.dataset] for run in runs]


def _has_critic(losses: dict[str, OfflineMARLLoss]) -> bool:
    return next(iter(losses.values())).value_learning is not None


def build_loss(run: Run, dataset: OfflineDataset) -> OfflineMARLLoss:
    """Build the loss of a run as it is built alone: parameters drawn under its seed."""
    torch.manual_seed(run.seed)
    inputs = dataset.statistics_where(run.settings["normalize_inputs"])
    return make_loss(dataset.spec, inputs=inputs, **run.loss_settings)


def _played(trainer: Trainer, env: EnvBase, **options: Any) -> dict[str, Any]:
    """Evaluate every member; a member that diverged may act by numbers that are none, and has no return then."""
    found = evaluate_population(trainer.learner.population, env, **options)
    return {name: _if_finite(each) for name, each in found.items()}


def _if_finite(found: Evaluation) -> Evaluation | dict[str, float]:
    return found if found.returns.isfinite().all() else {"return": math.nan}


def _played_apart(trainer: Trainer, job: Job, envs: Mapping[str, EnvBase], **options: Any) -> dict[str, Any]:
    """Evaluate every member in the task of its own dataset; one that diverged has no return."""
    found = {}
    for run, (name, loss) in zip(job.population.runs, trainer.learner.member_losses(), strict=True):
        if name in trainer.learner.left_out():
            found[name] = {"return": math.nan}
        else:
            seed = seed_of_evaluation(job.evaluation, run)
            found[name] = _if_finite(evaluate(loss.actor_network, envs[run.dataset], seed=seed, **options))
    return found


def _held_out(trainer: Trainer, runs: Sequence[Run], dataset: OfflineDataset, device: str) -> dict[str, Any]:
    """Hold every member against recorded episodes, its values against returns of its own discount and reward."""
    found = {}
    for run, (name, loss) in zip(runs, trainer.learner.member_losses(), strict=True):
        options = {key: run.settings[key] for key in ("gamma", "team_reward") if key in run.settings}
        qvalue = loss.qvalue if loss.value_learning is not None else None
        found[name] = evaluate_held_out(loss, dataset, qvalue=qvalue, device=device, **options)
    return found
