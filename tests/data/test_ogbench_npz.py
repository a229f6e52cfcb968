"""OGBench's files of ant mazes, in their documented layout, as those of a team that shares out the legs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from format_toys import ogbench_arrays

from torchrl_marl_offline import load_dataset
from torchrl_marl_offline.core.goals import AtGoals
from torchrl_marl_offline.core.layout import ACHIEVED, GOAL
from torchrl_marl_offline.data import DatasetError, hindsight_buffer


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "antmaze-medium-navigate-v0.npz", **ogbench_arrays((3, 5)))
    return tmp_path / "antmaze-medium-navigate-v0.npz"


def test_rows_actions_and_goals_by_hand(file):
    arrays = ogbench_arrays((3, 5))
    data = load_dataset(f"ogbench:{file}")
    assert (len(data), data.n_episodes, data.episode_lengths.tolist()) == (8, 2, [3, 5])
    rows, body = [0, 1, 2, 4, 5, 6, 7, 8], torch.from_numpy(arrays["observations"])
    assert torch.equal(data.data["state"][:, :29], body[rows])
    assert torch.equal(data.data["next", "state"][:, :29], body[[row + 1 for row in rows]])
    control = torch.from_numpy(arrays["actions"])[rows]
    assert torch.equal(data.data["agents", "action"][:, 0], control[:, [2, 3, 4, 5]])
    assert torch.equal(data.data["agents", "action"][:, 1], control[:, [6, 7, 0, 1]])
    goals = body[[3, 9], :2].repeat_interleave(torch.tensor([3, 5]), 0)
    for agent in range(2):
        assert torch.equal(data.data[GOAL][:, agent], goals)
        assert torch.equal(data.data["next", *ACHIEVED][:, agent], body[[row + 1 for row in rows], :2])
    ends = [False, False, True, False, False, False, False, True]
    assert data.data["next", "terminated"].flatten().tolist() == ends
    assert data.data["next", "agents", "reward"][:, 1, 0].tolist() == [float(end) for end in ends]
    assert data.metadata["task_options"] == {"sight": "own"} and data.spec.task == "ogbench/antmaze-medium-2x4"


def test_it_takes_goals_in_hindsight_and_other_partitions(file):
    data = load_dataset(f"ogbench:{file}", task="ogbench/antmaze-medium-4x2", sight="all")
    assert (data.spec.n_agents, data.spec.action_size, data.spec.observation_size) == (4, 2, 31)
    batch = hindsight_buffer(data, AtGoals(within=0.5), future=1.0, batch_size=32, seed=0).sample()
    assert batch["next", "success"].any() and (batch[GOAL] == batch[GOAL][:, :1]).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"actions": np.zeros((10, 5), np.float32)},
            r"actions has shape \(10, 5\).*other tasks of OGBench",
        ),
        ({"observations": np.zeros((10, 29), "<U3")}, "observations"),
        ({"terminals": np.zeros(10, np.float32)}, "cut short"),
        ({"terminals": np.ones(10, np.float32)}, "has a trajectory without a step"),
        ({"actions": np.zeros((7, 8), np.float32)}, "columns of unequal length"),
        ({"actions": np.array([{}] * 10)}, "'actions' holds Python objects"),
        ({"terminals": None}, "lacks terminals"),
    ],
)
def test_other_content_is_refused(tmp_path, change, said):
    arrays = {name: each for name, each in (ogbench_arrays((3, 5)) | change).items() if each is not None}
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(DatasetError, match=said):
        load_dataset(f"ogbench:{tmp_path / 'file.npz'}")


def test_damage_is_refused(file):
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DatasetError):
        load_dataset(f"ogbench:{file}")
