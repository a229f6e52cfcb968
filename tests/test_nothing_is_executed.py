"""Whatever file a stranger wrote: what lies in it is never executed. The tests look for the mark of a payload."""

from __future__ import annotations

import ast
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from file_mutations import READERS, original, unseal
from payloads import Payload, payload_bytes, reseal, torch_payload

from torchrl_marl_offline import OfflineDataset, OnlineReplay, load_dataset, load_policy, make_env, save_policy
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.modules import make_actor
from torchrl_marl_offline.training import CheckpointManager, read_csv

SOURCE = Path(__file__).parents[1]


def text_payload(mark: Path) -> str:
    return f"__import__('os').mknod({str(mark)!r})"


def array_payload(mark: Path) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def legacy_payload(mark: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Payload(mark), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


PAYLOADS = {
    "pickle": payload_bytes,
    "newer pickle": lambda mark: pickle.dumps(Payload(mark), protocol=5),
    "torch.save": torch_payload,
    "older torch.save": legacy_payload,
    "npy of objects": array_payload,
    "text": lambda mark: text_payload(mark).encode(),
}


def test_the_payloads_leave_a_mark_where_they_are_executed(tmp_path):
    runs = {
        "pickle": pickle.loads,
        "newer pickle": pickle.loads,
        "torch.save": lambda content: torch.load(io.BytesIO(content), weights_only=False),
        "older torch.save": lambda content: torch.load(io.BytesIO(content), weights_only=False),
        "npy of objects": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
        "text": lambda content: eval(content),
    }
    for number, (name, run) in enumerate(runs.items()):
        mark = tmp_path / f"mark{number}"
        run(PAYLOADS[name](mark))
        assert mark.exists(), name


def folder_of_a_policy(place, monkeypatch):
    save_policy(place / "policy.pt", make_actor(TaskSpec(2, 3, 4, 2), hidden=(4,)), {"a": "b"})
    return place, lambda: load_policy(place)


def folder_of_checkpoints(place, monkeypatch):
    manager = CheckpointManager(place)
    path = manager.save(1, loss=torch.nn.Linear(2, 1), notes={"a": "b"})
    return place, lambda: manager.load(path, loss=torch.nn.Linear(2, 1), notes={})


def journal_of_a_run(place, monkeypatch):
    data = original("", place, monkeypatch)
    state = {"files": [{"name": "rows-0-8", "first": 0, "rows": 8, "episode": 0}]}
    data.rename(place / "rows-0-8")
    state |= {"rounds": 1, "transitions": 8, "episodes": 3, "samples": 0, "credit": 0.0, "offline": None}
    state["generator"] = torch.Generator().get_state()
    options = {"capacity": 8, "batch_size": 2, "update_to_data": 1.0, "journal": place}
    return place, lambda: OnlineReplay(lambda number: None, **options).load_state_dict(state)


def prey(place, monkeypatch):
    place.mkdir()
    torch.save(torch.nn.Sequential(torch.nn.Linear(14, 2)).state_dict(), place / "prey.pt")
    return place, lambda: make_env("mpe/simple_tag", num_envs=1, opponent=place / "prey.pt")


def tables(place, monkeypatch):
    place.mkdir()
    (place / "eval.csv").write_text("step,evaluator,return\n1,mode,2.0\n")
    return place, lambda: read_csv(place / "eval.csv")


def recording(prefix):
    def make(place, monkeypatch):
        whole = original(prefix, place, monkeypatch)
        return whole, lambda: load_dataset(f"{prefix}{whole}")

    return make


def without_checksums(place, monkeypatch):
    whole = original("", place, monkeypatch)

    def load():
        unseal(whole / "metadata.json")
        return OfflineDataset.load(whole, verify=False)

    return whole, load


CARRIERS = {prefix or "own folder": recording(prefix) for prefix in READERS} | {
    made.__name__: made
    for made in (folder_of_a_policy, folder_of_checkpoints, journal_of_a_run, prey, tables, without_checksums)
}


@pytest.mark.fault("1.1")
@pytest.mark.fault("1.2")
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_payload_in_any_files_place_is_not_executed(tmp_path, monkeypatch, carrier):
    for library in ("h5py", "tensorstore", "minari"):
        pytest.importorskip(library)
    mark = tmp_path / "mark"
    whole, load = CARRIERS[carrier](tmp_path / "made", monkeypatch)
    load()
    files = [path for path in sorted(whole.rglob("*")) if path.is_file()] if whole.is_dir() else [whole]
    for number, file in enumerate(files):
        content = file.read_bytes()
        names = list(PAYLOADS) if len(files) < 6 else [list(PAYLOADS)[number % len(PAYLOADS)], "pickle"]
        for payload in [*(PAYLOADS[name](mark) for name in names), *words_replaced(content, mark)]:
            file.write_bytes(payload)
            try:
                load()
            except Exception as error:
                assert str(error)
            assert not mark.exists(), (carrier, file.name)
        file.write_bytes(content)
    load()


def words_replaced(content: bytes, mark: Path) -> list[bytes]:
    """The text of a JSON or CSV file with a call in the place of every word."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return []
    try:
        return [json.dumps(_replaced(json.loads(text), text_payload(mark))).encode()]
    except ValueError:
        return [text.replace("2.0", text_payload(mark)).encode()]


def _replaced(value, word):
    if isinstance(value, dict):
        return {key: _replaced(part, word) for key, part in value.items()}
    if isinstance(value, list):
        return [_replaced(part, word) for part in value]
    return word if isinstance(value, str) else value


@pytest.mark.fault("1.1")
@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")  # of the values that a payload makes
def test_a_resealed_folder_with_a_payload_in_every_leaf_is_not_executed(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    whole = original("", tmp_path / "made", monkeypatch)
    for file in sorted((whole / "data").rglob("*.memmap")):
        content, payload = file.read_bytes(), payload_bytes(mark)
        file.write_bytes((payload * 20)[: len(content)])
        reseal(whole)
        try:
            load_dataset(whole)
        except ValueError as error:
            assert str(error)
        assert not mark.exists()
        file.write_bytes(content)


@pytest.mark.fault("1.2")
def test_a_journal_outside_the_run_is_neither_read_nor_deleted(tmp_path, monkeypatch):
    _, load = journal_of_a_run(tmp_path / "made", monkeypatch)
    load()
    outside = tmp_path / "outside"
    shutil.copytree(tmp_path / "made" / "rows-0-8", outside)
    state = {"rounds": 1, "transitions": 8, "episodes": 3, "samples": 0, "credit": 0.0, "offline": None}
    state["generator"] = torch.Generator().get_state()
    options = {"capacity": 1, "batch_size": 2, "update_to_data": 1.0, "journal": tmp_path / "made"}
    replay = OnlineReplay(lambda number: None, **options, keep_all=False)
    for name in ("../outside", str(outside), ".", "", "rows-0-8/../../outside", "rows-0-8\n"):
        files = [{"name": name, "first": 0, "rows": 8, "episode": 0}]
        with pytest.raises(ValueError, match="cannot be"):
            replay.load_state_dict(state | {"files": files})
    assert outside.exists()


# What stands in the source


FORBIDDEN_NAMES = {"eval", "exec", "__import__"}
FORBIDDEN_CALLS = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("pickle", "Unpickler"),
    ("tensordict", "load"),
    ("np", "load"),
    ("numpy", "load"),
    ("yaml", "load"),
}
FORBIDDEN_METHODS = {"load_memmap", "load_memmap_", "from_consolidated", "read_pickle"}
FORBIDDEN_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}


@pytest.mark.fault("1.1")
def test_no_line_of_the_source_executes_what_a_file_holds():
    found = []
    for folder in ("torchrl_marl_offline", "examples", "benchmarks"):
        for file in sorted((SOURCE / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if what := _executes(node):
                    found.append(f"{file.relative_to(SOURCE)}:{node.lineno}: {what}")
    assert found == []


def _executes(node: ast.AST) -> str | None:
    if isinstance(node, ast.Import):
        return next((name.name for name in node.names if name.name.split(".")[0] in FORBIDDEN_MODULES), None)
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
        return node.module
    if not isinstance(node, ast.Call):
        return None
    function = node.func
    if isinstance(function, ast.Name) and function.id in FORBIDDEN_NAMES:
        return function.id
    if isinstance(function, ast.Attribute):
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        if (owner, function.attr) in FORBIDDEN_CALLS or function.attr in FORBIDDEN_METHODS:
            return f"{owner}.{function.attr}"
        safe = any(word.arg == "weights_only" and getattr(word.value, "value", None) is True for word in node.keywords)
        if (owner, function.attr) == ("torch", "load") and not safe:
            return "torch.load without weights_only=True"
    return None
