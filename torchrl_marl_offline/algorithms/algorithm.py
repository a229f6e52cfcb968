"""What an algorithm is: settings with their published defaults, the networks that they ask, and rules.

    class Mine(ActorCritic, name="mine"):       # below @dataclass(frozen=True, kw_only=True)
        strength: Annotated[float, POSITIVE] = setting(3.0, member=True)

        def rules(self, *, discrete):
            return {"value_learning": IQL(), "extraction": AWR(self.strength)}

With that it is known by its name to :func:`make_loss`, studies, populations and commands.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from tensordict import unravel_key
from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.core.checked import check_fields, checked
from torchrl_marl_offline.core.input_statistics import InputStatistics
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.named_settings import NamedSettings
from torchrl_marl_offline.core.ranges import (
    DISCOUNT,
    FEW,
    POSITIVE,
    REAL,
    SIZE,
    SIZE_OR_NONE,
    WIDTHS,
    OneOf,
)
from torchrl_marl_offline.core.registering import register
from torchrl_marl_offline.core.relevance import DISCRETE, OF_CONTINUOUS, ReadWith, unread
from torchrl_marl_offline.core.run_presets import preset_of
from torchrl_marl_offline.modules.actors import make_actor
from torchrl_marl_offline.modules.critics import READ_BY, TEAM, Decomposition, make_critic, make_value
from torchrl_marl_offline.modules.history import Memory, MemorySize
from torchrl_marl_offline.modules.input_norm import normalize_inputs
from torchrl_marl_offline.modules.networks import ACTIVATIONS
from torchrl_marl_offline.modules.sequential import BEHAVIOUR_LOGITS
from torchrl_marl_offline.modules.value_norm import ScaleInvariantValueNorm
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss

ALGORITHMS: dict[str, type[Algorithm]] = {}
"""Every algorithm by its name, those of users too."""

WITH_DENSITY = ReadWith("distribution", "gaussian", "tanh_gaussian")
"""Of settings of a policy's density."""

RULES = ("value_learning", "extraction", "behaviour_learning")
"""What :meth:`Algorithm.rules` returns some of."""

_TAKEN = {"settings", "spec", "algorithm", "name", "networks", "inputs"}
"""Names of what is not a setting."""

Networks = dict[str, TensorDictModuleBase]
"""``actor``, ``critic``, ``value`` and ``behaviour``, those that an algorithm has."""


def setting(default: Any, *, member: bool = False) -> Any:
    """Declare a setting of an algorithm: a field of its dataclass.

    Args:
        default: the published one.
        member: whether it may differ between the members of a population: a number that enters the arithmetic as a
            tensor, as rules' coefficients and the discount do.
    """
    return dataclasses.field(default=default, metadata={"member": member})


@dataclass(frozen=True, kw_only=True)
class Algorithm(NamedSettings, ABC):
    """Base class of the algorithms: a frozen dataclass whose fields are the settings.

    A class with ``name=`` is registered in :data:`ALGORITHMS`. Ranges and words stand in the fields' annotations
    (:mod:`~torchrl_marl_offline.core.ranges`), what is read only beside other settings too
    (:class:`~torchrl_marl_offline.core.relevance.ReadWith`).

    Attributes:
        name: by which it is known.
        supports_discrete: whether it has an answer for discrete actions.
        has_critic: whether it trains one; settings of its training, such as ``critic_first``, are refused without.

    Raises:
        ValueError: a setting outside its range, or one that changes nothing beside the others.
    """

    name: ClassVar[str] = ""
    supports_discrete: ClassVar[bool] = True
    has_critic: ClassVar[bool] = True

    def __init_subclass__(cls, *, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        inherited = {key for base in cls.__mro__[1:] for key in getattr(base, "__dataclass_fields__", ())}
        for key in inherited & vars(cls).keys() - getattr(cls, "__annotations__", {}).keys():
            raise ValueError(
                f"{cls.__qualname__}.{key} would not change the setting {key!r}; annotate it, such as {key}: "
                f"{type(vars(cls)[key]).__name__} = {vars(cls)[key]!r}."
            )
        for key in getattr(cls, "__annotations__", {}).keys() & _TAKEN:
            raise ValueError(f"A setting of {cls.__qualname__} cannot be named {key!r}; give it another name.")
        if name is not None:
            register(cls, name, ALGORITHMS)
            cls.name = name

    def __post_init__(self) -> None:
        check_fields(self, type(self))

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def replace(self, **changes: Any) -> Algorithm:
        """Return the same algorithm with other settings."""
        return dataclasses.replace(self, **changes)

    @abstractmethod
    def networks(self, spec: TaskSpec) -> Networks:
        """Draw the networks for a task, from torch's global generator."""

    @abstractmethod
    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return the rules: ``value_learning``, ``extraction`` and ``behaviour_learning`` of the loss.

        Args:
            discrete: whether actions are; those of a model of the data, where the algorithm has one.
        """

    def options(self) -> dict[str, Any]:
        """Return further options of :class:`OfflineMARLLoss`."""
        return {}

    @checked
    def sampling(self, batch_size: Annotated[int, SIZE]) -> dict[str, Any]:
        """Return further options of the buffer of the data, such as ``slice_len``, for batches of so many rows.

        Raises:
            ValueError: such batches cannot be drawn.
        """
        return {}

    def build(
        self,
        spec: TaskSpec,
        *,
        actor: TensorDictModuleBase | None = None,
        inputs: InputStatistics | None = None,
    ) -> OfflineMARLLoss:
        """Draw the networks for a task and return their loss.

        Args:
            spec: the task's sizes.
            actor: policies to go on with, in the place of those that would be drawn.
            inputs: what the networks' inputs are normalized by, :meth:`OfflineDataset.input_statistics`; policies that
                are given keep their own.

        Raises:
            ValueError: the algorithm has no answer for such a task, or has no policies of that kind.
        """
        if spec.discrete and not self.supports_discrete:
            raise ValueError(
                f"{self.name} is for continuous actions; for a discrete task use cql, omar or the recipe's brac."
            )
        if spec.discrete:
            self._check_discrete()
        networks = dict(_dictionary(self, "networks", self.networks(spec), ("actor", "critic", "value", "behaviour")))
        if inputs is not None:
            drawn = {name: network for name, network in networks.items() if network is not None}
            normalize_inputs(drawn, inputs, spec)
        if actor is not None:
            if not isinstance(actor, TensorDictModuleBase):
                raise TypeError(
                    f"actor must be a TensorDictModule, such as load_policy(PATH).policy; got a {type(actor).__name__}."
                )
            if "actor" not in networks:
                raise ValueError(f"{self.name} makes its policies of its other networks; it cannot go on with others.")
            networks["actor"] = actor
        return self._make(networks.pop("actor", None), networks.pop("critic", None), spec.discrete, **networks)

    def _check_discrete(self) -> None:
        """Refuse settings that nothing reads where actions are discrete; defaults may stand there."""
        known, here = self.settings, {DISCRETE: True}
        changed = {f.name: f.default for f in dataclasses.fields(self) if known[f.name] != f.default}
        if "distribution" in changed and "one_step" not in (known["distribution"], changed["distribution"]):
            raise ValueError(
                f"{self.name}: distribution {known['distribution']!r} is one of continuous actions, and those of this "
                "task are discrete; leave it out."
            )
        refusals = (unread(type(self), name, known | here) for name in changed)
        for refusal in refusals:
            if refusal is not None:
                raise ValueError(f"{self.name}: {refusal}")

    def loss(
        self,
        actor: TensorDictModuleBase | None,
        critic: TensorDictModuleBase | Sequence[TensorDictModuleBase] | None = None,
        value: TensorDictModuleBase | None = None,
        behaviour: TensorDictModuleBase | None = None,
        **options: Any,
    ) -> OfflineMARLLoss:
        """Return the loss of networks of one's own.

        Args:
            actor: see :class:`OfflineMARLLoss`; settings of networks, such as ``hidden``, do nothing here.
            critic: its critic, mixer included.
            value: its state-value network, where the algorithm has one.
            behaviour: its model of the data's actions, where the algorithm has one.
            **options: of :class:`OfflineMARLLoss`.
        """
        discrete = behaviour is not None and BEHAVIOUR_LOGITS in map(unravel_key, behaviour.out_keys)
        return self._make(actor, critic, discrete, value=value, behaviour=behaviour, **options)

    def _checked_rules(self, discrete: bool) -> Mapping[str, Any]:
        return _dictionary(self, "rules", self.rules(discrete=discrete), RULES)

    def _make(self, actor: Any, critic: Any, discrete: bool, **given: Any) -> OfflineMARLLoss:
        rules = dict.fromkeys(("value_learning", "extraction")) | self._checked_rules(discrete)
        return OfflineMARLLoss(actor, critic, **rules | self.options() | given)


def _dictionary(algorithm: Algorithm, method: str, found: Any, known: Sequence[str]) -> Mapping[str, Any]:
    """Refuse what a method of an algorithm must not return."""
    where = f"{method} of {type(algorithm).__name__}"
    if not isinstance(found, Mapping):
        raise TypeError(f"{where} must return a dict with some of {', '.join(known)}; got {found!r}.")
    if unknown := [key for key in found if key not in known]:
        raise ValueError(f"{where} returns {unknown[0]!r}; known are {', '.join(known)}.")
    return found


@dataclass(frozen=True, kw_only=True)
class Remembering(Algorithm):
    """Base class of algorithms whose networks may have memory.

    Args:
        memory: what policies, critics and state values remember of an episode: gru, lstm, or window:K, the last K
            observations; by default nothing. Models of the data's actions have none.
        memory_size: width of a recurrent memory.
        slice_len: rows of the slices of episodes that training with memory takes, their burn-in included.
        burn_in: rows of a slice that memory alone sees, and that count in no loss.
    """

    memory: Memory = None
    memory_size: MemorySize = 64
    slice_len: Annotated[int, SIZE, ReadWith("memory", given=True)] = 32
    burn_in: Annotated[int, SIZE_OR_NONE, ReadWith("memory", given=True)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory is not None and self.burn_in >= self.slice_len:
            raise ValueError(
                f"burn_in={self.burn_in} leaves no row of slice_len={self.slice_len} that counts; make it smaller."
            )

    @property
    def remembered(self) -> dict[str, Any]:
        """What builders of networks are told of memory."""
        return {"memory": self.memory, "memory_size": self.memory_size}

    @checked
    def sampling(self, batch_size: Annotated[int, SIZE]) -> dict[str, Any]:
        """Return what a buffer of the data is told, so that it draws what memory needs."""
        if self.memory is None:
            return {}
        if batch_size % self.slice_len:
            raise ValueError(
                f"Training with memory takes whole slices: batch_size={batch_size} is no multiple of "
                f"slice_len={self.slice_len}; change one of them."
            )
        return {"slice_len": self.slice_len, "burn_in": self.burn_in}


@dataclass(frozen=True, kw_only=True)
class ActorCritic(Remembering):
    """Base class of algorithms with policies and a critic.

    Args:
        decomposition: how the team's value is made of the agents' values; see :func:`make_critic`.
        frozen: leave the mixer at its random initial parameters (an ablation).
        num_heads: critic heads.
        svn: :class:`ScaleInvariantValueNorm` on the critic's loss.
        heads: train all critic heads, or at each row the smallest alone.
        team_reward: mean or sum of the agents' rewards.
        max_next_value: upper bound of the next value in the critic's target.
        time_limits: what the value beyond a time limit is: that of the next state, or, as some released code has it,
            nothing, as if the task had terminated there.
        gamma: discount.
        hidden: widths of the hidden layers of all networks.
        share_params: agents share parameters.
        activation: activation of all hidden layers.
        layer_norm: layer normalization in critics, state values and mixers.
        batch_norm: normalize the inputs of policies, critics and state values by the batch; None: where actions are
            continuous and the decomposition is not ``"graph"``, which reads pairs of agents.
        distribution: of continuous actions; see :func:`make_actor`.
        scale: the Gaussian's standard deviation; see :func:`make_actor`.
    """

    decomposition: Decomposition = "independent"
    frozen: Annotated[bool, ReadWith("decomposition", among=READ_BY["frozen"])] = False
    num_heads: Annotated[int, FEW] = 2
    svn: bool = False
    heads: Annotated[Literal["all", "min"], ReadWith("num_heads", above=1)] = "all"
    team_reward: Annotated[Literal["mean", "sum"], ReadWith("decomposition", among=TEAM)] = "mean"
    max_next_value: Annotated[float | None, REAL] = None
    time_limits: Literal["bootstrap", "terminal"] = "bootstrap"
    gamma: Annotated[float, DISCOUNT] = setting(0.99, member=True)
    hidden: Annotated[Sequence[int], WIDTHS] = (64, 64)
    share_params: bool = True
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "relu"
    layer_norm: bool = False
    batch_norm: bool | None = False
    distribution: Literal["gaussian", "tanh_gaussian", "one_step"] = "tanh_gaussian"
    scale: Annotated[float | Literal["learned", "state_dependent"], POSITIVE, OF_CONTINUOUS, WITH_DENSITY] = "learned"

    def network(self) -> dict[str, Any]:
        """Return what all networks have in common."""
        return {"hidden": self.hidden, "share_params": self.share_params, "activation": self.activation}

    def networks(self, spec: TaskSpec) -> Networks:
        """Draw policies, critic, the model of the data and the state values, those that the rules ask."""
        batch_norm = self.batch_norm
        if batch_norm is None:
            batch_norm = not spec.discrete and self.decomposition != "graph"
        shared = {"batch_norm": batch_norm} | self.remembered | self.network()
        valued = {"decomposition": self.decomposition, "layer_norm": self.layer_norm} | shared
        found = {"actor": make_actor(spec, distribution=self.distribution, scale=self.scale, **shared)}
        found["critic"] = make_critic(spec, frozen=self.frozen, num_heads=self.num_heads, **valued)
        behaviour = self.behaviour(spec)
        if behaviour is not None:
            found["behaviour"] = behaviour
        learning = self._checked_rules(spec.discrete).get("value_learning")
        if learning is not None and learning.needs_value:
            found["value"] = make_value(spec, **valued)
        return found

    def behaviour(self, spec: TaskSpec) -> TensorDictModuleBase | None:
        """Draw the model of the data's actions, where the algorithm has one."""
        return None

    def options(self) -> dict[str, Any]:
        """Return further options of :class:`OfflineMARLLoss`."""
        found = {"heads": self.heads, "team_reward": self.team_reward, "max_next_value": self.max_next_value}
        return found | {"value_norm": ScaleInvariantValueNorm() if self.svn else None}

    def _make(self, actor: Any, critic: Any, discrete: bool, **given: Any) -> OfflineMARLLoss:
        loss = super()._make(actor, critic, discrete, **given)
        if self.time_limits == "terminal":
            loss.set_keys(terminated=loss.tensor_keys.done)
        return loss.make_value_estimator(gamma=self.gamma)


def algorithm_named(name: str) -> type[Algorithm]:
    """Return the class of an algorithm.

    Raises:
        ValueError: there is none of that name.
        TypeError: it is no dataclass of its own, so that its settings are not known.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}; got {name!r}.")
    found = ALGORITHMS[name]
    if "__dataclass_fields__" not in vars(found):
        raise TypeError(f"{found.__qualname__} needs @dataclass(frozen=True, kw_only=True) above it.")
    return found


def settings_of(algorithm: str) -> dict[str, Any]:
    """Return the settings of an algorithm and their defaults."""
    return {field.name: field.default for field in dataclasses.fields(algorithm_named(algorithm))}


def members_settings(algorithm: str) -> set[str]:
    """Return the settings of an algorithm that may differ between the members of a population."""
    return {f.name for f in dataclasses.fields(algorithm_named(algorithm)) if f.metadata.get("member")}


def is_read(algorithm: str, name: str, settings: Mapping[str, Any]) -> bool:
    """Say whether an algorithm has a setting that changes something beside ``settings``; others have their defaults."""
    known = settings_of(algorithm)
    return name in known and not unread(ALGORITHMS[algorithm], name, known | dict(settings))


def settings_under(algorithm: str, preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an algorithm of a command's run: those that were given, and the preset's.

    Args:
        algorithm: its name; settings of others are left out, and those that change nothing beside the rest.
        preset: see :mod:`~torchrl_marl_offline.core.run_presets`.
        given: by name.
    """
    asked = preset_of(preset, algorithm) | dict(given)
    asked = {key: value for key, value in asked.items() if key in settings_of(algorithm)}
    return {key: value for key, value in asked.items() if is_read(algorithm, key, asked)}


def make_algorithm(name: str = "recipe", **settings: Any) -> Algorithm:
    """Return an algorithm by its name, with settings that JSON and TOML can hold.

    Raises:
        ValueError: an unknown algorithm, a setting that it does not have, a number outside its range, or a setting that
            changes nothing beside the others.
    """
    kind, known = algorithm_named(name), settings_of(name)
    for key in settings:
        if key not in known:
            raise ValueError(f"{name} has no setting {key!r}; it has {', '.join(known)}.")
    return kind(**settings)


def make_loss(
    spec: TaskSpec, *, algorithm: str = "recipe", inputs: InputStatistics | None = None, **settings: Any
) -> OfflineMARLLoss:
    """Build the networks and the loss of an algorithm by its name.

    Parameters are drawn from torch's global generator: call :func:`torch.manual_seed` before.

    Args:
        spec: the task's sizes.
        algorithm: its name, one of :data:`ALGORITHMS`.
        inputs: what the networks' inputs are normalized by; see :meth:`Algorithm.build`.
        **settings: of the algorithm, the fields of its class; :func:`settings_of` lists them.

    Raises:
        ValueError: for an unknown algorithm, a setting that it does not have or that changes nothing beside the others,
            a number outside its range.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> loss = make_loss(spec, decomposition="vdn", extraction="brac", alpha=0.1, hidden=(64, 64))
        >>> loss.alpha
        tensor(0.1000)
    """
    if not isinstance(spec, TaskSpec):
        raise TypeError(
            f"make_loss needs the task's sizes, a TaskSpec such as dataset.spec; got {type(spec).__name__}."
        )
    return make_algorithm(algorithm, **settings).build(spec, inputs=inputs)
