"""Logged episodes as an evaluation sees them: where episodes end, what step it is, in which unit rewards are.

A time limit ends an episode without the task having ended. Training bootstraps there, so that its values are those of
the task without the limit. What an episode earned stops there. The two must not be compared: with ``horizon="episode"``
a time limit is an end, in the critic's targets as in the returns. The value of a state then depends on the step, which
observations seldom tell, so that the critics (not the policies) are told it: they read the share of the longest
episode's steps as one more number. With ``horizon="endless"`` a time limit is bootstrapped, values are those of the
task without it, and there are no earned returns to hold them against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    DONE,
    HAS_NEXT_ACTION,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TRAJ_IDS,
    TRUNCATED,
    next_key,
)
from torchrl_marl_offline.evaluation.distances import deviation
from torchrl_marl_offline.evaluation.held_out import discounted_returns
from torchrl_marl_offline.modules.local_critic import encode_action
from torchrl_marl_offline.objectives.functional import team_reward

if TYPE_CHECKING:
    from torchrl_marl_offline.core.layout import TaskSpec
    from torchrl_marl_offline.data import OfflineDataset

Horizon = Literal["episode", "endless"]
_KEPT = (OBSERVATION, STATE, ACTION, ACTION_MASK)


@dataclass(frozen=True)
class EvaluationRows:
    """The rows ``[T]`` of whole episodes, as critics of an evaluation read them.

    Attributes:
        data: observations and states with mean 0 and deviation 1, with the step where it matters; rewards in units of
            ``scale``; ends by the horizon. All agents count until their episode ends, as they do in its return; dead
            ones' actions are 0.
        spec: the sizes of these.
        reward: ``[T]`` the team's reward, in the data's unit, float64.
        returns: ``[T]`` its discounted sum from each row to the end of its episode.
        starts: ``[E]`` row of each episode's first transition.
        lengths: ``[E]`` transitions of each episode.
        truncated: ``[E]`` whether a time limit ended it.
        scale: of the rewards, so that values are about 1.
        has_step: whether observations have the step.
    """

    data: TensorDict
    spec: TaskSpec
    reward: Tensor
    returns: Tensor
    starts: Tensor
    lengths: Tensor
    truncated: Tensor
    scale: float
    has_step: bool

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.starts)

    def rows_of(self, episodes: Tensor) -> Tensor:
        """Return the rows of episodes ``[k]``, which may be repeated: ``[R]``."""
        lengths = self.lengths[episodes]
        offsets = lengths.cumsum(0) - lengths
        return torch.arange(int(lengths.sum())) + (self.starts[episodes] - offsets).repeat_interleave(lengths)

    @property
    def steps(self) -> Tensor:
        """``[T]`` which step of its episode each row is."""
        return _steps(self.starts, self.lengths)

    def limit_chances(self) -> Tensor:
        """Return how often a time limit ended an episode after its step, of those that had that step, ``[longest]``."""
        last, longest = self.lengths - 1, int(self.lengths.max())
        with_step = torch.bincount(last, minlength=longest).flip(0).cumsum(0).flip(0)
        return torch.bincount(last[self.truncated], minlength=longest) / with_step


def joint_codes(actions: Tensor, spec: TaskSpec) -> Tensor:
    """Return joint actions ``[*B, n, a]``, or indices ``[*B, n]`` as one-hot codes, as one row of numbers each."""
    return encode_action(actions, spec, torch.float32).flatten(-2).float()


def of_living(actions: Tensor, alive: Tensor | None) -> Tensor:
    """Return actions ``[*B, n]`` or ``[*B, n, a]``, those of dead agents, which do nothing, as 0.

    Args:
        actions: of all agents.
        alive: ``[*B, n]`` bool; ``None`` where no agent dies.
    """
    if alive is None:
        return actions
    alive = alive.as_subclass(Tensor).to(actions.device)
    return actions.masked_fill(~(alive.unsqueeze(-1) if actions.is_floating_point() else alive), 0)


def evaluation_rows(
    dataset: OfflineDataset, *, horizon: Horizon, gamma: float, how: Literal["mean", "sum"]
) -> EvaluationRows:
    """Return a dataset's rows on the CPU as critics of an evaluation read them; the dataset stays as it is."""
    source = dataset.data
    keys = [key for k in _KEPT for key in (k, next_key(k)) if source.get(key, None) is not None]
    rows = {key: source.get(key).as_subclass(Tensor).cpu() for key in keys}
    starts, lengths = dataset.episode_starts, dataset.episode_lengths
    last = starts + lengths - 1
    truncated = ~source.get(next_key(TERMINATED)).as_subclass(Tensor).cpu()[last, 0]
    has_step = horizon == "episode" and bool(truncated.any())
    step = _steps(starts, lengths).float()
    ahead = (step + 1) / lengths.max() * 2 - 1
    step = step / lengths.max() * 2 - 1
    for key in (OBSERVATION, STATE):
        flat = rows[key].reshape(-1, rows[key].shape[-1]).double()
        mean, spread = flat.mean(0).float(), deviation(flat).float()
        for name, time in ((key, step), (next_key(key), ahead)):
            rows[name] = _with_step((rows[name] - mean) / spread, time if has_step else None)
    agents = source.get(next_key(REWARD)).as_subclass(Tensor).cpu()  # [T, n, 1]
    reward = team_reward(agents.double(), how).reshape(-1)  # [T]
    returns = discounted_returns(reward, lengths, gamma)
    scale = max(returns.abs().mean().item(), returns.std(correction=0).item()) or 1.0
    rows[next_key(REWARD)] = agents / scale
    data = TensorDict(rows, [len(source)])
    done = torch.zeros(len(source), 1, dtype=torch.bool)
    done[last] = True
    counts = source.get(MASK).as_subclass(Tensor).cpu().clone()
    terminated = done.clone()
    if horizon == "endless":
        terminated[last[truncated]] = False
    else:
        counts[last] = True  # an end needs no successor, for want of which such a row does not count in training
    data.set(next_key(DONE), done).set(next_key(TERMINATED), terminated).set(next_key(TRUNCATED), done & ~terminated)
    data.set(MASK, counts).set(HAS_NEXT_ACTION, source.get(HAS_NEXT_ACTION).as_subclass(Tensor).cpu())
    data.set(TRAJ_IDS, torch.arange(len(lengths)).repeat_interleave(lengths))
    for is_next in (False, True):
        action, alive = (next_key(key) if is_next else key for key in (ACTION, AGENT_MASK))
        data.set(action, of_living(data.get(action), source.get(alive, None)))
    extra = int(has_step)
    spec = dataset.spec
    spec = replace(spec, observation_size=spec.observation_size + extra, state_size=spec.state_size + extra)
    return EvaluationRows(data, spec, reward, returns, starts, lengths, truncated, scale, has_step)


def _steps(starts: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)


def _with_step(values: Tensor, time: Tensor | None) -> Tensor:
    if time is None:
        return values
    time = time.reshape(-1, *[1] * (values.ndim - 1)).expand(*values.shape[:-1], 1)
    return torch.cat([values, time], -1)
