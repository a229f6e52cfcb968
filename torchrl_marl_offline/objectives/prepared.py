"""Batches as the losses want them, from those that TorchRL's environments, buffers and dispatch give."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Protocol

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor

from torchrl_marl_offline.core.layout import IS_INIT, OBSERVATION, joined
from torchrl_marl_offline.objectives.first_batch import is_readable


class LossKeys(Protocol):
    """The keys of a loss that are checked here."""

    action: NestedKey
    reward: NestedKey
    done: NestedKey
    terminated: NestedKey
    agent_mask: NestedKey
    action_mask: NestedKey
    has_next_action: NestedKey


def indexed(tensordict: TensorDictBase, key: NestedKey) -> TensorDictBase:
    """Return discrete actions as indices ``[*B, n]``: TorchRL's environments also have ``[*B, n, 1]`` and codes.

    Raises:
        ValueError: whole numbers that are neither.
    """
    found = {}
    for name in (key, ("next", key)):
        action = tensordict.get(name, None)
        if action is None or action.is_floating_point():
            continue
        if action.dtype == torch.bool:
            found[name] = action.long().argmax(-1)
        elif action.ndim == tensordict.ndim + 2:
            if action.shape[-1] != 1 and not _may_be_one_hot(action):
                raise ValueError(
                    f"{joined(unravel_key(name))} has whole numbers {list(action.shape)}: discrete actions are one "
                    "index for each agent, [*B, n], or one-hot codes, [*B, n, A]."
                )
            found[name] = action.squeeze(-1) if action.shape[-1] == 1 else action.argmax(-1)
    return tensordict.copy().update(found) if found else tensordict


def _may_be_one_hot(action: Tensor) -> bool:
    """Say whether whole numbers ``[*B, n, A]`` are codes; where they may not be looked at, they are taken for them."""
    return not is_readable(action) or bool(((action == 0) | (action == 1)).all() and (action.sum(-1) == 1).all())


def rooted(tensordict: TensorDictBase, key: NestedKey) -> TensorDictBase:
    """Take the agents' dimension out of the batch size, where dispatch saw it in every entry; ``key`` of the action."""
    action = tensordict.get(key, None)
    if action is None:  # of rows whose policy alone is asked
        return tensordict
    batch_size = action.shape[: -2 if action.is_floating_point() else -1]
    if tensordict.ndim <= len(batch_size):
        return tensordict
    return TensorDict({name: tensordict.get(name) for name in tensordict.keys(True, True)}, batch_size)


def check_entries(
    tensordict: TensorDictBase, keys: LossKeys, masks: Sequence[NestedKey], *, with_next_action: bool = False
) -> None:
    """Refuse flags, masks, rewards and next actions of other kinds or shapes than the layout's.

    They would fail inside, or be taken for those of all agents or actions alike.

    Args:
        tensordict: the batch ``[*B]``.
        keys: the loss's.
        masks: of rows.
        with_next_action: whether the next action is read.

    Raises:
        ValueError: it names the entry, and what it should be.
    """
    size = tuple(tensordict.batch_size)
    if 0 in size:
        raise ValueError(f"The batch is empty, {list(size)}; sample at least one row.")
    action = tensordict.get(keys.action, None)
    of_agents = tensordict.get(OBSERVATION, None) if action is None else action
    agents = (*size, *(() if of_agents is None else of_agents.shape[len(size) : len(size) + 1]))
    flags = [(("next", key), ((*size, 1),)) for key in (keys.done, keys.terminated)]
    flags += [(key, (agents,)) for key in (keys.agent_mask, ("next", keys.agent_mask))]
    flags += [(key, (size, (*size, 1))) for key in (*masks, keys.has_next_action)]
    flags += [(key, ((*size, 1), size)) for key in (IS_INIT, ("next", IS_INIT))]
    for key, shapes in flags:
        flag = tensordict.get(key, None)
        if flag is not None and (flag.dtype != torch.bool or not _is_one_of(flag, shapes)):
            wanted = f"bools {list(shapes[0])}"
            raise ValueError(_is_other(key, flag, wanted))
    for key in (keys.action_mask, ("next", keys.action_mask)):
        mask = tensordict.get(key, None)
        if mask is not None:
            is_of_actions = mask.ndim == len(agents) + 1 and mask.shape[-1] > 1
            if mask.dtype != torch.bool or not is_of_actions or not _is_one_of(mask[..., 0], (agents,)):
                raise ValueError(_is_other(key, mask, f"bools [{', '.join(map(str, agents))}, A]"))
    following = tensordict.get(("next", keys.action), None) if with_next_action else None
    if following is not None and action is not None:
        is_alike = following.is_floating_point() == action.is_floating_point()
        if not is_alike or not _is_one_of(following, (action.shape,)):
            wanted = f"{list(action.shape)} of {action.dtype}, as the action is"
            raise ValueError(_is_other(("next", keys.action), following, wanted))
    reward = tensordict.get(("next", keys.reward), None)
    if reward is not None and not _is_one_of(reward, ((*size, 1), (*agents, 1))):
        wanted = f"{[*agents, 1]}, one of each agent, or {[*size, 1]}, the team's"
        raise ValueError(_is_other(("next", keys.reward), reward, wanted))


def _is_one_of(entry: Tensor, shapes: Sequence[Sequence[int]]) -> bool:
    """Compare size by size: where torch.compile takes sizes for symbols, no tuple of them is in another."""
    return any(len(shape) == entry.ndim and all(map(operator.eq, shape, entry.shape)) for shape in shapes)


def _is_other(key: NestedKey, entry: Tensor, wanted: str) -> str:
    return f"{joined(unravel_key(key))} must be {wanted}; the batch has {list(entry.shape)} of {entry.dtype}."


def with_beginnings(tensordict: TensorDictBase, done: NestedKey) -> TensorDictBase:
    """Say where memory starts anew: where the batch says so, and behind every row that ended its episode.

    So it does among the next observations, whose first one of an episode is that of the episode's first row.
    """
    ended, given = tensordict.get(("next", done), None), tensordict.get(IS_INIT, None)
    if not tensordict.ndim or (ended is None and given is None):
        return tensordict
    begins = torch.zeros(*tensordict.batch_size, 1, dtype=torch.bool, device=(given if ended is None else ended).device)
    if ended is not None:
        begins = torch.cat([begins[..., :1, :], ended[..., :-1, :]], -2)
    tensordict = tensordict.copy()
    for key in (IS_INIT, ("next", IS_INIT)):
        given = tensordict.get(key, None)
        begins = begins if given is None else begins | given.reshape(begins.shape)
        tensordict.set(key, begins)
    return tensordict


def sanitized(
    tensordict: TensorDictBase,
    keys: Sequence[NestedKey],
    rows: Tensor | None,
    *,
    agent_mask: NestedKey,
    action_mask: NestedKey,
    reward: NestedKey,
    are_seen: bool = False,
) -> TensorDictBase:
    """Put zeros where a row or an agent does not count: NaN times zero would reach the gradients.

    Discrete actions of agents that are not there are 0 as well, and all of theirs are legal: what a recorder wrote for
    them, which a team's critic would read, says nothing.

    Args:
        tensordict: the batch ``[*B]``.
        keys: of what is read, beside the masks.
        rows: which count, ``[*B]``; None for all.
        agent_mask: key of the agents' mask ``[*B, n]``, which the batch need not have.
        action_mask: key of the legal actions ``[*B, n, A]``, as well.
        reward: key of the reward, which is that of the agents before the step.
        are_seen: keep what numbers there are of rows that do not count, which memory passes through.
    """
    agents = tensordict.get(agent_mask, None)
    if rows is None and agents is None:
        return tensordict
    next_agents = tensordict.get(("next", agent_mask), agents)
    group, next_reward = unravel_key(agent_mask)[:-1], unravel_key(("next", reward))
    agent_mask, action_mask = unravel_key(agent_mask), unravel_key(action_mask)
    out = tensordict.copy()
    for key in map(unravel_key, [*keys, action_mask, ("next", action_mask)]):
        entry = tensordict.get(key, None)
        ahead = key[0] == "next" and key != next_reward
        path = key[1:] if key[0] == "next" else key
        of_agents = not isinstance(path, str) and path[:-1] == group
        there = (next_agents if ahead else agents) if of_agents else None
        if entry is None or path == agent_mask:
            continue
        if not entry.is_floating_point():
            if there is not None:
                gone = ~there.reshape(*there.shape, *(1,) * (entry.ndim - there.ndim))
                out.set(key, entry.masked_fill(gone, path == action_mask))
            continue
        for mask in (rows, there):
            if mask is not None:
                is_of_rows, mask = mask is rows, mask.reshape(*mask.shape, *(1,) * (entry.ndim - mask.ndim))
                mask = mask | entry.isfinite() if are_seen and is_of_rows else mask
                entry = torch.where(mask, entry, torch.zeros_like(entry))
        out.set(key, entry)
    return out


def counted_alone(tensordict: TensorDictBase, rows: Tensor, keys: Sequence[NestedKey]) -> TensorDictBase:
    """Put rows that count in the place of those that do not: what a network takes of a whole batch is of the former.

    Every row that counts stands there as often as any other, or once more.

    Args:
        tensordict: the batch ``[*B]``, whose rows are each for itself.
        rows: which count, ``[*B]``.
        keys: of what is read; other entries stay.
    """
    counts, number = rows.flatten(), torch.arange(rows.numel(), device=rows.device)
    counted = (~counts).long().argsort(stable=True)  # first the rows that count
    others = ((~counts).long().cumsum(0) - 1).clamp_min(0) % counts.sum().clamp_min(1)
    source = torch.where(counts, number, counted[others])
    out = tensordict.copy()
    for key in map(unravel_key, keys):
        entry = tensordict.get(key, None)
        if entry is not None:
            out.set(key, entry.flatten(0, rows.ndim - 1)[source].reshape(entry.shape))
    return out


def of_batch(next_td: TensorDictBase, batch_size: torch.Size) -> TensorDictBase:
    """Return the next states with the batch's size: dispatch gives a nested tensordict one of its own."""
    if next_td.batch_size == batch_size:
        return next_td
    return TensorDict({key: next_td.get(key) for key in next_td.keys(True, True)}, batch_size)
