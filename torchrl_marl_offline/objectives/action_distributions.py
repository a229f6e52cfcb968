"""What the rules ask of an action distribution, whichever it is: TorchRL's, torch's own, or a user's."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from tensordict.nn.distributions import Delta as TensorDictDelta
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, OneHotCategorical
from torch.distributions.constraints import interval
from torchrl.modules import Delta, ReparamGradientStrategy

from torchrl_marl_offline.core.noise import normal_like
from torchrl_marl_offline.modules.distributions import MaskedCategorical, RelaxedCategorical


class Bounds(NamedTuple):
    """The lowest and the highest action: numbers, or tensors that are broadcast to ``[*B, n, a]``."""

    low: Tensor | float
    high: Tensor | float


def per_agent(policy: Distribution) -> Distribution:
    """Return a distribution of every agent's action in the form that the rules work with.

    Discrete ones become a :class:`MaskedCategorical` of the same logits, whether they write indices or one-hot codes.
    Continuous ones have the components of one agent's action as their event, so that ``log_prob`` is ``[*B, n]``:
    ``Normal(loc, scale)`` has none, and ``Independent(..., 2)`` the whole team's.
    """
    if hasattr(policy, "straight_through_sample"):
        return policy
    root = _root(policy) if isinstance(policy, Independent) else policy
    if isinstance(root, (Categorical, OneHotCategorical)):
        return _categorical(root)
    while isinstance(policy, Independent) and len(policy.event_shape) > 1:
        policy = policy.base_dist
    per_component = not policy.event_shape and policy.has_rsample
    return Independent(policy, 1, validate_args=False) if per_component else policy


def _categorical(policy: Categorical | OneHotCategorical) -> Distribution:
    # not above: distributions draw by the losses' noise, whose package would not be whole yet
    relaxed = getattr(policy, "grad_method", None) is ReparamGradientStrategy.RelaxedOneHot
    return (RelaxedCategorical if relaxed else MaskedCategorical)(policy.logits, ~policy.logits.isneginf())


def is_discrete(policy: Distribution) -> bool:
    """Whether the actions are indices."""
    return hasattr(policy, "straight_through_sample")


def is_deterministic(policy: Distribution) -> bool:
    """Whether it is a single action without a density."""
    return isinstance(_root(policy), (Delta, TensorDictDelta))


def mode_of(policy: Distribution) -> Tensor:
    """Return the action that a policy takes where nothing is left to chance.

    It is what TorchRL executes: ``deterministic_sample`` where the distribution has one, else its mode, else, of a
    transformed one, what becomes of its base's mode, else its mean.

    Raises:
        ValueError: for a distribution that has none of them.
    """
    action = getattr(policy, "deterministic_sample", None)
    if action is not None:
        return action
    try:
        return policy.mode
    except (AttributeError, NotImplementedError):
        pass
    if hasattr(policy, "base_dist"):
        action = mode_of(policy.base_dist)
        for transform in getattr(policy, "transforms", ()):
            action = transform(action)
        return action
    try:
        return policy.mean
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"{type(policy).__name__} has neither a mode nor a mean to act by; give it a property deterministic_sample."
        ) from error


def in_halves(policy: Distribution, difference: Tensor) -> Tensor:
    """Return a difference of actions ``[*B, n, a]`` in halves of each component's own range, where it has one.

    Where one number bounds all components it stays as it is; of a constant nothing is left.
    """
    half = getattr(policy, "action_half", None)
    if half is None:
        return difference
    return torch.where(half > 0, difference / torch.where(half > 0, half, torch.ones_like(half)), 0.0)


def log_prob_of(policy: Distribution, action: Tensor, *, rule: str) -> Tensor:
    """Return the log-probability of every agent's action, ``[*B, n]``.

    Args:
        policy: the agents' distribution.
        action: as in the layout, or one-hot codes of discrete actions.
        rule: who asks, for the error.

    Raises:
        ValueError: for a policy without a density, or with a single one for the whole team.
    """
    if is_deterministic(policy):
        raise ValueError(no_density(rule))
    discrete = is_discrete(policy)
    log_prob = policy.log_prob(action.argmax(-1) if discrete and action.is_floating_point() else action)
    agents = action.shape[:-1] if action.is_floating_point() else action.shape
    if log_prob.shape != agents:
        raise ValueError(
            f"{rule} needs a log-probability of every agent's action, {list(agents)}, and {type(policy).__name__} "
            f"gives {list(log_prob.shape)}; give the actor a distribution of single agents' actions."
        )
    return log_prob


def no_density(rule: str) -> str:
    """Return what is said where ``rule`` asks a deterministic policy for log-probabilities."""
    return (
        f"{rule} needs the log-probabilities of a stochastic policy, and the actor is deterministic; take one with a "
        "distribution, for instance from make_actor(spec), or a rule such as TD3BC, PolicyGradient or OMAR."
    )


def differentiable_action(policy: Distribution, *, sample: bool, rule: str) -> Tensor:
    """Return the policy's action with a gradient to the policy: the mode, or of discrete actions a one-hot code.

    Args:
        policy: the agents' distribution.
        sample: discrete policies sample the action (otherwise they take the mode).
        rule: who asks, for the error.

    Raises:
        ValueError: for a distribution over whole numbers that passes no gradient.
    """
    if is_discrete(policy):
        return policy.straight_through_sample() if sample else policy.straight_through_mode()
    action = mode_of(policy)
    if not action.is_floating_point():
        raise ValueError(
            f"{rule} sends the critic's gradient through the action, and {type(policy).__name__} passes none; "
            "give the actor a categorical distribution, as make_actor does."
        )
    return action


def sampled_action(policy: Distribution, *, rule: str) -> Tensor:
    """Return an action that the policy draws, see :func:`drawn_actions`; discrete ones as one-hot codes.

    Args:
        policy: the agents' distribution.
        rule: who asks, for the error.
    """
    if is_discrete(policy):
        return differentiable_action(policy, sample=True, rule=rule)
    if hasattr(policy, "drawn"):  # of noise that its network took
        return policy.rsample()
    return drawn_actions(policy, 1, rule=rule)[0].squeeze(-3)


def drawn_actions(policy: Distribution, count: int, *, rule: str) -> tuple[Tensor, Tensor]:
    """Draw ``count`` actions ``[*B, count, n, a]`` of a continuous policy, and their log-densities ``[*B, count, n]``.

    Gaussian policies, squashed ones too, take the losses' noise; a deterministic one repeats its action, at a density
    of no meaning; others draw from torch's global generator, with their gradient where they pass one.

    Raises:
        ValueError: for a policy that cannot be drawn from.
    """
    mode = mode_of(policy).unsqueeze(-3)
    if is_deterministic(policy):
        action = mode.expand(*mode.shape[:-3], count, *mode.shape[-2:])
        return action, action[..., 0].new_zeros(action.shape[:-1])
    if isinstance(_root(policy), Normal):
        bounds = bounds_of(policy, rule) if bounds_or_none(policy) is not None else None
        return shifted_sample(policy, normal_like(mode.expand(*mode.shape[:-3], count, *mode.shape[-2:])), bounds)
    if hasattr(policy, "drawn"):
        raise ValueError(
            f"Sampling with a density needs a Gaussian policy, not {type(policy).__name__}; build the actor with "
            "make_actor(distribution='gaussian') or 'tanh_gaussian'."
        )
    drawn = (policy.rsample if policy.has_rsample else policy.sample)((count,))  # [count, *B, n, a]
    return drawn.movedim(0, -3), policy.log_prob(drawn).movedim(0, -2)


def mode_with_log_prob(policy: Distribution, *, rule: str) -> tuple[Tensor, Tensor]:
    """Return the mode ``[*B, n, a]`` of a continuous policy and its log-density ``[*B, n]``.

    That of a Gaussian is known where it is bounded or squashed, too: at a bound, what is left of the mode does not tell
    how far behind it the policy's centre lies.
    """
    mode = mode_of(policy)
    if not isinstance(_root(policy), Normal):
        return mode, log_prob_of(policy, mode, rule=rule)
    bounds = bounds_of(policy, rule) if bounds_or_none(policy) is not None else None
    action, log_prob = shifted_sample(policy, torch.zeros_like(mode).unsqueeze(-3), bounds)
    return action.squeeze(-3), log_prob.squeeze(-2)


def bounds_or_none(policy: Distribution) -> Bounds | None:
    """Return the bounds that the loss was given, or else those that the distribution tells; None where neither does."""
    given = getattr(policy, "action_bounds", None)
    if given is not None:
        return given
    if hasattr(policy, "low") and hasattr(policy, "high"):
        return Bounds(policy.low, policy.high)
    while isinstance(policy, Independent):
        policy = policy.base_dist
    try:
        support = policy.support
    except NotImplementedError:
        return None
    return Bounds(support.lower_bound, support.upper_bound) if isinstance(support, interval) else None


def bounds_of(policy: Distribution, rule: str) -> Bounds:
    """Return the lowest and the highest action of a continuous policy.

    Raises:
        ValueError: where neither the loss nor the distribution knows them.
    """
    bounds = bounds_or_none(policy)
    if bounds is None:
        raise ValueError(
            f"{rule} needs the bounds of the actions, which {type(policy).__name__} does not tell; pass the loss "
            "action_spec=(low, high), or the environment's action spec."
        )
    return bounds


def shifted_sample(policy: Distribution, noise: Tensor, bounds: Bounds | None) -> tuple[Tensor, Tensor]:
    """Return the actions that a Gaussian policy, bounded or squashed, draws with standard normal ``noise``.

    Args:
        policy: of ``[*B, n]`` agents.
        noise: ``[*B, K, n, a]``.
        bounds: to which the actions are clipped; None for none.

    Returns:
        Actions ``[*B, K, n, a]`` and their log-densities ``[*B, K, n]``: of a bounded Gaussian, as everywhere, the
        unclipped one's.
    """
    root, transforms = policy, []
    while hasattr(root, "base_dist"):
        transforms = [*getattr(root, "transforms", ()), *transforms]
        root = root.base_dist
    loc, scale = root.loc.unsqueeze(-3), root.scale.unsqueeze(-3)
    action = before = loc + scale * noise
    log_prob = -0.5 * (noise.pow(2) + math.log(2 * math.pi)) - scale.log()
    for transform in transforms:
        action = transform(before)
        log_prob = log_prob - transform.log_abs_det_jacobian(before, action)
        before = action
    if bounds is None:
        return action, log_prob.sum(-1)
    if isinstance(bounds.low, Tensor) and bounds.low.ndim:  # a component that is a constant has no density
        log_prob = torch.where(bounds.low < bounds.high, log_prob, 0.0)
    return action.clamp(*bounds), log_prob.sum(-1)


def _root(policy: Distribution) -> Distribution:
    while hasattr(policy, "base_dist"):
        policy = policy.base_dist
    return policy
