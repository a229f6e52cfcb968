"""Hand-written teams for the laser worlds that walk the shortest way to an aim from wherever they are."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, STATE
from torchrl_marl_offline.core.ranges import COUNT_OR_NONE, SEED, UNIT
from torchrl_marl_offline.envs.base import entry_read, game_of
from torchrl_marl_offline.envs.laser_grid import ACTIONS, STAY, LaserGrid, Positions
from torchrl_marl_offline.envs.scripted import Chance

LaserAim = Literal["all_out", "one_out", "beam"]


class LaserWalker(TensorDictModuleBase):
    """Walks to an aim in ``lle/*`` on a shortest way, from every position, by legal actions only.

    All positions of the world are tried once; of the shortest ways the one with the fewest moves in each step is taken.
    Gems are left where they lie.

    - ``"all_out"``: all agents are at exits: the best that a team can do where there are no gems.
    - ``"one_out"``: ``agent`` is at an exit, whoever has to help it; then all who can stay where they are, so that the
      episode never ends in success.
    - ``"beam"``: ``agent`` dies in a beam, the nearest that it can be brought into; the others stay out of its way.

    Where the aim cannot be reached, all act at random.

    Args:
        env: the environment that it is to play in; one with few positions (a small world of two agents).
        aim: one of the above.
        agent: whose aim it is; of no meaning for ``"all_out"``.
        epsilon: probability with which an agent takes a uniformly random legal action instead.
        seed: of the chance; ``None`` takes torch's global generator.

    Attributes:
        steps: how many steps the aim is away from the start, or ``None`` where it cannot be reached.
        steps_out: how many steps each agent takes to an exit on the way, ``None`` for one that never comes to one.

    Raises:
        ValueError: the environment is another task, has too many positions, or there is no such agent.

    Examples:
        >>> from torchrl_marl_offline.envs import LaserWalker, make_env
        >>> env = make_env("lle/mutual-0")
        >>> LaserWalker(env).steps == len(env.plan)
        True
    """

    @checked
    def __init__(
        self,
        env: EnvBase,
        aim: LaserAim = "all_out",
        *,
        agent: Annotated[int, COUNT_OR_NONE] = 0,
        epsilon: Annotated[float, UNIT] = 0.0,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        game = game_of(env, LaserGrid, "LaserWalker plays in environments of lle/*, not")
        self.in_keys, self.out_keys = [STATE, ACTION_MASK], [ACTION]
        super().__init__()
        if agent >= game.task_spec.n_agents:
            raise ValueError(f"There is no agent {agent} among {game.task_spec.n_agents}; they are counted from 0.")
        self.aim, self.agent, self.epsilon = aim, agent, epsilon
        found = game.positions
        way, steps = _ways(found, self._reached(found))
        self.register_buffer("positions", found.state, persistent=False)  # [P, s]
        self.register_buffer("way", way, persistent=False)  # [P, n], -1 where there is none
        self.steps = int(steps[0]) if steps[0].isfinite() else None
        self.steps_out = _steps_out(found, way, self.steps or 0)
        self._chance = Chance(seed)

    def _reached(self, found: Positions) -> Tensor:
        """Return in which positions the aim is reached, bool ``[P]``."""
        if self.aim == "all_out":
            return found.out.all(-1)
        if self.aim == "one_out":
            return found.out[:, self.agent]
        others = torch.cat([found.alive[:, : self.agent], found.alive[:, self.agent + 1 :]], -1)
        return ~found.alive[:, self.agent] & others.all(-1)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        mask = entry_read(self, tensordict, ACTION_MASK)
        state = entry_read(self, tensordict, STATE, self.positions.shape[-1])
        random = self._chance.legal(mask)
        there = (state.unsqueeze(-2) == self.positions).all(-1)  # [*B, P]
        chosen = self.way[there.to(torch.uint8).argmax(-1)]  # [*B, n]
        action = torch.where((chosen >= 0) & there.any(-1, keepdim=True), chosen, random)
        if self.epsilon:
            action = self._chance.explored(action, random, self.epsilon)
        return tensordict.set(ACTION, action)


def _ways(found: Positions, reached: Tensor) -> tuple[Tensor, Tensor]:
    """Return the joint action on a shortest way to what is wanted, and its steps.

    Args:
        found: all positions.
        reached: in which of them it is reached, bool ``[P]``.

    Returns:
        Actions, int64 ``[P, n]``: to stay where it is reached, -1 where it cannot be; and steps ``[P]``, else infinite.
    """
    n, actions, device = found.out.shape[-1], len(ACTIONS), reached.device
    joint = torch.cartesian_prod(*[torch.arange(actions, device=device)] * n).view(-1, n).flip(-1)  # by code
    steps = torch.where(reached, 0.0, torch.inf)
    while True:
        beyond = steps[found.following].masked_fill(~found.legal, torch.inf)  # [P, 5^n]
        nearer = torch.minimum(steps, beyond.amin(-1) + 1)
        if torch.equal(nearer, steps):
            break
        steps = nearer
    moves = (joint != STAY).sum(-1)
    code = (beyond * (n + 1) + moves).argmin(-1)
    way = joint[code].masked_fill(~steps.isfinite().unsqueeze(-1), -1)
    return torch.where(reached.unsqueeze(-1), STAY, way), steps


def _steps_out(found: Positions, way: Tensor, steps: int) -> list[int | None]:
    """Return how many steps each agent takes to an exit, on a way of so many steps from the start."""
    place, out = torch.zeros((), dtype=torch.int64, device=way.device), [found.out[0]]
    powers = len(ACTIONS) ** torch.arange(way.shape[-1], device=way.device)
    for _ in range(steps):
        place = found.following[place, (way[place] * powers).sum()]
        out.append(found.out[place])
    return [row.index(True) if True in row else None for row in torch.stack(out, -1).tolist()]  # [n, T + 1]
