"""Whether a study can choose by what it wants to choose by: asked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from torchrl_marl_offline.algorithms.algorithm import make_loss
from torchrl_marl_offline.core.put_back import preserved_rng
from torchrl_marl_offline.evaluation.offline.answers import EvaluatedPolicy
from torchrl_marl_offline.evaluation.offline.comparison import FEWEST_EPISODES, checked_methods
from torchrl_marl_offline.evaluation.offline.estimates import BY_WEIGHTS
from torchrl_marl_offline.study.checking import StudyError, study_errors
from torchrl_marl_offline.study.memory import made_up_batch

if TYPE_CHECKING:
    from torchrl_marl_offline.core.layout import TaskSpec
    from torchrl_marl_offline.study.choosing import OfflineSettings
    from torchrl_marl_offline.study.memory import Capacity
    from torchrl_marl_offline.study.runs import Run
    from torchrl_marl_offline.study.settings import Study
    from torchrl_marl_offline.study.sources import DatasetSource


def check_choosing(study: Study, runs: Sequence[Run], capacity: Capacity) -> None:
    """Refuse a choice that could not be made.

    Args:
        study: what is to be run.
        runs: those that are known.
        capacity: knows the datasets' sizes.

    Raises:
        StudyError: trials are to be played and there is no simulator; there are too few episodes for an estimate; or a
            method's policy cannot be estimated so, as :func:`~torchrl_marl_offline.select_offline` would say it.
    """
    sources = {source.name: source for source in study.datasets}
    if study.search is not None and study.search.by == "return":
        _check_simulators(sources, runs)
    if study.estimated_by is None:
        return
    with study_errors():
        checked_methods(study.estimated_by, study.offline.horizon, study.offline.weights)
    for source in study.datasets:
        episodes = source.episodes_before()
        if episodes is not None:
            check_held_out(held_out_of(episodes, study.offline), source.name, study.offline)
    asked: dict[str, Run] = {}
    for run in runs:
        asked.setdefault(repr((run.dataset, sorted(run.shared_settings.items(), key=str))), run)
    for run in asked.values():
        _check_policy(run, capacity.spec(run.dataset), study)


def _check_simulators(sources: Mapping[str, DatasetSource], runs: Sequence[Run]) -> None:
    for name in dict.fromkeys(run.dataset for run in runs if run.trial is not None):
        if not sources[name].has_simulator():
            raise StudyError(
                f'[search] by = "return" plays the trials, and there is no simulator of {name}; use by = "fqe".'
            )


def held_out_of(episodes: int, settings: OfflineSettings) -> int:
    """Return how many of so many episodes are held out, as :meth:`OfflineDataset.split` counts them."""
    return min(max(round(settings.held_out * episodes), 1), episodes - 1)


def check_held_out(episodes: int, dataset: str, settings: OfflineSettings) -> None:
    """Raise where too few episodes of a dataset are held out.

    Raises:
        StudyError: there are fewer than :data:`FEWEST_EPISODES`.
    """
    if episodes < FEWEST_EPISODES:
        raise StudyError(
            f"[offline] held_out = {settings.held_out:g} holds {max(episodes, 0)} episodes of {dataset} out, an "
            f"estimate needs {FEWEST_EPISODES} or more; hold more out, or take a larger dataset."
        )


def _check_policy(run: Run, spec: TaskSpec, study: Study) -> None:
    """Ask a policy of the run's structure about rows that mean nothing."""
    rows = made_up_batch(spec, 2)
    with preserved_rng():
        torch.manual_seed(0)
        loss = make_loss(spec, **run.loss_settings)
        try:
            policy = EvaluatedPolicy(
                run.method, loss, SimpleNamespace(data=rows, spec=spec, task_spec=spec), study.offline.mode
            )
            if study.estimated_by in BY_WEIGHTS:
                policy.log_probs(rows)
        except (ValueError, TypeError) as error:
            key = f"[study] select = {study.estimated_by!r}"
            if study.search is not None and study.search.by == study.estimated_by:
                key = f"[search] by = {study.estimated_by!r}"
            reason = str(error).replace("mode='sample'", '[offline] mode = "sample"').rstrip(".")
            raise StudyError(f"{key}: {reason}.") from None
