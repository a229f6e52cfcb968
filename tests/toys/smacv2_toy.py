"""A package ``smacv2`` with toy battles: the interface that TorchRL's ``SMACv2Env`` uses, and smacv2's habits.

Two allies at distance 3 from one enemy of health 4 fight on a line. Actions: no-op (for the dead), stop, away, nearer,
two moves that are never legal, attack (from distance 2). The enemy takes 1 from the nearest ally at distance 1. Allies
have health 2. The team gets 1 for a hit and 10 for the victory; the map's limit is 6 steps.
"""

from __future__ import annotations

import random
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

NO_OP, STOP, AWAY, NEARER, ATTACK = 0, 1, 2, 3, 6


class StarCraft2Env:
    crash_after = None  # steps of an instance before its game breaks down

    def __init__(self, map_name, seed=None, continuing_episode=False, capability_config=None, difficulty="7"):
        self.map_name, self._seed, self.continuing_episode = map_name, seed, continuing_episode
        self.capability_config, self.difficulty = capability_config, difficulty
        self.n_agents, self.n_enemies, self.n_actions, self.episode_limit = 2, 1, 7, 6
        self.force_restarts = self.resets = self.total_steps = 0
        self.closed = False
        self.game_chance = np.random.default_rng(seed)  # StarCraft's own
        self.extra = 0.0

    def reset(self, episode_config=None):
        assert not self.closed
        self.resets += 1
        self._episode_steps = 0
        self.extra = (episode_config or {}).get("team_gen", 0.0)
        self.agents = {i: SimpleNamespace(health=2, distance=3) for i in range(2)}
        self.enemy = SimpleNamespace(health=4, mood=self.game_chance.uniform())
        return self.get_obs(), self.get_state()

    def get_obs_size(self):
        return 4

    def get_state_size(self):
        return 5

    def get_obs_agent(self, i):
        unit = self.agents[i]
        alive = unit.health > 0
        return np.array([unit.health, unit.distance, self.enemy.health, self.extra], np.float32) * alive

    def get_obs(self):
        order = [0, 1]
        random.shuffle(order)  # as smacv2 does
        seen = {i: self.get_obs_agent(i) for i in order}
        return [seen[i] for i in range(2)]

    def get_state(self):
        healths = [unit.health for unit in self.agents.values()]
        return np.array([*healths, self.enemy.health, self.enemy.mood, self._episode_steps], np.float32)

    def get_avail_agent_actions(self, i):
        unit = self.agents[i]
        if unit.health == 0:
            return [1] + [0] * 6
        return [0, 1, int(unit.distance < 3), int(unit.distance > 1), 0, 0, int(unit.distance <= 2)]

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(i) for i in range(2)]

    def step(self, actions):
        for i, action in enumerate(actions):
            legal = self.get_avail_agent_actions(i)[int(action)]
            assert legal == 1, f"Agent {i} cannot perform action {action}"
        self.total_steps += 1
        if self.total_steps == self.crash_after:
            self.force_restarts += 1
            return 0, True, {}
        self._episode_steps += 1
        reward = self._fight(actions)
        alive = sum(unit.health > 0 for unit in self.agents.values())
        info = {"battle_won": False, "dead_allies": 2 - alive, "dead_enemies": int(self.enemy.health == 0)}
        over = alive == 0 or self.enemy.health == 0
        if self.enemy.health == 0 and alive:
            info["battle_won"] = True
            reward += 10
        elif not over and self._episode_steps >= self.episode_limit:
            over = True
            if self.continuing_episode:
                info["episode_limit"] = True
        return reward, over, info

    def _fight(self, actions):
        reward = 0
        for unit, action in zip(self.agents.values(), actions):
            unit.distance += {AWAY: 1, NEARER: -1}.get(int(action), 0)
            if action == ATTACK and self.enemy.health:
                self.enemy.health -= 1
                reward += 1
        near = [unit for unit in self.agents.values() if unit.health and unit.distance == 1]
        if near and self.enemy.health:
            near[0].health -= 1
        return reward

    def close(self):
        self.closed = True


class Part:
    def __init__(self):
        self.rng = np.random.default_rng()


class Teams:
    """Draws as smacv2's distributions do: from NumPy generators without a seed, and with Python's shuffle."""

    def __init__(self):
        self.rng, self.part = np.random.default_rng(), Part()
        self.part.generate = self.part.rng.uniform

    def generate(self):
        order = [0, 10, 20, 30]
        random.shuffle(order)
        return {"team_gen": order[0] + self.rng.uniform() + self.part.rng.uniform()}


class StarCraftCapabilityEnvWrapper:
    def __init__(self, **kwargs):
        for key, part in kwargs["capability_config"].items():
            if isinstance(part, dict):
                part["env_key"] = key  # smacv2 writes into its argument
        self.env_key_to_distribution_map = {"team_gen": Teams()}
        self.settings = {key: kwargs.pop(key) for key in tuple(kwargs) if key in PUBLISHED}
        self.env = StarCraft2Env(**kwargs)
        self.resets_asked = 0

    def reset(self):
        self.resets_asked += 1
        if self.resets_asked % 3 == 0:
            self.reset()  # a start that cannot be: smacv2 draws again, and returns nothing
            return None
        return self.env.reset(self.env_key_to_distribution_map["team_gen"].generate())

    def __getattr__(self, name):
        if name != "env" and hasattr(self.env, name):
            return getattr(self.env, name)
        raise AttributeError(name)


PUBLISHED = ("conic_fov", "obs_own_pos", "use_unit_ranges", "min_attack_range")


def install(monkeypatch, folder):
    """Let ``import smacv2`` find the toy, and ``SC2PATH`` a folder that looks like the game's."""
    package, env = ModuleType("smacv2"), ModuleType("smacv2.env")
    for module in (package, env):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    package.env = env
    env.StarCraft2Env, env.StarCraftCapabilityEnvWrapper = StarCraft2Env, StarCraftCapabilityEnvWrapper
    monkeypatch.setattr("torchrl.envs.libs.smacv2._has_smacv2", True)
    (folder / "Versions").mkdir()
    monkeypatch.setenv("SC2PATH", str(folder))
