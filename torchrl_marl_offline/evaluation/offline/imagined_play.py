"""What policies earn in learned models, and what is left open where the models have not seen the like.

A policy plays from the first states of held-out episodes. Where the models disagree on what its action brings more than
they do on the logged team's held-out steps, nothing that they say of the rest of the episode is worth anything: from
there on it earns what the worst logged episodes earned from that step on, or the best. The first is the estimate, the
lower end of what is possible; the second is the upper end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.layout import ACTION, AGENT_MASK, DONE, next_key
from torchrl_marl_offline.data.policy_fit import Carried
from torchrl_marl_offline.evaluation.offline.answers import EvaluatedPolicy
from torchrl_marl_offline.evaluation.offline.checks import LoggedCalibration
from torchrl_marl_offline.evaluation.offline.horizon import EvaluationRows, of_living
from torchrl_marl_offline.evaluation.offline.learned_model import LearnedModel

WORST, BEST = 0.01, 0.99
"""Quantiles of the logged returns from a step on, which stand for the worst and the best."""
_FEWEST = 100
_ROUNDING = 1e-5
"""Difference of two answers in the same state, by how many are asked about together."""


@dataclass(frozen=True)
class ImaginedPlay:
    """What one policy earned, discounted, by each model: ``[R]`` each, the mean over its episodes.

    Attributes:
        lows: with the worst behind what is known.
        highs: with the best behind it.
        plain: what the models say throughout.
        outside: share of the episodes that left what is known.
    """

    lows: Tensor
    highs: Tensor
    plain: Tensor
    outside: float


class ImaginedGame:
    """A learned model to play in.

    Args:
        model: of the task.
        source: logged rows ``[T]``, as they are.
        rows: the same, as an evaluation sees them.
        held_out: ``[H]`` episodes that no model has seen.
        gamma: discount.
        seed: of all draws, the same for every policy.
    """

    def __init__(
        self,
        model: LearnedModel,
        source: TensorDictBase,
        rows: EvaluationRows,
        held_out: Tensor,
        *,
        gamma: float,
        seed: int,
    ) -> None:
        self.model, self.rows, self.gamma, self.seed = model, rows, gamma, seed
        self._source, self._held_out = source, held_out
        self.longest = int(rows.lengths.max())
        logged = rows.rows_of(held_out)
        found = model.disagreement(model.columns.of(source[logged]), rows.data.get(ACTION)[logged])
        self.limit = found.quantile(model.settings.trusted).item() * (1 + _ROUNDING) + _ROUNDING
        self._remaining = self._logged_remainders()  # [longest, 2]
        self._limit_chances = rows.limit_chances()

    def _logged_remainders(self) -> Tensor:
        """Return the worst and the best of what logged episodes earned from about each step on, ``[longest, 2]``.

        From the steps nearest to it, as many as have a hundred returns, and a twentieth of the longest episode.
        """
        rows, near = self.rows, self.longest // 20
        step = rows.steps
        ends = torch.tensor([WORST, BEST], dtype=torch.float64)
        found = torch.empty(self.longest, 2)
        for time in range(self.longest):
            distance = (step - time).abs()
            reached = distance.kthvalue(min(_FEWEST, len(distance))).values.clamp_min(near)
            found[time] = torch.quantile(rows.returns[distance <= reached], ends).float()
        return found

    @torch.no_grad()
    def play(self, policy: EvaluatedPolicy, starts: Tensor) -> ImaginedPlay:
        """Let a policy play from the first states of episodes ``[R, k]``, which are counted among the held-out ones."""
        members, count = starts.shape
        carried, td = Carried(policy.module), None
        numbers = self.model.columns.of(self._source[self.rows.starts[self._held_out[starts]].reshape(-1)])
        numbers = numbers.reshape(members, count, -1)
        is_alive, is_known = (torch.ones(members, count, dtype=torch.bool) for _ in range(2))
        earned, known = (torch.zeros(members, count) for _ in range(2))
        rest = torch.zeros(2, members, count)
        with policy.ready():
            torch.manual_seed(self.seed)
            for time in range(self.longest):
                states = self.model.columns.states(numbers.flatten(0, 1))
                states = carried.begin(states) if td is None else carried.onward(td, states)
                td = policy.checked_answer(states)
                actions = of_living(td.get(ACTION), states.get(AGENT_MASK, None)).unflatten(0, (members, count))
                leaves = (self.model.disagreement(numbers, actions) > self.limit) & is_known & is_alive
                discount = self.gamma**time
                rest += torch.where(leaves, discount * self._remaining[time].reshape(2, 1, 1), 0.0)
                is_known &= ~leaves
                numbers, reward, ended = self.model.step(numbers, actions)
                earned += discount * is_alive * reward
                known += discount * (is_alive & is_known) * reward
                is_alive &= ~ended
                is_alive &= ~self._are_cut(starts, time)
                if not is_alive.any():
                    break
                td.set(next_key(DONE), torch.zeros(members * count, 1, dtype=torch.bool))
        return ImaginedPlay(
            (known + rest[0]).double().mean(1),
            (known + rest[1]).double().mean(1),
            earned.double().mean(1),
            (~is_known).double().mean().item(),
        )

    def _are_cut(self, starts: Tensor, time: int) -> Tensor:
        """Return which episodes a time limit ends after a step, ``[R, k]``.

        Those whose first state is of an episode that one ended end with it. Of the others the limit is known to lie
        behind the recorded end: it is drawn as the data has it.
        """
        chance, episodes = self._limit_chances[time], self._held_out[starts]
        drawn = torch.rand(starts.shape) if 0 < chance < 1 else torch.full(starts.shape, 0.5)
        is_reached = time >= self.rows.lengths[episodes] - 1
        return is_reached & (self.rows.truncated[episodes] | (drawn < chance))

    @torch.no_grad()
    def replay(self) -> LoggedCalibration:
        """Hold what the models say that the logged actions of held-out episodes earn against what they earned."""
        lengths, starts = self.rows.lengths[self._held_out], self.rows.starts[self._held_out]
        members = self.model.count
        numbers = self.model.columns.of(self._source[starts]).expand(members, -1, -1)
        is_alive = torch.ones(members, len(starts), dtype=torch.bool)
        earned = torch.zeros(members, len(starts))
        torch.manual_seed(self.seed)
        for time in range(int(lengths.max())):
            is_alive = is_alive & (time < lengths)
            row = starts + torch.minimum(torch.tensor(time), lengths - 1)
            actions = self.rows.data.get(ACTION)[row]
            numbers, reward, ended = self.model.step(numbers, actions.expand(members, *actions.shape))
            earned += self.gamma**time * is_alive * reward
            is_alive &= ~ended
        return LoggedCalibration.of(earned.double().mean(0), self.rows.returns[starts])
