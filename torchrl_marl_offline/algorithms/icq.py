"""MA-ICQ: softmax weights over the batch, for values and policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torchrl_marl_offline.algorithms.algorithm import ActorCritic, setting
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, POSITIVE
from torchrl_marl_offline.modules.critics import Decomposition
from torchrl_marl_offline.objectives.extraction import AWR
from torchrl_marl_offline.objectives.in_sample import ICQ


@dataclass(frozen=True, kw_only=True)
class MAICQ(ActorCritic, name="icq"):
    r"""MA-ICQ: implicit constraint Q-learning (Yang et al. 2021, arXiv:2106.03400).

    .. math::
        y = r + \gamma \rho\, \bar Q_{tot}(s', u'), \quad \rho = N\, \mathrm{softmax}(\bar Q_{tot}(s', u') / \beta),
        \qquad -N\, \mathrm{softmax}\big(w_a(s) (Q_a(o_a, u_a) - V_a) / \alpha\big) \log \pi_a(u_a | o_a)

    with softmaxes over the batch (:class:`ICQ`, :class:`AWR`). :math:`V_a` is the mean of :math:`Q_a` over the policy's
    actions (discrete), or its value at the mode (continuous). The paper's critic is
    ``make_critic(decomposition="linear")``.

    Published: :math:`\beta` 1000, :math:`\alpha` 0.1, here ``temperature`` :math:`= 1 / \alpha`; targets over time by
    TD(:math:`\lambda`) on StarCraft.

    What differs: the released code has :math:`w_a(s)` in front of the softmax instead of in it, and one critic head; it
    takes the softmax at each time step of a batch of episodes, this one over all rows.

    Settings: :math:`\beta` and :math:`\alpha` are in units of the return. Where values vary by much of :math:`\beta`,
    :math:`\rho \gamma` exceeds 1 for the larger ones and the critic diverges.

    Args:
        beta: of :class:`ICQ`.
        temperature: of :class:`AWR`.
    """

    decomposition: Decomposition = "linear"
    beta: Annotated[float, POSITIVE] = setting(1000.0, member=True)
    temperature: Annotated[float, NON_NEGATIVE] = setting(10.0, member=True)

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return reweighted SARSA and regression with softmax weights."""
        weights = AWR(self.temperature, "weighted", weights="softmax", standardize=False, baseline="expected")
        return {"value_learning": ICQ(self.beta), "extraction": weights}
