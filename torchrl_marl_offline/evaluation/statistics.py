"""Intervals for a mean, across episodes or across seeds, without SciPy.

:func:`mean_confidence_interval` is Student's t interval, right for a handful of seeds whose results are roughly normal;
:func:`bootstrap_confidence_interval` is the percentile bootstrap, which assumes no shape but needs more values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import OPEN_UNIT, SEED, SIZE


class Interval(NamedTuple):
    """A mean with the lower and upper end of its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's length: the number behind "±"."""
        return (self.high - self.low) / 2


@checked
def mean_confidence_interval(values: Sequence[float] | Tensor, level: Annotated[float, OPEN_UNIT] = 0.95) -> Interval:
    """Student's t interval of the mean: ``mean ± t · s / √k`` with ``k - 1`` degrees of freedom.

    Args:
        values: ``k`` independent values, at least two, e.g. one return per seed.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: for fewer than two values, a value that is not finite, or a level outside (0, 1).

    Example:
        >>> low, high = mean_confidence_interval([1.0, 2.0, 3.0])[1:]
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    values = _as_finite_vector(values)
    mean, spread = values.mean().item(), values.std().item()
    half = student_t_quantile(level, len(values) - 1) * spread / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


@checked
def bootstrap_confidence_interval(
    values: Sequence[float] | Tensor,
    level: Annotated[float, OPEN_UNIT] = 0.95,
    *,
    resamples: Annotated[int, SIZE] = 10_000,
    seed: Annotated[int, SEED] = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean; reproducible for a ``seed`` and independent of the global RNG.

    Args:
        values: ``k`` independent values, at least two.
        level: coverage, between 0 and 1.
        resamples: number of means drawn with replacement.
        seed: seed of the drawing.
    """
    values = _as_finite_vector(values)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(values), (resamples, len(values)), generator=generator)
    means = values[index].mean(-1)
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return Interval(values.mean().item(), low, high)


@checked
def student_t_quantile(level: Annotated[float, OPEN_UNIT], degrees: int) -> float:
    """Return ``t`` with ``P(|T| < t) = level`` for Student's T of ``degrees`` degrees of freedom.

    The distribution function is the finite sum of Abramowitz and Stegun, 26.7.3 and 26.7.4; it is inverted by
    bisection.
    """
    if degrees < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, got {degrees}.")
    low, high = 0.0, math.pi / 2  # of the angle atan(t / sqrt(degrees)), in which the sum is smooth and bounded
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def student_t_probability(value: float, degrees: int) -> float:
    """Return ``P(T < value)`` for Student's T of ``degrees`` degrees of freedom."""
    central = _central_probability(math.atan(abs(value) / math.sqrt(degrees)), degrees)
    return 0.5 + math.copysign(central / 2, value)


def _central_probability(angle: float, degrees: int) -> float:
    """Return ``P(|T| < √degrees · tan(angle))``."""
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees == 1:
        return 2 * angle / math.pi
    odd = degrees % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
        if term < 1e-18:
            break
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _as_finite_vector(values: Sequence[float] | Tensor) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float64).detach().flatten().cpu()
    if len(values) < 2:
        raise ValueError(f"A confidence interval needs at least two values, got {len(values)}.")
    if not values.isfinite().all():
        raise ValueError(f"A confidence interval needs finite values, got {values.tolist()}.")
    return values
