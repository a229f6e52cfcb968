"""TD(1) and TD(lambda) over a batch: are its rows the steps of episodes, one after another?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.objectives.value import GAE, TD1Estimator, TDLambdaEstimator, ValueEstimatorBase, VTrace

from torchrl_marl_offline.objectives.first_batch import FirstBatch, is_readable

SLICES = (
    "sample slices of episodes, as dataset.replay_buffer(batch_size=, slice_len=) or TorchRL's SliceSampler do, or "
    "choose TD0"
)
"""What to do about rows that are no series."""

SEEN = FirstBatch()
"""The networks of losses whose first batch was found to be a series."""

_TRAJ_IDS = ("collector", "traj_ids")


def needs_series(estimator: ValueEstimatorBase | None) -> bool:
    """Say whether the targets of one of TorchRL's estimators run on from a row to the next one."""
    return isinstance(estimator, TD1Estimator | TDLambdaEstimator | GAE | VTrace)


def check_series(
    tensordict: TensorDictBase, cut: Tensor, keys: list[NestedKey], *, carrier: str, remedy: str = SLICES
) -> None:
    """Refuse a batch whose neighbours, along its last dimension, are not consecutive steps of one episode.

    After a row that is not cut the next row must be of the same episode, and its observations those that the row has
    as the next ones. To look waits for the device.

    Args:
        tensordict: the batch ``[*B]``, the time last; episodes or slices may lie end to end.
        cut: ``[*B]`` bool, after which rows the series is cut anyway.
        keys: entries whose next values are in the batch too.
        carrier: for the message, what carries what.
        remedy: for the message.

    Raises:
        ValueError: it is none; the message says what to sample.
    """
    goes_on = ~cut.narrow(-1, 0, cut.shape[-1] - 1)
    row = None
    for same in _agreements(tensordict, keys):
        broken = (goes_on & ~same).flatten().nonzero()
        if len(broken):
            row = int(broken[0])
            break
    if row is not None:
        raise ValueError(
            f"{carrier} from row to row, but rows {row} and {row + 1} of the batch are not consecutive steps of one "
            f"episode: {remedy}."
        )


def _agreements(tensordict: TensorDictBase, keys: list[NestedKey]) -> Iterator[Tensor]:
    """Yield in how far each row and the next one agree, ``[*B]`` bool with one row less."""
    axis = tensordict.ndim - 1
    steps = tensordict.shape[-1] - 1
    ids = tensordict.get(_TRAJ_IDS, None)
    if ids is not None:
        ids = ids.reshape(tensordict.batch_size)
        yield ids.narrow(axis, 1, steps) == ids.narrow(axis, 0, steps)
    for key in map(unravel_key, keys):
        here, ahead = tensordict.get(key, None), tensordict.get(("next", key), None)
        if here is not None and ahead is not None and here.shape == ahead.shape and here.is_floating_point():
            close = torch.isclose(here.narrow(axis, 1, steps), ahead.narrow(axis, 0, steps), equal_nan=True)
            yield close.flatten(axis + 1).all(-1)


@contextmanager
def step_by_step(estimator: ValueEstimatorBase, tensor: Tensor) -> Iterator[None]:
    """Let TD(lambda) run along its rows one by one where values may not be looked at, as its fast form does.

    That form looks for the ends of episodes, which neither a population's map over members nor a trace can do; the
    numbers are the same up to rounding.
    """
    fast = getattr(estimator, "vectorized", False) is True and not is_readable(tensor)
    if fast:
        estimator.vectorized = False
    try:
        yield
    finally:
        if fast:
            estimator.vectorized = True
