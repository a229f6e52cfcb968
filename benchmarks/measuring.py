"""What the scripts that measure speed and memory share: times in turns, fresh processes, machine and load, JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from arguments import as_file, script_parser

if TYPE_CHECKING:
    from torchrl_marl_offline.evaluation import Interval

Play = Callable[[int], None]
"""Does something this many times."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks by name; on one thread of a busy machine the process's own time is what an idle one would show."""

HERE = Path(__file__).parent
LOAD_AT_START = os.getloadavg()


def times(function: Callable[[], Any]) -> Play:
    """Return a play that calls a function."""

    def play(count: int) -> None:
        for _ in range(count):
            function()

    return play


def alternate(
    plays: Mapping[str, Play],
    *,
    repeats: int,
    count: int | None = None,
    seconds: float | None = None,
    multiple: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds that one time of each play takes, ``repeats`` of them, measured in turns.

    What else runs on the machine meets all of them alike, so that their ratios stand.

    Args:
        plays: by name; each has had a turn that is not counted.
        repeats: turns of each.
        count: times of a turn; the same for all.
        seconds: or how long a turn takes, whatever the number of times.
        multiple: with ``seconds``, the number of times is a multiple of it.
        clock: in seconds.
    """
    if (count is None) == (seconds is None):
        raise ValueError("alternate needs either count or seconds.")
    counts = {name: _warm_up(play, count, seconds, multiple, clock) for name, play in plays.items()}
    found: dict[str, list[float]] = {name: [] for name in plays}
    for _ in range(repeats):
        for name, play in plays.items():
            found[name].append(_elapsed(play, counts[name], clock) / counts[name])
    return found


def _warm_up(play: Play, count: int | None, seconds: float | None, multiple: int, clock: Callable[[], float]) -> int:
    """Play, and return how often a turn plays."""
    if count is not None:
        play(count)
        return count
    play(multiple)  # compiles
    number, elapsed = multiple, _elapsed(play, multiple, clock)
    while elapsed < seconds / 4:
        number *= 2
        elapsed = _elapsed(play, number, clock)
    return max(1, round(number * seconds / elapsed / multiple)) * multiple


def _elapsed(play: Play, count: int, clock: Callable[[], float]) -> float:
    started = clock()
    play(count)
    wait_for_gpu()
    return clock() - started


def wait_for_gpu() -> None:
    """Wait until a GPU, where one is used, is through with its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the 10th and the 90th percentile, and the number of values."""
    deciles = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return {"median": statistics.median(values), "p10": deciles[0], "p90": deciles[-1], "repeats": len(values)}


def rates(seconds: Sequence[float], amount: float = 1.0) -> dict[str, float]:
    """Return the spread of ``amount`` a second, where it takes so many seconds."""
    return spread([amount / each for each in seconds])


def with_spread(found: Mapping[str, float], form: str = ",.0f") -> str:
    """Return ``median (p10 to p90)``."""
    return f"{found['median']:{form}} ({found['p10']:{form}} to {found['p90']:{form}})"


def with_interval(found: Interval, digits: int = 1) -> str:
    """Return a mean and its interval, rounded; of one value itself."""
    if math.isnan(found.low):
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def fresh_process(code: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """Run code in a new interpreter, beside the scripts, and return the JSON of the last line that it prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=os.environ | environment)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def resident(which: Literal["peak", "now"]) -> int:
    """Return the bytes of this process in memory.

    Not ``ru_maxrss``, which begins with what the parent held when it started the process.
    """
    field = {"peak": "VmHWM:", "now": "VmRSS:"}[which]
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this is measured on Linux alone.")


def benchmark_parser(description: str, *, clock: bool = False) -> argparse.ArgumentParser:
    """Return a parser that knows ``--json`` and ``--quick``, and ``--clock``, a name of :data:`CLOCKS`, if asked to."""
    parser = script_parser(description)
    parser.add_argument("--json", type=as_file, help="file to write the results to")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: does it run at all?")
    if clock:
        parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="which time is counted")
    return parser


def report(path: Path | None, results: Any, *, libraries: Sequence[str] = (), **settings: Any) -> None:
    """Say where this ran and what else ran there, and write everything to ``path``.

    Args:
        path: of a JSON file, or ``None``.
        results: JSON-ready.
        libraries: whose versions count, beside torch and TorchRL.
        **settings: what else belongs to it, JSON-ready.
    """
    loads = [round(load[0], 2) for load in (LOAD_AT_START, os.getloadavg())]
    print(f"\n{machine(*libraries)}; load (1 minute) {loads[0]} at the start, {loads[1]} at the end")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"command": sys.argv, "machine": machine(*libraries), "load": loads} | settings
        path.write_text(json.dumps(facts | {"results": results}, indent=2) + "\n")


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine(*libraries: str) -> str:
    """Describe the machine and the versions in one line.

    Args:
        *libraries: whose versions are named, beside torch, TorchRL and tensordict.
    """
    parts = [_processor(), f"{os.cpu_count()} cores", f"Python {platform.python_version()}"]
    if torch.cuda.is_initialized():
        parts.insert(0, torch.cuda.get_device_name())
    names = ("torch", "torchrl", "tensordict", *libraries)
    return ", ".join([*parts, *(f"{name} {version(name)}" for name in names)])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
