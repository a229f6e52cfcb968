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
    options = ["--ignore-missing-imports", "--follow-imports=silent", "--check-untyped-defs", f"--cache-dir={cache}"]
    command = [sys.executable, "-m", "mypy", *options, *map(str, files)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.slow
def test_correct_uses_of_the_public_api_are_accepted(cache):
    extensions = sorted((ROOT / "examples" / "extend").glob("*.py"))
    found = mypy(
        ROOT / "tests" / "toys" / "typed_use.py", *extensions, ROOT / "examples" / "compose_losses.py", cache=cache
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
def test_wrong_uses_are_found(cache, tmp_path):  # after the other, whose cache it reads
    (tmp_path / "wrong_use.py").write_text(WRONG)
    found = mypy(tmp_path / "wrong_use.py", cache=cache)
    assert found.returncode == 1
    assert [int(line) for line in re.findall(r"wrong_use\.py:(\d+): error", found.stdout)] == [4, 5, 6, 7]
