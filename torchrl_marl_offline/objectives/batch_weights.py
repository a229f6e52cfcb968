"""Weights of samples relative to their batch, as pure functions of tensors."""

from __future__ import annotations

import math

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


_CANDIDATES = 33
_EXPONENTS = (1e-4, 1e4)  # of standardized values


def tempered_weights(
    x: Tensor, temperature: Tensor | float, mask: Tensor | None = None, *, min_sample_size: float
) -> Tensor:
    r"""Return :math:`w = e^{\beta x} / \mathbb{E}\,e^{\beta x}` with as much of ``temperature`` as the batch bears.

    :math:`\beta` is the smaller of ``temperature`` and the exponent at which the effective sample size,
    :math:`(\mathbb{E} w)^2 / \mathbb{E} w^2`, falls to ``min_sample_size``. So the weighted mean of ``x`` never falls
    where ``temperature`` rises, and no weight is cut: the largest ``x`` have the largest weights, however few they are.

    The exponent is looked for among candidates, then among candidates between the best two: tensor operations of fixed
    shapes, for which no host waits.

    Args:
        x: ``[*B, k]``, standardized over what ``mask`` admits.
        temperature: at least 0; 0 gives equal weights.
        mask: false for what does not count, which gets the weight 0.
        min_sample_size: share of the batch, in (0, 1).

    Shape:
        As ``x``.
    """
    x = x.detach()
    x = x - batch_max(x, mask, tuple(range(x.ndim)))
    limit = _exponent_of_spread(x, math.sqrt(1 / min_sample_size - 1), mask)
    weight = _powers(limit.clamp_max(temperature) * x, mask)
    return weight / masked_mean(weight, mask).clamp_min(torch.finfo(x.dtype).tiny)


def _exponent_of_spread(x: Tensor, spread: float, mask: Tensor | None) -> Tensor:
    """Return the exponent of ``x`` (at most 0) at which the weights' deviation is ``spread`` times their mean."""
    ramp = torch.arange(_CANDIDATES, device=x.device, dtype=x.dtype).reshape(-1, *(1,) * x.ndim)
    low, step = math.log(_EXPONENTS[0]), math.log(_EXPONENTS[1] / _EXPONENTS[0]) / (_CANDIDATES - 1)
    for _ in range(2):
        found = _spread_of(_powers((low + step * ramp).exp() * x, mask), mask).reshape(-1)  # [K], rising
        below = (found[1:] < spread).sum().clamp_max(_CANDIDATES - 2)  # the last candidate below, but not the last
        ends = found.gather(0, torch.stack([below, below + 1]))
        low, step = low + step * below, step / (_CANDIDATES - 1)
    share = ((spread - ends[0]) / (ends[1] - ends[0]).clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
    return (low + step * (_CANDIDATES - 1) * share).exp()


def _powers(x: Tensor, mask: Tensor | None) -> Tensor:
    power = x.exp()
    return power if mask is None else torch.where(mask, power, torch.zeros_like(power))


def _spread_of(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Return the standard deviation of each of ``[K, *B, k]`` in units of its mean."""
    dims = tuple(range(1, weight.ndim))
    mean = masked_mean(weight, mask, dims).reshape(-1, *(1,) * len(dims)).clamp_min(torch.finfo(weight.dtype).tiny)
    return masked_mean((weight / mean - 1).pow(2), mask, dims).sqrt()
