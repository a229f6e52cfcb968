"""Replay buffers over a dataset: uniform transitions, or slices of episodes, reproducible bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase, unravel_key
from torchrl.data import (
    ImmutableDatasetWriter,
    ReplayBuffer,
    TensorDictReplayBuffer,
    TensorStorage,
)
from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.devices import check_device_is_there
from torchrl_marl_offline.core.layout import (
    ACTION_MASK,
    AGENT_MASK,
    DONE,
    EPISODE_ENDS,
    HAS_NEXT_ACTION,
    IS_INIT,
    MASK,
    TRAJ_IDS,
    TRUNCATED,
    next_key,
)
from torchrl_marl_offline.core.ranges import PREFETCH, SEED, SIZE, SIZE_OR_NONE
from torchrl_marl_offline.core.relevance import ReadWith

if TYPE_CHECKING:
    from tensordict import NestedKey

    from torchrl_marl_offline.data.transitions.protocol import Transitions

MASKS = (MASK, HAS_NEXT_ACTION, AGENT_MASK, next_key(AGENT_MASK))
"""What says where a row or an agent does not count: a loss reads these where they are, whichever keys it names."""


def masks_beside(keys: Iterable[NestedKey]) -> list[NestedKey]:
    """Return the masks that a loss reads where they are beside the keys that it names.

    Those of actions only where it does not name them, because its policies read none: its rules may.
    """
    known = set(map(unravel_key, keys))
    found = MASKS if ACTION_MASK in known else (*MASKS, ACTION_MASK, next_key(ACTION_MASK))
    return [key for key in found if key not in known]


class DatasetStorage(TensorStorage):
    """A storage that reads a fixed dataset.

    Its state is the dataset's size, not its content: a checkpoint of the buffer stays small and restoring it never
    writes into a memory-mapped file.

    Args:
        data: transitions ``[T]``.
        device: where they are kept and sampled.
    """

    def __init__(self, data: TensorDictBase, *, device: torch.device | str = "cpu") -> None:
        # Plain tensors over the same memory: the memory-mapped subclass makes every operation slower.
        plain = data.apply(lambda leaf: leaf.as_subclass(torch.Tensor).to(device), device=torch.device(device))
        super().__init__(plain, device=device)

    def get(self, index: Any) -> Any:
        """Return the rows at ``index``; ``index_select`` beats advanced indexing."""
        if isinstance(index, tuple) and len(index) == 1:
            index = index[0]
        if isinstance(index, torch.Tensor) and index.ndim == 2 and index.dtype != torch.bool:
            return self.get(index.flatten()).reshape(index.shape)
        if not isinstance(index, torch.Tensor) or index.ndim != 1 or index.dtype == torch.bool:
            return super().get(index)
        # Building the TensorDict anew takes two thirds of the time of TensorDict.apply.
        rows = _select(self._storage, index)
        return TensorDict(rows, batch_size=index.shape, device=self._storage.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rows and their keys."""
        keys = sorted(map(str, self._storage.keys(include_nested=True, leaves_only=True)))
        return {"rows": len(self), "keys": keys}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the state belongs to a dataset like this one."""
        if state_dict != self.state_dict():
            raise ValueError(
                f"The buffer's state is of a dataset of {state_dict['rows']} rows with keys {state_dict['keys']}, this "
                f"one has {len(self)} rows with keys {self.state_dict()['keys']}; resume with the same dataset."
            )

    def dumps(self, path: Any) -> None:
        """Write nothing: the dataset has files of its own."""

    def loads(self, path: Any) -> None:
        """Read nothing: the dataset has files of its own."""


def leaf_of(storage: TensorStorage, key: NestedKey, index: torch.Tensor) -> torch.Tensor | None:
    """Return the rows of one leaf, or ``None`` where it is not kept."""
    values = storage._storage.get(key, None)
    return None if values is None else values.index_select(0, index.flatten()).unflatten(0, index.shape)


def _select(data: TensorDictBase, index: torch.Tensor) -> dict:
    return {
        key: _select(value, index) if isinstance(value, TensorDictBase) else value.index_select(0, index)
        for key, value in data.items()
    }


class FixedSampler(Sampler):
    """Base class of samplers that know from the start what they draw from, and so have nothing to save."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the buffer keeps the generator's state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing: the buffer keeps the generator's state."""

    def dumps(self, path: Any) -> None:
        """Write nothing: the buffer keeps the generator's state."""

    def loads(self, path: Any) -> None:
        """Read nothing: the buffer keeps the generator's state."""

    def _empty(self) -> None:
        """Forget nothing: the dataset stays."""


class EpisodeSliceSampler(FixedSampler):
    """Draws slices of episodes: an episode uniformly, then a start uniformly within it.

    It does what TorchRL's ``SliceSampler(strict_length=False, pad_output=True)`` does, for a dataset that never
    changes: where the episodes lie is known from the start, so that a draw is a dozen operations on the device, none of
    which makes the host wait. TorchRL's reads a flag back in each draw.

    Args:
        starts: row of the first transition of each episode that may be drawn, ``[E]`` int64.
        lengths: their transitions, ``[E]`` int64.
        slice_len: rows of a slice. A shorter episode is filled up with its last row.
    """

    def __init__(self, starts: torch.Tensor, lengths: torch.Tensor, slice_len: int) -> None:
        self.starts, self.lengths = starts, lengths
        self.time = torch.arange(slice_len, device=starts.device)

    def sample(self, storage: DatasetStorage, batch_size: int) -> tuple[torch.Tensor, dict]:
        """Return the rows ``[batch_size]`` of ``batch_size // slice_len`` slices, and what the slices add to them."""
        size = len(self.time)
        start, length, start_time = self._draw(self.slices_in(batch_size), size)
        time = start_time.unsqueeze(1) + self.time  # [slices, slice_len]
        index = (start.unsqueeze(1) + torch.minimum(time, (length - 1).unsqueeze(1))).flatten()
        real = self.time < length.unsqueeze(1)
        last = (self.time == (length.clamp_max(size) - 1).unsqueeze(1)).reshape(-1, 1)
        return index, _of_slices(storage, index, real.flatten(), last)

    def slices_in(self, batch_size: int) -> int:
        """Return how many slices a batch has.

        Raises:
            ValueError: it is no whole number of them.
        """
        check_slices(batch_size, len(self.time), None)
        return batch_size // len(self.time)

    @property
    def settings(self) -> dict[str, int]:
        """What it draws by name: rows of a slice, and how many episodes it draws from."""
        return {"slice_len": len(self.time), "episodes drawn from": len(self.starts)}

    def of_episodes(self, episodes: torch.Tensor) -> EpisodeSliceSampler:
        """Return a sampler of these episodes alone, numbers ``[R]`` int64, each as often as it is named."""
        found = copy.copy(self)
        found.starts, found.lengths = (each.index_select(0, episodes) for each in (self.starts, self.lengths))
        return found

    def _draw(self, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw ``count`` slices of ``size`` rows: starts and lengths of their episodes, and their starts in these."""
        device = self.starts.device
        episode = torch.randint(len(self.starts), (count,), device=device, generator=self._rng)
        start, length = self.starts.index_select(0, episode), self.lengths.index_select(0, episode)
        room = (length - size).clamp_min(0)  # the last start within the episode
        drawn = torch.rand(count, dtype=torch.float64, device=device, generator=self._rng)
        return start, length, torch.minimum((drawn * (room + 1)).long(), room)


class SequenceSampler(EpisodeSliceSampler):
    """Draws slices of episodes for networks with memory: the rows that count, and rows before them that are seen alone.

    The part of a slice that counts is drawn as the whole of one by :class:`EpisodeSliceSampler`, so that an episode's
    first rows count as often as there. The rows before it are those of the episode; where it has none, they are copies
    of its first one, behind which ``"is_init"`` lets memory begin.

    Args:
        starts: see :class:`EpisodeSliceSampler`.
        lengths: see there.
        slice_len: rows of a slice, those of the burn-in included.
        burn_in: its first rows, which do not count.
    """

    def __init__(self, starts: torch.Tensor, lengths: torch.Tensor, slice_len: int, burn_in: int) -> None:
        super().__init__(starts, lengths, slice_len)
        self.burn_in = burn_in

    @property
    def settings(self) -> dict[str, int]:
        """What it draws by name, the burn-in too."""
        return super().settings | {"burn_in": self.burn_in}

    def sample(self, storage: TensorStorage, batch_size: int) -> tuple[torch.Tensor, dict]:
        """Return the rows ``[S, slice_len]`` of ``S = batch_size // slice_len`` slices, and what these add to them."""
        index, counts, last, first = self._sequences(self.slices_in(batch_size))
        return index, _of_slices(storage, index, counts, last) | {IS_INIT: first}

    def _sequences(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw rows ``[count, slice_len]``: which they are and which count, then, ``[.., 1]``, the last, the first."""
        size = len(self.time) - self.burn_in
        start, length, start_time = (each.unsqueeze(1) for each in self._draw(count, size))
        time = start_time + self.time - self.burn_in  # [S, slice_len], within the episode
        index = start + torch.minimum(time.clamp_min(0), length - 1)
        counts = (self.time >= self.burn_in) & (time < length)
        last = time == torch.minimum(length, start_time + size) - 1
        return index, counts, last.unsqueeze(-1), (time == 0).unsqueeze(-1)


def _of_slices(storage: TensorStorage, index: torch.Tensor, counts: torch.Tensor, last: torch.Tensor) -> dict:
    """Return what slices add to their rows: which count ``[*B]``, and that each ends with its last one ``[*B, 1]``.

    Where the data says it, also where the episode ends ``[*B]``.
    """
    done = leaf_of(storage, next_key(DONE), index)
    found = {MASK: counts & leaf_of(storage, MASK, index), next_key(TRUNCATED): last}
    if done is None:
        return found | {next_key(DONE): last}
    return found | {next_key(DONE): last | done, EPISODE_ENDS: done.squeeze(-1)}


class RowSampler(FixedSampler):
    """Draws some of a dataset's rows uniformly, as often as they are named: those of episodes drawn with replacement.

    Args:
        rows: ``[R]`` int64, numbers of rows, any of them more than once.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def sample(self, storage: DatasetStorage, batch_size: int) -> tuple[torch.Tensor, dict]:
        """Return the rows ``[batch_size]``."""
        index = torch.randint(len(self.rows), (batch_size,), device=self.rows.device, generator=self._rng)
        return self.rows.index_select(0, index), {}


@checked
def make_replay_buffer(
    data: TensorDictBase | Transitions,
    *,
    batch_size: Annotated[int | None, SIZE],
    device: torch.device | str | None = None,
    slice_len: Annotated[int | None, SIZE] = None,
    burn_in: Annotated[int | None, SIZE_OR_NONE, ReadWith("slice_len", given=True)] = None,
    short_episodes: Literal["pad", "drop"] = "pad",
    seed: Annotated[int | None, SEED] = None,
    keys: Sequence[NestedKey] | None = None,
    prefetch: Annotated[int | None, PREFETCH] = None,
    buffer_class: type[ReplayBuffer] = TensorDictReplayBuffer,
) -> TensorDictReplayBuffer:
    """Return a buffer that draws with replacement from a generator of its own.

    ``buffer.state_dict()`` holds the generator's state and none of the data; ``buffer.load_state_dict`` goes on with
    exactly the batches that would have come. Nothing in a draw makes the host wait for the device.

    Without ``slice_len`` every transition is equally likely. With it, ``batch_size // slice_len`` slices are drawn: an
    episode uniformly, then a start uniformly within it; no slice crosses an episode. The sample is flat,
    ``[batch_size]``, slice after slice (``sample.reshape(-1, slice_len)``); the last row of a slice is marked
    ``("next", "truncated")`` and ``done``, so that value estimators stop there, while ``terminated`` is the data's;
    where the episode ends stands in ``("collector", "episode_ends")``.

    With ``burn_in`` too, which may be 0, samples are sequences for networks with memory, ``[batch_size // slice_len,
    slice_len]``: the first ``burn_in`` rows of each are seen and count in no loss (``("collector", "mask")`` is false),
    and ``"is_init"`` says where an episode begins. The part that counts starts uniformly within its episode; where
    that has fewer than ``burn_in`` rows before, copies of its first row stand there, which are forgotten.

    Args:
        data: transitions ``[T]``, or a dataset.
        batch_size: rows of a sample; ``None``: ``sample(n)`` says.
        device: put all of it on that device once; by default sampling reads where it lies, a memory map included.
        slice_len: rows of a slice, its burn-in included; must divide ``batch_size``.
        burn_in: rows of a slice that memory alone sees, fewer than ``slice_len``.
        short_episodes: what becomes of episodes shorter than ``slice_len``: ``"pad"`` repeats their last row, with
            ``("collector", "mask")`` false; ``"drop"`` never samples them.
        seed: of the generator; by default one is drawn from the operating system.
        keys: leaves to keep, by default all; ``loss.in_keys`` makes samples cheaper. Masks with a false entry always
            stay, because a loss reads them where they are, and ``("collector", "traj_ids")`` where slices need it.
        prefetch: 1 prepares the next sample in a thread. More would let threads decide the order.
        buffer_class: what is built.

    Raises:
        KeyError: a key of ``keys`` is not in the dataset.
        TypeError: ``data`` is neither transitions nor a dataset.
        ValueError: an option is out of range, or no episode is as long as ``slice_len`` where short ones are dropped.
    """
    data = _transitions(data)
    if device is not None:
        check_device_is_there(device)
    if keys is not None:
        for key in keys:
            if data.get(key, None) is None:
                there = ", ".join(map(str, data.keys(include_nested=True, leaves_only=True)))
                raise KeyError(f"The data has no {key!r}, which keys names; it has {there}.")
        needed = [TRAJ_IDS, MASK] if slice_len is not None else []
        masks = [key for key in masks_beside(keys) if (mask := data.get(key, None)) is not None and not mask.all()]
        data = data.select(*keys, *needed, *masks)
    device = torch.device(
        next(iter(data.values(include_nested=True, leaves_only=True))).device if device is None else device
    )
    storage, sampler = DatasetStorage(data, device=device), None
    if slice_len is not None:
        sampler = _slice_sampler(data, batch_size, slice_len, burn_in, short_episodes, device)
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return buffer_class(
        storage=storage,
        sampler=sampler,
        writer=ImmutableDatasetWriter(),
        batch_size=batch_size,
        generator=generator,
        prefetch=prefetch,
    )


def _transitions(data: TensorDictBase | Transitions) -> TensorDictBase:
    if isinstance(data, TensorDictBase):
        return data
    if not isinstance(getattr(data, "data", None), TensorDictBase):
        raise TypeError(f"A buffer is made of transitions or of a dataset, got a {type(data).__name__}.")
    return data.data


def check_slices(batch_size: int | None, slice_len: int, burn_in: int | None) -> None:
    """Refuse batches that are no whole slices (``None``: of any number of rows), and slices without a row that counts.

    Raises:
        ValueError: the sizes do not fit together.
    """
    if batch_size is not None and batch_size % slice_len:
        raise ValueError(f"slice_len={slice_len} must divide batch_size={batch_size}; change one of them.")
    if burn_in is not None and burn_in >= slice_len:
        raise ValueError(f"burn_in={burn_in} leaves no row of slice_len={slice_len} that counts; make it smaller.")


def _slice_sampler(
    data: TensorDictBase,
    batch_size: int,
    slice_len: int,
    burn_in: int | None,
    short_episodes: str,
    device: torch.device,
) -> EpisodeSliceSampler:
    check_slices(batch_size, slice_len, burn_in)
    if short_episodes not in ("pad", "drop"):
        raise ValueError(f"short_episodes must be 'pad' or 'drop', got {short_episodes!r}.")
    lengths = torch.unique_consecutive(data.get(TRAJ_IDS), return_counts=True)[1]
    starts = lengths.cumsum(0) - lengths
    if short_episodes == "drop":
        rows = slice_len - (burn_in or 0)
        kept = lengths >= rows
        if not kept.any():
            longest = int(lengths.max())
            raise ValueError(f"No episode has {rows} rows, the longest has {longest}; use short_episodes='pad'.")
        starts, lengths = starts[kept], lengths[kept]
    starts, lengths = starts.to(device), lengths.to(device)
    if burn_in is None:
        return EpisodeSliceSampler(starts, lengths, slice_len)
    return SequenceSampler(starts, lengths, slice_len, burn_in)


__all__ = [
    "DatasetStorage",
    "EpisodeSliceSampler",
    "RowSampler",
    "SequenceSampler",
    "make_replay_buffer",
    "masks_beside",
]
