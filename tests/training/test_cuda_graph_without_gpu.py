"""What :class:`CudaGraphStep` does with batches and metrics, on a stand-in for CUDA that repeats what it captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.optim import SGD, Adam
from torchrl.objectives import HardUpdate, SoftUpdate
from training_toys import make_trainer

from torchrl_marl_offline.training.step.cuda_graph import CudaGraphStep
from torchrl_marl_offline.training.step.optimizer import can_be_captured, marked_capturable
from torchrl_marl_offline.training.step.rhythm import Rhythm


class Recorded:
    """A graph: within the capture nothing happens; a replay does what was captured, into the same tensors."""

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []
        self.replay: Callable[[], None] | None = None

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)


class Sum:
    """A step: adds the batch to a total, reports the total."""

    def __init__(self) -> None:
        self.total, self.calls = torch.zeros(()), 0
        self.capturing: Recorded | None = None

    def __call__(self, batch: TensorDict) -> dict[str, Tensor]:
        self.calls += 1
        if self.capturing is None:
            self.total += batch["x"].sum()
            return {"total": self.total.clone()}
        report = torch.full((), float("nan"))

        def replay() -> None:
            self.total += batch["x"].sum()
            report.copy_(self.total)

        self.capturing.replay = replay
        return {"total": report}


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Sum:
    step = Sum()

    @contextmanager
    def capture(graph: Recorded) -> Iterator[None]:
        step.capturing = graph
        yield
        step.capturing = None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_in = {
        "CUDAGraph": Recorded,
        "graph": capture,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda of: nullcontext(),
    }
    for name, value in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return step


def batch(value: float, rows: int = 2) -> TensorDict:
    return TensorDict({"x": torch.full((rows,), value)}, [rows])


def test_every_batch_counts_once_and_metrics_are_kept(step: Sum) -> None:
    graph = CudaGraphStep(step, warm_up=2)
    reports = [graph(batch(float(value)))["total"] for value in (1, 2, 4, 8, 16)]
    assert [report.item() for report in reports] == [2, 6, 14, 30, 62]
    assert step.calls == 3 and step.total.item() == 62  # two as they are, one captured; the rest replayed


def test_later_batches_are_copied_and_left_alone(step: Sum) -> None:
    graph = CudaGraphStep(step, warm_up=0)
    first, second = batch(1.0), batch(5.0)
    graph(first)
    graph(second)
    assert first["x"].eq(1).all() and second["x"].eq(5).all() and step.total.item() == 12


def test_generators_are_registered(step: Sum) -> None:
    generators = [torch.Generator(), torch.Generator()]
    graph = CudaGraphStep(step, generators=generators, warm_up=0)
    graph(batch(1.0))
    assert graph._graph.generators == generators


@pytest.mark.parametrize("other", [batch(1.0, rows=3), batch(1.0).double()], ids=["rows", "dtype"])
def test_a_batch_of_another_form_is_refused_before_it_counts(step: Sum, other: TensorDict) -> None:
    graph = CudaGraphStep(step, warm_up=1)
    graph(batch(1.0))
    graph(batch(1.0))
    with pytest.raises(ValueError, match="one form only; use compile='off'"):
        graph(other)
    assert step.total.item() == 4


PARAMETERS = [torch.nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize(
    ("optimizer", "possible"),
    [
        (Adam(PARAMETERS, fused=True), True),
        (Adam(PARAMETERS, capturable=True), True),
        (Adam(PARAMETERS), False),  # counts its steps on the host
        (SGD(PARAMETERS, lr=0.1), True),  # counts none
    ],
)
def test_which_optimizers_a_graph_can_hold(optimizer: torch.optim.Optimizer, possible: bool) -> None:
    before = [dict(group) for group in optimizer.param_groups]
    assert can_be_captured(optimizer) is possible
    with marked_capturable(optimizer):
        assert optimizer.param_groups[0].get("capturable", True) is True
    assert [dict(group) for group in optimizer.param_groups] == before


def test_the_mark_is_taken_back_after_an_error() -> None:
    optimizer = Adam(PARAMETERS, fused=True)
    with pytest.raises(RuntimeError, match="capture"), marked_capturable(optimizer):
        raise RuntimeError("capture")
    assert optimizer.param_groups[0]["capturable"] is False


def test_the_optimizer_is_marked_while_it_is_captured_alone(step: Sum) -> None:
    optimizer, marks = Adam(PARAMETERS, fused=True), []

    def marking(batch: TensorDict) -> dict[str, Tensor]:
        marks.append(optimizer.param_groups[0]["capturable"])
        return step(batch)

    graph = CudaGraphStep(marking, capturing=lambda: marked_capturable(optimizer), warm_up=2)
    for value in range(4):
        graph(batch(float(value)))
    assert marks == [False, False, True] and optimizer.param_groups[0]["capturable"] is False


def test_steps_that_count_in_python_are_not_captured() -> None:
    plain = make_trainer()
    for updater, alike in [(SoftUpdate(plain.loss, tau=0.1), True), (HardUpdate(plain.loss), False), (None, True)]:
        plain.learner.target_updater = updater
        assert plain.learner.steps_are_alike() is alike
    plain.learner.rhythm = Rhythm(actor_every=2)
    assert not plain.learner.steps_are_alike()
    plain.learner.rhythm, plain.learner.optimizer = Rhythm(), Adam(plain.loss.parameters())
    assert not plain.learner.steps_are_alike()
