"""The networks of a loss: values, mixed and not, policies and the model of the data, under the loss's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.modules import Actor, Delta, GRUModule, LSTMModule, set_recurrent_mode
from torchrl.objectives.common import LossModule

from torchrl_marl_offline.core.functional_parameters import parameters_in, tree_of
from torchrl_marl_offline.core.layout import IS_INIT, joined
from torchrl_marl_offline.core.parts import part
from torchrl_marl_offline.data.policy_fit import hidden_states
from torchrl_marl_offline.modules.batch_norm import BatchNorm
from torchrl_marl_offline.modules.distributions import WithoutDensity
from torchrl_marl_offline.modules.history import HistoryEncoder
from torchrl_marl_offline.modules.input_norm import seen_by
from torchrl_marl_offline.objectives.action_distributions import Bounds, bounds_or_none, per_agent
from torchrl_marl_offline.objectives.histories import Histories


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


class Network:
    """One network as a function from the entries that it reads to those that it writes.

    Args:
        module: the network.
        owner: whose loss it is part of, for errors.
        memory: what networks with memory read that a batch may lack.
    """

    def __init__(self, module: TensorDictModuleBase, owner: LossModule, memory: frozenset[NestedKey]) -> None:
        self.module, self.owner, self.memory = module, owner, memory
        self.reads = {key: joined(key) for key in map(unravel_key, module.in_keys)}
        # a function from inputs to outputs, with nothing that only a tensordict brings
        plain = type(module) is TensorDictModule and module.method is None
        self.is_plain = plain and module._kwargs is None and not module._get_kwargs
        self.writes = tuple(map(unravel_key, module.out_keys_source if self.is_plain else module.out_keys))

    def entries(self, tensordict: TensorDictBase, **given: Tensor | None) -> dict[NestedKey, Tensor]:
        """Return what it reads; ``given`` overrides by joined key name, and leaves out what it has None for.

        Raises:
            KeyError: the batch lacks one.
        """
        entries = {}
        for key, name in self.reads.items():
            entry = given[name] if name in given else tensordict.get(key, None)
            if entry is None and key in self.memory:
                if key != IS_INIT:  # a hidden state, which its module takes for zeros
                    continue
                entry = torch.zeros(*tensordict.batch_size, 1, dtype=torch.bool, device=tensordict.device)
            if entry is not None:
                entries[key] = entry
            elif name not in given:
                raise KeyError(lacking(self.owner, key, tensordict))
        return entries

    def __call__(
        self, params: TensorDictBase | None, tensordict: TensorDictBase, **given: Tensor | None
    ) -> Mapping[NestedKey, Tensor]:
        """Return what it writes, under ``params`` (None: those that it has), in full precision."""
        entries, module = self.entries(tensordict, **given), self.module
        with nullcontext() if params is None else parameters_in(module, params):
            if self.is_plain and not (module._forward_hooks or module._forward_pre_hooks):
                outputs = module.module(*entries.values())
                outputs = zip(self.writes, outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
            else:
                found = module(TensorDict(entries, tensordict.batch_size))
                outputs = ((key, found.get(key)) for key in map(unravel_key, module.out_keys))
            return {key: full_precision(value) for key, value in outputs}


def check_values(
    role: str,
    network: TensorDictModuleBase,
    key: NestedKey,
    values: Tensor,
    tensordict: TensorDictBase,
    last: str,
    *,
    of_team: bool,
) -> None:
    """Refuse values that lack a dimension, which would be taken for other ones.

    Args:
        role: of the network, in words.
        network: that wrote them.
        key: at which it did.
        values: what it wrote.
        tensordict: what it read.
        last: name of the last dimension.
        of_team: whether they are the team's, without a dimension of agents.

    Raises:
        ValueError: it names the network, the key and the shape.
    """
    names = ["*B", last] if of_team else ["*B", "n", last]
    if values.ndim < tensordict.ndim + len(names) - 1:
        kind = type(getattr(network, "module", network)).__name__
        raise ValueError(
            f"The {role} ({kind}) writes {list(values.shape)} at {key!r} for a batch of {list(tensordict.batch_size)}; "
            f"it must write [{', '.join(names)}], so unsqueeze(-1) what it returns."
        )


class TeamNetworks:
    """The networks that a loss owns, evaluated under its parameters, those of its targets, or without gradient to them.

    Args:
        loss: a loss whose networks are in place, as :class:`OfflineMARLLoss` registers them.

    Attributes:
        is_ensemble: whether the critic is a list, or copies, of networks.
        is_deterministic: whether the actor writes one action, without a distribution.
        memory: what networks with memory read beside their input.
        has_torchrl_memory: whether one has TorchRL's ``LSTMModule`` or ``GRUModule``.
        normalizes_rows: whether one normalizes by the batch, and all of them read rows each for itself.
        histories: what networks behind a :class:`~torchrl_marl_offline.modules.HistoryEncoder` read of the past.
    """

    def __init__(self, loss: LossModule, *, is_ensemble: bool, bounds_given: bool) -> None:
        self.loss, self.is_ensemble, self.bounds_given = loss, is_ensemble, bounds_given
        held = vars(loss)
        self.actor, self.critic, self.value, self.mixer, self.behaviour_model = (
            held.get(f"{name}_network") for name in ("actor", "qvalue", "value", "mixer", "behaviour")
        )
        networks = (self.actor, self.critic, self.value, self.mixer, self.behaviour_model)
        self.memory = memory_keys(*networks)
        for network in networks:
            hidden_states(network)  # refuses two at one key
        self.has_torchrl_memory = bool(_parts_of_kind(networks, LSTMModule, GRUModule))
        normalizing = (BatchNorm, nn.modules.batchnorm._BatchNorm)
        self.normalizes_rows = bool(_parts_of_kind(networks, *normalizing)) and not self.has_torchrl_memory
        self.histories = Histories(
            loss,
            {"actor": self.actor, "qvalue": self.critic, "value": self.value},
            {"mixer": self.mixer, "model of the data's actions": self.behaviour_model},
        )
        if is_ensemble and not loss.deactivate_vmap and _parts_of_kind([self.critic], nn.RNNBase):
            raise ValueError(
                "Critics of an ensemble are computed side by side by torch.vmap, which torch's GRU and LSTM cannot be; "
                "give deactivate_vmap=True, GRUModule(python_based=True), or critics of make_critic(memory='gru')."
            )
        # the networks as functions of rows: behind what remembers for them, where there is any
        heads = self.histories.heads
        self._actor_head, self._critic_head = heads.get("actor", self.actor), heads.get("qvalue", self.critic)
        self._value_head = heads.get("value", self.value)
        self.is_deterministic = self.actor is not None and is_deterministic_actor(self.actor)
        self.rows_are_independent = rows_are_independent(self._critic_head) and rows_are_independent(self.mixer)
        module = getattr(self.mixer, "module", self.mixer)
        self._mixer_accepts_heads = bool(getattr(module, "accepts_heads", False))
        self._mixer_is_trained = "mixer_network_params" in loss._modules
        self._functions_cache: dict[int, Network] = {}
        self._heads: list[TensorDictModuleBase] | None = None
        actor, critic, value = self._actor_head, self._critic_head, self._value_head
        if isinstance(actor, TensorDictSequential) and _ends_in_its_distribution(actor):
            self._heads = list(actor.module)[:-1]
        for module in (actor, critic, value, self.mixer, self.behaviour_model, *(self._heads or ())):
            if module is not None:
                self._function(module)
        self.take_keys()

    def _function(self, module: TensorDictModuleBase) -> Network:
        found = self._functions_cache.get(id(module))
        if found is None or found.module is not module:  # of a copy, whose modules have other addresses
            found = self._functions_cache[id(module)] = Network(module, self.loss, self.memory)
        return found

    def take_keys(self) -> None:
        """Read the loss's keys, after they were changed."""
        keys = self.loss.tensor_keys
        self.action_key = unravel_key(keys.action)
        self._action_name = joined(self.action_key)
        written = [] if self.critic is None else [unravel_key(key) for key in self.critic.out_keys]
        has_team_value = unravel_key(keys.state_action_value) in written
        has_local = unravel_key(keys.local_state_action_value) in written
        none_at_all = None if self.critic is not None else False
        self._is_team = self.mixer is not None or has_team_value or (False if has_local else none_at_all)
        self.is_central = self.mixer is None and self._is_team is True
        self.is_independent = self._is_team is False and self.critic is not None
        self._value_key = unravel_key(keys.state_action_value if self.is_central else keys.local_state_action_value)
        # What the mixer reads of a joint action beside local values: the action, other outputs of the critic. State
        # values have none of it: a mixer takes it as its last arguments, and mixes state values without.
        of_action = {self.action_key, *written}
        read = [] if self.mixer is None else map(unravel_key, self.mixer.in_keys[1:])
        self._beside = [key for key in read if key in of_action]
        self._without = dict.fromkeys(map(joined, self._beside))
        mixed = [] if self.mixer is None else [unravel_key(key) for key in self.mixer.out_keys]
        total = unravel_key(keys.state_action_value)
        self._total_key = total if total in mixed or not mixed else mixed[-1]

    @property
    def is_team(self) -> bool:
        """Whether the critic has a team value; otherwise every agent learns for itself."""
        if self._is_team is None:
            keys, written = self.loss.tensor_keys, [unravel_key(key) for key in self.critic.out_keys]
            raise ValueError(
                f"The critic writes {written}, neither the team's value {keys.state_action_value!r} nor local values "
                f"{keys.local_state_action_value!r}; name them by set_keys(state_action_value=...) or "
                "set_keys(local_state_action_value=...)."
            )
        return self._is_team

    def keys_of_values(self, tensordict: TensorDictBase, *, target: bool) -> list[NestedKey]:
        """Return what critic and mixer read of rows beside the action."""
        keys = [*self._critic_head.in_keys, *(self.mixer.in_keys if self.mixer is not None else ())]
        found = [key for key in map(unravel_key, keys) if key != self.action_key]
        return found + self.histories.keys(tensordict, "qvalue", target=target)

    def _over_time(self) -> AbstractContextManager:
        """Let TorchRL's memory read the last batch dimension as time, also where the loss itself is not called."""
        return set_recurrent_mode(True) if self.has_torchrl_memory else nullcontext()

    # ---------------------------------------------------------------- action values

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
        values, beside = self.critic_outputs(tensordict, action, target=target, detach=detach)
        return self.mixed(tensordict, values, target=target, detach=detach, **beside)

    def critic_outputs(
        self, tensordict: TensorDictBase, action: Tensor, *, target: bool, detach: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Evaluate the critic without its mixer: local values ``[*B, n, H]``, or a central one's ``[*B, 1, H]``.

        Beside them what :meth:`mix` wants of the joint action, by joined key names.
        """
        if self.critic is None:
            raise ValueError("The loss has no critic; a rule that asks it must not declare needs_critic = False.")
        function = self._function(self._critic_head)
        if self.action_key not in function.reads:
            raise ValueError(
                f"The critic reads {self.critic.in_keys}, not the action {self.loss.tensor_keys.action!r}; name its "
                "action by set_keys(action=...)."
            )
        params = self.loss.target_qvalue_network_params if target else self.loss.qvalue_network_params
        params = params.detach() if detach else params
        given = {self._action_name: action}
        given |= self.histories.features(tensordict, "qvalue", target=target, detach=detach)
        with part("forward target critic" if target else "forward critic"), self._over_time():
            if self.is_ensemble:
                found = self._of_ensemble(function.entries(tensordict, **given), tensordict.batch_size, params)
            else:
                found = self._behind(self.critic, function, params, tensordict, **given)
        if self._is_team is None:
            _ = self.is_team  # says what to name
        # A critic learns by its values alone (QPLEX's authors detach the advantages); a policy, by all that it moves.
        moved = found if detach else {key: entry.detach() for key, entry in found.items()}
        beside = {joined(other): action if other == self.action_key else moved[other] for other in self._beside}
        values = found[self._value_key]
        check_values("critic", self.critic, self._value_key, values, tensordict, "H", of_team=self.is_central)
        return values.unsqueeze(-2) if self.is_central else values, beside  # [*B, H] -> [*B, 1, H]

    def _behind(
        self,
        network: TensorDictModuleBase,
        function: Network,
        params: TensorDictBase,
        tensordict: TensorDictBase,
        **given: Tensor | None,
    ) -> Mapping[NestedKey, Tensor]:
        """Evaluate a network, or the part of it that stands behind its memory, under the network's parameters."""
        if function.module is network:
            return function(params, tensordict, **given)
        with parameters_in(network, params):
            return function(None, tensordict, **given)

    def _of_ensemble(
        self, entries: dict[NestedKey, Tensor], batch_size: torch.Size, params: TensorDictBase
    ) -> dict[NestedKey, Tensor]:
        """Return the outputs of all critics of an ensemble with their heads side by side, ``[*B, (n,) E * H]``."""
        network, head, loss = self.critic, self._critic_head, self.loss
        encoder = self.histories.encoders.get("qvalue")
        # every critic has a memory of its own
        own = {} if encoder is None else {unravel_key(encoder.history_key): None}
        own = {key: entries.pop(key).movedim(-2, 0) for key in own}
        inputs = TensorDict(entries, batch_size)

        def one(inputs: TensorDictBase, params: TensorDictBase, *of_member: Tensor) -> TensorDictBase:
            with parameters_in(network, params):
                return head(inputs.copy().update(dict(zip(own, of_member))) if own else inputs)

        if loss.deactivate_vmap:
            members = zip(tree_of(params).unbind(0), *own.values())
            stacked = torch.stack([one(inputs.copy(), *each) for each in members])
        else:
            in_dims = (None, 0, *(0 for _ in own))
            stacked = torch.vmap(one, in_dims, randomness=loss.vmap_randomness)(inputs, params, *own.values())
        keys = [self._value_key, *(key for key in self._beside if key != self.action_key)]
        found = {key: full_precision(stacked.get(key)) for key in keys}  # [E, *B, (n,) H]
        return {key: value.movedim(0, -2).flatten(-2) for key, value in found.items()}

    # ---------------------------------------------------------------------- the mixer

    def mixed(
        self, tensordict: TensorDictBase, values: Tensor, *, target: bool, detach: bool = False, **beside: Tensor
    ) -> Values:
        """Return local values and what the mixer makes of them; a central critic's as the total; see :meth:`mix`."""
        if self.is_central:
            return Values(None, values)
        return Values(values, self.mix(tensordict, values, target=target, detach=detach, **beside))

    def mix(
        self, tensordict: TensorDictBase, values: Tensor, *, target: bool, detach: bool = False, **beside: Tensor
    ) -> Tensor:
        """Map local values ``[*B, n, H]`` to total values ``[*B, k, H]``.

        Args:
            tensordict: the state, and whatever else the mixer reads of a batch.
            values: action values, or, without ``beside``, state values.
            target: use the target mixer.
            detach: keep the gradient from the mixer's parameters.
            **beside: of action values, what :meth:`critic_outputs` returns beside them.
        """
        mixer = self.mixer
        if mixer is None:
            return values
        if not self._mixer_accepts_heads and values.shape[-1] > 1:
            whole = {name: entry for name, entry in beside.items() if name == self._action_name}
            rest = [name for name in beside if name not in whole]
            heads = zip(*(entry.split(1, -1) for entry in (values, *(beside[name] for name in rest))))
            mixed = [
                self.mix(tensordict, head, target=target, detach=detach, **whole, **dict(zip(rest, others)))
                for head, *others in heads
            ]
            return torch.cat(mixed, -1)
        given = {joined(unravel_key(mixer.in_keys[0])): values} | self._without | beside
        params = None
        if self._mixer_is_trained:
            params = self.loss.target_mixer_network_params if target else self.loss.mixer_network_params
            params = params.detach() if detach else params
        with part("forward target mixer" if target else "forward mixer"), self._over_time():
            mixed = self._function(mixer)(params, tensordict, **given)
        return mixed[self._total_key].unsqueeze(-2)

    def credit(self, tensordict: TensorDictBase, values: Tensor) -> Tensor:
        r"""Return :math:`\partial Q_{tot} / \partial Q_a` of the target mixer at local values ``[*B, n, H]``.

        Of their shape, without gradient; 1 for agents without a mixer. A mixer that reads the joint action gets the
        recorded one.
        """
        mixer = self.mixer
        if mixer is None:
            return torch.ones_like(values)
        module = getattr(mixer, "module", mixer)
        if not hasattr(module, "credit"):
            raise ValueError(
                f"{type(module).__name__} does not tell the weights of the agents; give it a method credit(values, "
                "state), or take HyperNetworkMixer, LinearMixer or SumMixer."
            )
        given = {joined(unravel_key(mixer.in_keys[0])): values} | self._without
        given.pop(self._action_name, None)
        entries = self._function(mixer).entries(tensordict, **given)
        params = self.loss.target_mixer_network_params if self._mixer_is_trained else None
        with torch.no_grad(), nullcontext() if params is None else parameters_in(mixer, params):
            return full_precision(module.credit(*seen_by(module, *entries.values())))

    # ------------------------------------------------------------------ state values

    def state_value(self, tensordict: TensorDictBase, *, target: bool = False) -> Values:
        """Evaluate the state-value network, or its target; local values go through the target mixer."""
        values, is_total = self._state_network(tensordict, target=target)
        return Values(None, values) if is_total else self.mixed(tensordict, values, target=True)

    def _state_network(self, tensordict: TensorDictBase, *, target: bool = False) -> tuple[Tensor, bool]:
        """Return ``[*B, k, 1]`` and whether these are the team's values already."""
        loss, keys = self.loss, self.loss.tensor_keys
        if self.value is None:
            raise ValueError("The loss has no state-value network; a rule that asks it declares needs_value = True.")
        params = loss.target_value_network_params if target else loss.value_network_params
        with part("forward value"), self._over_time():
            given = self.histories.features(tensordict, "value", target=target)
            found = self._behind(self.value, self._function(self._value_head), params, tensordict, **given)
        total = found.get(unravel_key(keys.state_value))
        if total is not None:
            check_values("state-value network", self.value, keys.state_value, total, tensordict, "1", of_team=True)
            return total.unsqueeze(-2), True
        if self.is_central:
            raise ValueError(
                "A critic without local values needs a team state value; pass value=make_value(spec, "
                "decomposition=...) of the critic's decomposition, 'centralized' or 'graph'."
            )
        local, key = found.get(unravel_key(keys.local_state_value)), keys.local_state_value
        check_values("state-value network", self.value, key, local, tensordict, "1", of_team=False)
        return local, False

    def target_and_state_value(self, tensordict: TensorDictBase, action: Tensor) -> tuple[Values, Values]:
        """Evaluate the target critic at ``action`` and the state-value network.

        In one pass of the target mixer, unless it reads more of an action than its values.
        """
        with torch.no_grad():
            critic, beside = self.critic_outputs(tensordict, action, target=True)
        state, is_total = self._state_network(tensordict)
        if is_total or beside or self.mixer is None:
            with torch.no_grad():
                target = self.mixed(tensordict, critic, target=True, **beside)
            return target, Values(None, state) if is_total else self.mixed(tensordict, state, target=True)
        heads = critic.shape[-1]
        mixed = self.mix(tensordict, torch.cat([critic, state], -1), target=True)
        return Values(critic, mixed[..., :heads].detach()), Values(state, mixed[..., heads:])

    # ------------------------------------------------------- policies, and the data's model

    def policy(self, tensordict: TensorDictBase) -> Distribution:
        """Return the agents' action distribution; of a deterministic actor, its action's :class:`Delta`."""
        loss = self.loss
        if self.actor is None:
            raise ValueError("The loss has no actor; a value-learning rule that asks it declares needs_actor = True.")
        with part("forward actor"), self._over_time(), parameters_in(self.actor, loss.actor_network_params):
            policy = per_agent(self._distribution(tensordict))
        if self.bounds_given or ("action_low" in loss._buffers and bounds_or_none(policy) is None):
            policy.action_bounds = Bounds(loss.action_low, loss.action_high)
        return policy

    def _distribution(self, tensordict: TensorDictBase) -> Distribution:
        actor = self._actor_head
        given = self.histories.features(tensordict, "actor")
        inputs = TensorDict(self._function(actor).entries(tensordict, **given), tensordict.batch_size)
        if self.is_deterministic:
            action = self._function(actor)(None, inputs).get(self.action_key)
            if action is None:
                raise ValueError(
                    f"The actor writes {actor.out_keys}, not the action {self.loss.tensor_keys.action!r}; name its "
                    "action by set_keys(action=...)."
                )
            if not action.is_floating_point():
                raise ValueError(
                    "The actor is deterministic and writes whole numbers; give it a categorical distribution of its "
                    "scores (ProbabilisticActor), through which a gradient can pass."
                )
            return Delta(action)
        if self._heads is None:
            return actor.get_dist(inputs)
        for head in self._heads:
            inputs.update(self._function(head)(None, inputs))
        return actor.module[-1].get_dist(inputs)

    def behaviour(
        self, tensordict: TensorDictBase, *, module: str | None = None, detach: bool = False, **given: Tensor
    ) -> Mapping[NestedKey, Tensor]:
        """Evaluate the model of the data's actions.

        Args:
            tensordict: its inputs.
            module: the one to evaluate of a :class:`~tensordict.nn.TensorDictSequential` of named modules.
            detach: keep the gradient from its parameters.
            **given: inputs in place of those in ``tensordict``, by the key's parts joined with a dot.
        """
        if self.behaviour_model is None:
            raise ValueError(
                "The loss has no model of the data's actions; a rule that asks it declares needs_behaviour = True."
            )
        network, params = self.behaviour_model, self.loss.behaviour_network_params
        asked = network if module is None else network[module]
        params = params.detach() if detach else params
        with part("forward behaviour"), self._over_time(), parameters_in(network, params):
            return self._function(asked)(None, tensordict, **given)


def lacking(loss: LossModule, key: NestedKey, tensordict: TensorDictBase) -> str:
    """Return what to say of an entry that a batch lacks."""
    found = ", ".join(sorted(map(joined, tensordict.keys(True, True))))
    remedy = ""
    if unravel_key(key) == unravel_key(("next", loss.tensor_keys.action)):
        remedy = " The transform torchrl_marl_offline.NextAction adds it to a replay buffer of TorchRL's."
    return f"{type(loss).__name__} needs the entry {joined(key)}, which the batch lacks; it has {found}.{remedy}"


def memory_keys(*networks: TensorDictModuleBase | None) -> frozenset[NestedKey]:
    """Return what networks with memory read beside their input: hidden states, and where episodes begin."""
    found = _parts_of_kind(networks, LSTMModule, GRUModule, HistoryEncoder)
    return frozenset(unravel_key(key) for module in found for key in module.in_keys[1:])


def _parts_of_kind(networks: Sequence[TensorDictModuleBase | None], *kinds: type) -> list[TensorDictModuleBase]:
    modules = [module for network in networks if network is not None for module in network.modules()]
    return [module for module in modules if isinstance(module, kinds)]


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


def distribution_without_density(actor: TensorDictModuleBase) -> type | None:
    """Return an actor's distribution, if that has samples but no density."""
    for module in actor.modules():
        if isinstance(module, ProbabilisticTensorDictModule):
            kind = module.distribution_class
            if isinstance(kind, type) and issubclass(kind, WithoutDensity):
                return kind
    return None


def _ends_in_its_distribution(actor: TensorDictSequential) -> bool:
    *heads, last = actor.module
    return isinstance(last, ProbabilisticTensorDictModule) and all(map(is_deterministic_actor, heads))


def full_precision(value: Tensor) -> Tensor:
    """Undo what autocast did to a network's output: losses and targets are in full precision."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
