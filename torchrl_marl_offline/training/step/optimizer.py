"""The optimizer that training uses where none is given, and what a CUDA graph asks of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import LEARNING_RATE

if TYPE_CHECKING:
    from torchrl.objectives import LossModule


@checked
def default_optimizer(loss: LossModule, *, lr: Annotated[float, LEARNING_RATE] = 3e-4) -> torch.optim.Adam:
    """Adam over the parameters of ``loss`` that require gradients, in the fused form: one kernel for all of them."""
    return torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=lr, fused=True)


def can_be_captured(optimizer: Any) -> bool:
    """Say whether a CUDA graph can hold the optimizer's step: whether it counts its steps, if at all, on the device.

    Those of torch do where they are fused or ``capturable``, or do not know that word.
    """
    groups = getattr(optimizer, "param_groups", ())
    return all(group.get("capturable", True) or group.get("fused") for group in groups)


@contextmanager
def marked_capturable(optimizer: Any) -> Iterator[None]:
    """Within the block, tell torch that the step can be captured, which it does not see of a fused optimizer.

    Not from the start: torch warns of steps that are marked so and not captured, and a checkpoint would keep the mark,
    with which the run could not go on on a CPU.
    """
    groups = [group for group in getattr(optimizer, "param_groups", ()) if "capturable" in group]
    before = [group["capturable"] for group in groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, mark in zip(groups, before):
            group["capturable"] = mark
