"""Policy extraction by ascent on the critic: plain, and with the behaviour-cloning term of TD3+BC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import NON_NEGATIVE
from torchrl_marl_offline.objectives.action_distributions import differentiable_action, in_halves, is_discrete
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.extraction import PolicyExtraction
from torchrl_marl_offline.objectives.functional import mean_magnitude


@dataclass(frozen=True, kw_only=True)
@checked
class PolicyGradient(PolicyExtraction):
    r"""The deterministic policy gradient: :math:`-Q^1(s, \pi(o))`, of the first head as in TD3.

    Continuous policies act by their mode; discrete ones by a straight-through one-hot action. A mode that is clipped to
    the bounds passes no gradient beyond them: take an actor with ``distribution="tanh_gaussian"``.

    Args:
        others: what the other agents do where the critic has a team value: ``"data"``, as they were recorded, so that
            agent :math:`a` follows :math:`Q(s, \pi_a(o_a), u_{-a})` (Lowe et al. 2017), or ``"policy"``, all agents as
            their policies say. Independent agents have no others.
        sample: discrete policies sample the action (otherwise they take the mode).

    Metrics:
        ``policy_qvalue`` (mean).
    """

    others: Literal["data", "policy"] = "data"
    sample: bool = True
    metrics: ClassVar[tuple[str, ...]] = ("policy_qvalue",)

    def __post_init__(self) -> None:
        if self.others not in ("data", "policy"):
            raise ValueError(f"others must be 'data' or 'policy', got {self.others!r}.")

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Maximize the critic at the policy's action."""
        _, value, metrics = self.ascend(batch)
        return -value, metrics

    def ascend(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the policy's action ``[*B, n, a]``, its value ``[*B, k]`` or ``[*B, n]``, and metrics."""
        action = differentiable_action(batch.policy, sample=self.sample, rule=type(self).__name__)
        if self.others == "data" and batch.is_team:
            value = batch.candidates(action.unsqueeze(-3), team=True, detach=True).squeeze(-3)
        else:
            value = batch.q(action, detach=True).total
        value = value[..., 0]
        return action, value, {"policy_qvalue": batch.mean(value)}


@dataclass(frozen=True, kw_only=True)
@checked
class TD3BC(PolicyGradient):
    r"""TD3+BC's actor (Fujimoto and Gu 2021).

    .. math::
        -\lambda\, Q^1(s, \pi(o)) + \|\pi_a(o_a) - u_a\|^2, \qquad \lambda = \alpha / \mathbb{E} |Q^1(s, \pi(o))|

    The squared error is averaged over the action's components, and independent agents each have their own
    :math:`\lambda`. For continuous actions.

    Args:
        alpha: :math:`\alpha`, the weight of the critic; may be scheduled as ``loss.alpha = 1.0``.
        others: see :class:`PolicyGradient`.

    Metrics:
        ``policy_qvalue`` (mean), ``action_error`` (mean of the squared error).
    """

    alpha: Annotated[float, NON_NEGATIVE] = 2.5
    metrics: ClassVar[tuple[str, ...]] = ("policy_qvalue", "action_error")

    def coefficients(self) -> dict[str, float]:
        """Return alpha."""
        return {"alpha": self.alpha}

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Maximize the normalized critic at the policy's action, and stay near the recorded one."""
        if is_discrete(batch.policy):
            raise ValueError("TD3BC regresses on continuous actions; for a discrete task use BRAC.")
        action, value, metrics = self.ascend(batch)
        size = mean_magnitude(value, batch.counts(value))  # [k]
        error = in_halves(batch.policy, action - batch.action).pow(2).mean(-1)  # [*B, n]
        metrics["action_error"] = batch.mean(error)
        return error - batch.coefficient("alpha") / size * value, metrics
