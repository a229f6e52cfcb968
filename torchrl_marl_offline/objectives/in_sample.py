"""In-sample value learning: no action is asked that the data does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import INCREASING, POSITIVE, REAL
from torchrl_marl_offline.objectives.batch import Batch, Following
from torchrl_marl_offline.objectives.batch_weights import batch_max, batch_softmax
from torchrl_marl_offline.objectives.functional import expectile_weighted_square
from torchrl_marl_offline.objectives.team import Values
from torchrl_marl_offline.objectives.value_learning import IQL, SARSA, ValueLearning, no_local_value


@dataclass(frozen=True)
@checked
class ICQ(SARSA):
    r"""Implicit constraint Q-learning (Yang et al. 2021): :class:`SARSA` that leans to the batch's better successors.

    .. math::
        y = r + \gamma \rho\, \bar Q_{tot}(s', u'), \qquad
        \rho = N\, \mathrm{softmax}_{batch}\big(\bar Q_{tot}(s', u') / \beta\big)

    The softmax is over the rows that bootstrap: those that did not terminate and whose next action was recorded. With
    :math:`\beta \to \infty` this is SARSA.

    Args:
        beta: :math:`\beta`; may be scheduled as ``loss.beta = 100.0``.
    """

    beta: Annotated[float, POSITIVE] = 1000.0

    def coefficients(self) -> dict[str, float]:
        """Return beta."""
        return {"beta": self.beta}

    def reweighted(self, batch: Batch, next_value: Tensor) -> Tensor:
        """Multiply each row's next value by its weight in the batch."""
        value = next_value.squeeze(-1)  # [*B, k]
        mask, known = ~batch.terminated(value), batch.has_next_action
        for counts in (None if known is None else known.unsqueeze(-1), batch.counts(value)):
            mask = mask if counts is None else mask & counts
        return next_value * batch_softmax(value / batch.coefficient("beta"), mask).unsqueeze(-1)


@dataclass(frozen=True)
@checked
class LocalIQL(IQL):
    r"""Coupled value factorization (Wang and Zhan 2023): :class:`IQL` with an expectile for each agent.

    .. math:: \mathbb{E}\,\ell^2_\tau\big(\min_k \bar Q^k_a(o_a, u_a) - V_a(o_a)\big)

    where IQL fits :math:`V_{tot}`. The target stays :math:`r + \gamma V_{tot}(s')`, and :math:`V_{tot}` is mixed by the
    weights of :math:`Q_{tot}`.
    """

    needs_local_value: ClassVar[bool] = True

    def value_elements(self, batch: Batch) -> Tensor:
        """Return every agent's expectile regression, ``[*B, n]``."""
        value, target = _local(batch.state, self), _local(batch.target, self).amin(-1, keepdim=True)
        return expectile_weighted_square(target - value, batch.coefficient("expectile")).squeeze(-1)


@dataclass(frozen=True)
@checked
class GlobalToLocal(ValueLearning):
    r"""Implicit global-to-local value regularization (Wang et al. 2023).

    .. math::
        \mathbb{E}\Big[\exp\big(\tfrac{w_a}{\alpha} (\bar Q_a(o_a, u_a) - V_a(o_a))\big)
        + \tfrac{w_a}{\alpha} V_a(o_a)\Big], \qquad y = r + \gamma \bar V_{tot}(s')

    :math:`w_a = \partial Q_{tot} / \partial Q_a` of the target mixer, without gradient: :math:`|w_a(s)|` of a linear
    mixer, 1 for independent agents. :math:`\bar V_{tot}` is the target state-value network's, through the target mixer.
    As in the released code, the exponent is clipped, and the loss of a batch divided by the exponential of its largest
    exponent (but of no less than -1). Where the exponent is clipped from above, the gradient has its second term alone.

    Args:
        regularization: :math:`\alpha`: the higher, the nearer to the data; may be scheduled as
            ``loss.regularization = 1.0``.
        exponent_range: bounds of the exponent.
    """

    regularization: Annotated[float, POSITIVE] = 10.0
    exponent_range: Annotated[tuple[float, float], REAL, INCREASING] = (-10.0, 10.0)
    needs_value: ClassVar[bool] = True
    needs_target_value: ClassVar[bool] = True
    needs_local_value: ClassVar[bool] = True

    def coefficients(self) -> dict[str, float]:
        """Return the regularization."""
        return {"regularization": self.regularization}

    def next_value(self, following: Following) -> Tensor:
        """Evaluate the target state-value network and mix it."""
        return following.target_state.total

    def value_elements(self, batch: Batch) -> Tensor:
        """Return every agent's exponential residual, ``[*B, n]``."""
        value, target = _local(batch.state, self), _local(batch.target, self).amin(-1, keepdim=True)
        weight = batch.credit / batch.coefficient("regularization")
        exponent = (weight * (target - value)).clamp(*self.exponent_range).squeeze(-1)  # [*B, n]
        mask = batch.counts_of_values(exponent)
        largest = batch_max(exponent, mask, tuple(range(exponent.ndim))).clamp_min(-1.0)
        return (exponent - largest).exp() + torch.exp(-largest) * (weight * value).squeeze(-1)


def _local(values: Values, rule: ValueLearning) -> Tensor:
    if values.local is None:
        raise ValueError(no_local_value(rule))
    return values.local
