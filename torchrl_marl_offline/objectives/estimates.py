"""What the networks of a loss say of a batch: values, policies, and each estimate computed at most once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import Tensor
from torch.distributions import Distribution
from torchrl.modules import Actor, Delta, GRUModule, LSTMModule

from torchrl_marl_offline.core.functional_parameters import parameters_in, tree_of
from torchrl_marl_offline.core.parts import part
from torchrl_marl_offline.objectives.candidates import expected_value
from torchrl_marl_offline.objectives.policies import Bounds, bounds_or_none, is_discrete, mode_of, per_agent

if TYPE_CHECKING:
    from torchrl_marl_offline.objectives.offline_marl import OfflineMARLLoss


IS_INIT = "is_init"
"""Where an episode begins, of TorchRL's networks with memory."""


class Values(NamedTuple):
    """Local values ``[*B, n, H]`` (None for a centralized critic) and total values ``[*B, k, H]``.

    ``k`` is 1 where the critic has a team value and ``n`` where every agent is on its own.
    """

    local: Tensor | None
    total: Tensor

    @property
    def total_min(self) -> Tensor:
        """The minimum over the heads, ``[*B, k, 1]``."""
        return self.total.amin(-1, keepdim=True)

    @property
    def local_min(self) -> Tensor | None:
        """The minimum over the heads of the local values, ``[*B, n, 1]``."""
        return None if self.local is None else self.local.amin(-1, keepdim=True)


class NetworkPasses:
    """The part of :class:`OfflineMARLLoss` that evaluates its networks under their functional parameters."""

    def _evaluate(
        self,
        network: TensorDictModuleBase,
        params: TensorDictBase | None,
        tensordict: TensorDictBase,
        **given: Tensor | None,
    ) -> Mapping[NestedKey, Tensor]:
        """Return the outputs of ``network`` under ``params`` (None: its own) by their keys."""
        entries = self._entries(network, tensordict, **given)
        with nullcontext() if params is None else parameters_in(network, params):
            if _is_plain(network):
                outputs = network.module(*entries.values())
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                outputs = dict(zip(map(unravel_key, network.out_keys_source), outputs, strict=True))
            else:
                found = network(TensorDict(entries, tensordict.batch_size))
                outputs = {unravel_key(key): found.get(key) for key in network.out_keys}
        return {key: _full_precision(value) for key, value in outputs.items()}

    def _inputs(self, network: TensorDictModuleBase, tensordict: TensorDictBase, **given: Tensor) -> TensorDict:
        """Root the network's inputs in a tensordict of the batch size; ``given`` as for :meth:`_entries`."""
        return TensorDict(self._entries(network, tensordict, **given), tensordict.batch_size)

    def _entries(
        self, network: TensorDictModuleBase, tensordict: TensorDictBase, **given: Tensor | None
    ) -> dict[NestedKey, Tensor]:
        """Return the network's inputs; ``given`` overrides by joined key name, and leaves out what it has None for."""
        entries = {}
        for key in network.in_keys:
            key = unravel_key(key)
            name = joined(key)
            entry = given[name] if name in given else tensordict.get(key, None)
            if entry is None and key in self._memory_keys:
                if key != IS_INIT:  # a hidden state, which its module takes for zeros
                    continue
                entry = torch.zeros(*tensordict.batch_size, 1, dtype=torch.bool, device=tensordict.device)
            if entry is not None:
                entries[key] = entry
            elif name not in given:
                raise KeyError(self._lacks(key, tensordict))
        return entries

    def _lacks(self, key: NestedKey, tensordict: TensorDictBase) -> str:
        found = ", ".join(sorted(map(joined, tensordict.keys(True, True))))
        remedy = ""
        if unravel_key(key) == unravel_key(("next", self.tensor_keys.action)):
            remedy = " The transform torchrl_marl_offline.NextAction adds it to a replay buffer of TorchRL's."
        return f"{type(self).__name__} needs the entry {joined(key)}, which the batch lacks; it has {found}.{remedy}"

    def action_value(
        self, tensordict: TensorDictBase, action: Tensor, *, target: bool = False, detach: bool = False
    ) -> Values:
        """Evaluate the critic and the mixer at ``action``.

        Args:
            tensordict: observations and state.
            action: as in the layout, or one-hot ``[*B, n, A]`` for a discrete task.
            target: use the target networks.
            detach: keep the gradient from the critic's parameters (not from the action).
        """
        values, beside = self._critic_outputs(tensordict, action, target=target, detach=detach)
        return self._mixed(tensordict, values, target, detach, **beside)

    def _critic(self, tensordict: TensorDictBase, action: Tensor, *, target: bool, detach: bool = False) -> Tensor:
        """Evaluate the critic without its mixer: local values ``[*B, n, H]``, or a central one's ``[*B, 1, H]``."""
        return self._critic_outputs(tensordict, action, target=target, detach=detach)[0]

    def _critic_outputs(
        self, tensordict: TensorDictBase, action: Tensor, *, target: bool, detach: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Evaluate the critic; returns what :meth:`_critic` does, and what :meth:`_mix` wants beside it."""
        if unravel_key(self.tensor_keys.action) not in map(unravel_key, self.qvalue_network.in_keys):
            raise ValueError(
                f"The critic reads {self.qvalue_network.in_keys}, not the action {self.tensor_keys.action!r}; name its "
                "action by set_keys(action=...)."
            )
        name = "target_qvalue_network_params" if target else "qvalue_network_params"
        params = getattr(self, name).detach() if detach else getattr(self, name)
        key = self.tensor_keys.state_action_value if self._is_central else self.tensor_keys.local_state_action_value
        of_action, read = unravel_key(self.tensor_keys.action), self._read_beside_values()
        keys = [unravel_key(key), *(other for other in read if other != of_action)]
        given = {joined(of_action): action}
        with part("forward target critic" if target else "forward critic"):
            if self._ensemble:
                stacked = self._of_ensemble(self._inputs(self.qvalue_network, tensordict, **given), params)
                found = {key: _full_precision(stacked.get(key)) for key in keys}  # [E, *B, (n,) H]
                found = {key: value.movedim(0, -2).flatten(-2) for key, value in found.items()}
            else:
                found = self._evaluate(self.qvalue_network, params, tensordict, **given)
        values = found[keys[0]]
        # A critic learns by its values alone (QPLEX's authors detach the advantages); a policy, by all that it moves.
        moved = found if detach else {key: entry.detach() for key, entry in found.items()}
        beside = {joined(other): action if other == of_action else moved[other] for other in read}
        return values.unsqueeze(-2) if self._is_central else values, beside  # [*B, H] -> [*B, 1, H]

    def _of_ensemble(self, inputs: TensorDict, params: TensorDictBase) -> TensorDictBase:
        """Return the outputs of all critics of an ensemble, ``[E, *B]``."""
        network = self.qvalue_network

        def one(inputs: TensorDictBase, params: TensorDictBase) -> TensorDictBase:
            with parameters_in(network, params):
                return network(inputs)

        if self.deactivate_vmap:
            return torch.stack([one(inputs.copy(), member) for member in tree_of(params).unbind(0)])
        return torch.vmap(one, (None, 0), randomness=self.vmap_randomness)(inputs, params)

    def _read_beside_values(self) -> list[NestedKey]:
        """Return what the mixer reads of a joint action beside local values: the action, other outputs of the critic.

        State values have none of it: a mixer takes it as its last arguments, and mixes state values without.
        """
        if self.mixer_network is None:
            return []
        of_action = {unravel_key(self.tensor_keys.action), *map(unravel_key, self.qvalue_network.out_keys)}
        return [key for key in map(unravel_key, self.mixer_network.in_keys[1:]) if key in of_action]

    def _mixed(
        self, tensordict: TensorDictBase, values: Tensor, target: bool, detach: bool = False, **beside: Tensor
    ) -> Values:
        if self._is_central:
            return Values(None, values)
        return Values(values, self._mix(tensordict, values, target=target, detach=detach, **beside))

    @property
    def _is_central(self) -> bool:
        return self.mixer_network is None and self.is_team

    def _mix(
        self, tensordict: TensorDictBase, values: Tensor, *, target: bool, detach: bool = False, **beside: Tensor
    ) -> Tensor:
        """Map local values ``[*B, n, H]`` to total values ``[*B, k, H]``.

        Args:
            tensordict: the state, and whatever else the mixer reads of a batch.
            values: action values, or, without ``beside``, state values.
            target: use the target mixer.
            detach: keep the gradient from the mixer's parameters.
            **beside: of action values, what :meth:`_read_beside_values` names, by joined key names.
        """
        mixer = self.mixer_network
        if mixer is None:
            return values
        if not self._mixer_accepts_heads and values.shape[-1] > 1:
            whole = {name: entry for name, entry in beside.items() if name == joined(self.tensor_keys.action)}
            rest = [name for name in beside if name not in whole]
            heads = zip(*(entry.split(1, -1) for entry in (values, *(beside[name] for name in rest))))
            mixed = [
                self._mix(tensordict, head, target=target, detach=detach, **whole, **dict(zip(rest, others)))
                for head, *others in heads
            ]
            return torch.cat(mixed, -1)
        given = {joined(mixer.in_keys[0]): values} | dict.fromkeys(map(joined, self._read_beside_values())) | beside
        params = None
        if self._mixer_has_params:
            params = self.target_mixer_network_params if target else self.mixer_network_params
            params = params.detach() if detach else params
        with part("forward target mixer" if target else "forward mixer"):
            mixed = self._evaluate(mixer, params, tensordict, **given)
        return mixed[unravel_key(mixer.out_keys[-1])].unsqueeze(-2)

    def credit(self, tensordict: TensorDictBase, values: Tensor) -> Tensor:
        r"""Return :math:`\partial Q_{tot} / \partial Q_a` of the target mixer at local values ``[*B, n, H]``.

        Of their shape, without gradient; 1 for agents without a mixer. A mixer that reads the joint action gets the
        recorded one.
        """
        mixer = self.mixer_network
        if mixer is None:
            return torch.ones_like(values)
        module = getattr(mixer, "module", mixer)
        if not hasattr(module, "credit"):
            raise ValueError(
                f"{type(module).__name__} does not tell the weights of the agents; give it a method credit(values, "
                "state), or take HyperNetworkMixer, LinearMixer or SumMixer."
            )
        given = {joined(mixer.in_keys[0]): values} | dict.fromkeys(map(joined, self._read_beside_values()))
        given.pop(joined(self.tensor_keys.action), None)
        entries = self._entries(mixer, tensordict, **given)
        params = self.target_mixer_network_params if self._mixer_has_params else None
        with torch.no_grad(), nullcontext() if params is None else parameters_in(mixer, params):
            return _full_precision(module.credit(*entries.values()))

    def state_value(self, tensordict: TensorDictBase, *, target: bool = False) -> Values:
        """Evaluate the state-value network, or its target; local values go through the target mixer."""
        values, is_total = self._state_network(tensordict, target=target)
        return Values(None, values) if is_total else self._mixed(tensordict, values, target=True)

    def _state_network(self, tensordict: TensorDictBase, *, target: bool = False) -> tuple[Tensor, bool]:
        """Return ``[*B, k, 1]`` and whether these are the team's values already."""
        params = self.target_value_network_params if target else self.value_network_params
        with part("forward value"):
            out = self._evaluate(self.value_network, params, tensordict)
        total = out.get(unravel_key(self.tensor_keys.state_value))
        if total is not None:
            return total.unsqueeze(-2), True
        if self._is_central:
            raise ValueError(
                "A critic without local values needs a team state value; pass value=make_value(spec, "
                "decomposition=...) of the critic's decomposition, 'centralized' or 'graph'."
            )
        return out.get(unravel_key(self.tensor_keys.local_state_value)), False

    def target_and_state_value(self, tensordict: TensorDictBase, action: Tensor) -> tuple[Values, Values]:
        """Evaluate the target critic at ``action`` and the state-value network.

        In one pass of the target mixer, unless it reads more of an action than its values.
        """
        with torch.no_grad():
            critic, beside = self._critic_outputs(tensordict, action, target=True)
        state, is_total = self._state_network(tensordict)
        if is_total or beside or self.mixer_network is None:
            with torch.no_grad():
                target = self._mixed(tensordict, critic, target=True, **beside)
            return target, Values(None, state) if is_total else self._mixed(tensordict, state, target=True)
        heads = critic.shape[-1]
        mixed = self._mix(tensordict, torch.cat([critic, state], -1), target=True)
        return Values(critic, mixed[..., :heads].detach()), Values(state, mixed[..., heads:])

    def policy(self, tensordict: TensorDictBase) -> Distribution:
        """Return the agents' action distribution; of a deterministic actor, its action's :class:`Delta`."""
        actor = self.actor_network
        with part("forward actor"), parameters_in(actor, self.actor_network_params):
            policy = per_agent(self._distribution(actor, tensordict))
        if self._bounds_given or ("action_low" in self._buffers and bounds_or_none(policy) is None):
            policy.action_bounds = Bounds(self.action_low, self.action_high)
        return policy

    def _distribution(self, actor: TensorDictModuleBase, tensordict: TensorDictBase) -> Distribution:
        inputs = self._inputs(actor, tensordict)
        if self._deterministic:
            action = self._evaluate(actor, None, inputs).get(unravel_key(self.tensor_keys.action))
            if action is None:
                raise ValueError(
                    f"The actor writes {actor.out_keys}, not the action {self.tensor_keys.action!r}; name its action "
                    "by set_keys(action=...)."
                )
            if not action.is_floating_point():
                raise ValueError(
                    "The actor is deterministic and writes whole numbers; give it a categorical distribution of its "
                    "scores (ProbabilisticActor), through which a gradient can pass."
                )
            return Delta(action)
        if not isinstance(actor, TensorDictSequential) or not _ends_in_its_distribution(actor):
            return actor.get_dist(inputs)
        *heads, distribution = actor.module
        for head in heads:
            inputs.update(self._evaluate(head, None, inputs))
        return distribution.get_dist(inputs)

    def policy_action(self, tensordict: TensorDictBase) -> Tensor:
        """Return the mode of the policy, without gradient."""
        with torch.no_grad():
            return mode_of(self.policy(tensordict))

    def behaviour_outputs(
        self, tensordict: TensorDictBase, *, module: str | None = None, detach: bool = False, **given: Tensor
    ) -> Mapping[NestedKey, Tensor]:
        """Evaluate the model of the data's actions.

        Args:
            tensordict: its inputs.
            module: the one to evaluate of a :class:`~tensordict.nn.TensorDictSequential` of named modules.
            detach: keep the gradient from its parameters.
            **given: inputs in place of those in ``tensordict``, by the key's parts joined with a dot.
        """
        network, params = self.behaviour_network, self.behaviour_network_params
        with part("forward behaviour"), parameters_in(network, params.detach() if detach else params):
            return self._evaluate(network if module is None else network[module], None, tensordict, **given)

    @torch.no_grad()
    def qvalue(self, tensordict: TensorDictBase) -> Tensor:
        """Return the minimum head's value of the recorded joint action, ``[*B, k]``, in units of discounted return."""
        return self.action_value(tensordict, tensordict.get(self.tensor_keys.action)).total_min.squeeze(-1)


class Estimates:
    """The values of one batch, each computed at most once for all the terms that need it."""

    def __init__(self, loss: OfflineMARLLoss, tensordict: TensorDictBase) -> None:
        self._loss, self._tensordict = loss, tensordict
        self._action = tensordict.get(loss.tensor_keys.action)
        # functools.cached_property holds a lock, which torch.compile cannot trace
        self._live: Values | None = None
        self._target: Values | None = None
        self._state: Values | None = None
        self._policy: Distribution | None = None
        self._credit: Tensor | None = None

    @property
    def policy(self) -> Distribution:
        """The agents' action distribution."""
        if self._policy is None:
            self._policy = self._loss.policy(self._tensordict)
        return self._policy

    @property
    def credit(self) -> Tensor:
        """What each agent's value counts for the team's, at the smaller head's local values: ``[*B, n, 1]``."""
        if self._credit is None:
            local = (self.target if self._has_state else self.live).local_min.detach()
            self._credit = self._loss.credit(self._tensordict, local)
        return self._credit

    @property
    def _has_state(self) -> bool:
        return "value_network" in self._loss.__dict__

    @property
    def live(self) -> Values:
        """The critic at the dataset's action."""
        if self._live is None:
            with self._graph_if_trained():
                self._live = self._loss.action_value(self._tensordict, self._action)
        return self._live

    @property
    def target(self) -> Values:
        """The target critic at the dataset's action, without gradient."""
        return self._target_and_state()[0]

    @property
    def state(self) -> Values:
        """The state-value network."""
        return self._target_and_state()[1]

    def _target_and_state(self) -> tuple[Values, Values]:
        if self._target is None or self._state is None:
            with self._graph_if_trained():
                self._target, self._state = self._loss.target_and_state_value(self._tensordict, self._action)
        return self._target, self._state

    def _graph_if_trained(self) -> torch.set_grad_enabled:
        """Build no graph for values that no term trains, as in a loss with an actor term alone."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and self._loss.value_learning is not None)

    def advantage(
        self, kind: Literal["local", "joint", "weighted"], *, expected: bool = False, online: bool = False
    ) -> Tensor:
        """Return ``[*B, n]`` (or ``[*B, 1]`` for a team) without gradient.

        Args:
            kind: see :class:`AWR`.
            online: with a state-value network, of the critic that is trained, not of its target.
            expected: without a state-value network, subtract the mean over a discrete policy's actions.
        """
        loss, tensordict = self._loss, self._tensordict
        if self._has_state:
            action, state = self.live if online else self.target, self.state
        else:
            action = self.live
            with torch.no_grad():
                if expected and action.local is not None and is_discrete(self.policy):
                    local = expected_value(loss, tensordict, self.policy)
                    state = loss._mixed(tensordict, local, False)
                else:
                    state = loss.action_value(tensordict, mode_of(self.policy))
        if kind == "joint" or action.local is None or state.local is None:
            return (action.total_min - state.total_min).squeeze(-1).detach()
        advantage = (action.local_min - state.local_min).detach()
        return (advantage * self.credit if kind == "weighted" else advantage).squeeze(-1)


def joined(key: NestedKey) -> str:
    """Return a nested key as one name, its parts joined by dots."""
    return key if isinstance(key, str) else ".".join(key)


def memory_keys(*networks: TensorDictModuleBase | None) -> frozenset[NestedKey]:
    """Return what TorchRL's networks with memory read beside their input: hidden states, and where episodes begin."""
    modules = [module for network in networks if network is not None for module in network.modules()]
    recurrent = [module for module in modules if isinstance(module, (LSTMModule, GRUModule))]
    return frozenset(unravel_key(key) for module in recurrent for key in module.in_keys[1:])


def rows_are_independent(network: TensorDictModuleBase | None) -> bool:
    """Whether a network is known to look at one row of a batch at a time, as all of this library's do.

    Networks of others may have memory: they read time along the batch's last dimension.
    """
    if network is None:
        return True
    known = ("torchrl_marl_offline.", "tensordict.", "torch.nn.modules.container", *_POINTWISE)
    return all(type(module).__module__.startswith(known) for module in network.modules())


_POINTWISE = tuple(f"torch.nn.modules.{name}" for name in ("linear", "activation", "normalization", "dropout"))


def is_deterministic_actor(actor: TensorDictModuleBase) -> bool:
    """Whether an actor writes one action, without a distribution."""
    random = any(isinstance(module, ProbabilisticTensorDictModule) for module in actor.modules())
    return isinstance(actor, Actor) or not (random or hasattr(actor, "get_dist"))


def _ends_in_its_distribution(actor: TensorDictSequential) -> bool:
    *heads, last = actor.module
    return isinstance(last, ProbabilisticTensorDictModule) and all(map(is_deterministic_actor, heads))


def _is_plain(network: TensorDictModuleBase) -> bool:
    """Whether a network is a function from its inputs to its outputs, with nothing that only a tensordict brings."""
    if type(network) is not TensorDictModule or network._forward_hooks or network._forward_pre_hooks:
        return False
    return network.method is None and network._kwargs is None and not network._get_kwargs


def _full_precision(value: Tensor) -> Tensor:
    """Undo what autocast did to a network's output: losses and targets are in full precision."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
