"""Eight kinds of work, killed twice each at random moments and run again: nothing is lost, nothing is left over.

``benchmarks/kills.py`` does the same with more kills.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import processes
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.fault("2.3")
@pytest.mark.slow
def test_whatever_is_killed_and_run_again_ends_as_if_nobody_had_disturbed_it(tmp_path):
    command = [BENCHMARKS / "kills.py", "--kills", "2", "--share", "2", "--folder", tmp_path / "work"]
    done = processes.run(*command, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 8 and all(int(row[3]) == 2 and row[5] == "0 |" for row in rows)


def test_the_comparison_sees_content_leftovers_and_no_measured_seconds(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    kills = importlib.import_module("kills")

    def write(folder: Path, *, weight: float = 1.0, seconds: float = 1.0, rows: str = "1,2.0") -> dict[str, str]:
        (folder / "run").mkdir(parents=True)
        torch.save({"w": torch.tensor([weight]), "seconds": seconds}, folder / "run" / "policy.pt")
        (folder / "run" / "train.csv").write_text(f"step,loss,seconds\n{rows},{seconds}\n")
        return kills.contents(folder)

    expected = write(tmp_path / "a")
    assert write(tmp_path / "b", seconds=7.0) == expected
    changed = write(tmp_path / "c", weight=torch.tensor(1.0).nextafter(torch.tensor(2.0)).item())
    assert {name for name in expected if changed[name] != expected[name]} == {"run/policy.pt"}
    assert write(tmp_path / "d", rows="1,2.5") != expected
    (tmp_path / "b" / "run" / ".policy.pt.tmp").touch()
    assert kills.contents(tmp_path / "b").keys() - expected.keys() == {"run/.policy.pt.tmp"}
    for name in ("kills", "measuring"):
        sys.modules.pop(name, None)
