"""MA-CQL: TD with critics held down away from the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torchrl_marl_offline.algorithms.algorithm import ActorCritic, setting
from torchrl_marl_offline.core.ranges import FEW_OR_NONE, NON_NEGATIVE, POSITIVE
from torchrl_marl_offline.core.relevance import OF_CONTINUOUS, ReadWith
from torchrl_marl_offline.objectives.ascent import PolicyGradient
from torchrl_marl_offline.objectives.conservative import CQL


@dataclass(frozen=True, kw_only=True)
class MACQL(ActorCritic, name="cql"):
    r"""MA-CQL: conservative Q-learning (Kumar et al. 2020, arXiv:2006.04779) on MATD3, as in the comparison of OMAR.

    .. math::
        L_{TD} + \alpha\, \mathbb{E}\Big[\log \sum_{u_a} e^{Q_a(o_a, u_a)} - Q_a(o_a, u_a)\Big], \qquad
        -Q^1_a(o_a, \pi_a(o_a))

    (OMAR's eq. 1; :class:`CQL`, :class:`PolicyGradient`.)

    Published (OMAR, appendix C.1.2): :math:`\alpha` of 0.1, 0.5, 1 or 5, by task; two hidden layers of 64; learning
    rate 0.01; targets' rate 0.01; batches of 1024; 10 sampled actions. The text has :math:`\gamma = 0.99`, the released
    code 0.95; by the latter 2,000 updates of spread (6,000 of its random set) and tag (1,000 of its medium-replay set),
    1,000 of world.

    What differs: the released code samples uniform actions alone on the particle environments (on HalfCheetah, the
    policy's here and next beside them, with importance weights; here always uniform ones and the policy's here), adds
    :math:`10^{-3} \|\pi\|^2` to the actor's term, clips the norms of each agent's two gradients at 0.5, and has target
    policies but no noise on their actions; the noise is algorithm 1's, its size TD3's. It normalizes the inputs of all
    networks by the batch, and so does ``make_loss(spec, algorithm="cql")`` where actions are continuous; a loss that is
    put together by hand needs ``batch_norm=True`` of :func:`~torchrl_marl_offline.make_actor` and
    :func:`~torchrl_marl_offline.make_critic`, or its policies may saturate (see
    :class:`~torchrl_marl_offline.modules.BatchNorm`).
    Discrete (their section 4.3): straight-through actions instead of Gumbel-softmax.

    Args:
        min_q_weight: of :class:`CQL`, :math:`\alpha`.
        num_random: of :class:`CQL`.
        num_policy: of :class:`CQL`.
        noise: of :class:`TD`.
        noise_clip: of :class:`TD`.
    """

    # the deviation is that of the penalty's samples of the policy; no other term reads it
    share_params: bool = False
    scale: Annotated[float | Literal["learned", "state_dependent"], POSITIVE, OF_CONTINUOUS] = 0.2
    # with continuous actions, as in the released code of OMAR: without it the policies saturate; with discrete ones,
    # whose policies have no bounds to run into, it is no help (benchmarks/RESULTS.md)
    batch_norm: bool | None = None
    min_q_weight: Annotated[float, NON_NEGATIVE] = setting(1.0, member=True)
    num_random: Annotated[int, FEW_OR_NONE, OF_CONTINUOUS] = 10
    num_policy: Annotated[int, FEW_OR_NONE, OF_CONTINUOUS] = 10
    noise: Annotated[float, NON_NEGATIVE, OF_CONTINUOUS] = 0.2
    noise_clip: Annotated[float, NON_NEGATIVE, OF_CONTINUOUS, ReadWith("noise", above=0)] = 0.5

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return conservative TD and the policy gradient."""
        sampled = {"num_random": self.num_random, "num_policy": self.num_policy}
        learning = CQL(noise=self.noise, noise_clip=self.noise_clip, min_q_weight=self.min_q_weight, **sampled)
        return {"value_learning": learning, "extraction": PolicyGradient()}
