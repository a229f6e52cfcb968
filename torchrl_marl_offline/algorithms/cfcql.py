"""CFCQL: a centralized critic held down one agent at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.algorithms.algorithm import setting
from torchrl_marl_offline.algorithms.cql import MACQL
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, OneOf
from torchrl_marl_offline.modules.behaviour import make_behaviour_policy
from torchrl_marl_offline.modules.critics import TEAM
from torchrl_marl_offline.objectives.ascent import PolicyGradient
from torchrl_marl_offline.objectives.cloned_behaviour import ClonedBehaviour
from torchrl_marl_offline.objectives.counterfactual import CFCQL
from torchrl_marl_offline.objectives.value_learning import ONE_HEAD


@dataclass(frozen=True, kw_only=True)
class MACFCQL(MACQL, name="cfcql"):
    r"""CFCQL: counterfactual conservative Q-learning (Shao et al. 2023, arXiv:2309.12696).

    .. math::
        L_{TD} + \alpha \Big[\sum_a \lambda_a(s) \log \sum_{u_a} e^{Q_{tot}(s, u_a, u_{-a}^{data})}
        - Q_{tot}(s, u^{data})\Big], \qquad
        -Q^1_{tot}(s, \pi(o))

    (:class:`CFCQL`, :class:`PolicyGradient`.)

    Published: :math:`\alpha` of the released code for random, medium-replay, medium and expert data: spread 0.5, 1, 5,
    2.5; tag 0.5, 0.5, 0.6, 2; world 0.5, 0.5, 0.32, 0.3; HalfCheetah 0.1, 0.4, 1, 1.7; two hidden layers of 64,
    learning rate 0.01, targets' rate 0.01, :math:`\gamma` 0.95, the clipping of OMAR's code; five updates of the critic
    for each of the policies (``actor_every=5`` of the learner); :math:`\tau` 0 or a number tuned by task; optionally
    the rectification of OMAR or a share of cloning in the actor's term, and targets with one agent's action replaced at
    a time (``replaced="one"``).

    What differs: as :class:`MACQL`; :math:`\lambda` with :math:`\tau > 0` asks a cloned policy of each agent
    (``make_behaviour_policy``), trained along, where the released code asks an autoencoder trained before.

    Args:
        deviation_weight: of :class:`CFCQL`, :math:`\tau`.
        replaced: of :class:`TD`.
    """

    decomposition: Annotated[str, OneOf(TEAM)] = "centralized"
    deviation_weight: Annotated[float, NON_NEGATIVE] = 0.0
    replaced: Literal["all", "one", "weighted"] = "all"
    min_q_weight: Annotated[float, NON_NEGATIVE] = setting(1.0, member=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replaced == "weighted" and self.num_heads < 2:
            raise ValueError(ONE_HEAD)

    def behaviour(self, spec: TaskSpec) -> TensorDictModuleBase | None:
        """Draw the cloned policies, where deviations count."""
        return make_behaviour_policy(spec, **self.network()) if self.deviation_weight > 0 else None

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return counterfactual conservative TD and the policy gradient through the team's value."""
        learning = CFCQL(
            noise=self.noise,
            noise_clip=self.noise_clip,
            min_q_weight=self.min_q_weight,
            num_random=self.num_random,
            num_policy=self.num_policy,
            deviation_weight=self.deviation_weight,
            replaced=self.replaced,
        )
        found = {"value_learning": learning, "extraction": PolicyGradient(others="policy")}
        return found | ({"behaviour_learning": ClonedBehaviour()} if self.deviation_weight > 0 else {})
