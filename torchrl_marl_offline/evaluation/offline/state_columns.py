"""The few numbers that a task's state is made of: what agents observe, the state and the masks repeat each other."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.layout import ACTION_MASK, AGENT_MASK, OBSERVATION, STATE, next_key
from torchrl_marl_offline.evaluation.distances import deviation

_KEYS = (OBSERVATION, STATE, ACTION_MASK, AGENT_MASK)
_COMPARED = 4000
_NEW = 1e-3
"""Deviation of what the columns before do not tell of one, in deviations of its own, above which it is kept."""


class StateColumns:
    """What a policy reads as one row of numbers, and the columns of it that the others follow from linearly.

    An agent's observation often holds the others' places, relative to it, and the state holds all of them once more. A
    model that predicted each by itself would let them drift apart.

    Args:
        data: rows ``[T]`` with their next ones.
        seed: chooses the rows on which columns are compared.
    """

    def __init__(self, data: TensorDictBase, *, seed: int) -> None:
        self._keys = [key for key in _KEYS if data.get(key, None) is not None]
        self._shapes = {key: data.get(key).shape[1:] for key in self._keys}
        self._booleans = {key for key in self._keys if data.get(key).dtype == torch.bool}
        all_rows = torch.cat([self._wide(data, is_next) for is_next in (False, True)]).double()
        g = torch.Generator().manual_seed(seed)
        some = all_rows[torch.randperm(len(all_rows), generator=g)[:_COMPARED]]
        self.kept = _independent((some - all_rows.mean(0)) / deviation(all_rows))
        """Which columns are independent, ``C`` of them."""
        known = _with_one(all_rows[:, self.kept])
        self._to_all = torch.linalg.lstsq(known, all_rows, driver="gelsd").solution.float()

    def of(self, data: TensorDictBase, *, is_next: bool = False) -> Tensor:
        """Return the independent columns of rows ``[T]``, or of their next ones, ``[T, C]``."""
        return self._wide(data, is_next)[:, self.kept]

    def states(self, numbers: Tensor) -> TensorDict:
        """Return what a policy reads in states ``[k, C]``; an agent that may do nothing by these may do anything."""
        wide = _with_one(numbers) @ self._to_all
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


def _with_one(numbers: Tensor) -> Tensor:
    return torch.cat([numbers, numbers.new_ones(*numbers.shape[:-1], 1)], -1)


def _independent(columns: Tensor) -> list[int]:
    """Return which of columns ``[R, d]`` the ones before do not tell linearly, in order."""
    columns = columns - columns.mean(0)
    basis, kept = columns.new_zeros(len(columns), 0), []
    for index in range(columns.shape[1]):
        rest = columns[:, index]
        for _ in range(2):  # twice, for the digits that the first subtraction loses
            rest = rest - basis @ (basis.T @ rest)
        if rest.norm() > _NEW * len(columns) ** 0.5:
            kept.append(index)
            basis = torch.cat([basis, (rest / rest.norm()).unsqueeze(1)], 1)
    return kept
