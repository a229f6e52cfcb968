"""The mathematics of the losses as pure functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from torchrl_marl_offline.core.masked_mean import masked_mean


def team_reward(reward: Tensor, how: Literal["mean", "sum"]) -> Tensor:
    """Reduce per-agent rewards ``[*B, n, 1]`` to the team's ``[*B, 1, 1]``.

    The mean is the recipe's definition (Lee et al. 2026, section 3); its released code sums.
    """
    return reward.mean(-2, keepdim=True) if how == "mean" else reward.sum(-2, keepdim=True)


def expectile_weighted_square(diff: Tensor, expectile: Tensor | float) -> Tensor:
    r"""Return :math:`|\tau - 1(d < 0)|\, d^2`, the asymmetric square of implicit Q-learning (eq. 10)."""
    weight = torch.where(diff > 0, expectile, 1.0 - expectile)
    return weight * diff.pow(2)


def scale_invariant(value: Tensor, mask: Tensor | None = None, epsilon: float = 1e-6) -> Tensor:
    r"""Return :math:`(Q - \mathbb{E} Q) / \mathbb{E} |Q|` with detached statistics: the actor's side (eq. 4)."""
    detached = value.detach()
    return (value - masked_mean(detached, mask)) / (masked_mean(detached.abs(), mask) + epsilon)


def mean_magnitude(value: Tensor, mask: Tensor | None = None, epsilon: float = 1e-6) -> Tensor:
    r"""Return :math:`\mathbb{E}|Q|` over the rows of ``[*B, k]``, of each of the ``k`` for itself, without gradient."""
    return masked_mean(value.detach().abs(), mask, tuple(range(value.ndim - 1))) + epsilon


def soft_clipped(values: Tensor, min_weight: float) -> Tensor:
    r"""Return :math:`\lambda \min_k Q^k + (1 - \lambda) \max_k Q^k` of heads ``[*B, H]``, as ``[*B, 1]``."""
    lowest = values.amin(-1, keepdim=True)
    if min_weight == 1.0:
        return lowest
    return min_weight * lowest + (1 - min_weight) * values.amax(-1, keepdim=True)


def standardize(x: Tensor, mask: Tensor | None = None, epsilon: float = 1e-6) -> Tensor:
    """Subtract the mean and divide by the standard deviation over all entries that ``mask`` admits."""
    centred = x - masked_mean(x, mask)
    return centred / (masked_mean(centred.pow(2), mask).sqrt() + epsilon)


def advantage_weight(
    advantage: Tensor,
    temperature: Tensor | float,
    *,
    exponent_range: tuple[float, float] = (-50.0, 10.0),
    max_weight: float | None = 100.0,
) -> Tensor:
    r"""Return :math:`\min(e^{\mathrm{clip}(\alpha A)}, w_{max})`, advantage-weighted regression's weight (eq. 11)."""
    weight = (temperature * advantage).clamp(*exponent_range).exp()
    return weight if max_weight is None else weight.clamp_max(max_weight)


def effective_sample_size(weight: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Return :math:`(\sum w)^2 / (N \sum w^2)`, the share of the batch that the weights let count, in (0, 1]."""
    return masked_mean(weight, mask).pow(2) / masked_mean(weight.pow(2), mask).clamp_min(1e-12)
