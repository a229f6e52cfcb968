"""Agents that are dead and allowed no action, in recordings and in environments."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_toys import pymarl_episode_arrays, write_h5
from format_toys import vault_arrays, write_vault
from tensordict import TensorDict

from torchrl_marl_offline.core.usable_mask import usable_mask
from torchrl_marl_offline.data import DatasetError, OfflineDataset, convert_dataset, from_arrays, load_dataset

pytestmark = pytest.mark.fault("5.3")
MASK, ALIVE = ("agents", "action_mask"), ("agents", "mask")


def arrays(dead: list[tuple[int, int]], **changes) -> dict:
    """Two episodes of 4 rows of two agents; the mask of (row, agent) is empty."""
    generator = np.random.default_rng(0)
    mask = np.ones((8, 2, 3), bool)
    for row, agent in dead:
        mask[row, agent] = False
    return {
        "observations": generator.random((8, 2, 3)),
        "actions": np.zeros((8, 2), int),
        "rewards": np.ones(8),
        "terminals": np.array([0, 0, 0, 1] * 2),
        "action_mask": mask,
    } | changes


def test_repair_takes_an_agent_that_never_acts_again_for_dead():
    empty = [(1, 1), (2, 1), (3, 1), (5, 0), (6, 0), (7, 0)]  # most rows of either episode
    with pytest.raises(DatasetError, match=r"allows no action at all .* repair=True, which takes such an agent"):
        from_arrays(**arrays(empty))
    dataset = from_arrays(**arrays(empty), repair=True)
    alive = torch.ones(8, 2, dtype=torch.bool)
    for row, agent in empty:
        alive[row, agent] = False
    assert torch.equal(dataset.data[ALIVE], alive)
    assert dataset.data["next", *ALIVE][[0, 1, 2, 4, 5, 6]].tolist() == alive[[1, 2, 3, 5, 6, 7]].tolist()
    assert dataset.data["collector", "mask"].all() and dataset.data[MASK].all()
    assert "on 6 of which the agents without one are taken for dead, masked 0 rows" in dataset.metadata["repairs"][0]


def test_repair_masks_the_row_of_an_agent_that_acts_again():
    dataset = from_arrays(**arrays([(1, 1), (6, 0), (7, 0)]), repair=True)
    assert (~dataset.data["collector", "mask"]).nonzero().flatten().tolist() == [0, 1]  # where it is, where it leads
    assert (~dataset.data[ALIVE]).nonzero().tolist() == [[6, 0], [7, 0]]
    dataset = from_arrays(**arrays([(2, 0), (2, 1), (3, 0), (3, 1)]), repair=True)
    assert (~dataset.data["collector", "mask"]).nonzero().flatten().tolist() == [2, 3]  # nobody acts


def test_the_agents_mask_of_the_recording_is_believed_without_repair():
    empty = [(2, 1), (3, 1)]
    alive = np.ones((8, 2), bool)
    alive[[2, 3], 1] = False
    dataset = from_arrays(**arrays(empty, agent_mask=alive))
    assert dataset.data[MASK].all() and dataset.data["next", *MASK].all()
    assert any("rows allow dead agents no action" in finding for finding in dataset.metadata["findings"])
    alive[2, 1] = True
    with pytest.raises(DatasetError, match="allows no action at all"):
        from_arrays(**arrays(empty, agent_mask=alive))


def test_files_of_either_format_are_mended_whole_or_in_blocks(tmp_path, monkeypatch):
    pytest.importorskip("tensorstore")
    vault = vault_arrays([4, 3, 5], discrete=True)
    vault["infos.legals"][0, [1, 2, 3, 9, 10, 11], 1] = 0
    steps = pymarl_episode_arrays([4, 3], longest=4)
    steps["avail_actions"][0, 2:, 0] = 0
    monkeypatch.setattr("torchrl_marl_offline.data.formats.streaming._BYTES_AT_ONCE", 500)
    monkeypatch.setattr("torchrl_marl_offline.data.transitions.row_blocks._ROWS_AT_ONCE", 2)
    for source, dead in (
        (f"vault:{write_vault(tmp_path / 'v', vault)}", [[1, 1], [2, 1], [3, 1], [9, 1], [10, 1], [11, 1]]),
        (f"pymarl:{write_h5(tmp_path / 'a.h5', steps)}", [[2, 0], [3, 0]]),
    ):
        with pytest.raises(DatasetError, match="allows no action at all"):
            load_dataset(source)
        dataset = load_dataset(source, repair=True)
        assert (~dataset.data[ALIVE]).nonzero().tolist() == dead and dataset.data["collector", "mask"].all()
        written = OfflineDataset.load(convert_dataset(source, tmp_path / "out", repair=True, overwrite=True))
        assert (written.data == dataset.data).all()


def test_codes_say_what_is_mended(tmp_path):
    steps = pymarl_episode_arrays([4, 3], longest=4)
    steps["avail_actions"][0, 2:, 0] = 0
    steps["avail_actions"][1, 1, 1] = [1, 0, 1]  # action 2 was taken there
    steps["avail_actions"][1, 1, 1, 2] = 0
    source = f"pymarl:{write_h5(tmp_path / 'a.h5', steps)}"
    assert len(load_dataset(source, repair=True).metadata["repairs"]) > 1
    with pytest.raises(DatasetError, match="illegal_action on 1 rows"):
        load_dataset(source, repair=True, codes=["no_legal_action"])
    codes = ["no_legal_action", "illegal_action", "illegal_next_action"]
    assert load_dataset(source, repair=True, codes=codes).data[MASK].any(-1).all()
    assert convert_dataset(source, tmp_path / "out", repair=True, codes=codes).is_dir()
    for wrong, sentence in (({"codes": codes}, "pass repair=True"), ({"repair": True, "codes": ["x"]}, "'x'")):
        with pytest.raises(ValueError, match=sentence):
            load_dataset(source, **wrong)


def test_a_mask_of_an_environment():
    mask = torch.tensor([[[True, False], [False, False]]])
    alive = torch.tensor([[True, False]])
    assert usable_mask(mask, alive).tolist() == [[[True, False], [True, True]]]
    assert usable_mask(mask, None, torch.tensor([[True]])).all(-1).any()
    assert usable_mask(mask[:, :1], None) is not None
    for living in (None, torch.ones(1, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"Agent b of environment 0 lives, but its action mask allows no action"):
            usable_mask(mask, living, names=["a", "b"])


class Silent:
    """Two agents, two actions, five steps; from step 2 on the second one's mask is empty."""

    def __init__(self, *, dies: bool) -> None:
        import gymnasium

        self.dies = dies
        self.possible_agents = self.agents = ["a", "b"]
        self.metadata: dict = {}
        self.observation_spaces = {
            name: gymnasium.spaces.Dict(
                observation=gymnasium.spaces.Box(0.0, 9.0, (1,), np.float32),
                action_mask=gymnasium.spaces.Box(0, 1, (2,), np.int8),
            )
            for name in self.agents
        }
        self.action_spaces = {name: gymnasium.spaces.Discrete(2) for name in self.agents}

    def observation_space(self, name):
        return self.observation_spaces[name]

    def action_space(self, name):
        return self.action_spaces[name]

    def seen(self):
        masks = {"a": np.ones(2, np.int8), "b": np.ones(2, np.int8) * (self.time < 2)}
        return {name: {"observation": np.full(1, self.time, np.float32), "action_mask": masks[name]} for name in "ab"}

    def reset(self, seed=None, options=None):
        self.time, self.agents = 0, ["a", "b"]
        return self.seen(), {"a": {}, "b": {}}

    def step(self, actions):
        self.time += 1
        seen, over = self.seen(), self.time == 5
        gone = {"a": over, "b": over or (self.dies and self.time >= 2)}
        acting = self.agents
        self.agents = [name for name in acting if not gone[name]]
        told = dict.fromkeys(acting, 0.0)
        flags = {name: gone[name] for name in acting}
        return {n: seen[n] for n in acting}, told, flags, dict.fromkeys(acting, False), {n: {} for n in acting}

    def close(self):
        pass


def test_a_live_environment_with_an_empty_mask():
    pytest.importorskip("pettingzoo")
    from pettingzoo import ParallelEnv

    from torchrl_marl_offline import collect, from_pettingzoo, make_actor
    from torchrl_marl_offline.evaluation.in_environments import evaluate

    def make(dies):
        kind = type("SilentEnv", (Silent, ParallelEnv), {})
        return from_pettingzoo(lambda: kind(dies=dies), num_envs=2, max_steps=5)

    dead = make(True)
    dataset = collect(dead, episodes=2, seed=0)
    assert dataset.episode_lengths.tolist() == [5, 5] and (~dataset.data[ALIVE][2:5, 1]).all()
    actor = make_actor(dead.task_spec, hidden=(4,))
    assert evaluate(actor, dead, episodes=2, seed=0).lengths.tolist() == [5, 5]
    alive = make(False)
    for play in (
        lambda: collect(alive, episodes=2, seed=0),
        lambda: evaluate(actor, alive, episodes=2, seed=0),
        lambda: alive.rollout(5),
    ):
        with pytest.raises(ValueError, match="lives, but its action mask allows no action; let the"):
            play()


def test_a_random_policy_in_an_environment_of_ones_own():
    from torchrl_marl_offline.data.collection import random_policy
    from torchrl_marl_offline.evaluation.in_environments import raise_on_illegal_action

    act = random_policy(SimpleNamespace())
    mask = torch.tensor([[[True, False], [False, False]]])
    seen = TensorDict({"agents": TensorDict({"action_mask": mask, "mask": torch.tensor([[True, False]])}, [1, 2])}, [1])
    assert raise_on_illegal_action(act(seen)) == 2
    seen["agents", "mask"] = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="Agent 1 of environment 0 lives"):
        act(seen)
