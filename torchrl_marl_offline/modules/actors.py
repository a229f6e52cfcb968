"""Decentralized actors: each agent acts on its own observation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import torch
from tensordict.nn import TensorDictModule, biased_softplus
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import following
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, TaskSpec
from torchrl_marl_offline.core.noise import normal_like
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, POSITIVE, REAL, WIDTHS
from torchrl_marl_offline.modules.action_range import ActionRange, component_range
from torchrl_marl_offline.modules.batch_norm import BatchNorm
from torchrl_marl_offline.modules.build import remembers_build
from torchrl_marl_offline.modules.distributions import (
    BoundedNormal,
    MaskedCategorical,
    OneStep,
    OneStepCategorical,
    TanhNormal,
)
from torchrl_marl_offline.modules.history import Memory, MemorySize, behind, remembering
from torchrl_marl_offline.modules.networks import AgentNetwork, StackedMLP

Scale = Literal["learned", "state_dependent", "softplus"]
Distribution = Literal["gaussian", "tanh_gaussian", "one_step"]

LOC, SCALE, LOGITS = ("agents", "loc"), ("agents", "scale"), ("agents", "logits")
DRAWN, NOISE = ("agents", "drawn"), ("agents", "policy_noise")


class GaussianHead(nn.Module):
    """Location and scale of every agent's action from its observation.

    Args:
        spec: the task's sizes.
        scale: a fixed standard deviation, ``"learned"`` (one parameter per action component),
            ``"state_dependent"`` (a second output of the network, its logarithm) or ``"softplus"`` (the same by
            TorchRL's ``NormalParamExtractor``).
        batch_norm: normalize every agent's observations by the batch.
        centre: where locations start, around which they then are: the middle of bounds that leave 0 out, since a mode
            that is clipped to a bound passes no gradient.
        halves: the range in whose halves the network says locations and scales; by default they are the action's.
        **network: options of :class:`~torchrl_marl_offline.modules.AgentNetwork`.

    Shape:
        ``[*B, n, o]`` to loc and scale ``[*B, n, a]``.
    """

    @checked
    def __init__(
        self,
        spec: TaskSpec,
        *,
        scale: Annotated[float | Scale, POSITIVE] = 1.0,
        batch_norm: bool = False,
        centre: Annotated[float, REAL] = 0.0,
        halves: ActionRange | None = None,
        **network,
    ) -> None:
        super().__init__()
        self.halves = halves
        self.centre, self.size = centre, spec.action_size
        self.state_dependent = scale in ("state_dependent", "softplus")
        self.softplus = biased_softplus(1.0) if scale == "softplus" else None
        self.fixed_scale = None if isinstance(scale, str) else float(scale)
        outputs = spec.action_size * (2 if self.state_dependent else 1)
        self.network = _normalized(
            AgentNetwork(spec.observation_size, outputs, spec.n_agents, **network), spec, batch_norm
        )
        if scale == "learned":
            self.log_scale = nn.Parameter(torch.full((spec.action_size,), math.log(0.5)))
        self._move_to_centre()

    def reset_parameters(self) -> None:
        """Draw the network anew, and reset the learned scale to 0.5."""
        if hasattr(self, "log_scale"):
            nn.init.constant_(self.log_scale, math.log(0.5))
        if self.centre:
            self._last_stack().reset_parameters()
            self._move_to_centre()

    def _last_stack(self) -> StackedMLP:
        return [module for module in self.network.modules() if isinstance(module, StackedMLP)][-1]

    @torch.no_grad()
    def _move_to_centre(self) -> None:
        if self.centre:
            self._last_stack().layers[-1].bias[..., : self.size].add_(self.centre)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return loc and scale."""
        loc, scale = self._of_network(observation)
        return (loc, scale) if self.halves is None else (self.halves.unscaled(loc), self.halves.spread(scale))

    def _of_network(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        out = self.network(observation)
        if self.state_dependent:
            loc, log_scale = out.chunk(2, -1)
            if self.softplus is not None:
                return loc, self.softplus(log_scale)
            return loc, log_scale.clamp(-5.0, 2.0).exp()
        if self.fixed_scale is not None:
            return out, torch.full_like(out, self.fixed_scale)
        return out, self.log_scale.clamp(-5.0, 2.0).exp().expand_as(out)


def _normalized(network: AgentNetwork, spec: TaskSpec, batch_norm: bool) -> nn.Module:
    return BatchNorm.before(network, spec.n_agents, spec.observation_size, wanted=batch_norm)


class OneStepHead(nn.Module):
    """Every agent's action from its observation and standard normal noise, by one evaluation.

    Each pass evaluates the network without noise and at noise that it draws: a policy has a mode and a sample, and the
    losses' numbers do not depend on which of them is executed. An exported policy keeps the one that it executes.

    Args:
        spec: the task's sizes and bounds.
        **network: options of :class:`~torchrl_marl_offline.modules.AgentNetwork`.

    Shape:
        ``[*B, n, o]`` to what :class:`OneStep` or :class:`OneStepCategorical` takes: two actions (of discrete tasks,
        scores) and the noise, each ``[*B, n, a]``.
    """

    def __init__(self, spec: TaskSpec, **network) -> None:
        super().__init__()
        self.size, self.range = spec.action_size, None if spec.discrete else ActionRange.of(spec)
        self.network = AgentNetwork(spec.observation_size + self.size, self.size, spec.n_agents, **network)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the action without noise, the one of the noise, and the noise."""
        noise = normal_like(observation[..., :1].expand(*observation.shape[:-1], self.size))
        return self.at(observation, torch.zeros_like(noise)), self.at(observation, noise), noise

    def at(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Return the action of this noise, not clipped; its network's output is in halves of the range."""
        out = self.network(torch.cat([observation, noise], -1))
        return out if self.range is None else self.range.unscaled(out)


class ObservationNorm(nn.Module):
    """Shift and scale every component of an observation by fixed numbers: ``(observation - loc) / scale``.

    The numbers are buffers: they are saved with the network, exported with it, and never trained.

    Args:
        loc: what is subtracted, ``[o]`` numbers; :meth:`OfflineDataset.observation_statistics` has both lists.
        scale: what is divided by, ``[o]`` positive numbers.

    Raises:
        TypeError: tensors or arrays, which ``actor.build`` could not write into a file as numbers.
        ValueError: numbers of another size, not finite, or a scale that is not positive.

    Shape:
        ``[*B, o]`` to ``[*B, o]``.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        if not all(isinstance(numbers, (list, tuple)) for numbers in (loc, scale)):
            raise TypeError(
                f"observation_norm takes two lists of numbers, got {type(loc).__name__} and {type(scale).__name__}; "
                "use .tolist()."
            )
        for name, numbers in (("loc", loc), ("scale", scale)):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.get_default_dtype()))
        if self.loc.shape != self.scale.shape or not (self.loc.isfinite() & self.scale.isfinite()).all():
            raise ValueError("observation_norm needs as many finite locs as finite scales, one for each component.")
        if not (self.scale > 0).all():
            raise ValueError(f"observation_norm needs positive scales, got {self.scale.min().item()}.")

    @classmethod
    def before(
        cls, network: nn.Module, norm: tuple[Sequence[float], Sequence[float]] | None, spec: TaskSpec
    ) -> nn.Module:
        """Return ``network`` behind a normalization, or ``network`` itself where ``norm`` is ``None``."""
        if norm is None:
            return network
        first = cls(*norm)
        if first.loc.shape != (spec.observation_size,):
            raise ValueError(
                f"observation_norm has numbers for {len(first.loc)} components, but an observation has "
                f"{spec.observation_size}; take OfflineDataset.observation_statistics() of this task."
            )
        return nn.Sequential(first, network)

    def forward(self, observation: Tensor) -> Tensor:
        """Normalize ``[*B, o]``."""
        return (observation - self.loc) / self.scale


def _centre(spec: TaskSpec) -> float:
    low, high = spec.action_low, spec.action_high
    return 0.0 if low <= 0.0 <= high else (low + high) / 2


@remembers_build
@checked
def make_actor(
    spec: TaskSpec,
    *,
    distribution: Distribution = "gaussian",
    scale: Annotated[float | Scale, POSITIVE] = 1.0,
    hidden: Annotated[Sequence[int], WIDTHS] = (512, 512, 512, 512),
    share_params: bool = True,
    activation: str = "gelu",
    layer_norm: bool = False,
    batch_norm: bool = False,
    final_scale: Annotated[float, NON_NEGATIVE] = 0.01,
    observation_norm: Annotated[tuple[Sequence[float], Sequence[float]] | None, REAL] = None,
    memory: Memory = None,
    memory_size: MemorySize = 64,
) -> ProbabilisticActor:
    """Build the agents' policies as a TorchRL actor.

    It reads ``("agents", "observation")`` (and ``("agents", "action_mask")`` where the task has one) and writes
    ``("agents", "action")``; TorchRL's :func:`~torchrl.envs.set_exploration_type` chooses between the mode and a
    sample. For a discrete task it is a masked categorical, and ``scale`` is not looked at.

    Args:
        spec: the task's sizes and bounds.
        distribution: ``"gaussian"`` (clipped to the bounds when executed, see :class:`BoundedNormal`),
            ``"tanh_gaussian"`` (see :class:`TanhNormal`; recorded actions at a bound pull its likelihood's mean far
            out), both the same for a discrete task, or ``"one_step"``, an action of the
            observation and noise, without a density (see :class:`OneStep`).
        scale: standard deviation: a fixed number, ``"learned"``, ``"state_dependent"`` or ``"softplus"``; see
            :class:`GaussianHead`. Where components have bounds of their own, in halves of each one's range.
        hidden: widths of the hidden layers (the recipe: four of 512).
        share_params: agents share parameters and are told apart by a one-hot id.
        activation: activation of the hidden layers.
        layer_norm: layer normalization in the actor (the recipe: in critics only).
        batch_norm: normalize the observations by the batch, see :class:`~torchrl_marl_offline.modules.BatchNorm`: put
            the actor into evaluation before it acts (:func:`evaluate` and exported policies do). Not of ``"one_step"``.
        final_scale: scale of the last layer at initialization.
        observation_norm: ``(loc, scale)``, a number for each component of an observation, which the networks then see
            as ``(observation - loc) / scale``; :meth:`OfflineDataset.observation_statistics` of the data.
        memory: what the policies remember of an episode: ``"gru"``, ``"lstm"``, ``"window:K"`` (the last ``K``
            observations), or None; see :class:`~torchrl_marl_offline.modules.HistoryEncoder`. The policy then also
            reads ``"is_init"`` and ``("agents", "policy_memory")``, and writes the latter under ``"next"``.
        memory_size: width of the recurrent memory.

    Raises:
        TypeError: for a normalization that is not of plain numbers.
        ValueError: for an unknown distribution or scale, or a normalization that does not fit the task.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> actor = make_actor(spec, hidden=(64, 64))
        >>> actor(TensorDict({OBSERVATION: torch.zeros(5, 3, 18)}, [5]))["agents", "action"].shape
        torch.Size([5, 3, 2])
    """
    network = {
        "hidden": hidden,
        "share_params": share_params,
        "activation": activation,
        "layer_norm": layer_norm,
        "final_scale": final_scale,
    }
    if distribution not in get_args(Distribution):
        raise ValueError(f"distribution must be 'gaussian', 'tanh_gaussian' or 'one_step', got {distribution!r}.")
    one_step = distribution == "one_step"
    if memory is not None:  # observations are normalized on their way into the memory
        inputs, observation_norm = ObservationNorm.before(nn.Identity(), observation_norm, spec), None
    else:
        inputs = None
    remembered = {"role": "policy", "share_params": share_params, "inputs": inputs}
    encoder, read, spec = remembering(spec, memory, memory_size, **remembered)
    if one_step and batch_norm:
        raise ValueError("batch_norm=True does not go with distribution='one_step', which also reads noise.")
    if one_step:
        head = OneStepHead(spec, **network)
    elif spec.discrete:
        head = AgentNetwork(spec.observation_size, spec.action_size, spec.n_agents, **network)
        head = _normalized(head, spec, batch_norm)
    else:
        halves = component_range(spec) if distribution == "gaussian" else None
        centre = 0.0 if distribution != "gaussian" or halves is not None else _centre(spec)
        head = GaussianHead(spec, scale=scale, batch_norm=batch_norm, centre=centre, halves=halves, **network)
    written = [LOGITS if spec.discrete else LOC]
    written += [DRAWN, NOISE] if one_step else [] if spec.discrete else [SCALE]
    keys = {key[1].removeprefix("policy_"): key for key in written}
    kwargs: dict[str, Any] = {}
    if spec.discrete:
        distribution_class = OneStepCategorical if one_step else MaskedCategorical
        keys |= {"mask": ACTION_MASK} if spec.has_action_mask else {}
    else:
        distribution_class = {"gaussian": BoundedNormal, "tanh_gaussian": TanhNormal, "one_step": OneStep}[distribution]
        kwargs |= {"low": following(spec.action_low), "high": following(spec.action_high)}
    return ProbabilisticActor(
        behind(encoder, TensorDictModule(ObservationNorm.before(head, observation_norm, spec), [read], written)),
        in_keys=keys,
        out_keys=[ACTION],
        distribution_class=distribution_class,
        distribution_kwargs=kwargs,
    )
