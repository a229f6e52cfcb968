"""What the critic says of many actions of each agent, the other agents' as recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor
from torch.distributions import Distribution

from torchrl_marl_offline.modules.networks import legal_or_all, one_hot

if TYPE_CHECKING:
    from torchrl_marl_offline.objectives.offline_marl import OfflineMARLLoss


def candidate_values(
    loss: OfflineMARLLoss,
    tensordict: TensorDictBase,
    actions: Tensor,
    *,
    team: bool = False,
    target: bool = False,
    detach: bool = False,
) -> Tensor:
    """Evaluate the critic at ``K`` actions of every agent.

    Each agent's own value where the critic has local ones. A centralized critic, and with ``team`` any critic of a
    team, values the team with one agent's action replaced and the other agents' as recorded.

    Args:
        loss: whose critic is asked.
        tensordict: observations, state and recorded actions, ``[*B]``.
        actions: ``[*B, K, n, a]``; one-hot for a discrete task.
        team: ask for the team's value also where there are local ones.
        target: use the target networks.
        detach: keep the gradient from the critic's parameters (not from the actions).

    Returns:
        ``[*B, K, n, H]``.
    """
    if not (loss._is_central or (team and loss.is_team)):
        return _valued(loss, tensordict, actions, 1, target=target, detach=detach)
    recorded = recorded_action(loss, tensordict, actions)
    own = torch.eye(actions.shape[-2], dtype=torch.bool, device=actions.device).unsqueeze(-1)
    joint = torch.where(own, actions.unsqueeze(-3), recorded.unsqueeze(-3).unsqueeze(-3))  # [*B, K, n, n, a]
    return _valued(loss, tensordict, joint, 2, target=target, detach=detach).squeeze(-2)  # [*B, K, n, 1, H]


def _valued(
    loss: OfflineMARLLoss, tensordict: TensorDictBase, actions: Tensor, samples: int, *, target: bool, detach: bool
) -> Tensor:
    """Evaluate the critic (alone, of ``[*B, K, n, a]``; with its mixer, of ``[*B, K, n, n, a]``) at samples.

    Networks with memory take the last dimension of the batch for time. Samples lie before it, unless it is known that
    every row is for itself.
    """
    batch = tensordict.ndim
    counts = actions.shape[batch : batch + samples]
    behind, front = tuple(range(batch, batch + samples)), tuple(range(samples))
    first = not loss._rows_are_independent
    actions = actions.movedim(behind, front) if first else actions
    rows = _repeated(loss, tensordict, *counts, first=first)
    if samples == 1:
        values = loss._critic(rows, actions, target=target, detach=detach)
    else:
        values = loss.action_value(rows, actions, target=target, detach=detach).total
    return values.movedim(front, behind) if first else values


def _repeated(loss: OfflineMARLLoss, tensordict: TensorDictBase, *counts: int, first: bool) -> TensorDict:
    """Return what the critic and the mixer read, each row ``counts`` times; see :func:`repeated`."""
    mixer_keys = loss.mixer_network.in_keys if loss.mixer_network is not None else []
    keys = map(unravel_key, [*loss.qvalue_network.in_keys, *mixer_keys])
    keys = [key for key in keys if key != unravel_key(loss.tensor_keys.action)]
    return repeated(tensordict, keys, *counts, first=first)


def repeated(tensordict: TensorDictBase, keys: Sequence[NestedKey], *counts: int, first: bool = False) -> TensorDict:
    """Return those of the entries that there are, each row ``counts`` times: ``[*B]`` to ``[*B, *counts]``.

    With ``first``, to ``[*counts, *B]``.
    """
    batch = tensordict.batch_size
    shape = [*counts, *batch] if first else [*batch, *counts]
    entries = {}
    for key in dict.fromkeys(keys):
        entry = tensordict.get(key, None)
        if entry is not None:
            trailing = entry.shape[len(batch) :]
            entry = entry if first else entry.reshape(*batch, *(1,) * len(counts), *trailing)
            entry = entry.expand(*shape, *trailing)
            entries[key] = entry.contiguous() if first else entry  # networks of others may want to view it
    return TensorDict(entries, shape)


def best_candidate(actions: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return of each agent's candidates ``[*B, K, n, a]`` that of the highest value, and the value ``[*B, n]``."""
    value, index = values.max(-2, keepdim=True)  # [*B, 1, n]
    index = index.unsqueeze(-1).expand(*index.shape, actions.shape[-1])
    return actions.gather(-3, index).squeeze(-3), value.squeeze(-2)


def recorded_action(loss: OfflineMARLLoss, tensordict: TensorDictBase, like: Tensor) -> Tensor:
    """Return the recorded joint action ``[*B, n, a]``; of a discrete task one-hot, in the dtype of ``like``."""
    recorded = tensordict.get(loss.tensor_keys.action)
    return recorded if recorded.is_floating_point() else one_hot(recorded, like.shape[-1], like.dtype)


def every_action(like: Tensor) -> Tensor:
    """Return all actions of a discrete task as candidates, one-hot ``[*B, A, n, A]``, as many as in ``[*B, n, A]``."""
    size = like.shape[-1]
    each = torch.eye(size, dtype=like.dtype, device=like.device).unsqueeze(-2)  # [A, 1, A]
    return each.expand(*like.shape[:-2], size, like.shape[-2], size)


def legal_actions(loss: OfflineMARLLoss, tensordict: TensorDictBase, like: Tensor) -> Tensor:
    """Return which of every action's values ``[*B, A, n, ...]`` are of legal actions, broadcastable to them.

    An agent without any legal action, which is a dead or a padding one, is taken to have all.
    """
    mask = tensordict.get(loss.tensor_keys.action_mask, None)
    if mask is None:
        return torch.ones((), dtype=torch.bool, device=like.device)
    mask = legal_or_all(mask).transpose(-1, -2)  # [*B, n, A] -> [*B, A, n]
    return mask.reshape(*mask.shape, *(1,) * (like.ndim - mask.ndim))


def expected_value(loss: OfflineMARLLoss, tensordict: TensorDictBase, policy: Distribution) -> Tensor:
    r"""Return :math:`\sum_a \pi(a | o) Q(o, a)`, the minimum head's, of every agent's discrete actions, ``[*B, n, 1]``.

    Without gradient.
    """
    with torch.no_grad():
        values = candidate_values(loss, tensordict, every_action(policy.probs)).amin(-1)  # [*B, A, n]
        return (policy.probs.transpose(-1, -2) * values).sum(-2).unsqueeze(-1)
