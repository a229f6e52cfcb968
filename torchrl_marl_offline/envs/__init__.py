"""Batched environments, all through :func:`make_env`, and hand-written policies for them."""

from __future__ import annotations

from torchrl_marl_offline.envs.factory import list_tasks, make_env
from torchrl_marl_offline.envs.scripted import GridController, MixedSkill, SpreadController

__all__ = ["GridController", "MixedSkill", "SpreadController", "list_tasks", "make_env"]
