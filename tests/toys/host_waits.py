"""Which operations of a step would let the host wait for a GPU, or fail there, seen without one."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TO_THE_HOST = ("_local_scalar_dense", "equal")
"""A value goes back to the host."""
SIZED_BY_VALUES = ("nonzero", "masked_select", "unique", "_unique2", "bincount", "repeat_interleave")
"""The size of the result depends on values."""
FROM_THE_HOST = ("lift_fresh", "lift_fresh_copy")
"""A tensor is made of Python's numbers, and copied; neither can a CUDA graph hold such a copy."""

COPIES = ("tolist", "cpu", "numpy", "__array__")
"""Called in Python, and no operation where the tensor is on the CPU already."""
FACTORIES = {torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.eye, torch.linspace}
FACTORIES |= {torch.rand, torch.randn, torch.randint, torch.randperm}
"""What they make lies on the CPU unless they are told a device; beside tensors of a GPU it is an error."""
NO_DEVICE = " on no device"
"""After the name of such a call."""


class _Calls(TorchFunctionMode):
    def __init__(self, found: set[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if (name := getattr(function, "__name__", "")) in COPIES:
            self.found.add(name)
        result = function(*args, **(kwargs or {}))
        if function in FACTORIES and (kwargs or {}).get("device") is None and result.dim() and len(result):
            self.found.add(f"{name}{NO_DEVICE}")
        return result


class HostWaits(TorchDispatchMode):
    """Writes down the operations within the block, and in ``found`` those at which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.found: set[str] = set()
        self._calls = _Calls(self.found)

    def __enter__(self) -> HostWaits:
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._calls.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function.name().partition("::")[2]
        plain, _, overload = name.partition(".")
        self.names.add(plain)
        by_mask = plain in ("index", "index_put", "index_put_") and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1])
        )
        sized = plain in SIZED_BY_VALUES and overload != "self_int"  # repeat_interleave by one number is known
        if by_mask or sized or plain in TO_THE_HOST + FROM_THE_HOST:
            self.found.add(name)
        return function(*args, **(kwargs or {}))
