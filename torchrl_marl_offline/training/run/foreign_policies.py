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
from torchrl_marl_offline.core.ranges import OneOf, shown
from torchrl_marl_offline.core.regular_files import require_regular
from torchrl_marl_offline.modules.actors import make_actor
from torchrl_marl_offline.modules.networks import ACTIVATIONS

if TYPE_CHECKING:
    from torchrl.modules import ProbabilisticActor

_LAYER = re.compile(r"(?:(?P<network>.*)\.)?(?P<index>\d{1,4})\.(?P<kind>weight|bias)", re.DOTALL)
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
    if not isinstance(spec, TaskSpec):
        raise TypeError(f"import_policy needs the task's sizes, a TaskSpec such as env.task_spec; got {shown(spec)}.")
    if not isinstance(source, Mapping | str | Path):
        raise TypeError(f"import_policy reads a file or a state_dict(), got a {type(source).__name__}.")
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
    others = []
    for name, tensor in _named_tensors(state):
        if match := _LAYER.fullmatch(name):
            found[match["network"] or ""][int(match["index"])][match["kind"]] = tensor
        else:
            others.append(name)
    networks = {name: [layer for _, layer in sorted(each.items())] for name, each in found.items()}
    networks = {name: each for name, each in networks.items() if not _NO_POLICIES.search(name)}
    if len(networks) > 1:
        networks = {name: each for name, each in networks.items() if _POLICIES.search(name)} or networks
    for name in list(networks)[1:]:  # a checkpoint may hold the policy of its collector, too
        if _are_equal(networks[name], next(iter(networks.values()))):
            del networks[name]
    if len(networks) != 1:
        told = ", ".join(map(shown, list(networks)[:4])) or "none"
        raise ValueError(
            f"{where} must hold one policy of linear layers; found {told}. Save the state_dict() of the policy alone."
        )
    ((name, layers),) = networks.items()
    whole = _whole_policy(name)
    more = [other for other in others if other.startswith(whole) and not _NO_POLICIES.search(other)]
    if more or any(not _is_linear(layer) for layer in layers):
        what = f"has {shown(more[0])} beside them" if more else f"is {shown(name)}, which is something else"
        raise ValueError(
            f"{where} must hold a policy of linear layers with biases alone; this one {what}. Build the actor "
            "yourself, load its state_dict(), and give it to the algorithm: OMAR().loss(actor, critic)."
        )
    return [(layer["weight"], layer["bias"]) for layer in layers]


def _whole_policy(network: str) -> str:
    """Return what the names of all of a policy's tensors begin with: those of its loss, or of the module around it."""
    marked = re.match(r"(.*?(?:actor|policy)[^.]*\.)", f"{network}.", re.IGNORECASE | re.DOTALL)
    return marked[1] if marked else ""


def _is_linear(layer: Mapping[str, torch.Tensor]) -> bool:
    """Say whether a layer is a weight ``[(n,) out, in]`` of floating point with a bias ``[(n,) out]``."""
    if layer.keys() != {"weight", "bias"}:
        return False
    weight, bias = layer["weight"], layer["bias"]
    fits = weight.ndim in (2, 3) and bias.shape == weight.shape[:-1]
    plain = all(each.layout == torch.strided and each.device.type != "meta" for each in layer.values())
    return fits and plain and weight.is_floating_point() and bias.is_floating_point()


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
    widths = [weight.shape[-2] for weight, _ in layers]
    ranks = {weight.ndim for weight, _ in layers}
    if [weight.shape[-1] for weight, _ in layers[1:]] != widths[:-1] or len(ranks) > 1:
        raise ValueError(
            f"{where}: its layers do not follow one another, {_sizes(layers)}; save the whole policy again."
        )
    if not all(each.to(torch.get_default_dtype()).isfinite().all() for layer in layers for each in layer):
        raise ValueError(f"{where} has a weight or bias that is NaN or infinite; take an earlier checkpoint.")
    inputs, outputs = layers[0][0].shape[-1], widths[-1]
    share_params = all(weight.ndim == 2 for weight, _ in layers)
    agents = {len(weight) for weight, _ in layers} if not share_params else {spec.n_agents}
    wide, legal = outputs / spec.action_size, (1,) if spec.discrete else (1, 2)
    if inputs != spec.observation_size or wide not in legal or agents != {spec.n_agents}:
        told = "" if share_params else f"{max(agents)} agents, "
        twice = (
            ""
            if spec.discrete
            else f" (an action, or its location and scale, has {spec.action_size} or {2 * spec.action_size})"
        )
        raise ValueError(
            f"{where} holds a policy of {told}{inputs} observations and {outputs} outputs, but the task has "
            f"{spec.n_agents} agents, {spec.observation_size} observations and {spec.action_size} actions{twice}; take "
            "a policy of this task."
        )
    options: dict[str, Any] = {} if spec.discrete else {"distribution": "tanh_gaussian"}
    if not spec.discrete:
        options["scale"] = "softplus" if wide == 2 else "learned"
    hidden = widths[:-1]
    actor = make_actor(spec, hidden=hidden, share_params=share_params, activation=activation, **options)
    own = [(f"{name}weight", f"{name}bias") for name in _layer_names(actor)]
    state = actor.state_dict()
    for (weight_name, bias_name), (weight, bias) in zip(own, layers, strict=True):
        state[weight_name] = _fitted(weight.mT, state[weight_name])
        state[bias_name] = bias.reshape(state[bias_name].shape).to(state[bias_name].dtype)
    actor.load_state_dict(state)
    return actor


def _sizes(layers: Layers) -> str:
    return " and ".join(f"{weight.shape[-1]} to {weight.shape[-2]}" for weight, _ in layers[:6])


def _layer_names(actor: torch.nn.Module) -> list[str]:
    return [
        name.removesuffix("weight") for name, _ in actor.named_parameters() if re.search(r"layers\.\d+\.weight", name)
    ]


def _fitted(weight: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return a weight ``[..., in, out]``, with rows of zeros for the agents' ids where the actor reads them."""
    return torch.nn.functional.pad(weight, (0, 0, 0, own.shape[-2] - weight.shape[-2])).to(own.dtype)
