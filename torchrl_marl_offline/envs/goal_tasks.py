"""Tasks in which every agent is given a goal: cells of a grid, places in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.goals import AtGoals, Payment
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, FEW, POSITIVE, REAL, SEED, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, arena, board, discs, on_board
from torchrl_marl_offline.envs.grid_navigation import MOVES, SIDES, legal_moves, moved, own_first
from torchrl_marl_offline.envs.mpe import SENSITIVITY
from torchrl_marl_offline.envs.mpe_physics import contact_forces, integrate, others_index

Goals = Sequence[Sequence[Sequence[float]]]


class GoalTask(TeamEnv):
    """A task whose goals are drawn at every start, or given.

    Each agent's goal stands at ``("agents", "goal")`` ``[B, n, g]``, at the end of its observation, and with those of
    the others at the end of the state; what it has achieved is at ``("agents", "achieved")``, in the same units.

    Attributes:
        outcome: reward and success by what was achieved and the goals, see :class:`AtGoals`.
        goals: the goals that were given, ``[G, n, g]``, of which environment ``i`` has number ``i % G``; or ``None``.
    """

    outcome: AtGoals
    goals: Tensor | None
    _made_with: dict[str, Any]

    def given(self, goals: Goals | Tensor) -> GoalTask:
        """Return the same task, an environment for each of these goals, ``[G, n, g]``.

        Raises:
            ValueError: goals of another shape, or that the task cannot have.
        """
        listed = goals.tolist() if isinstance(goals, Tensor) else goals
        self._check_goals(listed, (self.task_spec.n_agents, self.goal_size))
        return type(self)(num_envs=len(listed), goals=listed, **self._made_with)

    def _check_goals(self, goals: Goals | Tensor | None, shape: tuple[int, int]) -> Tensor | None:
        if goals is None:
            return None
        try:
            found = torch.as_tensor(goals, dtype=torch.float32)
        except (TypeError, ValueError):
            found = torch.empty(0)
        if found.shape[1:] != shape or not len(found):
            raise ValueError(f"goals must be numbers [goals, {shape[0]}, {shape[1]}], each agent's, got {goals!r:.60}.")
        return found

    def _given_goals(self, rows: Tensor | None) -> Tensor:
        index = torch.arange(self.num_envs, device=self.device) if rows is None else rows
        return self.goals[index % len(self.goals)]

    def _place_of(self, achieved: Tensor) -> Tensor:
        """Return the units of goals for the game's positions ``[B, n, 2]``."""
        return achieved.to(self.float_dtype)

    def _outcome(self, game: Game) -> Outcome:
        reward, success = self.outcome(self._place_of(game["position"]), self._place_of(game["goal"]))
        return Outcome(game, reward.contiguous(), success, success)


class GridGoals(GoalTask):
    """Each of ``agents`` agents must be on its own cell, all at the same time: ``games/grid_goals``.

    Board and moves are those of ``games/grid_navigation``. When every agent is on its goal all get 1 and the episode
    terminates, with success; every other reward is 0. With ``pays="own"`` an agent gets 1 in every step in which it is
    on its goal. Truncation after 50 steps. Start: goals on distinct cells, agents on distinct other ones.

    Goal of an agent, 2: (row, column) + 1 of its cell; achieved: the same of where it is. Observation, 2 n + 2:
    the same of itself, of the other agents in order, and its goal. State, 4 n: all agents, all goals.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: seed of the starts.
        max_steps: time limit.
        agents: number of agents ``n``, 2 to 5.
        pays: ``"team"`` or ``"own"``.
        goals: goals ``[G, n, 2]`` instead of drawn ones; environment ``i`` always has number ``i % G``.

    Attributes:
        outcome: reward and success as a function of what was achieved and the goals.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 50,
        agents: Annotated[int, FEW] = 2,
        pays: Payment = "team",
        goals: Annotated[Goals | Tensor | None, REAL] = None,
    ) -> None:
        if agents not in SIDES:
            raise ValueError(f"agents must be one of {sorted(SIDES)} in games/grid_goals, got {agents!r}.")
        self.side, self.outcome = SIDES[agents], AtGoals(pays=pays)
        self._made_with = {"device": device, "max_steps": max_steps, "agents": agents, "pays": pays}
        found = self._check_goals(goals, (agents, 2))
        if found is not None:
            self._check_cells(found)
        spec = TaskSpec(
            n_agents=agents,
            observation_size=2 * agents + 2,
            state_size=4 * agents,
            action_size=len(MOVES),
            discrete=True,
            has_action_mask=True,
            task="games/grid_goals",
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
        self.goals = None if found is None else found.to(self.device)
        self._moves = torch.tensor(MOVES, device=self.device)
        self._order = torch.tensor(own_first(agents), device=self.device).flatten()

    def _check_cells(self, goals: Tensor) -> None:
        cells = goals.long()
        if (cells != goals).any() or not ((cells >= 1) & (cells <= self.side)).all():
            raise ValueError(f"goals of games/grid_goals are cells, whole numbers from 1 to {self.side}.")
        number = (cells[..., 0] * (self.side + 1) + cells[..., 1]).sort(-1).values
        if (number.diff(dim=-1) == 0).any():
            raise ValueError("Two agents have the same cell as their goal, where only one can be; give distinct ones.")

    def set_state(self, agents: Tensor, goals: Tensor) -> TensorDict:
        """Put agents and goals on given cells, int64 ``[B, n, 2]`` from 0, and return the first observation."""
        size, last = (self.task_spec.n_agents, 2), self.side - 1
        position, goal = self._given("agents", agents, size, high=last), self._given("goals", goals, size, high=last)
        return self._set_game(position=position, goal=goal)

    def _start(self, rows: Tensor | None) -> Game:
        n, count = self.task_spec.n_agents, self.side**2
        preference = self.random.uniform(count, rows=rows)
        if self.goals is None:
            number = preference.topk(2 * n).indices
            goal, position = number.split(n, -1)
        else:
            cells = self._given_goals(rows).long() - 1
            goal = cells[..., 0] * self.side + cells[..., 1]
            position = preference.scatter(-1, goal, -1.0).topk(n).indices
        return {name: self._cells_of(each) for name, each in (("position", position), ("goal", goal))}

    def _cells_of(self, number: Tensor) -> Tensor:
        return torch.stack([number // self.side, number % self.side], -1)

    def _place_of(self, achieved: Tensor) -> Tensor:
        return achieved.to(self.float_dtype) + 1

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        return self._outcome(game | {"position": moved(game["position"], self._moves[action], self.side)})

    def _view(self, game: Game) -> View:
        achieved, goal = self._place_of(game["position"]), self._place_of(game["goal"])
        seen = achieved.index_select(1, self._order).view(len(achieved), self.task_spec.n_agents, -1)
        state = torch.cat([achieved, goal], 1).flatten(1)
        legal = legal_moves(game["position"], self.side)
        return View(torch.cat([seen, goal], -1), state, legal, goal=goal, achieved=achieved)

    def _scene(self, index: int) -> Scene:
        agents, goals = (on_board(self._game[key][index]) for key in ("position", "goal"))
        shapes = discs(goals, 0.15, AGENT_COLOURS) + discs(agents, 0.35, AGENT_COLOURS, alpha=0.5)
        return board(self.side, self.side, shapes)


class SpreadGoals(GoalTask):
    """Each of three agents must come to its own place, all at the same time: ``mpe/spread_goals``.

    The physics of ``mpe/simple_spread``: agents have radius 0.15 and collide. When every agent is within ``within`` of
    its goal all get 1 and the episode terminates, with success; every other reward is 0. With ``pays="own"`` an agent
    gets 1 in every step in which it is at its goal. Truncation after 50 steps. Agents start uniformly in [-1, 1]² and
    at rest; goals are uniform there too, at least 0.5 apart from each other (of 32 draws the first that is, or the
    last one).

    Goal of an agent, 2: a place; achieved: where it is. Observation, 10: own velocity, own position, other agents
    relative to oneself in their order (2 × 2), own goal. State, 18: velocities (3 × 2), positions (3 × 2), goals (3 ×
    2). Action: u in [-1, 1]²; components outside are clipped.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: seed of the starts.
        max_steps: time limit.
        within: distance up to which an agent is at its goal.
        pays: ``"team"`` or ``"own"``.
        goals: goals ``[G, 3, 2]`` instead of drawn ones; environment ``i`` always has number ``i % G``.

    Attributes:
        outcome: reward and success as a function of what was achieved and the goals.
    """

    n_agents = 3
    radius = 0.15

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 50,
        within: Annotated[float, POSITIVE] = 0.15,
        pays: Payment = "team",
        goals: Annotated[Goals | Tensor | None, REAL] = None,
    ) -> None:
        self.outcome = AtGoals(within=within, pays=pays)
        self._made_with = {"device": device, "max_steps": max_steps, "within": within, "pays": pays}
        found = self._check_goals(goals, (self.n_agents, 2))
        spec = TaskSpec(
            n_agents=self.n_agents, observation_size=10, state_size=18, action_size=2, task="mpe/spread_goals"
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
        self.goals = None if found is None else found.to(self.device)
        self._others = others_index(self.n_agents, self.device)

    def set_state(self, position: Tensor, velocity: Tensor, goal: Tensor) -> TensorDict:
        """Put agents and goals at given places, each ``[B, 3, 2]``, and return the first observation."""
        found = {"position": position, "velocity": velocity, "goal": goal}
        return self._set_game(**{name: self._given(name, each, (self.n_agents, 2)) for name, each in found.items()})

    def _start(self, rows: Tensor | None) -> Game:
        def uniform(count: int, stream: int) -> Tensor:
            drawn = self.random.uniform(2 * count * self.n_agents, rows=rows, stream=stream) * 2 - 1
            return drawn.to(self.float_dtype).view(-1, count, self.n_agents, 2)

        position = uniform(1, 0).squeeze(1)
        goal = self._given_goals(rows) if self.goals is not None else _first_apart(uniform(32, 1))
        return {"position": position, "velocity": torch.zeros_like(position), "goal": goal}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        position = game["position"]
        force = SENSITIVITY * action.clamp(-1, 1) + contact_forces(position, position, 2 * self.radius)
        position, velocity = integrate(position, game["velocity"], force, integration="velocity_first")
        return self._outcome(game | {"position": position, "velocity": velocity})

    def _view(self, game: Game) -> View:
        position, velocity, goal = game["position"], game["velocity"], game["goal"]
        to_agents = (position.unsqueeze(-3) - position.unsqueeze(-2)).flatten(-3, -2)  # [B, 9, 2]
        others = to_agents.index_select(-2, self._others).view(*position.shape[:-1], 4)
        observation = torch.cat([velocity, position, others, goal], -1)
        state = torch.cat([velocity, position, goal], 1).flatten(1)
        return View(observation, state, goal=goal, achieved=position.clone())

    def _scene(self, index: int) -> Scene:
        position, goal = self._game["position"][index], self._game["goal"][index]
        shapes = discs(goal, 0.05, AGENT_COLOURS) + discs(position, self.radius, AGENT_COLOURS, alpha=0.5)
        return arena(position, shapes)


def _first_apart(goals: Tensor) -> Tensor:
    """Return the first of the draws ``[B, draws, 3, 2]`` whose places are 0.5 apart, or the last one."""
    apart = torch.linalg.vector_norm(goals.unsqueeze(-2) - goals.unsqueeze(-3), dim=-1)  # [B, draws, 3, 3]
    apart = apart + torch.eye(goals.shape[-2], device=goals.device)
    good = (apart >= 0.5).flatten(-2).all(-1)
    good[:, -1] = True
    chosen = good.to(torch.uint8).argmax(-1)[:, None, None, None]
    return goals.gather(1, chosen.expand(-1, 1, *goals.shape[2:])).squeeze(1)


def goal_task(env: EnvBase) -> GoalTask:
    """Return the task with goals that an environment is.

    Raises:
        ValueError: it has none.
    """
    game = getattr(env, "base_env", env)
    if isinstance(game, GoalTask):
        return game
    raise ValueError(
        f"{getattr(getattr(game, 'task_spec', None), 'task', env)} has no goals; see docs/guides/goals.md."
    )
