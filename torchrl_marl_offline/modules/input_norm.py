"""Inputs of whole sets of networks, normalized by the statistics of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict import NestedKey, unravel_key
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from torchrl_marl_offline.core.component_bounds import ComponentBound
from torchrl_marl_offline.core.input_statistics import InputStatistics
from torchrl_marl_offline.core.layout import OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.modules.actors import ObservationNorm
from torchrl_marl_offline.modules.history import HistoryEncoder, encoder_of


class InputNorm:
    """Shifts and scales some of a network's inputs before it sees them: its forward pre-hook.

    The numbers are no part of the network's state: a network that is built again is normalized again.

    Args:
        moments: place of the input -> its means and deviations.
    """

    def __init__(self, moments: Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
        self.moments = {place: tuple(map(ComponentBound, pair)) for place, pair in moments.items()}

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the inputs as the network sees them."""
        seen = list(inputs)
        for place, (mean, deviation) in self.moments.items():
            if place < len(seen):
                x: Tensor = seen[place]
                seen[place] = (x - mean.like(x)) / deviation.like(x)
        return tuple(seen)


def seen_by(module: nn.Module, *inputs: Any) -> tuple[Any, ...]:
    """Return the inputs as a network sees them, for a method of it that is not its ``forward``."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, InputNorm):
            inputs = hook(module, inputs)
    return inputs


def normalize_inputs(networks: Mapping[str, TensorDictModuleBase], statistics: InputStatistics, spec: TaskSpec) -> None:
    """Let freshly built networks see observations and states by their means and deviations, in place.

    Networks with memory remember normalized observations.

    Policies keep the numbers in themselves, as ``make_actor(observation_norm=)`` does: they are saved and exported with
    them, and act on observations as they are.

    Args:
        networks: by name; ``"actor"`` is one of :func:`make_actor`.
        statistics: of the data.
        spec: the task's sizes.

    Raises:
        ValueError: the statistics are of another task, or the policies not of :func:`make_actor`.
    """
    sizes = {"observation": spec.observation_size, "state": spec.state_size}
    for name, size in sizes.items():
        found = len(getattr(statistics, name)[0])
        if found != size:
            raise ValueError(
                f"inputs= has {found} numbers for the {name}, but it has {size}; take input_statistics() of this task."
            )
    for name, network in networks.items():
        if name == "actor":
            _normalize_policy(network, statistics, spec)
        else:
            _normalize(network, {OBSERVATION: statistics.observation, STATE: statistics.state})


def _normalize_policy(actor: TensorDictModuleBase, statistics: InputStatistics, spec: TaskSpec) -> None:
    build = getattr(actor, "build", {"builder": None})
    if build["builder"] != "make_actor":
        raise ValueError("Inputs are normalized for policies of make_actor(); leave inputs= out, or use those.")
    if build["options"].get("observation_norm") is not None:
        raise ValueError("The policies have an observation_norm already; leave inputs= out.")
    norm, encoder = tuple(map(list, statistics.observation)), encoder_of(actor)
    if encoder is not None:
        encoder.inputs = ObservationNorm.before(encoder.inputs, norm, spec)
    else:
        head = actor.module[0]
        head.module = ObservationNorm.before(head.module, norm, spec)
    actor.build = build | {"options": build["options"] | {"observation_norm": norm}}


def _normalize(network: TensorDictModuleBase, moments: Mapping[NestedKey, Any]) -> None:
    if isinstance(network, TensorDictSequential):
        for part in network.module.children():
            _normalize(part, moments)
        return
    if isinstance(network, HistoryEncoder):
        network.inputs.register_forward_pre_hook(InputNorm({0: moments[OBSERVATION]}))
        return
    if not isinstance(network, TensorDictModule):
        return
    places = {place: moments[key] for place, key in enumerate(map(unravel_key, network.in_keys)) if key in moments}
    if places:
        network.module.register_forward_pre_hook(InputNorm(places))
