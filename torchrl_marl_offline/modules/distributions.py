"""Distributions of an agent's action: bounded and squashed Gaussians, masked categoricals, and functions of noise."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal
from torchrl.modules import TanhNormal as TorchRLTanhNormal
from torchrl.modules.distributions.continuous import SafeTanhTransform

from torchrl_marl_offline.core.component_bounds import ComponentBound, like
from torchrl_marl_offline.core.noise import exponential_like
from torchrl_marl_offline.modules.networks import mask_logits, one_hot

Bounding = float | ComponentBound


class _ActsByMode:
    """What a policy whose mode is executed answers to all that ask for one action."""

    @property
    def mean(self) -> Tensor:
        """The mode, so that ``ExplorationType.MEAN`` too stays within the bounds."""
        return self.mode

    @property
    def deterministic_sample(self) -> Tensor:
        """The mode: what is executed."""
        return self.mode


class WithoutDensity:
    """What a policy that only has samples answers."""

    def log_prob(self, value: Tensor) -> NoReturn:
        """Refuse: there is none."""
        _refuse_density(self)

    def entropy(self) -> NoReturn:
        """Refuse: there is none."""
        _refuse_density(self)


class BoundedNormal(_ActsByMode, Independent):
    """A diagonal Gaussian whose mode and samples are clipped to the action bounds.

    The density is the unclipped Gaussian's, so that the log-probability of an action at a bound stays finite.

    Args:
        loc: ``[*B, a]``.
        scale: ``[*B, a]``, positive.
        low: lower bound of every component, or of each.
        high: upper bound. A component whose bounds are equal is that constant, with a density that teaches nothing.
    """

    def __init__(self, loc: Tensor, scale: Tensor, *, low: Bounding = -1.0, high: Bounding = 1.0) -> None:
        self.low, self.high, self.action_half = _bounds_of(loc, low, high)
        if self.action_half is not None:
            constant = self.action_half <= 0
            loc = torch.where(constant, self.low, loc)
            scale = torch.where(constant, torch.ones_like(scale), scale)
        super().__init__(Normal(loc, scale, validate_args=False), 1, validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The location, clipped."""
        return self.base_dist.loc.clamp(self.low, self.high)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a clipped sample with reparameterized gradient."""
        return super().rsample(sample_shape).clamp(self.low, self.high)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a clipped sample without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class TanhNormal(TorchRLTanhNormal):
    """A diagonal Gaussian squashed to the action bounds by tanh.

    TorchRL's, for bounds that are plain numbers: its own constructor compares them on the device, for which the host
    waits at every step, and which a CUDA graph cannot hold.

    Args:
        loc: before the squashing, ``[*B, a]``.
        scale: ``[*B, a]``, positive.
        low: lower bound of every component, or of each.
        high: upper bound. A component whose bounds are equal is that constant, with a density that teaches nothing.

    Raises:
        ValueError: where one number ``low`` is not below one number ``high``.
    """

    def __init__(self, loc: Tensor, scale: Tensor, *, low: Bounding = -1.0, high: Bounding = 1.0) -> None:
        self.tanh_loc, self.upscale, self._event_dims, self.device = False, 5.0, 1, loc.device
        lower, upper, self.action_half = _bounds_of(loc, low, high)
        if self.action_half is not None:
            constant = self.action_half <= 0
            loc = torch.where(constant, torch.zeros_like(loc), loc)
            scale = torch.where(constant, torch.ones_like(scale), scale)
            self.low, self.high, self.non_trivial_min, self.non_trivial_max = lower, upper, True, True
        else:
            if not low < high:
                raise ValueError(f"low must be below high, got {low} and {high}.")
            self.low, self.high = loc.new_full((), low), loc.new_full((), high)
            self.non_trivial_min, self.non_trivial_max = low != -1.0, high != 1.0
        trivial = not (self.non_trivial_min or self.non_trivial_max)
        self._t = SafeTanhTransform() if trivial else _TanhToBounds(lower, upper)
        self.update(loc, scale)


class _TanhToBounds(SafeTanhTransform):
    """The squashing, and what brings its [-1, 1] to the bounds, which rounding does not leave."""

    def __init__(self, low: float | Tensor, high: float | Tensor) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.divisor = self.half
        if isinstance(self.half, Tensor):
            self.divisor = torch.where(self.half > 0, self.half, torch.ones_like(self.half))

    def _call(self, x: Tensor) -> Tensor:
        return (self.middle + self.half * super()._call(x)).clamp(self.low, self.high)

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse((y - self.middle) / self.divisor)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        log = self.divisor.log() if isinstance(self.divisor, Tensor) else math.log(self.divisor)
        return super().log_abs_det_jacobian(x, y) + log


def _bounds_of(loc: Tensor, low: Bounding, high: Bounding) -> tuple[float | Tensor, float | Tensor, Tensor | None]:
    """Return the bounds, and where each component has its own, half of what lies between them."""
    lower, upper = like(low, loc), like(high, loc)
    return lower, upper, (upper - lower) / 2 if isinstance(low, ComponentBound) else None


class MaskedCategorical(Categorical):
    """A categorical distribution over the legal actions.

    TorchRL has one of this name; this one allows the mask to be absent, keeps logits finite, so that entropies and
    gradients are, and checks nothing on the values, so that no step waits for the device.

    Args:
        logits: ``[*B, A]``.
        mask: ``[*B, A]`` bool, true where legal; rows without any legal action (padding agents) become uniform.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None) -> None:
        super().__init__(logits=mask_logits(logits, mask), validate_args=False)

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


class RelaxedCategorical(MaskedCategorical):
    """A :class:`MaskedCategorical` whose samples have the gradient of a Gumbel-softmax (Jang et al. 2017).

    What TorchRL's :class:`~torchrl.modules.OneHotCategorical` has with ``ReparamGradientStrategy.RelaxedOneHot``, at
    its temperature of 1.
    """

    def straight_through_sample(self) -> Tensor:
        """Draw a one-hot action ``[*B, A]`` with the gradient of the softmax of the perturbed logits."""
        perturbed = self.logits - exponential_like(self.logits).log()
        return straight_through(perturbed.softmax(-1), perturbed.argmax(-1))


class OneStep(_ActsByMode, WithoutDensity, Distribution):
    r"""Actions :math:`\mathrm{clip}(f(o, z))` of standard normal noise z, which have samples but no density.

    The mode is taken to be the action at :math:`z = 0`. There is one sample, that of the noise which the network was
    evaluated at.

    Args:
        loc: :math:`f(o, 0)`, ``[*B, a]``.
        drawn: :math:`f(o, z)`, not clipped, ``[*B, a]``.
        noise: z, ``[*B, a]``.
        low: lower bound of every component, or of each.
        high: upper bound.
    """

    has_rsample = True
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, loc: Tensor, drawn: Tensor, noise: Tensor, *, low: Bounding = -1.0, high: Bounding = 1.0
    ) -> None:
        self.loc, self.drawn, self.noise = loc, drawn, noise
        self.low, self.high, self.action_half = _bounds_of(loc, low, high)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The action without noise, clipped."""
        return self.loc.clamp(self.low, self.high)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return the action of this noise, clipped, with its gradient."""
        _check_single(self, sample_shape)
        return self.drawn.clamp(self.low, self.high)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return the action of this noise without gradient."""
        return self.rsample(sample_shape).detach()


class OneStepCategorical(WithoutDensity, MaskedCategorical):
    r"""The legal action of the highest score :math:`f(o, z)`, of standard normal noise z.

    As :class:`OneStep`; ``logits`` and ``probs`` are those without noise.

    Args:
        logits: :math:`f(o, 0)`, ``[*B, A]``.
        drawn: :math:`f(o, z)`, ``[*B, A]``.
        noise: z, ``[*B, A]``.
        mask: ``[*B, A]`` bool, true where legal.
    """

    def __init__(self, logits: Tensor, drawn: Tensor, noise: Tensor, mask: Tensor | None = None) -> None:
        super().__init__(logits, mask)
        self.drawn, self.noise = mask_logits(drawn, mask), noise

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return the action of this noise."""
        _check_single(self, sample_shape)
        return self.drawn.argmax(-1)

    def straight_through_sample(self) -> Tensor:
        """Return the action of this noise as a one-hot code with the gradient of its scores' softmax."""
        return straight_through(self.drawn.softmax(-1), self.drawn.argmax(-1))


def straight_through(probs: Tensor, index: Tensor) -> Tensor:
    """Return ``one_hot(index)`` with the gradient of ``probs`` ``[*B, A]``."""
    return one_hot(index, probs.shape[-1], probs.dtype) + (probs - probs.detach())  # the difference is exactly zero


def _check_single(policy: Distribution, sample_shape: torch.Size) -> None:
    if tuple(sample_shape):
        raise ValueError(f"A {type(policy).__name__} policy holds one sample; evaluate the actor again for another.")


def no_samples_density(kind: type) -> str:
    """Return what is said where log-probabilities are asked of a policy that only has samples."""
    return (
        f"A {kind.__name__} policy has samples but no density; where a rule asks for log-probabilities, build "
        "the actor with make_actor(distribution='gaussian') or 'tanh_gaussian', and leave 'one_step' to MAC-Flow."
    )


def _refuse_density(policy: Distribution) -> NoReturn:
    raise NotImplementedError(no_samples_density(type(policy)))
