"""Policies that other TorchRL code trained, from the state of their modules: BenchMARL's checkpoints among them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.plain_tensors import load_plain_tensors
from torchrl_marl_offline.core.ranges import OneOf
from torchrl_marl_offline.core.regular_files import require_regular
from torchrl_marl_offline.modules.actors import make_actor
from torchrl_marl_offline.modules.networks import ACTIVATIONS

if TYPE_CHECKING:
    from torchrl.modules import ProbabilisticActor

_LAYER = re.compile(r"(?P<network>.*?)\.?(?P<index>\d+)\.(?P<kind>weight|bias)")
_NO_POLICIES = re.compile(r"critic|value|target|optim|mixer", re.IGNORECASE)
_POLICIES = re.compile(r"actor|policy", re.IGNORECASE)
Layers = list[tuple[torch.Tensor, torch.Tensor]]


@checked
def import_policy(
    source: str | Path | Mapping[str, Any],
    spec: TaskSpec,
    *,
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "tanh",
) -> ProbabilisticActor:
    """Build an actor of this library from the state of a TorchRL policy: the same mode, and the same distribution.

    Read are policies of one multi-layer perceptron per agent, or one for all, without layer normalization: TorchRL's
    :class:`~torchrl.modules.MultiAgentMLP` and ``MLP``, BenchMARL's ``Mlp``. Outputs twice as wide as an action are
    the location and scale of a ``TanhNormal`` behind ``NormalParamExtractor`` (scale ``biased_softplus_1.0``, TorchRL's
    and BenchMARL's default); as wide as an action, the location, whose scale is then learned from 0.5 on; for a
    discrete task they are logits.

    Args:
        source: a file of ``torch.save(policy.state_dict(), file)``, a checkpoint of BenchMARL, or such a state; nothing
            in a file is executed.
        spec: the task's sizes, which the policy must fit.
        activation: of its hidden layers, which a state does not tell: TorchRL's and BenchMARL's default is ``"tanh"``.

    Returns:
        What :func:`make_actor` returns: it can be saved, exported and trained on.

    Raises:
        ValueError: the file is damaged, or there is no such network in the state, or more than one, or of other sizes.

    Example:
        >>> actor = import_policy("benchmarl/checkpoints/checkpoint_100000.pt", env.task_spec)  # doctest: +SKIP
    """
    where = "The state" if isinstance(source, Mapping) else str(user_path(source))
    if not isinstance(source, Mapping):
        require_regular(user_path(source))
        try:
            source = load_plain_tensors(user_path(source))
        except ValueError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"{where} is no state of a module ({reason}); write it by torch.save(policy.state_dict(), FILE)."
            ) from error
        if not isinstance(source, Mapping):
            raise ValueError(f"{where} holds a {type(source).__name__}; save policy.state_dict(), a dict of tensors.")
    layers = _policy_layers(source, where)
    return _actor_of(layers, spec, activation, where)


def _policy_layers(state: Mapping[str, Any], where: str) -> Layers:
    """Return the weights and biases of the one network in a state that can be a policy's."""
    found: dict[str, dict[int, dict[str, torch.Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in _named_tensors(state):
        if match := _LAYER.fullmatch(name):
            found[match["network"]][int(match["index"])][match["kind"]] = tensor
    networks = {name: [layer for _, layer in sorted(each.items())] for name, each in found.items()}
    networks = {name: each for name, each in networks.items() if not _NO_POLICIES.search(name)}
    if len(networks) > 1:
        networks = {name: each for name, each in networks.items() if _POLICIES.search(name)} or networks
    for name in list(networks)[1:]:  # a checkpoint may hold the policy of its collector, too
        if _are_equal(networks[name], next(iter(networks.values()))):
            del networks[name]
    if len(networks) != 1:
        shown = ", ".join(list(networks)[:4]) or "none"
        raise ValueError(
            f"{where} must hold one policy of linear layers; found {shown}. Save the state_dict() of the policy alone."
        )
    ((name, layers),) = networks.items()
    for layer in layers:
        if layer.keys() != {"weight", "bias"} or layer["weight"].ndim not in (2, 3):
            raise ValueError(
                f"{where}: {name} is not made of linear layers with biases alone; build the actor yourself, load its "
                "state_dict(), and give it to the algorithm: OMAR().loss(actor, critic)."
            )
    return [(layer["weight"], layer["bias"]) for layer in layers]


def _are_equal(one: list[dict[str, torch.Tensor]], two: list[dict[str, torch.Tensor]]) -> bool:
    pairs = [(a.get(kind), b.get(kind)) for a, b in zip(one, two) for kind in ("weight", "bias")]
    return len(one) == len(two) and all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def _named_tensors(state: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, Mapping) and depth < 16:
            yield from _named_tensors(value, f"{name}.", depth + 1)


def _actor_of(layers: Layers, spec: TaskSpec, activation: str, where: str) -> ProbabilisticActor:
    """Return an actor with these layers.

    Raises:
        ValueError: they are of another task.
    """
    inputs, outputs = layers[0][0].shape[-1], layers[-1][0].shape[-2]
    share_params = all(weight.ndim == 2 for weight, _ in layers)
    agents = {len(weight) for weight, _ in layers} if not share_params else {spec.n_agents}
    wide, legal = outputs / spec.action_size, (1,) if spec.discrete else (1, 2)
    if inputs != spec.observation_size or wide not in legal or agents != {spec.n_agents}:
        told = "" if share_params else f"{max(agents)} agents, "
        raise ValueError(
            f"{where} holds a policy of {told}{inputs} observations and {outputs} outputs, but the task has "
            f"{spec.n_agents} agents, {spec.observation_size} observations and {spec.action_size} actions; take "
            "a policy of this task."
        )
    options: dict[str, Any] = {} if spec.discrete else {"distribution": "tanh_gaussian"}
    if not spec.discrete:
        options["scale"] = "softplus" if wide == 2 else "learned"
    hidden = [weight.shape[-2] for weight, _ in layers[:-1]]
    actor = make_actor(spec, hidden=hidden, share_params=share_params, activation=activation, **options)
    own = [(f"{name}weight", f"{name}bias") for name in _layer_names(actor)]
    state = actor.state_dict()
    for (weight_name, bias_name), (weight, bias) in zip(own, layers, strict=True):
        state[weight_name] = _fitted(weight.mT, state[weight_name], where)
        state[bias_name] = bias.reshape(state[bias_name].shape)
    actor.load_state_dict(state)
    return actor


def _layer_names(actor: torch.nn.Module) -> list[str]:
    return [
        name.removesuffix("weight") for name, _ in actor.named_parameters() if re.search(r"layers\.\d+\.weight", name)
    ]


def _fitted(weight: torch.Tensor, own: torch.Tensor, where: str) -> torch.Tensor:
    """Return a weight ``[..., in, out]``, with rows of zeros for the agents' ids where the actor reads them."""
    if not weight.isfinite().all():
        raise ValueError(f"{where} has a weight that is NaN or infinite; take an earlier checkpoint.")
    missing = own.shape[-2] - weight.shape[-2]
    return torch.nn.functional.pad(weight, (0, 0, 0, missing)).to(own.dtype)
