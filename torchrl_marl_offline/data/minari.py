"""Reader of Minari datasets: single-agent recordings as a task of one agent.

Minari stores ``L + 1`` observations for ``L`` actions, so every transition has its true next observation. A team of one
agent: ``n = 1``, the state is the observation. Observations of a dictionary or a tuple are laid side by side, in the
order in which Minari gives them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from torchrl_marl_offline.data.arrays import from_arrays
from torchrl_marl_offline.data.dataset import OfflineDataset
from torchrl_marl_offline.data.validation import DatasetError, reading


def read_minari(source: str | Path, *, task: str | None = None) -> OfflineDataset:
    """Read a Minari dataset.

    Args:
        source: the folder of one dataset (the one with ``data/main_data.hdf5`` in it), or an id that Minari finds in
            its own folder, ``$MINARI_DATASETS_PATH``, e.g. ``"mujoco/hopper/expert-v0"``. Nothing is fetched:
            ``minari download`` does that.
        task: name for the spec; by default the id.

    Raises:
        DatasetError: there is no such dataset, it is damaged, or its spaces are of another kind.
        ImportError: minari is not installed.
    """
    with reading(source):
        dataset, name = _open(source)
        parts: dict[str, list[np.ndarray]] = {}
        for episode in dataset.iterate_episodes():
            for key, values in _rows(episode).items():
                parts.setdefault(key, []).append(values)
        if not parts:
            raise DatasetError(f"{source} holds no episode; fetch it again.")
        arrays = {key: np.concatenate(values) for key, values in parts.items()}
        options = _action_options(dataset.action_space, arrays)
        arrays["rewards"] = arrays["rewards"][:, None]  # [T] -> [T, n]
        metadata = {"source": f"minari:{source}", "task": task or name}
        return from_arrays(**arrays, **options, task=task or name, metadata=metadata)


def _open(source: str | Path) -> tuple[Any, str]:
    try:
        import minari
    except ImportError as error:
        raise ImportError("Reading Minari datasets needs minari; install it with pip install minari.") from error
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "data" / "main_data.hdf5").is_file():
            raise DatasetError(f"{folder} holds no data/main_data.hdf5; give the folder of one Minari dataset.")
        return minari.MinariDataset(folder / "data"), folder.name
    try:
        return minari.load_dataset(str(source)), str(source)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{source} is neither a folder nor a dataset that Minari has here; run `minari download {source}`, or give "
            "the folder that holds data/main_data.hdf5."
        ) from error


def _flat(values: Any) -> np.ndarray:
    """Return ``[L, size]`` float32."""
    if isinstance(values, dict):
        return np.concatenate([_flat(value) for value in values.values()], -1)
    if isinstance(values, tuple):
        return np.concatenate([_flat(value) for value in values], -1)
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"has observations of type {array.dtype}; only numbers can be read.")
    return array.reshape(len(array), -1).astype(np.float32)


def _rows(episode: Any) -> dict[str, np.ndarray]:
    observations, actions = _flat(episode.observations), np.asarray(episode.actions)
    length = len(actions)
    flags = {"rewards": episode.rewards, "terminals": episode.terminations, "truncations": episode.truncations}
    flags = {name: np.asarray(values) for name, values in flags.items()}
    if length == 0 or len(observations) != length + 1 or any(values.shape != (length,) for values in flags.values()):
        raise DatasetError(
            f"episode {episode.id} has {len(observations)} observations, {length} actions and {len(flags['rewards'])} "
            "rewards instead of L + 1, L and L; fetch it again."
        )
    ended = flags["terminals"].astype(bool) | flags["truncations"].astype(bool)
    if ended[:-1].any():
        raise DatasetError(f"episode {episode.id} is marked as ended before its last step; fetch it again.")
    if not ended[-1]:
        flags["truncations"] = flags["truncations"].copy()
        flags["truncations"][-1] = True
    return {
        "observations": observations[:-1, None],  # [L, n, o]
        "next_observations": observations[1:, None],
        "actions": actions.reshape(length, 1, -1),
        **flags,
    }


def _action_options(space: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what :func:`from_arrays` needs to know about the actions, and shift discrete ones to start at 0."""
    kind = type(space).__name__
    if kind == "Discrete":
        arrays["actions"] = arrays["actions"].astype(np.int64) - int(space.start)
        return {"n_actions": int(space.n)}
    if kind != "Box" or not np.isfinite([space.low.min(), space.high.max()]).all():
        raise DatasetError(f"has actions of {space}; only Discrete and bounded Box actions can be read.")
    arrays["actions"] = arrays["actions"].astype(np.float32)
    return {"action_bounds": (float(space.low.min()), float(space.high.max()))}
