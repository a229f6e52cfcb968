"""The short example, as a user runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from processes import run

SCRIPT = Path(__file__).parents[1] / "examples" / "compose_losses.py"


@pytest.mark.thorough
def test_it_runs_and_learns_something(tmp_path):
    result = run("-W", "error::UserWarning:torchrl_marl_offline", SCRIPT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    returns = [float(value) for value in re.findall(r"return ([\d.]+)", result.stdout)]
    data, *learned = returns
    assert len(learned) == 3
    assert 250 < data < 300
    assert learned[-1] > 190  # uniform play has 160, with 2.7 as the standard error of 500 episodes


def test_it_stays_short():
    assert len(SCRIPT.read_text().splitlines()) <= 60
    assert len((SCRIPT.parent / "offline_mix_awr.py").read_text().splitlines()) <= 120
