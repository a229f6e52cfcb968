"""Hand-written teams for the tasks with goals: to the goals, or to places of their own."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACHIEVED, ACTION, ACTION_MASK, GOAL, OBSERVATION
from torchrl_marl_offline.core.ranges import SEED, UNIT
from torchrl_marl_offline.envs.base import STEP_COUNT, entry_read
from torchrl_marl_offline.envs.goal_tasks import GridGoals, goal_task
from torchrl_marl_offline.envs.grid_navigation import MOVES, comes_later
from torchrl_marl_offline.envs.scripted import Chance, kept, steps_taken

GoalKind = Literal["goal", "elsewhere", "random"]


class GoalController(TensorDictModuleBase):
    """Walks or steers to places in ``games/grid_goals`` and ``mpe/spread_goals``.

    - ``"goal"``: each agent to its goal;
    - ``"elsewhere"``: each agent to a place of its own, uniform over the board or over [-1, 1]², drawn where
      ``"step_count"`` is 0, whatever the goals are: data in which goals are hardly ever reached and other places are;
    - ``"random"``: uniform over the (legal) actions.

    On the grid a step is taken along the axis with more left to go; of agents that aim at the same cell, all but the
    first take a random legal action. In the plane the action is ``4 (target - p) - 1.5 v``, clipped.

    Args:
        env: the environment that it is to play in.
        kind: one of the above.
        noise: probability of a random legal action instead; in the plane, standard deviation of Gaussian noise on the
            action.
        seed: of the chance; ``None`` takes torch's global generator.

    Raises:
        ValueError: the environment has no goals.

    Examples:
        >>> from torchrl_marl_offline.envs import GoalController, make_env
        >>> env = make_env("games/grid_goals", num_envs=50, seed=0)
        >>> play = env.rollout(50, GoalController(env, seed=0), break_when_any_done=False)
        >>> bool(play["next", "success"].any(1).all())
        True
    """

    @checked
    def __init__(
        self,
        env: EnvBase,
        kind: GoalKind = "goal",
        *,
        noise: Annotated[float, UNIT] = 0.0,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        game = goal_task(env)
        self.in_keys, self.out_keys = [OBSERVATION, GOAL, ACHIEVED, STEP_COUNT], [ACTION]
        super().__init__()
        self.kind, self.noise = kind, noise
        self.side = game.side if isinstance(game, GridGoals) else None
        self._chance = Chance(seed)
        self._places: Tensor | None = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``.

        Raises:
            KeyError: there is no ``"step_count"``, for ``"elsewhere"``.
        """
        at = entry_read(self, tensordict, ACHIEVED, 2)  # [*B, n, 2]
        generator = self._chance(at.device)
        target = self._elsewhere(tensordict, generator) if self.kind == "elsewhere" else tensordict.get(GOAL)
        if self.side is None:
            return tensordict.set(ACTION, self._steer(tensordict.get(OBSERVATION)[..., :2], at, target, generator))
        return tensordict.set(ACTION, self._walk(tensordict.get(ACTION_MASK), at, target))

    def _elsewhere(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        step, at = steps_taken(tensordict, type(self).__name__), tensordict.get(ACHIEVED)
        drawn = torch.rand(at.shape, device=at.device, generator=generator)
        drawn = 2 * drawn - 1 if self.side is None else (drawn * self.side).floor() + 1
        self._places = kept(self._places, drawn, step.unsqueeze(-1) == 0)
        return self._places

    def _steer(self, velocity: Tensor, at: Tensor, target: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.kind == "random":
            return torch.empty_like(at).uniform_(-1, 1, generator=generator)
        action = (4.0 * (target - at) - 1.5 * velocity).clamp(-1, 1)
        if self.noise:
            action = action + self.noise * torch.empty_like(action).normal_(generator=generator)
        return action.clamp(-1, 1)

    def _walk(self, mask: Tensor, at: Tensor, target: Tensor) -> Tensor:
        random = self._chance.legal(mask)
        if self.kind == "random":
            return random
        away = target - at
        vertical, horizontal = torch.where(away[..., 0] < 0, 1, 2), torch.where(away[..., 1] < 0, 3, 4)
        action = torch.where(away[..., 0].abs() >= away[..., 1].abs(), vertical, horizontal)
        action = torch.where((away == 0).all(-1), 0, action)
        aim = at + torch.tensor(MOVES, device=at.device)[action]
        return self._chance.explored(torch.where(comes_later(aim), random, action), random, self.noise)
