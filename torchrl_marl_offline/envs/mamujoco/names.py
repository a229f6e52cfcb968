"""The names of the MA-MuJoCo tasks, known without importing a simulator."""

from __future__ import annotations

import re

PARTITIONS: dict[str, tuple[str, ...]] = {
    "Ant": ("2x4", "2x4d", "4x2"),
    "CoupledHalfCheetah": ("1p1",),
    "HalfCheetah": ("2x3", "6x1"),
    "Hopper": ("3x1",),
    "Humanoid": ("9|8",),
    "HumanoidStandup": ("9|8",),
    "InvertedDoublePendulum": (),
    "InvertedPendulum": (),
    "Pusher": ("3p",),
    "Reacher": ("2x1",),
    "Swimmer": ("2x1",),
    "Walker2d": ("2x3",),
}
"""Scenario -> how gymnasium-robotics shares its joints out. Each scenario can also be played by one agent."""

ALIASES: dict[str, str] = {
    "2ant": "Ant-2x4",
    "2antd": "Ant-2x4d",
    "4ant": "Ant-4x2",
    "2coupled_halfcheetah": "CoupledHalfCheetah-1p1",
    "2halfcheetah": "HalfCheetah-2x3",
    "6halfcheetah": "HalfCheetah-6x1",
    "3hopper": "Hopper-3x1",
    "2humanoid": "Humanoid-9|8",
    "2humanoid_standup": "HumanoidStandup-9|8",
    "3pusher": "Pusher-3p",
    "2reacher": "Reacher-2x1",
    "2swimmer": "Swimmer-2x1",
    "2walker": "Walker2d-2x3",
    "manyagent_ant": "ManySegmentAnt-2x3",
    "manyagent_swimmer": "ManySegmentSwimmer-10x2",
}
"""Short name -> ``scenario-partition``; the first ones are those of the published datasets."""

_MANY_SEGMENTS = re.compile(r"ManySegment(Ant|Swimmer)-[1-9]\d*x[1-9]\d*")


class TaskNames(dict[str, str]):
    """Task name -> ``"module:class"``; also has every ``ManySegmentAnt-NxM`` and ``ManySegmentSwimmer-NxM``."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and _MANY_SEGMENTS.fullmatch(name) is not None)

    def __missing__(self, name: str) -> str:
        if name not in self:
            raise KeyError(name)
        return "mamujoco.environment:MultiAgentMujoco"


def task_names() -> TaskNames:
    """Return what :func:`~torchrl_marl_offline.make_env` finds below ``mamujoco/``."""
    full = [f"{scenario}-{partition}" for scenario, partitions in PARTITIONS.items() for partition in partitions]
    names = [*ALIASES, *full, *PARTITIONS, "ManySegmentAnt-2x3", "ManySegmentSwimmer-10x2"]
    return TaskNames.fromkeys(names, "mamujoco.environment:MultiAgentMujoco")


def split_name(name: str) -> tuple[str, str | None]:
    """Return scenario and partition of a task's name: ``split_name("2ant")`` is ``("Ant", "2x4")``."""
    scenario, _, partition = ALIASES.get(name, name).partition("-")
    return scenario, partition or None
