"""An alarm for values that no policy could earn: mean ``|Q|`` held against what the rewards of the data allow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.functional_parameters import tensors_of
from torchrl_marl_offline.core.layout import MASK
from torchrl_marl_offline.objectives.functional import team_reward
from torchrl_marl_offline.training.run.fit import rows_of
from torchrl_marl_offline.training.run.remedies import AGAINST_DIVERGENCE

if TYPE_CHECKING:
    from torchrl.objectives import LossModule

OnImpossibleValues = Literal["warn", "stop", "ignore"]
WATCHED = "qvalue_abs"
MARGIN = 2.0
MARGIN_OF_PENALTIES = 10.0


class ImpossibleValueWarning(UserWarning):
    """The critic's values exceed what the rewards of the data allow."""


class ImpossibleValueError(ArithmeticError):
    """A run was stopped since its critic's values exceed what the rewards of the data allow.

    Attributes:
        step: the logging point.
    """

    def __init__(self, step: int, message: str) -> None:
        self.step = step
        super().__init__(message)


class RewardFacts(NamedTuple):
    """What the data says of how large values can be.

    Attributes:
        largest: of the absolute rewards that the critic learns from.
        longest: steps of the longest episode; infinite where episodes' ends are not known.
        all_terminate: no episode was cut off by a time limit, so that no value reaches beyond ``longest`` steps.
    """

    largest: float
    longest: float
    all_terminate: bool

    def bound(self, gamma: float) -> float:
        """Return the largest absolute value: the largest reward at every step, discounted.

        Over endless steps where episodes were cut off, since targets go on there; without discounting over the longest
        episode.
        """
        if self.largest == 0.0:
            return 0.0
        if gamma == 1.0:
            return self.largest * self.longest
        endless = 1.0 / (1.0 - gamma)
        return self.largest * (endless * (1.0 - gamma**self.longest) if self.all_terminate else endless)


def reward_facts(loss: LossModule, buffer: Any) -> RewardFacts | None:
    """Read the rewards of the dataset behind a buffer.

    Args:
        loss: whose keys, ``is_team`` and ``team_reward`` say what the critic learns from.
        buffer: with a ``storage`` of transitions; where it relabels them in hindsight, what that pays counts too.

    Returns:
        ``None`` where that cannot be known: experience that is still gathered, transforms between the storage and the
        loss, no rewards, none that counts, or rewards that are not finite.
    """
    data, keys = rows_of(buffer), getattr(loss, "tensor_keys", None)
    if data is None or not hasattr(keys, "reward") or not hasattr(loss, "team_reward"):
        return None
    if data.get(("next", keys.reward), None) is None:
        return None
    rewards = [_rewards_of_critic(loss, data)]
    if not len(rewards[0]):
        return None
    hindsight = getattr(buffer, "hindsight", None)
    for anew in [] if hindsight is None else hindsight.rewards():
        relabelled = data.copy().set(("next", keys.reward), anew.to(data.get(("next", keys.reward))))
        rewards.append(_rewards_of_critic(loss, relabelled))
    largest = max(float(each.abs().amax()) for each in rewards)
    longest, all_terminate = _episodes(data, keys)
    return RewardFacts(largest, longest, all_terminate) if math.isfinite(largest) else None


def _rewards_of_critic(loss: LossModule, data: TensorDictBase) -> Tensor:
    """Return the rewards that count, of the team where the critic has one value for it."""
    reward, counted = data.get(("next", loss.tensor_keys.reward)), data.get(MASK, None)
    if reward.ndim > 2:  # [T, n, 1]
        alive = data.get(loss.tensor_keys.agent_mask, None)
        reward = reward if alive is None else reward.where(alive.unsqueeze(-1), torch.zeros_like(reward))
        reward = team_reward(reward, loss.team_reward) if loss.is_team else reward
        some = None if alive is None else alive.any(-1)
        counted = some if counted is None else counted.reshape(-1) if some is None else counted.reshape(-1) & some
    if counted is not None:
        reward = reward[counted.reshape(-1)]
    return reward


def _episodes(data: TensorDictBase, keys: Any) -> tuple[float, bool]:
    done, terminated = (data.get(("next", getattr(keys, name)), None) for name in ("done", "terminated"))
    if done is None or terminated is None:
        return math.inf, False
    done, terminated = (flag.reshape(-1).bool().cpu() for flag in (done, terminated))
    ends = (done | terminated).nonzero().flatten()
    bounds = torch.cat([torch.tensor([-1]), ends, torch.tensor([len(done) - 1])])
    is_whole = bool(len(ends)) and int(ends[-1]) == len(done) - 1
    return float(bounds.diff().amax()), is_whole and bool(terminated[ends].all())


def limit_of(bound: float, start: float, margin: float = MARGIN) -> float:
    """Return the mean ``|Q|`` from which values are impossible, by the rewards and by what was said at the start."""
    return margin * (bound + (start if math.isfinite(start) else 0.0)) + 1.0


class ValueAlarm:
    r"""Compare mean :math:`|Q|` with what rewards allow; each member of a population is told of once.

    The limit is ``MARGIN`` times the bound of :class:`RewardFacts`, plus as much of what the networks said before they
    learned, plus 1: small values raise no alarm. A penalty on values, as of CQL, moves them beyond the rewards'
    bound by design; with one the bound counts a reward larger by its weight, and the margin is
    ``MARGIN_OF_PENALTIES``. Rewards, and so the bound, are read once, at the first logging point.

    Args:
        loss: an :class:`OfflineMARLLoss`, or a population of them. Of other losses nothing is known.
        buffer: what it learns from.
        action: what :class:`Trainer` is to do.
        members: names of a population.

    Attributes:
        found: member (without a population ``""``) -> the step at which it was found.
    """

    def __init__(
        self, loss: LossModule, buffer: Any, action: OnImpossibleValues, members: Sequence[str] | None = None
    ) -> None:
        if action not in get_args(OnImpossibleValues):
            known = ", ".join(map(repr, get_args(OnImpossibleValues)))
            raise ValueError(f"on_impossible_values must be one of {known}, got {action!r}.")
        self.action, self.members = action, [""] if members is None else list(members)
        self.found: dict[str, int] = {}
        self._loss, self._buffer = loss, buffer
        self._start: list[float] | None = None
        self._last: list[float] | None = None
        self._largest: list[float] | None = None
        self._facts: RewardFacts | None = None
        self._was_read = False

    def check(self, step: int, means: Mapping[str, Any], first: Callable[[], Mapping[str, Any]]) -> str | None:
        """Return what is to be said of the members that have now left their limit, and count them as found.

        Args:
            step: of the logging point.
            means: of the metrics since the one before; of a population lists.
            first: returns the metrics of the first update among them.
        """
        if WATCHED not in means:
            return None
        values = _listed(means[WATCHED])
        self._last, largest = values, values if self._largest is None else self._largest
        self._largest = [max(map(_or_infinite, pair)) for pair in zip(largest, values)]
        self._start = _listed(first()[WATCHED]) if self._start is None else self._start
        if self.action == "ignore":
            return None
        bounds = self._bounds()
        if bounds is None:
            return None
        limits = [self._limit(*each) for each in zip(bounds, self._start)]
        new = [
            index for index, name in enumerate(self.members) if name not in self.found and values[index] > limits[index]
        ]
        if not new:
            return None
        self.found |= {self.members[index]: step for index in new}
        worst = max(new, key=lambda index: values[index] / max(limits[index], 1e-30))
        return self._message(step, new, values[worst], bounds[worst])

    def _limit(self, bound: float, start: float) -> float:
        return limit_of(bound, start, MARGIN if self._penalty() is None else MARGIN_OF_PENALTIES)

    def _bounds(self) -> list[float] | None:
        """Return each member's bound, or ``None`` where there is none."""
        loss = getattr(self._loss, "template", self._loss)
        if not self._was_read:
            self._was_read, self._facts = True, reward_facts(loss, self._buffer)
        tensors = self._loss.tensors() if hasattr(self._loss, "tensors") else tensors_of(loss)
        gamma = tensors.get("_value_estimator.gamma")
        if self._facts is None or gamma is None or getattr(loss._value_estimator, "average_rewards", False):
            return None
        weights = self._penalty()
        weights = [0.0] * len(self.members) if weights is None else _listed(weights.tolist())
        facts = [self._facts._replace(largest=self._facts.largest + weight) for weight in weights]
        return [each.bound(rate) for each, rate in zip(facts, _listed(gamma.tolist()))]

    def _penalty(self) -> Tensor | None:
        """Return the weight of a penalty on values, 0 where a rule has one without such a weight."""
        loss = getattr(self._loss, "template", self._loss)
        if "critic_penalty" not in getattr(getattr(loss, "value_learning", None), "metrics", ()):
            return None
        tensors = self._loss.tensors() if hasattr(self._loss, "tensors") else tensors_of(loss)
        return tensors.get("min_q_weight", torch.zeros(len(self.members)))

    def _message(self, step: int, new: Sequence[int], value: float, bound: float) -> str:
        names = [self.members[index] for index in new if self.members[index]]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return (
            f"Step {step}{f', {shown}' if names else ''}: mean |Q| is {value:.3g}, where the rewards of the data allow "
            f"{bound:.3g}: the critic diverges, and what a policy learns from it means nothing. {AGAINST_DIVERGENCE} "
            'on_impossible_values="stop" ends such a run, "ignore" says nothing.'
        )

    def verdict(self) -> str | None:
        """Say in a sentence whether the run's values were possible; ``None`` where nothing was watched."""
        if self._last is None:
            return None
        bounds = self._bounds()
        if bounds is None:
            last = _range_of(self._last)
            return f"Values: mean |Q| is {last} at the end; what would be possible is not known of this data."
        limits = [self._limit(*each) for each in zip(bounds, self._start or [0.0] * len(bounds))]
        over = [name for name, largest, limit in zip(self.members, self._largest, limits) if not largest <= limit]
        largest, last = _range_of(self._largest), _range_of(self._last)
        facts = f"mean |Q| was {largest} at most and is {last} at the end; the rewards allow {_range_of(bounds)}."
        if not over and any(value > bound for value, bound in zip(self._largest, bounds)):
            return f"Values: within the alarm's limit, which allows for what networks say before they learn; {facts}"
        if not over:
            return f"Values: sane, {facts}"
        if len(self.members) == 1:
            return f"Values: NOT sane, {facts}"
        named = ", ".join(over[:5]) + (f" and {len(over) - 5} more" if len(over) > 5 else "")
        return f"Values: NOT sane in {len(over)} of {len(self.members)} members ({named}), {facts}"

    def warn(self, message: str) -> None:
        """Warn, under the name of the alarm."""
        warnings.warn(message, ImpossibleValueWarning, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Return what was found, and what the networks said at the start."""
        return {"found": dict(self.found), "start": self._start, "last": self._last, "largest": self._largest}

    def member_state(self, index: int) -> dict[str, Any]:
        """Return the state of a member's run alone."""
        step = self.found.get(self.members[index])
        lists = {"start": self._start, "last": self._last, "largest": self._largest}
        own = {name: None if values is None else [values[index]] for name, values in lists.items()}
        return {"found": {} if step is None else {"": step}} | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.found, self._start = dict(state["found"]), state["start"]
        self._last, self._largest = state.get("last"), state.get("largest")  # which earlier versions did not keep


def _or_infinite(value: float) -> float:
    """Return a value that is none as the largest: no later one makes it good."""
    return value if math.isfinite(value) else math.inf


def _range_of(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _listed(value: Any) -> list[float]:
    return list(value) if isinstance(value, Sequence) else [value]
