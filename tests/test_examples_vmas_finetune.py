"""The fine-tuning example as a user runs it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import processes
import pytest
import torch

from torchrl_marl_offline import load_policy
from torchrl_marl_offline.training import CheckpointManager, read_csv

SCRIPT = Path(__file__).parents[1] / "examples" / "vmas_finetune.py"
SMALL = ["--episodes", "12", "--eval-episodes", "8", "--hidden", "16", "--batch-size", "32", "--num-envs", "8"]
SMALL += ["--steps-per-round", "5", "--updates-per-round", "4", "--offline-steps", "20", "--eval-every", "10"]
SMALL += ["--online-steps", "40", "--task", "mpe/simple_spread"]


def start(*arguments: str, cwd: Path) -> processes.Process:
    return processes.start(SCRIPT, *arguments, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"})


def run(*arguments: str, cwd: Path) -> str:
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A whole run, and what it printed."""
    cwd = tmp_path_factory.mktemp("runs")
    return cwd / "whole", run(*SMALL, "--output", "whole", cwd=cwd)


def test_online_starts_where_offline_ended(finished):
    folder, out = finished
    offline, online = (read_csv(folder / stage / "eval.csv") for stage in ("offline", "online"))
    assert [row["step"] for row in offline[::2]] == [0, 10, 20]
    assert [row["step"] for row in online[::2]] == [0, 10, 20, 30, 40]
    assert offline[-2]["return"] == online[0]["return"] != online[-2]["return"]
    assert (folder / "learning_curves.png").stat().st_size > 10_000
    assert load_policy(folder / "online").spec.task == "mpe/simple_spread"
    assert "environment steps and" in out
    assert "exploration: actions are drawn from the policy's distribution" in out


def test_offline_data_can_be_mixed_in(tmp_path):
    run(*SMALL, "--offline-fraction", "0.5", "--extraction", "brac", "--output", "mixed", cwd=tmp_path)
    assert (tmp_path / "mixed" / "online" / "policy.pt").exists()


@pytest.mark.thorough
def test_awr_stands_still_on_experience_of_its_own_mode(tmp_path):
    # The likelihood of a Gaussian is stationary at its mean: cloning one's own mode has no gradient.
    out = run(*SMALL, "--exploration", "mode", "--output", "mode", cwd=tmp_path)
    assert "exploration: none, the policy's mode acts" in out
    returns = [
        row["return"] for row in read_csv(tmp_path / "mode" / "online" / "eval.csv") if row["evaluator"] == "mode"
    ]
    assert len(returns) == 5
    assert len(set(returns)) == 1


class Catch:
    """Takes a component's state from a checkpoint."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        self.state = state


@pytest.mark.thorough
@pytest.mark.slow
def test_killed_online_it_goes_on_without_loss(tmp_path):
    options = [*SMALL, "--online-steps", "4000", "--output", "killed"]
    process = start(*options, cwd=tmp_path)
    checkpoints = CheckpointManager(tmp_path / "killed" / "online" / "checkpoints")
    while process.poll() is None and len(checkpoints.checkpoints()) < 3:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before, trainer = Catch(), Catch()
    step = checkpoints.load(buffer=before, trainer=trainer)
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
