"""A commons: agents harvest apples that grow back the faster the more are left, each for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.nn import functional as F
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, STATE, TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, COUNT_OR_NONE, SEED, SIZE, UNIT, Range
from torchrl_marl_offline.envs.base import STEP_COUNT, Game, Outcome, TeamEnv, View, entry_read, game_of
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, board, discs, on_board
from torchrl_marl_offline.envs.grid_navigation import MOVES, comes_later, legal_moves, moved
from torchrl_marl_offline.envs.scripted import Chance, steps_taken

CommonsKind = Literal["greedy", "restrained", "random"]

SIDE = 7
_CELLS = SIDE**2
_HARVESTERS = Range(2, 8)
_GROWTH = Range(0, 0.125)  # eight neighbours make it a certainty


class Commons(TeamEnv):
    """Agents harvest apples on a board of 7 × 7 cells, on which none grows where none is left: ``games/commons``.

    Actions: stay, north (row - 1), south, west (column - 1), east. A move off the board is masked. Moves are
    simultaneous, and of agents that aim at one cell all keep their place, as in ``games/grid_navigation``. An agent
    that stands on an apple then gets 1, alone, and the apple is gone. After that an apple grows on each empty cell
    without an agent with probability ``growth`` times the number of apples on its eight neighbours. When no apple is
    left the episode terminates; truncation after ``max_steps``. Start: each cell has an apple with probability 0.5,
    agents stand on distinct cells, and there is none under them.

    Whoever harvests fast gets more than the others; if all do so, soon nothing is left for anybody. The exact best
    return is not known; ``docs/guides/games_of_coordination.md`` has the best of a search among scripted teams.

    Observation of an agent, 2 n + 49: (row, column) + 1 of itself and of the agents after it, in a circle; 1 for each
    cell with an apple, row by row. State, 2 n + 49: the same from the first agent on.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: of starts and growth.
        max_steps: time limit.
        agents: number of agents ``n``, 2 to 8.
        growth: of an apple on an empty cell, for each apple around it.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 100,
        agents: Annotated[int, _HARVESTERS] = 3,
        growth: Annotated[float, _GROWTH] = 0.02,
    ) -> None:
        spec = TaskSpec(
            n_agents=agents,
            observation_size=2 * agents + _CELLS,
            state_size=2 * agents + _CELLS,
            action_size=len(MOVES),
            discrete=True,
            has_action_mask=True,
            task="games/commons",
        )
        self.growth = growth
        super().__init__(spec=spec, num_envs=num_envs, device=device, seed=seed, max_episode_steps=max_steps)
        place = torch.arange(agents, device=self.device)
        self._from_me = (place.unsqueeze(-1) + place) % agents  # [n, n]
        self._moves = torch.tensor(MOVES, device=self.device)
        around = torch.ones(1, 1, 3, 3, device=self.device)
        around[..., 1, 1] = 0
        self._around = around

    def set_state(self, agents: Tensor, apples: Tensor) -> TensorDict:
        """Put agents on cells, int64 ``[B, n, 2]`` from 0, and apples, bool ``[B, 7, 7]``."""
        return self._set_game(
            agents=self._given("agents", agents, (self.task_spec.n_agents, 2), high=SIDE - 1),
            apples=self._given("apples", apples, (SIDE, SIDE), high=1).bool(),
        )

    def _start(self, rows: Tensor | None) -> Game:
        drawn = self.random.uniform(2 * _CELLS, rows=rows)
        where, there = drawn.split(_CELLS, -1)
        number = where.topk(self.task_spec.n_agents).indices
        apples = (there < 0.5).scatter(-1, number, value=False)
        return {
            "agents": torch.stack([number // SIDE, number % SIDE], -1),
            "apples": apples.unflatten(-1, (SIDE, SIDE)),
        }

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        agents = moved(game["agents"], self._moves[action], SIDE)
        at = agents[..., 0] * SIDE + agents[..., 1]  # [B, n]
        apples = game["apples"].flatten(1)
        reward = apples.gather(-1, at).to(self.float_dtype)
        apples = apples.scatter(-1, at, value=False)
        drawn = self.random.uniform(_CELLS, stream=1, first=self._step_count * _CELLS)
        grows = drawn < self.growth * self.neighbours(apples.unflatten(-1, (SIDE, SIDE))).flatten(1)
        apples = apples | grows.scatter(-1, at, value=False)
        game = {"agents": agents, "apples": apples.unflatten(-1, (SIDE, SIDE))}
        return Outcome(game, reward, ~apples.any(-1))

    def neighbours(self, apples: Tensor) -> Tensor:
        """Return how many apples are on the eight cells around each, ``[B, 7, 7]``, float."""
        return F.conv2d(apples.unsqueeze(1).to(self._around.dtype), self._around, padding=1).squeeze(1)

    def _view(self, game: Game) -> View:
        apples = game["apples"].flatten(1).to(self.float_dtype)
        cells = game["agents"].to(self.float_dtype) + 1
        seen = cells[:, self._from_me].flatten(2)  # [B, n, 2 n]
        n = self.task_spec.n_agents
        observation = torch.cat([seen, apples.unsqueeze(1).expand(-1, n, -1)], -1)
        return View(observation, torch.cat([cells.flatten(1), apples], -1), legal_moves(game["agents"], SIDE))

    def _scene(self, index: int) -> Scene:
        apples = on_board(self._game["apples"][index].nonzero())
        agents = on_board(self._game["agents"][index])
        return board(SIDE, SIDE, discs(apples, 0.15, "#3a8f3a") + discs(agents, 0.35, AGENT_COLOURS, alpha=0.8))


class CommonsController(TensorDictModuleBase):
    """Harvests in ``games/commons``, by the state.

    - ``"greedy"``: always to the nearest apple;
    - ``"restrained"``: to the nearest apple with ``leave`` others on its eight neighbours, and past those with fewer,
      so that none is taken whose surroundings would hardly grow back; from ``rush`` steps before the time limit on as
      greedy;
    - ``"random"``: uniform over the legal actions.

    Of agents that aim at the same cell, all but the first take a random legal action.

    Args:
        env: the environment that it is to play in.
        kinds: one for all agents, or one for each.
        leave: apples around one that the restrained take.
        rush: steps before the end in which they take all.
        epsilon: probability with which an agent takes a uniformly random legal action instead.
        seed: of the chance; ``None`` takes torch's global generator.

    Raises:
        ValueError: the environment is another task, there is no such kind, or there are not as many as agents.
        KeyError: there is no ``"step_count"``.

    Examples:
        >>> from torchrl_marl_offline.envs import CommonsController, make_env
        >>> env = make_env("games/commons", num_envs=100, seed=0)
        >>> returns = []
        >>> for kind in ("greedy", "restrained"):
        ...     play = env.rollout(100, CommonsController(env, kind, seed=0), break_when_any_done=False)
        ...     returns.append(play["next", "agents", "reward"].sum() / play["next", "done"].sum())
        >>> bool(returns[1] > 3 * returns[0])
        True
    """

    @checked
    def __init__(
        self,
        env: EnvBase,
        kinds: CommonsKind | Sequence[CommonsKind] = "restrained",
        *,
        leave: Annotated[int, COUNT_OR_NONE] = 4,
        rush: Annotated[int, COUNT_OR_NONE] = 20,
        epsilon: Annotated[float, UNIT] = 0.0,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        game: Commons = game_of(env, Commons, "CommonsController plays in games/commons, not in")
        n = game.task_spec.n_agents
        kinds = [kinds] * n if isinstance(kinds, str) else list(kinds)
        if len(kinds) != n:
            raise ValueError(f"{len(kinds)} kinds for {n} agents; give one for each, or one for all.")
        if unknown := [kind for kind in kinds if kind not in get_args(CommonsKind)]:
            raise ValueError(f"kind must be one of {', '.join(get_args(CommonsKind))}, got {unknown[0]!r}.")
        self.in_keys, self.out_keys = [STATE, ACTION_MASK, STEP_COUNT], [ACTION]
        super().__init__()
        self.kinds, self.leave, self.epsilon = kinds, leave, epsilon
        self.rush_from = game.max_episode_steps - rush
        self._chance = Chance(seed)
        rows = torch.arange(SIDE, device=game.device)
        cells = torch.cartesian_prod(rows, rows)  # [49, 2]
        steps = (cells.unsqueeze(0) - cells.unsqueeze(1)).abs().sum(-1)
        self.register_buffer("steps", steps, persistent=False)  # [49, 49], from cell to cell
        self._neighbours, self._width = game.neighbours, game.task_spec.state_size
        for kind in ("restrained", "random"):
            chosen = torch.tensor([each == kind for each in kinds], device=game.device)
            self.register_buffer(f"is_{kind}", chosen, persistent=False)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        mask, state = tensordict.get(ACTION_MASK), entry_read(self, tensordict, STATE, self._width)
        step = steps_taken(tensordict, type(self).__name__, "the end coming")
        random = self._chance.legal(mask)
        agents, apples = state[..., :-_CELLS].unflatten(-1, (-1, 2)).long() - 1, state[..., -_CELLS:] > 0.5
        action = self._to_nearest(agents, mask, apples, apples)
        if self.is_restrained.any():
            around = self._neighbours(apples.view(-1, SIDE, SIDE)).view(apples.shape)
            taken = apples & ((around >= self.leave) | (step >= self.rush_from))
            action = torch.where(self.is_restrained, self._to_nearest(agents, mask, apples, taken), action)
        aim = agents + torch.tensor(MOVES, device=agents.device)[action]
        action = torch.where((comes_later(aim) & (action != 0)) | self.is_random, random, action)
        return tensordict.set(ACTION, self._chance.explored(action, random, self.epsilon))

    def _to_nearest(self, agents: Tensor, mask: Tensor, apples: Tensor, taken: Tensor) -> Tensor:
        """Return the moves that lead nearest to apples that are taken, bool ``[*B, 49]``, around all others."""
        far = self.steps.masked_fill(~taken.unsqueeze(-2), 2 * SIDE).amin(-1).float()  # [*B, 49], from each cell
        far = far + 2 * SIDE * (apples & ~taken)
        aim = agents.unsqueeze(-2) + torch.tensor(MOVES, device=agents.device)  # [*B, n, 5, 2]
        number = (aim[..., 0] * SIDE + aim[..., 1]).clamp(0, _CELLS - 1)
        left = far.unsqueeze(-2).expand(*number.shape[:-1], _CELLS).gather(-1, number)
        left[..., 0] -= 0.5  # stay, where no move leads nearer
        return left.masked_fill(~mask, torch.inf).argmin(-1)
