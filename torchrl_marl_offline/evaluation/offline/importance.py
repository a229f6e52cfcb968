r"""Importance sampling and doubly robust estimates, as functions of weights, rewards and values.

Episodes are rows, steps are columns: rewards ``r`` ``[E, T]`` are 0 behind an episode's end, and the logarithms of
ratios ``[E, T]`` are 0 there, so that an episode that has ended keeps its weight. ``w_{e,t}`` is the product of the
ratios :math:`\pi(u|o) / b(u|o)` up to step ``t``.

* per-decision (Precup et al. 2000): :math:`\frac1E \sum_e \sum_t \gamma^t w_{e,t} r_{e,t}`
* weighted per-decision (Thomas 2015): :math:`\sum_t \gamma^t \sum_e w_{e,t} r_{e,t} / \sum_e w_{e,t}`
* weighted doubly robust (Thomas and Brunskill 2016), with :math:`\bar w_{e,t} = w_{e,t} / \sum_{e'} w_{e',t}` and
  :math:`\bar w_{e,-1} = 1/E`:
  :math:`\sum_e \sum_t \gamma^t (\bar w_{e,t} (r_{e,t} - Q_{e,t}) + \bar w_{e,t-1} V_{e,t})`
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 600.0
"""Of a weight's logarithm: e^600 is still a number."""


def padded(values: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Return rows ``[T, *k]`` of episodes, end to end, as ``[E, longest, *k]`` with zeros behind each end."""
    found = values.new_zeros((len(starts), int(lengths.max()), *values.shape[1:]))
    step = torch.arange(found.shape[1])
    inside = step < lengths.unsqueeze(1)  # [E, longest]
    found[inside] = values[(starts.unsqueeze(1) + step)[inside]]
    return found


def log_weights(log_ratios: Tensor, clip: float | None = None) -> tuple[Tensor, float]:
    """Return the logarithms of the weights ``[E, T, *k]``, and the share of them that ``clip`` made smaller.

    Args:
        log_ratios: of each step, ``[E, T, *k]``; -inf where the policy never does what was logged.
        clip: the largest weight, or ``None`` for none.
    """
    found = log_ratios.cumsum(1)
    found = torch.where(found.isnan(), -torch.inf, found)
    if clip is None:
        return found.clamp_max(LARGEST), (found > LARGEST).double().mean().item()
    limit = torch.tensor(float(clip), dtype=found.dtype).log()
    return found.minimum(limit), (found > limit).double().mean().item()


def per_decision(weights: Tensor, rewards: Tensor, gamma: float, counts: Tensor) -> Tensor:
    """Return the per-decision estimates of resamples ``[R]``.

    Args:
        weights: logarithms, ``[E, T]``.
        rewards: ``[E, T]``.
        gamma: discount.
        counts: ``[R, E]`` how often each episode is in each resample, float64.
    """
    earned = weights.exp() * rewards * _discounts(rewards, gamma)  # [E, T]
    return counts @ earned.sum(1) / counts.sum(1)


def weighted_per_decision(weights: Tensor, rewards: Tensor, gamma: float, counts: Tensor) -> Tensor:
    """Return the self-normalized per-decision estimates of resamples ``[R]``; arguments as of :func:`per_decision`.

    Where no episode of a resample has any weight at a step, nothing is added from there on.
    """
    relative = _relative(weights)
    shares = counts @ (relative * rewards), counts @ relative  # [R, T]
    return (_ratio(*shares) * _discounts(rewards, gamma)).sum(1)


def weighted_doubly_robust(
    weights: Tensor, rewards: Tensor, action_values: Tensor, state_values: Tensor, gamma: float, counts: Tensor
) -> Tensor:
    """Return the weighted doubly robust estimates of resamples ``[R]``.

    Args:
        weights: logarithms, ``[E, T]``.
        rewards: ``[E, T]``.
        action_values: Q at the logged actions, ``[E, T]``; 0 behind the ends.
        state_values: V of the evaluated policy, likewise.
        gamma: discount.
        counts: ``[R, E]`` how often each episode is in each resample, float64.
    """
    relative = _relative(weights)
    before = torch.cat([torch.ones_like(relative[:, :1]), relative[:, :-1]], 1)
    corrections = _ratio(counts @ (relative * (rewards - action_values)), counts @ relative)  # [R, T]
    values = _ratio(counts @ (before * state_values), counts @ before)
    return ((corrections + values) * _discounts(rewards, gamma)).sum(1)


def effective_episodes(weights: Tensor) -> float:
    r"""Return the effective sample size :math:`(\sum_e w_e)^2 / \sum_e w_e^2` of whole episodes' weights ``[E, T]``.

    As many equal weights would be worth as much (Kong 1992); 0 where no episode has any weight.
    """
    last = weights[:, -1]
    if not last.isfinite().any():
        return 0.0
    relative = (last - last.max()).exp()
    return (relative.sum().square() / relative.square().sum()).item()


def _relative(weights: Tensor) -> Tensor:
    """Return weights divided by the largest of their step, which cancels where they are normalized."""
    largest = weights.amax(0, keepdim=True)
    return (weights - torch.where(largest.isfinite(), largest, 0.0)).exp()


def _ratio(part: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, part / total.clamp_min(1e-300), 0.0)


def _discounts(rewards: Tensor, gamma: float) -> Tensor:
    return torch.full((), gamma, dtype=torch.float64) ** torch.arange(rewards.shape[1], dtype=torch.float64)
