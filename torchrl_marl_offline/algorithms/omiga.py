"""OMIGA: implicit global-to-local value regularization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torchrl_marl_offline.algorithms.algorithm import ActorCritic, setting
from torchrl_marl_offline.core.ranges import FEW, POSITIVE, WIDTHS
from torchrl_marl_offline.core.relevance import OF_CONTINUOUS
from torchrl_marl_offline.modules.critics import Decomposition
from torchrl_marl_offline.objectives.extraction import AWR
from torchrl_marl_offline.objectives.in_sample import GlobalToLocal


@dataclass(frozen=True, kw_only=True)
class OMIGA(ActorCritic, name="omiga"):
    r"""OMIGA: implicit global-to-local value regularization (Wang et al. 2023, arXiv:2307.11620).

    .. math::
        \mathbb{E}\Big[e^{w_a (\bar Q_a - V_a) / \alpha} + \tfrac{w_a}{\alpha} V_a\Big], \qquad
        y = r + \gamma \bar V_{tot}(s'), \qquad -e^{w_a (\bar Q_a - V_a) / \alpha} \log \pi_a(u_a | o_a)

    with :math:`Q_{tot} = \sum_a w_a(s) Q_a + b(s)` and :math:`V_{tot}` of the same weights
    (``make_critic(decomposition="linear")``; :class:`GlobalToLocal`, :class:`AWR`). "OMIGA + Mix" (Lee et al. 2026,
    fig. 10) is a critic with ``decomposition="mixer"``: :math:`w_a = \partial Q_{tot} / \partial Q_a`. One agent,
    :math:`w = 1` and :math:`\alpha \to \infty` is behaviour cloning.

    Published: :math:`\alpha` 10 (1 on some data); exponents clipped at :math:`\pm 10`; batches of 128, learning rate
    5e-4, two hidden layers of 256, :math:`\gamma` 0.99, targets' rate 0.005, gradients clipped at norm 1 (each
    network's own), a tanh-Gaussian actor whose scale is a second output, a million steps, 10 episodes every 5000.

    What differs: the released code keeps the policies' means within :math:`\pm 9` and has a mixer of 64 hidden units.
    One critic head and a deviation that depends on the observation, as released, are the defaults of ``make_loss(spec,
    algorithm="omiga")``; by hand, ``make_critic(num_heads=1)`` and ``make_actor(scale="state_dependent")``.

    Settings: a tanh-Gaussian takes recorded actions at a bound for ones of far-off means. Where there are many of them
    (a sixth of the expert's in ``mpe/simple_spread``), ``distribution="gaussian"`` clones better; the same holds for
    :class:`MAICQ` and :class:`OMAC`.

    Args:
        alpha: :math:`\alpha`. It sets two coefficients of the loss: ``regularization``, :math:`\alpha`, of the values
            and ``temperature``, :math:`1 / \alpha`, of the policy.
    """

    decomposition: Decomposition = "linear"
    num_heads: Annotated[int, FEW] = 1
    hidden: Annotated[Sequence[int], WIDTHS] = (256, 256)
    scale: Annotated[float | Literal["learned", "state_dependent"], POSITIVE, OF_CONTINUOUS] = "state_dependent"
    alpha: Annotated[float, POSITIVE] = setting(10.0, member=True)

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return every agent's exponential residual and regression with weights clipped by their exponent."""
        learning = GlobalToLocal(self.alpha)
        bounds = {"exponent_range": learning.exponent_range, "max_weight": None}
        weights = AWR(1 / self.alpha, "weighted", weights="clipped", standardize=False, **bounds)
        return {"value_learning": learning, "extraction": weights}
