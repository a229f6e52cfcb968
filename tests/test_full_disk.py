"""A disk that is full, or a file that may not grow: one sentence that names file and cause, and nothing is left."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from data_toys import episodes
from training_toys import make_trainer, weights

from torchrl_marl_offline.commands.data import main
from torchrl_marl_offline.core.files import WriteError, replacing_file, write_json_atomic, writing
from torchrl_marl_offline.data import OfflineDataset, convert_dataset
from torchrl_marl_offline.evaluation.pictures import save_figure
from torchrl_marl_offline.evaluation.video import write_gif
from torchrl_marl_offline.modules import make_actor
from torchrl_marl_offline.recording import record, record_mixed_skill
from torchrl_marl_offline.training import CsvTable, read_csv, save_policy
from torchrl_marl_offline.training.online import OnlineReplay

pytestmark = pytest.mark.fault("2.1")
DISK, LEFT = 512 * 1024, 12 * 1024
LARGEST_FILE = 16 * 1024


class Place:
    """A folder in which a file cannot grow beyond some bytes, and the way to give it room again."""

    def __init__(self, folder: Path, give_room, take_room) -> None:
        self.folder, self.give_room, self.take_room = folder, give_room, take_room
        take_room()


@pytest.fixture(params=["disk", "file size"])
def place(request, tmp_path) -> Iterator[Place]:
    if request.param == "file size":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = lambda soft: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))  # noqa: E731
        try:
            yield Place(tmp_path, lambda: limit(before[0]), lambda: limit(LARGEST_FILE))
        finally:
            limit(before[0])
        return
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    filler = disk / "filler"

    def take_room() -> None:
        filler.write_bytes(b"")
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - LEFT))

    try:
        yield Place(disk, lambda: filler.write_bytes(b""), take_room)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != "filler")


def refused(place: Place, write, *named: str) -> str:
    """The writer fails with one sentence about the file, and the folder is as it was."""
    before = names(place.folder)
    with pytest.raises(WriteError) as error:
        write()
    said = str(error.value)
    assert "cannot be written: no space is left" in said or "cannot be written: it outgrows the largest" in said
    assert all(name in said for name in named), said
    assert "\n" not in said
    assert names(place.folder) == before
    return said


def test_datasets(place):
    data = episodes([40] * 30)
    path = place.folder / "toy"
    refused(place, lambda: data.save(path), "toy")
    small = episodes([2])
    place.give_room()
    small.save(path)


def test_what_is_overwritten_stays(place):
    place.give_room()
    path = episodes([2]).save(place.folder / "toy")
    place.take_room()
    refused(place, lambda: episodes([40] * 30).save(path, overwrite=True), "toy")
    assert len(OfflineDataset.load(path)) == 2


def pymarl_file(path: Path) -> Path:
    count, length = 50, 12
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["obs"] = rng.normal(size=(count, length, 2, 5)).astype(np.float32)
        file["state"] = rng.normal(size=(count, length, 7)).astype(np.float32)
        file["actions"] = rng.integers(0, 3, size=(count, length, 2, 1))
        file["avail_actions"] = np.ones((count, length, 2, 3), np.int64)
        file["reward"] = rng.normal(size=(count, length, 1)).astype(np.float32)
        terminated = np.zeros((count, length, 1), np.uint8)
        terminated[:, -2] = 1
        file["terminated"] = terminated
        file["filled"] = np.ones((count, length, 1), np.int64)
    return path


def d4rl_file(path: Path) -> Path:
    rng, count = np.random.default_rng(0), 900
    with h5py.File(path, "w") as file:
        for name, size in (("observations", 5), ("next_observations", 5), ("actions", 2)):
            file[name] = rng.uniform(-1, 1, size=(count, size)).astype(np.float32)
        file["rewards"] = np.ones(count, np.float32)
        ends = np.arange(count) % 30 == 29
        file["terminals"], file["timeouts"] = ends, np.zeros_like(ends)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    found = {"pymarl": pymarl_file(folder / "p.h5"), "d4rl": d4rl_file(folder / "d.h5")}
    steps, size = 900, 5
    rng = np.random.default_rng(0)
    with h5py.File(folder / "o.h5", "w") as file:
        file["s"] = file["o"] = rng.normal(size=(steps, 2, size)).astype(np.float32)
        file["a"] = rng.uniform(-1, 1, size=(steps, 2, 3)).astype(np.float32)
        file["r"] = np.ones((steps, 2, 1), np.float32)
        file["d"] = np.repeat((np.arange(steps) % 30 == 29)[:, None, None], 2, 1).astype(np.float32)
    return found | {"omiga": folder / "o.h5"}


@pytest.mark.parametrize("kind", ["pymarl", "d4rl", "omiga"])
@pytest.mark.parametrize("repair", [False, True])
def test_conversions(place, sources, kind, repair):
    prefix = {"omiga": "omiga_h5"}.get(kind, kind)
    refused(
        place, lambda: convert_dataset(f"{prefix}:{sources[kind]}", place.folder / "x", repair=repair, progress=False)
    )


def test_the_command_says_it_in_one_line(place, sources, capsys):
    before = names(place.folder)
    assert main(["convert", f"pymarl:{sources['pymarl']}", str(place.folder / "x")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "cannot be written" in line and str(place.folder / "x") in line
    assert names(place.folder) == before


def test_recordings(place):
    refused(place, lambda: record_mixed_skill("games/bridge", place.folder, episodes=300), "games-bridge-mixed")


def test_graded_recordings_go_on_afterwards(place):
    options = {"qualities": ["random"], "transitions": 600, "progress": False, "num_envs": 8, "compile": False}
    folder = place.folder / "graded"
    with pytest.raises(WriteError, match="cannot be written"):
        record("games/bridge", folder, **options)
    assert not [name for name in names(folder) if "tmp" in name or name.startswith("random")]
    place.give_room()
    assert len(record("games/bridge", folder, **options)["random"]) >= 600


def test_checkpoints_and_policies(place):
    trainer = make_trainer(place.folder / "run", steps=5, checkpoint_every=5, log_every=100)
    place.give_room()
    trainer.checkpoints.save(0, loss=trainer.loss)
    whole = names(place.folder)
    large = torch.nn.Linear(100, 100)
    place.take_room()
    said = refused(place, lambda: trainer.checkpoints.save(5, loss=large), "checkpoint-000000000005")
    assert "inline_container" not in said
    assert names(place.folder) == whole
    assert trainer.checkpoints.load(loss=trainer.loss) == 0
    actor = make_actor(episodes([2]).spec, hidden=(100, 100))
    refused(place, lambda: save_policy(place.folder / "policy.pt", actor), "policy.pt")


def test_a_run_whose_checkpoint_fails_goes_on_where_it_was(place):
    """The step is not taken for saved: once there is room, the same trainer writes it."""
    trainer = make_trainer(place.folder / "run", steps=10, checkpoint_every=5, log_every=100)
    with pytest.raises(WriteError, match="cannot be written"):
        trainer.train()
    assert not list((place.folder / "run").rglob("*checkpoint-*"))
    place.give_room()
    trainer.train()
    reference = make_trainer(steps=10, log_every=100)
    reference.train()
    assert torch.equal(weights(trainer), weights(reference))


def test_tables_reports_and_pictures(place):
    from matplotlib.figure import Figure

    text = {"text": "x" * DISK}
    refused(place, lambda: write_json_atomic(place.folder / "summary.json", text), "summary.json")
    table = CsvTable(place.folder / "train.csv")
    table.append({"step": 1, "name": "a"})
    content = (place.folder / "train.csv").read_bytes()
    refused(place, lambda: table.append({"step": 2, "name": "x" * DISK}), "train.csv")
    assert (place.folder / "train.csv").read_bytes() == content
    assert read_csv(place.folder / "train.csv") == [{"step": 1, "name": "a"}]
    figure = Figure(figsize=(8, 8), dpi=100)
    figure.subplots().imshow(np.random.default_rng(0).random((200, 200)))
    refused(place, lambda: save_figure(figure, place.folder / "curves.png"), "curves.png")
    frames = [np.random.default_rng(i).integers(0, 255, (90, 90, 3), dtype=np.uint8) for i in range(9)]
    refused(place, lambda: write_gif(frames, place.folder / "video.gif", frames_per_second=10), "video.gif")


def test_the_journal_of_an_online_run(place):
    rounds = lambda number: episodes([40] * 30)  # noqa: E731
    replay = OnlineReplay(rounds, capacity=1500, batch_size=4, update_to_data=1, journal=place.folder / "journal")
    replay.sample()
    with pytest.raises(WriteError, match="journal"):
        replay.state_dict()
    assert names(place.folder / "journal") == []
    assert len(replay.experience()) == 1200  # nothing is lost


@pytest.mark.parametrize("kind", ["file", "folder in the way", "long name"])
def test_other_causes_are_named_too(tmp_path, kind):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    path = {"file": "file/x.json", "folder in the way": "folder", "long name": "x" * 300}[kind]
    with pytest.raises(WriteError, match=r"cannot be written: .*; .*, and run this again\."):
        write_json_atomic(tmp_path / path, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "x"):
        (tmp_path / "nothing").read_text()
    with pytest.raises(PermissionError), writing(tmp_path / "x"):
        raise PermissionError(13, "of a file that is read", "/elsewhere/source.h5")


@pytest.mark.fault("2.3")
def test_what_a_killed_writer_left_goes_at_the_next_write(tmp_path):
    for name in (".a.json.tmp-host-12-00000000.json", ".a.json.77.tmp", ".a.77.json", ".other.json.77.tmp"):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / ".a.json.tmp-host-12-00000000.json", (0, 0))
    write_json_atomic(tmp_path / "a.json", {"a": 1})
    assert names(tmp_path) == [".other.json.77.tmp", "a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    with pytest.raises(ZeroDivisionError), replacing_file(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == [".other.json.77.tmp", "a.json"]
