"""The loss: any value decomposition with any value-learning and any policy-extraction rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams, unravel_key
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential, dispatch
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules.models.multiagent import Mixer
from torchrl.modules.value_norm import ValueNorm
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import ValueEstimators, get_value_estimator_entry
from torchrl.objectives.value import TD0Estimator, TD1Estimator, TDLambdaEstimator, ValueEstimatorBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.functional_parameters import (
    check_uses_given_parameters,
    fit_batch_sizes,
    parameters_in,
)
from torchrl_marl_offline.core.layout import IS_INIT
from torchrl_marl_offline.core.masked_mean import masked_mean
from torchrl_marl_offline.core.ranges import DISCOUNT, FEW, REAL, check, declared
from torchrl_marl_offline.core.synchronized import is_shared, share_of_mean, share_of_sum
from torchrl_marl_offline.objectives.action_bounds import ActionSpec, bounds_of_spec, is_of_discrete_actions
from torchrl_marl_offline.objectives.action_distributions import mode_of
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.behaviour_learning import BehaviourLearning
from torchrl_marl_offline.objectives.extraction import AWR, EXTRACTIONS, PolicyExtraction
from torchrl_marl_offline.objectives.first_actions import check_first_actions
from torchrl_marl_offline.objectives.fitting import (
    check_coefficients,
    check_elements,
    check_ensemble,
    check_has_gradient,
    check_metrics,
    check_networks,
    check_pair,
    check_returned,
    check_row_mask,
)
from torchrl_marl_offline.objectives.histories import Role
from torchrl_marl_offline.objectives.prepared import (
    check_entries,
    counted_alone,
    indexed,
    rooted,
    sanitized,
    with_beginnings,
)
from torchrl_marl_offline.objectives.series import SEEN
from torchrl_marl_offline.objectives.targets import ESTIMATOR_KEYS, value_target
from torchrl_marl_offline.objectives.team import TeamNetworks, lacking
from torchrl_marl_offline.objectives.value_learning import (
    IQL,
    VALUE_LEARNINGS,
    ValueLearning,
    no_local_value,
    no_team_value,
)

_ROLES = {"actor_network": "actor", "qvalue_network": "critic", "mixer_network": "mixer"}
_ROLES |= {"value_network": "state-value network", "behaviour_network": "behaviour model"}


class OfflineMARLLoss(LossModule):
    r"""Offline multi-agent actor-critic in the axes of *A Recipe for Stable Offline Multi-agent RL* (Lee et al. 2026).

    Value decomposition is the critic that is passed in, value learning and policy extraction are rules, and scale is a
    TorchRL value norm:

    .. math::
        L = \underbrace{\mathbb{E}\,(\hat Q_{tot} - \hat y)^2}_{\text{loss\_qvalue}}
          + \underbrace{\mathbb{E}\,\ell^2_\tau(Q_{tot} - V_{tot})}_{\text{loss\_value (IQL)}}
          + \underbrace{\mathbb{E}\,\ell_\pi}_{\text{loss\_actor}}, \qquad y = r + \gamma (1 - d)\,\text{next value}

    Each term sends gradient to its own network only (the first also to the mixer).

    Args:
        actor: a TorchRL actor, for instance from :func:`~torchrl_marl_offline.make_actor`. None where no rule asks it.
        critic: a module, or a list of modules as an ensemble, that writes a team value ``"state_action_value"``
            ``[*B, H]``, or local values ``("agents", "state_action_value")`` ``[*B, n, H]``, or both by a
            :class:`~tensordict.nn.TensorDictSequential` that ends in a mixer (any TorchRL
            :class:`~torchrl.modules.models.multiagent.Mixer`, ours included). ``H`` may be 1. Of a discrete task it
            gets recorded actions as indices ``[*B, n]`` and a policy's, or all that there are, as indices or one-hot
            numbers ``[*B, n, A]``: its first module takes both, as :func:`~torchrl_marl_offline.make_critic`'s do.
        value: the state-value network of implicit Q-learning.

    Networks may have memory: they begin with a :class:`~torchrl_marl_offline.modules.HistoryEncoder`
    (``make_actor(memory="gru")``), which is unrolled once over the rows ``[*B, T]``, steps of episodes one after
    another as ``dataset.replay_buffer(slice_len=, burn_in=)`` draws them. Or they have TorchRL's
    :class:`~torchrl.modules.LSTMModule` or :class:`~torchrl.modules.GRUModule`, which read the last batch dimension as
    time in each of their passes: hidden states that a batch lacks are zeros, as in TorchRL's losses. Memory starts
    anew behind every ``done`` and where ``"is_init"`` says so.

    Keyword Args:
        value_learning: :class:`TD`, :class:`SARSA`, :class:`IQL`, or None for no critic term.
        extraction: :class:`AWR`, :class:`BRAC`, :class:`Cloning`, or None for no actor term.
        behaviour_learning: a rule that fits ``behaviour``, or None.
        behaviour: a generative model of the data's actions, for rules that ask one.
        mixer: a mixer module, if ``critic`` does not end in one.
        value_norm: a TorchRL value norm for the critic term, for instance
            :class:`~torchrl_marl_offline.ScaleInvariantValueNorm`; None for none.
        heads: ``"all"`` trains every head (their losses are summed, as TorchRL does), ``"min"`` only the smaller one at
            each row, as the paper's listing does; both under the statistics of the minimum. They were measured to learn
            alike (``benchmarks/RESULTS.md``); the default is TorchRL's custom.
        team_reward: ``"mean"`` over agents (the paper) or ``"sum"`` (its released code); not used by independent
            agents.
        max_next_value: upper bound of the next value in the critic's target, for instance the largest return in the
            data (critic clipping; Kim and Sycara 2025); then a buffer, as ``loss.max_next_value = 300.0``. None for
            none, which cannot become one.
        num_qvalue_nets: copies of a single ``critic`` (its parameters are then resampled uniformly, a TorchRL rule);
            a list gives its own length.
        action_spec: bounds of continuous actions, for rules that search or sample between them (:class:`CQL`,
            :class:`RectifiedGradient`, :class:`TD` with noise): a TorchRL spec, such as ``env.full_action_spec``, or
            ``(low, high)``. Needed where the policy does not tell: it has neither ``low`` and ``high`` nor a bounded
            support, and the actor no spec, as of a plain network. Samples of the policy are clipped to them. A spec of
            discrete actions may be given, and says nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``; None, as in TorchRL's losses, for the default.
        deactivate_vmap: evaluate an ensemble in a loop instead of by vmap.

    Output:
        ``loss_actor``, ``loss_qvalue``, ``loss_value``, ``loss_behaviour`` (those that apply) and, unless
        ``reduction="none"``, detached metrics: ``qvalue``, ``qvalue_abs``, ``td_target``, ``td_error_abs``,
        ``value_norm_scale``, ``state_value``, and the rules' own. The priority ``"td_error"`` ``[*B]`` is written into
        the input.

    Attributes:
        team: the networks as functions, see :class:`~torchrl_marl_offline.objectives.team.TeamNetworks`.

    Raises:
        ValueError: where the networks and the rules do not fit together; the message says what to add.
        KeyError: where the batch lacks an entry.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> loss = OfflineMARLLoss(
        ...     make_actor(spec), make_critic(spec, decomposition="mixer"), make_value(spec, decomposition="mixer"),
        ...     value_learning=IQL(expectile=0.9), extraction=AWR(temperature=10.0),
        ...     value_norm=ScaleInvariantValueNorm(),
        ... ).make_value_estimator(gamma=0.99)
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> terms = loss(batch)
        >>> (terms["loss_qvalue"] + terms["loss_value"] + terms["loss_actor"]).backward()
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that :meth:`set_keys` changes; the defaults are the library's layout.

        Attributes:
            action: the agents' actions.
            reward: rewards, ``[*B, n, 1]`` per agent or ``[*B, 1]`` for the team.
            done: end of an episode.
            terminated: end of an episode that is not a time limit; the only one that stops bootstrapping.
            agent_mask: optional, false for dead or padding agents.
            action_mask: optional, true for legal actions of a discrete task, for rules that ask for every action.
            has_next_action: optional, false where the dataset's next action is unknown.
            state_action_value: the team's value, written by the critic.
            local_state_action_value: local values, written by the critic.
            state_value: the team's state value, written by the value network.
            local_state_value: local state values, written by the value network.
            priority: where the absolute TD error goes.
            priority_weight: importance weights of a prioritized sampler.
        """

        action: NestedKey = ("agents", "action")
        reward: NestedKey = ("agents", "reward")
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        agent_mask: NestedKey = ("agents", "mask")
        action_mask: NestedKey = ("agents", "action_mask")
        has_next_action: NestedKey = ("collector", "has_next_action")
        state_action_value: NestedKey = "state_action_value"
        local_state_action_value: NestedKey = ("agents", "state_action_value")
        state_value: NestedKey = "state_value"
        local_state_value: NestedKey = ("agents", "state_value")
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    _coefficients: frozenset[str] = frozenset()
    """Names of the buffers that may be scheduled as plain numbers: the rules' own, and ``max_next_value``."""

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    mixer_network: TensorDictModule
    mixer_network_params: TensorDictParams
    target_mixer_network_params: TensorDictParams
    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams
    behaviour_network: TensorDictModule
    behaviour_network_params: TensorDictParams
    target_behaviour_network_params: TensorDictParams

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase | None,
        critic: TensorDictModuleBase | Sequence[TensorDictModuleBase] | None,
        value: TensorDictModuleBase | None = None,
        *,
        value_learning: ValueLearning | None = IQL(),  # noqa: B008
        extraction: PolicyExtraction | None = AWR(),  # noqa: B008
        behaviour_learning: BehaviourLearning | None = None,
        behaviour: TensorDictModuleBase | None = None,
        mixer: TensorDictModuleBase | None = None,
        value_norm: ValueNorm | None = None,
        heads: Literal["all", "min"] = "all",
        team_reward: Literal["mean", "sum"] = "mean",
        max_next_value: Annotated[float | None, REAL] = None,
        num_qvalue_nets: Annotated[int, FEW] = 1,
        action_spec: ActionSpec | None = None,
        reduction: Literal["mean", "sum", "none"] | None = "mean",
        deactivate_vmap: bool = False,
    ) -> None:
        super().__init__()
        reduction = "mean" if reduction is None else reduction
        rules = {"learning": value_learning, "extraction": extraction, "behaviour_learning": behaviour_learning}
        check_networks(type(self).__name__, actor, critic, value, behaviour, **rules, value_norm=value_norm)
        check_metrics(list(rules.values()))
        self.value_learning, self.extraction, self.value_norm = value_learning, extraction, value_norm
        self.behaviour_learning = behaviour_learning
        self.heads, self.team_reward, self.reduction = heads, team_reward, reduction
        self.deactivate_vmap = deactivate_vmap
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[str] | None = None
        self._held: tuple[str, ...] = ()
        is_ensemble = self._register_networks(actor, critic, value, mixer, num_qvalue_nets)
        if behaviour is not None:
            self.convert_to_functional(behaviour, "behaviour_network")
        if action_spec is not None and is_of_discrete_actions(action_spec, self.tensor_keys.action):
            action_spec = None
        self._register_bounds(action_spec, actor)
        self._register_coefficients({} if max_next_value is None else {"max_next_value": max_next_value})
        self.team = TeamNetworks(self, is_ensemble=is_ensemble, bounds_given=action_spec is not None)
        if value_learning is not None and value_learning.needs_local_value and self.team.is_central:
            raise ValueError(no_local_value(value_learning))
        if value_learning is not None and value_learning.needs_team_value and self.team.is_independent:
            raise ValueError(no_team_value(value_learning))
        self._make_vmap()

    def _register_networks(self, actor, critic, value, mixer, num_qvalue_nets) -> bool:
        """Take the networks' parameters; return whether the critic is an ensemble."""
        # What no term trains is held by reference, so that it follows the loss that does train it.
        held = [] if self.value_learning is not None else _parameters(critic, value, mixer)
        if self.value_learning is None:
            self._held += ("qvalue_network_params", "mixer_network_params", "value_network_params")
            if isinstance(critic, (list, tuple)):
                raise ValueError(
                    f"{type(self).__name__} trains no critic, and of a list of critics it would hold a copy that does "
                    "not follow their training; pass one critic with num_heads=, or train both in one OfflineMARLLoss."
                )
        if self.extraction is None:
            self._held += ("actor_network_params",)
        if actor is not None:
            self.convert_to_functional(actor, "actor_network")
        if critic is None:
            return False
        if mixer is None:
            critic, mixer = _split_mixer(critic)
        expand = (
            len(critic) if isinstance(critic, (list, tuple)) else (num_qvalue_nets if num_qvalue_nets > 1 else None)
        )
        train = self.value_learning is not None
        self.convert_to_functional(
            critic, "qvalue_network", expand_dim=expand, create_target_params=train, compare_against=held
        )
        self.__dict__["mixer_network"] = mixer
        if mixer is not None and any(True for _ in mixer.parameters()):
            self.convert_to_functional(mixer, "mixer_network", create_target_params=train, compare_against=held)
        if value is not None:
            target = train and self.value_learning.needs_target_value
            self.convert_to_functional(value, "value_network", create_target_params=target, compare_against=held)
        return expand is not None

    @property
    def has_memory(self) -> bool:
        """Whether a network has memory: a ``HistoryEncoder``, or TorchRL's ``LSTMModule`` or ``GRUModule``."""
        return bool(self.team.memory)

    def _register_bounds(self, action_spec, actor) -> None:
        given = action_spec is not None
        spec = action_spec if given else getattr(actor, "spec", None)
        if spec is None or not (given or isinstance(spec, TensorSpec)):
            return
        try:
            bounds = bounds_of_spec(spec, self.tensor_keys.action)
        except ValueError:
            if given:
                raise
            return  # an actor's spec need not have any
        device = next((p.device for p in self.parameters()), None)
        for name, bound in zip(("action_low", "action_high"), bounds):
            self.register_buffer(name, bound.to(device), persistent=False)

    def _register_coefficients(self, coefficients: dict[str, float]) -> None:
        for rule in (self.value_learning, self.extraction, self.behaviour_learning):
            own = {} if rule is None else check_coefficients(rule, rule.coefficients())
            if shared := own.keys() & coefficients.keys():
                raise ValueError(
                    f"{type(rule).__name__} and another rule both have a coefficient {min(shared)!r}; give one of them "
                    "another name."
                )
            coefficients = coefficients | own
        device = next((p.device for p in self.parameters()), None)
        for name, coefficient in coefficients.items():
            if hasattr(self, name):
                raise ValueError(f"A coefficient cannot be named {name!r}, which {type(self).__name__} has already.")
            self.register_coeff_buffer(name, float(coefficient), device=device, dtype=torch.get_default_dtype())
        self._coefficients = frozenset(coefficients)

    def __setattr__(self, name: str, value) -> None:
        """Write numbers into coefficients, so that they may be scheduled as ``loss.temperature = 3.0``.

        Raises:
            ValueError: a number that the rule does not take when it is made, what is no number, and a number for what
                cannot be scheduled.
        """
        if name not in self._coefficients:
            if isinstance(value, (int, float)) and not hasattr(self, name):
                self._check_is_no_setting(name)
            super().__setattr__(name, value)
        elif isinstance(value, Tensor) and value.shape == self._buffers[name].shape:
            super().__setattr__(name, value)
        else:
            for owner in (self, *self._rules()):
                if name in (known := declared(type(owner))):
                    check(name, value, known[name][0])
            if not isinstance(value, (int, float)):
                raise ValueError(f"{name} must be a number, got {value!r:.60}.")
            self._buffers[name].fill_(value)

    def _rules(self) -> list[ValueLearning | PolicyExtraction | BehaviourLearning]:
        found = (vars(self).get(name) for name in ("value_learning", "extraction", "behaviour_learning"))
        return [rule for rule in found if rule is not None]

    def _check_is_no_setting(self, name: str) -> None:
        """Refuse a number that nothing would read: a rule's setting, and a misspelt coefficient.

        A class of another package may have numbers of its own, but for the settings of its rules.
        """
        told = ", ".join(sorted(self._coefficients)) or "nothing"
        rules = [type(rule) for rule in self._rules()]
        if type(self).__module__.partition(".")[0] == __name__.partition(".")[0]:
            rules += [*EXTRACTIONS.values(), *VALUE_LEARNINGS.values()]
            if name in ("gamma", "lmbda"):
                raise ValueError(f"{name} is the value estimator's; give it as loss.make_value_estimator({name}=...).")
            if get_close_matches(name, self._coefficients, n=1, cutoff=0.75):
                raise ValueError(f"This loss has no coefficient {name!r}, but {told}.")
        if name == "max_next_value" or any(name in declared(rule) for rule in rules):
            raise ValueError(
                f"{name} cannot be scheduled in this loss, but {told}; give it when the rule or the loss is made."
            )

    def convert_to_functional(self, module, module_name: str, *args, **options) -> None:
        """Take a network's parameters, see :class:`~torchrl.objectives.LossModule`.

        Raises:
            ValueError: for a network that computes with its own, whatever it is given, and for a list of unlike ones.
        """
        members = module if isinstance(module, (list, tuple)) else [module]
        for member in members:
            check_uses_given_parameters(member, _ROLES.get(module_name, module_name))
        check_ensemble(members)
        super().convert_to_functional(module, module_name, *args, **options)
        for name in (f"{module_name}_params", f"target_{module_name}_params"):
            if name in self._modules:
                fit_batch_sizes(members[0], self._modules[name], tuple(self._modules[name].batch_size))

    def _make_vmap(self) -> None:
        """Do nothing: an ensemble is asked for its randomness at each call."""

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what this loss trains; networks that it only asks belong to the optimizer of another."""
        held = tuple(f"{prefix}.{name}." if prefix else f"{name}." for name in self._held)
        for name, parameter in super().named_parameters(prefix, recurse):
            if not name.startswith(held):
                yield name, parameter

    def _reset_module_parameters(self, module_name: str, module: nn.Module) -> None:
        # A mixer without parameters has none to draw, and another loss's networks are not ours to draw anew.
        if f"{module_name}_params" not in self._modules or f"{module_name}_params" in self._held:
            return
        for name in (f"{module_name}_params", f"target_{module_name}_params"):
            if name in self._modules:
                with parameters_in(module, self._modules[name]):
                    module.reset_parameters_recursive()

    # ------------------------------------------------------------------ keys

    @property
    def is_team(self) -> bool:
        """Whether the critic has a team value; otherwise every agent learns for itself."""
        return self.team.is_team

    def _set_in_keys(self) -> None:
        keys: list[NestedKey] = []
        critic_keys: list[NestedKey] = []
        mixer_keys: list[NestedKey] = []
        if "qvalue_network" in self.__dict__:
            produced = {unravel_key(key) for key in self.qvalue_network.out_keys}
            mixer_keys = self.mixer_network.in_keys if self.mixer_network is not None else []
            critic_keys = [*self.qvalue_network.in_keys, *(k for k in mixer_keys if unravel_key(k) not in produced)]
        actor_keys = list(self.actor_network.in_keys) if "actor_network" in self.__dict__ else []
        value_keys = list(self.value_network.in_keys) if "value_network" in self.__dict__ else []
        behaviour_keys = self._behaviour_keys()
        keys += [self.tensor_keys.action, *actor_keys, *critic_keys, *value_keys, *behaviour_keys]
        rule = self.value_learning
        if rule is not None:
            action = unravel_key(self.tensor_keys.action)
            next_keys = [self.tensor_keys.reward, self.tensor_keys.done, self.tensor_keys.terminated]
            next_keys += [k for k in critic_keys if not rule.needs_value and unravel_key(k) != action]
            next_keys += [action] if rule.needs_next_action else []
            next_keys += actor_keys if rule.needs_actor else []
            next_keys += [k for k in behaviour_keys if k != action] if rule.needs_behaviour else []
            if rule.needs_value:
                # state values are mixed without an action
                next_keys += [*value_keys, *(k for k in mixer_keys if unravel_key(k) not in {*produced, action})]
            keys += [("next", key) for key in next_keys]
        keys += [("next", self.tensor_keys.done)] if self.team.histories else []
        own = {unravel_key(key) for name in self.team.memory for key in (name, ("next", name))}
        self._in_keys = [key for key in dict.fromkeys(map(unravel_key, keys)) if key not in own]

    def _behaviour_keys(self) -> list[NestedKey]:
        if "behaviour_network" not in self.__dict__:
            return []
        given = {unravel_key(key) for key in self.behaviour_learning.given_keys}
        return [k for k in map(unravel_key, self.behaviour_network.in_keys) if k not in given]

    @property
    def in_keys(self) -> list[NestedKey]:
        """The entries that the loss reads, in a fixed order."""
        if self._in_keys is None:
            self._set_in_keys()
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    @property
    def out_keys(self) -> list[str]:
        """The entries that the loss returns."""
        if self._out_keys is not None:
            return self._out_keys
        losses, metrics = [], []
        if self.extraction is not None:
            losses.append("loss_actor")
            metrics += self.extraction.metrics
        if self.value_learning is not None:
            losses.append("loss_qvalue")
            metrics += ["qvalue", "qvalue_abs", "td_target"]
            metrics += ["td_error_abs"] if self.value_norm is None else ["value_norm_scale", "td_error_abs"]
            metrics += self.value_learning.metrics
            if self.value_learning.needs_value:
                losses.append("loss_value")
                metrics.append("state_value")
        if self.behaviour_learning is not None:
            losses.append("loss_behaviour")
            metrics += self.behaviour_learning.metrics
        return losses if self.reduction == "none" else losses + metrics

    @out_keys.setter
    def out_keys(self, values: list[str]) -> None:
        self._out_keys = values  # select_out_keys does this

    def _forward_value_estimator_keys(self, **kwargs) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**ESTIMATOR_KEYS)
        self._in_keys = None
        self.team.take_keys()

    def make_value_estimator(self, value_type=None, **hyperparams) -> OfflineMARLLoss:
        """Choose how targets are formed: TD(0) (default), TD(1) or TD(lambda), with ``gamma=`` and ``lmbda=``.

        TD(1) and TD(lambda) run along the last dimension of the batch, so its rows must be steps of episodes one after
        another: slices of ``dataset.replay_buffer(batch_size=, slice_len=)``, end to end as it draws them or as
        ``[B, T]``. A return stops where an episode or a slice ends (``done``), and before a row that does not count
        (its mask is false, or the rule has no target there); it is bootstrapped there. The first batch is checked: a
        row that goes on into one of another episode is a ``ValueError``.

        Args:
            value_type: a :class:`~torchrl.objectives.ValueEstimators` member or its alias, an estimator class or an
                instance.
            **hyperparams: of the estimator.

        Raises:
            NotImplementedError: for estimators that need more than the next value.
            ValueError: ``gamma`` or ``lmbda`` is not between 0 and 1.
        """
        for name in {"gamma", "lmbda"} & hyperparams.keys():
            check(name, hyperparams[name], Annotated[float, DISCOUNT])
        value_type = self.default_value_estimator if value_type is None else value_type
        SEEN.forget(self.team)
        if isinstance(value_type, type) and issubclass(value_type, ValueEstimatorBase):
            hyperparams.setdefault("value_network", None)
            LossModule.make_value_estimator(self, value_type, **hyperparams)
        elif isinstance(value_type, ValueEstimatorBase):
            LossModule.make_value_estimator(self, value_type, **hyperparams)
        else:
            entry = get_value_estimator_entry(value_type)
            if entry.cls not in (TD0Estimator, TD1Estimator, TDLambdaEstimator):
                raise NotImplementedError(
                    f"{type(self).__name__} forms targets from the next value alone, which {entry.cls.__name__} does "
                    "not; choose TD0, TD1 or TDLambda."
                )
            hyperparams = {**entry.default_kwargs, **hyperparams, "value_network": None}
            LossModule.make_value_estimator(self, entry.cls, **hyperparams)
        self._value_estimator.set_keys(**ESTIMATOR_KEYS)
        return self

    # ----------------------------------------------------------- what the networks say

    def batch(self, tensordict: TensorDictBase) -> Batch:
        """Return the rows as the rules see them: actions as indices, zeros where a row or an agent does not count."""
        return self._batch(tensordict)

    def _batch(self, tensordict: TensorDictBase, only: Role | None = None) -> Batch:
        keys = self.tensor_keys
        tensordict = rooted(indexed(tensordict, keys.action), keys.action)
        reads_next = unravel_key(("next", keys.action)) in self.in_keys
        check_entries(tensordict, keys, self._loss_mask_keys(), with_next_action=reads_next)
        batch = Batch(self.team, tensordict)
        options = {"agent_mask": keys.agent_mask, "action_mask": keys.action_mask, "reward": keys.reward}
        if self.has_memory:
            timed = with_beginnings(tensordict, keys.done)
            clean = seen = sanitized(timed, self.in_keys, batch.rows, are_seen=True, **options)
            self.team.histories.check_first(seen, batch.rows)
            if not self.team.has_torchrl_memory:
                clean = sanitized(timed, self.in_keys, batch.rows, **options)
            if self.team.histories:
                clean = self.team.histories.prepared(clean, seen, only=only)
                if only is None and batch.rows is not None and self.team.normalizes_rows:
                    clean = counted_alone(clean, batch.rows, self._keys_of_rows(clean, tensordict))
        else:
            clean = sanitized(tensordict, self.in_keys, batch.rows, **options)
        batch = batch if clean is tensordict else Batch(self.team, clean)
        check_first_actions(batch)
        return batch

    def _keys_of_rows(self, clean: TensorDictBase, tensordict: TensorDictBase) -> list[NestedKey]:
        """Return what networks read of rows: not what says how rows follow each other."""
        keys = self.tensor_keys
        of_time = {unravel_key(("next", key)) for key in (keys.reward, keys.done, keys.terminated)}
        remembered = set(clean.keys(True, True)) - set(tensordict.keys(True, True)) - {IS_INIT, ("next", IS_INIT)}
        masks = [keys.action_mask, ("next", keys.action_mask)]
        return [key for key in map(unravel_key, [*self.in_keys, *masks, *remembered]) if key not in of_time]

    @torch.no_grad()
    def policy_action(self, tensordict: TensorDictBase) -> Tensor:
        """Return the mode of the policy, without gradient."""
        return mode_of(self.team.policy(self._remembered(tensordict, "actor")))

    @torch.no_grad()
    def qvalue(self, tensordict: TensorDictBase) -> Tensor:
        """Return the minimum head's value of the recorded joint action, ``[*B, k]``, in units of discounted return."""
        tensordict = self._remembered(tensordict, "qvalue")
        return Batch(self.team, tensordict).q(tensordict.get(self.tensor_keys.action)).total_min.squeeze(-1)

    def _remembered(self, tensordict: TensorDictBase, role: Role) -> TensorDictBase:
        """Return rows with what a network with memory reads of the rows before."""
        has_memory = self.team.has_torchrl_memory or role in self.team.histories.encoders
        return self._batch(tensordict, role).tensordict if has_memory else tensordict

    # ----------------------------------------------------------- loss terms

    def qvalue_loss(self, batch: Batch | TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critic's term and its metrics; ``"td_error"`` ``[*B]`` is among them."""
        batch = batch if isinstance(batch, Batch) else self.batch(batch)
        values = batch.live.total  # [*B, k, H]
        row_mask = check_row_mask(self.value_learning, self.value_learning.row_mask(batch), batch)
        target = value_target(  # [*B, k, 1]
            batch,
            self.value_learning,
            self.value_estimator,
            how=self.team_reward,
            max_next_value=self._buffers.get("max_next_value"),
            has_target=row_mask,
        )
        minimum = values.amin(-1, keepdim=True)
        detached = minimum.detach()
        counts = batch.counts(target.squeeze(-1))
        if row_mask is not None:
            target = torch.where(row_mask[..., None, None], target, detached)
            has_target = row_mask.unsqueeze(-1).expand_as(target.squeeze(-1))
            counts = has_target if counts is None else counts & has_target
        metrics = {
            "qvalue": masked_mean(detached.squeeze(-1), counts),
            "qvalue_abs": masked_mean(detached.squeeze(-1).abs(), counts),
            "td_target": masked_mean(target.squeeze(-1), counts),
        }
        predicted, normal_target = minimum if self.heads == "min" else values, target
        if self.value_norm is not None:
            self._update_value_norm(detached, counts)
            predicted, normal_target = self.value_norm.normalize(predicted), self.value_norm.normalize(target)
            metrics["value_norm_scale"] = self.value_norm.scale().mean().detach().clone()
        squared = (predicted - normal_target).pow(2).sum(-1)  # [*B, k, H] -> [*B, k]
        error = (detached - target).abs().squeeze(-1)
        metrics["td_error_abs"] = masked_mean(error, counts)
        metrics["td_error"] = batch.averaged(error)
        term = self._reduce(batch, squared, row_mask)
        penalty = self.value_learning.critic_penalty(batch)
        check_returned(self.value_learning, () if penalty is None else ("critic_penalty",))
        if penalty is not None:
            check_elements(self.value_learning, "critic_penalty", penalty, batch)
            metrics["critic_penalty"] = batch.mean(penalty)
            scaled = penalty if self.value_norm is None else penalty / self.value_norm.scale()
            term = term + self._reduce(batch, scaled, row_mask)
        return term, metrics

    def _update_value_norm(self, value: Tensor, mask: Tensor | None) -> None:
        if mask is None:
            self.value_norm.update(value)
            return
        mask = mask.unsqueeze(-1)
        of_norm = (mask,) if getattr(self.value_norm, "accepts_mask", False) else ()
        # Norms that take no mask see the mean where a value does not count.
        self.value_norm.update(torch.where(mask, value, masked_mean(value, mask)), *of_norm)

    def value_loss(self, batch: Batch | TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the state-value network's term and its metrics."""
        batch = batch if isinstance(batch, Batch) else self.batch(batch)
        elements = self.value_learning.value_elements(batch)  # [*B, k] or [*B, n]
        check_elements(self.value_learning, "value_elements", elements, batch)
        metrics = {"state_value": batch.mean(batch.state.total.squeeze(-1))}
        # a dead agent's value has its share in the team's next value
        mixed = elements.shape[-1] > 1 and self.is_team
        return self._reduce(batch, elements, agents=not mixed), metrics

    def actor_loss(self, batch: Batch | TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the actor's term and its metrics."""
        return self._of_rule(self.extraction, batch)

    def behaviour_loss(self, batch: Batch | TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the behaviour model's term and its metrics."""
        return self._of_rule(self.behaviour_learning, batch)

    def _of_rule(
        self, rule: PolicyExtraction | BehaviourLearning, batch: Batch | TensorDictBase
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch if isinstance(batch, Batch) else self.batch(batch)
        elements, metrics = check_pair(rule, rule.element_loss(batch))
        check_returned(rule, metrics)
        check_elements(rule, "element_loss", elements, batch)
        trained = "actor_network_params" if rule is self.extraction else "behaviour_network_params"
        check_has_gradient(rule, elements, self._modules.get(trained))
        return self._reduce(batch, elements), metrics

    def _reduce(self, batch: Batch, elements: Tensor, mask: Tensor | None = None, *, agents: bool = True) -> Tensor:
        """Average ``[*B, k]`` over agents (that are there, or all), then reduce over rows that count and ``mask``."""
        tensordict = batch.tensordict
        rows = batch.averaged(elements) if agents else elements.mean(-1)
        if mask is not None and self.reduction == "none":
            # a mask that is an argument would drop rows here instead of zeroing them
            rows, mask = torch.where(mask, rows, torch.zeros_like(rows)), None
        weights = self._maybe_get_priority_weight(tensordict)
        options = {"tensordict": tensordict, "mask": mask, "weights": weights}
        if self.reduction == "none" or not is_shared():
            return self._reduce_loss(rows, **options)
        total = self._reduce_loss(rows, reduction="sum", **options)
        if self.reduction == "sum":
            return share_of_sum(total)
        if weights is None and mask is None and batch.rows is None:
            return total / rows.numel()  # shares are equal
        count = self._reduce_loss(torch.ones_like(rows), reduction="sum", **options)  # or the sum of the weights
        return share_of_mean(total, count)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the loss terms and, unless ``reduction="none"``, the metrics."""
        for key in self.in_keys:
            if tensordict.get(key, None) is None:
                raise KeyError(lacking(self, key, tensordict))
        batch = self.batch(tensordict)
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        if self.extraction is not None:
            losses["loss_actor"], found = self.actor_loss(batch)
            metrics |= found
        if self.value_learning is not None:
            losses["loss_qvalue"], found = self.qvalue_loss(batch)
            tensordict.set(self.tensor_keys.priority, found.pop("td_error"))
            metrics |= found
            if self.value_learning.needs_value:
                losses["loss_value"], found = self.value_loss(batch)
                metrics |= found
        if self.behaviour_learning is not None:
            losses["loss_behaviour"], found = self.behaviour_loss(batch)
            metrics |= found
        if self.reduction == "none":
            return TensorDict(losses, batch.tensordict.batch_size)
        return TensorDict(losses | metrics)


def _parameters(*modules) -> list[nn.Parameter]:
    flat = [m for group in modules for m in (group if isinstance(group, (list, tuple)) else [group]) if m is not None]
    return [p for module in flat for p in module.parameters()]


def _split_mixer(critic):
    """Split a sequence that ends in a mixer into the local critic and the mixer."""
    if not isinstance(critic, TensorDictSequential) or len(critic.module) < 2:
        return critic, None
    *rest, last = critic.module
    if not isinstance(getattr(last, "module", None), Mixer):
        return critic, None
    local = rest[0] if len(rest) == 1 else TensorDictSequential(*rest)
    if hasattr(critic, "build"):
        local.build = last.build = critic.build
    return local, last
