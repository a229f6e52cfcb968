"""Bridge, the grid game of AlberDICE in which two agents must agree on who crosses first."""

from __future__ import annotations

from typing import Annotated

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, Shape, board, discs, on_board

ROWS, COLUMNS = 3, 6
WALLS = ((0, 2), (0, 3), (2, 2), (2, 3))
GOALS = ((2, 5), (0, 0))
MOVES = ((0, 0), (-1, 0), (1, 0), (0, 1), (0, -1))
"""(row, column) displacement of stay, up, down, right and left."""

_REFERENCE_RETURNS = {True: (-17.8782, -1.23545), False: (-19.47364, -1.55168)}
_STARTS = {True: ((1, 2), (1, 3)), False: ((1, 1), (1, 4))}


class Bridge(TeamEnv):
    """Two agents on a bridge for one want to the other's side: ``games/bridge`` (Matsunaga et al., 2023, AlberDICE).

    The layout is that of the game's released recordings ("start adjacent"), 3 rows and 6 columns, ``#`` a wall::

        2 . # # . .        the first agent starts at a = (1, 2), its goal is 1 = (2, 5);
        . . a b . .        the second agent starts at b = (1, 3), its goal is 2 = (0, 0).
        . . # # . 1

    Actions: stay, up (row - 1), down, right (column + 1), left; a move off the board or into a wall is a stay, and
    every action is legal. Moves are simultaneous: into a cell whose owner stays, one does not go; two do not swap; of
    two that aim at the same cell the first agent goes. Who has arrived stays there and is in nobody's way. A step into
    one's own goal is never blocked, but for the second agent by a first one that aims at it too or wants to swap.

    Both agents get the mean over the two of -0.1 · |goal - position|, the Euclidean distance at the new positions.
    When both have arrived the game terminates; after 50 steps it is truncated. (The recordings mark the time limit
    as a termination, and give its step no reward.) One agent must back off to let the other pass. Uniform play returns
    −17.88 and the best play −1.2355 (before the bridge: −19.47 and −1.5517), by dynamic programming.

    Observation of both agents and state, 8: position and goal, (row, column) each, of the first agent, then of the
    second.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: accepted like everywhere; the game has no chance.
        max_steps: time limit.
        adjacent: start on the bridge, as in the recordings; otherwise before it, at (1, 1) and (1, 4).
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 50,
        adjacent: bool = True,
    ) -> None:
        spec = TaskSpec(
            n_agents=2,
            observation_size=8,
            state_size=8,
            action_size=len(MOVES),
            discrete=True,
            task="games/bridge",
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=max_steps,
            reference_returns=_REFERENCE_RETURNS[adjacent] if max_steps == 50 else None,
        )
        free = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
        free[tuple(zip(*WALLS))] = False
        self._free = free.to(self.device)
        self._moves = torch.tensor(MOVES, device=self.device)
        self._goals = torch.tensor(GOALS, device=self.device)
        self._starts = torch.tensor(_STARTS[adjacent], device=self.device)
        self._last_cell = torch.tensor([ROWS - 1, COLUMNS - 1], device=self.device)

    def set_state(self, agents: Tensor) -> TensorDict:
        """Put the agents on given cells, int64 ``[B, 2, 2]`` from 0, and return the first observation."""
        return self._set_game(agents=self._given("agents", agents, (2, 2), high=(ROWS - 1, COLUMNS - 1)))

    def _start(self, rows: Tensor | None) -> Game:
        count = self.num_envs if rows is None else len(rows)
        return {"agents": self._starts.expand(count, -1, -1).clone()}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        here = game["agents"]  # [B, 2, 2]
        arrived = (here == self._goals).all(-1)  # [B, 2]
        aim = here + self._moves[action]
        inside = aim.minimum(self._last_cell).clamp_min(0)
        possible = (inside == aim).all(-1) & self._free[inside[..., 0], inside[..., 1]] & ~arrived
        aim = torch.where(possible.unsqueeze(-1), aim, here)
        agents = self._resolve(here, aim, in_play=~arrived.any(-1))
        away = (self._goals - agents).to(self.float_dtype)
        reward = -0.1 * torch.linalg.vector_norm(away, dim=-1).mean(-1, keepdim=True)  # [B, 2] -> [B, 1]
        done = (agents == self._goals).all(-1).all(-1)
        return Outcome({"agents": agents}, reward.expand(-1, 2).contiguous(), done)

    def _resolve(self, here: Tensor, aim: Tensor, *, in_play: Tensor) -> Tensor:
        """Return where the agents get, ``[B, 2, 2]``; ``in_play`` (bool ``[B]``): neither has arrived yet."""
        first, second = here.unbind(1)
        to_first, to_second = aim.unbind(1)
        home = (aim == self._goals).all(-1)
        moves = (aim != here).any(-1)
        meets = in_play & moves[:, 0] & ~home[:, 0]  # the first agent may be blocked, or block
        onto_second = meets & _same(to_first, second)
        swap = onto_second & _same(to_second, first)
        first_stays = swap | (onto_second & ~moves[:, 1])
        first_goes_to = torch.where(first_stays.unsqueeze(-1), first, to_first)
        contested = meets & moves[:, 1] & _same(to_first, to_second)
        taken = in_play & ~home[:, 1] & _same(to_second, first_goes_to)
        second_goes_to = torch.where((swap | contested | taken).unsqueeze(-1), second, to_second)
        return torch.stack([first_goes_to, second_goes_to], 1)

    def _view(self, game: Game) -> View:
        agents = game["agents"]
        state = torch.cat([agents, self._goals.expand_as(agents)], -1).flatten(1).to(self.float_dtype)
        return View(state.unsqueeze(1).expand(-1, 2, -1).contiguous(), state)

    def _scene(self, index: int) -> Scene:
        corners = ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5))
        walls = on_board(torch.tensor(WALLS)).tolist()
        shapes = [Shape([(x + dx, y + dy) for dx, dy in corners], colour="#555555") for x, y in walls]
        shapes += discs(on_board(self._goals), 0.45, AGENT_COLOURS, alpha=0.3, labels="12")
        return board(ROWS, COLUMNS, shapes + discs(on_board(self._game["agents"][index]), 0.3, AGENT_COLOURS))


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b).all(-1)
