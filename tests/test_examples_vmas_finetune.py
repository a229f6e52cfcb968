"""The fine-tuning example as a user runs it."""

from __future__ import annotations

import os
from pathlib import Path

import processes

from torchrl_marl_offline.training import read_csv

SCRIPT = Path(__file__).parents[1] / "examples" / "vmas_finetune.py"
SMALL = ["--episodes", "8", "--num-envs", "8", "--offline-steps", "6", "--online-steps", "8", "--eval-every", "8"]


def test_online_starts_where_offline_ended_and_a_second_run_goes_on(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for given in (["--task", "mpe/simple_spread", *SMALL, "--output", "run"], ["--resume", "run"]):
        process = processes.start(SCRIPT, *given, cwd=tmp_path, env=environment)
        _, err = process.communicate()
        assert process.returncode == 0, err
        offline, online = (read_csv(tmp_path / "run" / stage / "eval.csv") for stage in ("offline", "online"))
        assert [row["step"] for row in offline[::2]] == [0, 6]
        assert [row["step"] for row in online[::2]] == [0, 8]
        assert offline[-2]["return"] == online[0]["return"] != online[-2]["return"]
    assert (tmp_path / "run" / "learning_curves.png").stat().st_size > 10_000
