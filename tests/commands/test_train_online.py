"""``marl-offline train --online``: from data, a run, a policy or a module's state to experience of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import processes
import pytest
import torch
from tensordict.nn import NormalParamExtractor
from torch import nn
from torchrl.modules import MultiAgentMLP

from torchrl_marl_offline import load_policy
from torchrl_marl_offline.commands import main
from torchrl_marl_offline.training import CheckpointManager, read_csv

TASK = "mpe/simple_spread"
FEW = ["--eval-episodes", "8", "--eval-every", "10", "--num-envs", "8", "--steps-per-round", "5"]
FEW += ["--updates-per-round", "4", "--online-steps", "40", "--batch-size", "32"]
OFFLINE = ["--episodes", "12", "--steps", "20", "--hidden", "16"]


def start(*arguments: str, cwd: Path) -> processes.Process:
    given = ["-m", "torchrl_marl_offline", "train", *arguments]
    return processes.start(*given, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"})


def run(*arguments: str, cwd: Path) -> str:
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


class Catch:
    """Takes a component's state from a checkpoint."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    caught = Catch()
    CheckpointManager(folder / "checkpoints").load(loss=caught)
    return caught.state


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A run of both stages, and what it printed."""
    cwd = tmp_path_factory.mktemp("runs")
    mixed = ["--offline-fraction", "0.5", "--expectile", "0.8", "--lr", "0.003"]
    return cwd / "whole", run("recipe", "--online", TASK, *OFFLINE, *FEW, *mixed, "--output", "whole", cwd=cwd)


def test_online_starts_where_offline_ended(finished):
    folder, out = finished
    offline, online = (read_csv(folder / stage / "eval.csv") for stage in ("offline", "online"))
    assert [row["step"] for row in offline[::2]] == [0, 10, 20]
    assert [row["step"] for row in online[::2]] == [0, 10, 20, 30, 40]
    assert offline[-2]["return"] == online[0]["return"] != online[-2]["return"]
    assert (folder / "learning_curves.png").stat().st_size > 10_000
    assert load_policy(folder).spec.task == TASK
    assert "environment steps and" in out
    assert "exploration: actions are drawn from the policy's distribution" in out


def test_a_run_is_gone_on_with_as_it_was_with_all_of_its_networks_and_settings(finished, capsys):
    folder, _ = finished
    more = folder.parent / "more"
    given = ["--online", TASK, "--from", str(folder), *FEW[:-4], "--online-steps", "4", "--output", str(more)]
    assert main(["train", *given]) == 0
    assert f"begins from {folder} after 40 updates: policies, critics and targets" in capsys.readouterr().out
    config = json.loads((more / "config.json").read_text())
    assert (config["algorithm"], config["settings"]["expectile"], config["lr"]) == ("recipe", 0.8, 0.003)
    assert config["batch_size"] == 32
    first, before = read_csv(more / "online" / "eval.csv")[0], read_csv(folder / "online" / "eval.csv")[-2]
    assert (first["step"], first["return"]) == (0, before["return"])
    assert not (more / "offline").exists()
    old, new = state_of(folder / "online"), state_of(more / "online")
    assert old.keys() == new.keys()
    moved = max((new[name] - old[name]).abs().max().item() for name in old if name.startswith("actor"))
    assert 0 < moved < 1


def test_another_algorithm_begins_with_the_policy_alone(finished, capsys):
    folder, _ = finished
    more = folder.parent / "other"
    given = ["--from", str(folder / "online" / "policy.pt"), *FEW[:-4], "--online-steps", "4", "--hidden", "24"]
    assert main(["train", "omar", "--online", TASK, *given, "--output", str(more)]) == 0
    first, before = read_csv(more / "online" / "eval.csv")[0], read_csv(folder / "online" / "eval.csv")[-2]
    assert (first["step"], first["return"]) == (0, before["return"])
    start_policy, policy = load_policy(more / "start.pt"), load_policy(folder)
    assert all(torch.equal(a, b) for a, b in zip(start_policy.policy.parameters(), policy.policy.parameters()))
    capsys.readouterr()


def test_a_torchrl_policys_state_is_a_start_that_is_not_needed_again(tmp_path, capsys):
    torch.manual_seed(0)
    net = MultiAgentMLP(18, 4, 3, centralized=False, share_params=True, depth=1, num_cells=8, activation_class=nn.Tanh)
    file = tmp_path / "theirs.pt"
    torch.save(nn.Sequential(net, NormalParamExtractor()).state_dict(), file)
    folder = tmp_path / "run"
    given = ["--online", TASK, "--from", str(file), *FEW[:-4], "--hidden", "8", "--output", str(folder)]
    assert main(["train", "td3_bc", *given, "--online-steps", "2", "--video-every", "1", "--video-size", "32"]) == 0
    assert load_policy(folder / "start.pt").policy.build["options"]["activation"] == "tanh"
    assert sorted(path.name for path in (folder / "online" / "videos").iterdir())[0] == "step-000000000.gif"
    file.unlink()
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"online_steps": 2', '"online_steps": 3'))
    assert main(["train", "--resume", str(folder)]) == 0
    assert CheckpointManager(folder / "online" / "checkpoints").load(loss=Catch()) == 3
    capsys.readouterr()


def test_what_does_not_fit_is_said_before_anything_is_done(finished, tmp_path, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    of_spread = ("--online", TASK, "--from", str(folder))
    for given, message in {
        ("--online", TASK, "--from", "nowhere"): "Name the algorithm before its options",
        ("omar", "--online", TASK, "--from", "nowhere"): "--from nowhere: there is no such file or folder",
        ("omar", "--from", str(folder)): "--from is read only with --online",
        ("omar", "--num-envs", "4"): "--num-envs is read only with --online",
        (*of_spread, "--steps", "3"): "--steps is read only with no --from",
        (*of_spread, "--dataset", "x"): "--dataset is read with --from only where --offline-fraction",
        (*of_spread, "--hidden", "32"): "its networks do not fit",
        ("--online", "vmas/balance", "--from", str(folder)): "was made for",
        ("--online", "games/grid_navigation", "--from", str(folder)): "was made for",
        (*of_spread, "--activation", "tanh", "--no-layer-norm"): "its networks do not fit",
        (*of_spread, "--episodes", "3"): "--episodes is read with --from only where --offline-fraction",
        ("omar", "--online", "vmas/balance", "--from", str(folder)): "was made for",
        ("omar", "--online", TASK, "--from", str(folder / "config.json")): "is no state of a module",
        ("omar", "--online", TASK, "--seeds", "2"): "--seeds is read only with no --online",
        ("omar", "--online", TASK, "--grid", "lr=.1,.2"): "--grid is read only with no --online",
        ("omar", "--online", "nothing/x"): "Unknown task 'nothing/x'",
        ("omar", "--online", TASK, "--capacity", "5"): "--capacity must hold a round",
        ("omar", "--online", TASK, "--no-anneal"): "--anneal is read only with --offline-fraction above 0",
        ("omar", "--online", "games/climb", "--video-every", "1"): "has nothing to draw",
    }.items():
        assert main(["train", *given, "--output", "new"]) in (1, 2), given
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1, (given, told)
        assert not list(tmp_path.iterdir()), given


def test_memory_goes_on_online_and_from_a_run(tmp_path, capsys):
    folder, more = tmp_path / "run", tmp_path / "more"
    memory = ["--memory", "gru", "--memory-size", "8", "--slice-len", "8", "--burn-in", "2", "--hidden", "16"]
    few = [*FEW[:-4], "--online-steps", "4", "--batch-size", "32"]
    given = [*memory, "--episodes", "12", "--steps", "2", *few, "--offline-fraction", "0.5"]
    assert main(["train", "recipe", "--online", "games/recall", *given, "--output", str(folder)]) == 0
    policy = load_policy(folder).policy
    assert policy.build["options"]["memory"] == "gru"
    of_policy = ["--online", "games/recall", "--from", str(folder / "online" / "policy.pt"), *few]
    capsys.readouterr()
    assert main(["train", "omar", *of_policy, "--output", str(tmp_path / "refused")]) == 1
    assert "policy.pt has a memory, gru; give --memory gru" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    given = ["--online", "games/recall", "--from", str(folder), *few[:-2], "--output", str(more)]
    assert main(["train", *given]) == 0
    assert json.loads((more / "config.json").read_text())["settings"]["memory"] == "gru"
    old, new = state_of(folder / "online"), state_of(more / "online")
    moved = [name for name in old if "of_memory" in name and not torch.equal(old[name], new[name])]
    assert any(name.startswith("actor") for name in moved) and any(name.startswith("qvalue") for name in moved)
    capsys.readouterr()


@pytest.mark.parametrize("change", [{"settings": {"nope": 1}}, {"settings": [1]}, {"preset": "huge"}, {"lr": "x"}])
def test_a_run_whose_settings_are_damaged_is_refused_as_a_start(finished, tmp_path, change, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(finished[0], folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["train", "--online", TASK, "--from", str(folder), "--output", str(tmp_path / "new")]) == 1
    told = capsys.readouterr().err
    assert "config.json is damaged, or of another version" in told and told.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_run_that_died_before_its_first_checkpoint_begins_again_from_where_it_was_to(finished, tmp_path, capsys):
    folder = tmp_path / "died"
    given = ["--online", TASK, "--from", str(finished[0]), *FEW[:-4], "--online-steps", "2"]
    assert main(["train", *given, "--output", str(folder)]) == 0
    whole = state_of(folder / "online")
    for path in (folder / "online" / "checkpoints").iterdir():
        path.unlink()  # as if it had been killed while it wrote the first one
    assert main(["train", "--resume", str(folder)]) == 0
    again = state_of(folder / "online")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    capsys.readouterr()


def test_joint_actions_are_composed_with_the_policy_that_the_stage_began_with(finished, tmp_path, capsys):
    folder, _ = finished
    given = ["--online", TASK, "--from", str(folder), *FEW[:-4], "--online-steps", "20", "--exploration", "composed"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for place in (whole, cut):
        assert main(["train", *given, "--checkpoint-every", "10", "--output", str(place)]) == 0
    assert "the best joint action by the critic" in capsys.readouterr().out
    kept, before = load_policy(whole / "online" / "kept.pt"), load_policy(folder)
    assert all(torch.equal(a, b) for a, b in zip(kept.policy.parameters(), before.policy.parameters()))
    checkpoints = CheckpointManager(cut / "online" / "checkpoints")
    checkpoints.checkpoints()[-1].unlink()
    assert main(["train", "--resume", str(cut)]) == 0
    one, other = state_of(whole / "online"), state_of(cut / "online")
    assert all(torch.equal(one[name], other[name]) for name in one)
    capsys.readouterr()
    given[given.index("composed")] = "mode"
    assert main(["train", *given, "--output", str(tmp_path / "mode")]) == 0
    assert any(not torch.equal(one[name], state_of(tmp_path / "mode" / "online")[name]) for name in one)
    few = ["--online", TASK, *OFFLINE, *FEW, "--exploration", "composed", "--output", str(tmp_path / "no")]
    assert main(["train", "omar", *few]) != 0
    assert "compares joint actions by the team's value" in capsys.readouterr().err
    assert not (tmp_path / "no" / "offline").exists()


def test_time_limits_that_end_the_task_are_refused_online(tmp_path, capsys):
    given = ["--online", TASK, *OFFLINE, *FEW, "--time-limits", "terminal", "--output", str(tmp_path / "no")]
    assert main(["train", "recipe", *given]) != 0
    assert "would take the end of every round of --online" in capsys.readouterr().err
    assert not (tmp_path / "no" / "offline").exists()


@pytest.mark.thorough
def test_awr_stands_still_on_experience_of_its_own_mode(tmp_path):
    # The likelihood of a Gaussian is stationary at its mean: cloning one's own mode has no gradient.
    given = [*OFFLINE, *FEW, "--exploration", "mode", "--output", "mode"]
    out = run("recipe", "--online", TASK, *given, cwd=tmp_path)
    assert "exploration: none, the policy's mode acts" in out
    rows = read_csv(tmp_path / "mode" / "online" / "eval.csv")
    returns = [row["return"] for row in rows if row["evaluator"] == "mode"]
    assert len(returns) == 5
    assert len(set(returns)) == 1


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(
    "memory", [[], ["--memory", "gru", "--memory-size", "4", "--slice-len", "8", "--burn-in", "2"]]
)
def test_killed_online_it_goes_on_without_loss(tmp_path, memory):
    many = ["--online-steps" if word == "--online-steps" else word for word in FEW]
    many[many.index("40")] = "4000"
    options = ["recipe", "--online", TASK, *OFFLINE, *many, *memory, "--checkpoint-every", "10", "--output", "killed"]
    process = start(*options, cwd=tmp_path)
    checkpoints = CheckpointManager(tmp_path / "killed" / "online" / "checkpoints")
    while process.poll() is None and len(checkpoints.checkpoints()) < 3:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = Catch()
    step = checkpoints.load(buffer=before)
    assert before.state["transitions"] == 40 * -(-step // 4)  # a round of 8 * 5 transitions for every 4 updates
    config = tmp_path / "killed" / "config.json"
    config.write_text(config.read_text().replace('"online_steps": 4000', f'"online_steps": {step + 20}'))
    run("--resume", "killed", cwd=tmp_path)
    after = Catch()
    assert checkpoints.load(buffer=after) == step + 20
    assert after.state["samples"] == step + 20
    assert after.state["transitions"] == 40 * -(-(step + 20) // 4)
    assert after.state["files"][: len(before.state["files"])] == before.state["files"]
    rows = [row["step"] for row in read_csv(tmp_path / "killed" / "online" / "eval.csv")]
    assert rows == sorted(rows)
    assert torch.is_tensor(after.state["generator"])


@pytest.mark.fault("3.18")
def test_policies_with_memory_are_not_composed_and_nothing_is_recorded_before_that_is_said(tmp_path, capsys):
    memory = ["--memory", "window:2", "--slice-len", "8", "--burn-in", "2"]
    given = ["--online", TASK, *OFFLINE, *FEW, *memory, "--exploration", "composed", "--output", str(tmp_path / "no")]
    assert main(["train", "recipe", *given]) != 0
    told = capsys.readouterr()
    assert "network has memory, which ComposedPolicy does not carry" in told.err and told.out == ""
    assert not any(tmp_path.iterdir())
