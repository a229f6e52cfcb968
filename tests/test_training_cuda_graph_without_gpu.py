"""What :class:`CudaGraphStep` does with batches and metrics, on a stand-in for CUDA that repeats what it captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_marl_offline.training.cuda_graph import CudaGraphStep


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
