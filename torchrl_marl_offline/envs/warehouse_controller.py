"""A hand-written team for the warehouse: each robot brings its own request to a goal and puts the shelf back."""

from __future__ import annotations

from typing import Annotated

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, STATE
from torchrl_marl_offline.core.ranges import SEED, UNIT
from torchrl_marl_offline.envs.base import entry_read, game_of
from torchrl_marl_offline.envs.scripted import Chance, kept
from torchrl_marl_offline.envs.warehouse import ACTIONS, FORWARD, LEFT, RIGHT, TOGGLE_LOAD, Warehouse

_FAR = 10_000.0
_SIDESTEP, _TURN = 3.0, 0.5  # what a cell with a robot on it, and another direction, cost in steps


class WarehouseController(TensorDictModuleBase):
    """Plays ``rware/*`` by the state: robot ``i`` cares for request ``i``, one after another where there are fewer.

    A robot without a shelf drives to its request, below other shelves, and loads; with it, it drives along the ways to
    the nearest goal, and with a shelf that is not requested back to where it loaded it. It goes where the way that is
    left is shortest, rather around other robots than into them. Two robots with shelves that meet on a narrow way
    block each other until one of them acts at random, so that a team needs an ``epsilon``.

    It remembers where each robot was when it last had no shelf.

    Args:
        env: the warehouse.
        epsilon: probability with which a robot takes a uniformly random action instead.
        seed: of the chance; ``None`` takes torch's global generator.

    Examples:
        >>> from torchrl_marl_offline.envs import WarehouseController, make_env
        >>> from torchrl_marl_offline.evaluation import evaluate
        >>> env = make_env("rware/tiny", num_envs=20, seed=0)
        >>> evaluate(WarehouseController(env, epsilon=0.05, seed=0), env, episodes=20, seed=0).mean > 5
        True
    """

    @checked
    def __init__(
        self, env: EnvBase, *, epsilon: Annotated[float, UNIT] = 0.05, seed: Annotated[int | None, SEED] = None
    ) -> None:
        game = game_of(env, Warehouse, "WarehouseController plays in environments of rware/*, not")
        self.in_keys, self.out_keys = [OBSERVATION, STATE], [ACTION]
        super().__init__()
        self.agents, self.requests, self.epsilon = game.task_spec.n_agents, game.requests, epsilon
        self._chance = Chance(seed)
        ways, goals = game.floor_plan()
        self.columns = ways.shape[1]
        cells = torch.cartesian_prod(*(torch.arange(size, device=ways.device) for size in ways.shape))
        step = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]], device=ways.device)  # up, down, left, right
        ahead = cells.unsqueeze(1) + step  # [C, 4, 2]
        inside = ((ahead >= 0) & (ahead < torch.tensor(ways.shape, device=ways.device))).all(-1)
        ahead = (ahead * torch.tensor([self.columns, 1], device=ways.device)).sum(-1)
        own = torch.arange(len(cells), device=ways.device).unsqueeze(-1)
        ahead = torch.where(inside, ahead, own)  # [C, 4], its own cell where there is none
        self.register_buffer("ahead", ahead, persistent=False)
        self.register_buffer("goals", goals, persistent=False)
        free = (cells.unsqueeze(1) - cells).abs().sum(-1).float()  # [C, C]
        self.register_buffer("free", free, persistent=False)
        self.register_buffer("along_ways", _along(ways.flatten(), ahead), persistent=False)
        turned = torch.tensor([2, 3, 1, 0], device=ways.device)  # to the left, from up, down, left and right
        self.register_buffer("turned", turned, persistent=False)
        self._home: Tensor | None = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        state = entry_read(self, tensordict, STATE, 3 * self.agents + 2 * self.requests).long()
        seen = tensordict.get(OBSERVATION)
        column, row, direction = state[..., : 3 * self.agents].unflatten(-1, (-1, 3)).unbind(-1)  # [*B, n]
        wanted = state[..., 3 * self.agents :].unflatten(-1, (-1, 2))
        wanted = wanted[..., 1] * self.columns + wanted[..., 0]  # [*B, requests]
        cell, carries = row * self.columns + column, seen[..., 2] > 0.5
        self._home = kept(self._home, cell, ~carries)
        request = wanted[..., torch.arange(self.agents, device=cell.device) % self.requests]
        is_wanted = carries & (wanted.unsqueeze(-2) == cell.unsqueeze(-1)).any(-1)
        goal = self.goals[self.along_ways[self.goals].T[cell].argmin(-1)]
        target = torch.where(is_wanted, goal, torch.where(carries, self._home, request))
        action = self._towards(cell, direction, target, carries)
        action = torch.where((cell == target) & ~is_wanted, TOGGLE_LOAD, action)
        generator = self._chance(cell.device)
        random = torch.randint(len(ACTIONS), action.shape, device=cell.device, generator=generator)
        return tensordict.set(ACTION, self._chance.explored(action, random, self.epsilon))

    def _towards(self, cell: Tensor, direction: Tensor, target: Tensor, carries: Tensor) -> Tensor:
        """Return the action of each robot that leads to its target, ``[*B, n]``."""
        ahead = self.ahead[cell]  # [*B, n, 4]
        goal = target.unsqueeze(-1)
        left = torch.where(carries.unsqueeze(-1), self.along_ways[goal, ahead], self.free[goal, ahead])
        taken = (ahead.unsqueeze(-1) == cell.unsqueeze(-2).unsqueeze(-2)).any(-1) & (ahead != cell.unsqueeze(-1))
        turns = torch.arange(4, device=cell.device) != direction.unsqueeze(-1)
        stays = ahead == cell.unsqueeze(-1)
        chosen = (left + _SIDESTEP * taken + _TURN * turns + _FAR * stays).argmin(-1)
        turn = torch.where(self.turned[direction] == chosen, LEFT, RIGHT)
        return torch.where(chosen == direction, FORWARD, turn)


def _along(ways: Tensor, ahead: Tensor) -> Tensor:
    """Return how many steps each cell is from each target along the ways, ``[C targets, C]``; a target may lie off."""
    count = len(ways)
    distance = torch.full((count, count), _FAR, device=ways.device)
    distance.fill_diagonal_(0.0)
    passable = ways | torch.eye(count, dtype=torch.bool, device=ways.device)  # [C targets, C]
    while True:
        nearer = torch.minimum(distance, torch.where(passable, 1 + distance[:, ahead].amin(-1), _FAR))
        if torch.equal(nearer, distance):
            return distance
        distance = nearer
