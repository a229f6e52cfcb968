"""Kill, interrupt, damage: the run that goes on ends as the run that was never stopped, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import processes
import pytest
import torch
import training_toys
from tensordict import TensorDict
from torch import nn
from torchrl.checkpoint import CheckpointError
from trainers import trainer_for
from training_toys import make_buffer, make_trainer, weights

from torchrl_marl_offline.data import collect
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation import evaluate
from torchrl_marl_offline.modules import ScaleInvariantValueNorm, make_actor, make_critic, make_value
from torchrl_marl_offline.objectives import AWR, IQL, OfflineMARLLoss
from torchrl_marl_offline.training import (
    BufferState,
    CheckpointManager,
    Trainer,
    TrainingFinished,
    TrainingInterrupted,
    read_csv,
)
from torchrl_marl_offline.training.run.run_lock import claim_folder

KILLS = 6
TIMING = {"seconds"}


def evaluator():
    return {"return": torch.rand(()).item()}  # uses the global generator, as a careless evaluator would


def trained(output, *, resume: bool = False, **options) -> Trainer:
    trainer = make_trainer(output, evaluators={"a": evaluator}, eval_every=15, **options)
    if resume:
        torch.manual_seed(99)  # whatever a new process starts with must not matter
        trainer.resume()
    trainer.train()
    return trainer


def without_timing(path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMING} for row in read_csv(path)]


def assert_same_run(output: Path, trainer: Trainer, reference: Trainer) -> None:
    assert torch.equal(weights(trainer), weights(reference))
    for name in ("train.csv", "eval.csv"):
        assert without_timing(output / name) == without_timing(reference.output / name)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Trainer:
    return trained(tmp_path_factory.mktemp("reference"))


def test_the_toy_depends_on_everything_that_is_saved(reference, tmp_path):
    """The comparison can fail: leaving any one component out of the checkpoint gives other weights."""
    for left_out in ("loss", "optimizer", "buffer", "rng"):
        output = tmp_path / left_out
        trained(output, steps=30)
        trainer = make_trainer(output)
        torch.manual_seed(99)
        components = {name: part for name, part in trainer.components().items() if name != left_out}
        trainer.step = trainer._saved_step = trainer.checkpoints.load(**components)
        trainer.train()
        assert not torch.equal(weights(trainer), weights(reference)), left_out


# tensordict touches a deprecated setting of torch's while it is traced.
@pytest.mark.filterwarnings("ignore:.*inline_inbuilt_nn_modules:FutureWarning")
@pytest.mark.parametrize(
    ("options", "buffer"),
    [
        ({}, {}),
        ({}, {"generator": False}),
        ({}, {"without_replacement": True}),
        ({"clip_grad_norm": 0.5}, {}),
        ({"compile": {"backend": "eager"}}, {}),
    ],
    ids=["generator", "global_generator", "without_replacement", "clipped", "compiled"],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's compiler
def test_resume_is_bit_for_bit(tmp_path, options, buffer):
    def run(name, **more):
        return trained(tmp_path / name, buffer=make_buffer(**buffer), **options | more)

    options = options | {"host_noise": "compile" not in options}  # Python's generator cannot be traced

    whole = run("whole")
    run("parts", checkpoint_every=23)
    # Go on from step 23, in the middle of a logging window, from a folder that has rows up to step 60.
    again = make_trainer(
        tmp_path / "parts",
        buffer=make_buffer(**buffer),
        evaluators={"a": evaluator},
        eval_every=15,
        **options,
    )
    torch.manual_seed(99)
    assert again.resume(tmp_path / "parts/checkpoints/checkpoint-000000000023.torchrl") == 23
    assert [row["step"] for row in read_csv(tmp_path / "parts/train.csv")] == [7, 14, 21]
    again.train()
    assert_same_run(tmp_path / "parts", again, whole)


def recipe(output: Path, dataset, **options) -> tuple[Trainer, nn.Module]:
    torch.manual_seed(0)
    spec = dataset.spec
    actor = make_actor(spec, hidden=(16,))
    loss = OfflineMARLLoss(
        actor,
        make_critic(spec, decomposition="mixer", hidden=(16,)),
        make_value(spec, decomposition="mixer", hidden=(16,)),
        value_learning=IQL(expectile=0.9),
        extraction=AWR(temperature=1.0),
        value_norm=ScaleInvariantValueNorm(),
    ).make_value_estimator(gamma=0.99)
    env = make_env(spec.task, num_envs=2)
    trainer = trainer_for(
        loss,
        dataset.replay_buffer(batch_size=16, seed=1),
        steps=12,
        log_every=5,
        checkpoint_every=4,
        eval_every=6,
        output=output,
        evaluators={"sampled": lambda: evaluate(actor, env, episodes=2, seed=3, mode="sample")},
        progress=False,
        **options,
    )
    return trainer, actor


def test_the_recipe_resumes_bit_for_bit_with_its_buffer_and_environment(tmp_path):
    dataset = collect(make_env("mpe/simple_spread", num_envs=4, seed=0), None, episodes=4, seed=0)
    whole, actor = recipe(tmp_path / "whole", dataset)
    start = nn.utils.parameters_to_vector(actor.parameters()).detach().clone()
    whole.train()
    assert not torch.equal(nn.utils.parameters_to_vector(actor.parameters()), start), (
        "the evaluated actor is the trained"
    )
    recipe(tmp_path / "parts", dataset)[0].train()
    again, _ = recipe(tmp_path / "parts", dataset)
    assert again.resume(tmp_path / "parts/checkpoints/checkpoint-000000000004.torchrl") == 4
    again.train()
    assert_same_run(tmp_path / "parts", again, whole)
    rows = read_csv(tmp_path / "parts/eval.csv")
    assert [row["step"] for row in rows] == [6, 12]
    assert rows[0]["length"] == 25


def run_in_child(output: Path) -> None:
    """Start the run, or go on with it: what a user's script does. Must be importable by the child."""
    torch.set_num_threads(1)
    trained(output, resume=any((output / "checkpoints").glob("checkpoint-*")), steps=400, checkpoint_every=3)


@pytest.fixture(scope="module")
def forkserver():
    context = multiprocessing.get_context("forkserver")
    # One process imports everything slow once; each child is forked from it in milliseconds.
    context.set_forkserver_preload(["pytest", "torchrl.data", "torchrl.envs", "torchrl_marl_offline.training"])
    return context


def wait_for(condition, is_alive, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and is_alive():
        assert time.monotonic() < deadline, "the child made no progress"
        time.sleep(0.001)


@pytest.mark.thorough
@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_weights(forkserver, tmp_path):
    expected = trained(tmp_path / "whole", steps=400, checkpoint_every=3)
    moments, output, kills = random.Random(0), tmp_path / "killed", 0
    newest = lambda: max((output / "checkpoints").glob("checkpoint-*"), default=None)  # noqa: E731
    while kills < KILLS:
        before = newest()
        process = forkserver.Process(target=run_in_child, args=(output,))
        process.start()
        # Let it write at least one checkpoint, so that the run moves on, then kill it anywhere in the next steps.
        wait_for(lambda before=before: newest() != before, process.is_alive)
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"finished after {kills} kills: make the run longer"
        kills += 1
        for path in CheckpointManager(output / "checkpoints").checkpoints():
            assert CheckpointManager(output / "checkpoints").latest() is not None, path  # warns, so fails, if damaged
    resumed = trained(output, resume=True, steps=400, checkpoint_every=3)
    assert_same_run(output, resumed, expected)


IS_INTERRUPTED = """
import sys
from training_toys import make_trainer
from torchrl_marl_offline.training import TrainingInterrupted
try:
    make_trainer(sys.argv[1], steps=10**6, checkpoint_every=None).train()
except TrainingInterrupted as stopped:
    print("ended by", type(stopped).__name__)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number):
    toys = os.pathsep.join([str(Path(training_toys.__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = processes.start("-c", IS_INTERRUPTED, tmp_path, env=os.environ | {"PYTHONPATH": toys})
    wait_for((tmp_path / "train.csv").exists, lambda: process.poll() is None)
    os.kill(process.pid, number)
    said, errors = process.communicate(60)
    assert process.returncode == 0, errors
    assert said.splitlines()[-1] == "ended by TrainingInterrupted"
    latest = CheckpointManager(tmp_path / "checkpoints").latest()
    assert int(latest.stem.removeprefix("checkpoint-")) > 0


def test_interrupted_and_resumed_in_one_process(tmp_path, reference, capsys):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    claim_folder(tmp_path)
    trainer = make_trainer(tmp_path, evaluators={"stop": interrupt}, eval_every=26)
    result = trainer.train(on_interrupt="return")
    assert isinstance(result, TrainingInterrupted)
    assert result.step == 26
    assert result.checkpoint.name == "checkpoint-000000000026.torchrl"
    assert "Interrupted at step 26 of 60" in result.message
    assert result.message.endswith(f"--resume {tmp_path}")
    assert result.message in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = make_trainer(tmp_path)
    resumed.resume()
    finished = resumed.train()
    assert type(finished) is TrainingFinished
    assert torch.equal(weights(resumed), weights(reference))


def test_a_request_to_stop_is_answered_at_once(tmp_path, capfd):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        answered.append(capfd.readouterr().err)  # while the evaluation is still in hand

    answered: list[str] = []
    for progress in (True, False):
        trainer = make_trainer(
            tmp_path / str(progress), evaluators={"stop": interrupt}, eval_every=2, progress=progress
        )
        trainer.train(on_interrupt="return")
    assert "Stopping: finishing the step or evaluation in hand, then saving. (again to stop at once)" in answered[0]
    assert "Stopping" not in answered[1]


def test_a_script_without_an_option_for_it_is_told_the_calls(tmp_path):
    options = {"evaluators": {"stop": lambda: os.kill(os.getpid(), signal.SIGINT)}, "eval_every": 26}
    told = make_trainer(tmp_path, **options).train(on_interrupt="return").message
    assert told.endswith(
        f"go on with: resume() of a trainer that is made like this one, with output='{tmp_path}', then train()"
    )


def test_a_second_ctrl_c_is_not_held_back():
    def interrupt_twice():
        signal.raise_signal(signal.SIGINT)  # not os.kill: other threads may take both at once
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts behind without it
    try:
        with pytest.raises(KeyboardInterrupt):
            make_trainer(evaluators={"stop": interrupt_twice}, eval_every=2).train()
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_an_output_folder_an_interrupt_says_that_nothing_was_saved():
    trainer = make_trainer(evaluators={"stop": lambda: os.kill(os.getpid(), signal.SIGTERM)}, eval_every=2)
    with pytest.raises(TrainingInterrupted, match="nothing was saved") as stopped:
        trainer.train()
    assert stopped.value.checkpoint is None


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "flipped":
        middle = content.index(b"data/0") + 200  # inside the stored weights
        content[middle] ^= 0xFF
    else:
        content = b""
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_it(tmp_path, reference, how):
    trained(tmp_path, steps=40)
    trainer = make_trainer(tmp_path, evaluators={"a": evaluator}, eval_every=15)
    newest = trainer.checkpoints.checkpoints()[-1]
    damage(newest, how)
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged .* falling back"):
        assert trainer.resume() == 35
    trainer.train()
    assert torch.equal(weights(trainer), weights(reference))
    with pytest.raises(CheckpointError, match="is damaged"):
        damage(trainer.checkpoints.checkpoints()[0], how)
        trainer.resume(trainer.checkpoints.checkpoints()[0])


def test_no_checkpoint_and_only_damaged_ones_are_clear_errors(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No whole checkpoint in .*; start again without resuming"):
        trainer.resume()
    trained(tmp_path / "damaged", steps=1, keep_checkpoints=1)
    trainer = make_trainer(tmp_path / "damaged")
    damage(trainer.checkpoints.checkpoints()[0], "cut")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(FileNotFoundError, match="No whole checkpoint"):
        trainer.resume()
    with pytest.raises(ValueError, match="output"):
        make_trainer().resume()


def test_a_checkpoint_of_another_network_or_dataset_is_refused(tmp_path):
    trained(tmp_path, steps=5)
    other = torch.nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="does not fit this run; resume it with the settings"):
        CheckpointManager(tmp_path / "checkpoints").load(loss=other)
    smaller = make_buffer()
    smaller.empty()
    smaller.extend(make_buffer()[:32])
    with pytest.raises(CheckpointError, match="trained on 64 rows, this buffer has 32"):
        make_trainer(tmp_path, buffer=smaller).resume()


def test_a_checkpoint_of_another_kind_of_device_is_refused(tmp_path):
    there = make_trainer(tmp_path, steps=5, buffer=seeded_buffer())
    state = BufferState(there.buffer)
    of_a_gpu = state.state_dict() | {"generator": torch.zeros(16, dtype=torch.uint8)}  # the length of a GPU's
    state.state_dict = lambda: of_a_gpu
    there._buffer_state = lambda: state
    there.train()
    with pytest.raises(CheckpointError, match="another kind of device than 'cpu'; go on where the run was"):
        make_trainer(tmp_path, buffer=seeded_buffer()).resume()


def seeded_buffer():
    x = torch.arange(128.0).reshape(32, 4) / 128
    data = TensorDict({"x": x, "y": x.sum(-1, keepdim=True)}, [32])
    return make_replay_buffer(data, batch_size=8, seed=0)


def test_a_new_run_does_not_start_over_an_old_one(tmp_path):
    trained(tmp_path, steps=5)
    with pytest.raises(FileExistsError, match="earlier run's checkpoints; resume it, or name another folder"):
        make_trainer(tmp_path).train()


def test_only_the_newest_and_the_best_are_kept(tmp_path):
    values = iter([1.0, 5.0, 3.0, 2.0])
    trainer = make_trainer(
        tmp_path,
        steps=40,
        evaluators={"a": lambda: {"return": next(values)}},
        eval_every=10,
        keep_best=("a", "return"),
        keep_checkpoints=2,
    )
    states = {}
    trainer.evaluators["b"] = lambda: states.update({trainer.step: trainer.loss.state_dict()["calls"].clone()})
    trainer.train()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best-000000000020.torchrl", "checkpoint-000000000035.torchrl", "checkpoint-000000000040.torchrl"]
    assert trainer.best == 5.0
    assert trainer.checkpoints.load(trainer.checkpoints.best(), loss=trainer.loss) == 20
    assert trainer.loss.calls == states[20] == 20


@pytest.mark.fault("2.3")
def test_a_run_that_was_killed_in_its_last_moments_is_whole_when_it_is_resumed(tmp_path, monkeypatch):
    """Between the policy and the checkpoint; and after the last checkpoint, before the oldest is gone."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    dataset = collect(make_env("mpe/simple_spread", num_envs=2, seed=0), None, episodes=2, seed=0)
    recipe(tmp_path / "whole", dataset)[0].train()
    expected = {path.name: path for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    for name, moment in (("a", "save"), ("b", "prune")):
        trainer, _ = recipe(tmp_path / name, dataset)
        with monkeypatch.context() as patched:
            owner = trainer.checkpoints if moment == "save" else trainer.checkpoints._newest
            own = getattr(owner, moment)
            patched.setattr(owner, moment, lambda *a, t=trainer, o=own, **k: (killed if t.step == 12 else o)(*a, **k))
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        again, _ = recipe(tmp_path / name, dataset)
        assert again.resume() == (8 if moment == "save" else 12)
        again.train()
        found = {path.name: path for path in (tmp_path / name).rglob("*") if path.is_file()}
        assert found.keys() == expected.keys()
        policies = [torch.load(files["policy.pt"], weights_only=True) for files in (found, expected)]
        assert str(policies[0]) == str(policies[1])


@pytest.mark.fault("2.3")
def test_what_a_killed_writer_left_is_gone_when_the_run_goes_on(tmp_path):
    trained(tmp_path, steps=1)
    checkpoints = tmp_path / "checkpoints"
    whole = {path.name for path in checkpoints.iterdir()}
    (checkpoints / ".checkpoint-000000000002.torchrl.stage-1f" / "components").mkdir(parents=True)
    (checkpoints / ".best-000000000002.torchrl.archive-2e").write_bytes(b"half")
    make_trainer(tmp_path, steps=1).resume()
    assert {path.name for path in checkpoints.iterdir()} == whole


def test_a_prefetching_buffer_is_refused_where_checkpoints_are_asked_for(tmp_path):
    buffer = make_buffer()
    buffer._prefetch = True
    with pytest.raises(ValueError, match="prefetch=None"):
        make_trainer(tmp_path, buffer=buffer).train()


def test_no_component_is_touched_by_a_damaged_checkpoint(tmp_path):
    trained(tmp_path, steps=1, keep_checkpoints=1)
    trainer = make_trainer(tmp_path, seed=4)
    before = weights(trainer)
    damage(trainer.checkpoints.checkpoints()[0], "flipped")
    with pytest.warns(UserWarning, match="checksum"), pytest.raises(FileNotFoundError):
        trainer.resume()
    assert torch.equal(weights(trainer), before)
