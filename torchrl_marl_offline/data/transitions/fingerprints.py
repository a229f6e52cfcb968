"""What is the same in datasets: hashes of rows and episodes, a checksum of everything, joint-action coverage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE, TERMINATED, TRAJ_IDS, next_key

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDictBase

    from torchrl_marl_offline.data.transitions.protocol import Transitions

PAIR_KEYS = (STATE, ACTION)
"""What :func:`joint_saco` counts."""

EPISODE_KEYS = (OBSERVATION, STATE, ACTION, next_key(REWARD), next_key(TERMINATED))
"""What tells episodes apart."""

_ROWS_AT_ONCE = 16_384
_BLOCK, _BYTES_LOOKED_AT = 1024, 128 * 2**20
_ROWS_IN_CACHE = 2_048
_SPREAD = np.uint64(0xBF58476D1CE4E5B9)


def joint_saco(dataset: Transitions) -> float:
    """Return the joint state-action coverage: distinct (state, joint action) pairs over the number of transitions.

    1 where no pair occurs twice, as in nearly every continuous task; ``1/k`` where everything is there ``k`` times.
    This is the Joint-SACo of OG-MARL (Formanek et al. 2024, "Putting Data at the Centre of Offline Multi-Agent
    Reinforcement Learning"), whose released code divides the distinct rows of state and joint action by all rows of the
    vault. It is not the SACo it is named after (Schweighofer et al. 2022, "A Dataset Perspective on Offline
    Reinforcement Learning"), which divides by the distinct pairs of a reference dataset. Values are compared bit for
    bit, apart from the sign of zero; every stored row counts.

    Compared with the published cards: random play in ``mpe/simple_spread`` has 1.00 here and there. None of the other
    published sets was at hand; 50,450 transitions of 3m by a medium policy of other authors have .72, where the card of
    OG-MARL's 995,313 says .85.
    """
    return distinct(row_hashes(dataset.data, PAIR_KEYS).numpy()) / len(dataset)


def distinct(values: np.ndarray) -> int:
    """Count the different ``[T]`` values; sorts them in place, so that no copy is made."""
    values.sort()
    count = 1
    for start in range(1, len(values), _ROWS_AT_ONCE):
        part = values[start - 1 : start + _ROWS_AT_ONCE]
        count += int(np.count_nonzero(part[1:] != part[:-1]))
    return count


def leaf_hashes(values: torch.Tensor, key: NestedKey) -> np.ndarray:
    """Return a 64-bit hash of each row of a leaf, ``[rows]`` uint64, to be summed over leaves and :func:`mixed`.

    The sum of spread words times odd constants, modulo 2^64: each word ``w`` (two float32, or one integer) becomes
    ``y = c w``, ``y ^= y >> 32``, which is one to one.
    """
    hashes = np.empty(len(values), np.uint64)
    flat = values.as_subclass(torch.Tensor).cpu().reshape(len(values), -1).numpy()
    for start in range(0, len(flat), _ROWS_IN_CACHE):
        words = _words(flat[start : start + _ROWS_IN_CACHE])
        words *= _SPREAD
        words ^= words >> np.uint64(32)
        hashes[start : start + len(words)] = words @ _constants(key, words.shape[1])
    return hashes


def mixed(hashes: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014): every bit of the input reaches every bit of the output."""
    x = hashes + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_hashes(data: TensorDictBase, keys: Sequence[NestedKey]) -> torch.Tensor:
    """Return a 64-bit hash of each row, ``[T]`` int64.

    Among 10 million different rows the chance that any two hashes agree is about 3e-6.
    """
    parts = []
    for start in range(0, len(data), _ROWS_AT_ONCE):
        block = data[start : start + _ROWS_AT_ONCE]
        parts.append(mixed(sum(leaf_hashes(block.get(key), key) for key in keys)))
    return torch.from_numpy(np.concatenate(parts).view(np.int64))


def steps_of_episodes(row_hashes: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Return what a row adds to its episode's hash, ``[rows]`` uint64: its own hash, told from other times'."""
    return mixed(row_hashes ^ mixed(time.astype(np.uint64)))


def episode_hashes(dataset: Transitions) -> torch.Tensor:
    """Return a hash of each episode's observations, states, actions, rewards and terminations, ``[E]`` int64."""
    lengths = dataset.episode_lengths
    time = torch.arange(len(dataset)) - dataset.episode_starts.repeat_interleave(lengths)
    rows = steps_of_episodes(row_hashes(dataset.data, EPISODE_KEYS).numpy().view(np.uint64), time.numpy())
    return torch.from_numpy(np.add.reduceat(rows, dataset.episode_starts.numpy()).view(np.int64))


def repeated(values: torch.Tensor) -> torch.Tensor:
    """Say which entries of ``[E]`` equal an earlier one, ``[E]`` bool."""
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    copy = torch.zeros(len(values), dtype=torch.bool)
    copy[order[1:]] = ordered[1:] == ordered[:-1]
    return copy


def content_checksum(dataset: Transitions) -> str:
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


def spread_checksums(rows: Callable[[torch.Tensor], TensorDictBase], length: int) -> dict[str, str]:
    """Return a BLAKE2b digest of each leaf: of all rows where they are few, else of blocks spread over them evenly.

    Args:
        rows: returns the rows at ``[k]`` int64, as a storage's ``get``.
        length: how many there are.
    """
    digests: dict[str, Any] = {}
    size = max(1, sum(leaf.nbytes for leaf in rows(torch.zeros(1, dtype=torch.int64)).values(True, True)))
    blocks = max(8, _BYTES_LOOKED_AT // (size * _BLOCK))
    count = -(-length // _BLOCK)
    chosen = range(count) if count <= blocks else sorted({i * (count - 1) // (blocks - 1) for i in range(blocks)})
    for block in chosen:
        part = rows(torch.arange(block * _BLOCK, min((block + 1) * _BLOCK, length)))
        for key, leaf in part.items(include_nested=True, leaves_only=True):
            digest = digests.setdefault(_name(key), hashlib.blake2b(str(leaf.dtype).encode(), digest_size=8))
            digest.update(
                leaf.as_subclass(torch.Tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            )
    return {name: digest.hexdigest() for name, digest in digests.items()}


def fingerprint(dataset: Transitions) -> str:
    """Return a BLAKE2b digest of the sizes, the episodes' lengths and the rewards: which recording it is, cheaply.

    Recordings that differ in nothing else have one fingerprint; :func:`content_checksum` reads everything.
    """
    digest = hashlib.blake2b(json.dumps(dataset.spec.to_dict()).encode(), digest_size=8)
    digest.update(dataset.episode_lengths.numpy().tobytes())
    rewards = dataset.data.get(next_key(REWARD)).as_subclass(torch.Tensor).cpu()
    digest.update(rewards.contiguous().numpy())
    return digest.hexdigest()


def _name(key: NestedKey) -> str:
    return key if isinstance(key, str) else "/".join(key)


def _words(values: np.ndarray) -> np.ndarray:
    """Return ``[rows, k]`` values as ``[rows, words]`` uint64, a copy, with equal bits for equal values."""
    if values.dtype.kind != "f":
        return values.astype(np.uint64)
    rows, width = values.shape
    padded = np.zeros((rows, width + width % 2), np.float32)
    np.add(values, 0.0, out=padded[:, :width], casting="same_kind")  # -0.0 + 0.0 = 0.0
    return padded.view(np.uint64)


@cache
def _constants(key: NestedKey, width: int) -> np.ndarray:
    """Return ``[width]`` odd uint64 that differ from leaf to leaf."""
    seed = int.from_bytes(hashlib.blake2b(_name(key).encode(), digest_size=8).digest(), "little")
    return mixed(np.uint64(seed) + np.arange(width, dtype=np.uint64)) | np.uint64(1)
