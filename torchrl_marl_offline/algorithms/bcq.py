"""MA-BCQ: the best of the actions that a model of the data generates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.algorithms.algorithm import ActorCritic
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import FEW, NON_NEGATIVE, POSITIVE, UNIT, WIDTHS
from torchrl_marl_offline.core.relevance import OF_CONTINUOUS
from torchrl_marl_offline.modules.behaviour import make_behaviour_policy, make_vae
from torchrl_marl_offline.objectives.batch_constrained import BCQ, BCQDistillation, VAELearning
from torchrl_marl_offline.objectives.score import SequentialCloning


@dataclass(frozen=True, kw_only=True)
class MABCQ(ActorCritic, name="bcq"):
    r"""MA-BCQ: batch-constrained Q-learning (Fujimoto et al. 2019, arXiv:1812.02900) for every agent.

    .. math::
        y = r + \gamma \max_j \big[\lambda \min_k \bar Q^k(s', u_j) + (1 - \lambda) \max_k \bar Q^k(s', u_j)\big],
        \qquad u_j = \hat u_j + \xi(o', \hat u_j), \quad \hat u_j \sim \mu(\cdot | o')

    (:class:`BCQ`.) The model of the data :math:`\mu` is a conditional variational autoencoder for each agent, and
    :math:`|\xi| \le \Phi` is trained to raise the critic (:class:`VAELearning`, ``make_vae``). Discrete (Fujimoto et
    al. 2019, arXiv:1910.01708): :math:`\mu` is a cloned policy (:class:`SequentialCloning`,
    ``make_behaviour_policy``), and the maximum is over the actions with :math:`\mu(u) / \max \mu \ge 0.3`. Agents take
    their best by their own values, through which the team's is mixed.

    Published: 10 actions, :math:`\lambda` 0.75, :math:`\Phi` 0.05 (half the range is 1); a latent of twice the action's
    size, clipped at 0.5 where actions are generated, divergences weighed by 0.5; autoencoder of two layers of 750,
    critics and perturbation of 400 and 300; batches of 100, learning rate 1e-3, targets' rate 0.005, :math:`\gamma`
    0.99.

    What differs: the policy is distilled (:class:`BCQDistillation`): at every step it regresses on the best of 10
    perturbed actions by the first head, so that an agent acts by one evaluation of its own network; the released code
    draws 100 at execution, and takes the best then. The next actions' perturbation is the current one, not a target's.
    Discrete: the target network both chooses and values the next action, where theirs is chosen by the current one;
    logits are not regularized, and errors are squared. A centralized critic is asked for each agent's action with the
    others' as recorded, in targets as the policy has them. An actor whose mode is not clipped:
    ``make_actor(distribution="tanh_gaussian")``.

    Args:
        samples: of :class:`BCQ`.
        threshold: of :class:`BCQ`.
        min_weight: of :class:`BCQ`, :math:`\lambda`.
        perturbation: :math:`\Phi`, see :func:`make_vae`.
        kl_weight: of :class:`VAELearning`.
        behaviour_hidden: widths of the model's hidden layers.
    """

    hidden: Annotated[Sequence[int], WIDTHS] = (400, 300)
    share_params: bool = False
    scale: Annotated[float | Literal["learned", "state_dependent"], POSITIVE, OF_CONTINUOUS] = 0.2
    samples: Annotated[int, FEW, OF_CONTINUOUS] = BCQ.samples
    threshold: Annotated[float, UNIT] = BCQ.threshold
    min_weight: Annotated[float, UNIT] = BCQ.min_weight
    perturbation: Annotated[float, POSITIVE, OF_CONTINUOUS] = 0.05
    kl_weight: Annotated[float, NON_NEGATIVE, OF_CONTINUOUS] = VAELearning.kl_weight
    behaviour_hidden: Annotated[Sequence[int], WIDTHS] = (750, 750)

    def behaviour(self, spec: TaskSpec) -> TensorDictModuleBase:
        """Draw the autoencoder, of a discrete task the cloned policy in its place."""
        network = self.network() | {"hidden": self.behaviour_hidden}
        if spec.discrete:
            return make_behaviour_policy(spec, **network)
        return make_vae(spec, perturbation=self.perturbation, perturbation_hidden=self.hidden, **network)

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return batch-constrained values, their distillation, and what fits the model of the data."""
        constraint = {"samples": self.samples, "threshold": self.threshold}
        return {
            "value_learning": BCQ(**constraint, min_weight=self.min_weight),
            "extraction": BCQDistillation(**constraint),
            "behaviour_learning": SequentialCloning() if discrete else VAELearning(kl_weight=self.kl_weight),
        }
