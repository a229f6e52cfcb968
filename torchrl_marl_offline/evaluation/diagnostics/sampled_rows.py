"""Which rows of a dataset a diagnosis looks at, and the returns that were earned from each of them on."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.layout import TRAJ_IDS, next_key
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.evaluation.held_out import discounted_returns
from torchrl_marl_offline.objectives.functional import team_reward
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.training.run.fit import counted_rows


def rows_that_count(loss: OfflineMARLLoss, data: TensorDictBase) -> Tensor:
    """Return which rows ``[T]`` a loss counts and at least one agent is alive in; bool, on the CPU."""
    counted, alive = counted_rows(loss, data), data.get(loss.tensor_keys.agent_mask, None)
    found = torch.ones(len(data), dtype=torch.bool) if counted is None else counted.cpu()
    return found if alive is None else found & alive.reshape(len(data), -1).any(-1).cpu()


def sampled(
    loss: OfflineMARLLoss, dataset: OfflineDataset, candidates: Tensor, rows: int, generator: torch.Generator
) -> Tensor:
    """Return indices of at most ``rows`` of the candidates ``[T]``, in the order of time.

    Networks with memory read the last dimension of a batch as time: of them, whole episodes, in an order of chance,
    until there are as many rows.
    """
    index = candidates.nonzero()[:, 0]
    if not loss.has_memory:
        return index[torch.randperm(len(index), generator=generator)[:rows]].sort().values
    ids = dataset.data.get(TRAJ_IDS).cpu()
    wanted = ids[index].unique()
    wanted = wanted[torch.randperm(len(wanted), generator=generator)]
    lengths = dataset.episode_lengths[wanted].cumsum(0)
    chosen = wanted[: int((lengths < rows).sum()) + 1]
    return torch.isin(ids, chosen).nonzero()[:, 0]


def returns_to_go(loss: OfflineMARLLoss, dataset: OfflineDataset, gamma: float) -> Tensor:
    r"""Return what was earned from each row on, discounted, as the critic counts it: ``[T, k]`` in double precision.

    ``k`` is 1 for a team's value. A target goes on where a time limit cut an episode off, so a return that stopped
    there could not be compared with it: such an episode counts as if it were played again and again, :math:`G_t +
    \gamma^{T - t} G_0 / (1 - \gamma^T)`; without discounting it ends there.
    """
    keys, data = loss.tensor_keys, dataset.data
    reward = data.get(next_key(keys.reward)).cpu().double()
    if reward.ndim > 2:  # [T, n, 1]
        alive = data.get(keys.agent_mask, None)
        reward = reward if alive is None else reward.where(alive.cpu().unsqueeze(-1), torch.zeros_like(reward))
        reward = team_reward(reward, loss.team_reward) if loss.is_team else reward
        reward = reward.squeeze(-1)
    lengths = dataset.episode_lengths
    found = discounted_returns(reward, lengths, gamma)
    ends, starts = lengths.cumsum(0) - 1, dataset.episode_starts
    cut = ~data.get(next_key(keys.terminated)).cpu().reshape(-1)[ends]
    if gamma < 1.0 and cut.any():
        again = found[starts] / (1.0 - gamma ** lengths.double()).unsqueeze(-1)  # [E, k]
        again = again.where(cut.unsqueeze(-1), torch.zeros_like(again))
        left = ends.repeat_interleave(lengths) - torch.arange(len(found)) + 1
        found = found + gamma ** left.double().unsqueeze(-1) * again.repeat_interleave(lengths, 0)
    return found


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Return Spearman's correlation of two vectors, equal values sharing a rank; NaN where either is constant."""
    a, b = (each - each.mean() for each in (_ranks(x), _ranks(y)))
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def _ranks(x: Tensor) -> Tensor:
    _, place, counts = x.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts.double() - 1) / 2)[place]
