"""What runs came to: the readings of their curves, the grid's best setting, and intervals by ``rliable``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy

from torchrl_marl_offline.core.put_back import preserved_rng
from torchrl_marl_offline.evaluation.statistics import Interval
from torchrl_marl_offline.evaluation.summary import summarize_evaluations
from torchrl_marl_offline.study.checking import StudyError, check_metric
from torchrl_marl_offline.study.plan import Plan
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.training.run.metrics import OF_RECORDED_ACTIONS

if TYPE_CHECKING:
    import numpy
    import pandas

Reading = Literal["average_of_last", "last", "best"]
READINGS: tuple[Reading, ...] = ("average_of_last", "last", "best")
METRICS = ("normalized", "success", "return")
"""What may be compared, in the order of preference."""

COMPARABLE = ("normalized", "success")
"""Those that mean the same on every dataset, so that datasets may be put together."""

RESAMPLES, PAIR_RESAMPLES = 2000, 1000


@dataclass(frozen=True)
class RunScore:
    """The readings of one finished run by one evaluator; ``averaged`` evaluations are in ``average_of_last``."""

    run: Run
    evaluator: str
    average_of_last: float
    last: float
    best: float
    diverged: bool
    averaged: int = 1

    @property
    def setting(self) -> str:
        """What the grid gave the run, in words; empty without a grid."""
        return self.run.setting


@dataclass(frozen=True)
class Choice:
    """The setting of a method that is shown for one dataset and evaluator.

    Attributes:
        scores: of the setting's runs, by seed.
        candidates: how many settings it was chosen from.
    """

    scores: tuple[RunScore, ...]
    candidates: int

    @property
    def setting(self) -> str:
        """In words."""
        return self.scores[0].setting

    def values(self, reading: Reading) -> list[float]:
        """Return one number a seed."""
        return [getattr(score, reading) for score in self.scores]


def choose_metrics(frame: pandas.DataFrame, wanted: str) -> dict[str, str]:
    """Return, for each dataset, the column that is shown.

    It is compared: ``wanted``, or for ``"auto"`` the first that the dataset has. A dataset without a simulator has no
    such column, but a diagnosis: how like its actions the policies' are. That is shown, and nothing is chosen by it.

    Raises:
        StudyError: a dataset lacks it, or nothing has been evaluated.
    """
    check_metric(wanted)
    if not len(frame):
        raise StudyError("No run of this study has been evaluated yet; run it first.")
    chosen = {}
    for dataset, part in frame.groupby("dataset"):
        has = [name for name in dict.fromkeys((*METRICS, wanted)) if name in part and part[name].notna().any()]
        usable = [name for name in has if wanted in ("auto", name)]
        if not has:
            usable = [name for name in OF_RECORDED_ACTIONS if name in part and part[name].notna().any()]
        if not usable:
            raise StudyError(f"{dataset} was not evaluated for {wanted!r}; set [study] metric to one of {has}.")
        chosen[str(dataset)] = usable[0]
    return chosen


def scores_of(plan: Plan, frame: pandas.DataFrame, metrics: Mapping[str, str]) -> list[RunScore]:
    """Return the readings of all finished runs, in the plan's order."""
    rows = {str(name): part for name, part in frame[frame["finished"]].groupby("run", sort=False)}
    scores = []
    for run in plan.runs:
        if run.name not in rows:
            continue
        part, metric = rows[run.name], metrics[run.dataset]
        records = part[["evaluator", "step", metric]].dropna().to_dict("records")
        diverged = bool(part["diverged"].any())
        for evaluator, curve in summarize_evaluations(records, metric, last_k=plan.last_k).items():
            readings = (curve[reading] for reading in READINGS)
            scores.append(RunScore(run, evaluator, *readings, diverged, curve["averaged"]))
    return scores


def choose(
    scores: Iterable[RunScore], metrics: Mapping[str, str], estimated: Mapping[tuple[str, str], str] | None = None
) -> dict[tuple[str, str, str], Choice]:
    """Choose every method's setting: the best mean over the seeds of the average of the last evaluations.

    Settings with fewer finished seeds than another do not compete with it. Where there is a diagnosis alone, nothing is
    chosen: of agreement with the data, cloning has the most by construction, whatever it earns.

    Args:
        scores: of finished runs.
        metrics: dataset -> what its scores are.
        estimated: (dataset, method) -> the setting that estimates have chosen, of a study that chooses by these;
            ``None`` chooses by the scores.

    Returns:
        (dataset, evaluator, method) -> choice.
    """
    groups: dict[tuple[str, str, str], dict[str, list[RunScore]]] = {}
    for score in scores:
        if metrics[score.run.dataset] in OF_RECORDED_ACTIONS:
            continue
        key = (score.run.dataset, score.evaluator, score.run.method)
        groups.setdefault(key, {}).setdefault(score.setting, []).append(score)
    choices = {}
    for key, settings in groups.items():
        most = max(map(len, settings.values()))
        complete = [tuple(group) for group in settings.values() if len(group) == most]
        if estimated is not None:
            wanted = estimated.get((key[0], key[2]))
            complete = [tuple(group) for setting, group in settings.items() if setting == wanted]
            if not complete:
                continue
        best = max(complete, key=lambda group: sum(score.average_of_last for score in group) / len(group))
        choices[key] = Choice(tuple(sorted(best, key=lambda score: score.run.seed)), len(complete))
    return choices


def averaged_in_words(scores: Iterable[RunScore]) -> str:
    """Say over how many evaluations averages of the last really go: ``"average of last 2"``."""
    counts = {score.averaged for score in scores}
    low, high = min(counts), max(counts)
    return f"average of last {low}" if low == high else f"average of last {low} to {high}"


def score_matrix(choices: Sequence[Choice], reading: Reading) -> numpy.ndarray:
    """Return ``[seeds, datasets]``: the runs of the seeds that every dataset has."""
    seeds = set.intersection(*({score.run.seed for score in choice.scores} for choice in choices))
    columns = [
        [value for score, value in zip(choice.scores, choice.values(reading)) if score.run.seed in seeds]
        for choice in choices
    ]
    return numpy.array(columns, dtype=float).T.reshape(len(seeds), len(choices))


def interquartile_mean(values: numpy.ndarray) -> float:
    """Return what rliable's ``aggregate_iqm`` does, bit for bit, in a fiftieth of the time that SciPy's checks take."""
    flat, cut = values.reshape(-1), values.size // 4
    parts = numpy.partition(flat, (cut, values.size - cut - 1))
    return numpy.mean(parts[cut : values.size - cut])


def mean_and_iqm(matrix: numpy.ndarray, *, seed: int = 0) -> tuple[Interval, Interval]:
    """Return mean and interquartile mean with their stratified-bootstrap 95 % intervals (Agarwal et al. 2021).

    Args:
        matrix: ``[seeds, datasets]``; runs are resampled within each dataset.
        seed: of the resampling.

    Returns:
        Intervals of width 0 where there is one seed.
    """
    library, metrics = _rliable()

    def both(values: numpy.ndarray) -> numpy.ndarray:
        return numpy.array([metrics.aggregate_mean(values), interquartile_mean(values)])

    if len(matrix) < 2:
        return tuple(Interval(value, value, value) for value in both(matrix).tolist())
    with preserved_rng():
        numpy.random.seed(seed)  # rliable draws from NumPy's global generator, whatever it is given
        points, intervals = library.get_interval_estimates({"": matrix}, both, reps=RESAMPLES)
    (low, high), point = intervals[""].tolist(), points[""].tolist()
    return Interval(point[0], low[0], high[0]), Interval(point[1], low[1], high[1])


def improvement(x: numpy.ndarray, y: numpy.ndarray) -> float:
    """Return what rliable's ``probability_of_improvement`` does, without a test of SciPy's for each dataset."""
    more = (x[:, None] > y).mean((0, 1)) + 0.5 * (x[:, None] == y).mean(
        (0, 1)
    )  # [seeds, seeds, datasets] -> [datasets]
    return more.mean()


def improvement_probabilities(
    matrices: Mapping[str, numpy.ndarray], *, seed: int = 0
) -> dict[tuple[str, str], Interval]:
    """Return how probable it is that a run of one method scores higher than one of another (Agarwal et al. 2021).

    A tie counts as half; datasets are averaged over.

    Args:
        matrices: method -> ``[seeds, datasets]``, of the same datasets, each of two seeds or more.
        seed: of the resampling.

    Returns:
        (one, other) -> probability with its stratified-bootstrap 95 % interval, for every pair, the earlier first.
    """
    library, _ = _rliable()
    pairs = {(x, y): [matrices[x], matrices[y]] for x, y in itertools.combinations(matrices, 2)}
    with preserved_rng():
        numpy.random.seed(seed)
        keyed = {str(number): pair for number, pair in enumerate(pairs.values())}
        points, intervals = library.get_interval_estimates(
            keyed, lambda x, y: numpy.array([improvement(x, y)]), reps=PAIR_RESAMPLES
        )
    return {names: Interval(float(points[key][0]), *intervals[key][:, 0].tolist()) for names, key in zip(pairs, keyed)}


def performance_profile(
    matrices: dict[str, numpy.ndarray], thresholds: numpy.ndarray, *, seed: int = 0
) -> dict[str, list[Interval]]:
    """Return, for each method and threshold, the share of runs with a higher score, with its 95 % interval."""
    library, _ = _rliable()
    with preserved_rng():
        numpy.random.seed(seed)
        profiles, intervals = library.create_performance_profile(matrices, thresholds, reps=300)
    return {
        name: [Interval(*row) for row in zip(profile.tolist(), *intervals[name].tolist())]
        for name, profile in profiles.items()
    }


def _rliable() -> tuple:
    try:
        from rliable import library, metrics
    except ImportError as error:
        raise StudyError("rliable is not installed; pip install 'torchrl-marl-offline[study]'.") from error
    return library, metrics
