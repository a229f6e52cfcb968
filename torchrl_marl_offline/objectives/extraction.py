"""Policy-extraction rules: what is the actor's loss, sample by sample?

A rule owns no parameters; the loss that it is given to does. Its coefficients become buffers of the loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.named_settings import NamedSettings
from torchrl_marl_offline.core.ranges import ABOVE_ONE, INCREASING, NON_NEGATIVE, POSITIVE, REAL
from torchrl_marl_offline.core.registering import register
from torchrl_marl_offline.objectives.action_distributions import differentiable_action, log_prob_of
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.batch_weights import batch_softmax, bounded_weights
from torchrl_marl_offline.objectives.functional import (
    advantage_weight,
    effective_sample_size,
    scale_invariant,
    standardize,
)

EXTRACTIONS: dict[str, type[PolicyExtraction]] = {}
"""The extraction rules that the recipe knows by name; a class of one's own with ``name=`` is added."""


class PolicyExtraction(NamedSettings, ABC):
    """Base class of the rules.

    Attributes:
        needs_critic: whether the loss must own a critic.
        needs_behaviour: whether the rule asks a model of the data's actions.
        needs_log_prob: whether the rule asks the policy for log-probabilities, which a deterministic one has not.
        needs_discrete_log_prob: whether it asks discrete policies alone for them.
        metrics: names of the metrics that :meth:`element_loss` returns.
    """

    needs_critic: ClassVar[bool] = True
    needs_behaviour: ClassVar[bool] = False
    needs_log_prob: ClassVar[bool] = False
    needs_discrete_log_prob: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ("log_prob",)

    def __init_subclass__(cls, *, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if name is not None:
            register(cls, name, EXTRACTIONS)

    def coefficients(self) -> dict[str, float]:
        """Return the scalars that the loss registers as schedulable buffers, by the names of the rule's attributes.

        Read them as ``batch.coefficient(name)``: the attribute stays what it was, and is the first member's in a
        population.
        """
        return {}

    @abstractmethod
    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each agent's action ``[*B, n]`` and detached metrics."""


@dataclass(frozen=True)
@checked
class AWR(PolicyExtraction, name="awr"):
    r"""Advantage-weighted regression (Peng et al. 2019; Lee et al. 2026, eq. 11).

    .. math:: -\,e^{\alpha A_a} \log \pi_a(u_a | o_a), \qquad A_a = \min_k Q^k_a(o_a, u_a) - V_a(o_a)

    Without a state-value network, :math:`V_a := Q_a(o_a, \pi(o_a))`. It stays within the data's actions and
    covers their modes. With other settings, the weights of ICQ, OMAC and OMIGA.

    Args:
        temperature: :math:`\alpha`, how strongly better actions are preferred; what it is exactly, ``weights`` says. It
            may be scheduled as ``loss.temperature = 3.0``.
        advantage: ``"local"``, each agent's own; ``"weighted"``, each agent's own times
            :math:`\partial Q_{tot} / \partial Q_a` of the target mixer (1 without one); or ``"joint"``, the team's
            through the mixer, given to every agent. A centralized critic has only the joint one, and uses it whatever
            is asked for here. Under a mixer, local values are fitted only in their mixture, so that the difference of
            Q_a and V_a can be mostly noise: measured on ``mpe/simple_spread``, the local one fails where the joint one
            works (``benchmarks/RESULTS.md``).
        weights: ``"bounded"``: :math:`e^{\alpha A}` of the standardized advantages, but none above
            ``max_relative_weight`` times their mean. So a larger :math:`\alpha` never prefers better actions less, up
            to equal weights for the best of the batch; a share ``1 / max_relative_weight`` of it counts at least; and
            successes as rare as that decide. ``"softmax"``: :math:`e^{\alpha A}`, divided by its mean over the batch,
            for each agent. ``"clipped"``: :math:`\min(e^{\mathrm{clip}(\alpha A)}, w_{max})`, as released: above about
            2 a larger :math:`\alpha` prefers better actions *less*, because ever more weights are cut
            (``benchmarks/RESULTS.md``).
        max_relative_weight: upper bound of bounded weights, in units of their mean.
        standardize: bring the advantages of a batch to mean 0 and deviation 1 first, as the recipe's released code
            does; bounded weights always do.
        exponent_range: bounds of the exponent of clipped weights.
        max_weight: upper bound of clipped weights, or None for none but the exponent's.
        online: with a state-value network, take :math:`Q` of the critic that is trained, as the recipe's released code
            does, in the place of its target's, as implicit Q-learning does. Without one it always is.
        baseline: without a state-value network, the value of the policy's ``"mode"``, or that ``"expected"`` over the
            discrete policy's actions (a centralized critic and continuous policies: the mode's).

    Metrics:
        ``advantage`` (mean), ``effective_sample_size`` (share of the batch), ``log_prob``; of clipped weights
        ``capped_weights``, the share of the batch that has the largest weight.
    """

    temperature: Annotated[float, NON_NEGATIVE] = 3.0
    advantage: Literal["local", "joint", "weighted"] = "local"
    weights: Literal["bounded", "softmax", "clipped"] = "bounded"
    max_relative_weight: Annotated[float, ABOVE_ONE] = 30.0
    standardize: bool = True
    exponent_range: Annotated[tuple[float, float], REAL, INCREASING] = (-50.0, 10.0)
    max_weight: Annotated[float | None, POSITIVE] = 100.0
    online: bool = False
    baseline: Literal["mode", "expected"] = "mode"
    needs_log_prob: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.advantage not in ("local", "joint", "weighted"):
            raise ValueError(f"advantage must be 'local', 'weighted' or 'joint', got {self.advantage!r}.")
        if self.weights not in ("bounded", "softmax", "clipped"):
            raise ValueError(f"weights must be 'bounded', 'softmax' or 'clipped', got {self.weights!r}.")
        if self.baseline not in ("mode", "expected"):
            raise ValueError(f"baseline must be 'mode' or 'expected', got {self.baseline!r}.")
        if self.weights == "bounded" and not self.standardize:
            raise ValueError("weights='bounded' standardizes always; leave standardize out, or ask for other weights.")
        if self.weights != "bounded" and self.max_relative_weight != AWR.max_relative_weight:
            raise ValueError("max_relative_weight is read by weights='bounded' alone; leave it out.")
        bounds = {"exponent_range": AWR.exponent_range, "max_weight": AWR.max_weight}
        if self.weights != "clipped" and (moved := [k for k, v in bounds.items() if getattr(self, k) != v]):
            raise ValueError(f"{moved[0]} is a bound of weights='clipped'; leave it out, or ask for those.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        names = ("advantage", "effective_sample_size", "log_prob")
        return (*names, "capped_weights") if self.weights == "clipped" else names

    def coefficients(self) -> dict[str, float]:
        """Return the temperature."""
        return {"temperature": self.temperature}

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the log-probability of the dataset's actions."""
        log_prob = log_prob_of(batch.policy, batch.action, rule="AWR")  # [*B, n]
        advantage = batch.advantage(self.advantage, expected=self.baseline == "expected", online=self.online)
        advantage = advantage.expand_as(log_prob)
        with torch.no_grad():
            mask = batch.counts(log_prob)
            weight = self.weight(advantage, batch.coefficient("temperature"), mask)
            metrics = {
                "advantage": batch.mean(advantage),
                "effective_sample_size": effective_sample_size(weight, mask),
                "log_prob": batch.mean(log_prob),
            }
            if self.weights == "clipped":
                largest = math.exp(min(self.exponent_range[1], 700.0))  # e^700: the last float
                largest = largest if self.max_weight is None else min(self.max_weight, largest)
                capped = weight >= largest * (1 - 1e-6)
                metrics["capped_weights"] = batch.mean(capped.to(weight.dtype))
        return -weight * log_prob, metrics

    def weight(self, advantage: Tensor, temperature: Tensor | float, mask: Tensor | None = None) -> Tensor:
        """Return the weights of a batch of advantages ``[*B, n]``; ``mask`` is false for what does not count."""
        scaled = standardize(advantage, mask) if self.standardize or self.weights == "bounded" else advantage
        if self.weights == "bounded":
            return bounded_weights(scaled, temperature, mask, max_weight=self.max_relative_weight)
        if self.weights == "softmax":
            return batch_softmax(temperature * scaled, mask)
        bounds = {"exponent_range": self.exponent_range, "max_weight": self.max_weight}
        return advantage_weight(scaled, temperature, **bounds)


@dataclass(frozen=True)
@checked
class BRAC(PolicyExtraction, name="brac"):
    r"""Behaviour-regularized actor-critic (Wu et al. 2019; Lee et al. 2026, eqs 3 and 4).

    .. math:: -\,\widetilde Q_{tot}(s, \pi(o)) - \alpha \log \pi_a(u_a | o_a)

    with :math:`\widetilde Q = (Q - \mathbb{E} Q) / \mathbb{E}|Q|`. The gradient reaches an agent's policy
    through the mixer. Continuous policies act by their mode; discrete ones by a straight-through one-hot sample.

    Args:
        alpha: weight :math:`\alpha` of cloning; may be scheduled as ``loss.alpha = 0.1``.
        normalize: the actor-side normalization (eq. 4).
        sample: discrete policies sample the action (otherwise they take the mode).

    Metrics:
        ``policy_qvalue`` (mean), ``log_prob``.
    """

    alpha: Annotated[float, NON_NEGATIVE] = 1.0
    normalize: bool = True
    sample: bool = True
    needs_log_prob: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("policy_qvalue", "log_prob")

    def coefficients(self) -> dict[str, float]:
        """Return alpha."""
        return {"alpha": self.alpha}

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Maximize the critic at the policy's action, and clone."""
        objective, log_prob, metrics = self._parts(batch)
        return -objective - batch.coefficient("alpha") * log_prob, metrics

    def _parts(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the value of the policy's action ``[*B, k]``, the data's log-probabilities ``[*B, n]``, metrics."""
        log_prob = log_prob_of(batch.policy, batch.action, rule=type(self).__name__)  # [*B, n]
        action = differentiable_action(batch.policy, sample=self.sample, rule=type(self).__name__)
        value = batch.q(action, detach=True).total_min.squeeze(-1)  # [*B, k]
        objective = scale_invariant(value, batch.counts(value)) if self.normalize else value
        return objective, log_prob, {"policy_qvalue": batch.mean(value), "log_prob": batch.mean(log_prob)}


@dataclass(frozen=True)
@checked
class WeightedBRAC(BRAC, name="weighted_brac"):
    r""":class:`BRAC` whose cloning prefers better actions, as :class:`AWR` does (Peng et al. 2023, for one agent).

    .. math:: -\,\widetilde Q_{tot}(s, \pi(o)) - \alpha\, w(A)\, \log \pi_a(u_a | o_a)

    with bounded weights of :class:`AWR`, of mean 1. The critic may lead the policy to joint actions that were never
    recorded, and the weights to the better ones of those that were: by the joint advantage, to the better mode of
    joint behaviour.

    Args:
        alpha: weight :math:`\alpha` of cloning; may be scheduled as ``loss.alpha = 0.1``.
        normalize: see :class:`BRAC`.
        sample: see :class:`BRAC`.
        temperature: see :class:`AWR`; may be scheduled as ``loss.temperature = 3.0``.
        advantage: see :class:`AWR`.
        max_relative_weight: see :class:`AWR`.

    Metrics:
        ``policy_qvalue`` (mean), ``log_prob``, ``advantage`` (mean), ``effective_sample_size`` (share of the batch).
    """

    temperature: Annotated[float, NON_NEGATIVE] = 3.0
    advantage: Literal["local", "joint", "weighted"] = "joint"
    max_relative_weight: Annotated[float, ABOVE_ONE] = 30.0
    metrics: ClassVar[tuple[str, ...]] = (*BRAC.metrics, "advantage", "effective_sample_size")

    def __post_init__(self) -> None:
        AWR(self.temperature, self.advantage, max_relative_weight=self.max_relative_weight)  # which refuses the same

    def coefficients(self) -> dict[str, float]:
        """Return alpha and the temperature."""
        return super().coefficients() | {"temperature": self.temperature}

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Maximize the critic at the policy's action, and clone what is better."""
        objective, log_prob, metrics = self._parts(batch)
        with torch.no_grad():
            advantage, mask = batch.advantage(self.advantage).expand_as(log_prob), batch.counts(log_prob)
            scaled, bound = standardize(advantage, mask), self.max_relative_weight
            weight = bounded_weights(scaled, batch.coefficient("temperature"), mask, max_weight=bound)
            metrics |= {
                "advantage": batch.mean(advantage),
                "effective_sample_size": effective_sample_size(weight, mask),
            }
        return -objective - batch.coefficient("alpha") * weight * log_prob, metrics


@dataclass(frozen=True)
class Cloning(PolicyExtraction):
    r"""Behaviour cloning: :math:`-\log \pi_a(u_a | o_a)`. The baseline that every run is compared with.

    Metrics:
        ``log_prob``.
    """

    needs_critic: ClassVar[bool] = False
    needs_log_prob: ClassVar[bool] = True

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood of the dataset's actions."""
        log_prob = log_prob_of(batch.policy, batch.action, rule="Cloning")
        return -log_prob, {"log_prob": batch.mean(log_prob)}
