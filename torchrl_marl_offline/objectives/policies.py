"""What the rules ask of an action distribution beyond its log-probability."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributions import Distribution

from torchrl_marl_offline.objectives.noise import normal_like


def is_discrete(policy: Distribution) -> bool:
    """Whether the actions are indices."""
    return hasattr(policy, "logits")


def differentiable_action(policy: Distribution, *, sample: bool, rule: str) -> Tensor:
    """Return the policy's action with a gradient to the policy: the mode, or of discrete actions a one-hot code.

    Args:
        policy: the agents' distribution.
        sample: discrete policies sample the action (otherwise they take the mode).
        rule: who asks, for the error.

    Raises:
        ValueError: for a discrete distribution that passes no gradient.
    """
    if hasattr(policy, "straight_through_sample"):
        return policy.straight_through_sample() if sample else policy.straight_through_mode()
    action = policy.deterministic_sample
    if not action.is_floating_point():
        raise ValueError(
            f"{rule} sends the critic's gradient through the action, and {type(policy).__name__} passes none; "
            "give the actor this library's MaskedCategorical, as make_actor does."
        )
    return action


def sampled_action(policy: Distribution, *, rule: str) -> Tensor:
    """Return an action that the policy draws by the losses' noise; discrete ones as one-hot codes.

    Args:
        policy: the agents' distribution.
        rule: who asks, for the error.
    """
    if is_discrete(policy):
        return differentiable_action(policy, sample=True, rule=rule)
    if hasattr(policy, "drawn"):  # of noise that its network took
        return policy.rsample()
    noise = normal_like(policy.deterministic_sample.unsqueeze(-3))
    return shifted_sample(policy, noise)[0].squeeze(-3)


def bounds_of(policy: Distribution, rule: str) -> tuple[Tensor | float, Tensor | float]:
    """Return the lowest and the highest action of a continuous policy."""
    if not (hasattr(policy, "low") and hasattr(policy, "high")):
        raise ValueError(
            f"{rule} needs the bounds of the actions, which {type(policy).__name__} does not tell by low and high; "
            "give the actor BoundedNormal or TanhNormal, as make_actor does."
        )
    return policy.low, policy.high


def shifted_sample(policy: Distribution, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the actions that a Gaussian policy, bounded or squashed, draws with standard normal ``noise``.

    Args:
        policy: of ``[*B, n]`` agents.
        noise: ``[*B, K, n, a]``.

    Returns:
        Actions ``[*B, K, n, a]`` and their log-densities ``[*B, K, n]``: of a bounded Gaussian, as everywhere, the
        unclipped one's.
    """
    root = policy
    while hasattr(root, "base_dist"):
        root = root.base_dist
    if not (hasattr(root, "loc") and hasattr(root, "scale")):
        raise ValueError(
            f"Sampling with a density needs a Gaussian policy, not {type(policy).__name__}; build the actor with "
            "make_actor(distribution='gaussian') or 'tanh_gaussian'."
        )
    loc, scale = root.loc.unsqueeze(-3), root.scale.unsqueeze(-3)
    action = before = loc + scale * noise
    log_prob = -0.5 * (noise.pow(2) + math.log(2 * math.pi)) - scale.log()
    for transform in getattr(policy, "transforms", ()):
        action = transform(before)
        log_prob = log_prob - transform.log_abs_det_jacobian(before, action)
        before = action
    return action.clamp(*bounds_of(policy, "Sampling")), log_prob.sum(-1)
