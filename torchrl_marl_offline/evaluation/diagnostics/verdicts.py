"""What the numbers of a diagnosis come to: sane, suspicious or diverged, with reasons and remedies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torchrl_marl_offline.training.run.remedies import (
    AGAINST_DISAGREEMENT,
    AGAINST_DIVERGENCE,
    AGAINST_FEW_WEIGHTS,
    AGAINST_LEAVING_THE_DATA,
    AGAINST_NO_CREDIT,
    AGAINST_NON_FINITE,
    AGAINST_OVERESTIMATION,
)

Word = Literal["sane", "suspicious", "diverged"]

ABOVE_RETURNS = 1.5
"""Mean |Q| over the largest |return| of the data: a policy may be better than the data, but not on the average of the
recorded states by half more than the best that was ever earned."""
GROWTH = 1.5
"""Factor by which |Q| grows in the last third of the updates for its growth to be looked at: noise is below."""
STEADY = 0.8
"""Growth of the logarithm of |Q| in the last third over that in the middle third: exponential growth has 1, linear
growth 0.58, what approaches a limit less."""
FEWEST_POINTS = 9
"""Logging points from which growth is judged, three in each third."""
FEWEST_WEIGHTS = 0.02
"""Effective sample size, a share of the batch: at a batch of 256 five rows decide."""
FAR = 2.0
"""Distance of the policy to the data over that of held-out recorded actions, which is 1: twice as far as one recorded
episode from the others."""
DISAGREEMENT = 0.7
"""Share of the lowest mean correlation that n agents can have, -1 / (n - 1); local values of a mixer, which are fitted
through their mixture, had half of it in a sound run of 200 updates."""
FEWEST_ROWS = 30
"""Rows from which a correlation between agents is judged."""
NO_CREDIT = 0.01
"""Smallest credit of an agent, in units of an equal share 1 / n."""


class Reason(NamedTuple):
    """One reason of a verdict: how grave it is, and a sentence with its number and remedy."""

    word: Word
    text: str


@dataclass(frozen=True)
class Verdict:
    """What a diagnosis comes to.

    Attributes:
        reasons: none of a sane run.
    """

    reasons: tuple[Reason, ...] = ()

    @property
    def word(self) -> Word:
        """The gravest of the reasons' words; ``"sane"`` without any."""
        words = {reason.word for reason in self.reasons}
        return "diverged" if "diverged" in words else "suspicious" if words else "sane"


class Impossible(NamedTuple):
    """Values that the alarm found: at which step (``None``: of the networks as they are), what, and the bound.

    The bound is ``None`` where the data is not there. Where it is not known what the networks said before they learned
    anything, values beyond the bound may be of that, and are no more than a suspicion.
    """

    step: int | None
    value: float
    bound: float | None
    start_is_known: bool = True


def judged(
    numbers: Mapping[str, float],
    curves: Sequence[Mapping[str, Any]],
    *,
    agents: int | None,
    impossible: Impossible | None,
    rows: int | None = None,
) -> Verdict:
    """Return the verdict on the numbers of a diagnosis and the rows of ``train.csv``.

    Args:
        numbers: by name.
        curves: rows with ``"step"``.
        agents: how many there are, where that is known.
        impossible: what the alarm of impossible values found.
        rows: how many were looked at, where that is known.
    """
    found = [*_diverged(numbers, curves, impossible)]
    if not found:
        found = [*_of_values(numbers, curves)]
    return Verdict((*found, *_of_policies(numbers, agents, rows)))


def _diverged(numbers: Mapping[str, float], curves: Sequence[Mapping[str, Any]], impossible: Impossible | None):
    names = [name for name, value in numbers.items() if not math.isfinite(value)]
    if names:
        yield Reason("diverged", f"{names[0]} is not finite. {AGAINST_NON_FINITE}")
    for row in curves:
        columns = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        if columns:
            yield Reason("diverged", f"{columns[0]} is not finite at step {row['step']}. {AGAINST_NON_FINITE}")
            break
    if impossible is not None:
        when = "is" if impossible.step is None else f"was, at step {impossible.step},"
        allowed = "less" if impossible.bound is None else f"{impossible.bound:.3g}"
        yield Reason(
            "diverged" if impossible.start_is_known else "suspicious",
            f"Mean |Q| {when} {impossible.value:.3g}, where the rewards of the data allow {allowed}: what a policy "
            f"learns from it means nothing. {AGAINST_DIVERGENCE}",
        )


def _of_values(numbers: Mapping[str, float], curves: Sequence[Mapping[str, Any]]):
    value, largest = numbers.get("qvalue_abs"), numbers.get("return_largest")
    begin = next((row["qvalue_abs"] for row in curves if "qvalue_abs" in row), 0.0)  # of networks that know nothing
    if value is not None and largest and value > max(ABOVE_RETURNS * largest, begin):
        yield Reason(
            "suspicious",
            f"Mean |Q| is {value:.3g}, and the largest |return| of the data {largest:.3g}: values are overestimated. "
            f"{AGAINST_OVERESTIMATION}",
        )
    factor = growing(curves)
    usual = abs(numbers.get("return_mean", 0.0))  # below it, values are still on their way to what was earned
    if factor is not None and (value is None or value > usual):
        yield Reason(
            "suspicious",
            f"Mean |Q| grew {factor:.3g} times in the last third of the updates, and as fast as before: it grows "
            f"exponentially. {AGAINST_DIVERGENCE}",
        )


def growing(curves: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the factor by which mean ``|Q|`` grew in the last third of the rows, where growth does not slow down.

    Example:
        >>> growing([{"step": i, "qvalue_abs": 2.0**i} for i in range(1, 13)])
        16.0
        >>> growing([{"step": i, "qvalue_abs": float(i)} for i in range(1, 13)]) is None
        True
    """
    values = [row["qvalue_abs"] for row in curves if row.get("qvalue_abs", 0.0) > 0.0]
    if len(values) < FEWEST_POINTS:
        return None
    third = len(values) // 3
    before, between, last = values[-1 - 2 * third], values[-1 - third], values[-1]
    if not all(map(math.isfinite, (before, between, last))) or last < GROWTH * between:
        return None
    return last / between if math.log(last / between) >= STEADY * math.log(between / before) else None


def _of_policies(numbers: Mapping[str, float], agents: int | None, rows: int | None):
    size = numbers.get("effective_sample_size")
    if size is not None and size < FEWEST_WEIGHTS:
        text = f"The effective sample size is {size:.3g} of a batch: a few rows decide what is learned."
        yield Reason("suspicious", f"{text} {AGAINST_FEW_WEIGHTS}")
    ratio = numbers.get("neighbour_ratio")
    if ratio is not None and ratio > FAR:
        text = f"The policy is {ratio:.3g} times as far from the data as recorded episodes from one another."
        yield Reason("suspicious", f"{text} {AGAINST_LEAVING_THE_DATA}")
    agreement, lowest = numbers.get("advantage_agreement"), -1.0 / max(1, (agents or 2) - 1)
    enough = rows is None or rows >= FEWEST_ROWS
    if agreement is not None and enough and agreement < DISAGREEMENT * lowest:
        text = (
            f"The agents' advantages correlate by {agreement:.2f} in the mean, and {lowest:.2f} is the least possible:"
        )
        text += " what is good for one is bad for another."
        yield Reason("suspicious", f"{text} {AGAINST_DISAGREEMENT}")
    low = numbers.get("credit_low")
    if low is not None and agents is not None and agents > 1 and low < NO_CREDIT / agents:
        text = (
            f"One agent has {100 * low:.2g} % of the credit, an equal share is {100 / agents:.3g} %: it learns nothing."
        )
        yield Reason("suspicious", f"{text} {AGAINST_NO_CREDIT}")
