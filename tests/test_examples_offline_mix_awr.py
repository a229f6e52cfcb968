"""The main example as a user runs it: without arguments but those that make it short."""

from __future__ import annotations

import json
from pathlib import Path

import processes

SCRIPT = Path(__file__).parents[1] / "examples" / "offline_mix_awr.py"
SHORT = ("--episodes", "40", "--eval-episodes", "8", "--steps", "20", "--eval-every", "10")


def test_it_records_its_data_trains_both_methods_and_ends_with_a_table_and_pictures(tmp_path):
    done = processes.run("-W", "error::UserWarning:torchrl_marl_offline", SCRIPT, *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "data")
    assert folder.name.startswith("simple_spread-")
    for name in ("config.json", "train.csv", "eval.csv", "summary.json", "learning_curves.png", "methods.png"):
        assert (folder / name).stat().st_size > 0
    table = done.stdout[done.stdout.index("return of an episode") :]
    for name in ("data (40 episodes)", "cloning, mode", "cloning, sampled", "recipe, mode", "recipe, sampled"):
        assert name in table
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["recipe, mode"]["final"]["episodes"] == 40
    again = processes.run(SCRIPT, "--resume", folder.relative_to(tmp_path), cwd=tmp_path)
    assert again.returncode == 0 and again.stdout[again.stdout.index("return of an episode") :] == table
