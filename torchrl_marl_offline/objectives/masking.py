"""Which rows and agents of a batch count."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor

from torchrl_marl_offline.core.synchronized import is_shared, share_of_mean, share_of_sum


class Masking:
    """The part of :class:`OfflineMARLLoss` that leaves out rows and agents that do not count."""

    def _row_mask(self, tensordict: TensorDictBase) -> Tensor | None:
        mask = None
        for key in self._loss_mask_keys():
            entry = tensordict.get(key, None)
            if entry is not None:
                entry = entry.reshape(tensordict.batch_size)
                mask = entry if mask is None else mask & entry
        return mask

    def agent_mask(self, tensordict: TensorDictBase, like: Tensor) -> Tensor | None:
        """Return what counts of ``like`` ``[*B, k]``: rows that count, and in them, agents that do (None: all).

        For a team signal (``k = 1``) agents do not matter.
        """
        rows = self._row_mask(tensordict)
        mask = None if rows is None else rows.unsqueeze(-1).expand_as(like)
        agents = tensordict.get(self.tensor_keys.agent_mask, None)
        if agents is not None and _has_agents(like, agents):
            mask = agents if mask is None else mask & agents
        return mask

    def value_mask(self, tensordict: TensorDictBase, like: Tensor) -> Tensor | None:
        """Return what counts of a term ``[*B, n]`` for local state values (None: all).

        Where these are mixed into a team's value, a dead agent's has its share in it, so it is trained too.
        """
        if not self.is_team:
            return self.agent_mask(tensordict, like)
        rows = self._row_mask(tensordict)
        return None if rows is None else rows.unsqueeze(-1).expand_as(like)

    def terminated(self, tensordict: TensorDictBase, like: Tensor) -> Tensor:
        """Return where nothing is bootstrapped, bool of the shape of ``like``, ``[*B, k]``.

        The task has terminated, or, where each agent has a value of its own, the agent is dead or gone in the next
        state: its rows from there on do not count, so nothing trains the value that would stand there. A team's value
        goes on until its episode ends, whoever died.
        """
        ended = tensordict.get(("next", self.tensor_keys.terminated)).expand_as(like)  # [*B, 1] -> [*B, k]
        living = tensordict.get(("next", self.tensor_keys.agent_mask), None)
        return ended if living is None or not _has_agents(like, living) else ended | ~living

    def cut(self, tensordict: TensorDictBase, like: Tensor) -> Tensor:
        """Return after which rows the series along the last dimension of the batch is cut, bool like ``[*B, k]``.

        Where the episode ends, where nothing is bootstrapped, and before a row that does not count or has no target: a
        return must not run on through that row's reward and value.
        """
        ended = tensordict.get(("next", self.tensor_keys.done)).expand_as(like) | self.terminated(tensordict, like)
        row_mask = self.value_learning.row_mask(self, tensordict)
        row_mask = None if row_mask is None else row_mask.unsqueeze(-1).expand_as(like)
        for mask in (self.agent_mask(tensordict, like), row_mask):
            if mask is not None:
                ahead = torch.cat([mask[..., 1:, :], torch.ones_like(mask[..., :1, :])], -2)
                ended = ended | ~ahead
        return ended

    def _sanitize(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Put zeros where a row or an agent does not count: NaN times zero would reach the gradients."""
        rows = self._row_mask(tensordict)
        agents = tensordict.get(self.tensor_keys.agent_mask, None)
        if rows is None and agents is None:
            return tensordict
        next_agents = tensordict.get(("next", self.tensor_keys.agent_mask), agents)
        out = tensordict.copy()
        for key in map(unravel_key, self.in_keys):
            entry = tensordict.get(key, None)
            if entry is None or not entry.is_floating_point():
                continue
            ahead = key[0] == "next" and key != unravel_key(("next", self.tensor_keys.reward))
            for mask in (rows, (next_agents if ahead else agents) if self._is_per_agent(key) else None):
                if mask is not None:
                    mask = mask.reshape(*mask.shape, *(1,) * (entry.ndim - mask.ndim))
                    entry = torch.where(mask, entry, torch.zeros_like(entry))
            out.set(key, entry)
        return out

    def _is_per_agent(self, key: NestedKey) -> bool:
        """Whether ``key`` lies in the group of the agents' mask, now or next."""
        group, path = unravel_key(self.tensor_keys.agent_mask), unravel_key(key)
        path = path[1:] if path[0] == "next" else path
        return not isinstance(path, str) and path[:-1] == group[:-1]

    def _average_agents(self, tensordict: TensorDictBase, elements: Tensor) -> Tensor:
        """Average ``[*B, k]`` over the agents that count."""
        agents = tensordict.get(self.tensor_keys.agent_mask, None)
        if agents is None or elements.shape[-1] != agents.shape[-1]:
            return elements.mean(-1)
        return torch.where(agents, elements, torch.zeros_like(elements)).sum(-1) / agents.sum(-1).clamp_min(1)

    def _reduce(self, tensordict: TensorDictBase, elements: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average ``[*B, k]`` over agents that count, then reduce over rows."""
        rows = self._average_agents(tensordict, elements)
        if mask is not None and self.reduction == "none":
            # a mask that is an argument would drop rows here instead of zeroing them
            rows, mask = torch.where(mask, rows, torch.zeros_like(rows)), None
        weights = self._maybe_get_priority_weight(tensordict)
        options = {"tensordict": tensordict, "mask": mask, "weights": weights}
        if self.reduction == "none" or not is_shared():
            return self._reduce_loss(rows, **options)
        total = self._reduce_loss(rows, reduction="sum", **options)
        if self.reduction == "sum":
            return share_of_sum(total)
        if weights is None and mask is None and self._row_mask(tensordict) is None:
            return total / rows.numel()  # shares are equal
        count = self._reduce_loss(torch.ones_like(rows), reduction="sum", **options)  # or the sum of the weights
        return share_of_mean(total, count)


def _has_agents(like: Tensor, agents: Tensor) -> bool:
    """Whether ``like`` ``[*B, k]`` has an entry for each agent of a mask ``[*B, n]``, and not one for their team."""
    return like.shape[-1] > 1 or agents.shape[-1] == 1
