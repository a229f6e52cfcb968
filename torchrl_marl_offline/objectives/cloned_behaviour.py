"""Models of what each agent does in the data, one by one, by maximum likelihood, and their densities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tensordict import unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.distributions import Normal

from torchrl_marl_offline.modules.behaviour import BEHAVIOUR_LOC, BEHAVIOUR_SCALE
from torchrl_marl_offline.modules.sequential import BEHAVIOUR_LOGITS
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.behaviour_learning import BehaviourLearning


@dataclass(frozen=True)
class ClonedBehaviour(BehaviourLearning):
    r"""Maximum likelihood of every agent's action: :math:`-\log \mu_a(u_a | o_a)`.

    For a model from :func:`~torchrl_marl_offline.make_behaviour_policy`, of discrete or continuous actions.

    Metrics:
        ``behaviour_log_prob``.
    """

    metrics: ClassVar[tuple[str, ...]] = ("behaviour_log_prob",)

    def check_behaviour(self, model: TensorDictModuleBase) -> None:
        """Refuse a model without a density."""
        check_has_density(model, type(self).__name__)

    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood of each agent's action, ``[*B, n]``."""
        log_prob = behaviour_log_prob(batch, batch.action, rule=type(self).__name__, detach=False)
        return -log_prob, {"behaviour_log_prob": batch.mean(log_prob)}


def behaviour_log_prob(batch: Batch, action: Tensor, *, rule: str, detach: bool = True) -> Tensor:
    """Return the log-probability of each agent's action by the model of the data, ``[*B, n]``.

    Args:
        batch: the rows.
        action: ``[*B, n, a]``; of a discrete task indices ``[*B, n]``.
        rule: who asks, for the error.
        detach: keep the gradient from the model's parameters.
    """
    check_has_density(batch.behaviour_model, rule)
    if has_logits(batch) == action.is_floating_point():
        kinds = ("discrete", "continuous") if has_logits(batch) else ("continuous", "discrete")
        raise ValueError(
            f"{rule} compares the policies with a model of {kinds[0]} actions, and theirs are {kinds[1]}; make the "
            "model of the same task: make_behaviour_policy(spec)."
        )
    found = batch.behaviour(detach=detach)
    if has_logits(batch):
        return log_prob_by(found[BEHAVIOUR_LOGITS], action)
    density = Normal(found[BEHAVIOUR_LOC], found[BEHAVIOUR_SCALE], validate_args=False)
    return density.log_prob(action).sum(-1)


def check_has_density(model: TensorDictModuleBase, rule: str) -> None:
    """Refuse a model of the data that tells no density of each agent's action.

    Args:
        model: of the data.
        rule: who asks.

    Raises:
        ValueError: so.
    """
    written = set(map(unravel_key, model.out_keys))
    if BEHAVIOUR_LOGITS not in written and not {BEHAVIOUR_LOC, BEHAVIOUR_SCALE} <= written:
        raise ValueError(
            f"{rule} needs a model of each agent's action with a density; pass behaviour=make_behaviour_policy(spec) "
            "and behaviour_learning=ClonedBehaviour()."
        )


def has_logits(batch: Batch) -> bool:
    """Say whether the model of the data is one of discrete actions, with logits."""
    return BEHAVIOUR_LOGITS in map(unravel_key, batch.behaviour_model.out_keys)


def behaviour_logits(
    batch: Batch,
    *,
    rule: str,
    model: str = "make_behaviour_policy",
    learning: str = "ClonedBehaviour",
    detach: bool = False,
    **given: Tensor,
) -> Tensor:
    """Return the logits of all discrete actions by the model of the data, ``[*B, n, A]``.

    Args:
        batch: the rows.
        rule: who asks, for the error.
        model: what builds such a model, for the error.
        learning: what fits it, for the error.
        detach: keep the gradient from the model's parameters.
        **given: see :meth:`Batch.behaviour`.
    """
    if not has_logits(batch):
        raise ValueError(
            f"{rule} needs a model of discrete actions; pass behaviour={model}(spec) and "
            f"behaviour_learning={learning}()."
        )
    return batch.behaviour(detach=detach, **given)[BEHAVIOUR_LOGITS]


def log_prob_by(logits: Tensor, action: Tensor) -> Tensor:
    """Return the log-probabilities of actions, indices ``[*B, n]``, by logits ``[*B, n, A]``."""
    return logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
