"""Flow matching of the joint behaviour, and one-step policies that are distilled of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from tensordict import NestedKey
from torch import Tensor
from torch.distributions import Distribution

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import joined
from torchrl_marl_offline.core.noise import normal_like, uniform_like
from torchrl_marl_offline.core.ranges import FEW, NON_NEGATIVE
from torchrl_marl_offline.modules.flow import PATH, TIME, VELOCITY, JointVelocity
from torchrl_marl_offline.modules.networks import mask_logits
from torchrl_marl_offline.objectives.action_distributions import is_discrete, sampled_action
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.behaviour_learning import BehaviourLearning
from torchrl_marl_offline.objectives.extraction import PolicyExtraction
from torchrl_marl_offline.objectives.functional import mean_magnitude


@dataclass(frozen=True)
class FlowMatching(BehaviourLearning):
    r"""Flow matching of the data's joint actions (Lipman et al. 2023; Lee et al. 2025, eq. 6).

    .. math:: \|v(x_t, t | o) - (u - z)\|^2, \qquad x_t = (1 - t)\, z + t\, u, \quad z \sim N(0, 1), \; t \sim U(0, 1)

    with one time for all agents. Actions are in halves of their range; discrete ones are one-hot codes. The squared
    error is averaged over components and agents. For a model from :func:`~torchrl_marl_offline.make_flow`.

    Metrics:
        ``behaviour_error`` (mean of the squared error).
    """

    given_keys: ClassVar[tuple[NestedKey, ...]] = (PATH, TIME)
    metrics: ClassVar[tuple[str, ...]] = ("behaviour_error",)

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the squared error of each agent's velocity, ``[*B, n]``."""
        velocity = _velocity(batch, type(self).__name__)
        seen = batch.get(batch.behaviour_model.in_keys[0])
        action = velocity.encode(batch.action, seen.dtype)
        noise = normal_like(action)
        time = uniform_like(action[..., :1, :1])  # [*B, 1, 1]
        given = {joined(PATH): (1 - time) * noise + time * action, TIME: time}
        found = batch.behaviour(**given)[VELOCITY]
        error = (found - (action - noise)).pow(2).mean(-1)
        return error, {"behaviour_error": batch.mean(error)}


@dataclass(frozen=True, kw_only=True)
@checked
class FlowDistillation(PolicyExtraction):
    r"""One-step policies that follow the flow of the joint behaviour and the critic (Lee et al. 2025, eq. 9).

    .. math::
        \alpha\, \|\pi_a(o_a, z_a) - [\mathrm{flow}(o, z)]_a\|^2 - Q_{tot}(s, \pi(o, z)) / \mathbb{E}|Q_{tot}|, \qquad
        z \sim N(0, 1)

    flow(o, z) goes from the noise of all agents to their actions along the velocity, by Euler's method. The squared
    error, in halves of the action range, is averaged over components and agents; the critic's heads are averaged. Both
    are clipped to the bounds, the policy for the critic alone. Discrete: the flow's action is the legal one of the
    highest component, the policy follows it by the cross-entropy of its scores, and the critic's gradient goes straight
    through its choice.

    Args:
        alpha: :math:`\alpha`; may be scheduled as ``loss.alpha = 10.0``.
        normalize: divide the value by its mean size over the batch; the paper's equation does not, which is in units
            of its tasks' returns.
        steps: of Euler's method.

    Metrics:
        ``policy_qvalue`` (mean), ``distillation_error`` (mean, without :math:`\alpha`).
    """

    alpha: Annotated[float, NON_NEGATIVE] = 3.0
    normalize: bool = True
    steps: Annotated[int, FEW] = 10
    needs_behaviour: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("policy_qvalue", "distillation_error")

    def coefficients(self) -> dict[str, float]:
        """Return alpha."""
        return {"alpha": self.alpha}

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Follow the flow, and maximize the critic at the policies' actions."""
        policy = batch.policy
        if not hasattr(policy, "drawn"):
            raise ValueError(
                f"{type(self).__name__} needs policies that are functions of noise, not {type(policy).__name__}; build "
                "the actor with make_actor(distribution='one_step')."
            )
        action = sampled_action(policy, rule=type(self).__name__)
        value = batch.q(action, detach=True).total.mean(-1)  # [*B, k]
        objective = value / mean_magnitude(value, batch.counts(value)) if self.normalize else value
        error = self._distance(batch, policy)  # [*B, n]
        metrics = {"policy_qvalue": batch.mean(value), "distillation_error": batch.mean(error)}
        return batch.coefficient("alpha") * error - objective, metrics

    def _distance(self, batch: Batch, policy: Distribution) -> Tensor:
        """Return how far every agent's action is from the flow's of the same noise, ``[*B, n]``."""
        place = flow(batch, policy.noise, steps=self.steps, rule=type(self).__name__)
        if is_discrete(policy):
            chosen = mask_logits(place, batch.action_mask).argmax(-1)
            return -policy.drawn.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        drawn = _velocity(batch, type(self).__name__).range.scaled(policy.drawn)
        return (drawn - place.clamp(-1.0, 1.0)).pow(2).mean(-1)


@torch.no_grad()
def flow(batch: Batch, noise: Tensor, *, steps: int, rule: str) -> Tensor:
    """Go from noise ``[*B, n, a]`` along the velocity of the loss's model; returns where it ends, not clipped.

    Args:
        batch: of observations or states, and of the loss whose model is asked.
        noise: where to start.
        steps: of Euler's method.
        rule: who asks, for the error.
    """
    _velocity(batch, rule)
    place = noise
    for step in range(steps):
        given = {joined(PATH): place, TIME: torch.full_like(noise[..., :1, :1], step / steps)}
        place = place + batch.behaviour(detach=True, **given)[VELOCITY] / steps
    return place


def _velocity(batch: Batch, rule: str) -> JointVelocity:
    module = getattr(batch.behaviour_model, "module", None)
    if not isinstance(module, JointVelocity):
        raise ValueError(
            f"{rule} needs a flow of joint actions; pass behaviour=make_flow(spec) and "
            "behaviour_learning=FlowMatching()."
        )
    return module
