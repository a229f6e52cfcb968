"""Whether the inspection that is stored in a folder is of the values that are there.

The folder may have been changed after it was written, its checksums made anew and the inspection kept. So a stored
inspection without errors is believed only after a look: values are finite, actions within their bounds or indices of
the task and legal, ``done`` is where the episodes' ids change, and some row counts. Warnings and notes are not looked
for again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torchrl_marl_offline.core.layout import DONE, TRAJ_IDS, next_key
from torchrl_marl_offline.data.transitions import row_blocks
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.mapped_leaves import spread
from torchrl_marl_offline.data.transitions.validation import check_values

if TYPE_CHECKING:
    from tensordict import TensorDictBase

    from torchrl_marl_offline.data.transitions.findings import Inspection
    from torchrl_marl_offline.data.transitions.protocol import Transitions

_ROWS_AT_ONCE, _ROWS_LOOKED_AT = 65_536, 1024


def agrees(dataset: Transitions, told: Inspection, *, whole: bool) -> bool:
    """Say whether a dataset has no errors of which its stored inspection says nothing.

    Args:
        dataset: as it was loaded.
        told: the stored inspection; one that has errors is believed.
        whole: look at every row, else at blocks of rows that are spread evenly.
    """
    if told.of_severity("error"):
        return True
    any_counts = False
    try:
        for start, rows in _blocks(dataset.data, whole):
            check_values(rows, dataset.spec, start=start)
            if _wrong_marks(rows):
                return False
            any_counts = any_counts or bool(row_blocks.counts(rows).any())
    except (DatasetError, RuntimeError):  # an index beyond the mask's columns
        return False
    return any_counts


def _blocks(data: TensorDictBase, whole: bool) -> Iterator[tuple[int, TensorDictBase]]:
    """Yield blocks with the row after them, whose id tells where the last episode ends."""
    size = _ROWS_AT_ONCE if whole else _ROWS_LOOKED_AT
    for start in range(0, len(data), size) if whole else spread(len(data), size):
        yield start, data[start : start + size + 1]


def _wrong_marks(rows: TensorDictBase) -> bool:
    ids, done = rows.get(TRAJ_IDS), row_blocks.flag(rows, next_key(DONE))
    return bool(((ids[1:] != ids[:-1]) != done[:-1]).any())
