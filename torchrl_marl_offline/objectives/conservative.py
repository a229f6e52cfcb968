"""Conservative Q-learning: TD with critics held down away from the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.noise import uniform_like
from torchrl_marl_offline.core.ranges import FEW_OR_NONE, NON_NEGATIVE
from torchrl_marl_offline.objectives.action_distributions import (
    bounds_of,
    drawn_actions,
    is_deterministic,
    is_discrete,
    mode_of,
)
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.candidates import every_action
from torchrl_marl_offline.objectives.value_learning import TD


@dataclass(frozen=True, kw_only=True)
@checked
class CQL(TD):
    r""":class:`TD` and a penalty on values of actions that are not the data's (Kumar et al. 2020).

    .. math:: \alpha \Big[\log \sum_{u_a} e^{Q_a(o_a, u_a)} - Q_a(o_a, u_a^{data})\Big]

    for every agent and every head (the heads' penalties are summed, as their squared errors are). Discrete: the sum
    over the legal actions. Continuous: the integral, by importance sampling of ``num_random`` uniform actions and
    ``num_policy`` of the policy (their appendix F),
    :math:`\log \frac{1}{N} \sum_j e^{Q_a(o_a, u_j)} / q(u_j)`. Local values where the critic has them (also under a
    mixer); a centralized critic is asked for agent :math:`a`'s action with the others as recorded. Under a value norm
    the penalty is divided by its scale, as the squared error is by the square: both terms are then without unit.

    Args:
        min_q_weight: :math:`\alpha`; may be scheduled as ``loss.min_q_weight = 1.0``.
        num_random: uniform actions.
        num_policy: actions of the current policy. A deterministic one has no density to divide by: these are uniform,
            too, as all are in OMAR's released code.
        noise: see :class:`TD`.
        noise_clip: see :class:`TD`.

    Metrics:
        ``critic_penalty``: the weighted penalty, before any division by a scale.
    """

    min_q_weight: Annotated[float, NON_NEGATIVE] = 1.0
    num_random: Annotated[int, FEW_OR_NONE] = 10
    num_policy: Annotated[int, FEW_OR_NONE] = 10
    metrics: ClassVar[tuple[str, ...]] = ("critic_penalty",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_random + self.num_policy < 1:
            raise ValueError("Of num_random and num_policy one must be above 0; both are 0.")

    def coefficients(self) -> dict[str, float]:
        """Return the weight."""
        return {"min_q_weight": self.min_q_weight}

    def critic_penalty(self, batch: Batch) -> Tensor:
        """Return the penalty, ``[*B, n]``."""
        recorded = batch.live
        recorded = recorded.total if recorded.local is None else recorded.local
        return batch.coefficient("min_q_weight") * (self._soft_maximum(batch) - recorded).sum(-1)

    def _soft_maximum(self, batch: Batch, *, team: bool = False) -> Tensor:
        """Return the logarithm of the integral of the exponential value over each agent's actions, ``[*B, n, H]``.

        Of the values of :meth:`Batch.candidates`.
        """
        policy = batch.policy
        if is_discrete(policy):
            values = batch.candidates(every_action(policy.probs), team=team)  # [*B, A, n, H]
            legal = batch.legal(values)
            return torch.where(legal, values, torch.full_like(values, -torch.inf)).logsumexp(-3)
        actions, log_prob = self._sampled(policy)
        values = batch.candidates(actions, team=team) - log_prob.unsqueeze(-1)
        return values.logsumexp(-3) - math.log(values.shape[-3])

    @torch.no_grad()
    def _sampled(self, policy: Distribution) -> tuple[Tensor, Tensor]:
        """Return actions ``[*B, K, n, a]`` and the logarithms of the densities that they were drawn with."""
        mode = mode_of(policy).unsqueeze(-3)  # [*B, 1, n, a]
        low, high = bounds_of(policy, "CQL")
        count = self.num_random + (self.num_policy if is_deterministic(policy) else 0)
        shape = (*mode.shape[:-3], count, *mode.shape[-2:])
        uniform = low + (high - low) * uniform_like(mode.expand(shape))
        width = torch.zeros_like(uniform) + (high - low)
        volume = torch.where(width > 0, width, 1.0).log()  # a component that is a constant has none
        if is_deterministic(policy):
            return uniform, -volume.sum(-1)
        own, log_prob = drawn_actions(policy, self.num_policy, rule="CQL")
        return torch.cat([uniform, own], -3), torch.cat([-volume.sum(-1), log_prob], -2)
