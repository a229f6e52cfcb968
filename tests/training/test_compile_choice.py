"""Whether to compile is measured on the run's own batches, without a trace on the run."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from population_toys import everything, make_data, make_population
from selection import some_of, thorough
from trainers import trainer_for
from training_toys import make_buffer, make_trainer, weights

from torchrl_marl_offline.training import Trainer
from torchrl_marl_offline.training.step import compile_choice, compile_failures, gradients
from torchrl_marl_offline.training.step.compile_choice import check_compile
from torchrl_marl_offline.training.step.compile_costs import CompileCosts, Cost, kind_of, machine_of
from torchrl_marl_offline.training.step.compile_failures import CompileWarning, why_it_failed
from torchrl_marl_offline.training.step.gradients import CompiledGradients, Gradients

RULES = {"decomposition": "vdn", "value_learning": "td", "extraction": "brac"}


@pytest.fixture(autouse=True)
def own_costs(monkeypatch, tmp_path) -> CompileCosts:
    """A cache folder without figures."""
    monkeypatch.setenv("TORCHRL_MARL_OFFLINE_CACHE", str(tmp_path / "cache"))
    return CompileCosts()


@pytest.fixture
def short_runs_count(monkeypatch) -> None:
    free = Cost(0.0, 0.0, "for nothing")
    monkeypatch.setattr(compile_choice.CompileCosts, "expected", lambda *_: free)


@pytest.fixture
def compilations(monkeypatch) -> list[torch.fx.GraphModule]:
    """A compiler that leaves the graph as it is, and what it was given."""
    given = []

    def compile_graph(graph, backend):
        given.append(graph)
        return graph

    monkeypatch.setattr(gradients, "compile_graph", compile_graph)
    return given


@pytest.fixture
def broken_compiler(monkeypatch) -> None:
    def fail(graph, backend):
        raise OSError("no C++ compiler here\nand a second line")

    monkeypatch.setattr(gradients, "compile_graph", fail)


def faster(monkeypatch, kind) -> None:
    """Let the functions of one kind be measured as the faster ones."""
    measured = compile_choice._seconds

    def seconds(function, batch):
        measured(function, batch)
        return 1e-3 if isinstance(function, kind) else 2e-3

    monkeypatch.setattr(compile_choice, "_seconds", seconds)


def recipe(output=None, **options) -> Trainer:
    """A trainer of a loss that draws noise, keeps statistics and writes priorities into its batch."""
    data = make_data(discrete=True)
    trainer = make_population(data, (0,), rules=RULES)
    loss, buffer = trainer.learner.population.template, data.replay_buffer(batch_size=12, seed=3)
    torch.manual_seed(5)
    options = {"steps": 20, "log_every": 7, "lr": 1e-2, "progress": True} | options
    return trainer_for(loss, buffer, output=output, **options)


def test_a_run_that_is_soon_done_is_not_compiled(compilations, capsys):
    trainer = recipe(compile="auto")
    trainer.train()
    assert trainer.learner.compile == "off"
    assert compilations == []
    said = capsys.readouterr().out
    assert re.search(
        r"compile: off, .* ms a step; compiling would take 60 s to save \d+ s \(not measured on this", said
    )


def test_a_failing_compiler_falls_back_and_says_why(short_runs_count, broken_compiler, capsys):
    trainer = recipe(compile="auto")
    trainer.train()
    said = capsys.readouterr().out
    assert "compile: off, it failed here (OSError: no C++ compiler here)" in said
    assert "second line" not in said
    assert trainer.learner.compile == "off"
    plain = recipe(compile="off")
    plain.train()
    assert torch.equal(weights(trainer), weights(plain))


@pytest.mark.fault("2.5")
@pytest.mark.parametrize(
    ("where", "many"), some_of(itertools.product(["while it is compiled", "at the first call"], [False, True]), every=4)
)
def test_asked_for_a_failing_compiler_it_goes_on_without_and_says_so(monkeypatch, where, many):
    """An unwritable cache and no compiler are found while compiling, a damaged library at the first call."""

    def fail(*_):
        raise OSError("no C++ compiler here\nand a second line")

    def compile_graph(graph, backend):
        return fail if where == "at the first call" else fail()

    monkeypatch.setattr(gradients, "compile_graph", compile_graph)
    data = make_data(discrete=True)
    make = (lambda word: make_population(data, (0, 1), rules=RULES, compile=word)) if many else recipe_of
    trainer = make("on")
    with pytest.warns(
        CompileWarning, match=r"compile: off, it failed here \(OSError: no C\+\+ compiler here\); the"
    ) as w:
        trainer.train()
    assert len([warning for warning in w if issubclass(warning.category, CompileWarning)]) == 1
    plain = make("off")
    plain.train()
    torch.testing.assert_close(*((everything if many else weights)(each) for each in (trainer, plain)))


def recipe_of(word: str) -> Trainer:
    return recipe(compile=word)


# tensordict touches a deprecated setting of torch's while it is traced.
@pytest.mark.filterwarnings("ignore:.*inline_inbuilt_nn_modules:FutureWarning")
@pytest.mark.fault("2.5")
def test_options_of_torch_compile_fall_back_bit_for_bit():
    def broken(graph, inputs):
        raise ImportError("/somewhere/else/x.so: file too short")

    trainer = make_trainer(compile={"backend": broken}, host_noise=False, steps=12)
    with pytest.warns(CompileWarning, match="file too short"):
        trainer.train()
    plain = make_trainer(host_noise=False, steps=12)
    plain.train()
    assert torch.equal(weights(trainer), weights(plain))
    with pytest.raises(KeyError, match='key "x" not found'), warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        make_trainer(compile={"backend": "eager"}, buffer=bad_buffer(), host_noise=False, steps=12).train()


def bad_buffer():
    buffer = make_buffer()
    sample = buffer.sample
    buffer.sample = lambda: sample().exclude("x")
    return buffer


@pytest.mark.fault("2.5")
def test_a_damaged_library_of_torchs_cache_is_named_and_deleted(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    library, other = tmp_path / "torch" / "ab" / "cabc.so", tmp_path / "mine.so"
    for path in (library, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"cut")
        os.utime(path, (time.time() - 100,) * 2)
    for path in (library, other):
        assert ("was damaged and is deleted" in why_it_failed(too_short(path))) == (path is library)
    assert not library.exists() and other.exists()


def too_short(path: Path) -> RuntimeError:
    error = RuntimeError("the compiler says")
    error.__cause__ = OSError(f"{path}: file too short")
    return error


@pytest.mark.parametrize(
    ("began", "changed", "is_left"), [(-200, -100, False), (-200, -1, True), (-5, -6, False), (-5, -4, True)]
)
@pytest.mark.parametrize("is_named", [False, True])
def test_a_library_that_another_process_writes_is_left_alone(monkeypatch, tmp_path, began, changed, is_left, is_named):
    """Deleted, it would be missing there, and the other run would go on without compiling."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    monkeypatch.setattr(compile_failures, "_BEGAN", time.time() + began)
    library = tmp_path / "torch" / "ab" / "cabc.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\x7fELF half of it")
    os.utime(library, (time.time() + changed,) * 2)
    said = why_it_failed(too_short(library) if is_named else OSError("no C++ compiler here"))
    assert library.exists() is is_left
    assert ("was damaged and is deleted" in said) is not is_left


def test_a_library_is_cut_where_it_ends_before_its_sections(tmp_path):
    from torch import _C

    from torchrl_marl_offline.training.step.compile_failures import _is_cut

    whole = Path(_C.__file__).read_bytes()  # a small library that is loaded
    path = tmp_path / "a.so"
    for size, is_cut in ((len(whole), False), (len(whole) // 2, True), (64, True), (63, True), (0, True)):
        path.write_bytes(whole[:size])
        assert _is_cut(path) is is_cut, size
    path.write_bytes(b"no library" * 10)
    assert _is_cut(path)


@pytest.mark.slow
@pytest.mark.thorough  # a cut library that is put there by hand is always tested
@pytest.mark.fault("2.5")
def test_a_library_that_is_really_cut_short(tmp_path):
    """What Ctrl-C leaves: torch finds the file in its cache, and a new process cannot load it."""
    script = "from training_toys import make_trainer; make_trainer(compile='on', host_noise=False, steps=2).train()"
    paths = os.pathsep.join([str(Path(__file__).parents[1] / "toys"), os.environ.get("PYTHONPATH", "")])
    own = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch"), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "0"}

    def run() -> str:
        command = [sys.executable, "-W", "always::UserWarning", "-c", script]
        done = subprocess.run(
            command, env=os.environ | own | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "CompileWarning" not in run()
    cut = list((tmp_path / "torch").rglob("*.so"))
    assert cut
    for path in cut:
        path.unlink()
        path.write_bytes(b"\x7fELF cut")
    said = run()
    assert "CompileWarning: compile: off" in said
    assert "was damaged and is deleted" in said
    assert not [path for path in cut if path.exists() and path.read_bytes() == b"\x7fELF cut"]


@pytest.mark.fault("6.2")
def test_compiling_is_tried_only_where_it_is_expected_to_end_the_run_sooner(monkeypatch, compilations, own_costs):
    """20 steps of 2 ms: where compiling is said to cost 15 ms and to halve a step, 20 ms are saved; at 25 ms not."""
    faster(monkeypatch, CompiledGradients)
    for seconds, ratio, tried in ((0.015, 0.5, True), (0.025, 0.5, False), (0.0, 1.0, False), (0.005, 0.9, False)):
        monkeypatch.setattr(compile_choice.CompileCosts, "expected", lambda *_, c=(seconds, ratio): Cost(*c, "told"))
        compilations.clear()
        trainer = recipe(compile="auto")
        trainer.train()
        assert (len(compilations) == 1) is tried, (seconds, ratio)
        assert trainer.learner.compile == ("on" if tried else "off")


@pytest.mark.fault("6.2")
def test_what_it_cost_is_remembered_for_the_next_run(monkeypatch, compilations, own_costs):
    from torchrl_marl_offline.training.step.compile_costs import SAFE

    faster(monkeypatch, CompiledGradients)
    batch = recipe().buffer.sample()
    kind, machine = kind_of(recipe().loss, batch, "fp32"), machine_of(torch.device("cpu"))
    assert own_costs.expected(kind, machine) == SAFE
    own_costs.remember("another step", machine, 0.001, 0.25)
    assert own_costs.expected(kind, machine) == Cost(0.001, 0.25, "as other steps here")
    recipe(compile="auto").train()  # 40 ms as it stands, so that a millisecond is soon saved
    found = own_costs.expected(kind, machine)
    assert (found.ratio, found.measured) == (0.5, "as it was here the last time")
    assert found.seconds > 0
    assert own_costs.expected(kind, "another machine") == SAFE
    assert kind != kind_of(recipe().loss, batch, "bf16")
    own_costs.remember(kind, machine, 100.0, 0.5)
    compilations.clear()
    recipe(compile="auto").train()
    assert compilations == []


@pytest.mark.fault("6.2")
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"m": 3}', '{"m": {"k": [1]}}', '{"m": {"k": ["a", 1]}}', "\0"])
def test_a_damaged_or_unwritable_memory_is_none(tmp_path, content):
    from torchrl_marl_offline.training.step.compile_costs import SAFE

    file = tmp_path / "costs.json"
    file.write_text(content)
    costs = CompileCosts(file)
    assert costs.expected("k", "m") == SAFE
    costs.remember("k", "m", 2.0, 0.5)
    assert costs.expected("k", "m").seconds == 2.0
    nowhere = CompileCosts(file / "below a file")
    nowhere.remember("k", "m", 2.0, 0.5)
    assert nowhere.expected("k", "m") == SAFE


@pytest.mark.parametrize(("kind", "choice"), [thorough((Gradients, "off")), (CompiledGradients, "on")])
def test_the_faster_is_chosen_and_measuring_leaves_no_trace(
    kind, choice, short_runs_count, compilations, monkeypatch, capsys
):
    faster(monkeypatch, kind)
    trainer = recipe(compile="auto")
    trainer.train()
    plain = recipe(compile=choice)
    plain.train()
    assert trainer.learner.compile == choice
    said = capsys.readouterr().out
    assert f"compile: {choice}, " in said
    assert "ms a step as it stands" in said
    assert torch.equal(weights(trainer), weights(plain))
    assert torch.equal(trainer.buffer._rng.get_state(), plain.buffer._rng.get_state())


def test_what_was_measured_serves_the_run(short_runs_count, compilations, monkeypatch):
    """Measuring must not leave its priorities in the batch: its form would not be that of the batches to come."""
    faster(monkeypatch, CompiledGradients)
    trainer = recipe(compile="auto")
    trainer.train()
    assert len(compilations) == 1


def test_global_generators_and_counts_are_put_back(short_runs_count, broken_compiler):
    """A buffer and a loss that draw from the global generator, and a buffer that counts calls."""
    runs = []
    for compile in ("auto", "off"):
        buffer = make_buffer(generator=False)
        trainer = make_trainer(compile=compile, buffer=buffer, steps=12, host_noise=True)
        trainer.train()
        assert trainer.loss.calls == 12
        runs.append((weights(trainer), torch.get_rng_state()))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize(("kind", "choice"), [thorough((Gradients, "off")), (CompiledGradients, "on")])
def test_the_choice_outlives_a_resume(tmp_path, short_runs_count, compilations, monkeypatch, kind, choice):
    faster(monkeypatch, kind)
    recipe(tmp_path, compile="auto", steps=8, checkpoint_every=4).train()
    other = Gradients if kind is CompiledGradients else CompiledGradients
    faster(monkeypatch, other)  # what another machine would choose
    compilations.clear()
    again = recipe(tmp_path, compile="auto", steps=16)
    assert again.resume() == 8
    again.train()
    assert again.learner.compile == choice
    assert len(compilations) == (choice == "on")
    explicit = recipe(tmp_path, compile="off", steps=24)
    explicit.resume()
    explicit.train()
    assert explicit.learner.compile == "off"


@pytest.mark.parametrize("broken", [False, thorough(True)])
def test_a_population_chooses_as_a_run_does(broken, short_runs_count, compilations, monkeypatch, capsys):
    def fail(graph, backend):
        raise OSError("no compiler")

    if broken:
        monkeypatch.setattr(gradients, "compile_graph", fail)
    data = make_data(discrete=True)
    runs = [make_population(data, (0, 1), rules=RULES, compile=c, progress=True) for c in ("auto", "off")]
    for run in runs:
        run.train()
    said = capsys.readouterr().out
    assert ("it failed here (OSError: no compiler)" in said) == broken
    assert ("ms compiled" in said) != broken
    assert torch.equal(*map(everything, runs))


@pytest.mark.parametrize("word", ["yes", True, None, 3])
def test_other_words_are_refused(word):
    with pytest.raises(ValueError, match=r'compile must be "off", "on", "auto" or options of torch.compile, got'):
        check_compile(word)
    with pytest.raises(ValueError, match="compile must be"):
        make_trainer(compile=word)


@pytest.mark.fault("6.2")
@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="Linux alone tells")
def test_a_busy_machine_teaches_no_wrong_times():
    """Four processes want the one processor that this one may use: what it takes by the clock is not what it costs."""

    def work() -> None:
        end = time.process_time() + 0.25
        while time.process_time() < end:
            sum(range(1000))

    allowed, others = os.sched_getaffinity(0), []
    try:
        os.sched_setaffinity(0, {min(allowed)})
        others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(4)]
        began = time.perf_counter()
        with compile_choice._calm_time() as clock:
            work()
        by_the_clock = time.perf_counter() - began
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, allowed)
    assert by_the_clock > 0.5
    assert 0.125 < clock.seconds < 0.375
