"""Distances between rows of numbers of unlike units."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 256
_RELATIVE = 1e-6
"""Deviation of a number that never changes but by rounding, as a share of its mean."""


def nearest(queries: Tensor, references: Tensor) -> Tensor:
    """Return the distance ``[Q]`` of each of ``[Q, d]`` to the nearest of ``[R, d]``, exactly, block by block."""
    exact = "donot_use_mm_for_euclid_dist"  # the faster product loses the digits of small distances
    return torch.cat([torch.cdist(block, references, compute_mode=exact).amin(-1) for block in queries.split(_BLOCK)])


def deviation(values: Tensor) -> Tensor:
    """Return the standard deviation of each component of ``[R, d]``; 1 where it never changes."""
    return or_one(values.std(0, correction=0), values.mean(0))


def or_one(deviations: Tensor, means: Tensor) -> Tensor:
    """Return standard deviations, 1 where they are of a number that never changes, both ``[d]``."""
    is_changing = deviations > _RELATIVE * means.abs().clamp_min(_RELATIVE)
    return deviations.where(is_changing, torch.ones_like(deviations))
