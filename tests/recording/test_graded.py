"""Recording graded qualities: the choice of levels, reproducibility, interruptions, errors."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from pathlib import Path

import processes
import pytest
import torch
from selection import thorough

from torchrl_marl_offline import load_dataset, load_policy
from torchrl_marl_offline.core.layout import ACTION
from torchrl_marl_offline.data import DatasetError
from torchrl_marl_offline.envs import mpe_prey
from torchrl_marl_offline.evaluation import make_simulator
from torchrl_marl_offline.recording.graded import QUALITIES, choose_level, published_levels, record
from torchrl_marl_offline.study import StudyError, read_study
from torchrl_marl_offline.training import read_csv

SMALL = {
    "transitions": 400,
    "updates": 60,
    "num_envs": 8,
    "batch_size": 32,
    "eval_every": 15,
    "eval_episodes": 16,
    "compile": False,
    "levels": {},
    "progress": False,
    "learner": {"hidden": (16,)},
}


NEWER = {"memory", "memory_size", "slice_len", "burn_in"}


def history(*returns: float) -> list[dict[str, float]]:
    return [{"step": 10 * number, "return": value} for number, value in enumerate(returns, 1)]


def digests(folder: Path, qualities=QUALITIES) -> dict[str, str]:
    files = [file for quality in qualities for file in sorted((folder / quality).rglob("*")) if file.is_file()]
    assert len(files) > 10 * len(qualities)
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_level_is_met_by_the_nearer_of_two_snapshots():
    rising = history(100, 200, 300, 400)
    assert choose_level(rising, "medium", {"medium": 260}, 0.0)["step"] == 30
    assert choose_level(rising, "medium", {"medium": 240}, 0.0)["step"] == 20
    assert choose_level(rising, "medium", {"medium": 300}, 0.0)["step"] == 30
    assert choose_level(rising, "medium", {"medium": 90}, 0.0)["step"] == 10
    assert choose_level(rising, "expert", {"expert": 999}, 0.0)["step"] == 40  # the best there is


def test_without_levels_medium_is_a_third_of_the_way_from_random_to_the_best():
    run = history(50, 120, 200, 400, 390)
    assert choose_level(run, "expert", {}, 100.0)["step"] == 40
    assert choose_level(run, "medium", {}, 100.0)["step"] == 30  # the level is 200
    assert choose_level(run, "medium", {}, -200.0)["step"] == 10  # the level is 0
    assert choose_level(history(-10, -4, -1), "medium", {}, -12.0)["step"] == 10  # -8.3 lies nearer to -10 than to -4


def test_the_levels_of_published_sets():
    assert published_levels("mpe/simple_spread") == {"medium": 273.39, "expert": 530.95}
    assert published_levels("vmas/balance") == {}


def test_levels_of_sets_of_another_environment_count_where_its_reference_returns_do(tmp_path, monkeypatch):
    prey = tmp_path / "prey.pt"
    torch.save(torch.nn.Sequential(torch.nn.Linear(14, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).state_dict(), prey)
    assert published_levels("mpe/simple_tag", {"opponent": str(prey)}) == published_levels("mpe/simple_tag") == {}
    monkeypatch.setitem(mpe_prey.PUBLISHED, "mpe/simple_tag", hashlib.sha256(prey.read_bytes()).hexdigest())
    assert published_levels("mpe/simple_tag", {"opponent": str(prey)}) == {"medium": 116.36, "expert": 207.9}
    assert published_levels("mpe/simple_tag") == {}


@pytest.mark.parametrize("task", ["mpe/simple_spread", *map(thorough, ["games/grid_navigation", "vmas/balance"])])
def test_two_recordings_with_one_seed_are_equal_files(tmp_path, task):
    settings = SMALL | {"task_options": {"max_steps": 20}}
    qualities = [*QUALITIES, "medium-expert"]
    first = record(task, tmp_path / "a", qualities=qualities, **settings)
    record(task, tmp_path / "b", qualities=qualities, **settings)
    assert digests(tmp_path / "a", qualities) == digests(tmp_path / "b", qualities)
    assert list(first) == qualities
    for quality, dataset in first.items():
        assert dataset.metadata["quality"] == quality
        assert make_simulator(dataset, num_envs=2).max_episode_steps == 20
        assert len(load_dataset(tmp_path / "a" / quality)) == len(dataset)
    assert len(first["random"]) >= 400
    assert first["medium-expert"].n_episodes == 2 * min(first["medium"].n_episodes, first["expert"].n_episodes)
    other = record(task, tmp_path / "c", qualities=["random"], **(settings | {"seed": 1}))
    assert not torch.equal(other["random"].data[ACTION][:50], first["random"].data[ACTION][:50])


def test_what_was_recorded_is_what_the_saved_policy_does(tmp_path):
    found = record("mpe/simple_spread", tmp_path, **SMALL)
    rows = read_csv(tmp_path / "behaviour" / "eval.csv")
    assert [row["step"] for row in rows] == [15, 30, 45, 60]
    best = max(rows, key=lambda row: row["return"])
    assert found["expert"].metadata["behaviour_updates"] == best["step"]
    assert found["expert"].metadata["behaviour_return"] == best["return"]
    saved = load_policy(tmp_path / "policies" / "expert.pt")
    assert saved.spec == found["expert"].spec
    assert saved.metadata["behaviour_return"] == best["return"]
    data = found["expert"].data
    with torch.no_grad():
        greedy = saved.policy(data.clone())[ACTION]
    noise = (data[ACTION] - greedy)[(data[ACTION].abs() < 1).all(-1).all(-1)]
    assert noise.std() == pytest.approx(0.3, rel=0.25)  # the exploration; a little less, for the clipped ones are out
    replay = found["medium-replay"]
    step = found["medium"].metadata["behaviour_updates"]
    assert replay.metadata["behaviour_updates"] == step
    (row,) = [row for row in rows if row["step"] == step]
    assert len(replay) == row["transitions"]


def test_untrained_data_is_that_of_a_freshly_initialized_policy(tmp_path):
    alone = record("mpe/simple_spread", tmp_path / "alone", qualities=["untrained"], **SMALL)["untrained"]
    assert not (tmp_path / "alone" / "behaviour" / "eval.csv").exists()  # nothing was trained for it
    found = record("mpe/simple_spread", tmp_path / "after", qualities=["random", "expert", "untrained"], **SMALL)
    assert torch.equal(found["untrained"].data[ACTION], alone.data[ACTION])
    assert alone.metadata["quality"] == "untrained"
    assert alone.metadata["behaviour"] == "MATD3 at its initial parameters, with its exploration"
    assert alone.metadata["recorded_with"]["method"] == "MATD3"
    assert found["random"].metadata["recorded_with"]["method"] == "uniform actions"
    spread = {name: data.data[ACTION].std().item() for name, data in found.items()}
    assert spread["untrained"] == pytest.approx(0.3, rel=0.15)  # hardly more than the exploration of .3
    assert spread["random"] == pytest.approx(3**-0.5, rel=0.05)  # of uniform numbers between -1 and 1
    mixed = record("mpe/simple_spread", tmp_path / "after", qualities=["untrained-expert"], **SMALL)
    assert mixed["untrained-expert"].n_episodes == 2 * min(found[name].n_episodes for name in ("untrained", "expert"))


@pytest.mark.thorough
@pytest.mark.slow
def test_a_killed_recording_goes_on_and_ends_with_equal_files(tmp_path):
    settings = SMALL | {"updates": 200, "eval_every": 10}
    record("mpe/simple_spread", tmp_path / "whole", **settings)
    script = f"""
from torchrl_marl_offline.recording.graded import record
record("mpe/simple_spread", {str(tmp_path / "killed")!r}, **{settings!r})
"""
    process = processes.start("-W", "ignore", "-c", script)
    checkpoints = tmp_path / "killed" / "behaviour" / "checkpoints"
    while process.poll() is None and len(list(checkpoints.glob("checkpoint-*"))) < 2:
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "expert").exists()
    record("mpe/simple_spread", tmp_path / "killed", **settings)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_finished_recording_is_loaded_and_can_be_added_to(tmp_path):
    record("games/xor", tmp_path, **(SMALL | {"qualities": ["random", "expert"]}))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.memmap") if "behaviour" not in str(file)}
    again = record("games/xor", tmp_path, **SMALL)
    assert list(again) == list(QUALITIES)
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    record("games/xor", tmp_path, qualities=["random"], **SMALL)
    with pytest.raises(DatasetError, match="recording with another seed, updates"):
        record("games/xor", tmp_path, qualities=["random"], **(SMALL | {"seed": 4, "updates": 61}))


def test_a_recording_of_a_version_with_fewer_settings_is_gone_on_with(tmp_path):
    record("games/xor", tmp_path, qualities=["random"], **SMALL)
    path = tmp_path / "recording.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in told.items() if name not in NEWER}))
    assert told.keys() > NEWER
    assert list(record("games/xor", tmp_path, qualities=["random"], **SMALL)) == ["random"]
    memory = {"memory": "gru", "slice_len": 8, "burn_in": 2}
    with pytest.raises(DatasetError, match="recording with another burn_in, memory, slice_len"):
        record("games/xor", tmp_path, qualities=["random"], **(SMALL | memory))


@pytest.mark.parametrize("quality", ["good", "medium-good", "expert-"])
def test_an_unknown_quality_is_named(tmp_path, quality):
    with pytest.raises(
        ValueError, match="must be one of random, medium-replay, medium, expert, untrained or two as 'A-B'"
    ):
        record("games/xor", tmp_path / "x", qualities=[quality], **SMALL)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("quality", ["random-random", "untrained-untrained", "random-untrained-random"])
def test_a_mixture_of_a_quality_with_itself_is_refused(tmp_path, quality):
    with pytest.raises(ValueError, match=r"would hold every episode of (random|untrained) twice; name it alone"):
        record("games/xor", tmp_path / "x", qualities=["random", quality], **SMALL)
    assert not (tmp_path / "x").exists()
    study = f'[methods.m]\n[datasets.d]\ntask = "games/xor"\nquality = "{quality}"\n'
    (tmp_path / "study.toml").write_text(study)
    with pytest.raises(StudyError, match=r"\[datasets.d\] quality .* would hold every episode"):
        read_study(tmp_path / "study.toml")


def test_an_unknown_setting_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"record has no setting .hidden.; it has .*updates, "):
        record("mpe/simple_spread", tmp_path, hidden=8)


@pytest.mark.parametrize("learner", ["{a=1}", [1], 3])
def test_a_learner_that_is_no_mapping_is_refused(tmp_path, learner):
    with pytest.raises(ValueError, match=r"learner must be a mapping, as {'gamma': 0.9}, got "):
        record("mpe/simple_spread", tmp_path / "new", learner=learner)
    assert not (tmp_path / "new").exists()
