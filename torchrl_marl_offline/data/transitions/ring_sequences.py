"""Sequences of experience: drawn from a ring of rows into which many environments write in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchrl_marl_offline.core.layout import DONE, EPISODE_ENDS, IS_INIT, MASK, TRUNCATED, next_key
from torchrl_marl_offline.data.transitions.buffers import (
    EpisodeSliceSampler,
    FixedSampler,
    SequenceSampler,
    leaf_of,
)

if TYPE_CHECKING:
    from torchrl.data import TensorStorage


class RingSequenceSampler(SequenceSampler):
    """Draws sequences, as :class:`SequenceSampler` does, of a ring of rows into which experience is written.

    Rows of an episode need not lie side by side: environments that play at once write theirs round by round. Whatever
    of an episode is in the ring is taken in order of time, also where a round was written that ended in its middle, and
    where the ring begins again. Every start of a part that counts is equally likely, whichever episode it lies in, so
    that what has just begun and what is about to be written over are not drawn more often than the rest.

    An episode whose first rows have been written over has no beginning any more: the first ``burn_in`` rows that are
    left of it are seen and never count. One that is still played ends, for now, with its newest row.

    Args:
        capacity: rows of the ring.
        slice_len: see :class:`SequenceSampler`.
        burn_in: see there.
        device: of the ring.
    """

    def __init__(self, capacity: int, slice_len: int, burn_in: int, *, device: torch.device | str = "cpu") -> None:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        super().__init__(none, none, slice_len, burn_in)
        self.capacity = capacity
        self._episode = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._begins = torch.zeros(capacity, dtype=torch.bool, device=device)
        self._order = self._first = self._starts_until = self._starts_before = none

    def write(self, index: torch.Tensor, episode: torch.Tensor, begins: torch.Tensor) -> None:
        """Note of rows that were written into the ring which episodes they belong to.

        Args:
            index: where they lie, ``[R]``.
            episode: numbers of their episodes, ``[R]`` int64, which no other ones have.
            begins: where an episode begins, ``[R]`` bool.
        """
        self._episode[index], self._begins[index] = episode, begins

    def look(self, rows: int) -> None:
        """Find the episodes in the ring.

        Args:
            rows: how many were written into it since it was empty; row ``k`` lies at ``k % capacity``.

        Raises:
            ValueError: nothing of it could be drawn.
        """
        age = torch.arange(max(0, rows - self.capacity), rows, device=self._order.device) % self.capacity
        self._order = order = age[self._episode[age].argsort(stable=True)]
        lengths = torch.unique_consecutive(self._episode[order], return_counts=True)[1]
        starts = lengths.cumsum(0) - lengths
        first = torch.where(self._begins[order[starts]], 0, self.burn_in)
        there = first < lengths
        if not there.any():
            raise ValueError(
                f"No episode in the ring has a row behind burn_in={self.burn_in} rows; raise capacity, "
                f"{self.capacity} rows of all environments, or choose a shorter burn-in."
            )
        self.starts, self.lengths, self._first = starts[there], lengths[there], first[there]
        last = (self.lengths - (len(self.time) - self.burn_in)).maximum(self._first)  # start of a part that counts
        self._starts_until = (last - self._first + 1).cumsum(0)
        self._starts_before = self._starts_until - (last - self._first + 1)

    def sample(self, storage: TensorStorage, batch_size: int) -> tuple[torch.Tensor, dict]:
        """Return the rows ``[S, slice_len]`` of ``S = batch_size // slice_len`` slices, and what these add to them."""
        within, counts, last, first = self._sequences(self.slices_in(batch_size))
        index = self._order[within]
        mask = leaf_of(storage, MASK, index)
        found = {MASK: counts if mask is None else counts & mask, next_key(TRUNCATED): last}
        # of a row that ended a round in the middle of its episode the ring says that it is done, and it is not
        # what is mixed with recorded sequences has their entries; an episode still played may go on behind its last row
        found |= {next_key(DONE): last, EPISODE_ENDS: last.squeeze(-1)}
        return index, found | {IS_INIT: first & self._begins[index].unsqueeze(-1)}

    def _draw(self, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        until = self._starts_until
        drawn = torch.rand(count, dtype=torch.float64, device=until.device, generator=self._rng)
        number = torch.minimum((drawn * until[-1]).long(), until[-1] - 1)  # of all starts
        chosen = torch.searchsorted(until, number, right=True)
        start, length = self.starts.index_select(0, chosen), self.lengths.index_select(0, chosen)
        return start, length, self._first.index_select(0, chosen) + number - self._starts_before.index_select(0, chosen)


class InSlices(FixedSampler):
    """Takes the size of a batch for a number of slices, not of rows.

    Args:
        sampler: draws the slices.
    """

    def __init__(self, sampler: EpisodeSliceSampler) -> None:
        self.sampler = sampler

    @property
    def _rng(self) -> torch.Generator | None:
        return self.sampler._rng

    @_rng.setter
    def _rng(self, generator: torch.Generator | None) -> None:
        self.sampler._rng = generator

    def sample(self, storage: TensorStorage, batch_size: int) -> tuple[torch.Tensor, dict]:
        """Return the rows of ``batch_size`` slices, and what these add to them."""
        return self.sampler.sample(storage, batch_size * len(self.sampler.time))
