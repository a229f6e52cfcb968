"""One process at a time in a run's folder; going on with anything but the same run is refused, and changes nothing."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from population_toys import everything, make_data, make_population
from tensordict import TensorDict
from torchrl.checkpoint import CheckpointError
from trainers import trainer_for
from training_toys import RegressionLoss, make_buffer, make_trainer, weights

from torchrl_marl_offline import PopulationBuffer, Trainer
from torchrl_marl_offline.commands.script_settings import SettingsError, parse_settings, plain_errors, write_config
from torchrl_marl_offline.data import DatasetError
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.recording import record
from torchrl_marl_offline.training import (
    CheckpointManager,
    CsvError,
    OnlineReplay,
    RunInUseError,
    TrainingFinished,
    TrainingInterrupted,
    read_csv,
)
from torchrl_marl_offline.training.run.checkpoints import content_of
from torchrl_marl_offline.training.run.run_lock import COMMAND_FILE, LOCK_FILE, RunLock

pytestmark = pytest.mark.fault("2.3")


# ------------------------------------------------------------- one process


def in_another_process(folder: Path, file: str = LOCK_FILE) -> int:
    """Let a child process hold the lock of a folder until it is killed."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        lock = RunLock(folder, file)
        lock.acquire()
        os.write(told, b"x")
        signal.pause()
        os._exit(0)
    assert os.read(ready, 1) == b"x"
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_second_process_is_told_which_folder_and_who(tmp_path):
    make_trainer(tmp_path, steps=5).train()
    child = in_another_process(tmp_path)
    try:
        trainer = make_trainer(tmp_path)
        before, files = weights(trainer), sorted(tmp_path.rglob("*"))
        for act in (trainer.resume, trainer.train):
            with pytest.raises(
                RunInUseError, match=rf"{tmp_path} is in use by process {child} on .*; wait until it has"
            ):
                act()
        with pytest.raises(RunInUseError):
            make_trainer(tmp_path / "x" / "..").resume()
        assert torch.equal(weights(trainer), before)
        assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "x"] == files
    finally:
        end(child)
    assert trainer.resume() == 5  # however the other ended
    trainer.train()


def test_a_trainer_has_the_folder_from_its_resumption_to_its_end(tmp_path):
    make_trainer(tmp_path, steps=5).train()

    def is_free() -> bool:
        child = os.fork()
        if child == 0:
            try:
                RunLock(tmp_path).acquire()
            except RunInUseError:
                os._exit(1)
            os._exit(0)
        return os.waitpid(child, 0)[1] == 0

    seen = []
    trainer = make_trainer(tmp_path, steps=7, evaluators={"look": lambda: seen.append(is_free())}, eval_every=1)
    assert is_free()
    trainer.resume()
    assert not is_free()
    trainer.train()
    assert seen == [False, False]
    assert is_free()
    abandoned = make_trainer(tmp_path)
    abandoned.resume()
    del abandoned
    gc.collect()
    assert is_free()


def test_within_a_process_the_newest_trainer_takes_over_unless_the_other_trains(tmp_path):
    make_trainer(tmp_path, steps=5).train()
    first, second = make_trainer(tmp_path), make_trainer(tmp_path, steps=6)
    assert first.resume() == 5
    assert second.resume() == 5  # a notebook's cell that is run again

    def start_another() -> None:
        with pytest.raises(RunInUseError, match="another run of this process"):
            make_trainer(tmp_path).resume()

    second.evaluators, second.eval_every = {"other": start_another}, 1
    second.train()


def test_commands_claim_their_folder(tmp_path):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Args:
        preset: str = "a"
        resume: Path | None = None
        output: Path | None = None

    write_config(tmp_path, Args())
    with pytest.raises(SettingsError, match="holds an earlier run"):
        write_config(tmp_path, Args())
    other = tmp_path / "other"
    child = in_another_process(other, COMMAND_FILE)
    try:
        with pytest.raises(RunInUseError, match=f"process {child}"):
            write_config(other, Args())
        shutil.copy(tmp_path / "config.json", other)
        with pytest.raises(RunInUseError, match=f"process {child}"):
            parse_settings(Args, presets={"a": {}}, arguments=["--resume", str(other)])
        with pytest.raises(RunInUseError, match=f"process {child}"):  # not yet "holds an earlier run"
            parse_settings(Args, presets={"a": {}}, arguments=["--output", str(other)])
        with pytest.raises(RunInUseError, match=f"process {child}"):
            record("games/bridge", other, qualities=["random"], transitions=10)
    finally:
        end(child)


# ------------------------------------------------- nothing changes if refused


def other_loss(width: int = 8, dtype: torch.dtype = torch.float32, **options) -> RegressionLoss:
    loss = RegressionLoss(**options)
    if width != 8 or dtype != torch.float32:
        from tensordict.nn import TensorDictModule
        from torch import nn

        network = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1)).to(dtype)
        fresh = RegressionLoss(**options)
        fresh.convert_to_functional(
            TensorDictModule(network, in_keys=["x"], out_keys=["value"]), "value_network", create_target_params=True
        )
        return fresh
    return loss


def other_data(factor: float = 2.0):
    buffer = make_buffer()
    rows = buffer[:]
    changed = make_buffer()
    changed.empty()
    changed.extend(TensorDict({"x": rows["x"], "y": rows["y"] * factor}, [64]))
    return changed


def one_number_changed():
    buffer = make_buffer()
    rows = buffer[:].clone()
    rows["x"][63, 3] += 1e-3
    buffer.empty()
    buffer.extend(rows.select("x", "y"))
    return buffer


def batches_of(size: int):
    buffer = make_buffer()
    buffer._batch_size = size
    return buffer


def state_of(trainer: Trainer) -> list:
    """Everything that a refused resumption must leave alone, as comparable values."""
    parts = {n: p for n, p in trainer.components().items() if not isinstance(p, OnlineReplay)}
    states = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
    leaves, _ = torch.utils._pytree.tree_flatten(states)
    values = [leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    return [*values, trainer.step, trainer._saved_step, trainer._checkpoint]


REFUSED = {
    "wider": (lambda o: make_with(o, other_loss(width=9)), r"loss: value_network_params.* is \(.*\) float32 in the"),
    "double": (
        lambda o: make_with(o, other_loss(dtype=torch.float64)),
        "float32 in the checkpoint and .* float64 here",
    ),
    "more tensors": (lambda o: make_with(o, with_buffer()), "loss: .*Missing key.*extra"),
    "other data": (lambda o: make_trainer(o, buffer=other_data()), r"other data of the same length \(y differs\)"),
    "one number": (
        lambda o: make_trainer(o, buffer=one_number_changed()),
        r"other data of the same length \(x differs",
    ),
    "batch size": (lambda o: make_trainer(o, buffer=batches_of(12)), "batch_size was 10 and is 12 now"),
    "lr": (lambda o: make_trainer(o, lr=0.02), "lr was 0.01 and is 0.02 now; go on with that of the run"),
    "tau": (lambda o: make_trainer(o, tau=0.01), "tau was 0.005 and is 0.01 now"),
    "clipping": (lambda o: make_trainer(o, clip_grad_norm=1.0), "clip_grad_norm was None and is 1.0 now"),
    "precision": (lambda o: make_trainer(o, precision="bf16"), "precision was fp32 and is bf16 now"),
    "rule": (lambda o: make_trainer(o, host_noise=False), "host_noise was True and is False now"),
    "optimizer": (lambda o: make_with(o, RegressionLoss(), sgd=True), "optimizer was Adam and is SGD now"),
    "momentum": (lambda o: make_with(o, RegressionLoss(), betas=(0.5, 0.9)), r"betas was \(0.9, 0.999\) and is \(0.5"),
    "generator": (lambda o: make_trainer(o, buffer=make_buffer(generator=False)), "a generator of its own in only one"),
}


def with_buffer() -> RegressionLoss:
    loss = RegressionLoss()
    loss.register_buffer("extra", torch.zeros(3))
    return loss


def make_with(output, loss, *, sgd=False, betas=None) -> Trainer:
    parameters = [p for p in loss.parameters() if p.requires_grad]
    own = {"lr": 1e-2}
    if sgd:
        own = {"optimizer": torch.optim.SGD(parameters, lr=1e-2)}
    if betas:
        own = {"optimizer": torch.optim.Adam(parameters, lr=1e-2, betas=betas)}
    options = {"steps": 60, "log_every": 7, "checkpoint_every": 5, "progress": False}
    return trainer_for(loss, make_buffer(), output=output, **options, **own)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    make_trainer(folder, steps=10).train()
    return folder


@pytest.mark.parametrize("what", REFUSED)
def test_another_run_is_refused_and_nothing_has_changed(begun, what):
    make, sentence = REFUSED[what]
    trainer = make(begun)
    files = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file() and path.name != LOCK_FILE}
    before = state_of(trainer)
    with pytest.raises(CheckpointError, match=sentence) as error:
        trainer.resume()
    assert "\n" not in str(error.value)
    assert state_of(trainer) == before
    assert {p: p.read_bytes() for p in begun.rglob("*") if p.is_file() and p.name != LOCK_FILE} == files
    same = make_trainer(begun, steps=10)  # the lock is free again
    assert same.resume() == 10


def test_what_fails_while_it_is_loaded_is_undone(begun):
    trainer = make_trainer(begun)
    broken = trainer.learner.target_updater
    load = broken.load_state_dict

    def fail(state) -> None:
        load(state)
        broken.load_state_dict = load
        raise RuntimeError("not this\none")

    broken.load_state_dict = fail  # after the buffer, the loss, the optimizer and the generators were loaded
    before = state_of(trainer)
    with pytest.raises(CheckpointError, match="target_updater: not this one"):
        trainer.resume()
    assert state_of(trainer) == before


def test_what_does_not_change_the_numbers_may_differ(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    options = {"steps": 12, "log_every": 3, "checkpoint_every": 4, "keep_checkpoints": 1, "eval_every": 2}
    trainer = make_trainer(tmp_path / "run", evaluators={"a": lambda: {"return": 1.0}}, seed=9, **options)
    assert trainer.resume() == 10
    trainer.train()
    whole = make_trainer(steps=12)
    whole.train()
    assert torch.equal(weights(trainer), weights(whole))


def test_a_checkpoint_without_fingerprints_is_taken(begun, tmp_path):
    """As those of the version before: the number of rows is all that it says of the data."""
    trainer = make_trainer(tmp_path, steps=5)
    buffer_state = trainer._buffer_state()
    known = buffer_state.state_dict
    buffer_state.state_dict = lambda: {k: v for k, v in known().items() if k not in ("content", "batch_size")}
    trainer._buffer_state = lambda: buffer_state
    own_state = trainer.state_dict
    trainer.state_dict = lambda: {k: v for k, v in own_state().items() if k != "settings"}
    trainer.train()
    assert make_trainer(tmp_path, buffer=other_data(), lr=0.5).resume() == 5


def test_every_kind_of_storage_has_a_fingerprint():
    rows = make_buffer()[:].select("x", "y")
    plain, own = make_buffer(), make_replay_buffer(rows, batch_size=4)
    many = PopulationBuffer(rows, batch_size=4, seeds=[0, 1])
    found = [content_of(buffer) for buffer in (plain, own, many)]
    assert found[1] == found[2] and set(found[1]) == {"x", "y"}
    assert {name: found[0][name] for name in ("x", "y")} == found[1]


def test_a_population_of_other_data_settings_or_members_is_refused(tmp_path):
    data = make_data(discrete=True)
    make_population(data, (0, 1), tmp_path, steps=4).train()
    half = data.select_episodes(range(data.n_episodes))
    half.data["next", "agents", "reward"].mul_(0.5)
    for other, options, sentence in (
        (half, {}, "other data of the same length"),
        (data, {"rates": [0.5, 0.5]}, "lr was .* and is .* now"),
        (data, {"tau": 0.5}, "tau was 0.05 and is 0.5 now"),
        (data, {"rules": {"temperature": 7.0}}, "temperature was .* and is .*7.0"),
    ):
        trainer = make_population(other, (0, 1), tmp_path, steps=8, **options)
        before = everything(trainer).clone()
        with pytest.raises(CheckpointError, match=sentence):
            trainer.resume()
        assert torch.equal(everything(trainer), before)


def test_a_missing_journal_is_found_before_anything_changes(tmp_path):
    from data_toys import episodes

    rows = lambda number: episodes([4, 4])  # noqa: E731
    replay = OnlineReplay(rows, capacity=20, batch_size=4, update_to_data=1, journal=tmp_path / "journal")
    replay.sample()
    state = replay.state_dict()
    shutil.move(tmp_path / "journal", tmp_path / "away")
    again = OnlineReplay(rows, capacity=20, batch_size=4, update_to_data=1, journal=tmp_path / "journal")
    with pytest.raises(DatasetError, match="does not exist"):
        again.check_state_dict(state)
    assert (again.rounds, len(again)) == (0, 0)
    other = OnlineReplay(rows, capacity=30, batch_size=4, update_to_data=1, journal=tmp_path / "away")
    with pytest.raises(ValueError, match="capacity was 20 and is 30 now"):
        other.check_state_dict(state)


# ------------------------------------------------------- tables and leftovers


@pytest.mark.parametrize(
    "content",
    [
        *(b"\xff\xfe\x00garbage\n", b"step,a\nx,1\n", b"step,a\n1,2,3\n", b"step,a\n1\n", b"a,b\n1,2\n"),
        *(b"step,step\n1,2\n", b"step,a\n,1\n", b"step,a\n1.5,2\n", b'step,a\n1,"2\n3,4\n', b"step,a\n\x00\n"),
    ],
)
@pytest.mark.parametrize("name", ["train.csv", "eval.csv"])
def test_a_damaged_table_is_named_with_the_remedy(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    sentence = rf"{tmp_path / name} is damaged \(.*\); restore it, or move it away and run this again"
    with pytest.raises(CsvError, match=sentence) as error:
        make_trainer(tmp_path)
    assert "\n" not in str(error.value)


def test_after_the_remedy_the_run_goes_on(begun, tmp_path):
    run = shutil.copytree(begun, tmp_path / "run")
    for content in (b"", b"step,loss\n", b"step,lo"):
        (run / "train.csv").write_bytes(content)
        make_trainer(run)
    (run / "train.csv").unlink()
    trainer = make_trainer(run, steps=14)
    trainer.resume()
    trainer.train()
    assert [row["step"] for row in read_csv(run / "train.csv")] == [14]


def test_leftovers_of_killed_checkpoints_go_at_the_next_one(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".checkpoint-000000000005.torchrl.stage-0123").mkdir()
    (folder / ".checkpoint-000000000005.torchrl.stage-0123" / "state.pt").write_text("half")
    (folder / ".checkpoint-000000000005.torchrl.archive-0123").write_text("half")
    (folder / f".best-000000000005.torchrl.tmp-{os.uname().nodename[:40]}-1-00000000").mkdir()
    CheckpointManager(folder).save(10, loss=torch.nn.Linear(1, 1))
    assert [path.name for path in folder.iterdir()] == ["checkpoint-000000000010.torchrl"]


# --------------------------------------------------------- runs asked to stop


@pytest.mark.fault("3.17")
def test_a_run_that_was_asked_to_stop_raises_unless_the_caller_looks(tmp_path):
    """A loop over seeds that prints what it trained does not print this one."""
    printed = []

    def script() -> None:
        for seed in range(3):
            stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
            trainer = make_trainer(tmp_path / str(seed), seed=seed, evaluators={"stop": stop}, eval_every=10)
            try:
                trainer.train()
            except Exception:  # a script that goes on after an error must not go on after this
                continue
            printed.append(seed)

    with pytest.raises(TrainingInterrupted, match=r"Interrupted at step 10 of 60: saved .*; go on with") as stopped:
        script()
    assert printed == []
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert (stopped.value.step, stopped.value.checkpoint.name) == (10, "checkpoint-000000000010.torchrl")
    with pytest.raises(ValueError, match='on_interrupt must be "raise" or "return"'):
        make_trainer().train(on_interrupt="ignore")


@pytest.mark.fault("3.17")
def test_a_deadline_is_an_interruption_too(tmp_path, capsys):
    with pytest.raises(TrainingInterrupted):
        make_trainer(tmp_path / "a", deadline=0.0).train()
    assert capsys.readouterr().out.count("Interrupted") == 0
    result = make_trainer(tmp_path / "b", deadline=0.0).train(on_interrupt="return")
    assert isinstance(result, TrainingInterrupted) and not isinstance(result, TrainingFinished)
    assert capsys.readouterr().out.count(result.message) == 1


@pytest.mark.fault("3.17")
def test_a_command_ends_with_one_sentence_and_status_130(tmp_path, capsys):
    with pytest.raises(SystemExit) as left, plain_errors():
        make_trainer(tmp_path, deadline=0.0).train()
    assert left.value.code == 130
    said = capsys.readouterr()
    (line,) = said.err.strip().splitlines()
    assert "Interrupted at step 0 of 60: saved " in line
    assert "Interrupted" not in said.out
    assert make_trainer(tmp_path).resume() == 0


@pytest.mark.fault("3.17")
def test_the_interruption_passes_between_processes():
    import pickle

    sent = TrainingInterrupted(3, Path("a/b"), "stopped")
    back = pickle.loads(pickle.dumps(sent))
    assert (back.step, back.checkpoint, back.message, str(back)) == (3, Path("a/b"), "stopped", "stopped")
