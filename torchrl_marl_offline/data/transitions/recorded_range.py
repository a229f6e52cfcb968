"""The range of the recorded actions, for each agent and component."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase

from torchrl_marl_offline.core.component_bounds import Bound
from torchrl_marl_offline.core.layout import ACTION, AGENT_MASK, MASK, TaskSpec, next_key
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError

_BLOCK = 2**16  # rows that are looked at together


def recorded_range(data: TensorDictBase, spec: TaskSpec) -> tuple[Bound, Bound]:
    """Return the lowest and the highest action that each agent took, ``[n, a]`` each.

    Only what counts is looked at: neither rows where ``("collector", "mask")`` is false, nor agents where
    ``("agents", "mask")`` is, nor NaN. An agent that never counts gets the range of all others.

    Args:
        data: transitions ``[T]`` in the layout.
        spec: the task's sizes.

    Raises:
        DatasetError: actions are indices, or no action counts.
    """
    if spec.discrete:
        raise DatasetError("Bounds are of continuous actions, and these are indices; leave bounds= out.")
    actions, counts, agents = data.get(ACTION), data.get(MASK, None), data.get(AGENT_MASK, None)
    low = torch.full((spec.n_agents, spec.action_size), torch.inf)
    high = -low
    for start in range(0, len(data), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = actions[rows].as_subclass(torch.Tensor).cpu()  # [rows, n, a]
        kept = block.isfinite()
        if counts is not None:
            kept &= counts[rows].cpu()[:, None, None]
        if agents is not None:
            kept &= agents[rows].cpu().unsqueeze(-1)
        low = torch.minimum(low, block.where(kept, torch.inf).amin(0))
        high = torch.maximum(high, block.where(kept, -torch.inf).amax(0))
    seen = low <= high  # [n, a]
    if not seen.any(0).all():
        raise DatasetError("No action of this dataset counts, so that there is no range; give bounds=(low, high).")
    low, high = low.where(seen, low.amin(0)), high.where(seen, high.amax(0))
    return tuple(map(tuple, low.tolist())), tuple(map(tuple, high.tolist()))


def clipped_where_nothing_counts(data: TensorDictBase, spec: TaskSpec) -> TensorDictBase:
    """Return transitions whose actions lie within the bounds, also those of padding and of rows that do not count.

    Where they do already, the same tensors are in it.
    """
    changed = data.copy()
    for key in (ACTION, next_key(ACTION)):
        action = data.get(key, None)
        if action is None:
            continue
        low, high = spec.bounds_like(action)
        if ((action < low) | (action > high)).any():
            changed.set(key, action.as_subclass(torch.Tensor).clamp(low, high))
    return changed
