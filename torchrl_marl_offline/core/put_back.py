"""What a block may change and is put back after it: the random generators, the modes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torchrl.checkpoint import GlobalRNGState


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put the global random generators (Python, NumPy, torch on every device) back on leaving."""
    state = GlobalRNGState().state_dict()
    try:
        yield
    finally:
        GlobalRNGState().load_state_dict(state)


@contextmanager
def evaluation_mode(policy: Any) -> Iterator[None]:
    """Set a module to ``eval()`` and give each of its submodules its own mode back on leaving."""
    modules = list(policy.modules()) if isinstance(policy, nn.Module) else []
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag
