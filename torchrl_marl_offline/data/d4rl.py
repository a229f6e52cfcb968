"""Reader of D4RL-like HDF5 files: single-agent recordings as a task of one agent.

One time axis of ``T`` rows: ``observations [T, o]``, ``actions [T, a]`` (or ``[T]`` integers), ``rewards [T]``,
``terminals [T]`` and, in most files, ``timeouts [T]`` (the recording stopped, the task went on) and
``next_observations [T, o]``. Without the last, a row's successor is the next row, and the last row of an episode that
timed out does not count in training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchrl_marl_offline.data.arrays import from_arrays
from torchrl_marl_offline.data.dataset import OfflineDataset
from torchrl_marl_offline.data.hdf5 import open_hdf5
from torchrl_marl_offline.data.validation import DatasetError, reading

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")


def read_d4rl(
    path: str | Path,
    *,
    task: str | None = None,
    action_bounds: tuple[float, float] = (-1.0, 1.0),
    n_actions: int | None = None,
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
    path = Path(path)
    with reading(path), open_hdf5(path, "D4RL") as file:
        missing = [name for name in REQUIRED if name not in file]
        if missing:
            raise DatasetError(
                f"{path} lacks {', '.join(missing)} (it has {', '.join(sorted(file)) or 'nothing'}); it is not of "
                "D4RL's layout: use the reader of its format."
            )
        arrays = {name: file[name][()] for name in (*REQUIRED, *OPTIONAL) if name in file}
        for name, values in arrays.items():
            wide = "observations" in name or (name == "actions" and values.dtype.kind == "f")
            if values.ndim != (2 if wide else 1) or len(values) != len(arrays["observations"]):
                raise DatasetError(
                    f"{path}: {name} has shape {values.shape} beside observations of shape "
                    f"{arrays['observations'].shape}; fetch the file again."
                )
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
