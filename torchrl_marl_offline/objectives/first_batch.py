"""Checks that look at values: they wait for a GPU, so that they are made of a loss's first batch alone."""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor


class FirstBatch:
    """Whose first batch passed a check.

    Kept beside the owners, not as their attribute, which would tell members of a population apart.
    """

    def __init__(self) -> None:
        self._passed: WeakSet[object] = WeakSet()

    def is_due(self, owner: object, tensor: Tensor) -> bool:
        """Say whether to check now: nothing passed yet, and the tensor may be looked at."""
        return is_readable(tensor) and owner not in self._passed

    def passed(self, owner: object) -> None:
        """Believe the owner's later batches."""
        self._passed.add(owner)

    def forget(self, owner: object) -> None:
        """Check the owner's next batch again."""
        self._passed.discard(owner)


def is_readable(tensor: Tensor) -> bool:
    """Say whether a value may be looked at here: not while it is compiled, traced, mapped or captured."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return type(tensor) is Tensor and get_proxy_mode() is None
