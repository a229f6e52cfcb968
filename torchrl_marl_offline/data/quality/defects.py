"""The signs of each defect in a block of rows.

A block is some consecutive rows of a dataset, as plain tensors on the CPU; so a memory-mapped dataset never has to fit
into memory. Everything here also reads what :func:`~.validation.validate` refuses. :mod:`~.scan` counts the rows,
:mod:`~.repairs` mends them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    GROUP,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    next_key,
)
from torchrl_marl_offline.data.transitions import row_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tensordict import NestedKey, TensorDict, TensorDictBase

    from torchrl_marl_offline.core.layout import TaskSpec

SHORTEST_TIME_LIMIT = 10
"""Games of fewer steps end by themselves (matrix games, the two-step game): their end is no time limit."""


# Values


def padding_columns(rows: TensorDictBase) -> dict[NestedKey, torch.Tensor]:
    """Return the entries of the observation ``[n, o]`` and of the state ``[s]`` that are -inf on every row.

    So some writers fill up the observations of agents that see less. Keys without such an entry are left out.
    """
    columns = {}
    for key in (OBSERVATION, STATE):
        always = rows.get(key)[0] == -torch.inf
        if always.any():
            always = (rows.get(key) == -torch.inf).all(0) & (rows.get(next_key(key)) == -torch.inf).all(0)
        if always.any():
            columns[key] = always
    return columns


def not_finite(rows: TensorDictBase, padding: dict[NestedKey, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with a NaN or an infinite value outside the entries ``padding`` of :func:`padding_columns`.

    Returns:
        Those with such a value among what :func:`counts`, and those with one among the rest.
    """
    bad, unread = torch.zeros(2, len(rows), dtype=torch.bool)
    for _, wrong, counted in not_finite_leaves(rows, padding):
        bad |= (wrong & counted).reshape(len(rows), -1).any(-1)
        unread |= (wrong & ~counted).reshape(len(rows), -1).any(-1)
    return bad, unread


def not_finite_leaves(
    rows: TensorDictBase, padding: dict[NestedKey, torch.Tensor]
) -> Iterator[tuple[NestedKey, torch.Tensor, torch.Tensor]]:
    """Yield each leaf with a NaN or an infinite value: its key, where such are, and which values :func:`counts`."""
    columns = padding | {next_key(key): entries for key, entries in padding.items()}
    for key in rows.keys(include_nested=True, leaves_only=True):
        value = rows.get(key)
        # A NaN or an infinity makes the sum one, too: one quick pass where there is none.
        if value.is_floating_point() and not value.sum().isfinite():
            wrong = ~value.isfinite()
            if key in columns:
                wrong &= ~columns[key]
            yield key, wrong, counts(rows, key)


def counts(rows: TensorDictBase, key: NestedKey) -> torch.Tensor:
    """Return which values of a leaf are read by anybody, bool that broadcasts to it.

    Not those of rows that do not count and of agents that are not there, and of the next state not what stands after
    the end of the task.
    """
    value, path = rows.get(key), key if isinstance(key, tuple) else (key,)
    is_after = path[0] == "next" and path[1:] != REWARD
    found = row_blocks.flag(rows, MASK)
    if is_after:
        found = found & ~row_blocks.flag(rows, next_key(TERMINATED))
    found = found.reshape(-1, *(1,) * (value.ndim - 1))
    living = rows.get(next_key(AGENT_MASK) if is_after else AGENT_MASK, None)
    if living is None or GROUP not in path:
        return found
    return found & living.reshape(*living.shape, *(1,) * (value.ndim - living.ndim))


def outside_bounds(rows: TensorDictBase, spec: TaskSpec, key: NestedKey = ACTION) -> torch.Tensor:
    """Rows whose continuous action lies outside the task's bounds by more than rounding; none where it is discrete."""
    if spec.discrete:
        return torch.zeros(len(rows), dtype=torch.bool)
    action = rows.get(key)
    low, high = spec.bounds_with_slack(action)
    # A NaN is not outside: it is counted as not finite.
    return ((action < low) | (action > high)).flatten(1).any(-1)


def no_legal_action(rows: TensorDictBase, key: NestedKey = ACTION_MASK) -> torch.Tensor:
    """Rows where the mask allows some agent no action at all; none where there is no mask."""
    mask = rows.get(key, None)
    if mask is None:
        return torch.zeros(len(rows), dtype=torch.bool)
    return (~mask.any(-1)).any(-1)


def all_legal(rows: TensorDictBase, spec: TaskSpec, *, following: bool = False) -> bool:
    """Say whether every discrete action (or next action) is legal, so that no mask is empty: a quick pass."""
    chosen, legal = _legal(rows, spec.action_size, following=following)
    return bool(legal.all()) and bool((chosen >= 0).all() and (chosen < spec.action_size).all())


def illegal_agents(rows: TensorDictBase, n_actions: int, *, following: bool = False) -> torch.Tensor:
    """Agents ``[rows, n]`` whose discrete action is no action, or forbidden by a mask that allows another.

    Args:
        rows: a block.
        n_actions: number ``A`` of actions.
        following: look at the next action instead.
    """
    chosen, legal = _legal(rows, n_actions, following=following)
    mask = rows.get(next_key(ACTION_MASK) if following else ACTION_MASK, None)
    return (chosen < 0) | (chosen >= n_actions) | (~legal if mask is None else ~legal & mask.any(-1))


def _legal(rows: TensorDictBase, n_actions: int, *, following: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the actions and whether the mask, if there is one, allows them, ``[rows, n]`` both."""
    action, mask = (next_key(key) if following else key for key in (ACTION, ACTION_MASK))
    chosen, allowed = rows.get(action), rows.get(mask, None)
    if allowed is None:
        return chosen, torch.ones_like(chosen, dtype=torch.bool)
    return chosen, allowed.gather(-1, chosen.clamp(0, n_actions - 1).unsqueeze(-1)).squeeze(-1)


def illegal_action(rows: TensorDictBase, spec: TaskSpec, *, following: bool = False) -> torch.Tensor:
    """Rows with an illegal discrete action (or, ``following``, an illegal next action)."""
    if not spec.discrete:
        return torch.zeros(len(rows), dtype=torch.bool)
    return illegal_agents(rows, spec.action_size, following=following).any(-1)


# Successors


def continues(here: TensorDictBase, there: TensorDictBase) -> torch.Tensor:
    """Rows of ``here`` whose next observation and state are those of the row of ``there`` at the same place."""
    same = _same(here.get(next_key(OBSERVATION)), there.get(OBSERVATION))
    return same & _same(here.get(next_key(STATE)), there.get(STATE))


def continues_within(rows: TensorDict, following: TensorDict | None) -> torch.Tensor:
    """Rows whose next observation and state are the following row's, ``[rows]``.

    The last row's is the first of the block ``following``; the very last one counts as continuing.
    """
    last = torch.ones(1, dtype=torch.bool) if following is None else continues(rows[-1:], following[:1])
    return torch.cat([continues(rows[:-1], rows[1:]), last])


def changes(values: torch.Tensor, following: torch.Tensor | None) -> torch.Tensor:
    """Rows after which ``values`` ``[rows]``, the episodes' ids, are others; true on the very last row."""
    last = values.new_ones(1, dtype=torch.bool) if following is None else values[-1:] != following[:1]
    return torch.cat([values[:-1] != values[1:], last])


def stands_still(rows: TensorDictBase) -> torch.Tensor:
    """Rows whose next observation and state are their own: nothing happened, or a placeholder stands there."""
    return continues(rows, rows)


def _same(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Rows ``[rows]`` in which all values are equal, NaN to NaN; NumPy compares five times faster than torch."""
    a, b = (values.flatten(1).numpy() for values in (left, right))
    equal = (a == b).all(-1)
    if not equal.all():
        rest = ~equal
        equal[rest] = ((a[rest] == b[rest]) | (np.isnan(a[rest]) & np.isnan(b[rest]))).all(-1)
    return torch.from_numpy(equal)


# Episodes


def stopped_by_time_limit(lengths: torch.Tensor, suspect: torch.Tensor, limit: int | None) -> torch.Tensor:
    """Episodes ``[E]`` that seem to have met a time limit, although the recording calls it a termination.

    They terminated without success at the time limit; where that is not known, at the greatest length, if that is at
    least :data:`SHORTEST_TIME_LIMIT`, if at least three episodes do, and if they are more than twice as many as the
    episodes of any of the five lengths below. A task that always ends by itself after so many steps looks the same:
    only its author can tell.

    Args:
        lengths: of the episodes, ``[E]``.
        suspect: episodes that terminated without success, ``[E]`` bool.
        limit: the task's time limit, or ``None``.
    """
    if limit is not None:
        return suspect & (lengths == limit)
    longest = int(lengths.max())
    suspect = suspect & (lengths == longest)
    nearby = max(int((lengths == length).sum()) for length in range(longest - 5, longest))
    is_limit = longest >= SHORTEST_TIME_LIMIT and int(suspect.sum()) >= max(3, 2 * nearby + 1)
    return suspect if is_limit else torch.zeros_like(suspect)
