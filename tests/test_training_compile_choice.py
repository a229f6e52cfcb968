"""Whether to compile is measured on the run's own batches, without a trace on the run."""

from __future__ import annotations

import pytest
import torch
from population_toys import everything, make_data, make_population
from training_toys import make_buffer, make_trainer, weights

from torchrl_marl_offline.training import Trainer, compile_choice, gradients
from torchrl_marl_offline.training.compile_choice import check_compile
from torchrl_marl_offline.training.gradients import CompiledGradients, Gradients

RULES = {"decomposition": "vdn", "value_learning": "td", "extraction": "brac"}


@pytest.fixture
def short_runs_count(monkeypatch) -> None:
    monkeypatch.setattr(compile_choice, "WORTH_TRYING", 0.0)


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
    loss, buffer = trainer.population.template, data.replay_buffer(batch_size=12, seed=3)
    torch.manual_seed(5)
    options = {"steps": 20, "log_every": 7, "lr": 1e-2, "progress": True} | options
    return Trainer(loss, buffer, output=output, **options)


def test_a_run_that_is_soon_done_is_not_compiled(compilations, capsys):
    trainer = recipe(compile="auto")
    trainer.train()
    assert trainer.compile == "off"
    assert compilations == []
    assert "compile: off" in capsys.readouterr().out


def test_a_failing_compiler_falls_back_and_says_why(short_runs_count, broken_compiler, capsys):
    trainer = recipe(compile="auto")
    trainer.train()
    said = capsys.readouterr().out
    assert "compile: off, it failed here (OSError: no C++ compiler here)" in said
    assert "second line" not in said
    assert trainer.compile == "off"
    plain = recipe(compile="off")
    plain.train()
    assert torch.equal(weights(trainer), weights(plain))


def test_asked_for_a_failing_compiler_is_an_error(broken_compiler):
    with pytest.raises(OSError, match="no C\\+\\+ compiler"):
        recipe(compile="on").train()


@pytest.mark.parametrize(("kind", "choice"), [(Gradients, "off"), (CompiledGradients, "on")])
def test_the_faster_is_chosen_and_measuring_leaves_no_trace(
    kind, choice, short_runs_count, compilations, monkeypatch, capsys
):
    faster(monkeypatch, kind)
    trainer = recipe(compile="auto")
    trainer.train()
    plain = recipe(compile=choice)
    plain.train()
    assert trainer.compile == choice
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


@pytest.mark.parametrize(("kind", "choice"), [(Gradients, "off"), (CompiledGradients, "on")])
def test_the_choice_outlives_a_resume(tmp_path, short_runs_count, compilations, monkeypatch, kind, choice):
    faster(monkeypatch, kind)
    recipe(tmp_path, compile="auto", steps=8, checkpoint_every=4).train()
    other = Gradients if kind is CompiledGradients else CompiledGradients
    faster(monkeypatch, other)  # what another machine would choose
    compilations.clear()
    again = recipe(tmp_path, compile="auto", steps=16)
    assert again.resume() == 8
    again.train()
    assert again.compile == choice
    assert len(compilations) == (choice == "on")
    explicit = recipe(tmp_path, compile="off", steps=24)
    explicit.resume()
    explicit.train()
    assert explicit.compile == "off"


@pytest.mark.parametrize("broken", [False, True])
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
