"""Arrays whose values float32, the layout's type, cannot tell apart: seconds since 1970, numbers of 60 bits.

Each reader shows what it is about to convert to a :class:`Rounding`; a few blocks of rows are looked at.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

from torchrl_marl_offline.data.transitions.values import as_array, check_tensor

KEY = "rounded"
"""Where the sentences stand in the metadata."""
REMEDY = "subtract an offset from it, or scale it, before it is converted"

_BLOCKS, _ROWS = 8, 512
_EXACT = 2**24  # the whole numbers up to here are float32
_FEW_STEPS, _NOISE = 2**14, 1e-10

Values = TypeVar("Values")


class Rounding:
    """What was seen of the arrays of one source.

    A column of floats is told of where most changes from row to row are lost, all values lie within 2^14 steps of
    float32, and not so close together that they may be one value and noise (1e-10 of it). A whole number is told of
    where it becomes another.
    """

    def __init__(self) -> None:
        self._columns: dict[str, np.ndarray] = {}  # changes, of them lost, least and greatest value: [4, columns]
        self._whole: dict[str, int] = {}

    def seen(self, values: Values, name: str) -> Values:
        """Look at ``[T, ...]`` numbers that are about to become float32, and return them."""
        if isinstance(values, torch.Tensor):
            check_tensor(values, name)
        kind = getattr(values, "dtype", None)
        if kind is not None and _is_finer(kind) and getattr(values, "ndim", 0) and len(values):  # type: ignore[arg-type]
            for start in np.unique(np.linspace(0, max(0, len(values) - _ROWS), _BLOCKS).astype(int)).tolist():  # type: ignore[arg-type]
                self._look(as_array(values[start : start + _ROWS], name), name)  # type: ignore[index]
        return values

    def _look(self, block: np.ndarray, name: str) -> None:
        block = block.reshape(len(block), -1)
        with np.errstate(all="ignore"):
            single = block.astype(np.float32)
            if block.dtype.kind in "iu":
                other = ((block > _EXACT) | (block < -_EXACT)) & (single.astype(block.dtype) != block)
                if other.any():
                    self._whole.setdefault(name, int(block[other][0]))
                return
            changed, same = block[1:] != block[:-1], single[1:] == single[:-1]
            found = np.stack([changed.sum(0), (changed & same).sum(0), np.fmin.reduce(block), np.fmax.reduce(block)])
        known = self._columns.setdefault(name, found)
        if known is not found and known.shape == found.shape:
            known[:2] += found[:2]
            known[2], known[3] = np.fmin(known[2], found[2]), np.fmax(known[3], found[3])

    def sentences(self) -> list[str]:
        """Return one sentence for each array that loses what tells its values apart."""
        told = [
            f"{name} holds whole numbers that float32 rounds, such as {value}" for name, value in self._whole.items()
        ]
        for name, (changed, lost, low, high) in self._columns.items():
            size, width = np.maximum(np.abs(low), np.abs(high)), high - low
            with np.errstate(all="ignore"):
                near = (width < _FEW_STEPS * np.spacing(size.astype(np.float32))) & (width > _NOISE * size)
            bad = np.flatnonzero(near & (2 * lost > changed))
            if len(bad):
                told.append(
                    f"{name} changes by less than float32 can tell in {len(bad)} of {len(low)} columns, first in "
                    f"{bad[0]}, from {low[bad[0]]:.12g} to {high[bad[0]]:.12g}"
                )
        return told

    def into(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Write the sentences into the metadata, if there are any, each once."""
        if told := self.sentences():
            metadata[KEY] = list(dict.fromkeys([*metadata.get(KEY, []), *told]))
        return metadata


def _is_finer(kind: Any) -> bool:
    """Say whether a type of NumPy or torch has numbers that float32 has not."""
    if isinstance(kind, torch.dtype):
        return kind in (torch.float64, torch.int32, torch.int64)
    return kind.kind in "fiu" and kind.itemsize > (2 if kind.kind in "iu" else 4)
