"""Folders and files of strangers: nothing is executed, nothing from outside comes in, nothing waits for ever."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from data_toys import episodes
from inspection_toys import clean
from payloads import payload_bytes, reseal, with_non_tensor

from torchrl_marl_offline.data import DatasetError, DatasetWarning, OfflineDataset, load_dataset
from torchrl_marl_offline.data.quality.inspection import inspect


@pytest.fixture
def saved(tmp_path):
    return episodes([3, 1, 4]).save(tmp_path / "toy")


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


def refused(folder, mark, match=None) -> str:
    """Load a folder in every way; each is refused in one sentence, and no mark is left."""
    for load in (load_dataset, OfflineDataset.load, lambda path: load_dataset(path, verify=False, inspect=False)):
        with pytest.raises(DatasetError, match=match) as caught:
            load(folder)
        assert not mark.exists() and "\n" not in str(caught.value)
    return str(caught.value)


def pickle_beside(folder, mark):
    (folder / "data" / "other.pickle").write_bytes(payload_bytes(mark))


def pickle_as_leaf(folder, mark):
    (folder / "data" / "state.memmap").write_bytes(payload_bytes(mark))
    meta = folder / "data" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"state": {"type": "NonTensorData"}}))


def stack_of_non_tensors(folder, mark):
    with_non_tensor(folder, mark)
    meta = folder / "data" / "evil" / "meta.json"
    meta.write_text(json.dumps({"_type": "<class 'tensordict.tensorclass.NonTensorStack'>", "stack_dim": 0}))


def whole_folder_is_non_tensor(folder, mark):
    meta = folder / "data" / "meta.json"
    kind = {"_type": "<class 'tensordict.tensorclass.NonTensorData'>", "_is_non_tensor": True}
    meta.write_text(json.dumps(json.loads(meta.read_text()) | kind))
    (folder / "data" / "other.pickle").write_bytes(payload_bytes(mark))


@pytest.mark.fault("1.1")
@pytest.mark.parametrize("header", ["recomputed", "deleted"])
@pytest.mark.parametrize(
    "plant", [with_non_tensor, pickle_beside, pickle_as_leaf, stack_of_non_tensors, whole_folder_is_non_tensor]
)
def test_a_pickle_in_a_dataset_folder_is_not_executed(saved, mark, plant, header):
    plant(saved, mark)
    reseal(saved, header=header)
    refused(saved, mark)
    reseal(saved, header=header, change=lambda content: content["leaves"].update(evil=[[8], "torch.float32"]))
    refused(saved, mark)


@pytest.mark.fault("1.1")
def test_what_the_header_does_not_list_is_refused_where_it_lies(saved, mark):
    def link(path):
        path.symlink_to("/etc/hostname")

    for name, make in {
        "data/more.memmap": lambda path: path.write_bytes(bytes(8)),
        "data/agents/meta.txt": lambda path: path.write_bytes(b""),
        "data/empty": lambda path: path.mkdir(),
        "data/pipe": os.mkfifo,
        "data/link": link,
    }.items():
        make(saved / name)
        refused(saved, mark, match=name.rpartition("/")[2])
        (saved / name).rmdir() if name == "data/empty" else (saved / name).unlink()
    (saved / "README.md").write_text("what I did with it")  # beside the data anything may lie
    assert len(load_dataset(saved)) == 8


@pytest.mark.fault("1.1")
@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "pipe", "folder", "hard look-alike"])
def test_a_listed_file_is_a_file_of_the_folder(saved, mark, tmp_path, kind):
    file = saved / "data" / "next" / "state.memmap"
    elsewhere = tmp_path / "elsewhere"
    shutil.move(file, elsewhere)
    if kind == "link to a file":
        file.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "link to a folder":
        shutil.move(elsewhere, file)
        shutil.move(file.parent, elsewhere)
        file.parent.symlink_to(elsewhere)
    else:
        file.with_suffix(".MEMMAP").write_bytes(elsewhere.read_bytes())
    refused(saved, mark)


@pytest.mark.fault("1.1")
def test_a_folder_in_the_cache_of_the_hub_is_made_of_links(saved, tmp_path):
    snapshot = tmp_path / "hub" / "datasets--me--toy" / "snapshots" / "main" / "toy"
    blobs = snapshot.parents[2] / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in saved.rglob("*") if path.is_file())):
        shutil.copy(file, blobs / f"{number:08x}")
        link = snapshot / file.relative_to(saved)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / f"{number:08x}")
    assert (load_dataset(snapshot).data == episodes([3, 1, 4]).data).all()


def other(name, facts):
    return lambda content: content["leaves"].update({name: facts})


@pytest.mark.fault("1.1")
@pytest.mark.parametrize("header", ["recomputed", "deleted"])
@pytest.mark.parametrize(
    "change",
    [
        other("../state", [[8, 3], "torch.float32"]),
        other("/etc/hostname", [[8], "torch.uint8"]),
        other("agents/../state", [[8, 3], "torch.float32"]),
        other("", [[8], "torch.bool"]),
        other("state/inner", [[8, 3], "torch.float32"]),
        other("state", [[8, 300], "torch.float32"]),
        other("state", [[8, 6], "torch.float16"]),
        other("state", [[7, 3], "torch.float32"]),
        other("state", [[-8, -3], "torch.float32"]),
        other("state", [[8.0, 3], "torch.float32"]),
        other("state", [[8, 3], "torch.qint8"]),
        other("state", [[8, 3], "os.system"]),
        other("state", [10**30, "torch.float32"]),
        other("state", [[10**30, 3], "torch.float32"]),
        other("state", "torch.float32"),
        lambda content: content.update(leaves=[]),
        lambda content: content["leaves"].pop("state"),
        lambda content: content["files"].pop("data/state.memmap"),
        lambda content: content["files"].update({"../../secret": {"bytes": 1, "blake2b": ""}}),
        lambda content: content["files"]["data/state.memmap"].update(bytes="96"),
        lambda content: content["files"].update({"data/state.memmap": 96}),
        lambda content: content.update(files=None),
        lambda content: content["spec"].update(n_agents=2.0),
        lambda content: content["spec"].update(n_agents=10**12),
        lambda content: content["spec"].update(more=1),
        lambda content: content.update(metadata=[]),
        lambda content: content["metadata"].update(inspection={"findings": 3}),
        lambda content: content["metadata"].update(inspection="clean"),
    ],
)
def test_a_header_that_does_not_fit_its_files_is_refused(saved, mark, change, header):
    reseal(saved, header=header, change=change)
    refused(saved, mark)


@pytest.mark.fault("1.1")
def test_a_header_that_is_no_table_of_its_own_is_refused(saved, mark):
    file = saved / "metadata.json"
    text = file.read_text()
    for content in ("[" * 100_000, text.replace('"version": 1', '"version": 1, "version": 1'), "[]", "null", "\x00"):
        file.write_text(content)
        refused(saved, mark, match="metadata.json")


def test_leaves_of_ones_own_come_back(tmp_path):
    data = episodes([2, 1])
    data.data["mine", "a b"] = torch.arange(3, dtype=torch.int16)
    data.data["nothing"] = torch.zeros(3, 0)
    again = load_dataset(data.save(tmp_path / "own"))
    assert again.data["mine", "a b"].tolist() == [0, 1, 2] and again.data["nothing"].shape == (3, 0)
    data.data["a/b"] = torch.zeros(3)
    with pytest.raises(DatasetError, match="rename the leaf"):
        data.save(tmp_path / "slash")
    assert not (tmp_path / "slash").exists()


def write(leaf, value):
    """Return a function that writes into a file of a folder what its values then are."""

    def change(folder):
        file = folder / "data" / f"{leaf}.memmap"
        content = np.fromfile(file, value.dtype)
        content[: value.size] = value
        content.tofile(file)

    return change


def of_one_id(folder):
    file = folder / "data" / "collector" / "traj_ids.memmap"
    np.full(8, 7).tofile(file)


CHANGES = {
    "not_finite": (write("agents/observation", np.float32([np.nan])), False),
    "action_outside_bounds": (write("agents/action", np.float32([50])), False),
    "illegal_action": (write("agents/action", np.int64([50])), True),
    "illegal_next_action": (write("next/agents/action", np.int64([-1])), True),
    "episode_marks": (of_one_id, False),
    "no_row_counts": (write("collector/mask", np.zeros(8, np.uint8)), False),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("code", CHANGES)
def test_a_stored_inspection_is_believed_where_the_values_agree(tmp_path, code, verify):
    change, discrete = CHANGES[code]
    dataset = clean([3, 1, 4], discrete=discrete)
    dataset.inspection = inspect(dataset)
    folder = dataset.save(tmp_path / "toy")
    assert OfflineDataset.load(folder, verify=verify).inspection is not None
    change(folder)
    reseal(folder)
    assert OfflineDataset.load(folder, verify=verify).inspection is None
    with pytest.warns(DatasetWarning) as caught:
        load_dataset(folder, verify=verify)
    wanted = inspect(OfflineDataset.load(folder))[code]
    assert wanted.severity == "error" and any(wanted.what in str(warning.message) for warning in caught)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("leaf", ["next/done", "collector/mask", "next/truncated"])
def test_bools_are_zeros_and_ones(saved, leaf, verify):
    write(leaf, np.uint8([0, 7]))(saved)
    reseal(saved)
    with pytest.raises(DatasetError, match="neither true nor false; restore the folder"):
        load_dataset(saved, verify=verify)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("findings", 5),
        ("findings", {"a": 1}),
        ("findings", [1]),
        ("card_disagreements", "x"),
        ("bad_episodes", [1]),
        ("bad_episodes", [{"episode": 1}]),
        ("bad_episodes", 3),
        ("provenance", ["x"]),
        ("repairs", 3),
        ("time_limit", "abc"),
        ("time_limit", -5),
        ("time_limit", 1e300),
        ("task_options", []),
        ("env", 5),
        ("source", {}),
        ("license", 3),
        ("citation", ["x"]),
        ("vault", {"seeds": 3}),
        ("values_checked", "no"),
        ("inspection", 5),
        ("inspection", {}),
        ("inspection", {"source": 1, "facts": {}, "findings": []}),
        ("inspection", {"source": "x", "facts": [], "findings": []}),
        ("inspection", {"source": "x", "facts": {}, "findings": [{}]}),
        ("inspection", {"source": "x", "facts": {}, "findings": [5]}),
    ],
)
def test_metadata_is_of_the_types_that_are_read(saved, mark, name, value):
    reseal(saved, change=lambda content: content["metadata"].update({name: value}))
    refused(saved, mark)
