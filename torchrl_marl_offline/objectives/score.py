"""Sequential score decomposition: models of the joint behaviour, agent by agent, and a policy that they keep near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from tensordict import NestedKey
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import joined
from torchrl_marl_offline.core.noise import normal_like, uniform_like
from torchrl_marl_offline.core.ranges import INCREASING, POSITIVE, RATE
from torchrl_marl_offline.modules.diffusion import DIFFUSION_TIME, NOISE, NOISY_ACTION, NoisePredictor
from torchrl_marl_offline.objectives.action_distributions import is_discrete
from torchrl_marl_offline.objectives.ascent import PolicyGradient
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.behaviour_learning import BehaviourLearning
from torchrl_marl_offline.objectives.cloned_behaviour import behaviour_logits, log_prob_by
from torchrl_marl_offline.objectives.functional import mean_magnitude

Times = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
@checked
class ScoreMatching(BehaviourLearning):
    r"""Denoising score matching (Vincent 2011; Ho et al. 2020) of every agent's action, given the previous agents'.

    .. math:: \|\epsilon_a(\alpha_t u_a + \sigma_t \epsilon, t | s, u_{<a}) - \epsilon\|^2

    with a time and noise for each agent and row. For continuous actions and a model from
    :func:`~torchrl_marl_offline.make_score`.

    Args:
        times: range of :math:`t`, which is uniform in it.

    Metrics:
        ``denoising_error`` (mean over the action's components).
    """

    times: Annotated[Times, RATE, INCREASING] = (1e-3, 1.0)
    given_keys: ClassVar[tuple[NestedKey, ...]] = (NOISY_ACTION, DIFFUSION_TIME)
    metrics: ClassVar[tuple[str, ...]] = ("denoising_error",)

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the squared error of each agent's noise, ``[*B, n]``."""
        _, noise, predicted = _denoised(batch, batch.action, self.times, rule=type(self).__name__)
        squared = (predicted - noise).pow(2)
        return squared.sum(-1), {"denoising_error": batch.mean(squared.mean(-1))}


@dataclass(frozen=True)
class SequentialCloning(BehaviourLearning):
    r"""Maximum likelihood of every agent's action, given the previous agents': :math:`-\log \mu_a(u_a | s, u_{<a})`.

    For discrete actions and a model from :func:`~torchrl_marl_offline.make_sequential_policy`; of one from
    :func:`~torchrl_marl_offline.make_behaviour_policy`, which sees no other agent, :math:`-\log \mu_a(u_a | o_a)`.

    Metrics:
        ``behaviour_log_prob``.
    """

    metrics: ClassVar[tuple[str, ...]] = ("behaviour_log_prob",)

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood of each agent's action, ``[*B, n]``."""
        logits = _logits(batch, rule=type(self).__name__)
        log_prob = log_prob_by(logits, batch.action)
        return -log_prob, {"behaviour_log_prob": batch.mean(log_prob)}


@dataclass(frozen=True, kw_only=True)
@checked
class ScoreRegularized(PolicyGradient):
    r"""Score-regularized policy optimization (Chen et al. 2023), agents in sequence (Qiao et al. 2025).

    .. math::
        \nabla_{u_a} = -\nabla_{u_a} Q^1(s, u)
        + \tfrac{1}{\beta}\, \omega(t)\, \big(\epsilon_a(u_a^t, t | s, u_{<a}) - \epsilon\big), \qquad
        u = \pi(o), \quad u_a^t = \alpha_t u_a + \sigma_t \epsilon

    averaged over :math:`t` and :math:`\epsilon`: in expectation, the gradient of
    :math:`-Q - \tfrac{1}{\beta} \sum_a \log \mu_a(u_a | s, u_{<a})`, diffused by the noise: the divergence of
    deterministic policies, which have no entropy. The team's value counts once and the agents' terms are summed, as the
    chain rule has it for the joint action. The model gets no gradient, and neither do the previous agents through
    :math:`u_{<a}`, the actions of their present policies.

    Discrete policies have no score, and need none: :math:`-\sum_{u_a} \pi_a(u_a | o_a) \log \mu_a(u_a | s, u_{<a})` is
    exact, with the previous agents' one-hot actions. It has no entropy either, with which agents would stay undecided
    between modes, and those after them could not follow.

    Args:
        beta: :math:`\beta`: the higher, the freer of the data. May be scheduled as ``loss.beta = 0.3``.
        normalize: divide the value by its mean size over the batch.
        times: range of :math:`t`, which is uniform in it.
        time_weight: :math:`\omega(t)`: ``"score"``, :math:`\alpha_t / \sigma_t`, with which the gradient is that of
            the diffused action's log-density; ``"uniform"``, 1; or ``"variance"``, :math:`\sigma_t^2`, SRPO's. The
            later in this list, the more the late times count, at which modes run into one: of joint actions at
            :math:`\pm (0.8, 0.8)`, policies find one with ``"score"``, and the mean of both with ``"variance"``.
        others: see :class:`PolicyGradient`.
        sample: see :class:`PolicyGradient`; by default discrete policies, too, act by their mode.

    Metrics:
        ``policy_qvalue`` (mean), ``behaviour_error`` (how far the policy is from the data: the mean error of the noise
        predicted in its actions, to be compared with ``denoising_error``; of discrete policies the cross-entropy).
    """

    beta: Annotated[float, POSITIVE] = 0.01
    normalize: bool = False
    times: Annotated[Times, RATE, INCREASING] = (0.02, 0.98)
    time_weight: Literal["score", "uniform", "variance"] = "score"
    others: Literal["data", "policy"] = "policy"
    sample: bool = False
    needs_behaviour: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("policy_qvalue", "behaviour_error")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_weight not in ("score", "uniform", "variance"):
            raise ValueError(f"time_weight must be 'score', 'uniform' or 'variance', got {self.time_weight!r}.")

    def coefficients(self) -> dict[str, float]:
        """Return beta."""
        return {"beta": self.beta}

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Maximize the critic at the policy's action, and stay where the data is."""
        action, value, metrics = self.ascend(batch)
        previous = batch.of_living(action.detach())
        if is_discrete(batch.policy):
            penalty = error = self._cross_entropy(batch, previous)
        else:
            penalty, error = self._score(batch, action, previous)
        metrics["behaviour_error"] = batch.mean(error)
        objective = value / mean_magnitude(value, batch.counts(value)) if self.normalize else value
        if value.shape[-1] == 1:
            penalty = penalty * _acting_agents(batch, penalty)  # undoes the mean over agents
        return penalty / batch.coefficient("beta") - objective, metrics

    def _score(self, batch: Batch, action: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[*B, n]`` whose gradient is the score's, and the error of the predicted noise ``[*B, n]``."""
        given, name = {joined(batch.networks.action_key): previous}, type(self).__name__
        predictor = _predictor(batch, name)
        with torch.no_grad():
            time, noise, predicted = _denoised(batch, action.detach(), self.times, rule=name, detach=True, **given)
            alpha, sigma = predictor.level(time)
            weight = {"variance": sigma.pow(2), "uniform": torch.ones_like(sigma), "score": alpha / sigma}
            error = predicted - noise
        surrogate = (weight[self.time_weight] * error * predictor.range.scaled(action)).sum(-1)
        return surrogate, error.pow(2).mean(-1)

    def _cross_entropy(self, batch: Batch, previous: Tensor) -> Tensor:
        """Return how unlikely every agent's actions are in the data, ``[*B, n]``."""
        given = {joined(batch.networks.action_key): previous}
        logits = _logits(batch, rule=type(self).__name__, detach=True, **given)
        log_prob, chosen = logits.log_softmax(-1), batch.policy.probs
        # an illegal action's, the lowest number there is, would overflow in the gradient
        log_prob = torch.where(chosen > 0, log_prob, torch.zeros_like(log_prob))
        return -(chosen * log_prob).sum(-1)


def _denoised(
    batch: Batch, action: Tensor, times: Times, *, rule: str, detach: bool = False, **given: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Perturb actions ``[*B, n, a]``; return times ``[*B, n, 1]``, the noise and what the model takes it for."""
    predictor = _predictor(batch, rule)
    first, last = times
    time = first + (last - first) * uniform_like(action[..., :1])
    noise = normal_like(action)
    given |= {joined(NOISY_ACTION): predictor.perturb(action, time, noise), joined(DIFFUSION_TIME): time}
    return time, noise, batch.behaviour(detach=detach, **given)[NOISE]


def _predictor(batch: Batch, rule: str) -> NoisePredictor:
    module = getattr(batch.behaviour_model, "module", None)
    if not hasattr(module, "perturb"):
        raise ValueError(
            f"{rule} needs a diffusion model of continuous actions; pass behaviour=make_score(spec), or for a discrete "
            "task behaviour=make_sequential_policy(spec) and behaviour_learning=SequentialCloning()."
        )
    return module


def _logits(batch: Batch, *, rule: str, detach: bool = False, **given: Tensor) -> Tensor:
    """Return the logits ``[*B, n, A]`` of the data's actions, each given the previous agents'."""
    words = {"model": "make_sequential_policy", "learning": "SequentialCloning"}
    return behaviour_logits(batch, rule=rule, detach=detach, **words, **given)


def _acting_agents(batch: Batch, like: Tensor) -> Tensor | int:
    """Return how many agents are there, ``[*B, 1]``."""
    alive = batch.alive
    return like.shape[-1] if alive is None else alive.sum(-1, keepdim=True).clamp_min(1)
