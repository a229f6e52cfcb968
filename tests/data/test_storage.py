from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import processes
import pytest
import torch
from data_toys import episodes
from tensordict import MemoryMappedTensor

from torchrl_marl_offline.core.files import try_lock
from torchrl_marl_offline.data import DatasetError, OfflineDataset, load_dataset
from torchrl_marl_offline.data.transitions import storage


@pytest.fixture
def saved(tmp_path):
    return episodes([3, 1, 4]).save(tmp_path / "toy")


def a_leaf(folder):
    return next(iter(sorted((folder / "data").rglob("observation.memmap"))))


def test_round_trip(tmp_path, saved):
    original = episodes([3, 1, 4])
    for loaded in (OfflineDataset.load(saved), load_dataset(saved), load_dataset(str(saved), verify=False)):
        assert (loaded.data == original.data).all()
        assert all(isinstance(leaf, MemoryMappedTensor) for leaf in loaded.data.values(True, True))
        assert loaded.spec == original.spec
        assert loaded.metadata == original.metadata
        assert loaded.episode_returns().tolist() == [3.0, 1.0, 4.0]
    assert not OfflineDataset.load(saved, device="cpu").data.requires_grad
    part = OfflineDataset.load(saved).select_episodes([1, 2])
    assert part.data["collector", "traj_ids"].tolist() == [0, 1, 1, 1, 1]
    again = part.save(tmp_path / "part")
    assert (OfflineDataset.load(again).data == part.data).all()


def test_nothing_is_replaced_unless_asked(tmp_path, saved):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        episodes([2]).save(saved)
    assert len(OfflineDataset.load(saved)) == 8
    episodes([2]).save(saved, overwrite=True)
    assert len(OfflineDataset.load(saved)) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="choose another folder"):
        episodes([2]).save(tmp_path / "mine", overwrite=True)


def test_a_dataset_may_overwrite_itself(saved):
    OfflineDataset.load(saved).save(saved, overwrite=True)
    assert (OfflineDataset.load(saved).data == episodes([3, 1, 4]).data).all()


def test_a_changed_byte_is_found(saved):
    file = a_leaf(saved)
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"observation\.memmap was changed"):
        load_dataset(saved)
    load_dataset(saved, verify=False, inspect=False)


def test_a_short_or_missing_file_is_found_without_verifying(saved):
    file = a_leaf(saved)
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(DatasetError, match=r"observation\.memmap has .* bytes instead of"):
        load_dataset(saved, verify=False)
    file.unlink()
    with pytest.raises(DatasetError, match=r"observation\.memmap is missing"):
        load_dataset(saved, verify=False)


def test_damaged_metadata(saved):
    file = saved / "metadata.json"
    text = file.read_text()
    file.write_text(text[:50])
    with pytest.raises(DatasetError, match=r"metadata\.json is damaged"):
        load_dataset(saved)
    file.write_text(json.dumps(json.loads(text) | {"version": 99}))
    with pytest.raises(DatasetError, match=r"99.*this library reads"):
        load_dataset(saved)


def test_metadata_that_were_changed(saved):
    file = saved / "metadata.json"
    header = json.loads(file.read_text())
    for changed in (
        header | {"spec": header["spec"] | {"action_low": -9.0}},
        header | {"metadata": {}},
        {name: part for name, part in header.items() if name != "files"},
    ):
        file.write_text(json.dumps(changed))
        with pytest.raises(DatasetError, match=r"metadata\.json was changed"):
            load_dataset(saved)
    file.write_text(json.dumps(dict(sorted(header.items()))))  # the order does not matter
    assert len(load_dataset(saved)) == 8
    del header["header"]  # written by an earlier version
    file.write_text(json.dumps(header))
    assert len(load_dataset(saved)) == 8


def test_what_is_no_dataset(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    for path, sentence in (("nowhere", "does not exist"), ("folder", "is no dataset folder"), ("file.txt", "pymarl:")):
        with pytest.raises(DatasetError, match=sentence):
            load_dataset(tmp_path / path)
    for path, sentence in (
        ("nowhere", "does not exist"),
        ("folder", "holds no metadata"),
        ("file.txt", "not a folder"),
    ):
        with pytest.raises(DatasetError, match=sentence):
            OfflineDataset.load(tmp_path / path)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(folder):
        raise OSError("disk full")

    monkeypatch.setattr(storage, "_flush", full)
    with pytest.raises(OSError, match="disk full"):
        episodes([2]).save(tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError):
        storage.save(tmp_path / "toy", episodes([2]).data, episodes([2]).spec, {"not json": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_running_writers_stay(tmp_path):
    host = socket.gethostname()
    running, stale, of_our_number, elsewhere, silent = (
        tmp_path / f".toy.tmp-{name}-00000000"
        for name in (f"{host}-1", f"{host}-2", f"{host}-{os.getpid()}", "another-machine-1", "another-machine-2")
    )
    for folder in (running, stale, of_our_number, elsewhere, silent):
        folder.mkdir()
    os.utime(silent, (0, 0))
    lock = os.open(running, os.O_RDONLY)
    assert try_lock(lock)
    episodes([2]).save(tmp_path / "toy")
    assert sorted(tmp_path.iterdir()) == sorted([running, elsewhere, tmp_path / "toy"])
    os.close(lock)
    episodes([2]).save(tmp_path / "toy", overwrite=True)
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, tmp_path / "toy"])


KILL = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from data_toys import episodes
from torchrl_marl_offline.data import OfflineDataset, load_dataset

folder = sys.argv[1]
dataset = episodes([2000] * 60)
reference = dataset.data.clone()
start = time.perf_counter()
dataset.save(folder + "/timed")
duration = time.perf_counter() - start
random.seed(0)
moments = [0.0, *(random.uniform(0, 1.2) * duration for _ in range(10)), None]  # the last one is not killed
outcomes = []
for number, moment in enumerate(moments):
    target = f"{folder}/target{number}"
    child = os.fork()
    if child == 0:
        dataset.save(target)
        os._exit(0)
    if moment is not None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if os.path.exists(target):
        assert (load_dataset(target).data == reference).all()
        outcomes.append("whole")
    else:
        outcomes.append("none")
        dataset.save(target)  # goes on as if nothing had been
        assert (load_dataset(target).data == reference).all()
assert not [name for name in os.listdir(folder) if name.startswith(".")], os.listdir(folder)
print(*outcomes)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_loads(tmp_path):
    here = str(Path(__file__).parents[1] / "toys")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    result = processes.run("-c", KILL, tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    outcomes = result.stdout.split()[-12:]
    assert len(outcomes) == 12
    assert outcomes[0] == "none" and outcomes[-1] == "whole"
