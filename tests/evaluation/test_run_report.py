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
    table = write_report(tmp_path, finals=finals, curves=curves, data=data)
    assert table.splitlines()[0].endswith("average of last 2 to 5")


@pytest.mark.parametrize("name", ["omar", "mac_flow_discrete"])
def test_the_end_of_a_run_fits_a_terminal_of_80_columns(tmp_path, name):
    data, ways = episodes((3, 5)), [f"{method}, {way}" for method in ("cloning", name) for way in ("mode", "sampled")]
    returns = torch.tensor([-1234.5678, -987.654] * 10)
    finals = {way: Evaluation(returns, torch.full((20,), 5)) for way in ways}
    curves = {way: {**curve(-1234.5678, 987.654, -100.55), "averaged": 2 + i} for i, way in enumerate(ways)}
    text = write_report(tmp_path, finals=finals, curves=curves, data=data)
    members = {
        f"{way} of all": {f"temperature=0.123-expectile=0.7-seed={i}": finals[way] for i in (0, 1)} for way in ways
    }
    text += "\n" + write_population_report(tmp_path, finals=members, metric="return", data=data, frozen={})
    cloning = HeldOutEvaluation(10, 0.8, torch.tensor([0.8]), None, None, 40, 0, None)
    held_out = {f"{method}, held-out episodes": cloning for method in ("cloning", name)}
    text += "\n" + write_report(tmp_path, finals=held_out, curves={}, data=data)
    assert max(map(len, text.splitlines())) <= 80
    assert "temperature=0.123-expectile=0.7" in " ".join(text.split()).replace("- ", "-")


def test_a_table_that_is_too_wide_is_broken_at_its_header_and_its_names():
    rows = [["a name of four words", 1.5], ["b", 2.0]]
    assert format_table(rows, header=["", "a long header"], width=80).splitlines()[0].endswith("a long header")
    lines = format_table(rows, header=["", "a long header"], width=22).splitlines()
    assert lines == [
        "                a long",
        "                header",
        "a name of four     1.5",
        " words",
        "b                    2",
    ]
