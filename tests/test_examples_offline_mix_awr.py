"""The example as a user runs it: from the command line, in a folder of its own."""

from __future__ import annotations

import csv
import json
import os
import random
import runpy
import signal
import sys
import time
from pathlib import Path

import processes
import pytest
import torch

from torchrl_marl_offline import TaskSpec
from torchrl_marl_offline.training import CheckpointManager

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "offline_mix_awr.py"
SMALL = ("--episodes", "40", "--eval-episodes", "8", "--hidden", "16", "--batch-size", "32")
SHORT = (*SMALL, "--steps", "20", "--eval-every", "10")
TIMING = {"seconds"}


def start(*arguments: str, cwd: Path) -> processes.Process:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return processes.start(
        "-W", "error::UserWarning:torchrl_marl_offline", SCRIPT, *arguments, cwd=cwd, env=environment
    )


def run(*arguments: str, cwd: Path) -> str:
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return [{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(stream)]


def components(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint: weights, targets, Adam's moments."""

    class Catch:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            self.state = state

    loss, optimizer = Catch(), Catch()
    CheckpointManager(folder / "checkpoints").load(loss=loss, optimizer=optimizer)
    moments = {f"{i}.{k}": v for i, state in optimizer.state["state"].items() for k, v in state.items()}
    return {k: v for k, v in {**loss.state, **moments}.items() if isinstance(v, torch.Tensor)}


def assert_same_run(one: Path, two: Path) -> None:
    for part in ("", "cloning"):
        first, second = components(one / part), components(two / part)
        assert first.keys() == second.keys()
        assert len(first) > 10
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{part} {name}"
        for file in ("train.csv", "eval.csv"):
            assert rows(one / part / file) == rows(two / part / file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A whole run on its own data, and what it printed."""
    cwd = tmp_path_factory.mktemp("runs")
    return cwd / "whole", run(*SHORT, "--output", "whole", cwd=cwd)


def test_without_data_it_records_its_own_and_ends_with_a_table_and_pictures(finished):
    folder, out = finished
    for name in ("config.json", "train.csv", "eval.csv", "summary.json", "learning_curves.png", "methods.png"):
        assert (folder / name).stat().st_size > 0
    assert (folder.parent / "data" / "mpe-simple_spread-mixed-40-seed0" / "metadata.json").exists()
    table = out[out.index("return per episode") :]
    for name in ("data (40 episodes)", "cloning, mode", "cloning, sampled", "recipe, mode", "recipe, sampled"):
        assert name in table
    assert len([line for line in table.splitlines()[:6] if " * " in line]) == 2
    assert "not across seeds" in table
    (last,) = [row for row in rows(folder / "train.csv") if row["step"] == "20"]
    for column in ("qvalue_abs", "value_norm_scale", "effective_sample_size", "loss_value"):
        assert float(last[column]) > 0
    assert [row["step"] for row in rows(folder / "eval.csv")] == ["10", "10", "20", "20"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["recipe, mode"]["final"]["episodes"] == 40
    assert {"last", "best", "average_of_last"} <= set(summary["cloning, sampled"]["during training"])


def test_the_recorded_data_is_used_again(finished):
    folder, _ = finished
    metadata = folder.parent / "data" / "mpe-simple_spread-mixed-40-seed0" / "metadata.json"
    before = metadata.stat().st_mtime_ns
    out = run(*SHORT, "--output", "again", "--steps", "10", "--gamma", "0.5", cwd=folder.parent)
    assert metadata.stat().st_mtime_ns == before
    assert "40 episodes" in out


@pytest.mark.thorough
def test_every_choice_on_a_discrete_task_and_the_weights_and_biases_logger(tmp_path):
    rules = ("--decomposition", "independent", "--value-learning", "sarsa", "--extraction", "brac")
    choices = (*rules, "--svn", "False", "--heads", "min", "--wandb")
    run(*SHORT, "--task", "games/grid_navigation", *choices, cwd=tmp_path)
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "data")
    assert folder.name.startswith("grid_navigation-")
    config = json.loads((folder / "config.json").read_text())
    assert (config["svn"], config["heads"], config["value_learning"]) == (False, "min", "sarsa")
    assert "success" in rows(folder / "eval.csv")[0]
    assert "value_norm_scale" not in rows(folder / "train.csv")[0]
    assert list((folder / "wandb").glob("offline-run-*"))


def test_recordings_without_a_simulator_are_evaluated_on_held_out_episodes(tmp_path, recordings):
    out = run(
        *SHORT[2:], "--dataset", f"pymarl:{recordings}/pymarl/smac-3m-medium.h5", "--output", "smac", cwd=tmp_path
    )
    assert "No simulator of smac/3m here: 200 episodes are held out" in out
    for name in ("agreement", "illegal_actions", "q_correlation", "needs a simulator"):
        assert name in out
    summary = json.loads((tmp_path / "smac" / "summary.json").read_text())
    final = summary["recipe, held-out episodes"]["final"]
    assert final["illegal_actions"] == 0
    assert 0 < final["agreement"] < 1


def test_recordings_with_a_simulator_are_played(tmp_path, recordings):
    run(*SHORT[2:], "--dataset", f"pymarl:{recordings}/pymarl/cn-2-medium.h5", "--output", "cn", cwd=tmp_path)
    summary = json.loads((tmp_path / "cn" / "summary.json").read_text())
    assert summary["data"]["return"] == pytest.approx(0.4385, abs=1e-4)
    assert 0 <= summary["recipe, mode"]["final"]["success"] <= 1


@pytest.mark.thorough
@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_the_run_that_was_not(tmp_path):
    options = (*SMALL, "--steps", "60", "--eval-every", "30", "--checkpoint-every", "1")
    run(*options, "--output", "whole", cwd=tmp_path)
    folder, moments = tmp_path / "killed", random.Random(0)
    # once while cloning is trained, once in the middle of the recipe
    for arguments, place in ((("--output", "killed", *options), folder / "cloning"), (("--resume", "killed"), folder)):
        process = start(*arguments, cwd=tmp_path)
        deadline = time.monotonic() + 120
        while len(list((place / "checkpoints").glob("checkpoint-*"))) < 3:  # the newest three are kept
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    run("--resume", "killed", cwd=tmp_path)
    assert_same_run(tmp_path / "whole", folder)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    process = start(*SMALL, "--steps", "100000", "--output", "mine", cwd=tmp_path)
    while not (tmp_path / "mine" / "cloning" / "checkpoints").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"go on with: python {SCRIPT} --resume mine" in out + err


def fail(monkeypatch, capsys, *arguments: str) -> str:
    """Run what must fail, in this process, and return its one sentence."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_bad_input_is_answered_in_one_sentence(tmp_path, finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    for name, content in (("text.h5", b"no data"), ("archive.npz", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text('{"steps": ')
    cases = {
        ("--dataset", "nowhere"): "nowhere does not exist",
        ("--dataset", "pymarl:nowhere.h5"): "nowhere.h5 does not exist",
        ("--dataset", "pymarl:text.h5"): "is not an HDF5 file",
        ("--dataset", "pymarl:archive.npz"): "not HDF5",
        ("--dataset", "text.h5"): "text.h5 is not an HDF5 file",
        ("--task", "mpe/simple_sprea"): "Unknown task 'mpe/simple_sprea'; close names are mpe/simple_spread",
        ("--task", "games/xor", "--dataset", "nowhere"): "leave --task out",
        ("--resume", "nowhere"): "nowhere holds no config.json",
        ("--resume", "damaged"): "damaged/config.json is damaged",
        ("--resume", str(folder), "--gamma", "0.5"): "--gamma is 0.5 on the command line, but the run in",
        ("--preset", "tiny"): "--preset must be one of quick, paper",
        ("--episodes", "4", "--output", str(folder)): f"go on with --resume {folder}",
        ("--episodes", "4", "--output", "bad", "--expectile", "2"): "expectile must lie between 0 and 1",
    }
    for arguments, sentence in cases.items():
        assert sentence in fail(monkeypatch, capsys, *arguments), arguments
    assert not (tmp_path / "bad").exists()


def test_every_algorithm_gets_what_is_asked_for_and_keeps_the_rest():
    script = runpy.run_path(str(SCRIPT))
    args, settings = script["Args"], script["method_settings"]
    assert settings("recipe", args()).items() >= {"gamma": 0.95, "expectile": 0.7}.items()
    assert "temperature" not in settings("recipe", args())  # the loss's own default
    paper = args(preset="paper", expectile=0.8)
    assert settings("recipe", paper).items() >= {"expectile": 0.8, "advantage": "local"}.items()
    assert not {"temperature", "gamma", "expectile"} & settings("icq", args()).keys()
    asked = args(temperature=3.0, gamma=0.95)  # what happens to be the recipe's own
    assert settings("icq", asked).items() >= {"temperature": 3.0, "gamma": 0.95}.items()
    spec = TaskSpec(n_agents=2, observation_size=3, state_size=6, action_size=2)
    loss = script["make_loss"]("icq", asked, spec)
    assert loss.temperature.item() == 3.0 and loss.value_estimator.gamma.item() == pytest.approx(0.95)


def test_there_is_no_traceback_in_a_process_of_its_own(tmp_path):
    process = start("--dataset", "pymarl:nowhere.h5", cwd=tmp_path)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err == "error: nowhere.h5 does not exist; give the path of a PyMARL HDF5 file.\n"


def test_a_defect_keeps_its_traceback():
    from torchrl_marl_offline.commands.script_settings import plain_errors

    with pytest.raises(ZeroDivisionError), plain_errors():
        1 / 0  # noqa: B018
    with pytest.raises(RuntimeError), plain_errors():
        torch.zeros(2) @ torch.zeros(3)
