"""Statistics of a batch whose rows are shared out over several processes: those of the joined batch.

Losses ask here for sums, means and noise. Alone, a process gets its own back. Within :func:`joined_batch` every
process holds one of ``W`` equal shares of the rows (the first dimension), and what is returned belongs to all of them.
Losses, their gradients and metrics are meant to be *averaged* over the processes afterwards: a mean over all rows of a
share needs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrl_marl_offline.core.parts import part

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

JOINING = "joining statistics"


@dataclass(frozen=True)
class Shares:
    """Which processes share a batch, and which share this one holds: ``rank`` of ``count``."""

    group: ProcessGroup
    rank: int
    count: int


_shares: Shares | None = None


@contextmanager
def joined_batch(shares: Shares) -> Iterator[None]:
    """Within the block, batches are shares of a joined one; every process must run the same losses in it."""
    global _shares
    outer, _shares = _shares, shares
    try:
        yield
    finally:
        _shares = outer


def is_shared() -> bool:
    """Whether the batch at hand is a share of a joined one."""
    return _shares is not None


def joined_sums(total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sum over rows and the number of rows in it, of the same shape, for the joined batch."""
    if _shares is None:
        return total, count
    total, count = _sum(torch.stack([total, count.to(total.dtype)])).unbind()
    return total, count


def joined_mean(mean: Tensor) -> Tensor:
    """Return a mean over all rows, none of which is left out, for the joined batch."""
    return mean if _shares is None else _sum(mean) / _shares.count


def share_of_sum(total: Tensor) -> Tensor:
    """Return a loss whose average over the processes is the sum over the joined batch."""
    return total if _shares is None else total * _shares.count


def share_of_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return a loss whose average over the processes is the mean over the joined batch, of which 0 rows make 0.

    Args:
        total: sum over rows.
        count: their number, or the sum of their weights.
    """
    if _shares is not None:
        count = _joined(count.detach()) / _shares.count
    return total / torch.where(count == 0, torch.ones_like(count), count)


def joined_max(x: Tensor) -> Tensor:
    """Return the largest value of the joined batch, entry by entry, without gradient."""
    return x.detach() if _shares is None else _joined(x.detach(), "max")


def joined_shape(shape: torch.Size) -> torch.Size:
    """Return the shape that a tensor of this shape, rows first, has in the joined batch."""
    return shape if _shares is None or not shape else torch.Size([shape[0] * _shares.count, *shape[1:]])


def own_rows(joined: Tensor) -> Tensor:
    """Return this process's rows out of the joined batch's."""
    return joined if _shares is None or not joined.ndim else joined.chunk(_shares.count)[_shares.rank]


def _sum(x: Tensor) -> Tensor:
    return _SumOverProcesses.apply(x, _shares.group) if x.requires_grad else _joined(x)


def _joined(x: Tensor, operation: str = "sum") -> Tensor:
    with part(JOINING):
        return _all_reduce(x, _shares.group, operation)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over the processes.

    All of them go on with the sum, so the derivative by a share is the sum of what all of them make of it; averaged
    with the others' gradients, a loss that every process computes alike is then counted once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(gradient, ctx.group), None


def _all_reduce(x: Tensor, group: ProcessGroup, operation: str = "sum") -> Tensor:
    # the functional form, which can be traced and compiled
    from torch.distributed import _functional_collectives as collectives

    return collectives.wait_tensor(collectives.all_reduce(x.contiguous(), operation, group))
