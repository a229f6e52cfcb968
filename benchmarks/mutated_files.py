"""Damaged files through every reader: what becomes of them, and what memory a declared size costs.

    python benchmarks/mutated_files.py --json mutated.json

Each reader gets 200 copies of a small recording, damaged at random (a seed makes them repeatable): flipped bits, cut,
zeroed, missing and swapped files, other shapes, types and words, arrays declared up to 10¹³ rows long. Each must end in
one sentence or in a correct load. The memory is the most that the resident set grew while one file was read (Linux).
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from arguments import run_script
from measuring import HERE, benchmark_parser, markdown, report

sys.path.insert(0, str(HERE.parent / "tests" / "toys"))
COLUMNS = ["reader", "files", "refused", "correct loads", "other", "MB of the largest growth", "seconds"]


class _Environment:
    """Sets the variables that a writer asks for."""

    @staticmethod
    def setenv(name: str, value: str) -> None:
        os.environ[name] = value


def memory() -> tuple[int, int]:
    """Return this process's resident set and its peak, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))


def reset_peak() -> int:
    """Let the peak start from what is resident now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory()[0]


def one_reader(prefix: str, files: int, seed: int, folder: Path) -> dict[str, Any]:
    """Return the row of a reader's table."""
    from file_mutations import original, try_one

    rng = random.Random(seed + zlib.crc32(prefix.encode()))
    whole = original(prefix, folder / "whole", _Environment)
    try_one(
        prefix, whole, folder / "copy", random.Random(0), "flip"
    )  # libraries are loaded before anything is measured
    outcomes, growth, start = Counter(), 0, time.perf_counter()
    for number in range(files):
        before = reset_peak()
        try:
            outcomes[try_one(prefix, whole, folder / "copy", rng)[0]] += 1
        except AssertionError as error:
            outcomes["other"] += 1
            print(f"file {number}: {error}", file=sys.stderr)
        growth = max(growth, memory()[1] - before)
    return {
        "reader": prefix.rstrip(":") or "own folder",
        "files": files,
        "refused": outcomes["refused"],
        "correct loads": outcomes["loads"],
        "other": outcomes["other"],
        "MB of the largest growth": round(growth / 2**20, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    from file_mutations import READERS

    parser = benchmark_parser(__doc__)
    parser.add_argument("--files", type=int, default=200, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for prefix in READERS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one_reader(prefix, 10 if args.quick else args.files, args.seed, Path(folder)))
            print(rows[-1], file=sys.stderr, flush=True)
    print(markdown(COLUMNS, [[row[name] for name in COLUMNS] for row in rows]))
    report(args.json, rows, libraries=("h5py", "tensorstore", "minari"), files=args.files, seed=args.seed)


if __name__ == "__main__":
    run_script(main)
