"""Reader of D4RL-like HDF5 files: single-agent recordings as a task of one agent.

One time axis of ``T`` rows: ``observations [T, o]``, ``actions [T, a]`` (or ``[T]`` integers), ``rewards [T]``,
``terminals [T]`` and, in most files, ``timeouts [T]`` (the recording stopped, the task went on) and
``next_observations [T, o]``. Without the last, a row's successor is the next row, and the last row of an episode that
timed out does not count in training. Rewards and flags may be columns, ``[T, 1]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import BOUNDS, REAL, WIDTHS
from torchrl_marl_offline.data.formats.arrays import from_arrays
from torchrl_marl_offline.data.formats.content import Content
from torchrl_marl_offline.data.formats.hdf5 import check_arrays, open_hdf5
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading

if TYPE_CHECKING:
    import h5py

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")


ARRAYS = frozenset(REQUIRED)
"""What tells the format."""


def recognise(content: Content) -> Path | None:
    """Return the path that :func:`read_d4rl` wants, or None where it is of another format."""
    return content.path if content.arrays >= ARRAYS else None


@checked
def read_d4rl(
    path: str | Path,
    *,
    task: str | None = None,
    action_bounds: Annotated[tuple[Bound, Bound] | Literal["data"], REAL, BOUNDS] = (-1.0, 1.0),
    n_actions: Annotated[int | None, WIDTHS] = None,
) -> OfflineDataset:
    """Read one file.

    Args:
        path: the HDF5 file.
        task: name for the spec.
        action_bounds: lower and upper bound of every component of a continuous action.
        n_actions: number of discrete actions.

    Raises:
        DatasetError: the file is not of this format, is cut short, or its content is inconsistent.
        ImportError: h5py is not installed.
    """
    path = user_path(path)
    with reading(path), open_hdf5(path, "D4RL") as file:
        missing = [name for name in REQUIRED if name not in file]
        if missing:
            raise DatasetError(
                f"{path} lacks {', '.join(missing)} (it has {', '.join(sorted(file)) or 'nothing'}); it is not of "
                "D4RL's layout: use the reader of its format, or pass its arrays to from_arrays()."
            )
        names = [name for name in (*REQUIRED, *OPTIONAL) if name in file]
        _check_shapes(path, file, names)
        arrays = {name: file[name][()] for name in names}
        for name in ("rewards", "terminals", "timeouts"):
            if name in arrays:
                arrays[name] = arrays[name].reshape(-1)  # [T, 1] -> [T]
        if arrays["actions"].ndim == 1 and n_actions is None and arrays["actions"].dtype.kind == "f":
            arrays["actions"] = arrays["actions"][:, None]  # [T] -> [T, a]
        arrays["truncations"] = arrays.pop("timeouts", None)
        for name in ("observations", "next_observations", "actions", "rewards"):
            if name in arrays:
                arrays[name] = np.expand_dims(arrays[name], 1)  # [T, ...] -> [T, n, ...]
        return from_arrays(
            **arrays,
            task=task,
            action_bounds=action_bounds,
            n_actions=n_actions,
            metadata={"source": f"d4rl:{path}", "task": task},
        )


def _check_shapes(path: Path, file: h5py.File, names: list[str]) -> None:
    """Check types and shapes before anything is read."""
    check_arrays(file, names)
    wanted = file["observations"].shape
    for name in names:
        shape = file[name].shape
        ranks = {"observations": (2,), "next_observations": (2,), "actions": (1, 2)}.get(name, (1,))
        column = name not in ("observations", "next_observations", "actions") and shape[1:] == (1,)
        same = name != "next_observations" or shape == wanted
        if not ((len(shape) in ranks or column) and shape[:1] == wanted[:1] and same):
            raise DatasetError(
                f"{path}: {name} has shape {shape} beside observations of shape {wanted}, where D4RL has [T, o] "
                "observations, [T, a] or [T] actions and [T] of the rest; bring it to that, or fetch the file again."
            )
