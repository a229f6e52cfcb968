"""OMSD: sequential score decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.algorithms.algorithm import ActorCritic, setting
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import OPEN_UNIT, POSITIVE, WIDTHS
from torchrl_marl_offline.core.relevance import OF_CONTINUOUS
from torchrl_marl_offline.modules.critics import Decomposition
from torchrl_marl_offline.modules.diffusion import make_score
from torchrl_marl_offline.modules.sequential import make_sequential_policy
from torchrl_marl_offline.objectives.score import ScoreMatching, ScoreRegularized, SequentialCloning
from torchrl_marl_offline.objectives.value_learning import IQL


@dataclass(frozen=True, kw_only=True)
class OMSD(ActorCritic, name="omsd"):
    r"""OMSD: sequential score decomposition (Qiao et al. 2025, arXiv:2505.05968).

    .. math::
        y = r + \gamma V(s'), \qquad
        \nabla_{u_a} = -\nabla_{u_a} Q(s, u)
        + \tfrac{1}{\beta}\, \omega(t)\, \big(\epsilon_a(u_a^t, t | s, u_{<a}) - \epsilon\big), \quad u = \pi(o)

    (:class:`IQL`; :class:`ScoreMatching`; :class:`ScoreRegularized`, its eq. 6 in the form of SRPO (Chen et al. 2023,
    arXiv:2310.07297).) :math:`\mu(u | s) = \prod_a \mu_a(u_a | s, u_{<a})` keeps the modes of the joint behaviour,
    which independent models would mix up; policies act at once, each on its own observation, by one evaluation. The
    paper's critic is centralized.

    Published: by the released code, the critic first and alone, 500,000 updates of 1,024 rows with layers of 256,
    expectile 0.5 (0.7 on medium data); then the policies, 100,000 updates whose learning rate falls by a cosine, with
    :math:`\beta` from 0.3 to 0.7 (random data), 0.01 to 0.05 (medium) and 0.001 to 0.05 (expert); time limits as ends
    of the task. In a study: ``critic_first = 500_000``, ``steps = 600_000``, ``lr_schedule = "cosine"``,
    ``time_limits = "terminal"``. Of SRPO, on which it builds: :math:`\beta` from 0.01 to 0.5; expectile 0.7 (0.9 in
    mazes); a schedule of 0.1 to 20, :math:`t` in [0.02, 0.98], :math:`\omega(t) = \sigma_t^2`; batches of 256, learning
    rate 3e-4, layers of 256.

    What differs: by default critic and score are trained along with the policies; all agents are updated at once,
    each given its predecessors' actions before the step, not after it; the score is averaged over times with
    :math:`\omega(t) = \alpha_t / \sigma_t`, where the paper goes to small ones, since SRPO's :math:`\omega` mixes up
    modes (:class:`ScoreRegularized`); the noise is subtracted, which SRPO's released code leaves out; the value is the
    first head's, where SRPO averages two target heads; networks have no residual blocks. An actor whose mode is not
    clipped: ``make_actor(distribution="tanh_gaussian")``. Discrete, which the paper has not: a model from
    :func:`~torchrl_marl_offline.make_sequential_policy`, :class:`SequentialCloning`, and its exact likelihood in the
    place of the score.

    Args:
        expectile: of :class:`IQL`.
        beta: of :class:`ScoreRegularized`.
        normalize: of :class:`ScoreRegularized`.
        time_weight: of :class:`ScoreRegularized`.
    """

    decomposition: Decomposition = "centralized"
    hidden: Annotated[Sequence[int], WIDTHS] = (256, 256)
    share_params: bool = False
    scale: Annotated[float | Literal["learned", "state_dependent"], POSITIVE, OF_CONTINUOUS] = 0.2
    expectile: Annotated[float, OPEN_UNIT] = setting(0.7, member=True)
    beta: Annotated[float, POSITIVE] = setting(ScoreRegularized.beta, member=True)
    normalize: bool = ScoreRegularized.normalize
    time_weight: Annotated[Literal["score", "uniform", "variance"], OF_CONTINUOUS] = ScoreRegularized.time_weight

    def behaviour(self, spec: TaskSpec) -> TensorDictModuleBase:
        """Draw the diffusion model, of a discrete task the sequential policy in its place."""
        return (make_sequential_policy if spec.discrete else make_score)(spec, **self.network())

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return implicit Q-learning, ascent near the data, and what fits the model of it."""
        return {
            "value_learning": IQL(self.expectile),
            "extraction": ScoreRegularized(beta=self.beta, normalize=self.normalize, time_weight=self.time_weight),
            "behaviour_learning": SequentialCloning() if discrete else ScoreMatching(),
        }
