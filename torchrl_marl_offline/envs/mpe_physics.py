"""The physics of the multi-agent particle environments (MPE), for all tasks ``mpe/*``."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Integration = Literal["velocity_first", "position_first"]

_DT = 0.1
_DAMPING = 0.25
_CONTACT_FORCE = 100.0
_CONTACT_MARGIN = 1e-3


def contact_forces(position: Tensor, bodies: Tensor, reach: float | Tensor) -> Tensor:
    """Return the contact force of ``m`` bodies on each of ``n`` discs.

    A body pushes a disc away by ``100 · Δp/|Δp| · k · log(1 + exp(-(|Δp| - reach)/k))`` with ``k = 0.001``. Bodies at
    exactly the disc's place, such as the disc itself, do not push it (the formula has no direction there).

    Args:
        position: of the discs, ``[B, n, 2]``.
        bodies: positions of everything that they can touch, ``[B, m, 2]``.
        reach: sum of the two radii, ``[n, m]`` or one number.

    Returns:
        forces ``[B, n, 2]``.
    """
    away = position.unsqueeze(-2) - bodies.unsqueeze(-3)  # [B, n, m, 2], from the body to the disc
    distance = torch.linalg.vector_norm(away, dim=-1, keepdim=True)
    reach = reach.unsqueeze(-1) if isinstance(reach, Tensor) else reach
    overlap = _CONTACT_MARGIN * F.softplus((reach - distance) / _CONTACT_MARGIN)
    return (away * (_CONTACT_FORCE * overlap / distance.clamp_min(1e-12))).sum(-2)


def integrate(
    position: Tensor, velocity: Tensor, force: Tensor, *, integration: Integration, max_speed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return positions and velocities, each ``[B, n, 2]``, a step of 0.1 later, for unit masses.

    ``v <- 0.75 v + 0.1 force``, shortened to ``max_speed`` (``[n, 1]``) where given, and ``p <- p + 0.1 v`` with the
    new velocity (``"velocity_first"``) or with the old one (``"position_first"``).
    """
    new_velocity = velocity * (1 - _DAMPING) + force * _DT
    if max_speed is not None:
        speed = torch.linalg.vector_norm(new_velocity, dim=-1, keepdim=True)
        new_velocity = torch.where(speed > max_speed, new_velocity / speed * max_speed, new_velocity)
    moving = new_velocity if integration == "velocity_first" else velocity
    return position + moving * _DT, new_velocity


def checked_integration(integration: str) -> Integration:
    """Return ``integration`` if it is one of the two orders of integration."""
    if integration not in get_args(Integration):
        raise ValueError(f"integration must be 'velocity_first' or 'position_first', got {integration!r}.")
    return integration


def others_index(n: int, device: torch.device) -> Tensor:
    """Return where the pairs (i, j), j ≠ i, lie among all n² pairs, in order: int64 ``[n (n - 1)]``."""
    return torch.tensor([n * i + j for i in range(n) for j in range(n) if i != j], device=device)
