"""Ray: a study of 24 runs on two workers of a local cluster, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pandas
import pytest
from study_toys import quietly, write_study

from torchrl_marl_offline.study import Machine, StudyError, read_results, run_study
from torchrl_marl_offline.study.jobs import PROGRESS, job_state
from torchrl_marl_offline.study.training import train_population

STUDY = """
[study]
name = "24 runs"
output = "{output}"
seeds = {seeds}
steps = 240
hidden = [16]
batch_size = 32
checkpoint_every = 20
compile = "off"
device = "cpu"

[evaluation]
every = 120
episodes = 4

[methods.mix]
variants.decomposition = ["mixer", "vdn"]
temperature = 3

[methods.cloning]
algorithm = "cloning"

[datasets.spread]
task = "mpe/simple_spread"
episodes = 20

[grid]
lr = [1e-3, 1e-2]
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_nothing(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    undisturbed = quietly(write_study(tmp_path / "undisturbed", STUDY, seeds=4), train=train_population)
    assert (undisturbed.finished, undisturbed.failed) == (3, {})
    file, killed = write_study(tmp_path / "disturbed", STUDY, seeds=4), []
    victim = tmp_path / "disturbed/out/jobs/spread--mix-mixer--00"
    hunter = threading.Thread(target=_kill, args=(victim, killed), daemon=True)
    hunter.start()
    machine = Machine(workers=2, threads=1, ray="local", ray_options={"object_store_memory": 80 * 2**20})
    outcome = run_study(file, machine=machine, progress=False)
    hunter.join(timeout=1)
    assert len(killed) == 1 and not killed[0]["finished"]
    assert (outcome.finished, outcome.remaining, outcome.failed) == (3, 0, {})
    assert json.loads((victim / PROGRESS).read_text())["process"] != killed[0]["process"]
    tables = [read_results(outcome.table.parent) for outcome in (outcome, undisturbed)]
    assert tables[0]["run"].nunique() == 24
    pandas.testing.assert_frame_equal(*tables, check_exact=True)


def _kill(folder: Path, killed: list[dict]) -> None:
    """Kill the process that works on a job once it has saved itself after the start."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if len(list(folder.glob("checkpoints/checkpoint-*"))) > 1:
            facts = json.loads((folder / PROGRESS).read_text())
            os.kill(facts["process"], signal.SIGKILL)
            killed.append(facts | {"finished": job_state(folder) == "finished"})
            return
        time.sleep(0.02)


def test_ray_that_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(StudyError, match=r"pip install 'torchrl-marl-offline\[ray\]'"):
        run_study(write_study(tmp_path), machine=Machine(ray="local"), progress=False)
