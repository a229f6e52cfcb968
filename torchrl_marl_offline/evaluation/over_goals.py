"""Evaluation over several goals: how well each one is reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.exploration import Mode
from torchrl_marl_offline.core.ranges import OPEN_UNIT, REAL, SEED, SIZE
from torchrl_marl_offline.envs.goal_tasks import Goals, goal_task
from torchrl_marl_offline.evaluation.in_environments import Policy, evaluate
from torchrl_marl_offline.evaluation.statistics import Interval, mean_confidence_interval

if TYPE_CHECKING:
    from torchrl.envs import EnvBase


@dataclass(frozen=True)
class GoalEvaluation:
    """What :func:`evaluate_goals` measured over ``G`` goals, ``E`` episodes each.

    Attributes:
        goals: ``[G, n, g]``.
        success: ``[G, E]`` bool, whether the goal was reached.
        returns: ``[G, E]``.
        lengths: ``[G, E]`` steps.
    """

    goals: Tensor
    success: Tensor
    returns: Tensor
    lengths: Tensor

    @property
    def by_goal(self) -> Tensor:
        """Share of the episodes in which each goal was reached, ``[G]`` float64."""
        return self.success.double().mean(1)

    @property
    def mean(self) -> float:
        """Mean over the goals."""
        return self.by_goal.mean().item()

    @property
    def worst(self) -> float:
        """That of the goal that is reached least."""
        return self.by_goal.min().item()

    @checked
    def confidence_interval(self, level: Annotated[float, OPEN_UNIT] = 0.95) -> Interval:
        """Student's t interval of the mean, across goals; needs two of them."""
        return mean_confidence_interval(self.by_goal, level)


@checked
def evaluate_goals(
    policy: Policy,
    env: EnvBase,
    *,
    goals: Annotated[Goals | Tensor, REAL],
    episodes: Annotated[int, SIZE],
    seed: Annotated[int, SEED],
    mode: Mode = "mode",
) -> GoalEvaluation:
    """Run ``policy`` for ``episodes`` episodes with each of several goals.

    Args:
        policy: as for :func:`evaluate`.
        env: a task with goals, such as ``games/grid_goals``; it is left as it is.
        goals: ``[G, n, g]``, each agent's, in the units of ``("agents", "goal")``.
        episodes: of each goal, ``E``.
        seed: of starts and sampling.
        mode: ``"mode"`` or ``"sample"``.

    Raises:
        ValueError: the environment has no goals, or cannot have these.
    """
    game = goal_task(env).given(goals)
    found = evaluate(policy, game, episodes=game.num_envs * episodes, seed=seed, mode=mode)
    success, returns, lengths = (each.view(-1, episodes) for each in (found.success, found.returns, found.lengths))
    return GoalEvaluation(game.goals, success, returns, lengths)
