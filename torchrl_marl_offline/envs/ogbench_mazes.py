"""OGBench's ant mazes, the ant's joints shared out among agents: ``ogbench/antmaze-medium-2x4``."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.goals import AtGoals
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, REAL, SEED, SIZE, THREADS
from torchrl_marl_offline.core.split_ant import LEGS, MAZES, AntSight, SplitAnt, split_maze_name
from torchrl_marl_offline.envs.base import Game, Outcome, View
from torchrl_marl_offline.envs.goal_tasks import Goals, GoalTask
from torchrl_marl_offline.envs.mamujoco.physics import ThreadedMujoco
from torchrl_marl_offline.envs.mamujoco.scenarios import normal

if TYPE_CHECKING:
    from gymnasium.envs.mujoco import MujocoEnv

WITHIN = 0.5
"""Distance up to which the ant is at its goal, as in OGBench."""
_NOISE = 0.1  # of positions and velocities at a start
_OFF_CENTRE = 1.0  # of starts and goals in their cells, in each direction


class AntMaze(GoalTask):
    """An ant walks through a maze to a goal, its legs shared out among agents: ``ogbench/antmaze-SIZE-PARTITION``.

    Mazes, ant, physics, tasks and starts are those of OGBench's ``antmaze-SIZE-v0`` (Park et al., 2025), whose package
    gives the model: from the same state the same actions give the same states. SIZE is ``medium``, ``large`` or
    ``giant``; PARTITION is named as in MA-MuJoCo: ``2x4`` and ``2x4d`` for two agents with two neighbouring or two
    diagonal legs, ``4x2`` for four with a leg each.

    When the torso is within 0.5 of the goal all agents get 1 and the episode terminates, with success; every other
    reward is 0. Truncation after 1,000 steps. Start: one of the five tasks of OGBench, each with a cell to start from
    and a cell to go to, uniformly within 1 of their centres in both directions; joints and velocities have noise .1.

    Goal of an agent, 2: the place, the same for all; achieved: where the torso is. Observation, 15 + twice the agent's
    joints: positions of torso (7) and own joints, velocities of torso (6) and own joints, goal; with ``sight="all"``
    of all joints, 31. State, 29 + 2 n: all positions and velocities, all goals. Action: torques of the own motors in
    [-1, 1].

    Args:
        num_envs: number of environments.
        device: the CPU, on which MuJoCo runs.
        seed: seed of the starts.
        name: of the task, such as ``"antmaze-medium-2x4"``.
        max_steps: time limit.
        sight: ``"own"``: torso and own joints; ``"all"``.
        goals: goals ``[G, n, 2]``, the same of all agents, instead of drawn ones; environment ``i`` always has number
            ``i % G``. One in the cell of a task's goal has that task's start; others start as any of the tasks.
        threads: that step; by default torch's number.

    Attributes:
        task_goals: centres of the goals' cells of OGBench's five tasks, ``[5, n, 2]``.
        task_starts: centres of their starts' cells, ``[5, 2]``.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        name: str = "antmaze-medium-2x4",
        max_steps: Annotated[int, COUNT] = 1000,
        sight: AntSight = "own",
        goals: Annotated[Goals | Tensor | None, REAL] = None,
        threads: Annotated[int | None, THREADS] = None,
    ) -> None:
        size, partition = split_maze_name(name)
        device = torch.device(device)
        self.outcome, self.split = AtGoals(within=WITHIN), SplitAnt(partition, sight)
        self._made_with = {"device": device, "max_steps": max_steps, "name": name, "sight": sight, "threads": threads}
        n = self.split.n_agents
        found = self._check_goals(goals, (n, 2))
        if found is not None and (found != found[:, :1]).any():
            raise ValueError("The agents of an ant have one place to go to together; give all of them the same goal.")
        ant = _packaged(size)
        self._physics = ThreadedMujoco(
            ant.model, frame_skip=ant.frame_skip, fields=(), num_envs=num_envs, device=device, threads=threads
        )
        spec = TaskSpec(
            n_agents=n,
            observation_size=self.split.observation_size,
            state_size=29 + 2 * n,
            action_size=self.split.action_size,
            task=f"ogbench/{name}",
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=max_steps,
            has_success=True,
            goal_size=2,
        )
        at = {"dtype": torch.float64, "device": device}
        self._rest = torch.tensor(ant.init_qpos, **at), torch.tensor(ant.init_qvel, **at)
        places = [(task["init_xy"], task["goal_xy"]) for task in ant.task_infos]
        self.task_starts, ends = torch.tensor(places, **at).unbind(1)
        self.task_goals = ends.to(self.float_dtype).unsqueeze(1).repeat(1, n, 1)
        self.goals = None if found is None else found.to(device)

    def set_state(self, qpos: Tensor, qvel: Tensor, goal: Tensor) -> TensorDict:
        """Put the ant at positions ``[B, 15]`` and velocities ``[B, 14]``, with goals ``[B, 2]``; return that view."""
        qpos, qvel = (self._given(*each).double() for each in (("qpos", qpos, (15,)), ("qvel", qvel, (14,))))
        return self._set_game(**self._physics.start(qpos, qvel), goal=self._given("goal", goal, (2,)).double())

    def _start(self, rows: Tensor | None) -> Game:
        sizes = (len(self._rest[0]), len(self._rest[1]), 2, 2, 1)
        position, velocity, from_centre, beside, which = self.random.uniform(sum(sizes), rows=rows).split(sizes, -1)
        task = (which.squeeze(-1) * len(self.task_starts)).long()
        if self.goals is None:
            goal = self.task_goals[task, 0].double() + _OFF_CENTRE * (2 * beside - 1)
        else:
            goal = self._given_goals(rows)[:, 0].double()
            apart = (goal.unsqueeze(1) - self.task_goals[:, 0].double()).abs().amax(-1)  # [R, 5]
            nearest = apart.min(-1)
            task = torch.where(nearest.values <= _OFF_CENTRE, nearest.indices, task)
        qpos = self._rest[0] + _NOISE * (2 * position - 1)
        qpos[:, :2] = self.task_starts[task] + _OFF_CENTRE * (2 * from_centre - 1)
        return self._physics.start(qpos, self._rest[1] + _NOISE * normal(velocity)) | {"goal": goal}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        control = self.split.controls(action.clamp(-1, 1)).to(self._physics.dtype)
        after = self._physics.step(game, control) | {"goal": game["goal"]}
        achieved, goal = self._places(after)
        reward, success = self.outcome(achieved, goal)
        return Outcome(after, reward.to(self.float_dtype).contiguous(), success, success)

    def _places(self, game: Game) -> tuple[Tensor, Tensor]:
        """Return what every agent achieved and its goal, ``[B, n, 2]`` each."""
        each = (game["qpos"][:, :2], game["goal"])
        achieved, goal = (place.unsqueeze(1).repeat(1, self.split.n_agents, 1) for place in each)
        return achieved.to(self.float_dtype), goal.to(self.float_dtype)

    def _view(self, game: Game) -> View:
        achieved, goal = self._places(game)
        body = torch.cat([game["qpos"], game["qvel"]], -1).to(self.float_dtype)
        observation, state = self.split.seen(body, goal)
        return View(observation, state, goal=goal, achieved=achieved)


@lru_cache(maxsize=4)
def _packaged(size: str) -> MujocoEnv:
    """Return OGBench's environment of a maze, of which model, rest and tasks are read; it writes a file for each."""
    from ogbench.locomaze.maze import make_maze_env

    return make_maze_env("ant", "maze", maze_type=size)


def maze_names() -> dict[str, str]:
    """Return what :func:`~torchrl_marl_offline.make_env` finds below ``ogbench/``."""
    names = [f"antmaze-{size}-{partition}" for size in MAZES for partition in LEGS]
    return dict.fromkeys(names, "ogbench_mazes:AntMaze")
