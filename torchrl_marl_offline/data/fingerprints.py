"""What is the same in datasets: hashes of rows and episodes, a checksum of everything, joint-action coverage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from torchrl_marl_offline.data.layout import ACTION, OBSERVATION, REWARD, STATE, TERMINATED, TRAJ_IDS, next_key

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDictBase

    from torchrl_marl_offline.data.dataset import OfflineDataset

_ROWS_AT_ONCE = 16_384
_EPISODE_KEYS = (OBSERVATION, STATE, ACTION, next_key(REWARD), next_key(TERMINATED))


def joint_saco(dataset: OfflineDataset) -> float:
    """Return the joint state-action coverage: distinct (state, joint action) pairs over the number of transitions.

    1 where no pair occurs twice, as in nearly every continuous task; ``1/k`` where everything is there ``k`` times.
    This is the Joint-SACo of OG-MARL (Formanek et al. 2024, "Putting Data at the Centre of Offline Multi-Agent
    Reinforcement Learning"), whose released code divides the distinct rows of state and joint action by all rows of the
    vault. It is not the SACo it is named after (Schweighofer et al. 2022, "A Dataset Perspective on Offline
    Reinforcement Learning"), which divides by the distinct pairs of a reference dataset. Values are compared bit for
    bit, apart from the sign of zero; every stored row counts.
    """
    return len(row_hashes(dataset.data, (STATE, ACTION)).unique()) / len(dataset)


def row_hashes(data: TensorDictBase, keys: Sequence[NestedKey]) -> torch.Tensor:
    """Return a 64-bit hash of each row, ``[T]`` int64.

    Among 10 million different rows the chance that any two hashes agree is 3e-6.
    """
    parts = []
    for start in range(0, len(data), _ROWS_AT_ONCE):
        block = data[start : start + _ROWS_AT_ONCE]
        words = torch.cat([_words(block.get(key)) for key in keys], -1)
        salt = _mix(torch.arange(words.shape[-1]))
        parts.append(_mix(_mix(words ^ salt).sum(-1)))
    return torch.cat(parts)


def episode_hashes(dataset: OfflineDataset) -> torch.Tensor:
    """Return a hash of each episode's observations, states, actions, rewards and terminations, ``[E]`` int64."""
    lengths = dataset.episode_lengths
    time = torch.arange(len(dataset)) - dataset.episode_starts.repeat_interleave(lengths)
    rows = _mix(row_hashes(dataset.data, _EPISODE_KEYS) ^ _mix(time))
    episode = torch.arange(len(lengths)).repeat_interleave(lengths)
    return torch.zeros(len(lengths), dtype=torch.int64).index_add_(0, episode, rows)


def repeated(values: torch.Tensor) -> torch.Tensor:
    """Say which entries of ``[E]`` equal an earlier one, ``[E]`` bool."""
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    copy = torch.zeros(len(values), dtype=torch.bool)
    copy[order[1:]] = ordered[1:] == ordered[:-1]
    return copy


def content_checksum(dataset: OfflineDataset) -> str:
    """Return a BLAKE2b digest of every leaf's name, type and values; equal datasets have equal digests.

    Metadata and the files' layout do not enter: the same recording read from two formats gives one digest.
    """
    digest = hashlib.blake2b(digest_size=16)
    keys = [key for key in dataset.data.keys(include_nested=True, leaves_only=True) if key != TRAJ_IDS]
    digest.update(dataset.episode_lengths.numpy().tobytes())
    for key in sorted(keys, key=_name):
        leaf = dataset.data.get(key)
        digest.update(f"{_name(key)} {leaf.dtype} {tuple(leaf.shape)}".encode())
        for start in range(0, len(leaf), _ROWS_AT_ONCE):
            block = leaf[start : start + _ROWS_AT_ONCE].as_subclass(torch.Tensor)
            digest.update(block.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _name(key: NestedKey) -> str:
    return key if isinstance(key, str) else "/".join(key)


def _words(values: torch.Tensor) -> torch.Tensor:
    """Return ``[rows, ...]`` values as ``[rows, k]`` int64 with equal bits for equal values."""
    flat = values.as_subclass(torch.Tensor).cpu().reshape(len(values), -1)
    if flat.is_floating_point():
        flat = (flat.float() + 0.0).view(torch.int32)  # -0.0 + 0.0 = 0.0
    return flat.long()


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finalizer of SplitMix64 (Steele et al. 2014): every bit of the input reaches every bit of the output."""
    x = x + -0x61C8864680B583EB
    x = (x ^ _shift_right(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift_right(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift_right(x, 31)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts the sign in
