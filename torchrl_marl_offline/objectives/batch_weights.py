"""Weights of samples relative to their batch, as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_marl_offline.objectives.functional import masked_mean
from torchrl_marl_offline.objectives.synchronized import joined_max


def batch_max(x: Tensor, mask: Tensor | None, dims: tuple[int, ...]) -> Tensor:
    """Return the largest entry over ``dims`` that ``mask`` admits, kept as dimensions of 1; 0 where it admits none.

    ``dims`` holds the rows of the batch; there is no gradient.
    """
    x = x.detach()
    if mask is not None:
        x = torch.where(mask, x, torch.full_like(x, -torch.inf))
    largest = joined_max(x.amax(dims, keepdim=True))
    return torch.where(largest.isfinite(), largest, torch.zeros_like(largest))


def batch_softmax(x: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Return :math:`N e^{x_j} / \sum_m e^{x_m}`, each column of ``[*B, k]`` over its ``N`` rows: weights of mean 1.

    What ``mask`` marks false neither counts nor has a weight.
    """
    dims = tuple(range(x.ndim - 1))
    weight = (x - batch_max(x, mask, dims)).exp()
    if mask is not None:
        weight = torch.where(mask, weight, torch.zeros_like(weight))
    return weight / masked_mean(weight, mask, dims).clamp_min(torch.finfo(x.dtype).tiny)
