"""Batched environments, through :func:`make_env` or wrapped, and hand-written policies for them."""

from __future__ import annotations

from torchrl_marl_offline.envs.commons import CommonsController
from torchrl_marl_offline.envs.cue_controller import CueController
from torchrl_marl_offline.envs.factory import list_tasks, make_env, register_environment
from torchrl_marl_offline.envs.foraging_controller import ForagingController
from torchrl_marl_offline.envs.goal_controller import GoalController
from torchrl_marl_offline.envs.hanabi_controller import HanabiController
from torchrl_marl_offline.envs.laser_controller import LaserController
from torchrl_marl_offline.envs.laser_names import CORE_WORLDS
from torchrl_marl_offline.envs.laser_walker import LaserWalker
from torchrl_marl_offline.envs.laser_worlds import WorldCertificate, WorldOptimum, certify_world, generate_world
from torchrl_marl_offline.envs.mixed_motives import StrategyController
from torchrl_marl_offline.envs.overcooked_controller import OvercookedController
from torchrl_marl_offline.envs.pettingzoo_team import from_pettingzoo
from torchrl_marl_offline.envs.scripted import GridController, MixedSkill, OneStrongAgent, SpreadController, role_team
from torchrl_marl_offline.envs.stitch import StitchController
from torchrl_marl_offline.envs.torchrl_team import from_torchrl
from torchrl_marl_offline.envs.vmas_steering import SteeringController
from torchrl_marl_offline.envs.warehouse_controller import WarehouseController

__all__ = [
    "CORE_WORLDS",
    "CommonsController",
    "CueController",
    "ForagingController",
    "GoalController",
    "GridController",
    "HanabiController",
    "LaserController",
    "LaserWalker",
    "MixedSkill",
    "OneStrongAgent",
    "OvercookedController",
    "SpreadController",
    "SteeringController",
    "StitchController",
    "StrategyController",
    "WarehouseController",
    "WorldCertificate",
    "WorldOptimum",
    "certify_world",
    "from_pettingzoo",
    "from_torchrl",
    "generate_world",
    "list_tasks",
    "make_env",
    "register_environment",
    "role_team",
]
