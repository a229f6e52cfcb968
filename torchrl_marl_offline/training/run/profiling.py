"""Where the time of a training step goes: an account by parts, and a trace of a few steps.

The account is taken by a clock that gives every moment to the innermost part running, so that the parts sum to the
whole. Torch's profiler, which slows down what it watches, writes its trace of the steps after those.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torchrl_marl_offline.core.files import replacing_file, write_text_atomic
from torchrl_marl_offline.core.parts import COMPILED, WHOLE, heard_by

STEP = "step"
REST = "the rest"
WAITING = "waiting for the device"
BESIDE = ("logging", "evaluation", "checkpoint")
"""What does not happen in every step; names that start so are accounted for by the occurrence."""
WARM_UP = 10
TRACED = 5
DEFAULT_STEPS = 20


class PartTime(NamedTuple):
    """Seconds spent in a part, by the host's clock and between events on the device's stream (``None`` on a CPU)."""

    host: float
    device: float | None


class PartClock:
    """Give every moment from the first part entered to the last one left to the innermost part that runs.

    Args:
        device: where the work is done; on CUDA, events on its stream are timed beside the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._running: list[str] = []
        self._marks: list[tuple[str, float, Any]] = []

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Within the block, the time is that of ``name``, except where another part runs in it."""
        self._running.append(name)
        self._mark()
        try:
            yield
        finally:
            self._running.pop()
            self._mark()

    def _mark(self) -> None:
        event = None
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        innermost = self._running[-1] if self._running else REST
        self._marks.append((REST if innermost == STEP else innermost, time.perf_counter(), event))

    @property
    def seconds(self) -> float:
        """Time from the first part entered to the last one left."""
        return self._marks[-1][1] - self._marks[0][1]

    def times(self) -> dict[str, PartTime]:
        """Return the time of each part without those within it; on CUDA the device must be through with them."""
        found: dict[str, PartTime] = {}
        for (name, began, event), (_, ended, next_event) in zip(self._marks, self._marks[1:]):
            host, device = found.get(name, PartTime(0.0, 0.0 if self._cuda else None))
            if event is not None:
                device += 1e-3 * event.elapsed_time(next_event)
            found[name] = PartTime(host + ended - began, device)
        return found


@dataclass
class Account:
    """Where the time of a step went.

    Attributes:
        steps: how many steps were timed.
        warm_up: how many came before them.
        parts: time of each part over all of these steps, each without the parts within it; they sum to the whole.
        beside: what does not happen in every step: the seconds of each occurrence, in the whole run.
        every: steps from one occurrence to the next, by the first word of the name; ``None`` where there are none.
        members: how many runs a step moves at once.
        machine: in words.
    """

    steps: int
    warm_up: int
    parts: dict[str, PartTime]
    beside: dict[str, list[float]] = field(default_factory=dict)
    every: Mapping[str, int | None] = field(default_factory=dict)
    members: int = 1
    machine: str = ""

    @property
    def seconds(self) -> float:
        """Of one step."""
        return sum(time.host for time in self.parts.values()) / self.steps

    def text(self) -> str:
        """Return the account as a page."""
        has_device = any(time.device is not None for time in self.parts.values())
        of_members = f", {1e3 * self.seconds / self.members:.3f} ms a member of {self.members}"
        lines = [
            f"Where a step goes: {1e3 * self.seconds:.3f} ms{of_members if self.members > 1 else ''}, the mean of "
            f"{self.steps} steps after {self.warm_up}",
            self.machine,
            "",
            self._row("part", "ms", "%", *(["ms a member"] if self.members > 1 else [])) + "   device ms" * has_device,
            *(self._part_row(name, self.parts[name]) for name in self._ordered()),
            self._part_row("all parts", self._sum()),
        ]
        if has_device:
            lines += ["", "ms: the host's; device ms: between events on the device's stream, its idle time included."]
        if COMPILED in self.parts or WHOLE in self.parts:
            lines += ["", "What is compiled is one part; compile='off' tells its networks and its backward pass apart."]
        return "\n".join([*lines, "", *self._beside_rows(), ""])

    def _ordered(self) -> list[str]:
        return [name for name in self.parts if name != REST] + [name for name in self.parts if name == REST]

    def _sum(self) -> PartTime:
        host, device = zip(*self.parts.values())
        return PartTime(sum(host), None if None in device else sum(device))

    def _part_row(self, name: str, time: PartTime) -> str:
        per_step, share = 1e3 * time.host / self.steps, 100 * time.host / (self.seconds * self.steps)
        of_member = [f"{per_step / self.members:.4f}"] if self.members > 1 else []
        device = "" if time.device is None else f"{1e3 * time.device / self.steps:12.3f}"
        return self._row(name, f"{per_step:.3f}", f"{share:.1f}", *of_member) + device

    @staticmethod
    def _row(name: str, *cells: str) -> str:
        return f"{name:<30}" + "".join(f"{cell:>12}" for cell in cells)

    def _beside_rows(self) -> list[str]:
        if not self.beside:
            return ["Nothing was logged, evaluated or saved so far."]
        rows = [self._row("beside the steps", "ms each", "times", "every", "ms a step")]
        for name, seconds in self.beside.items():
            each, every = 1e3 * sum(seconds) / len(seconds), self.every.get(name.split(" ")[0])
            per_step = "" if every is None else f"{each / every:.3f}"
            rows.append(self._row(name, f"{each:.3f}", str(len(seconds)), str(every or ""), per_step))
        return rows


class Profiler:
    """Listen to the parts of a run's steps; write ``account.txt`` and ``trace.json.gz`` (for ui.perfetto.dev).

    Args:
        folder: where the files go.
        device: where the run trains.
        steps: how many are timed, after the first :data:`WARM_UP`; the trace is of the :data:`TRACED` steps after them.
        every: see :class:`Account`.
        members: see :class:`Account`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        steps: int = DEFAULT_STEPS,
        every: Mapping[str, int | None],
        members: int = 1,
    ) -> None:
        self.folder, self.device, self.steps, self.every, self.members = folder, device, steps, every, members
        self.beside: dict[str, list[float]] = {}
        self.account: Account | None = None
        self._seen, self._is_beside = 0, False
        self._clock: PartClock | None = None
        self._trace: torch.profiler.profile | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Listen within the block; at its end, the account is of the whole run."""
        with heard_by(self):
            yield
        if self._trace is not None:
            self._end_trace()
        if self._clock is not None:
            self._close_account()
        if self.account is None:
            print(f"profile: {self._seen} steps are within the warm-up of {WARM_UP}; nothing was timed", flush=True)
        else:
            self._write()
            print(f"\n{self.account.text()}{self.folder}: this account and a trace of {TRACED} more steps", flush=True)

    def __call__(self, name: str) -> AbstractContextManager:
        """Return the context of a part."""
        if self._is_beside:
            return nullcontext()
        if name.startswith(BESIDE):
            return self._beside_part(name)
        return self._step_part() if name == STEP else self._timed(name)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        clock = nullcontext() if self._clock is None else self._clock.running(name)
        traced = nullcontext() if self._trace is None else torch.profiler.record_function(name)
        with clock, traced:
            yield

    @contextmanager
    def _beside_part(self, name: str) -> Iterator[None]:
        began, self._is_beside = time.perf_counter(), True
        try:
            with self._timed(name):
                yield
        finally:
            self._is_beside = False
        self.beside.setdefault(name, []).append(time.perf_counter() - began)

    @contextmanager
    def _step_part(self) -> Iterator[None]:
        self._seen += 1
        if self._seen == WARM_UP + 1:
            self._wait()
            self._clock = PartClock(self.device)
        elif self._seen == WARM_UP + self.steps + 1:
            self._start_trace()
        with self._timed(STEP):
            yield
            if self._seen == WARM_UP + self.steps and self.device.type == "cuda":
                with self._timed(WAITING):
                    self._wait()
        if self._seen == WARM_UP + self.steps:
            self._close_account()
        elif self._seen == WARM_UP + self.steps + TRACED:
            self._end_trace()
            self._write()

    def _close_account(self) -> None:
        self._wait()
        parts = {name: time for name, time in self._clock.times().items() if not name.startswith(BESIDE)}
        steps, self._clock = min(self._seen - WARM_UP, self.steps), None
        self.account = Account(steps, WARM_UP, parts, self.beside, self.every, self.members, _machine(self.device))

    def _start_trace(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._trace = torch.profiler.profile(activities=activities)
        self._trace.start()

    def _end_trace(self) -> None:
        self._wait()
        self._trace.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing_file(self.folder / "trace.json.gz") as temporary:
            self._trace.export_chrome_trace(str(temporary))
        self._trace = None

    def _write(self) -> None:
        write_text_atomic(self.folder / "account.txt", self.account.text())

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def make_profiler(
    profile: bool | int, output: Path | None, *, device: torch.device, every: Mapping[str, int | None], members: int
) -> Profiler | None:
    """Return what ``Trainer(profile=...)`` asks for: true for :data:`DEFAULT_STEPS` steps, or their number.

    Raises:
        ValueError: there is no folder to write to.
    """
    if profile is False:
        return None
    if output is None:
        raise ValueError("A profile needs a folder to write to; give Trainer(output=...).")
    steps = DEFAULT_STEPS if profile is True else profile
    return Profiler(output / "profile", device=device, steps=steps, every=every, members=members)


def profiled(profiler: Profiler | None) -> AbstractContextManager:
    """Return the context in which ``profiler``, if there is one, listens."""
    return nullcontext() if profiler is None else profiler.attached()


def _machine(device: torch.device) -> str:
    name = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    return f"{name}torch {torch.__version__}, {torch.get_num_threads()} threads, device {device}"


__all__ = ["Account", "PartClock", "PartTime", "Profiler", "make_profiler", "profiled"]
