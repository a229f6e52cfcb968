"""The ant of OGBench's mazes shared out among agents: who sees what of it, and whose action moves which motor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

AntSight = Literal["own", "all"]

MAZES = ("medium", "large", "giant")
"""Their sizes."""

LEGS: dict[str, tuple[tuple[int, ...], ...]] = {
    "2x4": ((1, 2), (3, 4)),
    "2x4d": ((1, 3), (2, 4)),
    "4x2": ((1,), (2,), (3,), (4,)),
}
"""Partition, named as in MA-MuJoCo -> the legs of each agent, of two joints each."""

BODY = 29
"""Numbers of positions (15, of which the torso's are 7) and velocities (14, of which the torso's are 6)."""
MOTORS = 8
_TORSO, _VELOCITIES, _TORSO_MOVES = 7, 15, 6
_FIRST_MOTOR = {4: 0, 1: 2, 2: 4, 3: 6}  # of each leg; the model lists leg 4 first


@dataclass(frozen=True)
class SplitAnt:
    """The ant's joints and motors by agent.

    Args:
        partition: one of :data:`LEGS`.
        sight: ``"own"``: an agent sees the torso and its own legs; ``"all"``: everything.
    """

    partition: str
    sight: AntSight = "own"

    @property
    def n_agents(self) -> int:
        """Number of agents."""
        return len(LEGS[self.partition])

    @property
    def action_size(self) -> int:
        """Motors of an agent."""
        return MOTORS // self.n_agents

    @property
    def observation_size(self) -> int:
        """Numbers that an agent sees, its goal's two included."""
        return 2 + (BODY if self.sight == "all" else _TORSO + _TORSO_MOVES + 2 * self.action_size)

    def seen(self, body: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Return observations ``[*B, n, o]`` and the state ``[*B, 29 + 2 n]``.

        Args:
            body: positions and velocities, ``[*B, 29]``.
            goal: of each agent, ``[*B, n, 2]``.
        """
        index = self._seen.to(body.device)
        seen = body.index_select(-1, index.flatten()).unflatten(-1, index.shape)
        return torch.cat([seen, goal], -1), torch.cat([body, goal.flatten(-2)], -1)

    @cached_property
    def _seen(self) -> Tensor:
        """Which numbers of the body each agent sees, int64 ``[n, o - 2]``."""
        torso = [*range(_TORSO)], [*range(_VELOCITIES, _VELOCITIES + _TORSO_MOVES)]
        found = []
        for legs in LEGS[self.partition]:
            joints = [2 * (leg - 1) + part for leg in legs for part in (0, 1)]
            if self.sight == "all":
                joints = [*range(MOTORS)]
            places = [_TORSO + joint for joint in joints]
            moves = [_VELOCITIES + _TORSO_MOVES + joint for joint in joints]
            found.append([*torso[0], *places, *torso[1], *moves])
        return torch.tensor(found)

    def motors(self) -> Tensor:
        """Return the number of the motor of each agent's each action, int64 ``[n, a]``."""
        legs = LEGS[self.partition]
        return torch.tensor([[_FIRST_MOTOR[leg] + part for leg in own for part in (0, 1)] for own in legs])

    @cached_property
    def _by_motor(self) -> Tensor:
        return self.motors().flatten().argsort()

    def controls(self, action: Tensor) -> Tensor:
        """Return the motors' controls ``[*B, 8]`` of actions ``[*B, n, a]``."""
        return action.flatten(-2).index_select(-1, self._by_motor.to(action.device))

    def actions(self, control: Tensor) -> Tensor:
        """Return the agents' actions ``[*B, n, a]`` of controls ``[*B, 8]``."""
        motors = self.motors().to(control.device)
        return control.index_select(-1, motors.flatten()).unflatten(-1, motors.shape)


def split_maze_name(name: str) -> tuple[str, str]:
    """Return size and partition: ``split_maze_name("antmaze-medium-2x4")`` is ``("medium", "2x4")``.

    Raises:
        ValueError: it is no such name.
    """
    kind, _, rest = name.partition("-")
    size, _, partition = rest.partition("-")
    if kind != "antmaze" or size not in MAZES or partition not in LEGS:
        raise ValueError(
            f"An ant maze is named antmaze-medium-2x4, with medium, large or giant and {', '.join(LEGS)}, got {name!r}."
        )
    return size, partition
