"""Weights of samples relative to their batch, as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_marl_offline.core.masked_mean import masked_mean
from torchrl_marl_offline.core.synchronized import joined_max


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


_CANDIDATES, _PASSES = 13, 5


def bounded_weights(x: Tensor, temperature: Tensor | float, mask: Tensor | None = None, *, max_weight: float) -> Tensor:
    r"""Return :math:`\min(e^{\alpha x - \lambda}, w_{max})` of mean 1: exponential weights, none far above the mean.

    Among all weights of mean 1 that are at most :math:`w_{max}` these have the largest
    :math:`\alpha\,\mathbb{E}[w x] - \mathbb{E}[w \log w]`. So :math:`\mathbb{E}[w x]` never falls where
    :math:`\alpha` rises, up to equal weights for the largest :math:`1 / w_{max}` of all ``x``; and the effective sample
    size, :math:`(\mathbb{E} w)^2 / \mathbb{E} w^2`, is at least :math:`1 / w_{max}`.

    Weights are :math:`\propto e^{\alpha \min(x - t, 0)}`. The :math:`t` above which they are equal is looked for among
    candidates, then among candidates between the best two, and so on: tensor operations of fixed shapes, for which no
    host waits.

    Args:
        x: ``[*B, k]``, standardized over what ``mask`` admits.
        temperature: :math:`\alpha`, at least 0; 0 gives equal weights.
        mask: false for what does not count, which gets the weight 0.
        max_weight: :math:`w_{max}`, above 1.

    Shape:
        As ``x``.
    """
    x, dims = x.detach(), tuple(range(x.ndim))
    rows = tuple(dim + 1 for dim in dims)
    high, low = batch_max(x, mask, dims), -batch_max(-x, mask, dims)
    ramp = torch.arange(_CANDIDATES, device=x.device, dtype=x.dtype).reshape(-1, *(1,) * x.ndim)
    for _ in range(_PASSES):
        step = (high - low) / (_CANDIDATES - 1)
        weights = _powers(temperature * (x - (high - step * ramp)).clamp_max(0), mask)  # [K, *B, k]
        above = (masked_mean(weights, mask, rows) * max_weight < 1).sum().clamp_max(_CANDIDATES - 1)
        low = high - step * above  # the highest candidate at which no weight exceeds the bound
        high = high - step * (above - 1).clamp_min(0)
    weight = _powers(temperature * (x - low).clamp_max(0), mask)
    return weight / masked_mean(weight, mask).clamp_min(torch.finfo(x.dtype).tiny)


def _powers(x: Tensor, mask: Tensor | None) -> Tensor:
    power = x.exp()
    return power if mask is None else torch.where(mask, power, torch.zeros_like(power))
