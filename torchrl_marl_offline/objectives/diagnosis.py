"""What a loss's networks say of a batch beside the loss: gains, the size of values, credit, agreement, distance."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.masked_mean import masked_mean
from torchrl_marl_offline.core.put_back import preserved_buffers, preserved_rng
from torchrl_marl_offline.objectives.action_distributions import in_halves, is_discrete, mode_of
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss

MEANINGS = {
    "qvalue_largest": "the largest |Q| in the batch, in units of discounted return",
    "mixer_gain": "operator norm of the mixer's Jacobian dQ_tot/dQ_a, its mean over rows and heads",
    "discounted_gain": "mixer_gain times the discount: the paper's gain of the temporal-difference operator",
    "policy_slope": "norm of dQ_tot/du at the policies' joint action, its mean over rows",
    "closed_loop_gain": "discounted_gain times policy_slope over the critic's scale (eq. 7)",
    "policy_distance": "root mean square between recorded and chosen actions; of discrete ones the share that differ",
    "advantage_agreement": "mean correlation over the batch of two agents' advantages of the recorded actions",
    "credit_low": "the smallest of the agents' shares of the credit dQ_tot/dQ_a",
    "credit_high": "the largest of them",
}
"""Every number of :func:`batch_diagnosis`, and what it means."""


def batch_diagnosis(loss: OfflineMARLLoss, tensordict: TensorDictBase) -> dict[str, Tensor]:
    r"""Return numbers that tell a sound critic from one that diverges, and a policy near the data from one that is not.

    With the mixer's Jacobian :math:`J = \partial Q_{tot} / \partial Q_a` at the recorded joint action, the paper's gain
    is :math:`\gamma \lVert J \rVert` (Lee et al. 2026, section 4.2); ``VDN`` has :math:`\gamma \sqrt n`, whatever it
    learns. The closed-loop gain (eq. 7) is :math:`\gamma \lVert J \rVert\, \lVert \partial \pi / \partial Q_{tot}
    \rVert / \sigma_Q`; the paper leaves open what :math:`\partial \pi / \partial Q_{tot}` is. Here it is what moves a
    policy that climbs the critic: :math:`\partial Q_{tot} / \partial u` at its action, divided by
    :math:`\mathbb{E}|Q_{tot}|` where the rule normalizes its objective (eq. 4); and :math:`\sigma_Q` is the value
    norm's scale, 1 without one.

    Args:
        loss: with a critic that it trains; what its parts do not have is left out: gains and credit without a mixer,
            what concerns policies without an actor.
        tensordict: rows ``[*B]`` as the loss takes them.

    Returns:
        Numbers ``[]`` by the names of :data:`MEANINGS`, without gradient; the random generators and the loss's
        buffers stay as they were.
    """
    with preserved_rng(), preserved_buffers(loss):
        return numbers_of_batch(loss, tensordict)


def numbers_of_batch(loss: OfflineMARLLoss, tensordict: TensorDictBase) -> dict[str, Tensor]:
    """Return what :func:`batch_diagnosis` does; networks in training mode may move their running statistics."""
    batch = loss.batch(tensordict)
    found: dict[str, Tensor] = {}
    if loss.value_learning is None or not batch.has_critic:
        return found
    _of_values(loss, batch, found)
    if loss.team.actor is not None:
        _of_policies(loss, batch, found)
    return {name: value.detach() for name, value in found.items()}


def mixer_jacobian(loss: OfflineMARLLoss, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return the values of the recorded joint actions and what the mixer makes of a change of the local ones.

    Args:
        loss: with a critic.
        batch: its rows ``[*B]``.

    Returns:
        Values ``[*B, k, H]``, and the Jacobian ``[*B, n, H]`` of a team's value; ``None`` without a mixer. Both without
        gradient.
    """
    team = loss.team
    with torch.no_grad():
        local, beside = team.critic_outputs(batch.tensordict, batch.action, target=False)
    if team.mixer is None:
        return local, None
    local = local.detach().requires_grad_()
    with torch.enable_grad():
        total = team.mix(batch.tensordict, local, target=False, detach=True, **beside)
        jacobian = torch.autograd.grad(total.sum(), local)[0]  # a head of the total depends on its own local ones
    return total.detach(), jacobian


def credit_shares(jacobian: Tensor, batch: Batch) -> Tensor:
    """Return each agent's share ``[n]`` of the credit, the mean of ``|dQ_tot / dQ_a|`` over rows and heads."""
    credit = jacobian.abs().mean(-1)  # [*B, n]
    each = masked_mean(credit, batch.counts(credit), tuple(range(credit.ndim - 1)))
    return each / each.sum().clamp_min(torch.finfo(each.dtype).tiny)


def _of_values(loss: OfflineMARLLoss, batch: Batch, found: dict[str, Tensor]) -> None:
    """Add the size of values, and of a mixer its gain and the agents' credit."""
    total, jacobian = mixer_jacobian(loss, batch)
    if jacobian is not None:
        gain = masked_mean(jacobian.norm(dim=-2).mean(-1, keepdim=True), batch.counts(total[..., 0, :1]))
        found["mixer_gain"] = gain
        if not math.isnan(gamma := discount_of(loss)):
            found["discounted_gain"] = gain * gamma
        each = credit_shares(jacobian, batch)
        found |= {"credit_low": each.amin(), "credit_high": each.amax()}
    largest = total.amin(-1).abs()  # [*B, k]
    mask = batch.counts(largest)
    found["qvalue_largest"] = (largest if mask is None else largest.where(mask, torch.zeros_like(largest))).amax()


def chosen_and_recorded(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the policies' joint action, by its mode, and the recorded one, ``[*B, n, a]``; one-hot if discrete."""
    with torch.no_grad():
        policy = batch.policy
        action = policy.straight_through_mode() if is_discrete(policy) else mode_of(policy)
    return action.detach(), batch.action_like(action)


def distance_of(action: Tensor, recorded: Tensor, batch: Batch) -> Tensor:
    """Return the root mean square between two joint actions, of discrete tasks the share of actions that differ."""
    difference = in_halves(batch.policy, action - recorded).square().mean(-1)  # [*B, n]
    counts = batch.counts(difference)
    if not batch.action.is_floating_point():
        return masked_mean((difference > 0).to(difference.dtype), counts)
    return masked_mean(difference, counts).sqrt()


def _of_policies(loss: OfflineMARLLoss, batch: Batch, found: dict[str, Tensor]) -> None:
    """Add what climbing the critic would do to policies, and how far they are from the data."""
    action, recorded = chosen_and_recorded(batch)
    found["policy_distance"] = distance_of(action, recorded, batch)
    found |= climbing(loss, batch, action, found.get("discounted_gain"))
    with torch.no_grad():
        advantage = batch.advantage("local")
    if advantage.shape[-1] > 1:
        found["advantage_agreement"] = agreement(advantage, batch.counts(advantage))


def climbing(
    loss: OfflineMARLLoss, batch: Batch, action: Tensor, discounted_gain: Tensor | float | None
) -> dict[str, Tensor]:
    """Return how steep the critic is at a joint action ``[*B, n, a]`` and, with a mixer's gain, the closed loop's.

    Args:
        loss: of the batch.
        batch: its rows.
        action: one-hot if discrete, without gradient.
        discounted_gain: ``None`` where there is no mixer.
    """
    asked = action.detach().requires_grad_()
    with torch.enable_grad():
        value = batch.q(asked, detach=True).total_min.squeeze(-1)  # [*B, k]
        slope = torch.autograd.grad(value.sum(), asked)[0]
    slope = masked_mean(slope.flatten(-2).norm(dim=-1, keepdim=True), batch.counts(slope[..., 0, :1]))
    found = {"policy_slope": slope}
    if discounted_gain is not None:
        scale = torch.ones_like(slope) if loss.value_norm is None else loss.value_norm.scale().mean()
        if getattr(loss.extraction, "normalize", False):
            scale = scale * masked_mean(value.detach().abs(), batch.counts(value))
        found["closed_loop_gain"] = discounted_gain * slope / scale.clamp_min(torch.finfo(slope.dtype).tiny)
    return found


def agreement(advantage: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean correlation over the rows of two agents' advantages ``[*B, n]``, from -1 to 1.

    What ``mask`` leaves out of a row counts as an average advantage, and so do advantages that are the same in all rows
    but for rounding; rows without any agent do not count.
    """
    rows, n = tuple(range(advantage.ndim - 1)), advantage.shape[-1]
    centred = advantage - masked_mean(advantage, mask, rows)
    deviation = masked_mean(centred.square(), mask, rows).sqrt()
    size = masked_mean(advantage.square(), mask, rows).sqrt()
    varies = deviation > 10 * torch.finfo(advantage.dtype).eps * size
    scaled = centred / deviation.clamp_min(torch.finfo(advantage.dtype).tiny)
    scaled = scaled.where(varies if mask is None else varies & mask, torch.zeros_like(scaled))
    joint = (scaled.sum(-1).square() - scaled.square().sum(-1)) / (n * (n - 1))
    return masked_mean(joint, None if mask is None else mask.any(-1))


def discount_of(loss: OfflineMARLLoss) -> Tensor | float:
    """Return the discount of a loss's value estimator, its default where none was made; NaN where it has none."""
    return getattr(loss.value_estimator, "gamma", math.nan)
