"""The optimizer that training uses where none is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torchrl.objectives import LossModule


def default_optimizer(loss: LossModule, *, lr: float = 3e-4) -> torch.optim.Adam:
    """Adam over the parameters of ``loss`` that require gradients, in the fused form: one kernel for all of them.

    On a GPU its step count lies there, too, so that a CUDA graph can hold the step.
    """
    parameters = [p for p in loss.parameters() if p.requires_grad]
    on_gpu = bool(parameters) and parameters[0].device.type == "cuda"
    return torch.optim.Adam(parameters, lr=lr, fused=True, capturable=on_gpu)
