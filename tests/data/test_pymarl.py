from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from data_toys import episodes, pymarl_episode_arrays, recording, write_h5

from torchrl_marl_offline.data import DatasetError, load_dataset, read_pymarl
from torchrl_marl_offline.data.formats.pymarl import known_task

pytest.importorskip("h5py")


def test_unequal_episodes_and_final_observations(tmp_path):
    path = write_h5(tmp_path / "toy.h5", pymarl_episode_arrays([3, 1], longest=4))
    dataset = read_pymarl(path)
    data = dataset.data
    assert dataset.episode_lengths.tolist() == [3, 1]
    assert data["agents", "observation"][:, 0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert data["next", "agents", "observation"][:, 1].tolist() == [[0, 1], [0, 2], [0, 3], [1, 1]]
    assert data["state"][:, 1].tolist() == [0, 1, 2, 0]
    assert data["next", "state"].tolist() == [[0, 1, 7], [0, 2, 7], [0, 3, 7], [1, 1, 7]]
    assert data["agents", "action"][:, 0].tolist() == [0, 1, 2, 1]
    assert data["next", "agents", "action"][:, 0].tolist() == [1, 2, 0, 2]  # the final choice is recorded
    assert data["collector", "has_next_action"].all()
    assert data["collector", "mask"].all()
    assert data["next", "terminated"].flatten().tolist() == [False, False, True, True]
    assert data["next", "agents", "reward"][:, :, 0].tolist() == [[1, 1], [2, 2], [3, 3], [1, 1]]
    assert dataset.episode_returns().tolist() == [6.0, 1.0]
    assert dataset.metadata["team_reward"] is True and dataset.metadata["task_options"] == {}
    assert dataset.spec.task is None and dataset.success() is None


def test_unmarked_ends_are_truncations(tmp_path):
    arrays = pymarl_episode_arrays([3, 1], longest=4, terminated=[False, True])
    data = read_pymarl(write_h5(tmp_path / "toy.h5", arrays)).data
    assert data["next", "truncated"].flatten().tolist() == [False, False, True, False]
    assert data["next", "terminated"].flatten().tolist() == [False, False, False, True]


def test_final_choices_that_a_writer_left_at_zero_are_no_choices(tmp_path):
    arrays = pymarl_episode_arrays([3, 1], longest=4)
    arrays["actions"][0, 3] = arrays["actions"][1, 1] = 0
    arrays["avail_actions"][1, 1, 0] = [0, 0, 1]
    data = read_pymarl(write_h5(tmp_path / "toy.h5", arrays)).data
    assert data["collector", "has_next_action"].tolist() == [True, True, False, False]
    assert data["next", "agents", "action"][3].tolist() == [2, 0]  # the first legal ones stand there


def test_an_illegal_final_choice_is_no_choice(tmp_path):
    arrays = pymarl_episode_arrays([3, 1], longest=4)
    arrays["avail_actions"][1, 1] = [1, 1, 0]  # the recorded choice there is 2
    data = read_pymarl(write_h5(tmp_path / "toy.h5", arrays)).data
    assert data["collector", "has_next_action"].tolist() == [True, True, True, False]


def test_the_time_limit_rule(tmp_path):
    arrays = pymarl_episode_arrays([3, 3, 2, 3], longest=3, terminated=[True, True, True, False])
    arrays["reward"][[0, 3], 2] = 0.0
    # At the limit, 0 fails and is marked, 1 succeeds, 3 fails without the mark; 2 ends before it.
    path = write_h5(tmp_path / "toy.h5", arrays)
    dataset = read_pymarl(path, time_limit=3)
    last = dataset.episode_starts + dataset.episode_lengths - 1
    assert dataset.data["next", "truncated"][last].flatten().tolist() == [True, False, False, True]
    assert dataset.data["next", "terminated"][last].flatten().tolist() == [False, True, True, False]
    assert dataset.metadata["findings"][0].startswith("1 episodes stopped by the time limit of 3 steps")
    assert dataset.metadata["time_limit"] == 3
    with pytest.raises(DatasetError, match="episode of 3 transitions, beyond time_limit=2"):
        read_pymarl(path, time_limit=2)


def test_without_a_limit_the_suspicion_is_recorded(tmp_path):
    arrays = pymarl_episode_arrays([3, 3, 2], longest=3)
    arrays["reward"][:] = 0
    dataset = read_pymarl(write_h5(tmp_path / "toy.h5", arrays))
    assert dataset.data["next", "terminated"].sum() == 3
    assert dataset.metadata["findings"][0].startswith("2 episodes end as terminated after the greatest length, 3")


def test_empty_episodes_are_left_out_and_counted(tmp_path):
    arrays = pymarl_episode_arrays([3, 1, 2], longest=3)
    arrays["filled"][1] = 0
    dataset = read_pymarl(write_h5(tmp_path / "toy.h5", arrays))
    assert dataset.data["agents", "observation"][:, 0, 0].tolist() == [0, 0, 0, 2, 2]
    assert "1 episodes hold no transition" in dataset.metadata["findings"][0]


def test_masks_left_empty_after_a_termination_are_opened(tmp_path):
    arrays = pymarl_episode_arrays([3, 1], longest=3)
    arrays["avail_actions"][1, 1] = 0
    dataset = read_pymarl(write_h5(tmp_path / "toy.h5", arrays))
    assert dataset.data["next", "agents", "action_mask"][3].all()
    assert "1 final rows allow no action" in dataset.metadata["findings"][0]
    arrays["terminated"][1] = 0  # truncated: the mask is needed
    with pytest.raises(DatasetError, match="allows no action at all"):
        read_pymarl(write_h5(tmp_path / "open.h5", arrays))


def test_many_episodes_are_read_in_parts(tmp_path):
    lengths = [1 + e % 4 for e in range(600)]
    dataset = read_pymarl(write_h5(tmp_path / "toy.h5", pymarl_episode_arrays(lengths, longest=4)))
    assert dataset.episode_lengths.tolist() == lengths
    assert dataset.data["agents", "observation"][dataset.episode_starts, 0, 0].tolist() == list(range(600))


def test_recognised_tasks_can_be_overridden(tmp_path):
    arrays = pymarl_episode_arrays([3], longest=3, n=2, n_actions=5)
    arrays["obs"] = np.zeros((1, 4, 2, 8), np.float32)
    arrays["state"] = np.zeros((1, 4, 8), np.float32)
    path = write_h5(tmp_path / "toy.h5", arrays)
    dataset = load_dataset(f"pymarl:{path}")
    assert dataset.spec.task == "games/grid_navigation"
    assert dataset.metadata["task_options"] == {"agents": 2} and dataset.metadata["time_limit"] == 50
    assert dataset.success().tolist() == [True]
    other = load_dataset(f"pymarl:{path}", task="mine/own")
    assert other.spec.task == "mine/own" and other.metadata["time_limit"] is None
    assert other.metadata["task_options"] == {} and other.success() is None


def test_the_table_of_known_tasks():
    assert known_task(3, 30, 48, 9).task == "smac/3m"
    assert known_task(5, 20, 20, 5).options == {"agents": 5}
    assert known_task(6, 24, 24, 5) is None and known_task(2, 8, 8, 4) is None


def _drop(*names):
    return lambda arrays: [arrays.pop(name) for name in names]


def _put(name, index, value):
    def plant(arrays):
        arrays[name][index] = value

    return plant


def _replace(name, change):
    def plant(arrays):
        arrays[name] = change(arrays[name])

    return plant


DEFECTS = {
    "missing fields": (_drop("reward", "filled"), "lacks reward, filled .it has actions, avail_actions, obs"),
    "flat obs": (_replace("obs", lambda obs: obs[:, :, 0]), r"has obs \(2, 4, 2\).* instead of obs \[E, L, n, o\]"),
    "short reward": (_replace("reward", lambda reward: reward[:, :-1]), r"reward has shape \(2, 3, 1\) where"),
    "agents differ": (_replace("actions", lambda actions: actions[:, :, :1]), r"actions has shape \(2, 4, 1, 1\)"),
    "continuous": (_replace("actions", lambda actions: actions + 0.5), "actions are not whole numbers"),
    "gap": (_put("filled", (0, 1), 0), "episode 0, row 1: filled has a gap"),
    "nothing": (_put("filled", slice(None), 0), "holds no transition"),
    "end inside": (_put("terminated", (0, 1), 1), "episode 0, row 1: terminated is set on a step"),
    "end too late": (_put("terminated", (0, 3), 1), "episode 0, row 3: terminated is set on a step"),
    "NaN": (_put("obs", (0, 1), np.nan), r"\('agents', 'observation'\) is NaN .* row 1"),
    "NaN at the end": (_put("state", (1, 1), np.nan), r"\('next', 'state'\) is NaN .* row 3"),
    "illegal": (_put("avail_actions", (0, 1, 0), [1, 0, 1]), r"\('agents', 'action'\) is illegal .* row 1"),
    "empty mask": (_put("avail_actions", (0, 1, 0), 0), "allows no action at all .* row 1"),
    "no such action": (_put("actions", (0, 1), 7), r"lies outside 0\.\.2 .first at row 1"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_planted_defects_are_named(name, tmp_path):
    plant, sentence = DEFECTS[name]
    arrays = pymarl_episode_arrays([3, 1], longest=3)
    plant(arrays)
    path = write_h5(tmp_path / "planted.h5", arrays)
    with pytest.raises(DatasetError, match=sentence) as caught:
        read_pymarl(path)
    assert str(path) in str(caught.value)


def test_other_formats_are_refused(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    (tmp_path / "notes.txt").write_text("some text, and more of it")
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    episodes([2]).save(tmp_path / "ours")
    for name, sentence in {
        "arrays.npz": r"is a zip or NumPy archive, not HDF5; pass its arrays to from_arrays\(\)",
        "notes.txt": "is not an HDF5 file",
        "empty.h5": "is not an HDF5 file",
        "folder": "is a folder.* give one .h5 file",
        "ours": r"is a folder.* load_dataset\(path\)",
        "nowhere.h5": "does not exist",
    }.items():
        with pytest.raises(DatasetError, match=sentence):
            load_dataset(f"pymarl:{tmp_path / name}")
    write_h5(tmp_path / "omiga.h5", {"s": np.zeros(3), "o": np.zeros(3), "a": np.zeros(3)})
    with pytest.raises(DatasetError, match=r"lacks obs, .*it has a, o, s"):
        load_dataset(f"pymarl:{tmp_path / 'omiga.h5'}")
    with pytest.raises(DatasetError, match="lacks d, r for omiga_h5: load it as 'omiga_h5:"):
        load_dataset(tmp_path / "omiga.h5")


@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_a_truncated_file(kept, tmp_path):
    path = write_h5(tmp_path / "cut.h5", pymarl_episode_arrays([3] * 200, longest=3))
    os.truncate(path, int(kept * path.stat().st_size))
    with pytest.raises(DatasetError, match=r"cut\.h5 is a damaged or truncated HDF5 file .*fetch it again"):
        read_pymarl(path)


def test_a_damaged_chunk(tmp_path):
    import h5py

    arrays = pymarl_episode_arrays([3] * 50, longest=3)
    path = tmp_path / "damaged.h5"
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip")
        where = file["obs"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[where.byte_offset : where.byte_offset + where.size] = bytes(where.size)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="obs cannot be read"):
        read_pymarl(path)


def test_starcraft_recording():
    dataset = load_dataset(f"pymarl:{recording('smac-3m-medium.h5')}")
    assert (dataset.n_episodes, len(dataset)) == (2_000, 50_450)
    returns = dataset.episode_returns()
    assert returns.mean().item() == pytest.approx(14.00, abs=0.005)
    assert returns.std(correction=0).item() == pytest.approx(6.55, abs=0.005)
    spec = dataset.spec
    assert (spec.n_agents, spec.observation_size, spec.state_size, spec.action_size) == (3, 30, 48, 9)
    assert spec.task == "smac/3m" and spec.has_action_mask
    assert dataset.metadata["findings"][0].startswith("47 episodes stopped by the time limit of 60 steps")
    assert dataset.data["next", "truncated"].sum() == 47
    # every win of a medium policy ends before the limit, with all three enemies dead
    assert dataset.success().sum() + 870 + 47 == 2_000


@pytest.mark.parametrize(("name", "rows", "success"), [("expert", 3_984, 1.0), ("medium", 70_894, 0.4385)])
def test_grid_navigation_recordings(name, rows, success):
    dataset = load_dataset(f"pymarl:{recording(f'cn-2-{name}.h5')}")
    assert (dataset.n_episodes, len(dataset)) == (2_000, rows)
    assert dataset.episode_returns().mean().item() == pytest.approx(success)
    assert dataset.success().float().mean().item() == pytest.approx(success)
    assert dataset.spec.task == "games/grid_navigation" and dataset.metadata["task_options"] == {"agents": 2}
    truncated = dataset.data["next", "truncated"].sum().item()
    assert truncated == round(2_000 * (1 - success))
    assert dataset.data["next", "terminated"].sum().item() + truncated == 2_000
    assert dataset.data["collector", "has_next_action"].all()
    here, there = dataset.data["agents", "observation"][1:], dataset.data["next", "agents", "observation"][:-1]
    inside = ~dataset.data["next", "done"][:-1, 0]
    assert torch.equal(here[inside], there[inside])
    as_recorded = load_dataset(f"pymarl:{recording(f'cn-2-{name}.h5')}", time_limit=None, inspect=False)
    assert as_recorded.data["next", "terminated"].sum() == 2_000
