"""The example of OMAR as a user runs it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import processes
import pytest
import torch

from torchrl_marl_offline import TaskSpec, collect, load_policy, make_env
from torchrl_marl_offline.commands.script_settings import parse_settings
from torchrl_marl_offline.training import CheckpointManager, read_csv

SCRIPT = Path(__file__).parents[1] / "examples" / "omar_mpe.py"
SMALL = ["--transitions", "800", "--eval-episodes", "8", "--hidden", "16", "--batch-size", "32", "--steps", "20"]
SMALL += ["--eval-every", "10", "--samples", "3", "--checkpoint-every", "10", "--compile", "off"]


@pytest.fixture(scope="module")
def example():
    """The script, as a module."""
    specification = importlib.util.spec_from_file_location("omar_mpe", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["omar_mpe"] = module  # where the types of its settings are looked up
    specification.loader.exec_module(module)
    return module


def run(example, *arguments: str, cwd: Path) -> str:
    """Run the script in this process, and return what it printed."""
    presets = {"quick": {}, "paper": example.PAPER}
    with contextlib.chdir(cwd), contextlib.redirect_stdout(io.StringIO()) as out:
        example.main(parse_settings(example.Args, presets=presets, arguments=arguments))
    return out.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A whole run on random play, as a user starts it, and what it printed."""
    cwd = tmp_path_factory.mktemp("runs")
    process = processes.run(SCRIPT, *SMALL, "--quality", "random", "--output", "whole", cwd=cwd)
    assert process.returncode == 0, process.stderr
    return cwd / "whole", process.stdout


def test_it_ends_with_a_score_beside_the_datas_and_the_published(finished):
    folder, out = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["published"] == 34.4 and (summary["rectification"], summary["min_q_weight"]) == (1.0, 0.5)
    for row in (summary["data"], summary["OMAR"]):
        assert row["normalized"] == pytest.approx(100 * (row["return"] - 159.8) / (516.8 - 159.8))
        assert row["low"] < row["normalized"] < row["high"]
    assert "OMAR, table 1, its own data" in out and "tau 1, alpha 0.5" in out
    assert [row["step"] for row in read_csv(folder / "eval.csv")] == [0, 10, 20]
    assert (folder / "learning_curves.png").stat().st_size > 10_000
    assert load_policy(folder).spec.task == "mpe/simple_spread"


@pytest.mark.thorough
def test_a_behaviour_is_trained_for_the_other_qualities(tmp_path, example):
    arguments = [*SMALL[2:], "--record-updates", "10", "--output", "run"]  # medium-replay, which is what was gathered
    arguments[arguments.index("--samples") + 1] = "6"
    out = run(example, *arguments, "--rectification", "0", "--sampler", "cem", cwd=tmp_path)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["published"], summary["min_q_weight"]) == (37.9, 1.0)
    assert "MA-CQL" in summary and "tau 0, alpha 1" in out  # without the search it is that


def test_the_weights_are_published_for_every_task_and_quality(example):
    assert set(example.PUBLISHED) == set(example.TABLE_1)
    args = example.Args(quality="medium", min_q_weight=0.1)
    filled = example.with_published_weights(args, "mpe/simple_tag")
    assert (filled.rectification, filled.min_q_weight) == (0.7, 0.1)
    loss = example.make_loss(filled, TaskSpec(3, 4, 12, 2))
    assert (loss.rectification.item(), loss.min_q_weight.item()) == (pytest.approx(0.7), pytest.approx(0.1))


class Catch:
    """Takes a component's state from a checkpoint."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def test_resumed_it_ends_as_the_run_that_was_not(finished, example):
    whole, _ = finished
    run(example, *SMALL, "--quality", "random", "--output", "part", cwd=whole.parent)
    part = whole.parent / "part"
    newest = CheckpointManager(part / "checkpoints").latest()
    for file in newest.rglob("*"):  # as if the run had been killed before its last checkpoint
        file.unlink() if file.is_file() else None
    run(example, "--resume", "part", cwd=whole.parent)
    states = []
    for folder in (whole, part):
        loss = Catch()
        assert CheckpointManager(folder / "checkpoints").load(loss=loss) == 20
        states.append({name: value for name, value in loss.state.items() if isinstance(value, torch.Tensor)})
    assert len(states[0]) > 10
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert json.loads((whole / "summary.json").read_text()) == json.loads((part / "summary.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "nowhere"], "nowhere does not exist"),
        (["--rectification", "2"], "rectification must lie between 0 and 1"),
        (["--sampler", "cem", "--samples", "3"], "elites must be at most samples"),
        (["--device", "cuda:99"], "--device cuda needs an NVIDIA GPU"),
        (["--dataset", "xor"], "not for games/xor: take marl-offline train omar."),
    ],
)
def test_bad_input_is_answered_in_a_sentence(tmp_path, example, arguments, sentence):
    collect(make_env("games/xor", num_envs=2), episodes=2, seed=0).save(tmp_path / "xor")
    if "cuda:99" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises((ValueError, OSError), match=sentence):
        few = [] if "--dataset" in arguments else ["--transitions", "50"]
        run(example, *few, "--quality", "random", *arguments, "--output", "bad", cwd=tmp_path)
    assert not (tmp_path / "bad").exists()
