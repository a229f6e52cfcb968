"""Hand-written teams for ``games/foraging``: together, each for itself, or at random."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, STATE
from torchrl_marl_offline.core.ranges import SEED, UNIT
from torchrl_marl_offline.envs.base import entry_read
from torchrl_marl_offline.envs.foraging import LOAD
from torchrl_marl_offline.envs.grid_navigation import MOVES, alike, comes_later
from torchrl_marl_offline.envs.scripted import Chance, uniform_legal

ForagingKind = Literal["team", "greedy", "random"]


class ForagingController(TensorDictModuleBase):
    """Walks to food and loads it in ``games/foraging`` by the state, whatever is in sight, by legal actions only.

    - ``"team"``: all agents go to the food of which their distances have the smallest sum, the first of several;
    - ``"greedy"``: each agent goes to its nearest food, whoever else goes there;
    - ``"random"``: uniform over the legal actions.

    Each walks to the nearest side of its food that no other agent takes; who stands next to it loads, alone or not. A
    move is one of those that lead nearest, drawn where there are two, rather around other agents. Of agents that would
    aim at one cell, one that stays there keeps it, or else the first; the others take a random legal action, so that
    they never block each other for long.

    Args:
        kind: one of the above.
        epsilon: probability with which an agent takes a uniformly random legal action instead.
        seed: of the chance; ``None`` takes torch's global generator.

    Examples:
        >>> from torchrl_marl_offline.envs import ForagingController, make_env
        >>> env = make_env("games/foraging", num_envs=100, seed=0, cooperative=True)
        >>> play = env.rollout(50, ForagingController("team", seed=0), break_when_any_done=False)
        >>> bool(play["next", "success"].any(1).float().mean() > 0.9)
        True
    """

    @checked
    def __init__(
        self,
        kind: ForagingKind = "team",
        *,
        epsilon: Annotated[float, UNIT] = 0.0,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        self.in_keys, self.out_keys = [STATE, ACTION_MASK], [ACTION]
        super().__init__()
        self.kind, self.epsilon = kind, epsilon
        self._chance = Chance(seed)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        mask = entry_read(self, tensordict, ACTION_MASK, LOAD + 1)
        generator = self._chance(mask.device)
        drawn = torch.rand(mask.shape, device=mask.device, generator=generator)
        random = uniform_legal(drawn, mask)
        if self.kind == "random":
            return tensordict.set(ACTION, random)
        food, agents = _places(tensordict.get(STATE), mask.shape[-2])
        action, aim = self._walk(food, agents, mask, drawn)
        action = torch.where(_has_to_yield(aim, action), random, action)
        if self.epsilon:
            action = self._chance.explored(action, random, self.epsilon)
        return tensordict.set(ACTION, action)

    def _walk(self, food: Tensor, agents: Tensor, mask: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the action of each agent, ``[*B, n]``, and the cell at which it aims, ``[*B, n, 2]``."""
        away = (food[..., :2].unsqueeze(-3) - agents.unsqueeze(-2)).abs().sum(-1)  # [*B, n, food]
        away = away.masked_fill((food[..., 2] == 0).unsqueeze(-2), torch.inf)
        wanted = away if self.kind == "greedy" else away.sum(-2, keepdim=True).expand_as(away)
        chosen = wanted.argmin(-1)  # [*B, n]
        target = food[..., :2].gather(-2, chosen.unsqueeze(-1).expand_as(agents))
        moves = torch.tensor(MOVES, device=food.device)
        sides = target.unsqueeze(-2) + moves[1:]  # [*B, n, 4, 2]
        far = (sides - agents.unsqueeze(-2)).abs().sum(-1) + 1e3 * _taken(sides, agents)
        side = sides.gather(-2, far.argmin(-1)[..., None, None].expand(*far.shape[:-1], 1, 2))
        aims = agents.unsqueeze(-2) + moves  # [*B, n, 5, 2]
        # around others where that is as short; what is illegal is no choice, and to stay the last
        left = (aims - side).abs().sum(-1) + 1.5 * _taken(aims, agents) + 0.4 * drawn[..., :LOAD]
        left = left.masked_fill(~mask[..., :LOAD], torch.inf)
        left[..., 0] = 1e6
        action = torch.where(away.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) == 1, LOAD, left.argmin(-1))
        cells = torch.where(action == LOAD, 0, action)[..., None, None].expand(*action.shape, 1, 2)
        return action, aims.gather(-2, cells).squeeze(-2)


def _places(state: Tensor, n_agents: int) -> tuple[Tensor, Tensor]:
    """Return (row, column, level) of food, ``[*B, food, 3]``, and (row, column) of agents, ``[*B, n, 2]``."""
    items = state.unflatten(-1, (-1, 3))
    food, agents = items.split([items.shape[-2] - n_agents, n_agents], -2)
    return food, agents[..., :2]


def _taken(cells: Tensor, agents: Tensor) -> Tensor:
    """Return at which of an agent's cells, ``[*B, n, k, 2]``, another agent is."""
    there = (cells.unsqueeze(-2) == agents.unsqueeze(-3).unsqueeze(-3)).all(-1)  # [*B, n, k, n]
    another = ~torch.eye(agents.shape[-2], dtype=torch.bool, device=agents.device)
    return (there & another.unsqueeze(-2)).any(-1)


def _has_to_yield(aim: Tensor, action: Tensor) -> Tensor:
    """Return who aims, ``[*B, n, 2]``, at the cell of an agent that keeps it, or at which one before it aims."""
    stays = (action == 0) | (action == LOAD)
    return ((alike(aim) & stays.unsqueeze(-2)).any(-1) | comes_later(aim)) & ~stays
