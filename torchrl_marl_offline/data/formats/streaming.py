"""Rows of a recording with one long time axis, turned into transitions a block at a time.

Memory holds one block: a dataset of any size is written straight into the files that it will be read from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict

from torchrl_marl_offline.core.layout import ACTION_MASK, AGENT_MASK, OBSERVATION, REWARD, STATE, TRAJ_IDS, next_key
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.data.quality.inspected_writing import write_blocks
from torchrl_marl_offline.data.transitions.assembly import (
    assemble,
    open_empty_masks,
    open_masks_of_the_dead,
    opened_masks_finding,
    shift,
)
from torchrl_marl_offline.data.transitions.bad_episodes import KEY, BadEpisodes
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading, values_are_checked
from torchrl_marl_offline.data.transitions.rounding import Rounding
from torchrl_marl_offline.data.transitions.validation import check_values, expected_leaves, optional_leaves

if TYPE_CHECKING:
    from tensordict import NestedKey

    from torchrl_marl_offline.core.layout import TaskSpec

ReadRows = Callable[[int, int], torch.Tensor]
"""Reads the rows from one number up to another, ``[stop - start, ...]`` in the layout's type."""

REWARD_FIELD = next_key(REWARD)
"""Key of the reward among the fields of a :class:`RowStream`."""

_BYTES_AT_ONCE = 32 * 2**20
_SAMPLES, _SAMPLED_ROWS = 8, 64


@dataclass
class RowStream:
    """A recording of ``R`` rows in time order, episodes end to end.

    Beside the blocks in use, memory holds the flags below, 2 or 3 bytes for each row. :meth:`write` adds the 8 bytes a
    row and about 40 an episode that :class:`~.scan.Scan` keeps: with 35 million rows in episodes of 100, about 0.4 GiB
    over what a small recording takes.

    Args:
        spec: the task's sizes.
        fields: how to read observation, action, reward (``("next", "agents", "reward")``, ``[*, n, 1]``) and, where
            there are any, action mask and state. Without a state the joint observation stands in.
        terminated: ``[R]`` bool, true only on the last row of an episode.
        truncated: ``[R]`` bool, true only on the last row of an episode. One of both ends every episode.
        metadata: JSON-ready, with a ``"source"``; what turns up while reading is added to its ``"findings"``.
        successors: how to read the true next observation, state and mask, where the recording has them. What is not
            here is the next row's; the last row of a truncated episode then has none and does not count.
        bad: rows of which a part cannot be read; the functions of ``fields`` note them while they read.
        final: ``[R]`` bool, rows that hold an episode's last observation and no transition. They are read as the
            successor of the row before, and left out; ``terminated`` and ``truncated`` are set on that row before.
        living: ``[R, n]`` bool, false for agents that have ended before their team; by default all live.
        rounding: what the functions of ``fields`` show before they convert it.
    """

    spec: TaskSpec
    fields: Mapping[NestedKey, ReadRows]
    terminated: torch.Tensor
    truncated: torch.Tensor
    metadata: dict[str, Any]
    successors: Mapping[NestedKey, ReadRows] = field(default_factory=dict)
    final: torch.Tensor | None = None
    bad: BadRows = field(default_factory=lambda: BadRows())
    living: torch.Tensor | None = None
    rounding: Rounding = field(default_factory=Rounding)

    def __post_init__(self) -> None:
        self.length = len(self.terminated) if self.final is None else int((~self.final).sum())
        if self.length == 0:
            raise DatasetError(f"{self.metadata['source']} holds no transition; fetch it again.")
        if not (self.successors or self.final is not None):
            unusable = int((self.truncated & ~self.terminated).sum())
            if unusable:
                self._note(f"{unusable} truncated rows have no recorded successor and do not count in training")

    def _flags(self, part: slice) -> tuple[torch.Tensor, ...]:
        """Return of some rows which are transitions, which count, and after which the same episode goes on."""
        terminated, truncated = self.terminated[part], self.truncated[part]
        if self.final is not None:
            kept = ~self.final[part]
            return kept, kept, kept  # the row after it is of the same episode, or its last observation
        kept = torch.ones_like(terminated)
        return kept, kept if self.successors else terminated | ~truncated, ~(terminated | truncated)

    def _note(self, finding: str) -> None:
        self.metadata.setdefault("findings", []).append(finding)

    def chunks(self, rows_at_once: int | None = None) -> Iterator[TensorDict]:
        """Yield the transitions in order; together they are the same, whatever the size of a block."""
        rows_at_once = rows_at_once or max(1, _BYTES_AT_ONCE // bytes_per_row(self.spec))
        opened, episodes = 0, 0
        bad = BadEpisodes(self.metadata["source"])
        total = len(self.terminated)
        for start in range(0, total, rows_at_once):
            stop = min(start + rows_at_once, total)
            if self.final is not None and self.final[start:stop].all():
                continue
            with reading(self.metadata["source"]):
                data, count = self._chunk(start, stop)
            self._settle(bad, start, stop, episodes)
            opened += count
            data.set(TRAJ_IDS, data.get(TRAJ_IDS) + episodes)
            episodes += int((self.terminated[start:stop] | self.truncated[start:stop]).sum())
            yield data
        if opened:
            self._note(opened_masks_finding(opened))
        self.metadata.pop(KEY, None)  # of an earlier pass
        bad.into(self.metadata)
        self.rounding.into(self.metadata)

    def _settle(self, bad: BadEpisodes, start: int, stop: int, before: int) -> None:
        """Find the episodes of the bad rows of a block, before which ``before`` episodes ended."""
        ends = (self.terminated[start:stop] | self.truncated[start:stop]).cumsum(0)
        for row, what in sorted(self.bad.taken(before=stop)):
            at_end = self.final is not None and bool(self.final[row])
            if at_end and (row == 0 or self.final[row - 1]):
                continue  # an observation without a transition: nothing is read of it
            inside = row - start - 1
            episode = before + (int(ends[inside]) if inside >= 0 else 0) - at_end
            bad.note(episode, row, what, read_as=episode)

    def _chunk(self, start: int, stop: int) -> tuple[TensorDict, int]:
        """Return the transitions of rows ``start`` to ``stop`` and in how many of them an empty mask was opened."""
        ahead = min(stop + 1, len(self.terminated))  # one row more, as the last one's successor
        part = slice(start, ahead)
        values = {key: read(start, ahead) for key, read in self.fields.items()}
        kept, usable, continues = self._flags(part)
        last = ~continues
        last[-1] = True
        rows = dict(values)
        if self.living is not None:
            rows[AGENT_MASK] = self.living[part]
            rows[next_key(AGENT_MASK)] = shift(rows[AGENT_MASK], last)
        for key in (OBSERVATION, STATE, ACTION_MASK):
            if key in self.successors:
                rows[next_key(key)] = self.successors[key](start, ahead)
            elif key in values:
                rows[next_key(key)] = shift(values[key], last)
        if STATE not in values:
            rows[STATE] = rows[OBSERVATION].flatten(1)  # [R, n, o] -> [R, n * o]
            rows[next_key(STATE)] = rows[next_key(OBSERVATION)].flatten(1)
        if not kept.all():
            rows = {key: value[kept] for key, value in rows.items()}
        terminated, truncated, usable = self.terminated[part][kept], self.truncated[part][kept], usable[kept]
        count = int(kept[: stop - start].sum())
        if len(terminated) > count:
            truncated = truncated.clone()
            truncated[-1] |= ~terminated[-1]  # only so that the extra row ends somewhere; it is dropped below
        unused = terminated | ~usable
        unused[count:] = False
        opened = open_empty_masks(rows, unused) if self.spec.has_action_mask else 0
        if self.spec.has_action_mask:
            open_masks_of_the_dead(rows, [])  # that there are dead agents is among the findings
        data = assemble(rows, terminated=terminated, truncated=truncated, mask=usable)
        return data[:count], opened

    def to_dataset(self) -> OfflineDataset:
        """Return the whole recording in memory."""
        data = torch.cat(list(self.chunks()))
        return OfflineDataset(data, self.spec, self.metadata)

    def write(self, path: str | Path, *, overwrite: bool = False, progress: bool = False) -> Path:
        """Write the dataset folder that ``OfflineDataset.load`` reads, or nothing; see :func:`.storage.replacing`.

        Values are checked block by block unless :func:`~.validation.value_checks_deferred` is in force.

        Args:
            path: the folder to create.
            overwrite: whether to replace a dataset that is there.
            progress: show a bar on a terminal.

        Raises:
            DatasetError: the recording cannot be read, or is not what a dataset has to be.
        """
        return write_blocks(
            user_path(path),
            self._checked(),
            self._leaves(),
            spec=self.spec,
            length=self.length,
            metadata=lambda scan: self.metadata,  # with what has turned up while reading
            time_limit=self.metadata.get("time_limit"),
            overwrite=overwrite,
            progress=progress,
        )

    def _leaves(self) -> dict[NestedKey, tuple[tuple[int, ...], torch.dtype]]:
        alive = {} if self.living is None else dict.fromkeys((AGENT_MASK, next_key(AGENT_MASK)))
        return expected_leaves(self.spec) | {key: optional_leaves(self.spec)[key] for key in alive}

    def _checked(self) -> Iterator[TensorDict]:
        start = 0
        for chunk in self.chunks():
            if values_are_checked():
                try:
                    check_values(chunk, self.spec, start=start)
                except DatasetError as error:
                    source = self.metadata["source"]
                    message = f"{source}: {str(error).rstrip('.')}, or let load_dataset(..., repair=True) mend it."
                    raise DatasetError(message) from error
            start += len(chunk)
            yield chunk


class BadRows:
    """Rows that a reader could not make sense of while it read on."""

    def __init__(self) -> None:
        self._rows: dict[int, str] = {}

    def add(self, bad: np.ndarray, start: int, what: str) -> None:
        """Note the true ones of ``[rows]`` bool, the first of which is row ``start``."""
        for row in np.flatnonzero(bad).tolist():
            self._rows.setdefault(start + row, what)

    def taken(self, *, before: int) -> list[tuple[int, str]]:
        """Return and forget the noted rows below a number; those beyond it are read again."""
        taken = [(row, what) for row, what in self._rows.items() if row < before]
        self._rows.clear()
        return taken


def bytes_per_row(spec: TaskSpec) -> int:
    """Return the size of one transition on disk."""
    return sum(int(np.prod(row, dtype=np.int64)) * dtype.itemsize for row, dtype in expected_leaves(spec).values())


def ends_at_time_limit(
    terminated: torch.Tensor, truncated: torch.Tensor, limit: int | None, findings: list[str]
) -> None:
    """Take terminations after exactly ``limit`` rows for what they are, truncations; in place, with a finding.

    Many writers mark the time limit as a termination, which tells a critic that the value after it is 0. Where an
    episode is longer than the limit, the limit is wrong: a finding says so and nothing is changed.

    Args:
        terminated: ``[R]`` bool, on the last rows of episodes.
        truncated: ``[R]`` bool, on the last rows of episodes.
        limit: rows after which the task stops an episode, or ``None``.
        findings: to append to.
    """
    if limit is None:
        return
    ends = (terminated | truncated).nonzero()[:, 0]
    lengths = torch.diff(ends, prepend=torch.tensor([-1]))
    if int(lengths.max()) > limit:
        findings.append(f"an episode has {int(lengths.max())} rows, beyond the time limit of {limit}, which is ignored")
        return
    stopped = ends[(lengths == limit) & terminated[ends] & ~truncated[ends]]
    if len(stopped):
        terminated[stopped], truncated[stopped] = False, True
        findings.append(
            f"{len(stopped)} episodes stopped by the time limit of {limit} steps were recorded as terminated; they are "
            "read as truncated"
        )


State = Callable[[np.ndarray, int], torch.Tensor]
"""Makes ``[rows, s]`` float32 of some rows of a state, the first of which has the given number."""


def one_state(sample: np.ndarray, findings: list[str], bad: BadRows) -> tuple[int, State]:
    """Tell from some rows of a state how wide it is and what makes ``[rows, s]`` float32 of it.

    Some writers give every agent a copy of the state: it is read once, and a row where the copies differ is bad. Where
    they differ on half of the sample or more, each agent has a state of its own: they are laid side by side.

    Args:
        sample: rows from all over the recording (:func:`sample_rows`), ``[rows, s]`` or ``[rows, n, s]``.
        findings: to append to.
        bad: where rows are noted in which the copies differ.
    """
    if sample.ndim == 2:
        return sample.shape[1], lambda values, start: as_float(values)
    agents, size = sample.shape[1:]
    if _copied(sample).mean() <= 0.5:
        return agents * size, lambda values, start: as_float(values).flatten(1)
    if agents > 1:
        findings.append(f"the state is recorded {agents} times over, once per agent; it is read once")

    def once(values: np.ndarray, start: int) -> torch.Tensor:
        bad.add(~_copied(values), start, "the agents' copies of the state differ there, though most rows' agree")
        return as_float(values[:, 0])

    return size, once


def _copied(states: np.ndarray) -> np.ndarray:
    """Rows ``[rows]`` where all agents have the same state, NaN for NaN."""
    first = states[:, :1]
    same = states == first
    if states.dtype.kind == "f":
        same |= np.isnan(states) & np.isnan(first)
    return same.all((1, 2))


def sample_rows(read: Callable[[int, int], np.ndarray], length: int) -> np.ndarray:
    """Return some rows from all over a recording.

    Args:
        read: reads the rows from one number up to another.
        length: rows that there are.
    """
    if length <= _SAMPLES * _SAMPLED_ROWS:
        return read(0, length)
    starts = np.linspace(0, length - _SAMPLED_ROWS, _SAMPLES).astype(int).tolist()
    return np.concatenate([read(start, start + _SAMPLED_ROWS) for start in starts])


def as_float(values: np.ndarray) -> torch.Tensor:
    """Return a float32 tensor that owns its memory or shares a writable array's."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
