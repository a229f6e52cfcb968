"""A whole training step as one CUDA graph: the host launches it once instead of its hundreds of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.parts import WHOLE, part
from torchrl_marl_offline.training.step.gradients import signature_of

Step = Callable[[TensorDictBase], dict[str, Tensor]]


class CudaGraphStep:
    """Capture a step and replay it with each new batch.

    The first calls run as they are, on a side stream, as torch asks before a capture: they are steps of the run like
    any other, and what is created lazily (moments, compiled kernels) exists after them.

    Args:
        step: from a batch to metrics; it reads and writes the same tensors at every call, never waits for the device
            and changes nothing in Python.
        generators: on the device, beside torch's own, from which it draws.
        capturing: entered around the capture.
        warm_up: calls before the capture.

    Raises:
        ValueError: a batch of another form than the first.
    """

    def __init__(
        self,
        step: Step,
        *,
        generators: Sequence[torch.Generator] = (),
        capturing: Callable[[], AbstractContextManager] = nullcontext,
        warm_up: int = 3,
    ) -> None:
        self._step, self._generators, self._capturing, self._left = step, generators, capturing, warm_up
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: TensorDictBase | None = None
        self._signature: tuple | None = None
        self._metrics: dict[str, Tensor] = {}

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take the step on ``batch`` and return metrics that later steps do not overwrite."""
        if self._left > 0:
            self._left -= 1
            return self._beside(batch)
        if self._graph is None:
            self._capture(batch)
        if signature_of(batch) != self._signature:
            raise ValueError("A CUDA graph takes batches of one form only; use compile='off' where their sizes change.")
        with part(WHOLE):
            self._batch.update_(batch)
            self._graph.replay()
        return {name: value.clone() for name, value in self._metrics.items()}

    def _beside(self, batch: TensorDictBase) -> dict[str, Tensor]:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            metrics = self._step(batch)
        current.wait_stream(side)
        return metrics

    def _capture(self, batch: TensorDictBase) -> None:
        self._batch, self._signature = batch.clone(), signature_of(batch)
        self._graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            self._graph.register_generator_state(generator)
        with self._capturing(), torch.cuda.graph(self._graph):
            self._metrics = self._step(self._batch)
