"""Actor rectification (OMAR): the policy follows the best action that a sampler finds, beside the critic's gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import UNIT
from torchrl_marl_offline.objectives.action_distributions import bounds_of, is_discrete
from torchrl_marl_offline.objectives.ascent import PolicyGradient
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.candidates import best_candidate, every_action
from torchrl_marl_offline.objectives.samplers import ActionSampler, SoftmaxSampler


@dataclass(frozen=True, kw_only=True)
@checked
class RectifiedGradient(PolicyGradient):
    r"""Actor rectification (Pan et al. 2022, eq. 2).

    .. math:: -(1 - \tau)\, Q^1_a(o_a, \pi_a(o_a)) + \tau\, \|\pi_a(o_a) - \hat u_a\|^2

    :math:`\hat u_a` is the best, by the first head, of the sampler's last candidates and :math:`\pi_a(o_a)`. With
    :math:`\tau = 0` this is :class:`PolicyGradient`. The squared error is averaged over the action's components.
    The search asks the agent's own value where the critic has local ones (under a monotonic mixer the best local action
    is the team's best); a centralized critic with the other agents as recorded. Discrete: no search is needed, and
    :math:`\hat u_a` is the best legal action, as a one-hot code that the policy's probabilities approach.

    Args:
        rectification: :math:`\tau` in [0, 1]; may be scheduled as ``loss.rectification = 0.5``.
        sampler: :class:`SoftmaxSampler`, :class:`CEMSampler` or :class:`RandomSampler`.
        others: see :class:`PolicyGradient`.
        sample: see :class:`PolicyGradient`.

    Metrics:
        ``policy_qvalue`` (mean), ``rectified_qvalue`` (mean value of the best actions).
    """

    rectification: Annotated[float, UNIT] = 0.5
    sampler: ActionSampler = field(default_factory=SoftmaxSampler)
    metrics: ClassVar[tuple[str, ...]] = ("policy_qvalue", "rectified_qvalue")

    def coefficients(self) -> dict[str, float]:
        """Return the rectification."""
        return {"rectification": self.rectification}

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Maximize the critic at the policy's action, and approach the best action found."""
        action, value, metrics = self.ascend(batch)
        policy, rectification = batch.policy, batch.coefficient("rectification")
        with torch.no_grad():
            best, best_value = self._best(batch, policy, action.detach())
        found = policy.probs if is_discrete(policy) else action
        distance = (found - best).pow(2).mean(-1)  # [*B, n]
        metrics["rectified_qvalue"] = batch.mean(best_value)
        return rectification * distance - (1 - rectification) * value, metrics

    def _best(self, batch: Batch, policy: Distribution, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return each agent's best action ``[*B, n, a]`` and its value ``[*B, n]``."""

        def score(actions: Tensor) -> Tensor:
            return batch.candidates(actions)[..., 0]

        if is_discrete(policy):
            candidates = every_action(policy.probs)
            values = score(candidates)
            legal = batch.legal(values)
            values = torch.where(legal, values, torch.full_like(values, -torch.inf))
        else:
            own = action.unsqueeze(-3)
            candidates, values = self.sampler.propose(score, action, *bounds_of(policy, type(self).__name__))
            candidates, values = torch.cat([candidates, own], -3), torch.cat([values, score(own)], -2)
        return best_candidate(candidates, values)
