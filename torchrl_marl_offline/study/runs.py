"""The runs of a study: datasets × methods × grid × seeds, each with a name and all of its settings."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torchrl_marl_offline import algorithms
from torchrl_marl_offline.algorithms.algorithm import ALGORITHMS, members_settings, settings_of
from torchrl_marl_offline.core.annotations import parameters_of
from torchrl_marl_offline.core.ranges import check_all
from torchrl_marl_offline.core.relevance import DISCRETE, OF_CONTINUOUS, ReadWith, conditions_of
from torchrl_marl_offline.core.tables import table_name
from torchrl_marl_offline.study.checking import StudyError
from torchrl_marl_offline.study.settings import MethodTable, Study, TrainingSettings, check_run_settings
from torchrl_marl_offline.study.sources import DatasetSource

_LONGEST = 200
"""Letters of a run's name; a folder's may have 255."""
_OF_TRAINING = frozenset(f.name for f in fields(TrainingSettings))


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: unique in the study, and the name of its folder.
        dataset: its dataset's name.
        method: its method's name.
        seed: of networks and batches.
        grid: the settings that the grid, or a search, gives it.
        settings: all that it depends on, defaults included, ``grid`` included.
        trial: number of a search's trial; ``None`` of other runs.
        rung: on which the trial is tried; ``None`` of the chosen one, which is trained to the end.
    """

    name: str
    dataset: str
    method: str
    seed: int
    grid: Mapping[str, Any]
    settings: Mapping[str, Any]
    trial: int | None = None
    rung: int | None = None

    @property
    def setting(self) -> str:
        """What the grid or the search gave the run, in words; empty without either."""
        return ", ".join(f"{name} {value}" for name, value in self.grid.items())

    @property
    def loss_settings(self) -> dict[str, Any]:
        """Those that :func:`~torchrl_marl_offline.make_loss` takes."""
        of_training = {f.name for f in fields(TrainingSettings)}
        return {name: value for name, value in self.settings.items() if name not in of_training}

    @property
    def shared_settings(self) -> dict[str, Any]:
        """Those that it has in common with the other members of a population that it is trained in."""
        differing = members_settings(self.settings["algorithm"])
        differing |= {f.name for f in fields(TrainingSettings) if f.metadata.get("member")}
        return {name: value for name, value in self.settings.items() if name not in differing}


@dataclass(frozen=True)
class Case:
    """A method on a dataset.

    Attributes:
        dataset: its name.
        method: its name.
        given: the settings that all its runs share; where it matters, also whether actions are discrete.
        grid: setting -> values, every combination of which is tried.
        ranges: setting -> a range or values, from which a search draws.
    """

    dataset: str
    method: str
    given: Mapping[str, Any]
    grid: Mapping[str, list[Any]]
    ranges: Mapping[str, Any]

    def reads(self, name: str) -> bool:
        """Say whether a setting changes any of its runs."""
        return is_read(name, self.given, {**self.grid, **_ends_of(self.ranges)})

    def run(self, settings: Mapping[str, Any], names: Iterable[str], seed: int, **trial: Any) -> Run:
        """Return a run by its settings; ``names`` are those that its grid or a search gives it."""
        chosen = {key: settings[key] for key in names if key in settings}
        words = [f"{key}={_word(value)}" for key, value in chosen.items()]
        if trial.get("rung") is not None:
            words = [f"{key}={number:02d}" for key, number in trial.items()]
        name = slug([self.dataset, self.method, *words, f"seed={seed}"])
        return Run(name, self.dataset, self.method, seed, chosen, settings, **trial)


def expand(study: Study) -> list[Run]:
    """Return every run of a study whose settings its file says: datasets × methods × grid × seeds.

    A setting of ``[study]``, of a dataset or of ``[grid]`` goes to the methods that read it; one that a method's own
    table names must be read by it. The nearest wins: ``[study]``, the dataset's, the method's, the method's on that
    dataset. What a search draws is in :mod:`~torchrl_marl_offline.study.search`.
    """
    resolved: dict[str, dict[str, Any]] = {}  # the same settings, on every dataset
    known = list(cases(study))
    _check_reached(study, known)
    runs = [run for case in known if not case.ranges for run in _runs_of(case, study.settings.seeds, resolved)]
    check_names(runs)
    return runs


def _check_reached(study: Study, known: Sequence[Case]) -> None:
    """Raise for a setting of ``[study]`` or ``[grid]`` that no method reads, or of ``[ranges]`` that none draws."""
    for name in study.ranges:
        if not any(name in case.ranges for case in known):
            raise StudyError(
                f"[ranges] {name} reaches no method: each sets it itself or does not read it; leave one of them out."
            )
    tables = [("[study]", study.shared, known), ("[grid]", study.grid, known)]
    for source in study.datasets:
        own = [case for case in known if case.dataset == source.name]
        tables.append((f"{table_name('datasets', source.name)} settings:", source.settings, own))
    for table, names, reading in tables:
        for name in names:
            if not any(case.reads(name) for case in reading):
                raise StudyError(f"{table} {name} is read by no method as they are set; leave it out.")


def check_names(runs: Sequence[Run]) -> None:
    """Raise for two runs that would have one folder, and for a name that no file system takes."""
    names: dict[str, Run] = {}
    for run in runs:
        if len(run.name) > _LONGEST:
            raise StudyError(
                f"The run {run.name[:40]}... has a name of {len(run.name)} letters, which its folder would have; give "
                f"its method and dataset shorter ones, of at most {_LONGEST} letters with the grid's settings."
            )
        if run.name in names:
            raise StudyError(f"Two runs are named {run.name}; give methods and datasets names that differ in letters.")
        names[run.name] = run


def cases(study: Study) -> Iterator[Case]:
    """Yield every method, with its variants, on every dataset.

    Raises:
        StudyError: a method names a setting that it does not read.
    """
    for source in study.datasets:
        discrete = functools.cache(lambda source=source: source.facts()[0].discrete)  # which may read a file
        for table in study.methods:
            if not table.is_trained_on(source.name):
                continue
            for name, settings in _variants(table):
                yield _case(study, source, table, name, settings, discrete)


def _ends_of(ranges: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values of each setting's range: all of a list, of an interval both ends."""
    return {key: of if isinstance(of, list) else [of.low, of.high] for key, of in ranges.items()}


def _variants(table: MethodTable) -> Iterator[tuple[str, dict[str, Any]]]:
    for values in itertools.product(*table.variants.values()):
        yield "-".join([table.name, *map(_word, values)]), {**table.settings, **dict(zip(table.variants, values))}


def _case(
    study: Study,
    source: DatasetSource,
    table: MethodTable,
    name: str,
    own: Mapping[str, Any],
    discrete: Callable[[], bool],
) -> Case:
    shared, own = {**study.shared, **source.settings}, {**own, **table.on.get(source.name, {})}
    grid, ranges = (
        {key: values for key, values in common.items() if key not in own} | dict(of_method)
        for common, of_method in ((study.grid, table.grid), (study.ranges, table.ranges))
    )
    lists = grid | _ends_of(ranges)
    given = {**shared, **own}
    if any(OF_CONTINUOUS in _conditions(algorithm, key) for algorithm in ALGORITHMS for key in (*given, *lists)):
        given[DISCRETE] = discrete()
    for key in (*own, *table.grid, *table.ranges):
        if not is_read(key, given, {**lists, **table.variants}):
            algorithm = given.get("algorithm", "recipe")
            known = settings_of(algorithm) | given
            unmet = [one for one in _conditions(algorithm, key) if not one.holds(known)]
            conditions = [f"only {_told(one)} reads it" for one in unmet or _conditions(algorithm, key)]
            why = conditions[0] if conditions else f"{algorithm} has {'no critic' if key in _OF_TRAINING else 'none'}"
            raise StudyError(f"[methods.{table.name}] sets {key!r}, but {why}; leave it out.")
    ranges = {key: values for key, values in ranges.items() if is_read(key, given, lists)}
    return Case(source.name, name, given, grid, ranges)


def _runs_of(case: Case, seeds: Sequence[int], resolved: dict[str, dict[str, Any]]) -> Iterator[Run]:
    seen = set()
    for values in itertools.product(*case.grid.values()):
        given = {**case.given, **dict(zip(case.grid, values))}
        point = repr(sorted(given.items()))
        settings = resolved[point] = resolved.get(point) or resolve(given, case)
        runs = [case.run(settings, case.grid, seed) for seed in seeds]
        if str(runs[0].grid) in seen:  # they differ in settings that change nothing
            continue
        seen.add(str(runs[0].grid))
        yield from runs


def resolve(given: Mapping[str, Any], case: Case) -> dict[str, Any]:
    """Return all settings of a run of ``case``, with defaults and without those that change nothing."""
    algorithm = given.get("algorithm", "recipe")
    defaults = {"algorithm": algorithm, **asdict(TrainingSettings()), **settings_of(algorithm)}
    settings = check_run_settings({name: given.get(name, default) for name, default in defaults.items()}, "a run")
    of_task = {DISCRETE: given[DISCRETE]} if DISCRETE in given else {}
    settings = {name: value for name, value in settings.items() if is_read(name, settings | of_task)}
    try:
        check_all(ALGORITHMS[algorithm], settings)
        check_all(TrainingSettings, settings)
        if settings.get("memory") is not None:
            sampling_of(settings)
    except ValueError as error:
        raise StudyError(f"[methods.{case.method}] on {case.dataset}: {error}") from None
    return settings


def sampling_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the buffer of a run is told beside its rows and seed.

    Raises:
        ValueError: batches of this size cannot be drawn.
    """
    own = {name: value for name, value in settings.items() if name not in _OF_TRAINING | {"algorithm"}}
    return algorithms.make_algorithm(settings["algorithm"], **own).sampling(settings["batch_size"])


def is_read(name: str, given: Mapping[str, Any], grid: Mapping[str, Sequence[Any]] | None = None) -> bool:
    """Say whether a setting changes anything, given the others.

    Args:
        name: of the setting.
        given: the others; defaults count where one is not there.
        grid: values that others may have instead; one that reads the setting is enough.
    """
    grid = grid or {}
    if name == "algorithm" or name in _OF_TRAINING:
        return _is_read_in_training(name, given, grid)
    for algorithm in grid.get("algorithm", [given.get("algorithm", "recipe")]):
        others = {one.other for one in _conditions(algorithm, name)} & set(grid)
        points = itertools.product(*(grid[other] for other in others))
        if any(algorithms.is_read(algorithm, name, {**given, **dict(zip(others, point))}) for point in points):
            return True
    return False


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings with those of its training that it lacks, as the runs of earlier plans do."""
    return asdict(TrainingSettings()) | dict(settings)


def _is_read_in_training(name: str, given: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> bool:
    if name in ("critic_first", "tau"):
        algorithms_of = grid.get("algorithm", [given.get("algorithm", "recipe")])
        return any(ALGORITHMS[algorithm].has_critic for algorithm in algorithms_of)
    conditions = _conditions("", name)
    others = [one.other for one in conditions if one.other in grid]
    points = itertools.product(*(grid[other] for other in others))
    known = with_defaults(given)
    return any(all(one.holds(known | dict(zip(others, point))) for one in conditions) for point in points)


def _told(condition: ReadWith) -> str:
    return condition.words(condition.other + ("" if condition.above is not None else " ="))


def _conditions(algorithm: str, name: str) -> list[ReadWith]:
    owner = TrainingSettings if name in _OF_TRAINING or name == "algorithm" else ALGORITHMS[algorithm]
    return conditions_of(parameters_of(owner).get(name, (None,))[0])


def _word(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(_word, value))
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def slug(parts: Sequence[str]) -> str:
    """Join the parts of a name into one that can be a folder's."""
    return "--".join(re.sub(r"[^A-Za-z0-9._=+-]+", "-", part) for part in parts)
