"""Batch-constrained Q-learning: the best actions among those that a model of the data generates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from tensordict import NestedKey, unravel_key
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import joined
from torchrl_marl_offline.core.noise import normal_like
from torchrl_marl_offline.core.ranges import FEW, NON_NEGATIVE, UNIT
from torchrl_marl_offline.modules.behaviour import DECODED, LATENT, LATENT_LOC, LATENT_SCALE, PERTURBED
from torchrl_marl_offline.modules.sequential import BEHAVIOUR_LOGITS
from torchrl_marl_offline.objectives.action_distributions import in_halves, is_discrete, log_prob_of, mode_of
from torchrl_marl_offline.objectives.batch import Batch, Following
from torchrl_marl_offline.objectives.behaviour_learning import BehaviourLearning
from torchrl_marl_offline.objectives.candidates import best_candidate, every_action
from torchrl_marl_offline.objectives.cloned_behaviour import has_logits
from torchrl_marl_offline.objectives.extraction import PolicyExtraction
from torchrl_marl_offline.objectives.functional import soft_clipped
from torchrl_marl_offline.objectives.value_learning import ValueLearning


@dataclass(frozen=True, kw_only=True)
@checked
class VAELearning(BehaviourLearning):
    r"""A conditional variational autoencoder of each agent's action, and the perturbation of what it generates.

    .. math::
        \|D_a(o_a, z) - u_a\|^2 + \kappa\, \mathrm{KL}\big(E_a(o_a, u_a) \| N(0, 1)\big)
        - Q^1_a\big(o_a, \hat u_a + \xi_a(o_a, \hat u_a)\big), \qquad
        z \sim E_a(o_a, u_a), \quad \hat u_a = D_a(o_a, z'), \quad z' \sim \mathrm{clip}(N(0, 1))

    The first two terms train encoder and decoder alone, the last the perturbation :math:`\xi` alone (the paper's
    deterministic policy gradient). Squared error and divergence are averaged over components, as in the released code.
    :math:`Q_a` is the agent's own value where the critic has local ones; a centralized critic's is that of the agent's
    action with the other agents' as recorded. For a model from :func:`~torchrl_marl_offline.make_vae`.

    Args:
        kl_weight: :math:`\kappa`.

    Metrics:
        ``behaviour_error`` (mean of the squared error), ``behaviour_divergence``, ``perturbation_qvalue``.
    """

    kl_weight: Annotated[float, NON_NEGATIVE] = 0.5
    given_keys: ClassVar[tuple[NestedKey, ...]] = (LATENT,)
    metrics: ClassVar[tuple[str, ...]] = ("behaviour_error", "behaviour_divergence", "perturbation_qvalue")

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return both models' losses of each agent's action, ``[*B, n]``."""
        _check_generative(batch, type(self).__name__)
        if not batch.has_critic:
            raise ValueError("VAELearning trains its perturbation on a critic; pass one, or leave the rule out.")
        error, divergence = self._autoencode(batch)
        perturbed = generated_actions(batch, 1, detach=False)
        value = batch.candidates(perturbed, detach=True)[..., 0].squeeze(-2)  # [*B, n]
        metrics = {name: batch.mean(x) for name, x in zip(self.metrics, (error, divergence, value))}
        return error + self.kl_weight * divergence - value, metrics

    @staticmethod
    def _autoencode(batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the squared error and the divergence from the prior, each ``[*B, n]``."""
        found = batch.behaviour(module="encoder")
        loc, scale = found[LATENT_LOC], found[LATENT_SCALE]
        latent = loc + scale * normal_like(loc)
        decoded = batch.behaviour(module="decoder", **{joined(LATENT): latent})[DECODED]
        shown = getattr(batch.behaviour_model["decoder"].module, "shown", None)  # a user's own has none
        error = (decoded - batch.action if shown is None else shown.scaled(decoded) - shown.scaled(batch.action)).pow(2)
        error = error.mean(-1)
        return error, 0.5 * (loc.pow(2) + scale.pow(2) - 1 - 2 * scale.log()).mean(-1)


@dataclass(frozen=True, kw_only=True)
@checked
class BatchConstraint:
    """The actions that the model of the data allows, of which rules take the best.

    Args:
        samples: continuous actions of each agent that the model generates and perturbs.
        threshold: discrete actions are allowed whose probability is at least this share of the likeliest one's.
    """

    samples: Annotated[int, FEW] = 10
    threshold: Annotated[float, UNIT] = 0.3

    @torch.no_grad()
    def allowed(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return candidates ``[*B, K, n, a]``, and of discrete tasks which of them count, ``[*B, K, n]``."""
        if not has_logits(batch):
            _check_generative(batch, type(self).__name__)
            return generated_actions(batch, self.samples, detach=True), None
        logits = batch.behaviour(detach=True)[BEHAVIOUR_LOGITS]
        least = math.log(self.threshold) if self.threshold else -math.inf
        likely = (logits - logits.amax(-1, keepdim=True) >= least).transpose(-1, -2)  # [*B, n, A] -> [*B, A, n]
        return every_action(logits), likely & batch.legal(likely)

    @torch.no_grad()
    def best(self, batch: Batch, *, target: bool = False, min_weight: float | None = None) -> tuple[Tensor, Tensor]:
        """Return each agent's best allowed action ``[*B, n, a]`` (one-hot of discrete tasks) and its value ``[*B, n]``.

        Args:
            batch: of observations, states, and for a centralized critic the other agents' actions.
            target: ask the target critic.
            min_weight: see :class:`TD`; None for the first head.
        """
        actions, counts = self.allowed(batch)
        values = batch.candidates(actions, target=target)  # [*B, K, n, H]
        values = values[..., 0] if min_weight is None else soft_clipped(values, min_weight).squeeze(-1)
        if counts is not None:
            values = torch.where(counts, values, torch.full_like(values, -torch.inf))
        return best_candidate(actions, values)


@dataclass(frozen=True, kw_only=True)
@checked
class BCQ(BatchConstraint, ValueLearning):
    r"""Bootstrap at the best action that the model of the data allows (Fujimoto et al. 2019, eq. 13).

    .. math::
        \max_j \big[\lambda \min_k \bar Q^k(s', u_j) + (1 - \lambda) \max_k \bar Q^k(s', u_j)\big], \qquad
        u_j = \hat u_j + \xi(o', \hat u_j), \quad \hat u_j \sim \mu(\cdot | o')

    Each agent takes its best by its own value, and :math:`Q_{tot}` is evaluated at these: under a monotonic mixer the
    team's best of all combinations. A centralized critic is asked for each agent's action with the other agents' as the
    policy has them. Discrete (Fujimoto et al. 2019b): all legal actions with :math:`\mu(u) / \max \mu` of at least
    ``threshold``.

    Args:
        samples: see :class:`BatchConstraint`.
        threshold: see :class:`BatchConstraint`.
        min_weight: :math:`\lambda`.
    """

    min_weight: Annotated[float, UNIT] = 0.75
    needs_actor: ClassVar[bool] = True
    needs_behaviour: ClassVar[bool] = True

    def next_value(self, following: Following) -> Tensor:
        """Evaluate the target critic at every agent's best action."""
        if following.is_central:
            following = following.with_action(mode_of(following.policy))
        action, _ = self.best(following, target=True, min_weight=self.min_weight)
        return soft_clipped(following.q(action, target=True).total, self.min_weight)


@dataclass(frozen=True, kw_only=True)
@checked
class BCQDistillation(BatchConstraint, PolicyExtraction):
    r"""The policy regresses on the best action that the model of the data allows.

    .. math:: \|\pi_a(o_a) - \hat u_a\|^2, \qquad \hat u_a = \arg\max_j Q^1_a(o_a, u_j)

    with candidates :math:`u_j` as in :class:`BCQ`. The squared error is averaged over the action's components; discrete
    policies take the cross-entropy :math:`-\log \pi_a(\hat u_a | o_a)`. :math:`Q_a` is the agent's own value where the
    critic has local ones; a centralized critic's is that of the agent's action with the other agents' as recorded.

    Args:
        samples: see :class:`BatchConstraint`.
        threshold: see :class:`BatchConstraint`.

    Metrics:
        ``best_qvalue`` (mean value of the best actions), ``distillation_error`` (mean of the loss).
    """

    needs_behaviour: ClassVar[bool] = True
    needs_discrete_log_prob: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("best_qvalue", "distillation_error")

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Approach the best action."""
        policy = batch.policy
        action, value = self.best(batch)
        if is_discrete(policy):
            error = -log_prob_of(policy, action, rule=type(self).__name__)  # [*B, n]
        else:
            error = in_halves(policy, mode_of(policy) - action).pow(2).mean(-1)
        return error, {name: batch.mean(x) for name, x in zip(self.metrics, (value, error))}


def generated_actions(batch: Batch, count: int, *, detach: bool) -> Tensor:
    """Draw actions of the autoencoder, perturbed: ``[*B, count, n, a]``.

    Args:
        batch: of observations; the decoder of its loss's model gets no gradient.
        count: actions of each agent.
        detach: keep the gradient from the perturbation, too.
    """
    decoder = batch.behaviour_model["decoder"]
    read = unravel_key(decoder.in_keys[0])
    rows = batch.repeated([read], count)
    shape = (*rows.get(read).shape[:-1], decoder.module.latent_size)
    bound = decoder.module.latent_clip
    latent = normal_like(rows.get(read)[..., :1].expand(shape)).clamp(-bound, bound)
    found = rows.behaviour(module="decoder", detach=True, **{joined(LATENT): latent})
    given = {joined(DECODED): found[DECODED]}
    return rows.behaviour(module="perturbation", detach=detach, **given)[PERTURBED]


def _check_generative(batch: Batch, rule: str) -> None:
    if PERTURBED not in map(unravel_key, batch.behaviour_model.out_keys):
        raise ValueError(
            f"{rule} needs a model that generates actions; pass behaviour=make_vae(spec) and "
            "behaviour_learning=VAELearning(), or for a discrete task behaviour=make_behaviour_policy(spec) and "
            "behaviour_learning=SequentialCloning()."
        )
