"""MA-MuJoCo against gymnasium-robotics: from the same states with the same actions, the same numbers."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from selection import some_of

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.envs.mamujoco.names import PARTITIONS, split_name
from torchrl_marl_offline.envs.mamujoco.reference import make_reference

pytest.importorskip("gymnasium_robotics", reason="needs the extra 'mamujoco'")

# The whole comparison, 1,000 steps, takes some minutes.
STEPS = int(os.environ.get("TORCHRL_MARL_OFFLINE_MAMUJOCO_STEPS", "60"))
TOLERANCE = {"rtol": 0, "atol": 1e-6}
MANY_SEGMENTS = ("ManySegmentAnt-2x3", "ManySegmentAnt-3x1", "ManySegmentSwimmer-10x2", "ManySegmentSwimmer-4x1")
TASKS = (
    *(f"{scenario}-{partition}" for scenario, partitions in PARTITIONS.items() for partition in partitions),
    *PARTITIONS,
    *MANY_SEGMENTS,
)


class Pair:
    """A batch of ours and gymnasium-robotics' environments of some of its rows, kept at the same states."""

    def __init__(self, task, *, num_envs, rows, threads=1, **options):
        ours = {"num_envs": num_envs, "threads": threads, "seed": 1, "dtype": torch.float64}
        self.env = make_env(f"mamujoco/{task}", **ours, **options)
        self.references = {row: make_reference(*split_name(task), **options) for row in rows}
        self.td = self.env.reset()
        self.ends = 0
        for row in rows:
            self.follow(row)

    def follow(self, row):
        """Begin the reference's episode where ours begins."""
        reference, game = self.references[row], self.env._game
        reference.reset(seed=0)
        reference.single_agent_env.unwrapped.set_state(game["qpos"][row].numpy(), game["qvel"][row].numpy())
        self.compare(self.td, row, reference._get_obs(), reference.state())

    def compare(self, td, row, observations, state):
        for agent, observation in enumerate(observations.values()):
            ours = td[OBSERVATION][row, agent]
            np.testing.assert_allclose(ours[: len(observation)], observation, **TOLERANCE)
            assert (ours[len(observation) :] == 0).all()
        np.testing.assert_allclose(td[STATE][row], state, **TOLERANCE)

    def step(self):
        action = self.env.full_action_spec[ACTION].rand()
        result, self.td = self.env.step_and_maybe_reset(self.td.set(ACTION, action))
        after = result["next"]
        for row, reference in self.references.items():
            actions = {
                name: action[row, agent, : reference.action_space(name).shape[0]].numpy()
                for agent, name in enumerate(reference.possible_agents)
            }
            observations, rewards, terminated, truncated, _ = reference.step(actions)
            self.compare(after, row, observations, reference.state())
            np.testing.assert_allclose(after[REWARD][row, :, 0], list(rewards.values()), **TOLERANCE)
            assert {after["terminated"][row].item()} == set(terminated.values())
            assert {after["truncated"][row].item()} == {
                late and not over for late, over in zip(truncated.values(), terminated.values())
            }
            if after["done"][row]:
                self.ends += 1
                self.follow(row)


@pytest.mark.parametrize("task", some_of(TASKS, every=3))
def test_one_environment(task):
    pair = Pair(task, num_envs=1, rows=[0])
    for _ in range(STEPS):
        pair.step()
    if task in ("Hopper-3x1", "Walker2d-2x3", "Humanoid-9|8", "InvertedPendulum", "InvertedDoublePendulum", "Reacher"):
        assert pair.ends


@pytest.mark.slow
@pytest.mark.parametrize("task", some_of(TASKS, every=11))
def test_64_environments(task):
    pair = Pair(task, num_envs=64, rows=[0, 17, 63], threads=2)
    for _ in range(STEPS):
        pair.step()
    assert not torch.equal(pair.td[STATE][0], pair.td[STATE][1])
