"""Whether compiling pays: predicted, then measured, at the start of a run on its own batches, without a trace on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_marl_offline.core.put_back import preserved_buffers, preserved_rng
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.training.step.compile_costs import CompileCosts, kind_of, machine_of
from torchrl_marl_offline.training.step.compile_failures import failures_are_raised, why_it_failed
from torchrl_marl_offline.training.step.gradients import leaf_device

if TYPE_CHECKING:
    from torchrl.data import ReplayBuffer

Differentiate = Callable[[TensorDictBase], dict[str, Tensor]]
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


def check_compile(compile: Any, loss: nn.Module | None = None) -> Any:
    """Return ``compile`` if it is one of the words or a mapping.

    Raises:
        ValueError: it is none, or asks to compile a loss that cannot be; ``"auto"`` finds that out by itself.
    """
    if not (isinstance(compile, Mapping) or (isinstance(compile, str) and compile in ("off", "on", "auto"))):
        raise ValueError(f'compile must be "off", "on", "auto" or options of torch.compile, got {compile!r}.')
    if isinstance(loss, OfflineMARLLoss) and loss.team.has_torchrl_memory and compile not in ("off", "auto"):
        raise ValueError(
            "TorchRL's LSTMModule and GRUModule look at where episodes begin, which nothing compiled can; give "
            "compile='off', or build with memory='gru' or 'lstm'."
        )
    return compile


def choose_compile(
    make: Callable[..., Differentiate],
    buffer: ReplayBuffer,
    loss: nn.Module,
    *,
    state: Any,
    steps: int,
    agreed: Callable[[float], float] = lambda seconds: seconds,
    precision: str = "fp32",
    say: Callable[[str], None] = lambda message: None,
) -> CompileChoice:
    """Time a few steps as they stand and compiled, and choose what ends ``steps`` steps sooner.

    Compiling is not tried where it is expected to cost more than it saves: by what it cost and brought here the last
    time (:class:`~.compile_costs.CompileCosts`), or by a safe figure. It is given up where there is no compiler.

    Args:
        make: ``make(compiled=)`` returns the function that differentiates a batch.
        buffer: where batches come from; it and the random generators are as before afterwards.
        loss: whose buffers and gradients are as before afterwards.
        state: saves and restores the buffer's sampling, by ``state_dict`` and ``load_state_dict``.
        steps: how many steps the run has.
        agreed: makes one time of what each of several processes measured, which must choose alike.
        precision: of the matrix products.
        say: told that compiling begins, and how long it is expected to take.
    """
    eager = make(compiled=False)
    if getattr(buffer, "gathers_experience", False):
        return CompileChoice(False, eager, "compile: off, since sampling would gather experience to measure with")
    with _untouched(state, loss):
        batch = buffer.sample()
        plain = agreed(_seconds(eager, batch))
        costs, step = CompileCosts(), (kind_of(loss, batch, precision), machine_of(leaf_device(batch)))
        expected = costs.expected(*step)
        price, saved = agreed(expected.seconds), plain * steps * (1 - agreed(expected.ratio))
        if saved <= price:
            why = f"{1e3 * plain:.1f} ms a step; compiling would take {price:.0f} s to save {max(saved, 0.0):.0f} s"
            return CompileChoice(False, eager, f"compile: off, {why} ({expected.measured})")
        say(f"compile: trying, which takes about {price:.0f} s ({expected.measured})")
        compiled = make(compiled=True)
        try:
            with _calm_time() as clock, failures_are_raised():
                compiled(batch.copy())
        except Exception as error:  # whatever the compiler of this machine, or none, raises
            return CompileChoice(False, eager, f"compile: off, {why_it_failed(error)}")
        warm_up, fast = clock.seconds, agreed(_seconds(compiled, batch))
        costs.remember(*step, warm_up, fast / plain)
    found = f"{1e3 * plain:.1f} ms a step as it stands, {1e3 * fast:.1f} ms compiled (in {warm_up:.0f} s)"
    if fast < plain:
        return CompileChoice(True, compiled, f"compile: on, {found}")
    return CompileChoice(False, eager, f"compile: off, {found}")


def _seconds(gradients: Differentiate, batch: TensorDictBase) -> float:
    times = []
    for _ in range(REPEATS):
        with _calm_time() as clock:
            metrics = gradients(batch.copy())  # a loss may write priorities into it
            if batch.device is not None and batch.device.type == "cuda":
                torch.cuda.synchronize(batch.device)
            del metrics
        times.append(clock.seconds)
    return sorted(times[1:])[len(times) // 2]


@dataclass
class _Clock:
    """Seconds that a block would have taken had no other process wanted the processors."""

    seconds: float = 0.0


@contextmanager
def _calm_time() -> Iterator[_Clock]:
    """Time a block; on a busy machine by the part of its time that this thread was given of what it wanted.

    Otherwise an hour in which others work would teach that compiling takes half of one, for all runs to come.
    """
    clock, began, (ran, waited) = _Clock(), time.perf_counter(), _schedule()
    yield clock
    seconds, (ran_now, waited_now) = time.perf_counter() - began, _schedule()
    ran, waited = ran_now - ran, waited_now - waited
    clock.seconds = seconds * ran / (ran + waited) if ran + waited > 0 else seconds


def _schedule() -> tuple[int, int]:
    """Return the nanoseconds that this thread ran, and those that it waited for a processor, where Linux tells."""
    try:
        ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
        return int(ran), int(waited)
    except (OSError, ValueError):
        return 0, 0


@contextmanager
def _untouched(state: Any, loss: nn.Module) -> Iterator[None]:
    """Put back the sampler, the generators, the loss's buffers and gradients."""
    saved = state.state_dict()
    with preserved_rng(), preserved_buffers(loss):
        yield
    state.load_state_dict(saved)
    for parameter in loss.parameters():
        parameter.grad = None
