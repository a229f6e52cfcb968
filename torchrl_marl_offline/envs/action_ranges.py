"""Continuous actions of unequal sizes and bounds, as one rectangular tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_marl_offline.core.component_bounds import Bound


class ActionRanges:
    """What each agent's part of the action tensor ``[B, n, a]`` stands for.

    Actions are padded to the widest; padding is ignored. Where all bounds agree they are the layout's; where they
    differ between agents or components, every component is [-1, 1] in the layout and scaled linearly to its own range,
    or, with ``own_bounds``, has its own bounds in the layout, too; padding is then the constant 0.

    Args:
        lows: lower bounds of each agent's components.
        highs: upper bounds.
        device: where actions lie.
        own_bounds: leave actions in their own units.

    Attributes:
        low: the layout's lower bound, a number or ``[n, a]``.
        high: its upper bound.
        scaled: whether actions are mapped to [-1, 1].
    """

    def __init__(self, lows: Sequence, highs: Sequence, *, device: torch.device, own_bounds: bool = False) -> None:
        self._low, self._high = (
            [torch.as_tensor(each, dtype=torch.float32, device=device) for each in bounds] for bounds in (lows, highs)
        )
        self.sizes = tuple(len(low) for low in self._low)
        low, high = torch.cat(self._low), torch.cat(self._high)
        self._same = bool((low == low[0]).all() and (high == high[0]).all())
        if not (low.isfinite() & high.isfinite() & (low < high)).all():
            raise ValueError(f"Continuous actions need finite bounds, got {low.tolist()} and {high.tolist()}.")
        self.scaled = not (self._same or own_bounds)
        self.low: Bound
        self.high: Bound
        if self.scaled:
            self.low, self.high = -1.0, 1.0
        elif self._same:
            self.low, self.high = low[0].item(), high[0].item()
        else:
            widest = max(self.sizes)
            self.low, self.high = (
                tuple(tuple(each.tolist() + [0.0] * (widest - len(each))) for each in bounds)
                for bounds in (self._low, self._high)
            )

    def split(self, action: Tensor) -> list[Tensor]:
        """Return each agent's own action ``[B, a_i]``, clipped to its bounds: -> n tensors."""
        if not (self._same or self.scaled):
            triples = zip(action.unbind(1), self._low, self._high)
            return [each[..., : len(low)].clamp(low, high) for each, low, high in triples]
        low, high = self.low, self.high
        assert not isinstance(low, tuple) and not isinstance(high, tuple)
        action = action.clamp(low, high)
        parts = [action[:, i, :size] for i, size in enumerate(self.sizes)]
        if self._same:
            return parts
        triples = zip(parts, self._low, self._high)
        # clipped again: scaling may round beyond the bound
        return [(low + (high - low) * (each + 1) / 2).clamp(low, high) for each, low, high in triples]


def pad_last(tensors: Sequence[Tensor], size: int) -> Tensor:
    """Stack n tensors ``[B, k_i]`` into ``[B, n, size]``, with zeros behind the shorter ones."""
    if all(each.shape[-1] == size for each in tensors):
        return torch.stack(list(tensors), 1)
    padded = tensors[0].new_zeros(len(tensors[0]), len(tensors), size)
    for i, each in enumerate(tensors):
        padded[:, i, : each.shape[-1]] = each
    return padded
