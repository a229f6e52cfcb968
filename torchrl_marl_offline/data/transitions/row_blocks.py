"""Consecutive rows of a dataset as plain tensors on the CPU, so that a memory-mapped one need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict

from torchrl_marl_offline.core.layout import AGENT_MASK, MASK

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDictBase

_ROWS_AT_ONCE = 16_384
_BYTES_AT_ONCE = 16 * 2**20


def blocks(data: TensorDictBase, *, copy: bool = False) -> Iterator[TensorDict]:
    """Yield all rows of a dataset, block by block; views of it where it lies on the CPU, unless ``copy``."""
    bytes_per_row = sum(leaf[0].nbytes for leaf in data.values(include_nested=True, leaves_only=True))
    rows_at_once = min(_ROWS_AT_ONCE, max(1, _BYTES_AT_ONCE // bytes_per_row))
    for start in range(0, len(data), rows_at_once):
        rows = data[start : start + rows_at_once]
        leaves = {key: rows.get(key).as_subclass(torch.Tensor).cpu() for key in rows.keys(True, True)}
        yield TensorDict({k: leaf.clone() if copy else leaf for k, leaf in leaves.items()}, rows.batch_size)


def with_next(parts: Iterable[TensorDict]) -> Iterator[tuple[TensorDict, TensorDict | None]]:
    """Yield each block with the one that follows, ``None`` after the last."""
    held = None
    for rows in parts:
        if held is not None:
            yield held, rows
        held = rows
    if held is not None:
        yield held, None


def flag(rows: TensorDictBase, key: NestedKey) -> torch.Tensor:
    """Return a flag of every row as ``[rows]``."""
    return rows.get(key).reshape(len(rows))


def counts(rows: TensorDictBase) -> torch.Tensor:
    """Rows that count in training for some agent, ``[rows]``."""
    alive, used = rows.get(AGENT_MASK, None), flag(rows, MASK)
    return used if alive is None else used & alive.any(-1)
