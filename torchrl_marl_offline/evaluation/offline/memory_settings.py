"""Memory of the networks that an evaluation trains itself: its critics, and the clone of the logged team."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import SIZE, SIZE_OR_NONE
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.data.transitions.buffers import check_slices
from torchrl_marl_offline.modules.history import Memory, MemorySize


@dataclass(frozen=True, kw_only=True)
@checked
class MemorySettings:
    """What networks of an evaluation remember, and the slices of episodes on which they learn it.

    Args:
        memory: what they remember of an episode: gru, lstm, or window:K, the last K observations; by default nothing.
        memory_size: width of a recurrent memory.
        slice_len: most rows of the slices of episodes that they learn from, the burn-in included. Where no episode is
            longer, slices are whole episodes, without a burn-in.
        burn_in: rows of a slice that memory alone sees.

    Raises:
        ValueError: the burn-in leaves no row that counts.
    """

    memory: Memory = None
    memory_size: MemorySize = 64
    slice_len: Annotated[int, SIZE, ReadWith("memory", given=True)] = 32
    burn_in: Annotated[int, SIZE_OR_NONE, ReadWith("memory", given=True)] = 8

    def __post_init__(self) -> None:
        if self.memory is not None:
            check_slices(None, self.slice_len, self.burn_in)

    @property
    def remembered(self) -> dict[str, str | int | None]:
        """What builders of networks are told of memory."""
        return {"memory": self.memory, "memory_size": self.memory_size}

    def sampling(self, batch_size: int, longest: int) -> dict[str, int]:
        """Return what a buffer is told: of memory, about as many rows, in whole slices.

        Args:
            batch_size: rows of an update.
            longest: transitions of the longest episode.
        """
        if self.memory is None:
            return {"batch_size": batch_size}
        rows = min(self.slice_len, longest)
        slices = max(batch_size // rows, 1)
        return {
            "batch_size": slices * rows,
            "slice_len": rows,
            "burn_in": self.burn_in if longest > self.slice_len else 0,
        }
