"""Distances between rows of numbers of unlike units."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 256
RELATIVE = 1e-6
"""Deviation of a number that never changes but by rounding, as a share of its mean."""


def nearest(queries: Tensor, references: Tensor) -> Tensor:
    """Return the distance ``[Q]`` of each of ``[Q, d]`` to the nearest of ``[R, d]``, exactly, block by block."""
    exact = "donot_use_mm_for_euclid_dist"  # the faster product loses the digits of small distances
    return torch.cat([torch.cdist(block, references, compute_mode=exact).amin(-1) for block in queries.split(_BLOCK)])


def deviation(values: Tensor) -> Tensor:
    """Return the standard deviation of each component of ``[R, d]``; 1 where it never changes."""
    found = values.std(0, correction=0)
    return found.where(found > RELATIVE * values.mean(0).abs().clamp_min(RELATIVE), torch.ones_like(found))
