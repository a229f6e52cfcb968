"""The table at the end of a run, by hand."""

from __future__ import annotations

import json

import pytest
import torch
from data_toys import episodes
from training_toys import RegressionLoss

from torchrl_marl_offline.evaluation import (
    Evaluation,
    HeldOutEvaluation,
    format_table,
    write_population_report,
    write_report,
)
from torchrl_marl_offline.evaluation.run_report import best_ways
from torchrl_marl_offline.training import Trainer
from torchrl_marl_offline.training.run.metrics import DIAGNOSES


def curve(last, best, average):
    return {"last": last, "best": best, "average_of_last": average, "averaged": 5}


def test_columns_are_aligned():
    table = format_table([["a", 1234.56, None], ["long name", 0.5, 7]], header=["", "x", "y"])
    assert table.splitlines() == ["              x  y", "a          1235", "long name   0.5  7"]


def test_the_better_way_is_chosen_for_each_method_by_the_average_of_the_last():
    curves = {
        "a, mode": curve(9.0, 9.0, 1.0),
        "a, sampled": curve(0.0, 0.0, 2.0),
        "b, mode": curve(1.0, 1.0, 5.0),
        "b, sampled": curve(1.0, 9.0, 4.0),
    }
    assert best_ways(curves) == {"a, sampled", "b, mode"}


def test_returns(tmp_path):
    data = episodes((3, 5))
    finals = {
        "recipe, mode": Evaluation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5, 5, 5])),
        "recipe, sampled": Evaluation(torch.tensor([7.0, 7.0, 7.0]), torch.tensor([5, 5, 5])),
    }
    curves = {"recipe, mode": curve(2.5, 3.5, 3.0), "recipe, sampled": curve(7.0, 8.0, 6.5)}
    lines = write_report(tmp_path, finals=finals, curves=curves, data=data).splitlines()
    assert lines[1].startswith("data (2 episodes)")
    # Student's t: 2 ± 4.3027 / √3
    assert lines[2].split() == ["recipe,", "mode", "2", "[-0.4841,", "4.484]", "2.5", "3.5", "3"]
    assert lines[3].split() == ["recipe,", "sampled", "*", "7", "[7,", "7]", "7", "8", "6.5"]
    assert "over 3 episodes" in lines[4]
    assert (tmp_path / "methods.png").exists()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["recipe, mode"]["final"]["return"] == 2.0
    assert summary["data"]["return"] == pytest.approx(data.episode_returns().mean().item())


def test_held_out_episodes(tmp_path):
    cloning = HeldOutEvaluation(10, 0.8, torch.tensor([0.8]), None, None, 40, 0, None)
    table = write_report(tmp_path, finals={"cloning, held out": cloning}, curves={}, data=episodes((3, 5)))
    assert "agreement" in table
    assert "among 40 checked" in table
    assert not (tmp_path / "methods.png").exists()


@pytest.mark.fault("3.12")
def test_what_held_out_episodes_say_is_not_ranked_nor_chosen_from(tmp_path):
    cloning = HeldOutEvaluation(10, 0.8, torch.tensor([0.8]), None, None, 40, 0, None)
    curve = {"last": 0.8, "last_step": 10, "best": 0.9, "best_step": 5, "average_of_last": 0.7, "averaged": 2}
    name, data = "cloning, held out", episodes((3, 5))
    table = write_report(tmp_path, finals={name: cloning}, curves={name: curve}, data=data)
    assert "is a diagnosis, not a score" in table and "best" not in table and "*" not in table
    assert json.loads((tmp_path / "summary.json").read_text())[name]["during training"] == {
        "last": 0.8,
        "last_step": 10,
    }
    finals = {name: {"seed=0": cloning}}
    table = write_population_report(tmp_path, finals=finals, metric="agreement", data=data, frozen={})
    assert "is a diagnosis, not a score" in table and not (tmp_path / "methods.png").exists()
    for metric in DIAGNOSES:
        with pytest.raises(ValueError, match=rf"keep_best must not be by '{metric}'"):
            Trainer(RegressionLoss(), None, steps=1, output=tmp_path, keep_best=("held out", metric))


@pytest.mark.fault("6.3")
def test_nothing_is_said_of_illegal_proposals_where_nothing_was_checked(tmp_path):
    cloning = HeldOutEvaluation(10, None, None, None, 0.3, 0, 0, None)
    table = write_report(tmp_path, finals={"cloning, held out": cloning}, curves={}, data=episodes((3, 5)))
    assert "among 0" not in table and "there is nothing illegal to propose" in table


@pytest.mark.fault("6.3")
def test_an_average_says_over_how_many_evaluations_it_goes(tmp_path):
    curves = {
        f"{name}, mode": {"last": 1.0, "best": 1.0, "average_of_last": 1.0, "averaged": count}
        for name, count in (("recipe", 2), ("cloning", 5))
    }
    data = episodes((3, 5))
    finals = {name: Evaluation(torch.tensor([1.0, 2.0]), torch.tensor([5, 5])) for name in curves}
    assert "average of last 2 to 5" in write_report(tmp_path, finals=finals, curves=curves, data=data)
