"""The recipe: mixer, scale-invariant value normalization, implicit Q-learning and advantage-weighted regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torchrl_marl_offline.algorithms.algorithm import ActorCritic, setting
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, OPEN_UNIT, WIDTHS, OneOf
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.modules.critics import Decomposition
from torchrl_marl_offline.modules.networks import ACTIVATIONS
from torchrl_marl_offline.objectives.extraction import AWR, EXTRACTIONS
from torchrl_marl_offline.objectives.value_learning import VALUE_LEARNINGS

WEIGHTED = ReadWith("extraction", "awr", "weighted_brac")


@dataclass(frozen=True, kw_only=True)
class Recipe(ActorCritic, name="recipe"):
    r"""The recipe: any combination of its axes (Lee et al. 2026, arXiv:2603.08399); by default Mix + SVN + IQL + AWR.

    .. math::
        y = r + \gamma \bar V_{tot}(s'), \qquad
        \mathbb{E}\Big(\frac{Q_{tot} - y}{\mathbb{E}|Q_{tot} - \mathbb{E} Q_{tot}|}\Big)^2, \qquad
        \mathbb{E}\,\ell^2_\tau(\bar Q_{tot} - V_{tot}), \qquad -e^{\alpha (Q_{tot} - V_{tot})} \log \pi_a(u_a | o_a)

    with :math:`Q_{tot} = f(Q_1, \ldots, Q_n; s)` of a monotonic mixer and :math:`V_{tot}` through its target
    (:class:`ScaleInvariantValueNorm`, :class:`IQL`, :class:`AWR`). Other axes: :class:`TD` and :class:`SARSA`,
    :class:`BRAC`, every decomposition.

    Published: four hidden layers of 512 with layer normalization in the critic, two heads; batches of 640, learning
    rate 3e-4, :math:`\gamma` 0.99, targets' rate 0.005, 500,000 steps (a million on StarCraft), 10 episodes every
    50,000. Temperatures and expectiles were searched for; their values are not in the text.

    What differs: both heads are trained (the listing: the smaller one at each row); the weights are
    those of :class:`AWR`, of the team's advantage by default, where equation 11 has local ones. The released
    code never trained its mixer, which is ``frozen`` here; fixes the policies' deviation (``scale=1.0``; learned here,
    so that an ``alpha`` of :class:`BRAC` weighs up to 25 times as much once it is small), and its default ``alpha`` is
    0.03; clips the weights (``weights="clipped"``); takes the advantage of the online critic
    (``online_advantage=True``), under :class:`TD` and :class:`SARSA` each agent's own (``advantage="local"``).

    Args:
        value_learning: :class:`TD`, :class:`SARSA` or :class:`IQL`, or a rule of one's own by its name.
        extraction: :class:`AWR`, :class:`BRAC` or :class:`WeightedBRAC`, or a rule of one's own by its name.
        temperature: of :class:`AWR` and :class:`WeightedBRAC`.
        weights: of :class:`AWR`; ``"clipped"`` is the released code's.
        advantage: of :class:`AWR` and :class:`WeightedBRAC`.
        online_advantage: ``online`` of :class:`AWR`.
        alpha: of :class:`BRAC` and :class:`WeightedBRAC`.
        expectile: of :class:`IQL`.
    """

    decomposition: Decomposition = "mixer"
    svn: bool = True
    hidden: Annotated[Sequence[int], WIDTHS] = (512, 512, 512, 512)
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "gelu"
    layer_norm: bool = True
    distribution: Literal["gaussian", "tanh_gaussian", "one_step"] = "gaussian"
    value_learning: Annotated[str, OneOf(VALUE_LEARNINGS)] = "iql"
    extraction: Annotated[str, OneOf(EXTRACTIONS)] = "awr"
    temperature: Annotated[float, NON_NEGATIVE, WEIGHTED] = setting(AWR.temperature, member=True)
    weights: Annotated[Literal["bounded", "softmax", "clipped"], ReadWith("extraction", "awr")] = AWR.weights
    advantage: Annotated[Literal["joint", "local"], WEIGHTED] = "joint"
    online_advantage: Annotated[bool, ReadWith("extraction", "awr")] = AWR.online
    alpha: Annotated[float, NON_NEGATIVE, ReadWith("extraction", "brac", "weighted_brac")] = setting(1.0, member=True)
    expectile: Annotated[float, OPEN_UNIT, ReadWith("value_learning", "iql")] = setting(0.9, member=True)

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return one rule of each axis."""
        weighted = {"advantage": self.advantage, "weights": self.weights, "online": self.online_advantage}
        settings = {
            "iql": {"expectile": self.expectile},
            "awr": {"temperature": self.temperature} | weighted,
            "brac": {"alpha": self.alpha},
            "weighted_brac": {"alpha": self.alpha, "temperature": self.temperature, "advantage": self.advantage},
        }
        learning, extraction = VALUE_LEARNINGS[self.value_learning], EXTRACTIONS[self.extraction]
        return {
            "value_learning": learning(**settings.get(self.value_learning, {})),
            "extraction": extraction(**settings.get(self.extraction, {})),
        }
