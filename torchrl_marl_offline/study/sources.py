"""The datasets of a study: loaded by name or path, or made on the spot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from filelock import FileLock

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import SUCCESS
from torchrl_marl_offline.core.paths import mixed_skill_name, user_path
from torchrl_marl_offline.core.ranges import COUNT, RATE, RUN_SEED, shown
from torchrl_marl_offline.core.tables import table_name
from torchrl_marl_offline.data import OfflineDataset, TaskSpec, load_dataset
from torchrl_marl_offline.data.formats.readers import READERS
from torchrl_marl_offline.data.published.cards import SOURCES, card_of
from torchrl_marl_offline.data.transitions.storage import is_dataset_folder
from torchrl_marl_offline.data.transitions.subsets import subsample
from torchrl_marl_offline.envs import list_tasks, make_env
from torchrl_marl_offline.evaluation.run_hindsight import goal_outcome, hindsight_options
from torchrl_marl_offline.evaluation.simulator import find_environment, make_simulator
from torchrl_marl_offline.recording import record, record_mixed_skill
from torchrl_marl_offline.recording.graded import QUALITIES, UNTRAINED, RecordSettings, check_quality, parts_of
from torchrl_marl_offline.study.checking import StudyError

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

_NO_OPTIONS = {"source", "repair", "strict", "inspect", "codes"}  # of load_dataset, which a study calls in several ways


@dataclass(frozen=True)
@checked
class DatasetSource:
    """The table ``[datasets.NAME]``: a ``source``, or a ``task`` to record.

    Attributes:
        name: of the dataset.
        source: what :func:`~torchrl_marl_offline.load_dataset` takes; a path is relative to the study file.
        repair: mend what can be mended of a ``source``.
        task: ``"family/task"`` to record.
        quality: of :func:`~torchrl_marl_offline.record`, which trains a behaviour policy first; without it
            :func:`~torchrl_marl_offline.record_mixed_skill` plays with scripted policies.
        episodes: to record without a ``quality``.
        transitions: to record with one.
        fraction: share of the episodes to train on, drawn by ``seed``; a smaller share lies within a larger one.
        seed: of the recording.
        options: of ``load_dataset``, or of ``record``; without a quality ``task_options`` alone, those of ``make_env``.
        settings: run settings of this dataset's runs, e.g. more ``steps``; a method's own win over them.
    """

    name: str
    source: str | None = None
    repair: bool = False
    task: str | None = None
    quality: str | None = None
    episodes: Annotated[int, COUNT] = 4000
    transitions: Annotated[int, COUNT] = 100_000
    fraction: Annotated[float, RATE] = 1.0
    seed: Annotated[int, RUN_SEED] = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def load(self, folder: Path) -> OfflineDataset:
        """Load the dataset; one that is made is made once and kept below ``folder``.

        Processes that want the same data at the same time wait for the one that makes it.
        """
        return self._part_of(self._load_whole(folder))

    def _load_whole(self, folder: Path) -> OfflineDataset:
        if self.source is not None:
            return self._read(repair=self.repair)
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / self._recording
        with FileLock(folder / f".{place.name}.lock"):  # the qualities of a task come from one training
            if self.quality is None:
                return record_mixed_skill(self.task, folder, episodes=self.episodes, seed=self.seed, **self.options)
            options = {"transitions": self.transitions, "seed": self.seed, "progress": False, **self.options}
            return record(self.task, place, qualities=[self.quality], **options)[self.quality]

    @property
    def _recording(self) -> str:
        return f"{self.task.replace('/', '-')}-seed{self.seed}"

    def already_made(self, folder: Path) -> OfflineDataset | None:
        """Return the dataset, if it is recorded and whole, without making anything."""
        if self.source is not None:
            return None
        if self.quality is None:
            task_options = self.options.get("task_options", {})
            place = folder / mixed_skill_name(self.task, self.episodes, self.seed, task_options)
        else:
            place = folder / self._recording / self.quality
        if not is_dataset_folder(place):
            return None
        return self._part_of(OfflineDataset.load(place))

    def _part_of(self, dataset: OfflineDataset) -> OfflineDataset:
        return dataset if self.fraction == 1.0 else subsample(dataset, fraction=self.fraction, seed=self.seed)

    def _read(self, **how: Any) -> OfflineDataset:
        try:
            return load_dataset(self.source, **how, **self.options)
        except TypeError as error:
            where, reason = table_name("datasets", self.name), re.sub(r"^[\w.]+\(\) ", "", str(error)).rstrip(".")
            raise StudyError(f"{where} options: {reason}.") from error

    def recorded(self) -> DatasetSource | None:
        """Return the same task and quality as data to record, in the place of a published set.

        Any other source is returned as it is; ``None`` where the published set's task cannot be played, or
        :func:`~torchrl_marl_offline.record` makes no such quality.
        """
        if not self._is_published():
            return self
        card = card_of(self.source)
        quality = card.quality.lower()
        if quality == "random" and self.source.startswith("omar:"):
            quality = UNTRAINED  # those are of a randomly initialized policy
        if card.task not in list_tasks() or not set(parts_of(quality)) <= {*QUALITIES, UNTRAINED}:
            return None
        return DatasetSource(self.name, task=card.task, quality=quality, fraction=self.fraction, settings=self.settings)

    def facts(self) -> tuple[TaskSpec, int]:
        """Return the task's sizes and about how many transitions there are, without making or fetching the data."""
        if self.task is not None:
            env = self._environment()
            rows = self.transitions if self.quality is not None else self.episodes * env.max_episode_steps
            return env.task_spec, self._share_of(rows)
        if self._is_published():
            card = card_of(self.source)
            if None in (card.transitions, card.observation_size, card.state_size):
                raise StudyError(
                    f"{self.source} has no published card; load it once with load_dataset to know its size."
                )
            names = ("n_agents", "observation_size", "state_size", "action_size", "discrete")
            sizes = {name: getattr(card, name) for name in names}
            return TaskSpec(task=card.env, **sizes), self._share_of(card.seeds * card.transitions)
        dataset = self._read(inspect=False)
        return dataset.spec, self._share_of(len(dataset))

    def has_simulator(self) -> bool:
        """Say whether the task can be played, without making or fetching the data."""
        return self.task is not None or self._environment() is not None

    def _is_published(self) -> bool:
        return self.source is not None and self.source.partition(":")[0] in SOURCES

    def _environment(self) -> EnvBase | None:
        """Return the task's environment, without making or fetching the data, or ``None`` where there is none."""
        if self.task is not None:
            try:
                return make_env(self.task, num_envs=1, **self.options.get("task_options", {}))
            except (TypeError, ValueError) as error:
                where = table_name("datasets", self.name)
                raise StudyError(f"{where} options: {str(error).rstrip('.')}.") from error
        if self._is_published():
            card = card_of(self.source)
            return find_environment(card.env, card.env_options, num_envs=1)
        return make_simulator(self._read(inspect=False), num_envs=1)

    def check_goals(self) -> None:
        """Refuse hindsight, without making or fetching the data, where there are no goals.

        Raises:
            ValueError: there are none.
        """
        if self.task is not None or self._is_published():
            goal_outcome(self._environment(), f"the dataset {self.name}")
        else:
            hindsight_options(self._read(inspect=False), "future")

    def check_metric(self, metric: str) -> None:
        """Refuse a metric that this task is not evaluated for, without making or fetching the data.

        Raises:
            StudyError: it has none of that name; a dataset without a simulator is shown by how like it policies are.
        """
        env = self._environment() if metric in ("normalized", "success") else None
        if env is None:
            return
        kinds = {
            "normalized": getattr(env, "reference_returns", None) is not None,
            "success": SUCCESS in env.observation_spec.keys(include_nested=True),
        }
        if not kinds[metric]:
            reason = "no reference returns" if metric == "normalized" else "no success"
            others = ", ".join(repr(name) for name in ("auto", "return", *kinds) if kinds.get(name, True))
            raise StudyError(
                f"[study] metric = {metric!r}, but the task of {self.name} has {reason}; options: {others}."
            )

    def episodes_before(self) -> int | None:
        """Return how many episodes there will be, where that can be said without making or fetching the data."""
        if self.task is not None:
            return self._share_of(self.episodes) if self.quality is None else None
        if self._is_published():
            return None
        return self._share_of(self._read(inspect=False).n_episodes)

    def _share_of(self, rows: int) -> int:
        return max(1, round(self.fraction * rows))


def tables_by_name(content: Any) -> dict[str, Any]:
    """Return the datasets of a study file by their names.

    Args:
        content: a table of tables by name, or a list of tables or of sources.

    Raises:
        StudyError: it is neither, or two datasets have one name.
    """
    if isinstance(content, list):
        tables = [{"source": table} if isinstance(table, str) else table for table in content]
        pairs = [(None, table) for table in tables]
    elif isinstance(content, Mapping):
        pairs = list(content.items())
    else:
        raise StudyError(f"datasets must be tables, such as [datasets.spread], got {shown(content)}.")
    found = {}
    for name, table in pairs:
        if not isinstance(table, Mapping):
            raise StudyError(f"A dataset must be a table with a source or a task, got {shown(table)}.")
        name = table.get("name", _default_name(table) if name is None else name)
        name = name if isinstance(name, str) else shown(name)  # which is refused by its kind
        if name in found:
            raise StudyError(f"Two datasets are named {name!r}; give one of them another name.")
        found[name] = table
    return found


def read_source(name: str, table: Mapping[str, Any], folder: Path) -> DatasetSource:
    """Return a dataset of a study file.

    Args:
        name: of the dataset.
        table: its keys, whose values have been checked one by one.
        folder: of the file, to which paths are relative.

    Raises:
        StudyError: it says too much or too little.
    """
    where = table_name("datasets", name)
    source = DatasetSource(**{"name": name, **table})
    if (source.source is None) == (source.task is None):
        raise StudyError(f"{where} needs either a source to load or a task to record.")
    of_recording = {"quality", "episodes", "transitions", "seed"} & set(table)
    if source.source is not None and of_recording:
        raise StudyError(f"{where} {min(of_recording)} belongs to data that is recorded; leave it or the source out.")
    if source.quality is not None and "episodes" in table:
        raise StudyError(f"{where} episodes belongs to scripted policies; a quality has transitions.")
    if source.task is not None and source.quality is None and "transitions" in table:
        raise StudyError(f"{where} transitions belongs to a quality; scripted policies play episodes.")
    kept = sorted(_NO_OPTIONS & set(source.options))
    if source.source is not None and kept:
        raise StudyError(
            f"{where} options: {kept[0]} is none of a study's (repair is a key of the table); leave it out."
        )
    if source.quality is not None:
        _check_recording(source, where)
    elif source.task is not None and (unknown := set(source.options) - {"task_options"}):
        raise StudyError(
            f"{where} options: without a quality scripted policies play, who have no {min(unknown)}; only task_options."
        )
    if source.task is not None and "repair" in table:
        raise StudyError(f"{where} repair belongs to a source; leave it out.")
    return source if source.source is None else replace(source, source=_absolute(source.source, folder))


def _check_recording(source: DatasetSource, where: str) -> None:
    """Refuse what :func:`~torchrl_marl_offline.record` would refuse, long before it is asked."""
    try:
        check_quality(source.task, source.quality, source.options.get("task_options"))
    except ValueError as error:
        raise StudyError(f"{where} {error}") from None
    try:
        RecordSettings(source.task, **{"seed": source.seed, **source.options})
    except (ValueError, TypeError) as error:
        raise StudyError(
            f"{where} options: {str(error).removeprefix('RecordSettings.__init__() ').rstrip('.')}."
        ) from None


def check_recordings(sources: Sequence[DatasetSource]) -> None:
    """Refuse datasets that one training would have to record with different settings.

    Raises:
        StudyError: two of them are such; it names both.
    """
    first: dict[tuple[str, int], DatasetSource] = {}
    for source in sources:
        if source.quality is None:
            continue
        other = first.setdefault((source.task, source.seed), source)
        for name in ("transitions", "options"):
            if getattr(other, name) != getattr(source, name):
                both = " and ".join(table_name("datasets", one.name) for one in (other, source))
                raise StudyError(
                    f"{both} are qualities of one recording ({source.task}, seed {source.seed}) and differ in {name}; "
                    f"give one of them another seed, or both the same {name}."
                )


def _default_name(table: Mapping[str, Any]) -> str:
    text = str(table.get("source") or table.get("task") or "dataset")
    prefix, colon, rest = text.partition(":")
    name = rest if colon and prefix in SOURCES else Path(rest or text).stem if "task" not in table else text
    return name.replace("/", "-")


def _absolute(source: str, folder: Path) -> str:
    """Make the path in a source absolute; names of published sets and of Minari's stay."""
    prefix, colon, rest = source.partition(":")
    if colon and prefix in SOURCES:
        return source
    if colon and prefix in READERS:
        if prefix == "minari" and not (folder / user_path(rest)).exists():
            return source
        return f"{prefix}:{(folder / user_path(rest)).resolve()}"
    return str((folder / user_path(source)).resolve())
