"""What a type checker makes of code that uses the public API: ``py.typed`` promises that it can."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WRONG = """
from torchrl_marl_offline import Recipe, TaskSpec, make_critic
spec = TaskSpec(2, 3, 6, 2)
make_critic(spec, num_heads="two")
Recipe(expectile="high")
Recipe(expectle=0.9)
spec.n_agent
"""


def mypy(*files: Path, cache: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mypy", f"--cache-dir={cache}", *map(str, files)]  # settings: pyproject.toml
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_correct_uses_of_the_public_api_are_accepted_and_wrong_ones_found(tmp_path, pytestconfig):
    right = [ROOT / "tests" / "toys" / "typed_use.py", ROOT / "examples" / "compose_losses.py"]
    right += sorted((ROOT / "examples" / "extend").glob("*.py"))
    wrong = tmp_path / "wrong_use.py"
    wrong.write_text(WRONG)
    found = mypy(*right, wrong, cache=pytestconfig.cache.mkdir("mypy"))  # which holds for files as they were
    errors = [line for line in found.stdout.splitlines() if ": error:" in line]
    of_wrong = [line for line in errors if "wrong_use.py" in line]
    assert errors == of_wrong, found.stdout
    assert [int(re.search(r"wrong_use\.py:(\d+): error", line)[1]) for line in of_wrong] == [4, 5, 6, 7]
