"""Checkpoints and policies of strangers: only tensors and numbers are read, in the form in which they are written."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from payloads import Payload, payload_bytes, rewrite_archive, torch_payload
from tensordict import NonTensorData, TensorDict
from torchrl.checkpoint import CheckpointError, GlobalRNGState

from torchrl_marl_offline import load_policy, save_policy
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.modules import make_actor
from torchrl_marl_offline.training.run.checkpoints import CheckpointManager, find_damage

COMPONENT = "components/0000-loss"


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


@pytest.fixture
def manager(tmp_path):
    return CheckpointManager(tmp_path / "checkpoints")


@pytest.fixture
def path(manager):
    return manager.save(7, loss=torch.nn.Linear(2, 1), rng=GlobalRNGState(), notes={"a": 1})


def refused(manager, path, mark) -> str:
    """Load a checkpoint by name and as the newest; neither is taken, nothing changes, no mark is left."""
    loss = torch.nn.Linear(2, 1)
    before = loss.weight.clone()
    with pytest.raises(CheckpointError, match="damaged") as caught:
        manager.load(path, loss=loss, rng=GlobalRNGState(), notes={})
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(FileNotFoundError):
        manager.load(loss=loss)
    assert not mark.exists() and torch.equal(before, loss.weight)
    return str(caught.value)


def tensordict_folder(tmp_path, mark) -> dict[str, bytes]:
    """What tensordict would unpickle, as members of an archive below ``state``."""
    folder = tmp_path / "tensordict"
    TensorDict({"tensor_00000000": torch.zeros(1), "evil": NonTensorData("x")}).memmap(str(folder))
    inner = folder / "evil"
    inner.mkdir(exist_ok=True)
    (inner / "other.pickle").write_bytes(payload_bytes(mark))
    kind = {"_type": "<class 'tensordict.tensorclass.NonTensorData'>", "_is_non_tensor": True}
    (inner / "meta.json").write_text(json.dumps(kind))
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"evil": {"type": "NonTensorData"}}))
    return {f"state/{f.relative_to(folder)}": f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def listing(members: dict[str, bytes], files: list[str], **record) -> None:
    manifest = json.loads(members["manifest.json"])
    manifest["components"]["loss"].update(files=files, **record)
    members["manifest.json"] = json.dumps(manifest).encode()


@pytest.mark.fault("1.2")
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("form", ["folder", "archive", "consolidated"])
def test_a_tensordict_in_a_checkpoint_is_not_read(tmp_path, manager, path, mark, form, kept):
    payload = tensordict_folder(tmp_path, mark)
    if form == "archive":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in payload.items():
                archive.writestr(name.removeprefix("state/"), content)
        payload = {"state.tdz": stream.getvalue()}
    elif form == "consolidated":
        payload = {"state.tdc": payload_bytes(mark)}
    payload["state.json"] = b'{"kind": "dict", "items": []}'

    def change(members):
        own = members[f"{COMPONENT}/state.pt"] if kept else members.pop(f"{COMPONENT}/state.pt")
        del own
        members |= {f"{COMPONENT}/{name}": content for name, content in payload.items()}
        listing(members, sorted([*payload, *(["state.pt"] if kept else [])]))
        return members

    rewrite_archive(path, change)
    refused(manager, path, mark)


@pytest.mark.fault("1.2")
@pytest.mark.parametrize("component", ["0000-loss", "0002-rng"])
def test_a_pickle_in_a_components_file_is_not_executed(manager, path, mark, component):
    for payload in (torch_payload(mark), payload_bytes(mark), legacy(mark), stack_global(mark)):
        rewrite_archive(path, lambda members, payload=payload: members | {f"components/{component}/state.pt": payload})
        loss = torch.nn.Linear(2, 1)
        with pytest.raises(CheckpointError):
            manager.load(path, loss=loss, rng=GlobalRNGState())
        assert not mark.exists()


def legacy(mark) -> bytes:
    stream = io.BytesIO()
    torch.save({"evil": Payload(mark)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def stack_global(mark) -> bytes:
    """A newer pickle protocol, which names functions through its stack."""
    stream = io.BytesIO(torch_payload(mark))
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickle.dumps(Payload(mark), protocol=4) if name.endswith("data.pkl") else content)
    return stream.getvalue()


def with_pickle(content: bytes) -> bytes:
    """A file of ``torch.save`` whose pickle is another."""
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(1)}, stream)
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, own in members.items():
            archive.writestr(name, content if name.endswith("data.pkl") else own)
    return stream.getvalue()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6 + b".",  # a number of a million bytes
        b"\x80\x02ccollections\nOrderedDict\n(tR}b.",
        b"\x80\x02(lp0\n.",
        b"\x80\x02]q\x00(h\x07e.",
    ],
)
def test_nobody_is_told_to_read_a_file_unsafely(tmp_path, manager, path, content):
    file = tmp_path / "policy.pt"
    file.write_bytes(with_pickle(content))
    with pytest.raises(ValueError, match=r"as tensors and numbers|it holds|its builder") as of_policy:
        load_policy(file)
    rewrite_archive(path, lambda members: members | {f"{COMPONENT}/state.pt": file.read_bytes()})
    with pytest.raises(CheckpointError) as of_checkpoint:
        manager.load(path, loss=torch.nn.Linear(2, 1))
    for caught in (of_policy, of_checkpoint):
        told = str(caught.value)
        assert len(told) < 1000 and not any(word in told for word in ("weights_only", "trust", "torch.load", "globals"))


@pytest.mark.fault("1.2")
def test_many_views_of_one_number_are_no_numbers(manager, path):
    views = io.BytesIO()
    torch.save({str(i): torch.zeros(1).expand(10**5) for i in range(1000)}, views)
    rewrite_archive(path, lambda members: members | {f"{COMPONENT}/state.pt": views.getvalue()})
    with pytest.raises(CheckpointError, match="in all"):
        manager.load(path, loss=torch.nn.Linear(2, 1))


@pytest.mark.fault("1.2")
def test_the_members_of_a_checkpoint_are_those_that_are_written(manager, path, mark, tmp_path):
    whole = path.read_bytes()

    def more(name, content=b"x"):
        return lambda members: members | {name: content}

    def listed(files, **record):
        return lambda members: listing(members, files, **record)

    def manifest(**facts):
        return lambda members: (
            members | {"manifest.json": json.dumps(json.loads(members["manifest.json"]) | facts).encode()}
        )

    for change in (
        more(f"{COMPONENT}/other.pickle", payload_bytes(mark)),
        more("../evil"),
        more("/etc/evil"),
        more("components/0009-evil/state.pt"),
        more("components"),
        listed(["state.pt", "state.pt"]),
        listed(["../0001-notes/value.json"]),
        listed(["state.pt"], path="components/../../evil"),
        listed(["state.pt"], path=str(tmp_path)),
        listed(["state.pt"], adapter="torchrl.dump_load"),
        listed(["state.pt"], adapter="mine"),
        listed([]),
        manifest(components=[]),
        manifest(components={}),
        manifest(metadata={"step": "7"}),
        manifest(metadata={}),
        manifest(format="mine"),
        lambda members: {"manifest.json": members["manifest.json"]},
        lambda members: {name: content for name, content in members.items() if name != "manifest.json"},
    ):
        path.write_bytes(whole)
        rewrite_archive(path, change)
        refused(manager, path, mark)
        assert not (tmp_path / "evil").exists()
    path.write_bytes(whole)
    assert find_damage(path) is None


@pytest.mark.fault("1.2")
def test_a_checkpoint_does_not_become_larger_than_it_is(manager, path, mark):
    whole = path.read_bytes()
    rewrite_archive(path, lambda members: members, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(manager, path, mark)
    path.write_bytes(whole)
    bomb = io.BytesIO()
    torch.save({"x": torch.zeros(2**20)}, bomb)
    with zipfile.ZipFile(bomb) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    expanded = io.BytesIO()
    torch.save({"weight": torch.zeros(1).expand(10**12), "bias": torch.zeros(1)}, expanded)
    for payload, word in ((inner, "compressed"), (expanded, "shape")):
        rewrite_archive(path, lambda members, payload=payload: members | {f"{COMPONENT}/state.pt": payload.getvalue()})
        with pytest.raises(CheckpointError, match=word):
            manager.load(path, loss=torch.nn.Linear(2, 1))


@pytest.mark.fault("1.3")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_something_else_in_a_checkpoints_place_is_passed_over(manager, path, kind):
    newest = path.with_name("checkpoint-000000000009.torchrl")
    if kind == "pipe":
        os.mkfifo(newest)
    elif kind == "device":
        newest.symlink_to("/dev/zero")
    else:
        newest.mkdir()
    with pytest.warns(UserWarning, match="in the place of a file"):
        assert manager.load(loss=torch.nn.Linear(2, 1)) == 7
    with pytest.raises(CheckpointError, match="in the place of a file"):
        manager.load(newest, loss=torch.nn.Linear(2, 1))
    with pytest.raises(ValueError, match="in the place of a file"):
        manager.save(10, loss=torch.nn.Linear(2, 1))


@pytest.mark.fault("1.3")
@pytest.mark.timeout(60)
def test_a_policys_file_holds_tensors_and_numbers(tmp_path, mark):
    policy = make_actor(TaskSpec(2, 3, 4, 2), hidden=(8,))
    file = save_policy(tmp_path / "policy.pt", policy, {"a": 1})
    load_policy(file)
    content = torch.load(file, weights_only=True)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises((ValueError, FileNotFoundError)):
        load_policy(file)
    file.unlink()
    for payload in (torch_payload(mark), payload_bytes(mark), legacy(mark), stack_global(mark)):
        file.write_bytes(payload)
        with pytest.raises(ValueError, match="no whole policy"):
            load_policy(file)
        assert not mark.exists()
    for options in ({"hidden": (16_000, 16_000)}, {"hidden": (8, 16_000, 16_000)}):
        torch.save(content | {"options": options}, file)
        with pytest.raises(ValueError, match="options ask for"):
            load_policy(file)
    for name in ("observation_size", "action_size", "n_agents"):
        torch.save(content | {"spec": content["spec"] | {name: 10**9}}, file)
        with pytest.raises(ValueError, match="no whole policy"):
            load_policy(file)
