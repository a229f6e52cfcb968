"""Numbers in a file, mapped into memory: also where the file may only be read."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from tensordict import MemoryMappedTensor


def map_file(file: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a file's numbers as a tensor that lies in the file.

    Where this process may not write the file (its owner is another, or its disk is mounted for reading), what is
    written into the tensor stays in memory.

    Args:
        file: of ``shape`` numbers and nothing else.
        dtype: of them.
        shape: of the tensor.
    """
    if may_write(file):
        return MemoryMappedTensor.from_filename(str(file), dtype, torch.Size(shape))
    size = math.prod(shape)
    return torch.from_file(str(file), shared=False, size=size, dtype=dtype).view(shape)


def may_write(file: Path) -> bool:
    """Say whether this process may write a file: by opening it, since its mode is only half the answer."""
    try:
        os.close(os.open(file, os.O_RDWR))
    except OSError:
        return False
    return True
