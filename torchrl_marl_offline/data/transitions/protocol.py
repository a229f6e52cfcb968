"""What the parts of a dataset's life know of it: transitions of whole episodes, and where they begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDictBase

    from torchrl_marl_offline.core.layout import TaskSpec


class Transitions(Protocol):
    """Transitions ``[T]`` of whole episodes, end to end in time order: an ``OfflineDataset`` is such.

    Attributes:
        data: in the layout of :mod:`torchrl_marl_offline.core.layout`, batch size ``[T]``.
        spec: the task's sizes.
        metadata: where they came from, JSON-ready.
        episode_starts: row of each episode's first transition, ``[E]`` int64.
        episode_lengths: transitions of each episode, ``[E]`` int64.
    """

    data: TensorDictBase
    spec: TaskSpec
    metadata: dict[str, Any]
    episode_starts: torch.Tensor
    episode_lengths: torch.Tensor

    def __len__(self) -> int: ...
