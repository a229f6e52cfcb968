"""The replay buffer behind TorchRL's own ``load_dataset``.

    >>> import torchrl_marl_offline
    >>> from torchrl.data.datasets import load_dataset
    >>> buffer = load_dataset("og_marl:smac_v1/3m/Good", batch_size=256)  # doctest: +SKIP

Importing the package is enough: :func:`~.torchrl_hook.register_with_torchrl` waits for TorchRL's dataset modules. This
module imports them, and with them TorchRL's collectors. TorchRL keeps the prefixes ``minari`` and ``d4rl`` for readers
of its own.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torchrl_marl_offline.data.registry import load_dataset
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # what TorchRL's collectors say of themselves
    from torchrl.data.datasets.common import BaseDatasetExperienceReplay

_BUFFER_OPTIONS = ("slice_len", "burn_in", "short_episodes", "seed", "keys", "prefetch")


class OfflineExperienceReplay(BaseDatasetExperienceReplay):
    """The replay buffer of an :class:`OfflineDataset`, which it keeps as :attr:`dataset`."""

    dataset: OfflineDataset

    @property
    def data_path_root(self) -> Path:
        """The folder that holds the dataset's folder."""
        return self.data_path.parent

    @property
    def data_path(self) -> Path:
        """Where the dataset lies, if it is memory-mapped."""
        file = getattr(self.dataset.data.get("state"), "filename", None)
        if file is None:
            raise AttributeError(f"{self.dataset!r} lies in memory; convert_dataset() gives it a folder.")
        return Path(file).parent.parent

    def _is_downloaded(self) -> bool:
        return True


def load_replay(
    prefix: str, name: str, *, batch_size: int = 256, device: Any = None, **options: Any
) -> OfflineExperienceReplay:
    """Return the buffer that ``torchrl.data.datasets.load_dataset(f"{prefix}:{name}")`` stands for.

    Args:
        prefix: a source or a format.
        name: what follows the colon.
        batch_size: rows of a sample.
        device: where the data is kept and sampled.
        options: those of :func:`~.buffers.make_replay_buffer`, and of the dataset's reader.
    """
    chosen = {key: options.pop(key) for key in _BUFFER_OPTIONS if key in options}
    dataset = load_dataset(f"{prefix}:{name}", **options)
    buffer = make_replay_buffer(
        dataset.data, batch_size=batch_size, device=device, buffer_class=OfflineExperienceReplay, **chosen
    )
    buffer.dataset = dataset
    return buffer
