"""What evaluation from logged data returns: a policy's value, with an interval and what speaks against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import OPEN_UNIT
from torchrl_marl_offline.evaluation.statistics import Interval, student_t_probability, student_t_quantile

Method = Literal["fqe", "is", "wis", "dr", "model"]
BY_CRITICS, BY_WEIGHTS, BY_MODELS = ("fqe", "dr"), ("is", "wis", "dr"), ("model",)
"""Methods that train critics, those that weigh what was earned, and those that learn models of the task."""
ROUNDING = 1e-6
"""Relative difference of two estimates that rounding may make."""


class Measured(Protocol):
    """What a row of a table needs, which :class:`OfflineEstimate` has.

    So has :class:`~torchrl_marl_offline.evaluation.Evaluation`, of returns in an environment.
    """

    @property
    def mean(self) -> float:
        """The value."""

    def confidence_interval(self, level: float = 0.95) -> Interval:
        """Return the value with its interval."""

    def summary(self) -> dict[str, float]:
        """Return scalars by name."""


@dataclass(frozen=True)
class OfflineEstimate:
    """A policy's value, estimated from logged episodes: the mean discounted return of the team's reward.

    The unit is that of the discounted return from an episode's first step to its end, with ``gamma``; the team's reward
    is the mean over agents, unless ``team_reward="sum"`` was asked for. It is not the undiscounted return that
    :class:`~torchrl_marl_offline.evaluation.Evaluation` measures, except with ``gamma=1``.

    Attributes:
        method: ``"fqe"``, ``"is"``, ``"wis"``, ``"dr"``, ``"model"``, or ``"data"`` for the logged team's own mean.
        mean: the estimate.
        values: ``[R]`` the estimates of the resamples of episodes, each by its resample alone.
        gamma: discount.
        interval_by: ``"t"``: ``mean ± t std(values)`` with ``R - 1`` degrees of freedom, for few resamples, whose
            spread is the standard error; ``"percentiles"``: of the values, for many.
        facts: numbers to judge it by, such as ``ess``, the effective sample size in episodes.
        warnings: sentences, each a reason not to trust it; empty where none was found.
        gains: ``[R]`` the same minus what the logged team has by the same resample; ``None`` without such a team.
        is_possible: whether the mean ``|V|`` of its critics is one that the rewards of the data allow.
        ceilings: ``[R]`` of ``"model"``, whose ``mean`` and ``values`` take the worst for what the data leaves open:
            the same with the best. The interval reaches from the lower end of ``values`` to the upper end of these.
    """

    method: str
    mean: float
    values: Tensor
    gamma: float
    interval_by: Literal["t", "percentiles"] = "percentiles"
    facts: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    gains: Tensor | None = None
    is_possible: bool = True
    ceilings: Tensor | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, ``(low, high)``."""
        return self.confidence_interval()[1:]

    @checked
    def confidence_interval(self, level: Annotated[float, OPEN_UNIT] = 0.95) -> Interval:
        """Return the estimate with its interval over resamples of episodes; NaN for the ends of a single one."""
        found = spread(self.mean, self.values, self.interval_by, level)
        if self.ceilings is None:
            return found
        return found._replace(high=spread(self.ceilings.mean().item(), self.ceilings, self.interval_by, level).high)

    def summary(self) -> dict[str, float]:
        """Return the scalars of a table's row."""
        low, high = self.interval
        row = {"value": self.mean, "value_low": low, "value_high": high, "gamma": self.gamma}
        return row | {name: float(number) for name, number in self.facts.items()}


class ValueDifference(NamedTuple):
    """How much better than the logged team, in the estimate's unit.

    Attributes:
        mean: the difference of the estimates.
        low: lower end of its 95 % interval.
        high: upper end.
        probability: that the policy is better than the logged team, by the resamples.
    """

    mean: float
    low: float
    high: float
    probability: float


def spread(mean: float, values: Tensor, by: str, level: float = 0.95) -> Interval:
    """Return a mean with its interval by resampled values ``[R]``; see :class:`OfflineEstimate`."""
    values = values.double()
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    if by == "t":
        half = student_t_quantile(level, len(values) - 1) * values.std().item()
        return Interval(mean, mean - half, mean + half)
    tail = (1 - level) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return Interval(mean, low, high)


def paired_difference(
    mean: float, values: Tensor, other_mean: float, others: Tensor, by: Literal["t", "percentiles"]
) -> ValueDifference:
    """Compare two estimates whose resamples are the same episodes, pair by pair.

    Args:
        mean: the first estimate.
        values: its resamples ``[R]``.
        other_mean: the second estimate.
        others: its resamples ``[R]``, each of the same episodes as its partner.
        by: how the interval is made of them; see :class:`OfflineEstimate`. The probability of improvement is the share
            of the differences above 0 (half of those that are 0), or, of few resamples, that of Student's t
            distribution around the mean; NaN of a single one. What rounding alone could make is no difference.
    """
    differences, total = _differences(
        torch.cat([values.double(), _one(mean)]), torch.cat([others.double(), _one(other_mean)])
    )
    difference, low, high = spread(total, differences, by)
    if len(differences) < 2:
        return ValueDifference(difference, low, high, float("nan"))
    if by == "t":
        return ValueDifference(difference, low, high, _t_probability(difference, differences))
    better = (differences > 0).double() + 0.5 * (differences == 0).double()
    return ValueDifference(difference, low, high, better.mean().item())


def _one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def _differences(values: Tensor, others: Tensor) -> tuple[Tensor, float]:
    """Return the differences of resamples and that of the last pair, 0 where they are not above rounding."""
    found = values - others
    found = torch.where(found.abs() <= ROUNDING * torch.maximum(values.abs(), others.abs()), 0.0, found)
    return found[:-1], found[-1].item()


def _t_probability(mean: float, differences: Tensor) -> float:
    """Return the probability that Student's T around ``mean`` is above 0."""
    deviation, degrees = differences.std().item(), len(differences) - 1
    if deviation == 0.0:
        return float(mean > 0) + 0.5 * float(mean == 0)
    return student_t_probability(mean / deviation, degrees)
