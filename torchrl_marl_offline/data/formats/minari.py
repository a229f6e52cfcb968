"""Reader of Minari datasets: single-agent recordings as a task of one agent.

Minari stores ``L + 1`` observations for ``L`` actions, so every transition has its true next observation. A team of one
agent: ``n = 1``, the state is the observation. Observations and continuous actions of a dictionary or a tuple are laid
side by side, in the order in which Minari gives them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound
from torchrl_marl_offline.core.ranges import BOUNDS, REAL
from torchrl_marl_offline.core.regular_files import lies_at
from torchrl_marl_offline.data.formats.arrays import from_arrays
from torchrl_marl_offline.data.formats.content import Content
from torchrl_marl_offline.data.formats.minari_actions import Actions, action_reader
from torchrl_marl_offline.data.formats.minari_files import MAIN_FILE, open_minari
from torchrl_marl_offline.data.transitions.bad_episodes import BadEpisodes
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading
from torchrl_marl_offline.data.transitions.rounding import Rounding
from torchrl_marl_offline.data.transitions.values import as_array, flag_array


def recognise(content: Content) -> Path | None:
    """Return the path that :func:`read_minari` wants, or None where it is of another format."""
    path = content.path
    if path.name == MAIN_FILE and not path.is_dir():
        return path.parent.parent
    if lies_at(path / "data" / MAIN_FILE):
        return path
    return path.parent if lies_at(path / MAIN_FILE) else None


@checked
def read_minari(
    source: str | Path,
    *,
    task: str | None = None,
    action_bounds: Annotated[tuple[Bound, Bound] | Literal["data"] | None, REAL, BOUNDS] = None,
    rescale_actions: bool = False,
) -> OfflineDataset:
    """Read a Minari dataset.

    Args:
        source: the folder of one dataset (the one with ``data/main_data.hdf5`` in it), or an id that Minari finds in
            its own folder, ``$MINARI_DATASETS_PATH``, e.g. ``"mujoco/hopper/expert-v0"``. Nothing is fetched:
            ``minari download`` does that.
        task: name for the spec; by default the id.
        action_bounds: lower and upper bound of every component of a continuous action, instead of the space's own.
        rescale_actions: map each component of an action from its own bounds to [-1, 1]; the metadata's
            ``"action_rescale"`` tell the bounds, by which a policy's actions are mapped back.

    Raises:
        DatasetError: there is no such dataset, it is damaged, its spaces are of another kind, or the components of an
            action have no bounds and none are given.
        ImportError: minari is not installed.
    """
    with reading(source):
        dataset = open_minari(source)
        name = dataset.name
        actions = action_reader(dataset.action_space, action_bounds, rescale=rescale_actions)
        bad = BadEpisodes(f"minari:{source}")
        rounding = Rounding()
        parts = [_rows(episode, actions, bad, rounding) for episode in dataset.iterate_episodes()]
        parts = [part for part in parts if part is not None]
        widths = Counter(part["observations"].shape[1:] for part in parts)
        if len(widths) > 1:
            raise DatasetError(f"{source} has observations of {len(widths)} different sizes; read one kind by itself.")
        if not parts:
            raise DatasetError(f"{source} holds no episode that can be read; fetch it again.")
        arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        arrays["rewards"] = arrays["rewards"][:, None]  # [T] -> [T, n]
        metadata = rounding.into({"source": f"minari:{source}", "task": task or name}) | actions.notes
        return from_arrays(**arrays, **actions.options, task=task or name, metadata=bad.into(metadata))


def _flat(values: Any, rounding: Rounding, name: str = "observations") -> np.ndarray:
    """Return ``[L, size]`` float32."""
    if isinstance(values, dict):
        return np.concatenate([_flat(value, rounding, f"{name}/{part}") for part, value in values.items()], -1)
    if isinstance(values, tuple):
        return np.concatenate([_flat(value, rounding, f"{name}/{i}") for i, value in enumerate(values)], -1)
    array = rounding.seen(as_array(values, "an observation"), name)
    return array.reshape(len(array), -1).astype(np.float32)


def _rows(episode: Any, action_of: Actions, bad: BadEpisodes, rounding: Rounding) -> dict[str, np.ndarray] | None:
    """Return the rows of an episode, or ``None`` where it is bad."""
    observations, actions = _flat(episode.observations, rounding), action_of.read(episode.actions)
    length = len(actions)
    flags = {"terminals": episode.terminations, "truncations": episode.truncations}
    flags = {name: flag_array(values, name) for name, values in flags.items()}
    flags["rewards"] = as_array(episode.rewards, "rewards")
    number = int(episode.id)
    if length == 0 or len(observations) != length + 1 or any(values.shape != (length,) for values in flags.values()):
        what = (
            f"it has {len(observations)} observations, {length} actions and {len(flags['rewards'])} rewards instead of "
            "L + 1, L and L"
        )
        return bad.note(number, min(length, len(observations)), what)
    ended = flags["terminals"] | flags["truncations"]
    if ended[:-1].any():
        return bad.note(number, int(np.argmax(ended)), "it is marked as ended before its last step")
    outside = action_of.outside(actions)
    if outside.any():
        return bad.note(number, int(np.argmax(outside)), "its action is none of the action space")
    if not ended[-1]:
        flags["truncations"] = flags["truncations"].copy()
        flags["truncations"][-1] = True
    return {
        "observations": observations[:-1, None],  # [L, n, o]
        "next_observations": observations[1:, None],
        "actions": actions[:, None],
        **flags,
    }
