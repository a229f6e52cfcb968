"""BRAC through a sum of critics: the recipe's axes in the setting that serves data of every quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from torchrl_marl_offline.algorithms.algorithm import setting
from torchrl_marl_offline.algorithms.recipe import Recipe
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, WIDTHS, OneOf
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.modules.critics import Decomposition
from torchrl_marl_offline.objectives.extraction import EXTRACTIONS
from torchrl_marl_offline.objectives.value_learning import VALUE_LEARNINGS


@dataclass(frozen=True, kw_only=True)
class MABRAC(Recipe, name="brac"):
    r"""BRAC (Wu et al. 2019, arXiv:1911.11361) with a sum of critics: one setting for data of every quality.

    .. math::
        y = r + \gamma \min_k \sum_a \bar Q_a^k(o'_a, \pi_a(o'_a)), \qquad
        -\frac{Q_{tot} - \mathbb{E} Q_{tot}}{\mathbb{E}|Q_{tot}|} - \alpha \log \pi_a(u_a | o_a), \quad
        Q_{tot} = \min_k \sum_a Q_a^k(o_a, \pi_a(o_a))

    (:class:`TD`, :class:`BRAC`.) These are the axes of :class:`Recipe` with other defaults: a sum in the mixer's place,
    no scale-invariant value normalization, and the rules and the strength that were the best of those tried over
    random, medium-replay, medium and expert data of one task together (``examples/studies/default_setting.toml``).

    Published: for one agent, with a strength chosen for each dataset.

    What differs: one strength for all. A smaller ``alpha`` gains on poor data, and may take more updates on good ones.
    Networks of 2 x 256 gain 15 normalized points on spread's random and medium-replay data, and 11 to 14 on medium data
    of tag and world, at eight times the cost of an update on a CPU (``benchmarks/results/systems.md``).

    Args:
        value_learning: as of :class:`Recipe`.
        extraction: as of :class:`Recipe`.
        alpha: of :class:`BRAC` and :class:`WeightedBRAC`.
    """

    decomposition: Decomposition = "vdn"
    svn: bool = False
    hidden: Annotated[Sequence[int], WIDTHS] = (64, 64)
    value_learning: Annotated[str, OneOf(VALUE_LEARNINGS)] = "td"
    extraction: Annotated[str, OneOf(EXTRACTIONS)] = "brac"
    alpha: Annotated[float, NON_NEGATIVE, ReadWith("extraction", "brac", "weighted_brac")] = setting(0.03, member=True)
