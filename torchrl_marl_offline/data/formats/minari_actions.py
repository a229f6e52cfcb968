"""The actions of a Minari dataset: what its action space says, as the key layout wants them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from torchrl_marl_offline.core.component_bounds import Bound
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.values import as_array


@dataclass(frozen=True)
class Actions:
    """How to read an episode's actions.

    Args:
        start: of a discrete space, ``None`` of a continuous one.
        low: lower bounds of a continuous space's components, as they are recorded.
        high: upper bounds.
        rescale: whether each component is mapped to [-1, 1].
        options: what ``from_arrays`` needs to know of the actions.
        notes: for the metadata.
    """

    start: int | None
    low: np.ndarray
    high: np.ndarray
    rescale: bool
    options: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)

    def read(self, values: Any) -> np.ndarray:
        """Return ``[L, 1]`` indices from 0 or ``[L, a]`` float32."""
        flat = _side_by_side(values)
        if self.start is not None:
            return flat if flat.dtype.kind == "f" else flat.astype(np.int64) - self.start
        if self.rescale:
            flat = 2 * (flat - self.low) / (self.high - self.low) - 1
        return flat.astype(np.float32)

    def outside(self, actions: np.ndarray) -> np.ndarray:
        """Return ``[L]`` bool, true where an index is none of a discrete space; bounds are for the inspection."""
        if self.start is None:
            return np.zeros(len(actions), bool)
        whole = actions == np.round(actions)
        return ~(whole & (actions >= 0) & (actions < self.options["n_actions"])).all(-1)


def action_reader(space: Any, bounds: tuple[Bound, Bound] | Literal["data"] | None, *, rescale: bool) -> Actions:
    """Return how to read the actions of a space.

    Args:
        space: of Gymnasium.
        bounds: lower and upper bound, of all components or of each, instead of the space's; or ``"data"``.
        rescale: map each component of a continuous action to [-1, 1].

    Raises:
        DatasetError: such actions cannot be read as they are; the message says with which option they can.
    """
    leaves = _leaves(space)
    kinds = {type(leaf).__name__ for leaf in leaves}
    if len(leaves) == 1 and kinds <= {"Discrete", "MultiDiscrete", "MultiBinary"}:
        leaf = leaves[0]
        if kinds == {"Discrete"}:
            return Actions(int(leaf.start), np.zeros(0), np.zeros(0), False, {"n_actions": int(leaf.n)})
        sizes = np.atleast_1d(leaf.nvec if kinds == {"MultiDiscrete"} else np.full(leaf.shape, 2)).reshape(-1)
        if len(sizes) == 1:
            start = int(np.asarray(getattr(leaf, "start", 0)).reshape(-1)[0])
            return Actions(start, np.zeros(0), np.zeros(0), False, {"n_actions": int(sizes[0])})
    if kinds != {"Box"}:
        raise DatasetError(
            f"has actions of {space}; one Discrete space or Boxes can be read: give an agent's joint choice one index, "
            "and pass the arrays to from_arrays()."
        )
    low, high = (np.concatenate([getattr(leaf, end).reshape(-1) for leaf in leaves]) for end in ("low", "high"))
    low, high = low.astype(np.float64), high.astype(np.float64)
    if rescale:
        if isinstance(bounds, str):
            raise DatasetError('rescale_actions=True needs bounds that do not depend on the data; leave "data" out.')
        if bounds is not None:
            low, high = np.zeros_like(low) + bounds[0], np.zeros_like(high) + bounds[1]
        if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
            raise DatasetError(f"has actions of {space}; rescale_actions=True needs finite bounds of every component.")
        notes = {"action_rescale": {"low": low.tolist(), "high": high.tolist()}}
        return Actions(None, low, high, True, {"action_bounds": (-1.0, 1.0)}, notes)
    if bounds is None:
        if not (np.isfinite(low) & np.isfinite(high)).all():
            remedy = 'pass action_bounds=(low, high), or "data" for the range of what was recorded'
            raise DatasetError(f"has actions of {space} without bounds; {remedy}.")
        same = (low == low[0]).all() and (high == high[0]).all()
        bounds = (float(low[0]), float(high[0])) if same else (tuple(low.tolist()), tuple(high.tolist()))
    return Actions(None, low, high, False, {"action_bounds": bounds})


def _leaves(space: Any) -> list[Any]:
    kind = type(space).__name__
    if kind == "Dict":
        return [leaf for part in space.spaces.values() for leaf in _leaves(part)]
    if kind == "Tuple":
        return [leaf for part in space.spaces for leaf in _leaves(part)]
    return [space]


def _side_by_side(values: Any) -> np.ndarray:
    """Return ``[L, a]``."""
    if isinstance(values, dict | tuple):
        parts = values.values() if isinstance(values, dict) else values
        return np.concatenate([_side_by_side(part) for part in parts], -1)
    array = as_array(values, "an action")
    return array.reshape(len(array), -1)
