"""SPaCQL: targets in which the policies replace some agents' recorded actions only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torchrl_marl_offline.algorithms.cfcql import MACFCQL
from torchrl_marl_offline.core.ranges import FEW


@dataclass(frozen=True, kw_only=True)
class SPaCQL(MACFCQL, name="spacql"):
    r"""SPaCQL: soft-partial conservative Q-learning (Jin et al. 2025, arXiv:2511.07629), on :class:`MACFCQL`.

    .. math::
        y = r + \gamma \sum_m w_m \min_k \bar Q^k\big(s', \pi_{A_m}(o'), u'_{-A_m}\big), \qquad
        w_m \propto 1 / \mathrm{std}_k\, \bar Q^k

    In a target the policies' actions take the place of the recorded next ones of :math:`m` agents :math:`A_m`, drawn
    anew at every row, and the values of :math:`m = 1, \ldots, n` are averaged, the uncertain ones less (:class:`TD`
    with ``replaced="weighted"``). If the data's agents acted independently, what is asked for is then near the data.

    Published: an ensemble of ten critics. By summaries of the paper, whose text was not at hand.

    What differs, so far as the summaries say: the penalty is that of :class:`CFCQL`; weights are of the heads' values
    averaged, of which the minimum is taken then. PLCQL (Jin and Montana 2026, arXiv:2603.28573), which learns how many
    agents to replace by policy optimization, is not here.
    """

    num_heads: Annotated[int, FEW] = 10
    replaced: Literal["all", "one", "weighted"] = "weighted"
