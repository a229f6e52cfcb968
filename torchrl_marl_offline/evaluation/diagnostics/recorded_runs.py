"""A run's folder as a diagnosis finds it: curves, settings, data, the networks of the newest whole checkpoint."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import CheckpointError

from torchrl_marl_offline.algorithms.algorithm import make_algorithm, settings_of, settings_under
from torchrl_marl_offline.core.hub_client import named_on_hub
from torchrl_marl_offline.core.paths import mixed_skill_name
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.data.registry import load_dataset
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.training.run.checkpoints import CheckpointManager
from torchrl_marl_offline.training.run.logging import Row, read_csv
from torchrl_marl_offline.training.run.restoring import Holder
from torchrl_marl_offline.training.run.run_settings import CONFIG_FILE
from torchrl_marl_offline.training.trainer import MEMBERS

CHECKPOINTS, CURVES, STAGES = "checkpoints", "train.csv", ("online", "offline")
_BETWEEN = re.compile(r"-(?=[a-z_]+=)")  # in a member's name, not within a number such as 1e-05


@dataclass(frozen=True)
class RecordedRun:
    """A run's folder.

    Attributes:
        folder: of ``train.csv`` and ``checkpoints/``.
        root: of ``config.json``: the same, or one above; ``None`` where there is none.
        settings: what it holds.
        name: by which the run is shown.
    """

    folder: Path
    root: Path | None
    settings: Mapping[str, Any]
    name: str

    @classmethod
    def at(cls, folder: Path) -> RecordedRun:
        """Look at a folder.

        Raises:
            FileNotFoundError: it is not there, or holds nothing of a run.
            NotADirectoryError: it is a file.
            ValueError: it is a whole population's, or its file of settings is damaged.
        """
        if not folder.exists():
            raise FileNotFoundError(f"There is no folder {folder}; name the folder of a run.")
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file; name the folder of a run.")
        if found := members_of(folder):
            raise ValueError(f"{folder} is a population's; name one of its members, such as {found[0]}.")
        name, place = folder.resolve().name, folder
        if not _is_run(folder):
            place = next((folder / stage for stage in STAGES if _is_run(folder / stage)), None)
            if place is None:
                raise FileNotFoundError(
                    f"{folder} holds no {CURVES} and no {CHECKPOINTS}; name the folder of a run (its --output)."
                )
        root = next((each for each in (place, *list(place.absolute().parents)[:3]) if _has_settings(each)), None)
        root = root if root is not None and _belongs(place.absolute(), root.absolute()) else None
        return cls(place, root, {} if root is None else _read_settings(root), name)

    def curves(self) -> list[Row]:
        """Return the rows of ``train.csv``, of numbers alone; none where there is none.

        Raises:
            CsvError: it is damaged.
        """
        file = self.folder / CURVES
        return numbers_of(read_csv(file)) if file.is_file() else []

    @property
    def checkpoints(self) -> CheckpointManager | None:
        """The run's checkpoints, or ``None`` where none was written."""
        manager = CheckpointManager(self.folder / CHECKPOINTS)
        return manager if manager.directory.is_dir() and manager.checkpoints() else None

    def source(self) -> str | Path | None:
        """Return what the settings say of where the data lies; ``None`` where that is not there, or not said."""
        if self.root is None:
            return None
        named = self.settings.get("dataset")
        if isinstance(named, str):
            return named
        task = self.settings.get("task") or self.settings.get("online") or "mpe/simple_spread"
        episodes, seed = self.settings.get("episodes"), self.settings.get("seed")
        if not isinstance(task, str) or type(episodes) is not int or type(seed) is not int:
            return None
        place = self.root.absolute().parent / "data" / mixed_skill_name(task, episodes, seed)
        return place if place.is_dir() else None

    def dataset(self) -> OfflineDataset | str:
        """Return the run's data, or why it cannot be had."""
        source = self.source()
        if source is None:
            return f"the data that it was trained on is not in its place; name it ({GIVE_DATASET})"
        if named_on_hub(source):  # nothing is fetched because a folder says so
            return f"the data that it was trained on is {source}; name it to fetch it ({GIVE_DATASET})"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is to be said of the data was said to the run
                return load_dataset(source)
        except (DatasetError, OSError, ValueError, ImportError) as error:  # also of a name that is none
            said = " ".join(str(error).split()).removesuffix(".")
            return f"the data that it was trained on cannot be read ({said}); name it ({GIVE_DATASET})"

    def loss(self, dataset: OfflineDataset) -> OfflineMARLLoss:
        """Return the run's loss, its networks drawn anew.

        Raises:
            ValueError: the settings are damaged, or not of this version.
        """
        try:
            name, given = self._method()
            with torch.random.fork_rng(devices=()):
                return make_algorithm(name, **given).build(dataset.spec)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            said = f" ({' '.join(str(error).split())})" if isinstance(error, ValueError) else ""
            raise ValueError(
                f"The settings in {self.root / CONFIG_FILE} do not fit this version or this data{said}; give a loss of "
                "the run's form (loss=)."
            ) from error

    def _method(self) -> tuple[str, dict[str, Any]]:
        """Return the algorithm's name, and its settings."""
        name, given = self.settings["algorithm"], dict(self.settings["settings"])
        below = self.folder.absolute().relative_to(self.root.absolute()).parts
        name = "cloning" if "cloning" in below[:1] else name
        if MEMBERS in below:
            given |= _of_member(name, below[-1])
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        return name, settings_under(name, self.settings["preset"], given)


def numbers_of(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return rows of a table without what is no number; whole ones as float, but for the step.

    Raises:
        ValueError: a row has no step.
    """
    if not all(isinstance(row.get("step"), int) for row in rows):
        raise ValueError('Every row of curves needs its "step", a whole number; give what read_csv returns.')
    return [
        {
            name: value if name == "step" else float(value)
            for name, value in row.items()
            if isinstance(value, int | float)
        }
        for row in rows
    ]


GIVE_DATASET = "--dataset, or dataset="


def members_of(folder: Path) -> list[Path]:
    """Return the folders of a population's members, in the order of their names; none of a run that is none."""
    place = folder / MEMBERS
    return sorted(each for each in place.iterdir() if _is_run(each)) if place.is_dir() else []


def restored(run: RecordedRun, loss: OfflineMARLLoss) -> tuple[int, float | None]:
    """Fill a loss from the newest whole checkpoint.

    Returns:
        Its step, and mean ``|Q|`` at the start of the run, where the checkpoint tells it.

    Raises:
        FileNotFoundError: every checkpoint is damaged.
        CheckpointError: it is of other networks, for instance since the data is of another task.
    """
    trainer = Holder()
    try:
        step = run.checkpoints.load(map_location="cpu", loss=loss, trainer=trainer)
    except CheckpointError as error:
        reason = " ".join(str(error.__cause__ or error).split()).removesuffix(".")
        raise CheckpointError(
            f"The networks in {run.checkpoints.directory} are not those that the run's settings make of this data "
            f"({reason}); name the data that it was trained on."
        ) from error
    start = _alarm(trainer).get("start")
    return step, start[0] if isinstance(start, list) and start and isinstance(start[0], float) else None


def alarmed(run: RecordedRun) -> int | None:
    """Return the step at which the run's own alarm found impossible values; ``None`` where it did not, or had none.

    Raises:
        FileNotFoundError: every checkpoint is damaged.
    """
    trainer = Holder()
    if run.checkpoints is None:
        return None
    try:
        run.checkpoints.load(map_location="cpu", trainer=trainer)
    except CheckpointError:  # one that was saved by hand
        return None
    found = _alarm(trainer).get("found")
    return next(iter(found.values()), None) if isinstance(found, dict) else None


def _alarm(trainer: Holder) -> Mapping[str, Any]:
    """Return the alarm's part of a trainer's state; earlier versions had none."""
    found = trainer.state.get("alarm") if isinstance(trainer.state, dict) else None
    return found if isinstance(found, dict) else {}


def _is_run(folder: Path) -> bool:
    return (folder / CURVES).is_file() or (folder / CHECKPOINTS).is_dir()


def _has_settings(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def _belongs(place: Path, root: Path) -> bool:
    """Say whether a folder is a run of the command whose settings lie in ``root``."""
    below = list(place.relative_to(root).parts)
    below = below[1:] if below[:1] == ["cloning"] else below
    return not below or (len(below) == 1 and below[0] in STAGES) or (len(below) == 2 and below[0] == MEMBERS)


def _read_settings(root: Path) -> Mapping[str, Any]:
    try:
        return dict(read_json(root / CONFIG_FILE).items())
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{root / CONFIG_FILE} is damaged; restore it, or move it away for the curves alone."
        ) from error


def _of_member(algorithm: str, name: str) -> dict[str, Any]:
    """Return the settings that a member's name tells, such as ``temperature=3-seed=0``."""
    words = {key: value for key, _, value in (word.partition("=") for word in _BETWEEN.split(name))}
    known = settings_of(algorithm)
    return {key: type(known[key])(float(value)) for key, value in words.items() if key in known}
