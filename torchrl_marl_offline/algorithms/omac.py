"""OMAC: coupled value factorization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torchrl_marl_offline.algorithms.algorithm import ActorCritic, setting
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, OPEN_UNIT, WIDTHS
from torchrl_marl_offline.modules.critics import Decomposition
from torchrl_marl_offline.objectives.extraction import AWR
from torchrl_marl_offline.objectives.in_sample import LocalIQL


@dataclass(frozen=True, kw_only=True)
class OMAC(ActorCritic, name="omac"):
    r"""OMAC: coupled value factorization (Wang and Zhan 2023, arXiv:2306.08900).

    .. math::
        \mathbb{E}\,\ell^2_\tau(\bar Q_a - V_a), \qquad y = r + \gamma V_{tot}(s'), \qquad
        -e^{\beta w_a(s) (\bar Q_a - V_a)} \log \pi_a(u_a | o_a)

    with :math:`Q_{tot} = \sum_a w_a(s) Q_a + b(s)` and :math:`V_{tot} = \sum_a w_a(s) V_a + b(s)`
    (``make_critic(decomposition="linear")``; :class:`LocalIQL`, :class:`AWR`).

    Settings: expectile 0.7, temperature :math:`\beta` 3 and weights of at most 100 are those of single-agent implicit
    Q-learning.

    What differs: :math:`Q_{tot}` and :math:`V_{tot}` have one weight and one offset, functions of the state alone.

    Args:
        expectile: of :class:`LocalIQL`.
        temperature: of :class:`AWR`.
    """

    decomposition: Decomposition = "linear"
    hidden: Annotated[Sequence[int], WIDTHS] = (256, 256)
    expectile: Annotated[float, OPEN_UNIT] = setting(0.7, member=True)
    temperature: Annotated[float, NON_NEGATIVE] = setting(3.0, member=True)

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return every agent's expectile and regression with clipped weights."""
        weights = AWR(self.temperature, "weighted", weights="clipped", standardize=False)
        return {"value_learning": LocalIQL(self.expectile), "extraction": weights}
