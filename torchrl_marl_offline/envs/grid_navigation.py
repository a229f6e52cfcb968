"""Grid navigation ("cn-N"), the game in which ODIS recorded its cooperative navigation data."""

from __future__ import annotations

from itertools import permutations
from typing import Annotated

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, FEW, SEED, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, board, discs, on_board

MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""(row, column) displacement of stay, north, south, west and east."""

REACH = 2
"""An agent covers the landmarks within this Chebyshev distance."""

SIDES = {2: 6, 3: 8, 4: 10, 5: 12}
"""Cells along each side of the board, by the number of agents."""


def legal_moves(cells: Tensor, side: int) -> Tensor:
    """Return which of the five moves stay on the board: cells ``[B, n, 2]`` -> bool ``[B, n, 5]``."""
    row, column = cells.unbind(-1)
    stay = torch.ones_like(row, dtype=torch.bool)
    return torch.stack([stay, row > 0, row < side - 1, column > 0, column < side - 1], -1)


def moved(agents: Tensor, steps: Tensor, side: int) -> Tensor:
    """Return where agents on a board of ``side`` × ``side`` come by simultaneous steps, int64 ``[B, n, 2]`` each.

    A step off the board is a stay. Where two or more aim at the same cell, all of those keep their place.
    """
    aim = agents + steps
    on_board = ((aim >= 0) & (aim < side)).all(-1, keepdim=True)
    aim = torch.where(on_board, aim, agents)
    itself = torch.eye(agents.shape[-2], dtype=torch.bool, device=agents.device)
    same = alike(aim) & ~itself  # [B, n, n]
    return torch.where(same.any(-1, keepdim=True), agents, aim)


def alike(cells: Tensor) -> Tensor:
    """Return which agents have or aim at the same cell, ``[*B, n, 2]`` -> bool ``[*B, n, n]``."""
    return (cells.unsqueeze(-2) == cells.unsqueeze(-3)).all(-1)


def comes_later(aim: Tensor) -> Tensor:
    """Return which agents aim at the cell of one of a lower number, ``[*B, n, 2]`` -> bool ``[*B, n]``."""
    return alike(aim).tril(-1).any(-1)


def own_first(agents: int) -> list[list[int]]:
    """Return the order in which each agent sees all: itself, then the others."""
    return [[i, *(j for j in range(agents) if j != i)] for i in range(agents)]


def within_reach(agents: Tensor, landmarks: Tensor) -> Tensor:
    """Return which landmarks each agent covers: ``[B, n, 2]`` and ``[B, m, 2]`` -> bool ``[B, n, m]``."""
    return (agents.unsqueeze(-2) - landmarks.unsqueeze(-3)).abs().amax(-1) <= REACH


class GridNavigation(TeamEnv):
    """``agents`` agents must cover as many landmarks on a square grid: ``games/grid_navigation``.

    The grid is 6 × 6 for 2 agents, 8 × 8 for 3, 10 × 10 for 4 and 12 × 12 for 5. Actions: stay, north (row - 1),
    south, west (column - 1), east. A move off the board is masked, and taken as stay if forced. Moves are
    simultaneous: where two or more agents aim at the same cell (one that stays aims at its own), all of those
    keep their place, and nobody else is blocked.

    Success: agents and landmarks can be matched one to one within a Chebyshev distance of 2. It gives every
    agent reward 1 and terminates the episode; every other reward is 0. Truncation after 50 steps. Start: agents on
    distinct cells, then landmarks on distinct empty cells farther than 2 from every agent.

    Observation of an agent, 4 n: (row, column) + 1 of itself, of the other agents in order, and of the landmarks in
    order. State, 4 n: the same of all agents, then of the landmarks. What is farther than ``sight`` in either axis is
    hidden: its two numbers are 0 in the observation, as no visible ones are. The state, success and moves do not depend
    on it. (In the recorded game sight is side - 1, so that nothing is hidden, as by default.)

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: seed of the starts.
        max_steps: time limit.
        agents: number of agents ``n`` and of landmarks, 2 to 5.
        sight: Chebyshev distance up to which an agent sees others and landmarks; ``None``: all of the board.
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
        sight: Annotated[int | None, FEW] = None,
    ) -> None:
        if agents not in SIDES:
            raise ValueError(f"agents must be one of {sorted(SIDES)} in games/grid_navigation, got {agents!r}.")
        spec = TaskSpec(
            n_agents=agents,
            observation_size=4 * agents,
            state_size=4 * agents,
            action_size=len(MOVES),
            discrete=True,
            has_action_mask=True,
            task="games/grid_navigation",
        )
        self.side, self.sight = SIDES[agents], sight
        super().__init__(
            spec=spec, num_envs=num_envs, device=device, seed=seed, max_episode_steps=max_steps, has_success=True
        )
        self._moves = torch.tensor(MOVES, device=self.device)
        self._matchings = torch.tensor(list(permutations(range(agents))), device=self.device)  # [n!, n]
        order = [[*seen, *range(agents, 2 * agents)] for seen in own_first(agents)]
        self._order = torch.tensor(order, device=self.device).flatten()
        rows = torch.arange(self.side, device=self.device)
        self._cells = torch.cartesian_prod(rows, rows)  # [side², 2]

    def set_state(self, agents: Tensor, landmarks: Tensor) -> TensorDict:
        """Put agents and landmarks on given cells, int64 ``[B, n, 2]`` from 0, and return the first observation."""
        size, last = (self.task_spec.n_agents, 2), self.side - 1
        found = {"agents": agents, "landmarks": landmarks}
        return self._set_game(**{name: self._given(name, each, size, high=last) for name, each in found.items()})

    def _start(self, rows: Tensor | None) -> Game:
        n, count = self.task_spec.n_agents, len(self._cells)
        # On 10 x 10, four agents at (2 or 7, 2 or 7) leave no cell for a landmark (2.6e-7 of the placements), so two
        # more placements stand by; all three are bad once in 5e19 starts. The other boards always leave room.
        placements = 3 if n == 4 else 1
        drawn = self.random.uniform(placements * count, rows=rows, stream=0).unflatten(-1, (placements, count))
        agents = self._cells[drawn.topk(n).indices]  # [R, placements, n, 2]
        near = within_reach(self._cells, agents.flatten(1, 2)).unflatten(-1, (placements, n)).any(-1)
        possible = (~near).sum(1) >= n  # [R, cells, placements] -> [R, placements]
        first = possible.to(torch.int8).argmax(-1)
        index = torch.arange(len(first), device=self.device)
        near = near[index, :, first]
        preference = self.random.uniform(count, rows=rows, stream=1).masked_fill(near, -1.0)
        return {"agents": agents[index, first], "landmarks": self._cells[preference.topk(n).indices]}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        agents, landmarks = game["agents"], game["landmarks"]
        agents = moved(agents, self._moves[action], self.side)
        success = self.matched(agents, landmarks)
        reward = success.to(self.float_dtype).unsqueeze(-1).expand(-1, self.task_spec.n_agents)
        return Outcome({"agents": agents, "landmarks": landmarks}, reward.contiguous(), success, success)

    def matched(self, agents: Tensor, landmarks: Tensor) -> Tensor:
        """Return, bool ``[B]``, whether agents and landmarks can be matched one to one within reach."""
        near = within_reach(agents, landmarks)
        agent = torch.arange(self.task_spec.n_agents, device=self.device)
        return near[:, agent, self._matchings].all(-1).any(-1)  # [B, n!, n] -> [B]

    def _view(self, game: Game) -> View:
        cells = torch.cat([game["agents"], game["landmarks"]], 1).to(self.float_dtype) + 1  # [B, 2 n, 2]
        seen = cells.index_select(1, self._order).unflatten(1, (self.task_spec.n_agents, -1))  # [B, n, 2 n, 2]
        if self.sight is not None:
            far = (seen - seen[:, :, :1]).abs().amax(-1, keepdim=True) > self.sight
            seen = seen.masked_fill(far, 0.0)
        return View(seen.flatten(2), cells.flatten(1), legal_moves(game["agents"], self.side))

    def _scene(self, index: int) -> Scene:
        agents, landmarks = (on_board(self._game[key][index]) for key in ("agents", "landmarks"))
        shapes = discs(landmarks, 0.15, "#222222") + discs(agents, 0.35, AGENT_COLOURS, alpha=0.8)
        return board(self.side, self.side, shapes)
