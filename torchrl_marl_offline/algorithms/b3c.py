"""B3C: MA-TD3+BC through a mixer, with clipped targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torchrl_marl_offline.algorithms.algorithm import ActorCritic, setting
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, POSITIVE, REAL
from torchrl_marl_offline.core.relevance import OF_CONTINUOUS, ReadWith
from torchrl_marl_offline.modules.critics import Decomposition
from torchrl_marl_offline.objectives.ascent import TD3BC
from torchrl_marl_offline.objectives.value_learning import TD


@dataclass(frozen=True, kw_only=True)
class B3C(ActorCritic, name="b3c"):
    r"""B3C (Kim and Sycara 2025, arXiv:2501.18138): :class:`MATD3BC` through a mixer, its targets clipped.

    .. math::
        y = r + \gamma \min\big(\min_k \bar Q^k_{tot}(s', \pi(o') + \epsilon),\, R_{max}\big), \qquad
        -\lambda\, Q^1_{tot}(s, \pi(o)) + \|\pi_a(o_a) - u_a\|^2, \qquad \lambda = \alpha / \mathbb{E}|Q^1_{tot}|

    ``max_next_value``, :math:`R_{max}`, is the largest return in the data, with which a larger :math:`\alpha` is
    affordable. ``alpha`` and the noise are those of TD3+BC: B3C's own were not at hand.

    Args:
        max_next_value: :math:`R_{max}`; it must be given.
        alpha: of :class:`TD3BC`.
        noise: of :class:`TD`.
        noise_clip: of :class:`TD`.
    """

    supports_discrete: ClassVar[bool] = False
    decomposition: Decomposition = "mixer"
    share_params: bool = False
    scale: Annotated[float | Literal["learned", "state_dependent"], POSITIVE, OF_CONTINUOUS] = 0.2
    max_next_value: Annotated[float | None, REAL] = setting(None, member=True)
    alpha: Annotated[float, NON_NEGATIVE] = setting(2.5, member=True)
    noise: Annotated[float, NON_NEGATIVE] = 0.2
    noise_clip: Annotated[float, NON_NEGATIVE, ReadWith("noise", above=0)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_next_value is None:
            raise ValueError("b3c clips its targets: set max_next_value to the largest return in the data.")

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return noisy TD and regularized ascent of all policies together."""
        learning = TD(self.noise, self.noise_clip)
        return {"value_learning": learning, "extraction": TD3BC(alpha=self.alpha, others="policy")}
