"""Policies with memory along recorded episodes: what they carry into each row, so that rows can then be asked alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.layout import ACTION, IS_INIT, TRAJ_IDS, next_key

AT_ONCE = 8192
"""Most episodes that are asked about together."""


def with_memory(
    policy: Callable[[TensorDictBase], TensorDictBase], states: Sequence[NestedKey], rows: TensorDictBase
) -> TensorDictBase:
    """Return rows with what a policy has in its memory before each of them, and, under ``"next"``, after it.

    Memory that is made of observations alone is a function of the recorded history, whatever the policy is asked
    afterwards. So it is computed once, step by step in all episodes at once; then each row is a question for itself,
    as of a policy without memory: in any order, of any number of rows, as often as there are draws. So is each row's
    next observation, with the memory after the row: also the last one of an episode, which no row begins with.

    Args:
        policy: reads ``"is_init"`` and its memory, and writes the latter under ``"next"``.
        states: the keys of its memory.
        rows: ``[T]`` of whole episodes, one after another, told apart by ``("collector", "traj_ids")``.

    Returns:
        The rows, whose tensors are shared, with ``"is_init"`` ``[T, 1]`` and the memory ``[T, *]``; where an episode
        begins that is whatever stood there, as in an environment that was reset.
    """
    lengths = torch.unique_consecutive(rows.get(TRAJ_IDS), return_counts=True)[1]
    starts, longest = lengths.cumsum(0) - lengths, int(lengths.max())
    begins = torch.zeros(len(rows), 1, dtype=torch.bool, device=lengths.device)
    begins[starts] = True
    asked = rows.exclude(ACTION, "next").set(IS_INIT, begins)
    memory: dict[NestedKey, Tensor] = {}  # one place more than there are rows: each before the one behind it
    for time in range(longest):
        for index in (starts[lengths > time] + time).split(AT_ONCE):
            step = asked[index]
            for key, values in memory.items() if time else ():
                step.set(key, values[index])
            step = policy(step)
            for key in states:
                found = step.get(next_key(key))
                if key not in memory:
                    memory[key] = found.new_zeros(len(rows) + 1, *found.shape[1:])
                memory[key][index + 1] = found
    found = rows.copy().set(IS_INIT, begins)
    for key, values in memory.items():
        found.set(key, values[:-1]).set(next_key(key), values[1:])
    return found
