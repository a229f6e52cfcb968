"""The chances of the logged actions under the team that logged them: recorded with the data, or of a cloned policy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_LOG_PROB, AGENT_MASK
from torchrl_marl_offline.core.put_back import preserved_rng
from torchrl_marl_offline.core.ranges import COUNT, LEARNING_RATE, SIZE, WIDTHS
from torchrl_marl_offline.evaluation.offline.answers import EvaluatedPolicy
from torchrl_marl_offline.evaluation.offline.memory_settings import MemorySettings
from torchrl_marl_offline.modules.actors import make_actor
from torchrl_marl_offline.objectives.presets import BehaviourCloning
from torchrl_marl_offline.training import Learner, Trainer

if TYPE_CHECKING:
    from torchrl_marl_offline.data import OfflineDataset


@dataclass(frozen=True)
@checked
class CloningSettings(MemorySettings):
    """How the logged team's policies are cloned.

    For weights, where the data has no log-probabilities, and for the check whether a policy does what the team might
    have done. A team that remembers is cloned by one that does: without memory, weights are of the mean chance of an
    action over all histories that lead to an observation, which is not the chance of the episode.

    Args:
        hidden: widths of the actor's hidden layers.
        steps: updates.
        batch_size: rows of an update.
        lr: Adam's learning rate.
        memory: what the clone remembers of an episode: gru, lstm, or window:K, the last K observations; by default
            nothing.
        memory_size: width of a recurrent memory.
        slice_len: most rows of the slices of episodes that a clone with memory learns from, the burn-in included.
        burn_in: rows of a slice that memory alone sees.
    """

    hidden: Annotated[Sequence[int], WIDTHS] = (64, 64)
    steps: Annotated[int, COUNT] = 2000
    batch_size: Annotated[int, SIZE] = 256
    lr: Annotated[float, LEARNING_RATE] = 1e-3


class BehaviourClone:
    """The logged team's policies, cloned from its episodes.

    Args:
        train: what it learns from.
        settings: how.
        seed: of its networks and minibatches.
        progress: show a bar on a terminal.
    """

    def __init__(self, train: OfflineDataset, settings: CloningSettings, *, seed: int, progress: bool) -> None:
        with preserved_rng():
            torch.manual_seed(seed)
            scale = {} if train.spec.discrete else {"scale": "state_dependent"}
            norm = train.observation_statistics()
            options = scale | settings.remembered
            actor = make_actor(train.spec, hidden=tuple(settings.hidden), observation_norm=norm, **options)
            self.loss = BehaviourCloning(actor)
            keys, steps = self.loss.in_keys, settings.steps
            sampling = settings.sampling(settings.batch_size, int(train.episode_lengths.max()))
            buffer = train.replay_buffer(**sampling, device="cpu", seed=seed, keys=keys)
            options = {"steps": steps, "log_every": steps, "progress": progress and sys.stderr.isatty()}
            Trainer(Learner(self.loss, lr=settings.lr), buffer, **options).train()
            self._policy = EvaluatedPolicy("The clone", self.loss, train, "sample")

    def log_probs(self, rows: TensorDictBase, actions: Tensor) -> Tensor:
        """Return how likely it finds actions ``[T, n(, a)]`` in the states of rows, logarithms ``[T, n]``.

        Args:
            rows: whole episodes, one after another.
            actions: in these rows.
        """
        return self._policy.densities(self._policy.seen(rows.cpu()), actions)


def behaviour_log_probs(
    train: OfflineDataset, held_out: OfflineDataset, clone: Callable[[], BehaviourClone]
) -> tuple[Tensor, Mapping[str, float]]:
    """Return the logged actions' log-probabilities on the held-out rows ``[T, n]``, and how well they are known.

    Args:
        train: what a clone learns from.
        held_out: whose rows are asked about; where they have the log-probability of what was logged, it is taken.
        clone: makes a clone, where they have not.

    Returns:
        The log-probabilities, and facts: ``behaviour_log_prob`` is their mean over the agents that are there; of a
        clone also ``behaviour_log_prob_train``, the same on what it learned from. Where the second is far above the
        first, the clone has learned the training episodes by heart, and the weights are wrong.
    """
    recorded = held_out.data.get(ACTION_LOG_PROB, None)
    if recorded is not None:
        known = recorded.as_subclass(Tensor).cpu().double()
        return known, {"behaviour_log_prob": _mean(known, held_out)}
    model = clone()
    own, learned = (model.log_probs(each.data, each.data.get(ACTION).cpu()) for each in (held_out, train))
    return own, {"behaviour_log_prob": _mean(own, held_out), "behaviour_log_prob_train": _mean(learned, train)}


def _mean(values: Tensor, dataset: OfflineDataset) -> float:
    alive = dataset.data.get(AGENT_MASK, None)
    counted = values if alive is None else values[alive.as_subclass(Tensor).cpu()]
    return counted.mean().item()
