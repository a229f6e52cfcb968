"""Decentralized actors: each agent acts on its own observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, TypeVar

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_marl_offline.data.layout import ACTION, ACTION_MASK, OBSERVATION, TaskSpec
from torchrl_marl_offline.modules.networks import AgentNetwork, one_hot
from torchrl_marl_offline.objectives.noise import exponential_like

Actor = TypeVar("Actor", bound=TensorDictModuleBase)

LOC, SCALE, LOGITS = ("agents", "loc"), ("agents", "scale"), ("agents", "logits")


class BoundedNormal(Independent):
    """A diagonal Gaussian whose mode and samples are clipped to the action bounds.

    The density is the unclipped Gaussian's, so that the log-probability of an action at a bound stays finite.

    Args:
        loc: ``[*B, a]``.
        scale: ``[*B, a]``, positive.
        low: lower bound of every component.
        high: upper bound of every component.
    """

    def __init__(self, loc: Tensor, scale: Tensor, *, low: float = -1.0, high: float = 1.0) -> None:
        self.low, self.high = low, high
        super().__init__(Normal(loc, scale, validate_args=False), 1, validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The location, clipped."""
        return self.base_dist.loc.clamp(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        """The mode, so that ``ExplorationType.MEAN`` too stays within the bounds."""
        return self.mode

    @property
    def deterministic_sample(self) -> Tensor:
        """The mode: what is executed."""
        return self.mode

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a clipped sample with reparameterized gradient."""
        return super().rsample(sample_shape).clamp(self.low, self.high)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a clipped sample without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class MaskedCategorical(Categorical):
    """A categorical distribution over the legal actions.

    TorchRL has one of this name; this one allows the mask to be absent, keeps logits finite, so that entropies and
    gradients are, and checks nothing on the values, so that no step waits for the device.

    Args:
        logits: ``[*B, A]``.
        mask: ``[*B, A]`` bool, true where legal; rows without any legal action (padding agents) become uniform.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None) -> None:
        if mask is not None:
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        super().__init__(logits=logits, validate_args=False)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable legal action."""
        return self.mode

    def straight_through_sample(self) -> Tensor:
        """Draw a one-hot action ``[*B, A]`` whose gradient is that of the probabilities (Bengio et al. 2013)."""
        gumbel = -exponential_like(self.logits).log()
        return straight_through(self.probs, (self.logits + gumbel).argmax(-1))

    def straight_through_mode(self) -> Tensor:
        """Return the most probable action as a one-hot code with the gradient of the probabilities."""
        return straight_through(self.probs, self.logits.argmax(-1))


def straight_through(probs: Tensor, index: Tensor) -> Tensor:
    """Return ``one_hot(index)`` with the gradient of ``probs`` ``[*B, A]``."""
    return one_hot(index, probs.shape[-1], probs.dtype) + (probs - probs.detach())  # the difference is exactly zero


class GaussianHead(nn.Module):
    """Location and scale of every agent's action from its observation.

    Args:
        spec: the task's sizes.
        scale: a fixed standard deviation, ``"learned"`` (one parameter per action component) or
            ``"state_dependent"`` (a second output of the network).
        **network: options of :class:`~torchrl_marl_offline.modules.AgentNetwork`.

    Shape:
        ``[*B, n, o]`` to loc and scale ``[*B, n, a]``.
    """

    def __init__(
        self, spec: TaskSpec, *, scale: float | Literal["learned", "state_dependent"] = 1.0, **network
    ) -> None:
        super().__init__()
        self.state_dependent = scale == "state_dependent"
        self.fixed_scale = None if isinstance(scale, str) else float(scale)
        if isinstance(scale, str) and scale not in ("learned", "state_dependent"):
            raise ValueError(f"scale must be a positive number, 'learned' or 'state_dependent', got {scale!r}.")
        if self.fixed_scale is not None and not self.fixed_scale > 0:
            raise ValueError(f"scale must be positive, got {scale}.")
        outputs = spec.action_size * (2 if self.state_dependent else 1)
        self.network = AgentNetwork(spec.observation_size, outputs, spec.n_agents, **network)
        if scale == "learned":
            self.log_scale = nn.Parameter(torch.full((spec.action_size,), math.log(0.5)))

    def reset_parameters(self) -> None:
        """Reset the learned scale to 0.5; the network resets itself."""
        if hasattr(self, "log_scale"):
            nn.init.constant_(self.log_scale, math.log(0.5))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return loc and scale."""
        out = self.network(observation)
        if self.state_dependent:
            loc, log_scale = out.chunk(2, -1)
            return loc, log_scale.clamp(-5.0, 2.0).exp()
        if self.fixed_scale is not None:
            return out, torch.full_like(out, self.fixed_scale)
        return out, self.log_scale.clamp(-5.0, 2.0).exp().expand_as(out)


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


def remembers_build(builder: Callable[..., Actor]) -> Callable[..., Actor]:
    """Let ``builder(spec, **options)`` note in ``actor.build`` what it was called with, so that a file can say it."""

    @wraps(builder)
    def build(spec: TaskSpec, **options: Any) -> Actor:
        actor = builder(spec, **options)
        actor.build = {"builder": builder.__name__, "spec": spec.to_dict(), "options": options}
        return actor

    return build


@remembers_build
def make_actor(
    spec: TaskSpec,
    *,
    distribution: Literal["gaussian", "tanh_gaussian"] = "gaussian",
    scale: float | Literal["learned", "state_dependent"] = 1.0,
    hidden: Sequence[int] = (512, 512, 512, 512),
    share_params: bool = True,
    activation: str = "gelu",
    layer_norm: bool = False,
    final_scale: float = 0.01,
    observation_norm: tuple[Sequence[float], Sequence[float]] | None = None,
) -> ProbabilisticActor:
    """Build the agents' policies as a TorchRL actor.

    It reads ``("agents", "observation")`` (and ``("agents", "action_mask")`` where the task has one) and writes
    ``("agents", "action")``; TorchRL's :func:`~torchrl.envs.set_exploration_type` chooses between the mode and a
    sample. For a discrete task it is a masked categorical, and ``distribution`` and ``scale`` are not looked at.

    Args:
        spec: the task's sizes and bounds.
        distribution: ``"gaussian"`` (clipped to the bounds when executed, see :class:`BoundedNormal`) or
            ``"tanh_gaussian"`` (TorchRL's :class:`~torchrl.modules.TanhNormal`).
        scale: standard deviation: a fixed number, ``"learned"`` or ``"state_dependent"``.
        hidden: widths of the hidden layers (the recipe: four of 512).
        share_params: agents share parameters and are told apart by a one-hot id.
        activation: activation of the hidden layers.
        layer_norm: layer normalization in the actor (the recipe: in critics only).
        final_scale: scale of the last layer at initialization.
        observation_norm: ``(loc, scale)``, a number for each component of an observation, which the networks then see
            as ``(observation - loc) / scale``; :meth:`OfflineDataset.observation_statistics` of the data.

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
    if spec.discrete:
        logits = AgentNetwork(spec.observation_size, spec.action_size, spec.n_agents, **network)
        keys = {"logits": LOGITS}
        if spec.has_action_mask:
            keys["mask"] = ACTION_MASK
        return ProbabilisticActor(
            TensorDictModule(
                ObservationNorm.before(logits, observation_norm, spec), in_keys=[OBSERVATION], out_keys=[LOGITS]
            ),
            in_keys=keys,
            out_keys=[ACTION],
            distribution_class=MaskedCategorical,
        )
    kwargs = {"low": spec.action_low, "high": spec.action_high}
    if distribution == "gaussian":
        distribution_class = BoundedNormal
    elif distribution == "tanh_gaussian":
        distribution_class = TanhNormal
        kwargs |= {"safe_tanh": True, "tanh_loc": False}
    else:
        raise ValueError(f"distribution must be 'gaussian' or 'tanh_gaussian', got {distribution!r}.")
    head = GaussianHead(spec, scale=scale, **network)
    return ProbabilisticActor(
        TensorDictModule(
            ObservationNorm.before(head, observation_norm, spec), in_keys=[OBSERVATION], out_keys=[LOC, SCALE]
        ),
        in_keys={"loc": LOC, "scale": SCALE},
        out_keys=[ACTION],
        distribution_class=distribution_class,
        distribution_kwargs=kwargs,
    )
