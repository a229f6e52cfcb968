"""Counterfactual conservative Q-learning: a team's critic held down one agent at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import NON_NEGATIVE
from torchrl_marl_offline.objectives.action_distributions import is_discrete, mode_with_log_prob
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.cloned_behaviour import behaviour_log_prob, behaviour_logits, check_has_density
from torchrl_marl_offline.objectives.conservative import CQL


@dataclass(frozen=True, kw_only=True)
@checked
class CFCQL(CQL):
    r""":class:`CQL` of the team's value, one agent's action at a time (Shao et al. 2023).

    .. math::
        \alpha \Big[\sum_a \lambda_a(s) \log \sum_{u_a} e^{Q_{tot}(s, u_a, u_{-a}^{data})}
        - Q_{tot}(s, u^{data})\Big], \qquad
        \lambda_a(s) \propto e^{-\tau D_a(s)}

    for every head; integrals over continuous actions as in :class:`CQL`. Where the joint penalty of a centralized
    critic grows with the number of joint actions, this one holds down what is one agent away from the data.
    :math:`D_a` is how far agent :math:`a`'s policy is from the data: of discrete ones the divergence
    :math:`\sum_{u} \pi_a(u) \log (\pi_a(u) / \mu_a(u))`, of continuous ones :math:`\log \pi_a / \mu_a` at the
    policy's mode. So agents that are far from the data are held down less.

    Args:
        deviation_weight: :math:`\tau`; with 0 all agents count alike, and no model :math:`\mu` of the data is asked.
            May be scheduled as ``loss.deviation_weight = 1.0``, if it is larger at first.
        min_q_weight: see :class:`CQL`.
        num_random: see :class:`CQL`.
        num_policy: see :class:`CQL`.
        noise: see :class:`TD`.
        noise_clip: see :class:`TD`.
        replaced: see :class:`TD`.

    Raises:
        ValueError: where agents are independent; with ``deviation_weight``, where the policies are deterministic.
    """

    deviation_weight: Annotated[float, NON_NEGATIVE] = 0.0
    needs_team_value: ClassVar[bool] = True

    @property
    def needs_behaviour(self) -> bool:
        """Whether the model of the data's actions is asked."""
        return self.deviation_weight > 0

    @property
    def needs_log_prob(self) -> bool:
        """Whether the policy's densities are compared with the model's."""
        return self.needs_behaviour

    def check_behaviour(self, model: TensorDictModuleBase) -> None:
        """Refuse a model without a density."""
        check_has_density(model, type(self).__name__)

    def coefficients(self) -> dict[str, float]:
        """Return the penalty's weight, and that of the deviations where they count."""
        found = super().coefficients()
        return found | ({"deviation_weight": self.deviation_weight} if self.needs_behaviour else {})

    def critic_penalty(self, batch: Batch) -> Tensor:
        """Return the penalty, ``[*B, 1]``."""
        soft_max = self._soft_maximum(batch, team=True)  # [*B, n, H]
        weight = self._weights(batch, soft_max).unsqueeze(-1)
        held_down = (weight * soft_max).sum(-2, keepdim=True)
        return batch.coefficient("min_q_weight") * (held_down - batch.live.total).sum(-1)

    @torch.no_grad()
    def _weights(self, batch: Batch, soft_max: Tensor) -> Tensor:
        """Return what each agent counts, ``[*B, n]`` of sum 1; agents that are not there count nothing."""
        alive, like = batch.alive, soft_max[..., 0].detach()
        logits = torch.zeros_like(like)
        if self.needs_behaviour:
            logits = -batch.coefficient("deviation_weight") * _deviation(batch).expand_as(like)
        if alive is not None:
            logits = logits.masked_fill(~alive & alive.any(-1, keepdim=True), -torch.inf)
        return logits.softmax(-1)


def _deviation(batch: Batch) -> Tensor:
    """Return how far each agent's policy is from the data, ``[*B, n]``."""
    policy = batch.policy
    if is_discrete(policy):
        chances = policy.probs
        there = behaviour_logits(batch, rule="CFCQL", detach=True).log_softmax(-1)  # [*B, n, A]
        own = chances.clamp_min(torch.finfo(chances.dtype).tiny).log()
        return torch.where(chances > 0, chances * (own - there), torch.zeros_like(chances)).sum(-1)
    mode, log_prob = mode_with_log_prob(policy, rule="CFCQL")
    return log_prob - behaviour_log_prob(batch, mode, rule="CFCQL")
