"""Replay buffers over a dataset: uniform transitions, or slices of episodes, reproducible bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import (
    ImmutableDatasetWriter,
    SliceSampler,
    TensorDictReplayBuffer,
    TensorStorage,
)

from torchrl_marl_offline.data.layout import AGENT_MASK, HAS_NEXT_ACTION, MASK, TRAJ_IDS, next_key

if TYPE_CHECKING:
    from tensordict import NestedKey

_MASKS = (MASK, HAS_NEXT_ACTION, AGENT_MASK, next_key(AGENT_MASK))


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


def _select(data: TensorDictBase, index: torch.Tensor) -> dict:
    return {
        key: _select(value, index) if isinstance(value, TensorDictBase) else value.index_select(0, index)
        for key, value in data.items()
    }


class EpisodeSliceSampler(SliceSampler):
    """TorchRL's slice sampler, which keeps the rows that the dataset itself masks masked."""

    def sample(self, storage: TensorStorage, batch_size: int) -> tuple[Any, dict]:
        """Return the index of the rows and what the slices add to them."""
        index, info = super().sample(storage, batch_size)
        if MASK in info:
            info[MASK] = info[MASK] & storage[index].get(MASK)
        return index, info


def make_replay_buffer(
    data: TensorDictBase,
    *,
    batch_size: int,
    device: torch.device | str | None = None,
    slice_len: int | None = None,
    short_episodes: Literal["pad", "drop"] = "pad",
    seed: int | None = None,
    keys: Sequence[NestedKey] | None = None,
    prefetch: int | None = None,
    buffer_class: type[TensorDictReplayBuffer] = TensorDictReplayBuffer,
) -> TensorDictReplayBuffer:
    """Return a buffer that draws with replacement from a generator of its own.

    ``buffer.state_dict()`` holds the generator's state and none of the data; ``buffer.load_state_dict`` goes on with
    exactly the batches that would have come.

    Without ``slice_len`` every transition is equally likely. With it, ``batch_size // slice_len`` slices are drawn: an
    episode uniformly, then a start uniformly within it; no slice crosses an episode. The sample is flat,
    ``[batch_size]``, slice after slice (``sample.reshape(-1, slice_len)``); the last row of a slice is marked
    ``("next", "truncated")`` and ``done``, so that value estimators stop there, while ``terminated`` is the data's.

    Args:
        data: transitions ``[T]``.
        batch_size: rows of a sample.
        device: put all of it on that device once; by default sampling reads where it lies, a memory map included.
        slice_len: rows of a slice; must divide ``batch_size``.
        short_episodes: what becomes of episodes shorter than ``slice_len``: ``"pad"`` repeats their last row, with
            ``("collector", "mask")`` false; ``"drop"`` never samples them.
        seed: of the generator; by default one is drawn from the operating system.
        keys: leaves to keep, by default all; ``loss.in_keys`` makes samples cheaper. Masks with a false entry always
            stay, because a loss reads them where they are, and ``("collector", "traj_ids")`` where slices need it.
        prefetch: 1 prepares the next sample in a thread. More would let threads decide the order.
        buffer_class: what is built.

    Raises:
        KeyError: a key of ``keys`` is not in the dataset.
        ValueError: an option is out of range, or no episode is as long as ``slice_len`` where short ones are dropped.
    """
    if prefetch not in (None, 0, 1):
        raise ValueError(f"prefetch must be None, 0 or 1, got {prefetch}; more threads would draw in any order.")
    if keys is not None:
        needed = [TRAJ_IDS, MASK] if slice_len is not None else []
        masks = [key for key in _MASKS if (mask := data.get(key, None)) is not None and not mask.all()]
        data = data.select(*keys, *needed, *masks)
    device = torch.device(
        next(iter(data.values(include_nested=True, leaves_only=True))).device if device is None else device
    )
    storage = DatasetStorage(data, device=device)
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return buffer_class(
        storage=storage,
        sampler=None if slice_len is None else _slice_sampler(data, batch_size, slice_len, short_episodes),
        writer=ImmutableDatasetWriter(),
        batch_size=batch_size,
        generator=generator,
        prefetch=prefetch,
    )


def _slice_sampler(data: TensorDictBase, batch_size: int, slice_len: int, short_episodes: str) -> SliceSampler:
    if slice_len < 1 or batch_size % slice_len:
        raise ValueError(f"slice_len={slice_len} must divide batch_size={batch_size}; change one of them.")
    if short_episodes not in ("pad", "drop"):
        raise ValueError(f"short_episodes must be 'pad' or 'drop', got {short_episodes!r}.")
    drop = short_episodes == "drop"
    longest = int(torch.unique_consecutive(data.get(TRAJ_IDS), return_counts=True)[1].max())
    if drop and longest < slice_len:
        raise ValueError(f"No episode has {slice_len} rows, the longest has {longest}; use short_episodes='pad'.")
    return EpisodeSliceSampler(
        slice_len=slice_len, traj_key=TRAJ_IDS, cache_values=True, strict_length=drop, pad_output=not drop
    )


__all__ = ["DatasetStorage", "EpisodeSliceSampler", "make_replay_buffer"]
