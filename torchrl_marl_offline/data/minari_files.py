"""The files of one Minari dataset, read as plain numbers and JSON.

Minari's own loader makes the environment that ``metadata.json`` names where a space is missing, which calls any
function of any module that the file asks for; it follows links out of the file, and reads every ``infos``. Here the
spaces come from their JSON text alone and the arrays from :mod:`~torchrl_marl_offline.data.hdf5`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.regular_files import files_below, read_json
from torchrl_marl_offline.data.hdf5 import PlainFile, PlainGroup, open_hdf5
from torchrl_marl_offline.data.validation import DatasetError

FOLDER_VARIABLE = "MINARI_DATASETS_PATH"
_MAIN_FILE, _METADATA_FILE = "main_data.hdf5", "metadata.json"
_ITEM = "_index_"
_MOST_BINARY = 2**16


@dataclass(frozen=True)
class MinariEpisode:
    """One episode as it is stored.

    Attributes:
        id: its number.
        observations: an array ``[L + 1, ...]``, or a dictionary or tuple of such.
        actions: the same, of ``L`` rows.
        rewards: ``[L]``, as ``terminations`` and ``truncations``.
    """

    id: int
    observations: Any
    actions: Any
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


@dataclass(frozen=True)
class MinariFiles:
    """One dataset, open for reading.

    Attributes:
        name: of its folder, or its id.
        observation_space: as Minari describes it.
        action_space: the same.
    """

    name: str
    observation_space: Any
    action_space: Any
    _file: Path
    _length: int

    def iterate_episodes(self) -> Iterator[MinariEpisode]:
        """Yield the episodes in the order of their numbers."""
        with open_hdf5(self._file, "Minari") as file:
            if self._length > len(file):
                raise DatasetError(f"declares {self._length} episodes and holds {len(file)}; fetch it again.")
            for number in range(self._length):
                yield _episode(file, number)


def open_minari(source: str | Path) -> MinariFiles:
    """Open a dataset.

    Args:
        source: the folder of one dataset, or an id under ``$MINARI_DATASETS_PATH`` (by default ``~/.minari/datasets``).

    Raises:
        DatasetError: there is no such dataset, or it is damaged.
        ImportError: minari is not installed.
    """
    try:
        from minari.serialization import deserialize_space
    except ImportError as error:
        raise ImportError("Reading Minari datasets needs minari; install it with pip install minari.") from error
    folder, name = _folder(source)
    for _ in files_below(folder / "data"):
        pass  # neither a pipe nor a link that leads out
    file = folder / "data" / _METADATA_FILE
    metadata = read_json(file)
    spaces = [_space_text(metadata, kind) for kind in ("observation_space", "action_space")]
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise DatasetError(f"{folder} is of Minari's format {metadata['data_format']!r}; only hdf5 can be read.")
    length = metadata["total_episodes"]
    if type(length) is not int:
        raise DatasetError(f"{file} states {length!r} episodes; fetch it again.")
    return MinariFiles(name, *map(deserialize_space, spaces), folder / "data" / _MAIN_FILE, length)


def _folder(source: str | Path) -> tuple[Path, str]:
    folder = user_path(source)
    if folder.is_dir():
        if not (folder / "data" / _MAIN_FILE).is_file():
            raise DatasetError(f"{folder} holds no data/{_MAIN_FILE}; give the folder of one Minari dataset.")
        return folder, folder.name
    root = os.environ.get(FOLDER_VARIABLE) or Path.home() / ".minari" / "datasets"
    folder = Path(root).expanduser() / source
    if not (folder / "data" / _MAIN_FILE).is_file():
        raise DatasetError(
            f"{source} is neither a folder nor a dataset that Minari has here; run `minari download {source}`, or give "
            f"the folder that holds data/{_MAIN_FILE}."
        )
    return folder, str(source)


def _space_text(metadata: Any, kind: str) -> str:
    """Return the JSON of a space that is no larger than its text."""
    text = metadata.get(kind)
    if not isinstance(text, str):
        raise DatasetError(f"says nothing of its {kind}; write it anew with this space.")
    waiting = [json.loads(text)]
    while waiting:
        part = waiting.pop()
        inner = part.get("subspaces", ())
        waiting += inner.values() if isinstance(inner, dict) else inner
        binary = part["n"] if part["type"] == "MultiBinary" else 0
        if math.prod(binary if isinstance(binary, list) else [binary]) > _MOST_BINARY:
            raise DatasetError(f"declares a {kind} of {binary} binary numbers; read it by from_arrays().")
        if math.prod(part.get("shape", ())) > len(text):
            raise DatasetError(f"declares a {kind} of shape {part['shape']} and no bounds for it; fetch it again.")
    return text


def _episode(file: PlainFile, number: int) -> MinariEpisode:
    name = f"episode_{number}"
    if name not in file:
        raise DatasetError(f"lacks {name}; fetch it again.")
    group = file[name]
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    return MinariEpisode(number, *(_decoded(group[part]) for part in names))


def _decoded(item: Any) -> Any:
    """Return an array, or what Minari stores as a group: a dictionary, or a tuple by the names ``_index_<i>``."""
    if not isinstance(item, PlainGroup):
        return item[()]
    if _ITEM + "0" in item:
        return tuple(_decoded(item[f"{_ITEM}{index}"]) for index in range(len(item)))
    return {name: _decoded(item[name]) for name in item}
