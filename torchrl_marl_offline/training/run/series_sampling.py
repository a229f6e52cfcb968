"""TD(1), TD(lambda) and memory want slices of episodes: what a buffer draws is held to that before training starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.data.transitions.buffers import DatasetStorage, EpisodeSliceSampler
from torchrl_marl_offline.objectives.histories import SEQUENCES
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.objectives.series import SLICES, needs_series

if TYPE_CHECKING:
    from torchrl.objectives import LossModule


def check_draws_series(loss: LossModule, buffer: Any) -> None:
    """Refuse single transitions of a dataset for a loss whose returns, or whose memory, run on from row to row.

    Args:
        loss: the loss, or a population's first member.
        buffer: what the batches come from. Of a buffer that is not a dataset's, the loss looks at the first batch.

    Raises:
        ValueError: the buffer draws single transitions.
    """
    estimator = getattr(loss, "_value_estimator", None)
    sampler = getattr(buffer, "sampler", None) or getattr(buffer, "member_sampler", None)  # of a population
    sampler = getattr(sampler, "joined", sampler)
    has_memory = isinstance(loss, OfflineMARLLoss) and loss.has_memory
    if has_memory and getattr(buffer, "gathers_experience", False) and buffer.slice_len is None:
        raise ValueError(
            "Networks with memory carry what they saw from row to row, but the replay draws single transitions: give "
            "OnlineReplay(slice_len=, burn_in=), or build without memory."
        )
    of_rows = isinstance(getattr(buffer, "storage", None), DatasetStorage)
    if not of_rows or isinstance(sampler, EpisodeSliceSampler):
        return
    if needs_series(estimator):
        raise ValueError(
            f"{type(estimator).__name__} carries returns from row to row, but the buffer draws single transitions: "
            f"{SLICES}."
        )
    if has_memory:
        raise ValueError(
            "Networks with memory carry what they saw from row to row, but the buffer draws single transitions: "
            f"{SEQUENCES}."
        )
