"""Which choice matters: how much of the scores' variance each setting explains, and how often each value is best.

A factorial design is looked for in the runs: every combination of the values of some settings, on every dataset, with
the same seeds. A setting whose value another one's decides, such as ``svn`` where it is that of one decomposition
alone, is no axis beside it. Of a setting that is read beside some values of another one alone, those have more values
(``"mixer, frozen = True"``), unless all of them have equally many: such settings, as a temperature beside ``alpha``,
are one axis "strength", by their order.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import COUNT, SEED
from torchrl_marl_offline.evaluation.statistics import Interval

if TYPE_CHECKING:
    from torchrl_marl_offline.study.scores import RunScore

DATASET, REST = "dataset", "strength"
RESAMPLES = 2000


@dataclass(frozen=True)
class Factorial:
    """Scores of a complete design.

    Attributes:
        axes: name -> values, at least two of each, in the order of the runs.
        scores: an array with a dimension for each axis, and one for the seeds.
        along: settings that are no axes, and the axis that decides their value.
    """

    axes: Mapping[str, Sequence[Any]]
    scores: numpy.ndarray
    along: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """What one source explains of the variance of the scores.

    Attributes:
        source: an axis, two of them that interact, ``"higher interactions"`` or ``"seeds"``.
        interval: its share, with the 95 % interval of resampled seeds.
    """

    source: str
    interval: Interval


@dataclass(frozen=True)
class Rank:
    """How often a value of an axis is best, the others alike.

    Attributes:
        axis: its name.
        value: of the axis.
        best: configurations of all other axes in which its mean over the seeds is the highest.
        first_two: those in which it is the highest or the second.
        of: configurations there are.
        mean: of its scores.
    """

    axis: str
    value: Any
    best: int
    first_two: int
    of: int
    mean: float


def factorial(scores: Sequence[RunScore], *, exclude: Iterable[str] = ("seed",)) -> Factorial | None:
    """Find the complete design among the scores of one evaluator; None where there is none with two axes of settings.

    Runs of the algorithm with the most methods are looked at; what all of them have alike is no axis.

    Args:
        scores: of finished runs, of datasets whose scores mean the same.
        exclude: settings that are no axes.
    """
    scores = _of_the_varied_algorithm(scores)
    if not scores:
        return None
    settings = [{name: _plain(value) for name, value in score.run.settings.items()} for score in scores]
    names = [name for name in dict.fromkeys(itertools.chain(*settings)) if name not in set(exclude)]
    varied = [name for name in names if len({str(each.get(name)) for each in settings}) > 1]
    columns = {DATASET: [score.run.dataset for score in scores]}
    columns |= {name: [each[name] for each in settings] for name in varied if all(name in each for each in settings)}
    along = _followers(columns)
    rest = [
        name for name in varied if name not in columns and len({each[name] for each in settings if name in each}) > 1
    ]
    shared = {name: column for name, column in columns.items() if name != DATASET and name not in along}
    shared, rest = _with_own_settings(shared, rest, settings)
    places = list(zip(*shared.values())) if shared else [()] * len(scores)
    strengths = _strengths(places, [tuple((n, each[n]) for n in rest if n in each) for each in settings])
    if strengths is None:
        return None
    rows = [
        (score.run.dataset, *place, strength) for score, place, strength in zip(scores, places, strengths, strict=True)
    ]
    values = {name: list(dict.fromkeys(row[i] for row in rows)) for i, name in enumerate([DATASET, *shared, REST])}
    values[REST] = sorted(values[REST])
    seeds = sorted({score.run.seed for score in scores})
    shape = [*map(len, values.values()), len(seeds)]
    table = numpy.full(shape, numpy.nan)
    for score, row in zip(scores, rows, strict=True):
        place = tuple(values[name].index(value) for name, value in zip(values, row, strict=True))
        table[(*place, seeds.index(score.run.seed))] = score.average_of_last
    kept = [name for name, found in values.items() if len(found) > 1]
    table = table.reshape([*(len(values[name]) for name in kept), len(seeds)])
    if len([name for name in kept if name != DATASET]) < 2 or not numpy.isfinite(table).all():
        return None
    return Factorial({name: tuple(values[name]) for name in kept}, table, along)


def _followers(columns: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return the settings that have one value beside each value of another, and that other; of a pair the later one."""
    found: dict[str, str] = {}
    order = list(columns)
    for name, other in itertools.product(order, order):
        if name in (DATASET, other) or name in found or other in found:
            continue
        pairs = set(zip(columns[other], columns[name], strict=True))
        goes_both_ways = len(pairs) == len(set(columns[name]))
        if len(pairs) == len(set(columns[other])) and not (goes_both_ways and order.index(other) > order.index(name)):
            found[name] = other
    return found


def _with_own_settings(
    shared: Mapping[str, list[Any]], rest: Sequence[str], settings: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, list[Any]], list[str]]:
    """Split values of axes by the settings that are read beside them alone; return axes, and settings that are left.

    Where every value would be split into equally many, nothing is.
    """
    found, left = dict(shared), list(rest)
    for axis, column in shared.items():
        own = [name for name in left if len(set(column)) == len({(x, name in s) for x, s in zip(column, settings)})]
        chosen = [tuple((name, each[name]) for name in own if name in each) for each in settings]
        counts = Counter(value for value, _ in set(zip(column, chosen, strict=True)))
        if len(set(counts.values())) > 1:
            found[axis] = [
                value if counts[value] == 1 else ", ".join([str(value), *(f"{n} = {v}" for n, v in each)])
                for value, each in zip(column, chosen, strict=True)
            ]
            left = [name for name in left if name not in own]
    return found, left


def _of_the_varied_algorithm(scores: Sequence[RunScore]) -> list[RunScore]:
    methods = Counter(algorithm for algorithm, _ in {(s.run.settings["algorithm"], s.run.method) for s in scores})
    if not methods:
        return []
    wanted = methods.most_common(1)[0][0]
    return [score for score in scores if score.run.settings["algorithm"] == wanted]


def _plain(value: Any) -> Any:
    """Return a value of a study file as one that can be looked up."""
    if isinstance(value, Mapping):
        return tuple((name, _plain(each)) for name, each in sorted(value.items()))
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _strengths(places: Sequence[tuple], rest: Sequence[tuple]) -> list[int] | None:
    """Return the order of each run's other settings among those of its place, from 1; None where numbers differ."""
    found: dict[tuple, list[tuple]] = {}
    for place, own in zip(places, rest, strict=True):
        if own not in found.setdefault(place, []):
            found[place].append(own)
    if len({len(each) for each in found.values()}) != 1:
        return None
    ordered = {
        place: sorted(each, key=lambda own: [(name, _sortable(v)) for name, v in own]) for place, each in found.items()
    }
    return [ordered[place].index(own) + 1 for place, own in zip(places, rest, strict=True)]


def _sortable(value: Any) -> tuple[int, float, str]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if is_number else (1, 0.0, str(value))


@checked
def variance_shares(
    found: Factorial, *, resamples: Annotated[int, COUNT] = RESAMPLES, seed: Annotated[int, SEED] = 0
) -> list[Share]:
    r"""Split the variance of the scores by axes, pairs of axes, higher interactions and seeds (:math:`\eta^2`).

    Of a balanced design: the squared deviations of an axis's means, of two axes' means less those of each, and so on,
    over the total. With few seeds noise adds to every share; the intervals are of seeds drawn again, all runs of a seed
    together.

    Args:
        found: the design.
        resamples: of the seeds.
        seed: of the resampling.

    Returns:
        Axes and pairs by their share, the largest first, then higher interactions, where there are three axes or more,
        and seeds. Shares sum to 1. Nothing where all scores are alike, which leaves no variance to explain.
    """
    names = list(found.axes)
    if _are_alike(found.scores):
        return []
    scores = found.scores / numpy.abs(found.scores).max()  # shares have no unit, and squares of huge numbers no end
    scores = scores - scores.mean()
    scores = scores / numpy.abs(scores).max()
    whole = _shares(scores, names)
    generator, drawn = numpy.random.default_rng(seed), []
    count = found.scores.shape[-1]
    for _ in range(resamples):
        picked = generator.integers(count, size=count)
        drawn.append(list(_shares(scores[..., picked], names).values()))
    low, high = numpy.quantile(numpy.array(drawn), [0.025, 0.975], axis=0)
    shares = [
        Share(source, Interval(value, float(low[i]), float(high[i]))) for i, (source, value) in enumerate(whole.items())
    ]
    last = ("higher interactions", "seeds")
    explained = sorted((s for s in shares if s.source not in last), key=lambda share: -share.interval.mean)
    return explained + [share for share in shares if share.source in last]


def _are_alike(scores: numpy.ndarray) -> bool:
    """Say whether scores differ by no more than rounding."""
    return float(numpy.ptp(scores)) <= 1e-12 * float(numpy.abs(scores).max())


def _shares(scores: numpy.ndarray, names: Sequence[str]) -> dict[str, float]:
    total = numpy.inf if _are_alike(scores) else float(((scores - scores.mean()) ** 2).sum())
    cells = scores.mean(-1)
    effects: dict[frozenset[int], numpy.ndarray] = {}
    found: dict[str, float] = {}
    for size in (1, 2):
        for axes in itertools.combinations(range(len(names)), size):
            others = tuple(i for i in range(len(names)) if i not in axes)
            effect = cells.mean(others, keepdims=True) - cells.mean()
            for smaller in itertools.chain(*(itertools.combinations(axes, less) for less in range(1, size))):
                effect = effect - effects[frozenset(smaller)]
            effects[frozenset(axes)] = effect
            squared = float((numpy.broadcast_to(effect, cells.shape) ** 2).sum()) * scores.shape[-1]
            found[" × ".join(names[i] for i in axes)] = squared / total
    of_cells = float(((cells - cells.mean()) ** 2).sum()) * scores.shape[-1] / total
    if len(names) > 2:
        found["higher interactions"] = max(0.0, of_cells - sum(found.values()))
    found["seeds"] = max(0.0, float(numpy.isfinite(total)) - of_cells)
    return found


def best_counts(found: Factorial) -> list[Rank]:
    """Count for every value of every axis but the datasets' how often it is best, or best or second."""
    cells = found.scores.mean(-1)
    ranks = []
    for index, (axis, values) in enumerate(found.axes.items()):
        if axis == DATASET:
            continue
        rows = numpy.moveaxis(cells, index, -1).reshape(-1, len(values))
        place = (rows[:, :, None] < rows[:, None, :]).sum(-1)  # how many values are above
        for i, value in enumerate(values):
            best, second = int((place[:, i] == 0).sum()), int((place[:, i] <= 1).sum())
            ranks.append(Rank(axis, value, best, second, len(rows), float(rows[:, i].mean())))
    return ranks
