"""Whether compiling pays: measured at the start of a run, on its own batches, without a trace on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_marl_offline.training.evaluation import preserved_rng
from torchrl_marl_offline.training.online import OnlineReplay

if TYPE_CHECKING:
    from torchrl.data import ReplayBuffer

Differentiate = Callable[[TensorDictBase], dict[str, Tensor]]
WORTH_TRYING = 60.0
"""Seconds that a run must be expected to last, as it stands, before compiling is tried."""
REPEATS = 7


@dataclass(frozen=True)
class CompileChoice:
    """What was chosen and why.

    Attributes:
        compiled: whether to compile.
        gradients: the function chosen, warm.
        message: one sentence with the times measured.
    """

    compiled: bool
    gradients: Differentiate
    message: str


def check_compile(compile: Any) -> Any:
    """Return ``compile`` if it is one of the words or a mapping."""
    if isinstance(compile, Mapping) or (isinstance(compile, str) and compile in ("off", "on", "auto")):
        return compile
    raise ValueError(f'compile must be "off", "on", "auto" or options of torch.compile, got {compile!r}.')


def choose_compile(
    make: Callable[..., Differentiate],
    buffer: ReplayBuffer | OnlineReplay,
    loss: nn.Module,
    *,
    state: Any,
    steps: int,
    agreed: Callable[[float], float] = lambda seconds: seconds,
) -> CompileChoice:
    """Time a few steps as they stand and compiled, and choose what ends ``steps`` steps sooner.

    Compiling is not tried where the run is too short for it, and is given up where there is no compiler. The warm-up
    is then the only loss.

    Args:
        make: ``make(compiled=)`` returns the function that differentiates a batch.
        buffer: where batches come from; it and the random generators are as before afterwards.
        loss: whose buffers and gradients are as before afterwards.
        state: saves and restores the buffer's sampling, by ``state_dict`` and ``load_state_dict``.
        steps: how many steps the run has.
        agreed: makes one time of what each of several processes measured, which must choose alike.
    """
    eager = make(compiled=False)
    if isinstance(buffer, OnlineReplay):
        return CompileChoice(False, eager, "compile: off, since sampling would gather experience to measure with")
    with _untouched(state, loss):
        batch = buffer.sample()
        plain = agreed(_seconds(eager, batch))
        if plain * steps < WORTH_TRYING:
            return CompileChoice(False, eager, f"compile: off, {1e3 * plain:.1f} ms a step are soon done")
        compiled = make(compiled=True)
        began = time.perf_counter()
        try:
            compiled(batch.copy())
        except Exception as error:  # whatever the compiler of this machine, or none, raises
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
            return CompileChoice(False, eager, f"compile: off, it failed here ({type(error).__name__}: {reason})")
        warm_up, fast = time.perf_counter() - began, agreed(_seconds(compiled, batch))
    found = f"{1e3 * plain:.1f} ms a step as it stands, {1e3 * fast:.1f} ms compiled (in {warm_up:.0f} s)"
    if fast < plain:
        return CompileChoice(True, compiled, f"compile: on, {found}")
    return CompileChoice(False, eager, f"compile: off, {found}")


def _seconds(gradients: Differentiate, batch: TensorDictBase) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        metrics = gradients(batch.copy())  # a loss may write priorities into it
        if batch.device is not None and batch.device.type == "cuda":
            torch.cuda.synchronize(batch.device)
        del metrics
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[len(times) // 2]


@contextmanager
def _untouched(state: Any, loss: nn.Module) -> Iterator[None]:
    """Put back the sampler, the generators, the loss's buffers and gradients."""
    saved, values = state.state_dict(), {name: value.clone() for name, value in loss.named_buffers()}
    with preserved_rng():
        yield
    state.load_state_dict(saved)
    with torch.no_grad():
        for name, value in loss.named_buffers():
            value.copy_(values[name])
    for parameter in loss.parameters():
        parameter.grad = None
