"""Level-based foraging: agents collect food together, each as much as its level allows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from typing import Annotated, Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, FEW, NON_NEGATIVE, SEED, SIZE, Range
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, board, discs, on_board
from torchrl_marl_offline.envs.grid_navigation import MOVES

LOAD = len(MOVES)
"""The action after stay, north, south, west and east."""

LEVELS = 2
"""The highest level of an agent."""

GRID = Range(3, limit=64)
"""Cells along a side: food lies in the interior."""

TEAM = Range(1, limit=64)

Sharing = Literal["individual", "team"]

_NAME = re.compile(r"Foraging(?:-(\d+)s)?-(\d+)x\2-(\d+)p-(\d+)f(-coop)?(-pen)?(?:-v\d+)?", re.ASCII)


def foraging_options(name: str) -> dict[str, Any]:
    """Return the options of ``games/foraging`` for a name of the package ``lbforaging``.

    Args:
        name: as ``"Foraging-2s-8x8-2p-2f-coop-v3"``: sight 2, an 8 × 8 grid, 2 agents, 2 foods, all needed for each.

    Raises:
        ValueError: it is no such name.

    Examples:
        >>> from torchrl_marl_offline.envs.foraging import foraging_options
        >>> foraging_options("Foraging-2s-8x8-2p-1f-v3")
        {'grid': 8, 'agents': 2, 'food': 1, 'sight': 2, 'cooperative': False, 'penalty': 0.0}
    """
    found = _NAME.fullmatch(str(name))
    if found is None:
        raise ValueError(f"A name is one such as 'Foraging-2s-8x8-2p-2f-coop-v3', of a square grid, got {name!r}.")
    sight, grid, agents, food, cooperative, penalty = found.groups()
    return {
        "grid": int(grid),
        "agents": int(agents),
        "food": int(food),
        "sight": None if sight is None else int(sight),
        "cooperative": cooperative is not None,
        "penalty": 0.0 if penalty is None else 0.1,
    }


class Foraging(TeamEnv):
    """Agents of unequal levels collect food that often takes more than one of them: ``games/foraging``.

    Level-based foraging with the rules, observations and rewards of the package ``lbforaging`` 2.0 (Christianos,
    Schäfer and Albrecht, 2020; Papoudakis et al., 2021); :func:`foraging_options` turns its names into these options.

    Actions: stay, north (row - 1), south, west (column - 1), east, load. A move off the board or onto food is
    masked, and so is load where no food is next to the agent (in one of the four directions); each is taken as stay
    if forced. Moves are simultaneous: where two or more agents aim at the same cell (one that stays or loads aims
    at its own), all of those keep their place, and nobody else is blocked: agents may swap places, and one may come
    to stand on a cell that its owner wanted to leave and could not. Then the agents that load at one food add up
    their levels. If these reach the food's level it is gone, and each of those agents gets ``own level * food level
    / (sum of their levels * sum of all food levels at the start)``, so that the return of the team is 1 when
    nothing is left. If not, each loses ``penalty``.

    The episode terminates, with success, when all food is collected; truncation after ``max_steps``. (The package
    calls both the end of the game.)

    Start: agents on distinct cells, of level 1 or 2; food in the interior, no two of them within one another's
    eight neighbours or two cells apart in a row or column, and none under an agent; its level is uniform from 1 to
    the sum of the three lowest levels of agents, or with ``cooperative`` always that sum. Where no cell is left,
    there is less food. (In the package, a first episode starts so; in later ones an agent that is not yet placed
    still takes up the cell where it stood before.)

    Observation of an agent, 3 (food + n): (row, column, level) of all food that it sees, in the order of rows and
    columns; of itself; of all other agents that it sees, in order. Places that remain are (-1, -1, 0). Rows and
    columns count from the first that it sees: ``sight`` before its own, or 0 near the edge. It sees food up to
    ``sight`` away in both axes, and agents up to the row and column 2 ``sight``, so that near the first edge it
    sees farther ones too.

    State, 3 (food + n): (row, column, level) of all food, (-1, -1, 0) where it is gone, and of all agents, whatever
    is in sight.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: seed of the starts.
        max_steps: time limit.
        grid: cells along each side.
        agents: number of agents ``n``.
        food: number of foods.
        sight: how far an agent sees; ``None``: all of the board.
        cooperative: whether each food takes the sum of the three lowest levels, or of all if there are fewer agents.
        penalty: what agents lose that load in vain.
        reward: ``"individual"``, each agent its own, as in the package; ``"team"``, the sum of these for each agent.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 50,
        grid: Annotated[int, GRID] = 8,
        agents: Annotated[int, TEAM] = 2,
        food: Annotated[int, TEAM] = 1,
        sight: Annotated[int | None, FEW] = None,
        cooperative: bool = False,
        penalty: Annotated[float, NON_NEGATIVE] = 0.0,
        reward: Sharing = "individual",
    ) -> None:
        if agents >= grid**2:
            raise ValueError(
                f"{agents} agents leave no cell of {grid} × {grid} free; ask for fewer agents or a larger grid."
            )
        spec = TaskSpec(
            n_agents=agents,
            observation_size=3 * (food + agents),
            state_size=3 * (food + agents),
            action_size=LOAD + 1,
            discrete=True,
            has_action_mask=True,
            task="games/foraging",
        )
        self.grid, self.food, self.sight = grid, food, grid if sight is None else sight
        self.cooperative, self.penalty, self.shares_reward = cooperative, penalty, reward == "team"
        self.own_rewards = not self.shares_reward
        super().__init__(
            spec=spec, num_envs=num_envs, device=device, seed=seed, max_episode_steps=max_steps, has_success=True
        )
        self._make_constants()

    def _make_constants(self) -> None:
        n, at = self.task_spec.n_agents, {"device": self.device}
        real = at | {"dtype": self.float_dtype}
        moves = torch.tensor([*MOVES, (0, 0)], **real)
        self._moves = torch.cat([moves, torch.zeros_like(moves[:, :1])], -1).T.contiguous()  # [3, A], levels stay
        self._first_action = (torch.arange(self.num_envs * n, **at) * (LOAD + 1)).view(self.num_envs, n)
        self._itself_first = torch.tensor([[i, *(j for j in range(n) if j != i)] for i in range(n)], **at).flatten()
        self._another = ~torch.eye(n, dtype=torch.bool, **at).unsqueeze(-1)  # [n, n, 1]
        self._gone = torch.tensor([[-1.0], [-1.0], [0.0]], **real)  # [3, 1]
        rows = torch.arange(self.grid, **at)
        self._cells = torch.cartesian_prod(rows, rows)  # [grid², 2]
        row, column = (self._cells.unsqueeze(1) - self._cells).abs().unbind(-1)
        self._too_near = (torch.maximum(row, column) <= 1) | ((torch.minimum(row, column) == 0) & (row + column <= 2))
        self._edge = ((self._cells == 0) | (self._cells == self.grid - 1)).any(-1)

    def set_state(self, food: Tensor, agents: Tensor) -> TensorDict:
        """Put food and agents where they shall be and return the first observation.

        Args:
            food: int64 ``[B, food, 3]``, (row, column, level) in the order of rows and columns, and (-1, -1, 0) where
                there is less.
            agents: int64 ``[B, n, 3]``.

        Raises:
            ValueError: the shapes are others, or two foods lie next to one cell.
        """
        last, n = self.grid - 1, self.task_spec.n_agents
        food = self._given("food", food, (self.food, 3), low=-1, high=(last, last, 3 * LEVELS))
        agents = self._given("agents", agents, (n, 3), high=(last, last, LEVELS))
        row, column = (food[:, :, None, :2] - food[:, None, :, :2]).abs().unbind(-1)
        both = (food[..., 2] > 0).unsqueeze(1) & (food[..., 2] > 0).unsqueeze(2)
        if (both & (row + column <= 2)).flatten(1).sum(-1).gt((food[..., 2] > 0).sum(-1)).any():
            raise ValueError("Two foods lie next to one cell, which no start of games/foraging has; move one away.")
        food, agents = (_batch_last(each.to(self.float_dtype)) for each in (food, agents))
        return self._set_game(**self._as_game(food, agents, food[:, 2].sum(0)))

    def _start(self, rows: Tensor | None) -> Game:
        n, cells = self.task_spec.n_agents, len(self._cells)
        drawn = self.random.uniform(2 * cells + n + self.food, rows=rows)
        order, preference, level, amount = drawn.split([cells, cells, n, self.food], 1)
        places = order.topk(n).indices  # [R, n]
        levels = (level * LEVELS).long() + 1
        agents = torch.cat([self._cells[places], levels.unsqueeze(-1)], -1).to(self.float_dtype)
        food = _batch_last(self._start_of_food(preference, amount, places, levels))
        return self._as_game(food, _batch_last(agents), food[:, 2].sum(0))

    def _start_of_food(self, preference: Tensor, amount: Tensor, agents: Tensor, levels: Tensor) -> Tensor:
        """Return food, ``[R, food, 3]``, for agents of ``levels`` on cells, int64 ``[R, n]`` both.

        ``preference`` (of cells, ``[R, grid²]``) and ``amount`` (``[R, food]``) are uniform in [0, 1).
        """
        cells = len(self._cells)
        # The first free cells of a random order: as if cells were drawn until one is free.
        preference = preference.masked_fill(self._edge, -1.0).scatter(1, agents, -1.0)
        chosen = []
        for _ in range(self.food):
            best, cell = preference.max(-1)
            chosen.append(torch.where(best >= 0, cell, cells))
            preference = preference.masked_fill(self._too_near[cell], -1.0)
        place = torch.stack(chosen, -1).sort(-1).values  # [R, food]
        there = place < cells
        highest = levels.sort(-1).values[:, :3].sum(-1, keepdim=True)
        level = highest if self.cooperative else (amount * highest).long() + 1
        food = torch.cat([self._cells[place.clamp_max(cells - 1)], level.expand_as(place).unsqueeze(-1)], -1)
        return torch.where(there.unsqueeze(-1), food, self._gone.T)

    def _as_game(self, food: Tensor, agents: Tensor, spawned: Tensor) -> Game:
        """Return the game with food ``[food, 3, B]`` and agents ``[n, 3, B]``.

        Beside them are who stands next to which food, and the legal actions: the next step asks again. The games'
        axis is the last in memory, since the others are short and elementwise functions are quick along a long one.
        """
        width = self.grid + 2  # so that cells next to each other are apart by 1 or the width, and no others are
        cell, own = (each[:, 0] * width + each[:, 1] for each in (food, agents))
        away = cell - own.unsqueeze(1)  # [n, food, B]; food that is gone is at (-1, -1), which is next to no cell
        north, south, west, east = (away == step for step in (-width, width, -1, 1))
        near = north | south | west | east
        row, column, last = agents[:, 0], agents[:, 1], self.grid - 1
        free = (
            torch.ones_like(row, dtype=torch.bool),
            (row > 0) & ~_any(north),
            (row < last) & ~_any(south),
            (column > 0) & ~_any(west),
            (column < last) & ~_any(east),
            _any(near),
        )
        legal = torch.stack(free, 1).permute(2, 0, 1).contiguous()  # [n, A, B] -> [B, n, A]
        return {
            "food": food.permute(2, 0, 1),
            "agents": agents.permute(2, 0, 1),
            "near": near.permute(2, 0, 1),
            "spawned": spawned,
            "legal": legal,
        }

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        food, agents, near = (_batch_last(game[key]) for key in ("food", "agents", "near"))
        legal = game["legal"].flatten().index_select(0, (self._first_action + action).flatten())
        action = (action * legal.view_as(action)).T.contiguous()  # [n, B]
        move = self._moves.index_select(1, action.flatten()).view(3, *action.shape).transpose(0, 1)  # [n, 3, B]
        # [n, food, B]: an agent stands next to one food at most
        strength = (near & (action == LOAD).unsqueeze(1)) * agents[:, 2:]
        lifted = strength.sum(0)  # [food, B]
        taken = (lifted >= food[:, 2]) & (lifted > 0)
        reward = self._rewards(game, food[:, 2], strength, lifted, taken)
        food = torch.where(taken.unsqueeze(1), self._gone, food)
        over = (food[:, 2] == 0).all(0)
        return Outcome(self._as_game(food, self._moved(agents, move), game["spawned"]), reward, over, over)

    def _moved(self, agents: Tensor, move: Tensor) -> Tensor:
        """Return agents ``[n, 3, B]`` after moves to cells at which nobody else aims."""
        if len(agents) == 1:
            return agents + move
        aim = agents + move
        cell = aim[:, 0] * self.grid + aim[:, 1]
        opposed = _any((cell.unsqueeze(1) == cell) & self._another)  # [n, n, B] -> [n, B]
        return torch.where(opposed.unsqueeze(1), agents, aim)

    def _rewards(self, game: Game, level: Tensor, strength: Tensor, lifted: Tensor, taken: Tensor) -> Tensor:
        """Return rewards ``[B, n]`` from the food's levels and what is lifted (both ``[food, B]``) by whom."""
        whole = (lifted * game["spawned"]).clamp_min(1)
        reward = (strength * (level * taken) / whole).sum(1)  # [n, food, B] -> [n, B]
        if self.penalty:
            reward = reward - self.penalty * _any((strength > 0) & ~taken)
        if self.shares_reward:
            reward = reward.sum(0, keepdim=True).expand_as(reward)
        return reward.T.contiguous()

    def _view(self, game: Game) -> View:
        n, food, agents = self.task_spec.n_agents, _batch_last(game["food"]), _batch_last(game["agents"])
        state = torch.cat([food, agents]).flatten(0, 1)  # [3 (food + n), B]
        seen = agents.index_select(0, self._itself_first).unflatten(0, (n, n))  # [n, n, 3, B]
        if self.sight >= self.grid - 1:
            food = torch.stack(self._packed(food.unbind())).expand(n, *food.shape)
        else:
            food, seen = self._in_sight(food, seen)
        observation = torch.cat([food, seen], 1).flatten(0, 2).T.contiguous()  # [B, n * 3 (food + n)]
        return View(observation.unflatten(1, (n, -1)), state.T.contiguous(), game["legal"].clone())

    def _in_sight(self, food: Tensor, agents: Tensor) -> tuple[Tensor, Tensor]:
        """Return food, ``[n, food, 3, B]``, and agents, ``[n, n, 3, B]``, as each agent sees them."""
        sight, own = self.sight, agents[:, :1]
        first = (own - sight).clamp_min(0)
        first[:, :, 2] = 0  # levels stay as they are
        food, agents, reach = food - first, agents - first, own - first + sight
        near = (food[:, :, :2] >= 0) & (food[:, :, :2] <= reach[:, :, :2])
        others = agents[:, 1:]
        close = (others[:, :, :2] >= 0) & (others[:, :, :2] <= 2 * sight)
        food, others = (
            torch.where((each[:, :, 0] & each[:, :, 1]).unsqueeze(2), items, self._gone)
            for each, items in ((near, food), (close, others))
        )
        packed = torch.stack([agents[:, 0], *self._packed(others.unbind(1))], 1)
        return torch.stack(self._packed(food.unbind(1)), 1), packed

    def _packed(self, items: Sequence[Tensor]) -> list[Tensor]:
        """Move what is there to the front, in order: each ``[*, 3, B]``, of level 0 where it is gone."""
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            for place in range(last):
                gap = items[place][..., 2:, :] == 0
                items[place] = torch.where(gap, items[place + 1], items[place])
                items[place + 1] = torch.where(gap, self._gone, items[place + 1])
        return items

    def _scene(self, index: int) -> Scene:
        food, agents = self._game["food"][index], self._game["agents"][index]
        food = food[food[..., 2] > 0]
        labels = [[str(level) for level in each[..., 2].tolist()] for each in (food, agents)]
        shapes = discs(on_board(food[..., :2]), 0.25, "#222222", labels=labels[0])
        shapes += discs(on_board(agents[..., :2]), 0.35, AGENT_COLOURS, alpha=0.8, labels=labels[1])
        return board(self.grid, self.grid, shapes)


def _batch_last(items: Tensor) -> Tensor:
    """Return ``[B, k, 3]`` as ``[k, 3, B]``, contiguous."""
    return items.permute(1, 2, 0).contiguous()


def _any(flags: Tensor) -> Tensor:
    """Return whether any along the second axis is true: bool ``[n, k, B]`` -> ``[n, B]``."""
    return reduce(torch.logical_or, flags.unbind(1))
