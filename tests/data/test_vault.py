from __future__ import annotations

import os
import shutil
import signal
import time

import numpy as np
import processes
import pytest
import torch
from format_toys import vault_arrays, write_vault
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import AWR, IQL, OfflineMARLLoss, make_actor, make_critic, make_value
from torchrl_marl_offline.data import (
    DatasetError,
    OfflineDataset,
    convert_dataset,
    inspect,
    load_dataset,
    read_pymarl,
    read_vault,
)
from torchrl_marl_offline.data.formats.vault import open_vault
from torchrl_marl_offline.data.transitions.fingerprints import content_checksum

pytest.importorskip("tensorstore")


def test_the_vault_and_the_hdf5_it_came_from_are_one_recording(recordings):
    vault = load_dataset(f"vault:{recordings}/vaults/og_marl/smac_v1/3m.vlt/Medium", time_limit=60)
    hdf5 = read_pymarl(recordings / "pymarl" / "smac-3m-medium.h5").select_episodes(range(300))
    assert len(vault) == len(hdf5) == 7614 and vault.n_episodes == 300
    assert (vault.episode_starts == hdf5.episode_starts).all()
    last = hdf5.data["next", "done"][:, 0]
    differing = {}
    for key in vault.data.keys(True, True):
        here, there = vault.data.get(key), hdf5.data.get(key)
        different = (here != there).reshape(len(here), -1).any(-1)
        assert not (different & ~last).any(), key  # bit for bit, but for the last rows of episodes
        if different.any():
            differing[key] = int(different.sum())
    # What a vault does not store: what followed an episode's last action, and the action chosen there.
    assert differing == {
        ("next", "agents", "observation"): 291,
        ("next", "state"): 299,
        ("next", "agents", "action_mask"): 291,
        ("next", "agents", "action"): 295,
        ("collector", "has_next_action"): 300,
        ("collector", "mask"): 9,
    }
    for key in (("agents", "observation"), ("agents", "action_mask"), "state"):
        stays = vault.data["next", key] if isinstance(key, str) else vault.data.get(("next", *key))
        assert torch.equal(stays[last], vault.data.get(key)[last])
    assert torch.equal(~vault.data["collector", "mask"], vault.data["next", "truncated"][:, 0])
    assert set(hdf5.data.keys(True, True)) - set(vault.data.keys(True, True)) == {("next", "success")}


def test_discrete_layout(tmp_path):
    data = read_vault(write_vault(tmp_path / "v", vault_arrays([3, 1]))).data
    assert data["agents", "observation"][:, 1].tolist() == [[0, 0, 1], [0, 1, 1], [0, 2, 1], [1, 0, 1]]
    assert data["next", "agents", "observation"][:, 1].tolist() == [[0, 1, 1], [0, 2, 1], [0, 2, 1], [1, 0, 1]]
    assert data["state"].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert data["agents", "action"][:, 0].tolist() == [0, 1, 2, 1]
    assert data["next", "agents", "action"][:2, 0].tolist() == [1, 2]
    assert data["collector", "has_next_action"].tolist() == [True, True, False, False]
    assert data["collector", "mask"].all()
    assert data["agents", "action_mask"][0, 0].tolist() == [True, False, True]
    assert data["next", "agents", "reward"][:, :, 0].tolist() == [[0, 1], [1, 2], [2, 3], [0, 1]]
    assert data["next", "terminated"].flatten().tolist() == [False, False, True, True]


def test_continuous_layout_and_truncations(tmp_path):
    arrays = vault_arrays([3, 2], discrete=False, terminated=False)
    del arrays["infos.state"]
    dataset = read_vault(write_vault(tmp_path / "v", arrays), task="toys/v")
    assert dataset.spec.action_size == 2 and not dataset.spec.discrete and dataset.spec.task == "toys/v"
    assert dataset.data["state"].shape == (5, 6) and dataset.metadata["state"] == "joint observation"
    assert dataset.data["collector", "mask"].tolist() == [True, True, False, True, False]
    assert dataset.data["next", "truncated"].flatten().tolist() == [False, False, True, False, True]
    assert "2 truncated rows have no recorded successor" in dataset.metadata["findings"][0]


def ends_of_every_kind(tmp_path) -> OfflineDataset:
    """Episodes of 3, 2, 4 and 2 rows: terminated, truncated, marked as both, cut off by the recording's end."""
    arrays = vault_arrays([3, 2, 4, 2])
    for name, rows in (("terminals", [2, 8]), ("truncations", [4, 8])):
        arrays[name][:] = False
        arrays[name][:, rows] = True
    return read_vault(write_vault(tmp_path / "v", arrays))


def test_the_last_row_of_an_episode_never_leads_into_the_next_one(tmp_path):
    dataset = ends_of_every_kind(tmp_path)
    data, last = dataset.data, torch.tensor([2, 4, 8, 10])
    assert dataset.episode_lengths.tolist() == [3, 2, 4, 2]
    assert data["next", "terminated"].flatten().nonzero().flatten().tolist() == [2, 8]
    assert data["next", "truncated"].flatten().nonzero().flatten().tolist() == [4, 8, 10]
    for key in (("agents", "observation"), ("agents", "action_mask"), "state"):
        successor = data["next", key] if isinstance(key, str) else data[("next", *key)]
        assert torch.equal(successor[last], data[key][last])  # a placeholder: nothing is recorded there
        inside = torch.ones(11, dtype=torch.bool)
        inside[last] = False
        assert torch.equal(successor[inside], data[key][inside.nonzero().flatten() + 1])
    # What was only truncated has no successor to bootstrap from and does not count; what terminated needs none.
    assert (~data["collector", "mask"]).nonzero().flatten().tolist() == [4, 10]
    assert not data["collector", "has_next_action"][last].any()
    assert inspect(dataset).of_severity("error") == ()


def test_terminated_last_rows_train_without_their_successor(tmp_path):
    dataset = ends_of_every_kind(tmp_path)
    nets = {"decomposition": "vdn", "hidden": (8,)}
    actor = make_actor(dataset.spec, hidden=(8,))
    critic, value = make_critic(dataset.spec, **nets), make_value(dataset.spec, **nets)
    loss = OfflineMARLLoss(actor, critic, value, value_learning=IQL(0.7), extraction=AWR(1.0))
    loss.make_value_estimator(gamma=0.9)
    SoftUpdate(loss, tau=0.5)  # or the loss warns of targets that nobody updates

    def terms(data) -> list[float]:
        out = loss(data.clone())
        return [out[name].item() for name in ("loss_actor", "loss_qvalue", "loss_value")]

    expected = terms(dataset.data)
    other = dataset.data.clone()
    for key in (("next", "agents", "observation"), ("next", "state")):
        other[key][[2, 4, 8, 10]] = 100.0
    assert terms(other) == expected
    for row, changes in ((2, True), (8, True), (4, False), (10, False)):
        other = dataset.data.clone()
        other["next", "agents", "reward"][row] += 1.0
        assert (terms(other) != expected) == changes


def test_five_seeds_lie_end_to_end(tmp_path):
    arrays = vault_arrays([3, 2], seeds=5, discrete=False)
    arrays["infos.state"] = np.repeat(arrays["infos.state"][:, :, None], 2, axis=2)  # one copy per agent
    folder = write_vault(tmp_path / "v", arrays)
    dataset = read_vault(folder)
    assert dataset.episode_lengths.tolist() == [3, 2] * 5
    assert dataset.data["agents", "observation"][::5, 0, 0].tolist() == [0, 100, 200, 300, 400]
    assert dataset.spec.state_size == 2 and "recorded 2 times over" in dataset.metadata["findings"][0]
    some = read_vault(folder, seeds=[4, 1])
    assert some.data["agents", "observation"][::5, 0, 0].tolist() == [400, 100]
    with pytest.raises(DatasetError, match="holds seeds 0 to 4, not"):
        read_vault(folder, seeds=[5])


def test_the_time_limit_and_recordings_without_ends(tmp_path):
    arrays = vault_arrays([4, 4, 2], discrete=False)
    dataset = read_vault(write_vault(tmp_path / "v", arrays), time_limit=4)
    assert dataset.data["next", "truncated"].sum() == 2 and dataset.data["next", "terminated"].sum() == 1
    assert "2 episodes stopped by the time limit of 4 steps" in dataset.metadata["findings"][0]
    assert "beyond the time limit of 3" in read_vault(tmp_path / "v", time_limit=3).metadata["findings"][0]
    arrays["terminals"][:] = False
    dataset = read_vault(write_vault(tmp_path / "w", arrays), episode_length=5)
    assert dataset.episode_lengths.tolist() == [5, 5]
    assert "marks no end; it was cut every 5 rows" in dataset.metadata["findings"][0]


@pytest.mark.parametrize("discrete", [True, False])
def test_blocks_of_any_size_are_the_whole(tmp_path, discrete):
    arrays = vault_arrays([3, 1, 5, 2, 4], seeds=2, discrete=discrete, terminated=False)
    folder = write_vault(tmp_path / "v", arrays)
    whole = read_vault(folder)
    for rows in (1, 2, 3, 15, 16, 100):
        assert (torch.cat(list(open_vault(folder).chunks(rows))) == whole.data).all(), rows
    written = OfflineDataset.load(open_vault(folder).write(tmp_path / "out"))
    assert (written.data == whole.data).all() and written.spec == whole.spec
    assert {**written.metadata, "values_checked": None} == {**whole.metadata, "values_checked": None}


def test_masks_that_allow_nothing_are_opened_and_counted_over_blocks(tmp_path):
    arrays = vault_arrays([2, 2], terminated=True)
    arrays["infos.legals"][:, [1, 3], 0] = 0  # also illegal where the action was taken
    stream = open_vault(write_vault(tmp_path / "v", arrays))
    opened = torch.cat(list(stream.chunks(1)))
    assert opened["next", "agents", "action_mask"][[1, 3], 0].all()
    assert stream.metadata["findings"] == ["2 final rows allow no action; all are allowed there, none is used"]
    with pytest.raises(DatasetError, match="allows no action at all"):
        read_vault(tmp_path / "v")


def test_what_is_damaged_is_said(tmp_path):
    folder = write_vault(tmp_path / "v", vault_arrays([3, 2] * 20))
    for name, expected in (("metadata.json", "cannot be read"), ("manifest.ocdbt", "holds no vault")):
        broken = tmp_path / f"without-{name}"
        shutil.copytree(folder, broken)
        (broken / name).unlink()
        with pytest.raises(DatasetError, match=expected):
            read_vault(broken)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_vault(write_vault(tmp_path / "long", vault_arrays([3, 2] * 20), rows=200))  # 100 rows lie there
    arrays = vault_arrays([3, 2])
    arrays["rewards"] = arrays["rewards"].repeat(2, -1)
    with pytest.raises(DatasetError, match="has rewards of shape"):
        read_vault(write_vault(tmp_path / "shapes", arrays))
    arrays = vault_arrays([3, 2])
    del arrays["infos.legals"]
    with pytest.raises(DatasetError, match="pass n_actions="):
        read_vault(write_vault(tmp_path / "legals", arrays))
    assert read_vault(tmp_path / "legals", n_actions=3).spec.action_size == 3
    del arrays["terminals"]
    with pytest.raises(DatasetError, match="lacks terminals"):
        read_vault(write_vault(tmp_path / "terminals", arrays))


def test_an_illegal_action_stops_the_conversion_and_leaves_nothing(tmp_path):
    arrays = vault_arrays([3, 2] * 4)
    arrays["actions"][0, 13] = (arrays["actions"][0, 13] + 1) % 3
    with pytest.raises(DatasetError, match=r"illegal by .* \(first at row 12|first at row 13"):
        open_vault(write_vault(tmp_path / "v", arrays)).write(tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["v"]


def test_a_repairing_conversion_mends_block_by_block(tmp_path, monkeypatch):
    arrays = vault_arrays([3, 2] * 4)
    arrays["actions"][0, 13] = (arrays["actions"][0, 13] + 1) % 3
    source = f"vault:{write_vault(tmp_path / 'v', arrays)}"
    whole = load_dataset(source, repair=True)
    monkeypatch.setattr("torchrl_marl_offline.data.formats.streaming._BYTES_AT_ONCE", 1000)
    monkeypatch.setattr("torchrl_marl_offline.data.transitions.row_blocks._ROWS_AT_ONCE", 3)
    mended = load_dataset(convert_dataset(source, tmp_path / "out", repair=True))
    assert content_checksum(mended) == content_checksum(whole)
    assert mended.metadata["repairs"] == whole.metadata["repairs"] != []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "v"]


def test_a_damaged_chunk_stops_the_conversion(tmp_path):
    arrays = vault_arrays([3, 2] * 20)
    arrays["observations"] = np.random.default_rng(0).random(arrays["observations"].shape, np.float32)
    folder = write_vault(tmp_path / "v", arrays, chunk_rows=50)
    stream = open_vault(folder)
    for file in (folder / "d").iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 20] = bytes(20)
        file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"vault.* cannot be read"):
        stream.write(tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["v"]


KILLED = """
import sys
from torchrl_marl_offline.data.formats import streaming
from torchrl_marl_offline.data.transitions.fingerprints import content_checksum
from torchrl_marl_offline.data.formats.vault import open_vault
streaming._BYTES_AT_ONCE = 4096
stream = open_vault(sys.argv[1])
print("started", flush=True)
stream.write(sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_and_starts_again(tmp_path):
    folder = write_vault(tmp_path / "v", vault_arrays([20] * 1000), chunk_rows=500)
    target = tmp_path / "out"
    for delay in (0.0, 0.2, 0.6):
        process = processes.start("-c", KILLED, folder, target)
        assert process.stdout.readline() == "started\n"
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not target.exists() or len(OfflineDataset.load(target)) == 20_000
    open_vault(folder).write(target, overwrite=True)
    assert len(OfflineDataset.load(target)) == 20_000
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "v"]
