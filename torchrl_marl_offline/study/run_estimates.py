"""What runs are worth by held-out episodes: estimated at the end of a job, kept in its folder, chosen by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.core.functional_parameters import copy_with_networks
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.evaluation import Interval, compare_offline
from torchrl_marl_offline.evaluation.offline import OfflineEstimate, ValueDifference
from torchrl_marl_offline.evaluation.offline.estimates import paired_difference
from torchrl_marl_offline.evaluation.statistics import mean_confidence_interval
from torchrl_marl_offline.study.checking import StudyError
from torchrl_marl_offline.study.plan import Plan, job_folder
from torchrl_marl_offline.study.runs import Run

if TYPE_CHECKING:
    from torchrl_marl_offline.data import OfflineDataset
    from torchrl_marl_offline.study.choosing import OfflineSettings
    from torchrl_marl_offline.training import PopulationLearner

ESTIMATES_FILE = "estimates.json"


@dataclass(frozen=True)
class RunEstimate:
    """The estimate of a run's last policy: the discounted return of the team's reward over an episode.

    Attributes:
        mean: the estimate.
        values: ``[R]`` those of the resamples of episodes.
        gain: how much better than the logged team.
        gains: ``[R]`` the same of the resamples.
        interval_by: see :class:`~torchrl_marl_offline.evaluation.OfflineEstimate`.
        is_possible: whether the data's rewards allow the values.
        facts: numbers to judge it by.
        warnings: reasons not to trust it.
    """

    mean: float
    values: Sequence[float]
    gain: float
    gains: Sequence[float]
    interval_by: Literal["t", "percentiles"]
    is_possible: bool
    facts: Mapping[str, float]
    warnings: Sequence[str]

    @property
    def is_usable(self) -> bool:
        """Whether it may compete: it is a number, and one that the rewards of the data allow."""
        return self.mean is not None and math.isfinite(self.mean) and self.is_possible

    def pooled(self, others: Sequence[RunEstimate] = ()) -> tuple[Interval, ValueDifference]:
        """Return the mean with other estimates on the same resamples, and how much better than the logged team it is.

        The intervals are over resamples of the episodes, of the mean of these very runs.
        """
        found = [self, *others]
        mean, gain = (sum(getattr(each, name) for each in found) / len(found) for name in ("mean", "gain"))
        values, gains = (_mean_of(found, name) for name in ("values", "gains"))
        interval = OfflineEstimate("", mean, values, 1.0, self.interval_by).confidence_interval()
        return interval, paired_difference(gain, gains, 0.0, torch.zeros_like(gains), self.interval_by)


def _mean_of(estimates: Sequence[RunEstimate], name: str) -> torch.Tensor:
    return torch.tensor([getattr(each, name) for each in estimates], dtype=torch.float64).mean(0)  # [S, R] -> [R]


@dataclass(frozen=True)
class JobEstimates:
    """What a job estimated of its runs.

    Attributes:
        by: the word of the estimate.
        gamma: discount.
        logged: what the logged team earned in the episodes that are averaged over: mean and ends of its interval.
        best_of_data: the largest discounted return of a held-out episode.
        verdict: of the calibration; empty where there is none.
        is_calibrated: whether it passed; ``None`` where there is none.
        warnings: of all estimates of the dataset.
        runs: name -> estimate.
    """

    by: str
    gamma: float
    logged: Sequence[float]
    best_of_data: float
    verdict: str
    is_calibrated: bool | None
    warnings: Sequence[str]
    runs: Mapping[str, RunEstimate]


def estimate_members(
    learner: PopulationLearner, held_out: OfflineDataset, by: str, settings: OfflineSettings
) -> JobEstimates:
    """Estimate the policies of a population's members on held-out episodes; those that are left out have none."""
    names = [name for name in learner.members if name not in learner.left_out()]
    logged, best, verdict, passed, told, runs = [math.nan] * 3, math.nan, "", None, (), {}
    if names:
        losses = {name: _own_loss(learner, name) for name in names}
        found = compare_offline(losses, held_out, by=by, **settings.comparison())
        runs = {name: _of_run(found.estimates[by][name], found.differences[by][name]) for name in names}
        logged, best = [found.logged.mean, *found.logged.interval], found.best_of_data
        if (checked := found.calibration_of(by)) is not None:
            verdict, passed = found.verdict(by), checked.passed
        of_runs = {warning for run in runs.values() for warning in run.warnings}
        told = tuple(warning for warning in found.warnings if warning not in {*of_runs, verdict})
    return JobEstimates(by, settings.gamma, logged, best, verdict, passed, told, runs)


def _own_loss(learner: PopulationLearner, name: str) -> Any:
    return learner.population.write_member(name, copy_with_networks(learner.template)).to("cpu")


def _of_run(estimate: OfflineEstimate, better: ValueDifference) -> RunEstimate:
    series = estimate.values.tolist(), estimate.gains.tolist()
    facts = {name: float(number) for name, number in estimate.facts.items()}
    return RunEstimate(
        estimate.mean,
        series[0],
        better.mean,
        series[1],
        estimate.interval_by,
        estimate.is_possible,
        facts,
        estimate.warnings,
    )


def save_estimates(folder: Path, found: JobEstimates) -> None:
    """Write ``estimates.json`` of a job."""
    write_json_atomic(folder / ESTIMATES_FILE, found)


def read_estimates(folder: Path) -> JobEstimates | None:
    """Read ``estimates.json`` of a job, or return ``None`` where there is none.

    Raises:
        StudyError: it is damaged.
    """
    file = folder / ESTIMATES_FILE
    if not file.exists():
        return None
    try:
        content = read_json(file)
        runs = {name: RunEstimate(**run) for name, run in content["runs"].items()}
        return JobEstimates(**{**content, "runs": runs})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{file} is damaged; delete its folder, and run the study again.") from error


# ------------------------------------------------------------------------ choice


@dataclass(frozen=True)
class EstimatedSetting:
    """A setting of a method on a dataset, with the estimates of its runs.

    Attributes:
        runs: by seed.
        estimates: of the runs.
    """

    runs: tuple[Run, ...]
    estimates: tuple[RunEstimate, ...]

    @property
    def setting(self) -> str:
        """In words."""
        return self.runs[0].setting

    @property
    def mean(self) -> float:
        """Mean estimate over the seeds."""
        return sum(each.mean for each in self.estimates) / len(self.estimates)

    def pooled(self) -> tuple[Interval, ValueDifference]:
        """Return the mean over seeds and its difference to the logged team, with intervals over resampled episodes."""
        return self.estimates[0].pooled(self.estimates[1:])

    def over_seeds(self) -> Interval:
        """Return the mean with Student's interval over seeds; of width 0 where there is one."""
        values = [each.mean for each in self.estimates]
        return mean_confidence_interval(values) if len(values) > 1 else Interval(self.mean, self.mean, self.mean)

    def lead(self, other: EstimatedSetting) -> ValueDifference:
        """Return how much better than another setting it is, resample by resample."""
        pairs = [_mean_of(each.estimates, "values") for each in (self, other)]
        return paired_difference(self.mean, pairs[0], other.mean, pairs[1], self.estimates[0].interval_by)


@dataclass(frozen=True)
class EstimatedChoice:
    """The setting of a method on a dataset that the estimates choose.

    Attributes:
        ranking: all settings that compete, best first.
        excluded: settings that do not, in words: too few of their seeds have an estimate that may compete.
    """

    ranking: tuple[EstimatedSetting, ...]
    excluded: tuple[str, ...]

    @property
    def best(self) -> EstimatedSetting:
        """The one that is chosen."""
        return self.ranking[0]


def choose_by_estimates(
    runs: Iterable[Run], estimates: Mapping[str, RunEstimate]
) -> dict[tuple[str, str], EstimatedChoice]:
    """Choose every method's setting: the highest mean estimate over the seeds.

    An estimate that is no number, or beyond what the rewards of the data allow, does not compete; nor do settings with
    fewer seeds than another.

    Args:
        runs: those that are estimated, in the plan's order.
        estimates: of runs, by name.

    Returns:
        (dataset, method) -> choice.
    """
    groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.method), {}).setdefault(run.setting, []).append(run)
    choices = {}
    for key, settings in groups.items():
        usable = {
            setting: sorted((r for r in group if r.name in estimates and estimates[r.name].is_usable), key=_seed)
            for setting, group in settings.items()
        }
        most = max(map(len, usable.values()))
        if most == 0:
            continue
        found = [
            EstimatedSetting(tuple(group), tuple(estimates[run.name] for run in group))
            for group in usable.values()
            if len(group) == most
        ]
        ranking = tuple(sorted(found, key=lambda setting: -setting.mean))
        excluded = tuple(setting for setting, group in usable.items() if len(group) < most)
        choices[key] = EstimatedChoice(ranking, excluded)
    return choices


def _seed(run: Run) -> int:
    return run.seed


def estimates_of(plan: Plan, output: Path) -> dict[str, JobEstimates]:
    """Return what the jobs of a plan have estimated, population's name -> estimates."""
    found = {p.name: read_estimates(job_folder(output, p)) for p in plan.populations}
    return {name: estimates for name, estimates in found.items() if estimates is not None}
