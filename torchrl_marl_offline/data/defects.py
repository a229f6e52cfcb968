"""The signs of each defect: which rows, columns or episodes of a dataset show it.

Everything here reads a dataset as it is, also one that :func:`~.validation.validate` refuses, in blocks of rows, so
that a memory-mapped dataset never has to fit into memory. Inspection counts the rows, repair mends them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from torchrl_marl_offline.data.layout import (
    ACTION,
    ACTION_MASK,
    DONE,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TRAJ_IDS,
    TRUNCATED,
    next_key,
)

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDictBase

    from torchrl_marl_offline.data.dataset import OfflineDataset

_ROWS_AT_ONCE = 16_384
SHORTEST_TIME_LIMIT = 10
"""Games of fewer steps end by themselves (matrix games, the two-step game): their end is no time limit."""


def rows_where(dataset: OfflineDataset, test: Callable[[TensorDictBase], torch.Tensor]) -> torch.Tensor:
    """Return ``test`` of every row, ``[T]`` bool on the CPU; ``test`` sees a block of rows at a time."""
    data = dataset.data
    blocks = (data[start : start + _ROWS_AT_ONCE] for start in range(0, len(data), _ROWS_AT_ONCE))
    return torch.cat([test(block).as_subclass(torch.Tensor).cpu() for block in blocks])


# Values


def padding_columns(dataset: OfflineDataset) -> dict[NestedKey, torch.Tensor]:
    """Return the entries of the observation ``[n, o]`` and of the state ``[s]`` that are -inf on every row.

    So some writers fill up the observations of agents that see less. Keys without such an entry are left out.
    """
    columns = {}
    for key in (OBSERVATION, STATE):
        always = None
        for start in range(0, len(dataset), _ROWS_AT_ONCE):
            block = dataset.data[start : start + _ROWS_AT_ONCE]
            for side in (key, next_key(key)):
                here = (block.get(side) == -torch.inf).all(0)
                always = here if always is None else always & here
            if not always.any():
                break
        if always.any():
            columns[key] = always
    return columns


def not_finite(dataset: OfflineDataset) -> torch.Tensor:
    """Rows with a NaN or an infinite value that is no padding of :func:`padding_columns`."""
    padding = padding_columns(dataset)
    padding |= {next_key(key): columns for key, columns in padding.items()}

    def test(rows: TensorDictBase) -> torch.Tensor:
        bad = torch.zeros(len(rows), dtype=torch.bool, device=rows.get(MASK).device)
        for key in rows.keys(include_nested=True, leaves_only=True):
            value = rows.get(key)
            if value.is_floating_point():
                wrong = ~value.isfinite()
                if key in padding:
                    wrong = wrong & ~padding[key]
                bad = bad | wrong.reshape(len(rows), -1).any(-1)
        return bad

    return rows_where(dataset, test)


def outside_bounds(dataset: OfflineDataset, key: NestedKey = ACTION) -> torch.Tensor:
    """Rows whose continuous action lies outside the task's bounds by more than rounding; none where it is discrete."""
    spec = dataset.spec
    if spec.discrete:
        return torch.zeros(len(dataset), dtype=torch.bool)
    slack = 1e-5 * (spec.action_high - spec.action_low)
    low, high = spec.action_low - slack, spec.action_high + slack
    # A NaN is not outside: it is counted as not finite.
    return rows_where(dataset, lambda rows: ((rows.get(key) < low) | (rows.get(key) > high)).flatten(1).any(-1))


def no_legal_action(dataset: OfflineDataset, key: NestedKey = ACTION_MASK) -> torch.Tensor:
    """Rows where the mask allows some agent no action at all."""
    if not dataset.spec.has_action_mask:
        return torch.zeros(len(dataset), dtype=torch.bool)
    return rows_where(dataset, lambda rows: (~rows.get(key).any(-1)).any(-1))


def illegal_agents(rows: TensorDictBase, n_actions: int, *, following: bool = False) -> torch.Tensor:
    """Agents ``[rows, n]`` whose discrete action is no action, or forbidden by a mask that allows another.

    Args:
        rows: a block of rows.
        n_actions: number ``A`` of actions.
        following: look at the next action instead.
    """
    action, mask = (next_key(key) if following else key for key in (ACTION, ACTION_MASK))
    chosen, allowed = rows.get(action), rows.get(mask, None)
    wrong = (chosen < 0) | (chosen >= n_actions)
    if allowed is None:
        return wrong
    legal = allowed.gather(-1, chosen.clamp(0, n_actions - 1).unsqueeze(-1)).squeeze(-1)
    return wrong | (~legal & allowed.any(-1))


def illegal_action(dataset: OfflineDataset, *, following: bool = False) -> torch.Tensor:
    """Rows with an illegal discrete action (or, ``following``, an illegal next action)."""
    spec = dataset.spec
    if not spec.discrete:
        return torch.zeros(len(dataset), dtype=torch.bool)
    return rows_where(dataset, lambda rows: illegal_agents(rows, spec.action_size, following=following).any(-1))


# Episodes


def final_rows(dataset: OfflineDataset) -> torch.Tensor:
    """Row of each episode's last transition, ``[E]``."""
    return dataset.episode_starts + dataset.episode_lengths - 1


def flag(dataset: OfflineDataset, key: NestedKey) -> torch.Tensor:
    """Return a flag of every row as ``[T]`` bool on the CPU."""
    return dataset.data.get(key).as_subclass(torch.Tensor).reshape(len(dataset)).cpu()


def wrong_marks(dataset: OfflineDataset) -> torch.Tensor:
    """Rows where done is not the union of terminated and truncated, or where it and the episode ids disagree."""
    done = flag(dataset, next_key(DONE))
    union = flag(dataset, next_key(TERMINATED)) | flag(dataset, next_key(TRUNCATED))
    last = torch.zeros_like(done)
    last[final_rows(dataset)] = True
    ids = flag(dataset, TRAJ_IDS)
    first_of_id = ids[dataset.episode_starts]
    order = torch.argsort(first_of_id, stable=True)
    again = torch.zeros(dataset.n_episodes, dtype=torch.bool)
    again[order[1:]] = first_of_id[order][1:] == first_of_id[order][:-1]
    return (done != union) | (done != last) | again.repeat_interleave(dataset.episode_lengths)


def done_never_set(dataset: OfflineDataset) -> bool:
    """Say whether no episode ends before the last row, and that one not by a termination."""
    done = flag(dataset, next_key(DONE))
    return len(dataset) > 1 and not done[:-1].any() and not bool(flag(dataset, next_key(TERMINATED))[-1])


def terminated_by_time_limit(dataset: OfflineDataset) -> torch.Tensor:
    """Episodes ``[E]`` that seem to have met a time limit, although the recording calls it a termination.

    They terminated without success at the time limit of the metadata; where those do not know it, at the greatest
    length, if that is at least :data:`SHORTEST_TIME_LIMIT`, if at least three episodes do, and if they are more than
    twice as many as the episodes of any of the five lengths below. A task that always ends by itself after so many
    steps looks the same: only its author can tell.
    """
    lengths = dataset.episode_lengths
    terminated = flag(dataset, next_key(TERMINATED))[final_rows(dataset)]
    success = dataset.success()
    suspect = terminated if success is None else terminated & ~success
    limit = dataset.metadata.get("time_limit")
    if limit is not None:
        return suspect & (lengths == limit)
    longest = int(lengths.max())
    suspect = suspect & (lengths == longest)
    nearby = max(int((lengths == length).sum()) for length in range(longest - 5, longest))
    is_limit = longest >= SHORTEST_TIME_LIMIT and int(suspect.sum()) >= max(3, 2 * nearby + 1)
    return suspect if is_limit else torch.zeros_like(suspect)


# Successors


def continues(dataset: OfflineDataset) -> torch.Tensor:
    """Rows ``[T]`` whose next observation and next state are the following row's; the last row counts as one."""
    data, parts = dataset.data, []
    for start in range(0, len(data) - 1, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(data) - 1)
        here, there = data[start:stop], data[start + 1 : stop + 1]
        parts.append(_same(here, next_key(OBSERVATION), there, OBSERVATION).cpu())
        parts[-1] &= _same(here, next_key(STATE), there, STATE).cpu()
    return torch.cat([*parts, torch.ones(1, dtype=torch.bool)])


def stands_still(dataset: OfflineDataset) -> torch.Tensor:
    """Rows whose next observation and state are their own: nothing happened, or a placeholder stands there."""

    def test(rows: TensorDictBase) -> torch.Tensor:
        same = _same(rows, next_key(OBSERVATION), rows, OBSERVATION)
        return same & _same(rows, next_key(STATE), rows, STATE)

    return rows_where(dataset, test)


def crosses_episode_end(dataset: OfflineDataset) -> torch.Tensor:
    """Truncated rows that count in training, but whose successor is the next episode's first observation."""
    at_end = torch.zeros(len(dataset), dtype=torch.bool)
    at_end[final_rows(dataset)[:-1]] = True
    used = flag(dataset, MASK) & ~flag(dataset, next_key(TERMINATED))
    suspect = at_end & used & continues(dataset)
    return suspect & ~stands_still(dataset) if suspect.any() else suspect


def breaks_within_episode(dataset: OfflineDataset) -> torch.Tensor:
    """Rows inside an episode, counting in training, whose next observation or state is not the following row's."""
    inside = torch.ones(len(dataset), dtype=torch.bool)
    inside[final_rows(dataset)] = False
    return inside & flag(dataset, MASK) & ~continues(dataset)


def _same(a: TensorDictBase, key: NestedKey, b: TensorDictBase, other: NestedKey) -> torch.Tensor:
    left, right = a.get(key).as_subclass(torch.Tensor), b.get(other).as_subclass(torch.Tensor)
    equal = (left == right) | (left.isnan() & right.isnan())
    return equal.reshape(len(equal), -1).all(-1)


# What the signals say


def state_copies(dataset: OfflineDataset) -> bool:
    """Say whether the state is one vector, repeated for each agent.

    Not asked where the state is the joint observation, nor where it never changes.
    """
    n, size = dataset.spec.n_agents, dataset.spec.state_size
    if n < 2 or size % n or size // n < 2:
        return False
    first = dataset.data.get(STATE)[0]

    def differs(rows: TensorDictBase) -> torch.Tensor:
        blocks = rows.get(STATE).reshape(len(rows), n, -1)
        return (blocks != blocks[:, :1]).flatten(1).any(-1)

    def is_other(rows: TensorDictBase) -> torch.Tensor:
        joint = rows.get(OBSERVATION).flatten(1)
        return (joint != rows.get(STATE)).any(-1) if joint.shape[-1] == size else torch.ones(len(rows), dtype=bool)

    if rows_where(dataset, differs).any() or not rows_where(dataset, is_other).any():
        return False
    return bool(rows_where(dataset, lambda rows: (rows.get(STATE) != first).any(-1)).any())


def is_team_reward(dataset: OfflineDataset) -> bool:
    """Say whether all agents' rewards are equal on every row; false for one agent."""

    def differs(rows: TensorDictBase) -> torch.Tensor:
        reward = rows.get(next_key(REWARD))
        return (reward != reward[:, :1]).flatten(1).any(-1)

    return dataset.spec.n_agents > 1 and not rows_where(dataset, differs).any()
