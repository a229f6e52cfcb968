"""What a trainer is given is held against its loss before the first step: what does not fit would train nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorStorage
from torchrl.data.replay_buffers.storages import Storage
from torchrl.objectives import TargetNetUpdater

from torchrl_marl_offline.core.layout import ACTION, MASK, OBSERVATION, STATE
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.training.run.metrics import trained_by_network

if TYPE_CHECKING:
    from tensordict import NestedKey
    from torchrl.objectives import LossModule

NETWORKS = ("actor_network", "qvalue_network", "mixer_network", "value_network", "behaviour_network")


def check_optimizer(optimizer: Any, named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse an optimizer of other parameters than the loss's, and warn of those that it leaves out.

    Args:
        optimizer: whose ``param_groups`` are looked at, where it has any.
        named: the loss's parameters.

    Raises:
        ValueError: it holds none of them.
    """
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        return
    held = {id(parameter) for group in groups for parameter in group["params"]}
    networks = trained_by_network(named)
    left = {name: sum(id(p) not in held for p in each) for name, each in networks.items()}
    if networks and all(left[name] == len(each) for name, each in networks.items()):
        raise ValueError(
            "The optimizer holds none of the loss's parameters, so that nothing would be trained; make it of "
            "loss.parameters(), or leave it out."
        )
    if names := [name for name, count in left.items() if count]:
        warnings.warn(
            f"The optimizer leaves out parameters of the loss that require gradients, of {', '.join(names)}: they stay "
            "as they are. Where that is meant, let them require none.",
            stacklevel=3,
        )


def check_target_updater(updater: Any, loss: LossModule) -> None:
    """Refuse a target updater that moves no target of the loss.

    Raises:
        ValueError: it belongs to another loss.
    """
    if not isinstance(updater, TargetNetUpdater) or updater.loss_module is loss:
        return
    own = {tensor.data_ptr() for tensor in [*loss.parameters(), *loss.buffers()]}
    if not any(target.data_ptr() in own for target in updater._targets.values(True, True)):
        raise ValueError(
            "The target_updater belongs to another loss, so that this one's targets would never move; make it of this "
            "loss, or leave it out."
        )


def rows_of(buffer: Any) -> TensorDictBase | None:
    """Return all rows ``[T]`` that a buffer draws from as its loss sees them, or ``None`` where they are not known.

    They are not where experience is still gathered, or where transforms stand between the storage and the loss.
    """
    storage, transforms = getattr(buffer, "storage", None), getattr(buffer, "_transform", None)
    if not isinstance(storage, TensorStorage) or not len(storage) or (transforms is not None and len(transforms)):
        return None
    data = storage._storage[: len(storage)]
    return data.reshape(-1) if isinstance(data, TensorDictBase) else None


def check_rows(loss: LossModule, buffer: Any) -> None:
    """Refuse data from which a loss could learn nothing, or of other sizes than its networks'.

    A batch may well have no row that counts; the whole of the data must not.

    Args:
        loss: the loss, or a population's first member.
        buffer: what the batches come from.

    Raises:
        ValueError: the buffer is empty, its rows have other sizes, or none of them counts.
    """
    if isinstance(getattr(buffer, "storage", None), Storage) and not len(buffer.storage):
        raise ValueError("The buffer is empty, so that there is nothing to train on; fill it first.")
    data = rows_of(buffer)
    if data is None:
        return
    for name in NETWORKS:
        network = getattr(loss, name, None)
        if hasattr(network, "build"):
            _check_sizes(network.build["spec"], network.in_keys, data)
    why = _why_nothing_counts(loss, data)
    if why is not None:
        raise ValueError(
            f"No row of the data counts: {why}, so that nothing could be learned from it; look at the data with "
            "torchrl_marl_offline.data.quality.inspection.inspect()."
        )


def _why_nothing_counts(loss: LossModule, data: TensorDictBase) -> str | None:
    """Return why no row counts, or None where one does."""
    counted, agent_key = counted_rows(loss, data), getattr(getattr(loss, "tensor_keys", None), "agent_mask", None)
    if counted is not None and not counted.any():
        return "its masks, such as ('collector', 'mask'), are false everywhere, as they are for cut-off last rows"
    agents = None if agent_key is None else data.get(agent_key, None)
    if agents is not None:
        agents = agents.reshape(len(data), -1)
        agents = agents if counted is None else agents & counted.unsqueeze(-1)
        return None if agents.any() else f"no agent is alive in any of them ({agent_key})"
    return None


def counted_rows(loss: LossModule, data: TensorDictBase) -> Tensor | None:
    """Return which rows ``[T]`` of the data a loss counts, or ``None`` for all."""
    batch = Batch(loss.team, data) if isinstance(loss, OfflineMARLLoss) else None
    mask = data.get(MASK, None) if batch is None else batch.rows
    mask = None if mask is None else mask.reshape(-1)
    with_target = None if batch is None or loss.value_learning is None else loss.value_learning.row_mask(batch)
    masks = [each for each in (mask, with_target) if each is not None]
    return None if not masks else torch.stack(masks).all(0)


def _check_sizes(spec: Mapping[str, Any], in_keys: Sequence[NestedKey], data: TensorDictBase) -> None:
    """Hold what a network was built for against the rows."""
    wanted = {
        "agents": (spec.get("n_agents"), _size(data, OBSERVATION, -2)),
        "numbers in an observation": (spec.get("observation_size"), _size(data, OBSERVATION, -1)),
    }
    if STATE in in_keys:
        wanted["numbers in a state"] = (spec.get("state_size"), _size(data, STATE, -1))
    actions, is_discrete = data.get(ACTION, None), spec.get("discrete")
    if actions is not None and is_discrete == actions.is_floating_point():
        kinds = ("discrete", "continuous") if is_discrete else ("continuous", "discrete")
        raise ValueError(f"The loss is for {kinds[0]} actions, the buffer's are {kinds[1]}; {_REMEDY}.")
    if actions is not None and not is_discrete:
        wanted["numbers in an action"] = (spec.get("action_size"), actions.shape[-1])
    for words, (made_for, there) in wanted.items():
        if made_for is not None and there is not None and made_for != there:
            raise ValueError(f"The loss is for {made_for} {words}, the buffer's rows have {there}; {_REMEDY}.")


_REMEDY = "make it of the dataset's own spec (dataset.spec)"


def _size(data: TensorDictBase, key: Any, dim: int) -> int | None:
    value = data.get(key, None)
    return None if value is None or value.ndim < 1 - dim else value.shape[dim]
