"""The few numbers that a task's state is made of: what agents observe, the state and the masks repeat each other."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.layout import ACTION_MASK, AGENT_MASK, OBSERVATION, STATE, next_key
from torchrl_marl_offline.evaluation.distances import or_one

_KEYS = (OBSERVATION, STATE, ACTION_MASK, AGENT_MASK)
_NEW = 1e-3
"""Deviation of what the columns before do not tell of one, in deviations of its own, above which it is kept."""
_BLOCK = 2**24
"""Numbers of which moments are taken at once."""


class StateColumns:
    """What a policy reads as one row of numbers, and the columns of it that the others follow from linearly.

    An agent's observation often holds the others' places, relative to it, and the state holds all of them once more. A
    model that predicted each by itself would let them drift apart. All rows say which follow: also a flag that one row
    in a hundred thousand sets is a column of its own.

    Args:
        data: rows ``[T]`` with their next ones.
    """

    def __init__(self, data: TensorDictBase) -> None:
        self._keys = [key for key in _KEYS if data.get(key, None) is not None]
        self._shapes = {key: data.get(key).shape[1:] for key in self._keys}
        self._booleans = {key for key in self._keys if data.get(key).dtype == torch.bool}
        all_rows = torch.cat([self._wide(data, is_next) for is_next in (False, True)])
        mean, moments = _moments(all_rows)
        spread = or_one(moments.diagonal().sqrt(), mean)
        correlations = moments / spread / spread.unsqueeze(1)
        self.kept = _independent(correlations)
        """Which columns are independent, ``C`` of them."""
        of_kept = correlations[self.kept]  # [C, d]
        weights = torch.linalg.solve(of_kept[:, self.kept], of_kept) if self.kept else of_kept
        self._to_all = (weights / spread[self.kept].unsqueeze(1) * spread).float()
        self._mean = mean.float()

    def of(self, data: TensorDictBase, *, is_next: bool = False) -> Tensor:
        """Return the independent columns of rows ``[T]``, or of their next ones, ``[T, C]``."""
        return self._wide(data, is_next)[:, self.kept]

    def states(self, numbers: Tensor) -> TensorDict:
        """Return what a policy reads in states ``[k, C]``; an agent that may do nothing by these may do anything."""
        wide = (numbers - self._mean[self.kept]) @ self._to_all + self._mean
        wide[:, self.kept] = numbers
        found = TensorDict({}, [len(numbers)])
        parts = wide.split([self._shapes[key].numel() for key in self._keys], -1)
        for key, part in zip(self._keys, parts):
            values = part.reshape(-1, *self._shapes[key])
            found.set(key, values > 0.5 if key in self._booleans else values)
        if ACTION_MASK in self._keys:
            mask = found.get(ACTION_MASK)
            found.set(ACTION_MASK, mask | ~mask.any(-1, keepdim=True))
        return found

    def _wide(self, data: TensorDictBase, is_next: bool) -> Tensor:
        parts = [data.get(next_key(key) if is_next else key) for key in self._keys]
        return torch.cat([part.as_subclass(Tensor).flatten(1).float().cpu() for part in parts], -1)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean ``[d]`` and the covariance ``[d, d]`` of rows ``[R, d]``, in double precision."""
    mean = rows.mean(0, dtype=torch.float64)
    found = mean.new_zeros(len(mean), len(mean))
    for part in rows.split(max(1, _BLOCK // max(1, rows.shape[1]))):
        centred = part - mean
        found.addmm_(centred.T, centred)
    return mean, found / len(rows)


def _independent(correlations: Tensor) -> list[int]:
    """Return which columns the ones before do not tell linearly, in order, by their correlations ``[d, d]``."""
    rest, kept = correlations.clone(), []
    for index in range(len(rest)):
        left = rest[index, index].clone()  # what the kept ones leave of its variance
        if left > _NEW**2:
            kept.append(index)
            row = rest[index, index:].clone()
            rest[index:, index:].addr_(row, row, alpha=-1 / left.item())
    return kept
