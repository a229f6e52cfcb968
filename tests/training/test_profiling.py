"""The account of where a step goes: its parts are all there and sum to the whole."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
import torch
from objective_toys import CONTINUOUS, make_batch
from trainers import trainer_for
from training_toys import make_trainer

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.parts import COMPILED, heard_by, part
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.training import PopulationBuffer, Trainer
from torchrl_marl_offline.training.run.profiling import TRACED, WARM_UP, Account, PartClock, PartTime
from torchrl_marl_offline.training.step.gradients import CompiledGradients

AROUND = ["data", "gradient norm and clipping", "optimizer", "target update", "the rest"]
NETWORKS = ["critic", "target critic", "mixer", "target mixer", "value", "actor"]
EAGER = [*AROUND, "loss arithmetic", "backward", *(f"forward {name}" for name in NETWORKS)]
OPTIONS = {"steps": 30, "log_every": 4, "eval_every": 15, "profile": 10, "progress": False}


def evaluator() -> dict[str, float]:
    with part("forward critic"):  # what an evaluation does is not a part of the step
        return {"return": 1.0}


def make_run(folder: Path, *, members: int = 1, algorithm: str = "recipe", **options) -> Trainer:
    data = make_batch(CONTINUOUS, 64)
    torch.manual_seed(0)
    losses = {f"member-{i}": make_loss(CONTINUOUS, algorithm=algorithm, hidden=(8,)) for i in range(members)}
    options = OPTIONS | {"output": folder} | options
    if members > 1:
        buffer = PopulationBuffer(data, batch_size=16, seeds=range(members))
        evaluators = {"mode": lambda: dict.fromkeys(losses, evaluator())}
        return trainer_for(losses, buffer, evaluators=evaluators, **options)
    buffer = make_replay_buffer(data, batch_size=16, seed=0)
    return trainer_for(losses["member-0"], buffer, evaluators={"mode": evaluator}, **options)


@pytest.mark.parametrize("members", [1, 3], ids=["one", "population"])
def test_the_parts_of_a_step_are_all_there_and_sum_to_it(tmp_path, capsys, members):
    trainer = make_run(tmp_path, members=members)
    trainer.train()
    account = trainer.profiler.account
    assert sorted(account.parts) == sorted(EAGER)
    assert all(time.host > 0 for time in account.parts.values())
    assert account.steps == 10
    assert {name: len(seconds) for name, seconds in account.beside.items()} == {
        "logging": 8,  # after 4, 8, ..., 28 and 30 steps
        "evaluation mode": 2,
        "checkpoint": 1,
    }
    text = (tmp_path / "profile/account.txt").read_text()
    for name in [*EAGER, *account.beside, "all parts"]:
        assert f"\n{name} " in text
    assert ("ms a member of 3" in text) is (members == 3)
    printed = capsys.readouterr().out
    assert printed.count(f"Where a step goes: {1e3 * account.seconds:.3f} ms") == 1
    with gzip.open(tmp_path / "profile/trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert sum(event.get("name") == "step" for event in events) == TRACED
    assert {"data", "forward target mixer", "backward"} <= {event.get("name") for event in events}


def test_a_profiled_run_ends_with_the_weights_of_one_that_is_not(tmp_path):
    ends = []
    for name, options in {"profiled": {}, "plain": {"profile": False}}.items():
        trainer = make_run(tmp_path / name, **options)
        trainer.train()
        ends.append(torch.nn.utils.parameters_to_vector(trainer.loss.parameters()))
    assert torch.equal(*ends)
    assert not (tmp_path / "plain/profile").exists()


def test_a_compiled_step_has_one_part_for_forward_and_backward(tmp_path):
    trainer = make_run(tmp_path)
    trainer.learner.gradients = CompiledGradients(trainer.loss, backend=None)
    trainer.train()
    assert sorted(trainer.profiler.account.parts) == sorted([*AROUND, COMPILED])
    assert "What is compiled is one part" in (tmp_path / "profile/account.txt").read_text()


# tensordict touches a deprecated setting of torch's while it is traced.
@pytest.mark.filterwarnings("ignore:.*inline_inbuilt_nn_modules:FutureWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's compiler
@pytest.mark.thorough
def test_a_loss_whose_forward_is_compiled_in_one_graph_stays_so(tmp_path):
    trainer = make_run(tmp_path, algorithm="cloning", compile={"backend": "eager", "fullgraph": True})
    trainer.train()
    assert {"loss arithmetic", "backward"} == trainer.profiler.account.parts.keys() - set(AROUND)


def test_the_clock_gives_every_moment_to_the_innermost_part(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = PartClock(torch.device("cpu"))
    with clock.running("outer"), clock.running("inner"), clock.running("innermost"):
        pass  # from 0 to 15, from 1 to 10, from 3 to 6
    assert clock.seconds == 15.0
    assert clock.times() == {
        "outer": PartTime(1.0 + 5.0, None),
        "inner": PartTime(2.0 + 4.0, None),
        "innermost": PartTime(3.0, None),
    }
    assert sum(part.host for part in clock.times().values()) == clock.seconds


def test_the_account_says_what_a_step_and_an_evaluation_cost():
    parts = {"the rest": PartTime(0.010, None), "backward": PartTime(0.030, None)}
    account = Account(10, 5, parts, {"evaluation mode": [0.5, 1.5]}, {"evaluation": 100}, members=2)
    rows = [line.split() for line in account.text().splitlines()]
    assert account.seconds == pytest.approx(0.004)
    assert ["backward", "3.000", "75.0", "1.5000"] in rows
    assert ["all", "parts", "4.000", "100.0", "2.0000"] in rows
    assert rows.index(["backward", "3.000", "75.0", "1.5000"]) < rows.index(["the", "rest", "1.000", "25.0", "0.5000"])
    assert ["evaluation", "mode", "1000.000", "2", "100", "10.000"] in rows


def test_a_run_that_is_too_short_is_said_to_be(tmp_path, capsys):
    make_trainer(tmp_path, steps=WARM_UP, profile=True).train()
    assert f"{WARM_UP} steps are within the warm-up of {WARM_UP}; nothing was timed" in capsys.readouterr().out
    trainer = make_trainer(tmp_path / "other", steps=WARM_UP + 3, profile=True)
    trainer.train()
    assert trainer.profiler.account.steps == 3


def test_a_profile_needs_a_folder_and_a_number_of_steps(tmp_path):
    with pytest.raises(ValueError, match=r"A profile needs a folder to write to; give Trainer\(output="):
        make_trainer(profile=True)
    with pytest.raises(ValueError, match="profile must be at least 1, got -3"):
        make_trainer(tmp_path, profile=-3)


def test_parts_go_unheard_where_nobody_listens():
    heard = []

    class Listening:
        def __init__(self, name):
            heard.append(name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    with part("before"), heard_by(Listening):
        with part("first"):
            pass
        with heard_by(None), part("traced"):
            pass
        with part("second"):
            pass
    with part("after"):
        pass
    assert heard == ["first", "second"]
