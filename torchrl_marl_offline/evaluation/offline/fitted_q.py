r"""Fitted Q evaluation of teams: the value of given policies, by temporal differences at their own actions.

Le, Voloshin and Yue 2019 (*Batch Policy Learning under Constraints*) for a team with any value decomposition:

.. math:: Q_{tot}(s, u) \leftarrow r + \gamma (1 - d)\, \mathbb{E}_{u' \sim \pi}\, \bar Q_{tot}(s', u')

A fixed policy's actions in the logged states do not change, so they are asked for once, before training: any policy can
be evaluated, whatever it is, and none can be changed. All policies, each on several resamples of the episodes, are
members of one population.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.functional_parameters import tensors_in
from torchrl_marl_offline.core.layout import ACTION, HAS_NEXT_ACTION, MASK, TRAJ_IDS, next_key
from torchrl_marl_offline.core.put_back import preserved_rng
from torchrl_marl_offline.core.ranges import COUNT, FEW, LEARNING_RATE, RATE, SIZE, WIDTHS
from torchrl_marl_offline.evaluation.offline.horizon import EvaluationRows
from torchrl_marl_offline.evaluation.offline.importance import padded
from torchrl_marl_offline.evaluation.offline.memory_settings import MemorySettings
from torchrl_marl_offline.modules.critics import Decomposition, make_critic
from torchrl_marl_offline.objectives.batch import Batch, Following
from torchrl_marl_offline.objectives.functional import team_reward
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.objectives.value_learning import ValueLearning
from torchrl_marl_offline.training import PopulationBuffer, PopulationLearner, Trainer

EVALUATED = ("agents", "evaluated_action")
"""The evaluated policy's actions, ``[*B, K, n, a]`` or of a discrete task ``[*B, K, n]``."""
ROWS = 4096


class PolicyEvaluation(ValueLearning):
    r"""Bootstrap at the evaluated policy's actions, which the rows bring: the mean of :math:`\bar Q(s', u'_k)`.

    They stand at ``("next", "agents", "evaluated_action")``, ``K`` of them. Rows whose next action was never recorded,
    where the policy is the logged team's, count only if they terminated, as in :class:`~torchrl_marl_offline.SARSA`.
    """

    needs_next_action: ClassVar[bool] = False

    def next_value(self, following: Following) -> Tensor:
        """Evaluate the target critic at each of the actions, and average."""
        actions = following.get(EVALUATED)
        place = following.tensordict.ndim
        values = [following.q(action, target=True).total_min for action in actions.unbind(place)]
        return torch.stack(values).mean(0)

    def row_mask(self, batch: Batch) -> Tensor | None:
        """Leave out rows without the logged team's next action."""
        known = batch.has_next_action
        return None if known is None else known | batch.terminated()


@dataclass(frozen=True)
@checked
class FittedQSettings(MemorySettings):
    """How critics of an evaluation are built and trained.

    Without memory a value is the mean over all recorded histories that lead to what the critic reads, the state or the
    observations. That is the value where those tell all that the future depends on; that of a policy with memory also
    depends on what the policy remembers, and the recorded histories are not its own.

    Args:
        decomposition: of :func:`~torchrl_marl_offline.make_critic`. Centralized critics were measured to err least, and
            mixers to overrate most (``benchmarks/RESULTS.md``). ``"independent"`` critics value each agent's own
            reward; the team's value is their mean (or sum).
        hidden: widths of the critics' hidden layers.
        steps: updates of every critic. Values come from the ends of episodes step by step: many small updates were
            measured to be better than few large ones (``benchmarks/RESULTS.md``).
        batch_size: rows of an update.
        lr: Adam's learning rate.
        tau: rate of the target networks.
        resamples: of the episodes, with replacement; the spread of their values is the interval.
        samples: actions of a policy that draws, at each logged state.
        compile: ``"off"``, ``"on"`` or ``"auto"``, as of :class:`~torchrl_marl_offline.training.PopulationLearner`:
            compiling pays from some dozen critics and thousands of updates on, and changes values by rounding.
        memory: what the critics remember of an episode: gru, lstm, or window:K, the last K observations; by default
            nothing. See :func:`~torchrl_marl_offline.make_critic`.
        memory_size: width of a recurrent memory.
        slice_len: most rows of the slices of episodes that critics with memory learn from, the burn-in included. Where
            no episode is longer, slices are whole episodes, without a burn-in. ``batch_size`` is in whole slices.
        burn_in: rows of a slice that memory alone sees.
    """

    decomposition: Decomposition = "centralized"
    hidden: Annotated[Sequence[int], WIDTHS] = (64, 64)
    steps: Annotated[int, COUNT] = 4000
    batch_size: Annotated[int, SIZE] = 64
    lr: Annotated[float, LEARNING_RATE] = 1e-3
    tau: Annotated[float, RATE] = 0.05
    resamples: Annotated[int, FEW] = 5
    samples: Annotated[int, FEW] = 4
    compile: Literal["off", "on", "auto"] = "auto"


class FittedQ:
    """Critics of several policies, each on every resample of the episodes.

    Args:
        rows: the episodes that are learned from.
        actions: policy's name -> its actions in the next states, ``[T, K, n, a]``; ``None`` of the logged team.
        resamples: ``[R, E]`` int64, each resample's episodes.
        settings: how critics are built and trained.
        gamma: discount.
        how: the team's reward of the agents'.
        seed: of the critics and of their minibatches.
    """

    def __init__(
        self,
        rows: EvaluationRows,
        actions: Mapping[str, Tensor | None],
        resamples: Tensor,
        settings: FittedQSettings,
        *,
        gamma: float,
        how: str,
        seed: int,
    ) -> None:
        self.rows, self.settings, self.how, self.names = rows, settings, how, list(actions)
        self.gamma, self.resamples = gamma, resamples
        count, members = len(resamples), [(name, r) for name in actions for r in range(len(resamples))]
        with preserved_rng():
            losses = {f"{name}/{r}": self._loss(seed + r) for name, r in members}  # alike in all policies: paired
        self.learner = PopulationLearner(losses, lr=settings.lr, tau=settings.tau, compile=settings.compile)
        leaves = {name: self._leaves(given, max_samples(actions)) for name, given in actions.items()}
        sampling = settings.sampling(settings.batch_size, int(rows.lengths.max()))
        if settings.memory is None:
            drawn = [rows.rows_of(episodes) for episodes in resamples]
            sampling["rows"] = [drawn[r] for _, r in members]
        else:
            sampling["episodes"] = [resamples[r] for _, r in members]
        template = self.learner.template
        self.buffer = PopulationBuffer(
            rows.data,
            **sampling,
            seeds=[seed + r for _, r in members],
            keys=template.in_keys,
            own=[leaves[name] for name, _ in members],
        )
        self._count = count

    def _loss(self, seed: int) -> OfflineMARLLoss:
        torch.manual_seed(seed)
        settings = self.settings
        critic = make_critic(
            self.rows.spec,
            decomposition=settings.decomposition,
            num_heads=1,
            hidden=tuple(settings.hidden),
            **settings.remembered,
        )
        rule = PolicyEvaluation()
        loss = OfflineMARLLoss(None, critic, value_learning=rule, extraction=None, team_reward=self.how)
        return loss.make_value_estimator(gamma=self.gamma)

    def _leaves(self, actions: Tensor | None, samples: int) -> TensorDict:
        """Return what members of one policy see alone: its next actions, and where they are known."""
        data = self.rows.data
        known = torch.ones(len(data), dtype=torch.bool) if actions is not None else data.get(HAS_NEXT_ACTION)
        if actions is None:
            actions = data.get(next_key(ACTION)).unsqueeze(1)
        if actions.shape[1] != samples:
            actions = actions[:, :1].expand(-1, samples, *actions.shape[2:])
        return TensorDict({next_key(EVALUATED): actions, HAS_NEXT_ACTION: known}, [len(data)])

    def train(self, *, progress: bool) -> None:
        """Train all critics, with a bar on a terminal."""
        progress = progress and sys.stderr.isatty()
        options = {"steps": self.settings.steps, "log_every": self.settings.steps, "on_impossible_values": "ignore"}
        Trainer(self.learner, self.buffer, progress=progress, **options).train()

    @torch.no_grad()
    def values(self, name: str, rows: EvaluationRows, index: Tensor, actions: Tensor) -> Tensor:
        """Return what the critics of a policy say, ``[R, k]``, in the data's unit.

        Args:
            name: of the policy.
            rows: which hold the states.
            index: ``[k]`` which of them.
            actions: ``[k, K, n, a]``, over which values are averaged.
        """
        found = []
        for r in range(self._count):
            member = self.learner.population.member_tensors(f"{name}/{r}")
            with tensors_in(self.learner.template, member):
                found.append(self._of_member(rows, index, actions))
        return torch.stack(found) * self.rows.scale

    def _of_member(self, rows: EvaluationRows, index: Tensor, actions: Tensor) -> Tensor:
        template, found = self.learner.template, []
        for states, given in zip(self._states(rows, index).split(ROWS), actions.split(ROWS)):
            values = [template.team.action_value(states, each).total_min for each in given.unbind(1)]  # [b, k, 1]
            mean = torch.stack(values).mean(0)
            found.append(mean.reshape(-1) if template.is_team else team_reward(mean, self.how).reshape(-1))
        return torch.cat(found).double()

    def _states(self, rows: EvaluationRows, index: Tensor) -> TensorDictBase:
        """Return rows ``[k]`` as the critics read them, with what they remember of their episodes up to there."""
        if self.settings.memory is None:
            return rows.data[index]
        episodes, place = rows.data.get(TRAJ_IDS)[index].unique(return_inverse=True)
        starts = rows.starts[episodes]
        time = index - starts[place]
        lengths = torch.zeros_like(starts).scatter_reduce(0, place, time + 1, "amax")
        shape = [len(episodes), int(lengths.max())]
        steps = rows.data.apply(lambda each: padded(each, starts, lengths), batch_size=shape)
        steps.set(MASK, padded(torch.ones(len(rows.data), dtype=torch.bool), starts, lengths))
        return self.learner.template.batch(steps).tensordict[place, time]


def max_samples(actions: Mapping[str, Tensor | None]) -> int:
    """Return how many actions each state has: as many as that of the policies with the most."""
    return max(1 if given is None else _distinct(given) for given in actions.values())


def _distinct(actions: Tensor) -> int:
    """Return how many actions a state has, of which an expanded tensor holds one."""
    return 1 if actions.stride(1) == 0 else actions.shape[1]
