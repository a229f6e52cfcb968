"""Means over what counts: entries that a mask leaves out are not looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_marl_offline.core.synchronized import joined_mean, joined_sums


def masked_mean(x: Tensor, mask: Tensor | None = None, dims: tuple[int, ...] | None = None) -> Tensor:
    """Average ``x`` over ``dims`` (default: all), leaving out what ``mask`` marks false.

    Values behind a false mask may be NaN. An empty selection gives zero. ``dims`` holds the rows of the batch: where
    these are shared out over processes, the mean is that of the joined batch.
    """
    dims = tuple(range(x.ndim)) if dims is None else dims
    if mask is None:
        return joined_mean(x.mean(dims)) if dims else x
    mask = mask.expand_as(x)
    if not dims:
        return torch.where(mask, x, torch.zeros_like(x))  # torch takes an empty dims for all of them
    total, count = joined_sums(torch.where(mask, x, torch.zeros_like(x)).sum(dims), mask.sum(dims))
    return total / count.clamp_min(1)
