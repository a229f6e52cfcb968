"""What a block may change and is put back after it: the random generators, the buffers and the modes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torchrl.checkpoint import GlobalRNGState
from torchrl.modules import set_recurrent_mode


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put the global random generators (Python, NumPy, torch on every device) back on leaving."""
    state = GlobalRNGState().state_dict()
    try:
        yield
    finally:
        GlobalRNGState().load_state_dict(state)


@contextmanager
def preserved_buffers(module: nn.Module) -> Iterator[None]:
    """Put the values of a module's buffers back on leaving: running statistics follow every pass in training mode."""
    saved = {name: value.clone() for name, value in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in module.named_buffers():
                if name in saved:  # others were made in the block, such as those of a loss's default estimator
                    value.copy_(saved[name])


@contextmanager
def evaluation_mode(policy: Any) -> Iterator[None]:
    """Set a module to ``eval()`` and give each of its submodules its own mode back on leaving.

    TorchRL's memory takes one step of each row in the block, whatever its module's default is: what acts sees
    environments side by side, which are no steps of time. Losses within it read time as always.
    """
    modules = list(policy.modules()) if isinstance(policy, nn.Module) else []
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with set_recurrent_mode(False):
            yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag
