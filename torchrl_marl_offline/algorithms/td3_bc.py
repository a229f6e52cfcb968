"""MA-TD3+BC: ascent on the critic, near the recorded actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torchrl_marl_offline.algorithms.algorithm import ActorCritic, setting
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, POSITIVE
from torchrl_marl_offline.core.relevance import OF_CONTINUOUS, ReadWith
from torchrl_marl_offline.objectives.ascent import TD3BC
from torchrl_marl_offline.objectives.value_learning import TD


@dataclass(frozen=True, kw_only=True)
class MATD3BC(ActorCritic, name="td3_bc"):
    r"""MA-TD3+BC: TD3+BC (Fujimoto and Gu 2021, arXiv:2106.06860) for every agent, as in the comparison of OMAR.

    .. math::
        y = r + \gamma \min_k \bar Q^k(s', \pi(o') + \epsilon), \qquad
        -\lambda\, Q^1(s, \pi(o)) + \|\pi_a(o_a) - u_a\|^2, \qquad \lambda = \alpha / \mathbb{E}|Q^1|

    (:class:`TD` with ``noise``, :class:`TD3BC`.) :class:`B3C` is the same through a mixer, with clipped
    targets.

    Published: :math:`\alpha` 2.5; noise 0.2, clipped at 0.5; the actor and the targets are updated at every second step
    of the critic; states are normalized. Independent or centralized critics.

    What differs: states are not normalized (``make_actor(observation_norm=dataset.observation_statistics())``
    normalizes the policies'); the loss has no rhythm (``Learner(actor_every=2)`` has the published one); the next
    action is the current policy's, not a target policy's.
    Continuous actions only, and an actor whose mode is not clipped: ``make_actor(distribution="tanh_gaussian")``.

    Args:
        alpha: of :class:`TD3BC`.
        noise: of :class:`TD`.
        noise_clip: of :class:`TD`.
        others: of :class:`TD3BC`.
    """

    supports_discrete: ClassVar[bool] = False
    share_params: bool = False
    scale: Annotated[float | Literal["learned", "state_dependent"], POSITIVE, OF_CONTINUOUS] = 0.2
    alpha: Annotated[float, NON_NEGATIVE] = setting(2.5, member=True)
    noise: Annotated[float, NON_NEGATIVE] = 0.2
    noise_clip: Annotated[float, NON_NEGATIVE, ReadWith("noise", above=0)] = 0.5
    others: Literal["data", "policy"] = TD3BC.others

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return noisy TD and regularized ascent."""
        learning = TD(self.noise, self.noise_clip)
        return {"value_learning": learning, "extraction": TD3BC(alpha=self.alpha, others=self.others)}
