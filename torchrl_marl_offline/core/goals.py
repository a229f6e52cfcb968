"""When goals are reached, and what that pays: a function of what was achieved and of what was to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import NON_NEGATIVE

if TYPE_CHECKING:
    from torch import Tensor

Payment = Literal["team", "own"]


class GoalOutcome(NamedTuple):
    """What it means to have achieved something while something was the goal.

    Attributes:
        reward: of each agent, ``[*B, n]``.
        success: whether the team's goal is reached, which ends the episode, ``[*B]`` bool.
    """

    reward: Tensor
    success: Tensor


GoalFunction = Callable[["Tensor", "Tensor"], GoalOutcome]
"""Maps what was achieved and the goals, ``[*B, n, g]`` each, to their outcome."""


@dataclass(frozen=True)
@checked
class AtGoals:
    """Every agent has a goal of its own, and all are to be at theirs at the same time.

    Attributes:
        within: Euclidean distance up to which an agent is at its goal; 0: exactly there.
        pays: ``"team"``: 1 to all agents when all are at their goals; ``"own"``: 1 to each agent that is at its goal.
    """

    within: Annotated[float, NON_NEGATIVE] = 0.0
    pays: Payment = "team"

    def __call__(self, achieved: Tensor, goal: Tensor) -> GoalOutcome:
        """Return the outcome of ``[*B, n, g]`` each."""
        apart = achieved - goal
        apart = apart if apart.is_floating_point() else apart.double()  # cells may be counted
        there = torch.linalg.vector_norm(apart, dim=-1) <= self.within  # [*B, n]
        success = there.all(-1)
        paid = there if self.pays == "own" else success.unsqueeze(-1).expand_as(there)
        return GoalOutcome(paid.to(achieved.dtype), success)
