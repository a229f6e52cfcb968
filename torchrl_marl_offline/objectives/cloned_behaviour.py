"""Models of what each agent does in the data, one by one, by maximum likelihood, and their densities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tensordict import unravel_key
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
    found = batch.behaviour(detach=detach)
    keys = set(map(unravel_key, batch.behaviour_model.out_keys))
    if BEHAVIOUR_LOGITS in keys:
        return found[BEHAVIOUR_LOGITS].log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    if {BEHAVIOUR_LOC, BEHAVIOUR_SCALE} <= keys:
        density = Normal(found[BEHAVIOUR_LOC], found[BEHAVIOUR_SCALE], validate_args=False)
        return density.log_prob(action).sum(-1)
    raise ValueError(
        f"{rule} needs a model of each agent's action with a density; pass behaviour=make_behaviour_policy(spec) and "
        "behaviour_learning=ClonedBehaviour()."
    )


def behaviour_log_probs(batch: Batch, *, rule: str) -> Tensor:
    """Return the log-probabilities of all discrete actions by the model of the data, ``[*B, n, A]``, detached."""
    if BEHAVIOUR_LOGITS not in map(unravel_key, batch.behaviour_model.out_keys):
        raise ValueError(
            f"{rule} needs a model of discrete actions; pass behaviour=make_behaviour_policy(spec) and "
            "behaviour_learning=ClonedBehaviour()."
        )
    return batch.behaviour(detach=True)[BEHAVIOUR_LOGITS].log_softmax(-1)
