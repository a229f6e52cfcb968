"""Value-learning rules: what is the next state worth?

A rule owns no parameters; the loss that it is given to does. Its coefficients become buffers of the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.named_settings import NamedSettings
from torchrl_marl_offline.core.noise import normal_like, uniform_like
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, OPEN_UNIT, UNIT
from torchrl_marl_offline.core.registering import register
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.modules.networks import one_hot
from torchrl_marl_offline.objectives.action_distributions import bounds_of, is_discrete, mode_of, sampled_action
from torchrl_marl_offline.objectives.batch import Batch, Following
from torchrl_marl_offline.objectives.functional import expectile_weighted_square, soft_clipped

VALUE_LEARNINGS: dict[str, type[ValueLearning]] = {}
"""The value-learning rules that the recipe knows by name; a class of one's own with ``name=`` is added."""


_EPSILON = 1e-3
ONE_HEAD = (
    "replaced='weighted' weighs values by how far the critic's heads are apart, and there is one; take num_heads=2, or "
    "a list of critics."
)
"""What is said where a critic has a single head."""


def no_team_value(rule: ValueLearning) -> str:
    """Return what is said where a rule asks for the team's value and the agents are independent."""
    return (
        f"{type(rule).__name__} asks here for the team's value of joint actions, and independent agents have none; "
        "use another decomposition, such as centralized."
    )


def no_local_value(rule: ValueLearning) -> str:
    """Return what is said where a rule fits agents' values and the critic has the team's alone."""
    return (
        f"{type(rule).__name__} fits each agent's own value, and a critic of the team alone (centralized, graph) has "
        "none; use IQL, or another decomposition."
    )


class ValueLearning(NamedSettings, ABC):
    """Base class of the rules.

    Attributes:
        needs_actor: whether :meth:`next_value` asks the policy.
        needs_value: whether the loss must own a state-value network.
        needs_target_value: whether the state-value network has a target network.
        needs_local_value: whether it fits each agent's own value, which a critic of the team alone does not have.
        needs_team_value: whether it asks for the team's value, which independent agents do not have.
        needs_next_action: whether the dataset's next action is read.
        needs_behaviour: whether :meth:`next_value` asks the model of the data's actions.
        needs_log_prob: whether it asks the policy for log-probabilities, which a deterministic one does not have.
        metrics: names of the metrics that the rule adds: ``"critic_penalty"`` where it has one.
    """

    needs_actor: ClassVar[bool] = False
    needs_value: ClassVar[bool] = False
    needs_target_value: ClassVar[bool] = False
    needs_local_value: ClassVar[bool] = False
    needs_team_value: ClassVar[bool] = False
    needs_next_action: ClassVar[bool] = False
    needs_behaviour: ClassVar[bool] = False
    needs_log_prob: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if name is not None:
            register(cls, name, VALUE_LEARNINGS)

    def coefficients(self) -> dict[str, float]:
        """Return the scalars that the loss registers as schedulable buffers, by the names of the rule's attributes.

        Read them as ``batch.coefficient(name)``: the attribute stays what it was, and is the first member's in a
        population.
        """
        return {}

    def check_behaviour(self, model: TensorDictModuleBase) -> None:
        """Refuse a model of the data's actions of another kind than the rule asks, when the loss is made."""
        return

    @abstractmethod
    def next_value(self, following: Following) -> Tensor:
        """Return the value ``[*B, k, 1]`` of the next state; ``k`` is 1 for a team, ``n`` for independent agents."""

    def reweighted(self, batch: Batch, next_value: Tensor) -> Tensor:
        """Return the next values ``[*B, k, 1]`` of a batch as the target takes them: by default, as they are."""
        return next_value

    def row_mask(self, batch: Batch) -> Tensor | None:
        """Return ``[*B]``, false where the rule cannot form a target, or None."""
        return None

    def critic_penalty(self, batch: Batch) -> Tensor | None:
        """Return what is added to the critic's term, ``[*B, k]`` or ``[*B, n]``, or None."""
        return None

    def value_elements(self, batch: Batch) -> Tensor:
        """Return the state-value network's term, ``[*B, k]`` or ``[*B, n]``, where the rule needs one."""
        raise NotImplementedError(f"{type(self).__name__} has needs_value, and must have value_elements.")


@dataclass(frozen=True)
@checked
class TD(ValueLearning, name="td"):
    r"""Bootstrap at the policy's action: :math:`\min_k \bar Q^k_{tot}(s', \pi(o'))` (eq. 2).

    With ``noise``, at an action nearby, as TD3 does (Fujimoto et al. 2018):
    :math:`\pi(o') + \mathrm{clip}(\epsilon, -c, c)`, :math:`\epsilon \sim N(0, \sigma^2)`, clipped to the bounds. Only
    continuous actions have such neighbours; discrete ones stay as they are.

    Args:
        noise: :math:`\sigma`, in halves of the action range (TD3: 0.2).
        noise_clip: :math:`c`, in halves of the action range.
        sample: take an action that the policy draws in the place of its mode.
        min_weight: :math:`\lambda` in :math:`\lambda \min_k Q^k + (1 - \lambda) \max_k Q^k`: 1, the minimum, or with
            two heads 0.5, their mean.
        replaced: which agents' recorded next actions the policy's take the place of in a team's target (partial action
            replacement): ``"all"``; ``"one"``, the mean over the agents of the values with this one's replaced, so
            that no joint action is asked for that is more than one agent away from a recorded one; or ``"weighted"``,
            the mean over :math:`m = 1, \ldots, n` of the value with those of :math:`m` agents, drawn anew at every
            row, replaced, each weighed by the inverse standard deviation of the heads there. Agents that are not there
            count in neither. A row without a next action counts only if it terminated, as in :class:`SARSA`.

    Raises:
        ValueError: where agents are independent, for ``replaced`` other than ``"all"``; where the critic has one head,
            for ``"weighted"``.
    """

    noise: Annotated[float, NON_NEGATIVE] = 0.0
    noise_clip: Annotated[float, NON_NEGATIVE, ReadWith("noise", above=0)] = 0.5
    sample: bool = False
    min_weight: Annotated[float, UNIT] = 1.0
    replaced: Literal["all", "one", "weighted"] = "all"
    needs_actor: ClassVar[bool] = True

    @property
    def needs_next_action(self) -> bool:
        """Whether others' recorded next actions are read."""
        return self.replaced != "all"

    @property
    def needs_team_value(self) -> bool:
        """Whether the target asks for values of joint actions that mix recorded ones and the policy's."""
        return self.replaced != "all"

    def next_value(self, following: Following) -> Tensor:
        """Evaluate the target critic at the policy's action."""
        return soft_clipped(self._replaced(following, self._next_action(following)), self.min_weight)

    def row_mask(self, batch: Batch) -> Tensor | None:
        """Leave out rows whose next action is needed and was not recorded."""
        return _with_next_action(batch) if self.needs_next_action else None

    def _next_action(self, following: Following) -> Tensor:
        """Return the policy's action there, ``[*B, n, a]``."""
        policy = following.policy
        action = sampled_action(policy, rule=type(self).__name__) if self.sample else mode_of(policy)
        if self.noise and not is_discrete(policy):
            low, high = bounds_of(policy, type(self).__name__)
            step = (self.noise * normal_like(action)).clamp(-self.noise_clip, self.noise_clip)
            action = (action + step * (high - low) / 2).clamp(low, high)
        return action

    def _replaced(self, following: Following, action: Tensor) -> Tensor:
        """Return the value where this action takes the place of the recorded one of some agents, ``[*B, k, H]``."""
        if self.replaced == "all":
            return following.q(action, target=True).total
        if is_discrete(following.policy):
            chances = following.policy.probs
            codes = action.ndim == chances.ndim  # of a policy that draws one-hot actions
            action = action.to(chances.dtype) if codes else one_hot(action, chances.shape[-1], chances.dtype)
        recorded, alive = following.action_like(action), following.alive
        if self.replaced == "one":
            values = following.candidates(action.unsqueeze(-3), team=True, target=True)  # [*B, 1, n, H]
            if alive is None:
                return values.mean(-2)
            counted = (alive | ~alive.any(-1, keepdim=True)).unsqueeze(-2).unsqueeze(-1)  # [*B, 1, n, 1]
            return torch.where(counted, values, torch.zeros_like(values)).sum(-2) / counted.sum(-2)
        return self._weighted(following, action, recorded)

    def _weighted(self, following: Following, action: Tensor, recorded: Tensor) -> Tensor:
        """Return the mean over numbers of agents with this action, the certain ones weighing more, ``[*B, 1, H]``."""
        alive, n = following.alive, action.shape[-2]
        place, numbers = uniform_like(action[..., 0].detach()), torch.arange(1, n + 1, device=action.device)
        counted = torch.ones_like(place, dtype=torch.bool)  # [*B, m]
        if alive is not None:  # those that are not there come last, and their numbers do not count
            place, living = torch.where(alive, place, place + 1), alive.sum(-1, keepdim=True)
            counted = numbers <= torch.where(living > 0, living, n)
        order = place.argsort(-1).argsort(-1)  # [*B, n], each agent's place
        first = order.unsqueeze(-2) < numbers.unsqueeze(-1)  # [*B, m, n]
        joint = torch.where(first.unsqueeze(-1), action.unsqueeze(-3), recorded.unsqueeze(-3))
        values = following.joint_candidates(joint, target=True)  # [*B, m, 1, H]
        if values.shape[-1] < 2:
            raise ValueError(ONE_HEAD)
        counted = counted.unsqueeze(-1).unsqueeze(-1)  # [*B, m] -> [*B, m, 1, 1]
        spread = values.std(-1, keepdim=True) * counted
        mean = spread.sum(-3, keepdim=True) / counted.sum(-3, keepdim=True)
        certain = (spread + _EPSILON * (1 + mean)).reciprocal() * counted
        return (certain * values).sum(-3) / certain.sum(-3)


@dataclass(frozen=True)
class SARSA(ValueLearning, name="sarsa"):
    r"""Bootstrap at the dataset's next action: :math:`\min_k \bar Q^k_{tot}(s', u')` (eq. 8).

    A row whose next action was never recorded (``("collector", "has_next_action")`` false) counts only if it
    terminated.
    """

    needs_next_action: ClassVar[bool] = True

    def next_value(self, following: Following) -> Tensor:
        """Evaluate the target critic at the recorded next action."""
        return following.q(following.action, target=True).total_min

    def row_mask(self, batch: Batch) -> Tensor | None:
        """Leave out rows without a successor's action."""
        return _with_next_action(batch)


def _with_next_action(batch: Batch) -> Tensor | None:
    known = batch.has_next_action
    return None if known is None else known | batch.terminated()


@dataclass(frozen=True)
@checked
class IQL(ValueLearning, name="iql"):
    r"""Implicit Q-learning: bootstrap at :math:`V_{tot}(s')` (eq. 9), an expectile of :math:`Q_{tot}(s, u)` (eq. 10).

    :math:`V_{tot} = f(V_1, \ldots, V_n; s)` goes through the target mixer, through which its regression target
    :math:`\min_k \bar Q^k_{tot}(s, u)` came; the mixer gets no gradient from it.

    Args:
        expectile: :math:`\tau` in (0, 1); above 0.5 it leans to the better actions of the data.
    """

    expectile: Annotated[float, OPEN_UNIT] = 0.9
    needs_value: ClassVar[bool] = True

    def coefficients(self) -> dict[str, float]:
        """Return the expectile."""
        return {"expectile": self.expectile}

    def next_value(self, following: Following) -> Tensor:
        """Evaluate the state-value network and mix it."""
        return following.state.total

    def value_elements(self, batch: Batch) -> Tensor:
        """Return the team's (or each independent agent's) expectile regression, ``[*B, k]``."""
        difference = batch.target.total_min - batch.state.total
        return expectile_weighted_square(difference, batch.coefficient("expectile")).squeeze(-1)
