"""A study as a file: what TOML says, checked, with every default in one place."""

from __future__ import annotations

import functools
import inspect
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from torchrl_marl_offline.algorithms.algorithm import ALGORITHMS, Algorithm, make_algorithm, setting
from torchrl_marl_offline.core.annotations import fields_of, parameters_of
from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.docstrings import plain_text, told_of
from torchrl_marl_offline.core.goal_choices import WITH_HINDSIGHT, HindsightKind
from torchrl_marl_offline.core.outputs import LoggerName
from torchrl_marl_offline.core.paths import folder_name, user_path
from torchrl_marl_offline.core.ranges import (
    COUNT,
    COUNT_OR_NONE,
    FEW,
    LEARNING_RATE,
    NON_NEGATIVE,
    OPEN_UNIT,
    RATE,
    ROWS,
    RUN_SEED,
    SIZE,
    AtMost,
    OneOf,
    range_of,
)
from torchrl_marl_offline.core.regular_files import read_text
from torchrl_marl_offline.core.tables import ONCE, Key, check_keys, keys_of, table_name, table_type, validated
from torchrl_marl_offline.study.checking import StudyError, check_metric, study_errors
from torchrl_marl_offline.study.choosing import (
    ESTIMATES,
    PARTS,
    READ_BY,
    OfflineSettings,
    SearchSettings,
    SelectBy,
    estimated_by,
    with_tuples,
)
from torchrl_marl_offline.study.search_space import ValueRange, number_kind, read_space
from torchrl_marl_offline.study.sources import DatasetSource, check_recordings, read_source, tables_by_name

EXAMPLES = {"methods": "[methods.recipe]", "datasets": "[datasets.spread] with a source or a task"}
"""The tables that a study file must have."""

Metric = Literal[
    "auto",
    "normalized",
    "success",
    "return",
    "length",
]
"""Columns of the results by which runs can be compared."""


@dataclass(frozen=True)
@checked
class TrainingSettings:
    """Settings of a run that are not the loss's: those of the paper (arXiv:2603.08399, app. D) by default.

    Attributes:
        steps: updates.
        batch_size: transitions of an update.
        lr: Adam's learning rate.
        tau: rate of the target networks.
        actor_every: the actor and the targets take a step at every so many updates alone; see
            :class:`~torchrl_marl_offline.Trainer`.
        critic_first: so many of the steps train all networks but the actor, the others the actor alone.
        lr_schedule: the learning rate stays, or falls to 0 by a cosine over the steps that follow ``critic_first``.
        clip_grad_norm: largest norm of the whole gradient; 0 for no limit.
        precision: of the matrix products.
        normalize_inputs: let networks see observations and states by the dataset's mean and deviation: where a
            component is badly scaled (``"auto"``), always, never.
        hindsight: in tasks with goals, the goal that some of the sampled steps get: what was achieved later in their
            episode, at its end, or anywhere in the dataset; see :class:`~torchrl_marl_offline.data.HindsightGoals`.
        hindsight_share: of the steps; the others keep their goal.
        hindsight_per: the goals of all agents were achieved at one time, or each agent's is drawn for itself.
    """

    steps: Annotated[int, COUNT] = 500_000
    batch_size: Annotated[int, ROWS] = 640
    lr: Annotated[float, LEARNING_RATE] = setting(3e-4, member=True)
    tau: Annotated[float, RATE] = 0.005
    actor_every: Annotated[int, COUNT, AtMost("steps", above="critic_first")] = 1
    critic_first: Annotated[int, COUNT_OR_NONE, AtMost("steps", strict=True)] = 0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    clip_grad_norm: Annotated[float, NON_NEGATIVE] = 0.0
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    normalize_inputs: Literal["auto", "on", "off"] = "auto"
    hindsight: HindsightKind = "off"
    hindsight_share: Annotated[float, RATE, WITH_HINDSIGHT] = 0.8
    hindsight_per: Annotated[Literal["team", "agent"], WITH_HINDSIGHT] = "team"


@dataclass(frozen=True)
@checked
class EvaluationSettings:
    """The table ``[evaluation]``.

    Attributes:
        every: updates between evaluations; there is one after the last, too.
        episodes: whole episodes of each run at each evaluation.
        modes: how the policy acts; each is an evaluator of its own.
        seed: of the environments. Runs of other seeds play other episodes.
        num_envs: environments that step at once, over all members of a population.
        held_out: share of the episodes that is kept out of training where a dataset has no simulator: runs are then
            held against these. What that says, agreement and calibration, is a diagnosis: it stands on the report, and
            nothing is ranked or chosen by it. Where runs are estimated, the share of ``[offline]`` takes its place.
    """

    every: Annotated[int, COUNT] = 50_000
    episodes: Annotated[int, SIZE] = 10
    modes: Annotated[tuple[Literal["mode", "sample"], ...], ONCE] = ("mode",)
    seed: Annotated[int, RUN_SEED] = 1000
    num_envs: Annotated[int, SIZE] = 4096
    held_out: Annotated[float, OPEN_UNIT] = 0.1


@dataclass(frozen=True)
@checked
class StudySettings:
    """The table ``[study]``; beside these it takes the settings that all runs share (``steps``, ``hidden``, ...).

    Attributes:
        name: in the table of results and on the report.
        output: folder of jobs, data, results and report.
        seeds: a number of seeds, counted from 0, or a list of them.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA where there is any.
        members: most runs of one population, whatever the memory.
        join_datasets: train the runs of a method on all datasets of one task and the same sizes, such as games with
            other payoffs, as one population, each on its own data: many small datasets then cost little more than one.
            Joined are runs that play in a simulator, without memory, without hindsight, with
            ``normalize_inputs = "off"`` and without ``bounds`` among the dataset's ``options``; all others are trained
            as without it (``study plan`` shows the populations). The largest value that rewards allow is that of all
            joined datasets together.
        compile: of the training step. ``"auto"`` measures which form is faster, so that two studies may differ in the
            rounding; under ``"on"`` or ``"off"`` they are equal bit for bit.
        on_impossible_values: what becomes of a run whose mean ``|Q|`` exceeds what the rewards of its data allow:
            ``"warn"`` names it on the report, ``"stop"`` also leaves it out from there on; see
            :class:`~torchrl_marl_offline.training.run.value_alarm.ValueAlarm`.
        log_every: updates between rows of ``train.csv``.
        logger: where the numbers of every run go: ``"csv"`` (in any case), ``"tensorboard"``, ``"wandb"``.
        checkpoint_every: updates between checkpoints of a population; 0 for a tenth of its steps.
        keep_checkpoints: keep the checkpoints of a finished population (its policies are kept anyway).
        last_k: how many evaluations at the end are averaged where settings are compared.
        metric: what is compared: ``"return"``, ``"normalized"``, ``"success"`` or another column of the results, but
            none of :data:`~torchrl_marl_offline.evaluation.held_out.DIAGNOSES`;
            ``"auto"`` takes the first of normalized, success and return that every dataset has.
        select: by what the setting of a grid is chosen: ``"return"``, by ``metric`` in the simulator; or from episodes
            that are held out of training, with and without a simulator, by fitted Q evaluation (``"fqe"``), weighted
            importance sampling (``"wis"``) or doubly robust (``"dr"``), which ``[offline]`` sets. All runs are then
            estimated, also without a grid.
    """

    name: str
    output: Path
    seeds: Annotated[tuple[int, ...], RUN_SEED, ONCE] = (0, 1, 2, 3, 4)
    device: str = "auto"
    members: Annotated[int, SIZE] = 64
    join_datasets: bool = False
    compile: Literal["auto", "on", "off"] = "auto"
    on_impossible_values: Literal["warn", "stop", "ignore"] = "warn"
    log_every: Annotated[int, COUNT] = 100
    logger: Annotated[tuple[LoggerName, ...], ONCE] = ("csv",)
    checkpoint_every: Annotated[int, COUNT_OR_NONE] = 0
    keep_checkpoints: bool = False
    last_k: Annotated[int, COUNT] = 5
    metric: Metric = "auto"
    select: SelectBy = "return"


@dataclass(frozen=True)
class MethodTable:
    """The table ``[methods.NAME]``.

    Attributes:
        name: of the method.
        settings: of :func:`~torchrl_marl_offline.make_loss` and of :class:`TrainingSettings`.
        variants: setting -> values; every combination is a method of its own, named ``NAME-VALUE-VALUE``.
        grid: setting -> values; every combination is a setting of the one method, of which the best is reported.
        ranges: setting -> a range ``{ low = 0.1, high = 10, log = true }`` or a list of values, for ``[search]``.
        on: dataset -> settings of its runs, ``[methods.NAME.on.DATASET]``; they win over ``settings``.
        datasets: the names of those that it is trained on; all of the study's where it is not given.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, list[Any]] = field(default_factory=dict)
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    ranges: Mapping[str, ValueRange | list[Any]] = field(default_factory=dict)
    on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    datasets: Annotated[tuple[str, ...], ONCE] | None = None

    def is_trained_on(self, dataset: str) -> bool:
        """Say whether it has runs on a dataset of the study."""
        return self.datasets is None or dataset in self.datasets


@dataclass(frozen=True)
class Study:
    """A study file that was read.

    Attributes:
        file: where it was read from.
        settings: ``[study]``.
        shared: the run settings among ``[study]``.
        evaluation: ``[evaluation]``.
        methods: ``[methods.NAME]``.
        datasets: ``[datasets.NAME]`` or ``[[datasets]]``.
        grid: ``[grid]``, for every method that reads the setting.
        ranges: ``[ranges]``, likewise, for a search.
        search: ``[search]``, or ``None``.
        offline: ``[offline]``.
    """

    file: Path
    settings: StudySettings
    shared: Mapping[str, Any]
    evaluation: EvaluationSettings
    methods: tuple[MethodTable, ...]
    datasets: tuple[DatasetSource, ...]
    grid: Mapping[str, list[Any]]
    ranges: Mapping[str, ValueRange | list[Any]] = field(default_factory=dict)
    search: SearchSettings | None = None
    offline: OfflineSettings = OfflineSettings()  # noqa: RUF009

    @property
    def estimated_by(self) -> str | None:
        """The word by which runs are estimated from held-out episodes; ``None`` where they are not."""
        return estimated_by(self.settings.select, self.search)


def read_study(path: str | Path) -> Study:
    """Read a study file.

    Relative paths in it are relative to its folder.

    Args:
        path: the TOML file.

    Raises:
        StudyError: the file is missing, is no TOML, or has a key or value that means nothing; the message names the
            key and the nearest one that is known.

    Example:
        .. code-block:: toml

            [study]
            name = "temperatures"
            seeds = 3
            steps = 20_000

            [methods.mix]
            decomposition = "mixer"

            [datasets.spread]
            task = "mpe/simple_spread"
            episodes = 2000

            [grid]
            temperature = [1, 3, 10]
    """
    path = user_path(path)
    try:
        table = tomllib.loads(read_text(path))
    except OSError as error:
        raise StudyError(f"The study file {path} cannot be read ({error.strerror}); name another.") from error
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path} is no TOML: {str(error).rstrip('.')}.") from error
    if "datasets" in table:
        table["datasets"] = tables_by_name(table["datasets"])
    if isinstance(table.get("study"), Mapping):
        check_metric(table["study"].get("metric"))
    with study_errors():
        content = validated(study_tables().file, table, str(path), examples=EXAMPLES)
    given = content.get("study", {})
    own = {name: given[name] for name in fields_of(StudySettings) if name in given}
    own.setdefault("name", path.stem)
    own["output"] = Path(os.path.normpath(path.parent / _output(own)))
    if own["output"].is_file():
        raise StudyError(f"[study] output: {own['output']} is a file; name a folder of the study's own.")
    for table in (own, content.get("search", {})):
        if isinstance(table.get("seeds"), int):
            table["seeds"] = range(table["seeds"])
    methods = tuple(_method(name, table) for name, table in content["methods"].items())
    datasets = tuple(read_source(name, table, path.parent) for name, table in content["datasets"].items())
    known = [source.name for source in datasets]
    with study_errors():
        for method in methods:
            _check_datasets_of(method, known)
        _check_all_are_used(methods, known)
        check_recordings(datasets)
    ranges = read_space(content.get("ranges", {}), run_hints(), "[ranges]")
    study = Study(
        file=path,
        settings=StudySettings(**with_tuples(own)),
        shared={name: value for name, value in given.items() if name not in own},
        evaluation=EvaluationSettings(**with_tuples(content.get("evaluation", {}))),
        methods=methods,
        datasets=datasets,
        grid=content.get("grid", {}),
        ranges=ranges,
        search=SearchSettings(**with_tuples(content["search"])) if "search" in content else None,
        offline=OfflineSettings.of(content.get("offline", {})),
    )
    _check_search(study)
    _check_offline(study, content.get("offline"))
    if "held_out" in content.get("evaluation", {}):
        _check_held_out(study)
    return study


def _check_held_out(study: Study) -> None:
    """Refuse a share of episodes that nothing holds out."""
    if study.estimated_by is not None:
        raise StudyError(
            "[evaluation] held_out belongs to runs that are not estimated; give [offline] held_out in its place."
        )
    if all(source.task is not None for source in study.datasets):
        raise StudyError(
            "[evaluation] held_out belongs to datasets without a simulator, and all of these are recorded in one; "
            "leave it out."
        )


def _check_offline(study: Study, given: Mapping[str, Any] | None) -> None:
    """Refuse a table ``[offline]`` of which nothing, or a key of which nothing, is read."""
    by = study.estimated_by  # which refuses two words
    if study.settings.join_datasets and (by is not None or study.search is not None):
        raise StudyError(
            "join_datasets is for studies whose runs are trained to their end and not estimated; leave it out beside "
            "select and [search]."
        )
    if given is None:
        return
    if by is None:
        raise StudyError(
            'Nothing is estimated from held-out episodes, so that [offline] says nothing; give [study] select = "fqe", '
            "or leave it out."
        )
    unread = next((key for key in given if by not in READ_BY.get(key, ESTIMATES)), None)
    if unread is not None:
        raise StudyError(
            f"[offline] {unread} is read where runs are estimated by {' or '.join(map(repr, READ_BY[unread]))}, and "
            f"these are by {by!r}; leave it out."
        )


def _check_search(study: Study) -> None:
    """Refuse a search without ranges, ranges without a search, and a search beside a grid."""
    named = {"[ranges]": study.ranges, "[grid]": study.grid}
    for method in study.methods:
        named[table_name("methods", method.name, "ranges")] = method.ranges
        named[table_name("methods", method.name, "grid")] = method.grid
    ranges = [where for where, table in named.items() if table and where.endswith("ranges]")]
    grids = [where for where, table in named.items() if table and where.endswith("grid]")]
    if study.search is None and ranges:
        raise StudyError(f"{ranges[0]} is what a search draws from; add a table such as [search] with trials = 32.")
    if study.search is not None and not ranges:
        raise StudyError("[search] has nothing to draw from; add a table such as [ranges] with lists or ranges.")
    if study.search is not None and grids:
        raise StudyError(f"{grids[0]} tries every value, [search] draws some; put its lists into [ranges].")


@study_errors()
def _output(settings: Mapping[str, Any]) -> Path:
    """Return the folder of a study as its file says it; without a word of that it is made of the name."""
    if "output" in settings:
        return user_path(settings["output"])
    return Path("runs") / folder_name(settings["name"], "Without an output the [study] name")


def with_recordings(study: Study) -> tuple[Study, tuple[str, ...]]:
    """Return a study on data that is recorded here, in the place of published sets; and the names of what is left out.

    The same tasks and qualities, by :func:`~torchrl_marl_offline.record`; sets of a task that cannot be played,
    or of a quality that it does not make, are left out. Its output is a folder of its own.

    Args:
        study: what :func:`read_study` read.

    Raises:
        StudyError: no dataset is left.
    """
    found = {source.name: source.recorded() for source in study.datasets}
    datasets = tuple(source for source in found.values() if source is not None)
    if not datasets:
        raise StudyError(f"None of the tasks of {study.file} can be played and recorded at its quality; load its sets.")
    output = study.settings.output
    settings = replace(
        study.settings, name=f"{study.settings.name}, recorded data", output=output.with_name(f"{output.name}-recorded")
    )
    left_out = tuple(name for name, source in found.items() if source is None)
    return replace(study, settings=settings, datasets=datasets), left_out


def run_hints() -> dict[str, Any]:
    """Return every setting that a run of some algorithm has, and its type."""
    return _run_hints(tuple(ALGORITHMS.values()))


@functools.cache
def _run_hints(algorithms: tuple[type[Algorithm], ...]) -> dict[str, Any]:
    hints = {"algorithm": Annotated[str, OneOf(ALGORITHMS)], **get_type_hints(TrainingSettings, include_extras=True)}
    for kind in algorithms:
        for name, (hint, _) in fields_of(kind).items():
            same = range_of(hints.get(name, hint)) == range_of(hint)
            hints[name] = hint if same else _without_range(hint)  # then each run's own is asked
    return hints


def _without_range(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


class StudyTables(NamedTuple):
    """The types of tables that pydantic reads.

    Attributes:
        file: a whole study file.
        run: the settings of a run.
    """

    file: type
    run: type


def study_tables() -> StudyTables:
    """Return the types of a study file's tables, the settings of all algorithms that are registered among them."""
    return _study_tables(tuple(ALGORITHMS.values()))


@functools.cache
def _study_tables(algorithms: tuple[type[Algorithm], ...]) -> StudyTables:
    keys = _run_keys(algorithms)
    run = table_type("RunSettings", keys, "Settings of runs.")
    several = {name: Key(Annotated[list[key.hint], ONCE], text=key.text) for name, key in keys.items()}
    lists = table_type("Lists", several, "Settings, each with a list of values.")
    value_range = table_type("RangeOfValues", keys_of(ValueRange), _opening(ValueRange))
    several = {
        name: key._replace(hint=key.hint | value_range) if number_kind(keys[name].hint) else key
        for name, key in several.items()
    }
    space = table_type("Space", several, "Settings, each with a range of values or a list of them.")
    study, search = keys_of(StudySettings), keys_of(SearchSettings)
    for table in (study, search):
        table["seeds"] = table["seeds"]._replace(hint=Annotated[int, FEW] | table["seeds"].hint)
    offline = keys_of(OfflineSettings)
    for name, kind in PARTS.items():
        part = table_type(f"{name.capitalize()}Table", keys_of(kind), _opening(kind))
        offline[name] = Key(part, text=offline[name].text)
    method = keys_of(MethodTable)
    method = {name: method[name]._replace(hint=lists) for name in ("variants", "grid")} | {
        "ranges": method["ranges"]._replace(hint=space),
        "on": method["on"]._replace(hint=dict[str, run]),
        "datasets": method["datasets"]._replace(hint=Annotated[list[str], ONCE]),
    }
    dataset = keys_of(DatasetSource)
    dataset["settings"] = dataset["settings"]._replace(hint=run)
    tables = {
        "study": table_type("StudyTable", {**study, **keys, **study}, _opening(StudySettings)),
        "evaluation": table_type("EvaluationTable", keys_of(EvaluationSettings), _opening(EvaluationSettings)),
        "methods": dict[str, table_type("Method", keys | method, _opening(MethodTable))],
        "datasets": dict[str, table_type("Dataset", dataset, _opening(DatasetSource))],
        "grid": lists,
        "ranges": space,
        "search": table_type("SearchTable", search, _opening(SearchSettings)),
        "offline": table_type("OfflineTable", offline, _opening(OfflineSettings)),
    }
    told = told_of(Study) | {"study": told_of(Study)["settings"]}
    whole = {name: Key(hint, text=told[name]) for name, hint in tables.items()}
    return StudyTables(
        table_type("StudyFile", whole, "A study file: methods × datasets × grids × seeds.", required=EXAMPLES),
        run,
    )


def _opening(kind: type) -> str:
    return plain_text(" ".join(inspect.cleandoc(kind.__doc__).partition("\n\n")[0].split()))


def _run_keys(algorithms: tuple[type[Algorithm], ...]) -> dict[str, Key]:
    """Return the settings of runs; the text of one that algorithms differ in says whose it is."""
    default = parameters_of(make_algorithm)["name"][1]
    shared = {"algorithm": Key(str, default, "by its name; other keys are its settings."), **keys_of(TrainingSettings)}
    of_each = {kind.name: keys_of(kind) for kind in algorithms}
    keys = {}
    for name, hint in _run_hints(algorithms).items():
        having = {algorithm: own[name] for algorithm, own in of_each.items() if name in own}
        key = shared[name] if name in shared else _as_one(having, list(of_each))
        keys[name] = key._replace(hint=hint)
    return keys


def _as_one(keys: Mapping[str, Key], algorithms: Sequence[str]) -> Key:
    """Return a setting of some algorithms as one key; its text says whose it is, and whose default is another."""
    texts = _alike({name: key.text for name, key in keys.items()})
    ranges = _alike({name: str(range_of(key.hint) or "any") for name, key in keys.items()})
    defaults = _alike({name: json.dumps(key.default, default=str) for name, key in keys.items()})
    told = [f"{_whose(names, algorithms)}{text}" for text, names in texts.items()]
    if len(ranges) > 1:
        told.append(f"Range: {_by_algorithm(ranges)}.")
    if len(defaults) == 1:
        return Key(None, next(iter(keys.values())).default, " ".join(told))
    return Key(None, None, " ".join([*told, f"Default: {_by_algorithm(defaults).replace('null', 'none')}."]))


def _alike(said: Mapping[str, str]) -> dict[str, list[str]]:
    """Return what is said of algorithms -> those of which it is, what is said of most first."""
    found: dict[str, list[str]] = {}
    for name, text in said.items():
        found.setdefault(text, []).append(name)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _by_algorithm(said: Mapping[str, Sequence[str]]) -> str:
    common, *others = said
    return "; ".join([common, *(f"{text} for {', '.join(said[text])}" for text in others)])


def _whose(names: Sequence[str], algorithms: Sequence[str]) -> str:
    others = [name for name in algorithms if name not in names]
    if not others:
        return ""
    return f"all but {', '.join(others)}: " if len(others) < len(names) else f"{', '.join(names)}: "


@study_errors()
def check_run_settings(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return run settings as their types want them, tuples as lists: as JSON keeps them.

    Raises:
        StudyError: an unknown setting, or a value of another kind.
    """
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in table.items()}
    return validated(study_tables().run, listed, where)


def _method(name: str, content: Mapping[str, Any]) -> MethodTable:
    lists = {key: content.get(key, {}) for key in ("variants", "grid", "ranges")}
    own = {key: value for key, value in content.items() if key not in (*lists, "on", "datasets")}
    on, datasets = content.get("on", {}), content.get("datasets")
    for key in dict.fromkeys([*own, *lists["variants"], *(key for table in on.values() for key in table)]):
        in_lists = sum(key in table for table in lists.values())
        if in_lists > 1 or (in_lists and (key in own or any(key in table for table in on.values()))):
            raise StudyError(f"{table_name('methods', name)} gives {key!r} twice; leave one of them out.")
    lists["ranges"] = read_space(lists["ranges"], run_hints(), table_name("methods", name, "ranges"))
    return MethodTable(name, own, **lists, on=on, datasets=None if datasets is None else tuple(datasets))


def _check_datasets_of(method: MethodTable, known: Sequence[str]) -> None:
    """Raise for a dataset that a method names and the study has not, or that it has settings for without being on it.

    Raises:
        ValueError: so.
    """
    check_keys(method.on, known, table_name("methods", method.name, "on"))
    if method.datasets is None:
        return
    where = f"{table_name('methods', method.name)} datasets"
    check_keys(method.datasets, known, where, "dataset")
    for name in method.on:
        if name not in method.datasets:
            raise ValueError(
                f"{where} leaves {name!r} out, which [methods.{method.name}.on] has settings for; drop one."
            )


def _check_all_are_used(methods: Sequence[MethodTable], known: Sequence[str]) -> None:
    """Raise for a dataset that no method is trained on.

    Raises:
        ValueError: so.
    """
    for name in known:
        if not any(method.is_trained_on(name) for method in methods):
            raise ValueError(f"No method is trained on [datasets.{name}]; name it in a method's datasets, or drop it.")
