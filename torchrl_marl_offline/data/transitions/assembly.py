"""Turns rows in time order into the transitions of the layout: next actions, episode ids, masks."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    DONE,
    HAS_NEXT_ACTION,
    MASK,
    TERMINATED,
    TRAJ_IDS,
    TRUNCATED,
    next_key,
)


def shift(values: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return the next row's values, ``[T, ...]``; the last row of an episode keeps its own.

    Args:
        values: one entry per row, ``[T, ...]``.
        last: true on the last row of each episode, ``[T]`` bool.
    """
    index = torch.arange(len(last), device=last.device) + (~last).long()
    return values[index]


def legal_placeholder(action: torch.Tensor, next_mask: torch.Tensor | None) -> torch.Tensor:
    """Return an action to stand where nobody acted: the first legal one, else the row's own.

    Args:
        action: the row's action, ``[T, n]`` or ``[T, n, a]``.
        next_mask: legal next actions, ``[T, n, A]`` bool, where there are any.
    """
    return action.clone() if next_mask is None else next_mask.to(torch.uint8).argmax(-1)


def assemble(
    rows: dict,
    *,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    mask: torch.Tensor | None = None,
    final_actions: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> TensorDict:
    """Build the TensorDict of ``[T]`` transitions.

    The next action is the next row's. After the last row of an episode nobody acted in most recordings: a legal
    placeholder stands there and ``("collector", "has_next_action")`` is false. A rule that evaluates the recorded next
    action (SARSA) counts such a row only where it terminated, where the value is not used; TD and IQL use it always.

    Args:
        rows: leaves ``[T, ...]`` by layout key: observation, state, action and, where known, masks, each also under
            ``"next"``, then ``("next", "agents", "reward")`` ``[T, n, 1]`` and, where known, ``("next", "success")``.
        terminated: ``[T]`` bool, true only on the last row of an episode.
        truncated: ``[T]`` bool, true only on the last row of an episode. One of both ends every episode.
        mask: ``[T]`` bool, false where a row must not count; all rows count by default.
        final_actions: actions recorded at the final observations, as the last rows of the episodes see them: values
            like the action, and ``[T]`` bool where they exist.
    """
    done = terminated | truncated
    starts = torch.zeros_like(done, dtype=torch.int64)
    starts[1:] = done[:-1]
    data = TensorDict(batch_size=[len(done)])
    for key, value in rows.items():
        data.set(key, value)
    next_action = shift(rows[ACTION], done)
    placeholder = legal_placeholder(rows[ACTION], rows.get(next_key(ACTION_MASK)))
    has_next = ~done
    if final_actions is not None:
        recorded, known = final_actions
        known = known & done
        next_action = torch.where(_like(known, next_action), recorded, next_action)
        has_next = has_next | known
    data.set(next_key(ACTION), torch.where(_like(has_next, next_action), next_action, placeholder))
    for key, flag in ((DONE, done), (TERMINATED, terminated), (TRUNCATED, truncated)):
        data.set(next_key(key), flag.unsqueeze(-1))
    data.set(TRAJ_IDS, starts.cumsum(0))
    data.set(MASK, torch.ones_like(done) if mask is None else mask)
    data.set(HAS_NEXT_ACTION, has_next)
    return data


def open_unused_masks(rows: dict, unused: torch.Tensor, findings: list[str]) -> None:
    """Allow every action where the recording allows none and nothing is evaluated: after a termination.

    A mask without a legal action would make the distribution there undefined, and a NaN times zero is a NaN.

    Args:
        rows: leaves by layout key; the next action mask is replaced.
        unused: ``[T]`` bool, rows whose next state is not used.
        findings: a sentence is appended where there is such a row.
    """
    opened = open_empty_masks(rows, unused)
    if opened:
        findings.append(opened_masks_finding(opened))


def open_empty_masks(rows: dict, unused: torch.Tensor) -> int:
    """Do what :func:`open_unused_masks` does and return the number of rows; for rows that come in parts."""
    key = next_key(ACTION_MASK)
    empty = ~rows[key].any(-1) & unused.unsqueeze(-1)  # [T, n]
    if empty.any():
        rows[key] = rows[key] | empty.unsqueeze(-1)
    return int(empty.any(-1).sum())


def open_masks_of_the_dead(rows: dict, findings: list[str]) -> None:
    """Allow every action to agents that are dead (or padding) and are allowed none, by the agents' mask; nobody acts.

    Args:
        rows: leaves by layout key; the action masks are replaced.
        findings: a sentence is appended where there is such a row.
    """
    if AGENT_MASK not in rows:
        return
    opened = torch.zeros(len(rows[AGENT_MASK]), dtype=torch.bool)
    for mask, alive in ((ACTION_MASK, AGENT_MASK), (next_key(ACTION_MASK), next_key(AGENT_MASK))):
        empty = ~rows[mask].any(-1) & ~rows[alive]  # [T, n]
        rows[mask] = rows[mask] | empty.unsqueeze(-1)
        opened |= empty.any(-1)
    if opened.any():
        findings.append(f"{int(opened.sum())} rows allow dead agents no action; all are allowed there, none is used")


def opened_masks_finding(count: int) -> str:
    """Say what :func:`open_empty_masks` did."""
    return f"{count} final rows allow no action; all are allowed there, none is used"


def shared_reward(rewards: torch.Tensor, n_agents: int) -> torch.Tensor:
    """Give a team reward ``[T]`` to every agent: ``[T, n, 1]``."""
    return rewards.reshape(-1, 1, 1).expand(-1, n_agents, 1).contiguous()


def _like(flag: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return flag.reshape(-1, *[1] * (values.ndim - 1))
