"""One run that two processes share, started as a user would: by torchrun, on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from distributed_toys import EQUAL, UNEQUAL, SharedCase, make_rows, train_case
from selection import some_of
from torchrl.data import SamplerWithoutReplacement
from training_toys import make_buffer, make_trainer, weights

from torchrl_marl_offline.training import PopulationBuffer, read_csv
from torchrl_marl_offline.training.run.checkpoints import CheckpointManager
from torchrl_marl_offline.training.run.distributed import (
    ManyProcesses,
    ProcessFailedError,
    ShareOfSampler,
    SingleProcess,
    distributed_from_environment,
)

TOYS = Path(__file__).parents[1] / "toys" / "distributed_toys.py"
TIMING = {"seconds"}


@contextmanager
def torchrun(*arguments: str | Path) -> Iterator[processes.Process]:
    """Start the toys on a free port; on leaving, none of the processes is left."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", TOYS, *arguments]
    run = processes.start(*command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.STDOUT)
    try:
        yield run
    finally:
        if run.poll() is None:
            run.terminate()  # it ends its own
            run.wait(60)
        run.stdout.close()


def finish(run: processes.Process, *, ends_well: bool = True) -> str:
    output, _ = run.communicate(timeout=120)
    assert (run.returncode == 0) is ends_well, output
    return output


def processes_of(folder: Path) -> list[int]:
    return [int((folder / f"pid-{rank}").read_text()) for rank in range(2)]


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{process}/status").read_text()


def wait_for(condition, run: processes.Process) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < end, "the run did not get there within a minute"
        time.sleep(0.05)


# ------------------------------------------------------- two processes against one


@pytest.fixture(scope="module")
def shared(tmp_path_factory, request) -> tuple[Path, str]:
    """The folder and the output of two processes that train the cases of the tests, and end with one that fails."""
    folder = tmp_path_factory.mktemp("shared")
    called = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    (folder / "cases").write_text("\n".join({str(params["case"]) for params in called if "case" in params}))
    with torchrun("all", folder) as run:
        return folder, finish(run, ends_well=False)


def ends_of(case: SharedCase, folder: Path) -> list[dict]:
    return [torch.load(folder / f"process-{rank}.pt")[str(case)] for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", some_of(EQUAL, every=3, first=2), ids=str)
def test_two_processes_equal_one_with_the_joined_batch(shared, case):
    alone, vector = train_case(case, SingleProcess())
    first, second = ends_of(case, shared[0])
    assert torch.equal(first["weights"], second["weights"]), "the two processes have gone apart"
    torch.testing.assert_close(first["weights"], vector, rtol=1e-9, atol=1e-9)
    assert len(first["rows"]) == len(alone.logger.train.rows) == 5
    for row, expected in zip(first["rows"], alone.logger.train.rows, strict=True):
        assert list(row) == list(expected)
        for name in row.keys() - TIMING:
            assert row[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name


@pytest.mark.slow
@pytest.mark.parametrize("case", UNEQUAL, ids=str)
def test_averaging_gradients_alone_would_not_do(shared, case):
    """The comparison can fail: with statistics of each share of its own, the run is another."""
    _, vector = train_case(case, SingleProcess())
    assert (ends_of(case, shared[0])[0]["weights"] - vector).abs().max() > 1e-3


@pytest.mark.slow
def test_the_first_process_alone_evaluates_and_writes(shared):
    folder, output = shared
    assert "process 0 ends: TrainingFinished at 60, evaluated by {0}" in output
    assert "process 1 ends: TrainingFinished at 60, evaluated by set()" in output
    assert [row["step"] for row in read_csv(folder / "undisturbed/run/eval.csv")] == [15, 30, 45, 60]
    assert [row["step"] for row in read_csv(folder / "undisturbed/run/train.csv")] == list(range(3, 61, 3))


@pytest.mark.slow
def test_what_the_first_process_makes_the_others_find(shared):
    _, output = shared
    assert "process 0 finds data: False" in output
    assert "process 1 finds data: True" in output


@pytest.mark.slow
def test_what_went_wrong_in_one_process_is_said_by_the_others(shared):
    folder, output = shared
    reason = "Process 1 of this run failed (ValueError: the disk of this machine is on fire)"
    assert f"ProcessFailedError: {reason}; process 0 cannot go on without it." in output
    assert not any(map(is_running, processes_of(folder / "failed")))


# ------------------------------------------------------- stopped, killed, resumed


@pytest.mark.thorough
@pytest.mark.slow
def test_a_run_that_is_stopped_then_killed_ends_as_one_that_was_not(shared, tmp_path):
    checkpoints = CheckpointManager(tmp_path / "run/checkpoints")
    with torchrun("slowly", tmp_path) as run:
        wait_for((tmp_path / "run/train.csv").exists, run)
        os.kill(processes_of(tmp_path)[1], signal.SIGTERM)  # one is enough: they agree
        output = finish(run)
    step = step_of(checkpoints.latest())
    assert 0 < step < 40
    for rank in range(2):
        assert f"process {rank} ends: TrainingInterrupted at {step}" in output
    assert output.count("Interrupted at step") == 1

    with torchrun("slowly", tmp_path) as run:
        wait_for(lambda: step_of(checkpoints.checkpoints()[-1]) > step, run)
        os.kill(processes_of(tmp_path)[1], signal.SIGKILL)
        output = finish(run, ends_well=False)
    assert "Another process of this run is gone; process 0 cannot go on without it." in output
    assert not any(map(is_running, processes_of(tmp_path)))

    step = step_of(checkpoints.latest())
    with torchrun("on", tmp_path) as run:
        output = finish(run)
    for rank in range(2):
        assert f"process {rank} goes on from step {step}" in output
        assert f"process {rank} ends: TrainingFinished at 60" in output
    assert_same_run(tmp_path / "run", shared[0] / "undisturbed/run")


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("checkpoint-"))


def assert_same_run(output: Path, reference: Path) -> None:
    ends = []
    for folder in (output, reference):
        trainer = make_trainer(folder)
        assert trainer.resume() == 60  # one process goes on with what two have written
        ends.append(weights(trainer))
    assert torch.equal(*ends)
    for name in ("train.csv", "eval.csv"):
        assert without_timing(output / name) == without_timing(reference / name)


def without_timing(path: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMING} for row in read_csv(path)]


# ------------------------------------------------------- without other processes


def test_that_another_process_is_gone_is_said_before_this_one_can_be_ended(capsys):
    blocked = []

    def reason(error: Exception) -> str:
        blocked.append(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return "Another process of this run is gone"

    left = SimpleNamespace(rank=0, _reason_elsewhere=reason)
    with pytest.raises(ProcessFailedError, match="gone; process 0"), ManyProcesses.watched(left):
        raise RuntimeError("gloo: Connection closed by peer")
    message = "Another process of this run is gone; process 0 cannot go on without it."
    assert capsys.readouterr().err == f"ProcessFailedError: {message}\n"
    assert blocked == [True] and signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("sampler", [None, SamplerWithoutReplacement], ids=["random", "without_replacement"])
def test_shares_of_a_sampler_make_up_what_it_draws(sampler):
    def buffer(rank: int | None):
        buffer = make_buffer(without_replacement=sampler is not None)
        if rank is not None:
            buffer.set_sampler(ShareOfSampler(buffer.sampler, rank, 2))
        return buffer

    whole, shares = buffer(None), [buffer(0), buffer(1)]
    for _ in range(9):
        assert torch.equal(torch.cat([share.sample()["x"] for share in shares]), whole.sample()["x"])
    shares[0].sampler.load_state_dict(shares[0].sampler.state_dict())
    assert str(shares[0].sampler.state_dict()) == str(whole.sampler.state_dict())


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    sampler = make_buffer().sampler
    with pytest.raises(ValueError, match=r"10 rows cannot be shared equally by 4 processes; .* a multiple of 4"):
        ShareOfSampler(sampler, 0, 4, batch_size=10)
    sampler.slice_len = 5
    with pytest.raises(ValueError, match=r"3 slices of 5 rows cannot be shared equally by 2 .* a multiple of 10"):
        ShareOfSampler(sampler, 0, 2, batch_size=15)


def test_what_is_no_replay_buffer_is_refused():
    group = SimpleNamespace(rank=lambda: 0, size=lambda: 2)
    processes = ManyProcesses(group, group, None, torch.device("cpu"))
    buffer = PopulationBuffer(make_rows(discrete=False), batch_size=4, seeds=[0, 1])
    with pytest.raises(TypeError, match="A PopulationBuffer cannot be shared by 2 processes; give a replay buffer"):
        processes.share(buffer)


def test_without_torchrun_there_is_one_process_and_nothing_changes(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    processes = distributed_from_environment("cpu")
    assert type(processes) is SingleProcess
    assert processes.is_main
    ends = []
    for options in ({}, {"distributed": processes}):
        trainer = make_trainer(steps=20, **options)
        trainer.train()
        ends.append(weights(trainer))
    assert torch.equal(*ends)
