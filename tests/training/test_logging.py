from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.evaluation import summarize_evaluations
from torchrl_marl_offline.training import CsvTable, RunLogger, read_csv


def test_csv_continues_and_a_late_column_widens_the_header(tmp_path):
    path = tmp_path / "train.csv"
    table = CsvTable(path)
    table.append({"step": 10, "loss": 0.1})
    table.append({"step": 20, "loss": 0.25, "name, quoted": "a, b"})
    table.append({"step": 30, "loss": math.nan})
    assert path.read_text() == 'step,loss,"name, quoted"\n10,0.1,\n20,0.25,"a, b"\n30,nan,\n'
    again = CsvTable(path)
    again.append({"step": 40, "loss": 1e-17})
    rows = read_csv(path)
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[1]["name, quoted"] == "a, b"
    assert "name, quoted" not in rows[0]
    assert rows[3]["loss"] == 1e-17  # to the last digit


def test_a_half_written_last_line_is_dropped_and_truncation_removes_later_steps(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("step,loss\n10,1.0\n20,2.0\n30,3.0\n4")
    table = CsvTable(path)
    assert [row["step"] for row in table.rows] == [10, 20, 30]
    table.truncate(20)
    assert path.read_text() == "step,loss\n10,1.0\n20,2.0\n"
    table.append({"step": 30, "loss": 5.0})
    assert path.read_text() == "step,loss\n10,1.0\n20,2.0\n30,5.0\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.csv"]


def test_every_row_is_on_disk_when_append_returns(tmp_path):
    table = CsvTable(tmp_path / "t.csv")
    for step in range(3):
        table.append({"step": step})
        assert len(read_csv(tmp_path / "t.csv")) == step + 1


def test_logger_without_a_folder_keeps_rows_in_memory():
    logger = RunLogger()
    logger.log_train(1, {"loss": 2.0})
    logger.log_eval(1, "mode", {"return": 3.0})
    assert logger.train.rows == [{"step": 1, "loss": 2.0}]
    assert logger.eval.rows == [{"step": 1, "evaluator": "mode", "return": 3.0}]
    with pytest.raises(ValueError, match="give RunLogger an output"):
        RunLogger(tensorboard=True)
    with pytest.raises(ValueError, match='"online" or "offline", got \'on\''):
        RunLogger("runs", wandb="on")


# TensorBoard and protobuf warn on import about themselves.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboard")
    logger = RunLogger(tmp_path, tensorboard=True)
    logger.log_config({"steps": 3, "output": tmp_path})
    logger.log_train(7, {"loss": 2.5})
    logger.log_eval(7, "mode", {"return": 3.5, "note": "text is left out"})
    logger.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / tmp_path.name)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(7, 2.5)]
    assert [(event.step, event.value) for event in events.Scalars("eval/mode/return")] == [(7, 3.5)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_wandb_offline_writes_a_folder_and_a_resumed_run_keeps_its_identity(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    identities = []
    for step in (1, 2):
        logger = RunLogger(tmp_path, wandb="offline")
        identities.append(logger._loggers[0].experiment.id)
        logger.log_config({"steps": 3, "output": tmp_path})
        logger.log_train(step, {"loss": 2.5})
        logger.log_eval(step, "mode", {"return": 1.0})
        logger.close()
    runs = list(tmp_path.glob("wandb/offline-run-*"))
    assert len(runs) >= 1
    assert all(list(run.glob("run-*.wandb")) for run in runs)
    assert identities[0] == identities[1] == (tmp_path / "wandb.id").read_text()


def test_last_best_and_average_of_the_last_k():
    rows = [{"step": 10 * i, "evaluator": "mode", "return": value} for i, value in enumerate([1.0, 9.0, 4.0, 5.0, 6.0])]
    rows += [{"step": 0, "evaluator": "held_out", "agreement": 0.5}]
    summary = summarize_evaluations(rows, last_k=3)
    assert summary == {
        "mode": {
            "last": 6.0,
            "last_step": 40,
            "best": 9.0,
            "best_step": 10,
            "average_of_last": 5.0,
            "averaged": 3,
        }
    }
    assert summarize_evaluations(rows, "agreement")["held_out"]["averaged"] == 1


def test_json_is_written_whole_and_with_plain_values(tmp_path):
    @dataclass
    class Settings:
        folder: Path
        rate: float

    path = tmp_path / "deep" / "summary.json"
    write_json_atomic(path, {"a": Settings(Path("x"), math.inf), "b": torch.tensor([1.5, 2.0]), 3: (True, None, "s")})
    assert json.loads(path.read_text()) == {
        "a": {"folder": "x", "rate": None},
        "b": [1.5, 2.0],
        "3": [True, None, "s"],
    }
    before = path.read_text()

    class Broken:
        def tolist(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_json_atomic(path, {"new": Broken()})
    assert path.read_text() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json"]


def test_the_best_of_an_error_is_the_lowest():
    rows = [{"step": step, "evaluator": "held-out", "action_error": e} for step, e in ((1, 0.5), (2, 0.2), (3, 0.3))]
    summary = summarize_evaluations(rows, "action_error", lower_is_better=True)["held-out"]
    assert (summary["best"], summary["best_step"], summary["last"]) == (0.2, 2, 0.3)
    assert summarize_evaluations(rows, "action_error")["held-out"]["best"] == 0.5
