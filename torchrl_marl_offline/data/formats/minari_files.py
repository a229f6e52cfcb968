"""The files of one Minari dataset, read as plain numbers and JSON.

Minari's own loader makes the environment that ``metadata.json`` names where a space is missing, which calls any
function of any module that the file asks for; it follows links out of the file, and reads every ``infos``. Here the
spaces come from their JSON text alone and the arrays from :mod:`~torchrl_marl_offline.data.formats.hdf5`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.regular_files import files_below, lies_at, read_json
from torchrl_marl_offline.data.formats.hdf5 import PlainFile, PlainGroup, open_hdf5
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError

FOLDER_VARIABLE = "MINARI_DATASETS_PATH"
MAIN_FILE, METADATA_FILE = "main_data.hdf5", "metadata.json"
_ITEM = "_index_"
_MOST_BINARY = 2**16
_KINDS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple")
_DTYPES = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
)


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
            held = sum(re.fullmatch(r"episode_\d+", name) is not None for name in file)
            if self._length != held:
                raise DatasetError(
                    f"states {self._length} episodes in its {METADATA_FILE} and holds {held}; fetch it again, or "
                    f"write total_episodes {held} there if these are all."
                )
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
    for _ in files_below(folder, ["data"]):
        pass  # neither a pipe nor a link that leads out
    file = folder / "data" / METADATA_FILE
    metadata = read_json(file)
    if not isinstance(metadata, dict):
        raise DatasetError(f"{file} holds no table of names; fetch it again.")
    spaces = [_space_text(metadata, kind) for kind in ("observation_space", "action_space")]
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise DatasetError(f"{folder} is of Minari's format {metadata['data_format']!r}; only hdf5 can be read.")
    length = metadata.get("total_episodes")
    if type(length) is not int or length < 1:
        raise DatasetError(f"{file} states {length!r} episodes; fetch it again.")
    return MinariFiles(name, *map(deserialize_space, spaces), folder / "data" / MAIN_FILE, length)


def _folder(source: str | Path) -> tuple[Path, str]:
    folder = user_path(source)
    if folder.is_dir():
        if not lies_at(folder / "data" / MAIN_FILE):
            raise DatasetError(f"{folder} holds no data/{MAIN_FILE}; give the folder of one Minari dataset.")
        return folder, folder.name
    root = os.environ.get(FOLDER_VARIABLE) or Path.home() / ".minari" / "datasets"
    folder = Path(root).expanduser() / source
    if not lies_at(folder / "data" / MAIN_FILE):
        raise DatasetError(
            f"{source} is neither a folder nor a dataset that Minari has here; run `minari download {source}`, or give "
            f"the folder that holds data/{MAIN_FILE}."
        )
    return folder, str(source)


def _space_text(metadata: Any, kind: str) -> str:
    """Return the JSON of a space of known kinds and types that is no larger than its text."""
    text = metadata.get(kind)
    if not isinstance(text, str):
        raise DatasetError(f"says nothing of its {kind}; write it anew with this space.")
    try:
        waiting = [json.loads(text)]
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"describes its {kind} by what is no JSON ({error}); fetch it again.") from error
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict) or part.get("type") not in _KINDS:
            named = part.get("type") if isinstance(part, dict) else part
            raise DatasetError(
                f"has in its {kind} a space {str(named)[:80]!r}, where {', '.join(_KINDS)} can be read; pass its "
                "arrays to from_arrays()."
            )
        _check_space(part, kind, len(text))
        inner = part.get("subspaces", ())
        waiting += inner.values() if isinstance(inner, dict) else inner
    return text


def _check_space(part: dict[str, Any], kind: str, most: int) -> None:
    """Look at what NumPy would make arrays of: the type, the sizes and the number of bounds."""
    if part.get("dtype", "int64") not in _DTYPES:
        told = str(part["dtype"])[:80]
        raise DatasetError(
            f"declares its {kind} of the type {told!r}, which is no number's ({', '.join(_DTYPES)}); fetch it again."
        )
    binary = part.get("n") if part["type"] == "MultiBinary" else 0
    for name, sizes, largest in (("n", binary, _MOST_BINARY), ("shape", part.get("shape", []), most)):
        parts = sizes if isinstance(sizes, list) else [sizes]
        if any(type(size) is not int or size < 0 for size in parts) or math.prod(parts) > largest:
            raise DatasetError(
                f"declares its {kind} whose {name} is {str(sizes)[:80]}, which its bounds are not; fetch it again, or "
                "pass its arrays to from_arrays()."
            )


def _episode(file: PlainFile, number: int) -> MinariEpisode:
    name = f"episode_{number}"
    if name not in file:
        raise DatasetError(f"lacks {name}; fetch it again.")
    group = file[name]
    if not isinstance(group, PlainGroup):
        raise DatasetError(f"holds an array {name} in the place of a group; fetch it again.")
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    return MinariEpisode(number, *(_decoded(group[part]) for part in names))


def _decoded(item: Any) -> Any:
    """Return an array, or what Minari stores as a group: a dictionary, or a tuple by the names ``_index_<i>``."""
    if not isinstance(item, PlainGroup):
        return item[()]
    if _ITEM + "0" in item:
        return tuple(_decoded(item[f"{_ITEM}{index}"]) for index in range(len(item)))
    return {name: _decoded(item[name]) for name in item}
