"""What the runs of a suite came to: scores of which 0 is a random team and 1 the optimum, and what they say."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.evaluation.statistics import Interval, mean_confidence_interval
from torchrl_marl_offline.suites.entries import SuiteError
from torchrl_marl_offline.suites.suite_card import normalized

if TYPE_CHECKING:
    import pandas

SOLVED = 0.95
"""A mean score from which a dataset counts as solved."""


@dataclass(frozen=True)
class Cell:
    """The runs of one system on one dataset.

    Attributes:
        dataset: its name.
        method: its name.
        scores: of its finished runs by seed.
        independent: whether its critics are each agent's own.
        rows: of the study's table, one a run.
        has_critic: whether it has one.
    """

    dataset: str
    method: str
    scores: Mapping[int, float]
    independent: bool
    rows: tuple[Mapping[str, Any], ...] = ()
    has_critic: bool = True

    def is_above(self, score: float) -> bool:
        """Whether the interval lies above a score; one seed has none."""
        return len(self.scores) > 1 and self.interval.low > score

    @property
    def interval(self) -> Interval:
        """Mean over seeds, with its 95 % interval where there are two or more."""
        return interval_of(list(self.scores.values()))

    @property
    def is_solved(self) -> bool:
        """Whether the mean is at least :data:`SOLVED`."""
        return self.interval.mean >= SOLVED


@dataclass(frozen=True)
class DatasetOutcome:
    """What the runs on one dataset say.

    Attributes:
        best: the system with the highest mean.
        independent: the best of those with independent critics; ``None`` where none was run.
        solved: whether the best's mean is at least :data:`SOLVED`.
        beats_data: whether the best's interval lies above the best recorded score.
        needs_coordination: whether the intervals of the best system with a critic of the team and of the best with
            independent critics are apart, the former above. One seed has no interval, and tells neither.
    """

    best: Cell
    independent: Cell | None
    solved: bool
    beats_data: bool
    needs_coordination: bool


def interval_of(values: Sequence[float]) -> Interval:
    """Return Student's t interval of a mean; of no width where there is one value, or one that is no number."""
    mean = sum(values) / len(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Interval(mean, mean, mean)
    return mean_confidence_interval(values)


def cells_of(frame: pandas.DataFrame, cards: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Cell]:
    """Return what each system came to on each dataset: (dataset, method) -> the last evaluation of each finished run.

    A run that is no longer finite, and so has no return, has the score of a random team.

    Args:
        frame: the study's table.
        cards: of the datasets by name.
    """
    _check_columns(frame)
    frame = frame[frame["finished"] & frame["dataset"].isin(list(cards))]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _, part in frame.sort_values("step").groupby("run", sort=False):
        row = part.iloc[-1].dropna().to_dict()
        found.setdefault((row["dataset"], row["method"]), []).append(row)
    return {
        key: Cell(
            *key,
            {row["seed"]: normalized(cards[key[0]], row["return"]) if "return" in row else 0.0 for row in rows},
            rows[0].get("decomposition") == "independent",
            tuple(sorted(rows, key=lambda row: row["seed"])),
            rows[0].get("decomposition") is not None,
        )
        for key, rows in sorted(found.items())
    }


def _check_columns(frame: pandas.DataFrame) -> None:
    """Refuse a table that is not of runs: what it lacks would be taken for runs that were no longer finite."""
    numbers = ("seed", "step", "steps", "return")
    missing = [name for name in ("run", "dataset", "method", "finished", *numbers) if name not in frame.columns]
    wrong = [name for name in numbers if name in frame.columns and frame[name].dtype.kind not in "iuf"]
    if missing or wrong:
        told = f"no column {missing[0]!r}" if missing else f"no numbers in the column {wrong[0]!r}"
        raise SuiteError(f"The results of the runs have {told}; the next marl-offline benchmark run writes them anew.")


def verdict_of(cells: Sequence[Cell], card: Mapping[str, Any]) -> DatasetOutcome:
    """Return what the systems' runs on one dataset say.

    Args:
        cells: of the systems, at least one.
        card: of the dataset.
    """
    best = max(cells, key=_mean)
    alone = max((cell for cell in cells if cell.independent), key=_mean, default=None)
    team = max((cell for cell in cells if cell.has_critic and not cell.independent), key=_mean, default=None)
    both = alone is not None and team is not None and len(alone.scores) > 1
    apart = both and team.is_above(alone.interval.high)
    above = best.is_above(card["normalized"]["best_recorded"])
    return DatasetOutcome(best, alone, best.is_solved, above, apart)


def _mean(cell: Cell) -> float:
    return cell.interval.mean


def mean_over(cells: Sequence[Cell]) -> Interval:
    """Return the mean over datasets of one system, with the interval over the seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(cell.scores) for cell in cells)))
    return interval_of([sum(cell.scores[seed] for cell in cells) / len(cells) for seed in seeds]) if seeds else _none()


def _none() -> Interval:
    return Interval(math.nan, math.nan, math.nan)


def policy_of(output: Path, row: Mapping[str, Any]) -> Path | None:
    """Return the file of a run's policy within a study's folder; ``None`` where there is none."""
    run = str(row["run"])
    if not run or Path(run).name != run:
        return None
    return next(iter(sorted(output.glob(f"jobs/*/members/{glob.escape(run)}/policy.pt"))), None)
