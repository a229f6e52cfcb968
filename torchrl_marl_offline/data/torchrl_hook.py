"""Our sources in TorchRL's own ``load_dataset``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.data.formats.readers import READERS
from torchrl_marl_offline.data.hub import HUB
from torchrl_marl_offline.data.published.cards import SOURCES

if TYPE_CHECKING:
    from types import ModuleType

    from torchrl.data import TensorDictReplayBuffer

_TORCHRLS_OWN = ("minari", "d4rl")


def register_with_torchrl(datasets: ModuleType) -> None:
    """Register every prefix of :func:`load_dataset` that TorchRL does not use itself.

    It is called when ``torchrl.data.datasets.utils`` is imported, which is its argument.
    """
    for prefix in (*SOURCES, HUB, *READERS):
        if prefix not in _TORCHRLS_OWN:
            datasets.register_dataset(prefix, partial(_load_replay, prefix), replace=True)


def _load_replay(prefix: str, name: str, **options: Any) -> TensorDictReplayBuffer:
    # TorchRL's base class of such buffers imports its collectors, and cannot be imported while this hook runs.
    from torchrl_marl_offline.data.torchrl_datasets import load_replay

    return load_replay(prefix, name, **options)
