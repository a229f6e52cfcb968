"""``record`` on games/stitch: a dataset for each coverage, equal for equal seeds, and what cannot be recorded."""

from __future__ import annotations

import pytest

from torchrl_marl_offline.core.layout import ACTION
from torchrl_marl_offline.envs import StitchController
from torchrl_marl_offline.evaluation import make_simulator
from torchrl_marl_offline.recording import record

SIZES = {"transitions": 300, "num_envs": 50, "progress": False, "learner": {"hidden": (4,)}}


def test_coverages_are_recorded_without_a_learner(tmp_path):
    options = {"payoff": "matching", "contexts": 3, "actions": 4}
    names = ["two_teams", "bridged_1", "full", "star-share_0.5"]
    sets = record("games/stitch", tmp_path / "a", qualities=names, task_options=options, **SIZES)
    again = record("games/stitch", tmp_path / "b", qualities=names, task_options=options, **SIZES)
    assert list(sets) == names and all((sets[name].data == again[name].data).all() for name in names)
    assert not (tmp_path / "a" / "behaviour" / "eval.csv").exists()
    simulator = make_simulator(sets["full"], num_envs=2)
    assert simulator.payoffs.shape == (3, 4, 4)
    for name in ("two_teams", "bridged_1", "full"):
        rows = sets[name].data
        found = StitchController(simulator, name).recorded & False
        found[(rows["state"].argmax(-1), *rows[ACTION].T)] = True
        assert (found == StitchController(simulator, name).recorded).all()
    assert sets["full"].metadata["recorded_with"] == {"seed": 0, "method": "script"}


def test_too_few_transitions_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"20 transitions do not hold all 44 joint actions of 'star'"):
        record("games/stitch", tmp_path, qualities=["star"], **SIZES | {"transitions": 20, "num_envs": 4})
    assert not (tmp_path / "star").exists()


def test_other_tasks_have_no_coverages(tmp_path):
    with pytest.raises(ValueError, match="must be one of random"):
        record("games/xor", tmp_path, qualities=["star"], **SIZES)
    with pytest.raises(ValueError, match="coverage must be one of full"):
        record("games/stitch", tmp_path, qualities=["stars"], **SIZES)


@pytest.mark.parametrize("qualities", [[], (), "star", [3], [None], ["star", 3], None], ids=str)
def test_what_names_nothing_to_record_is_refused(tmp_path, qualities):
    with pytest.raises(ValueError, match="qualities must be a list of names"):
        record("games/stitch", tmp_path / "out", qualities=qualities, **SIZES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", ["x", 3, [1], {"num_envs": 3}, {"seed": 1}, {"device": "cpu"}, {"actions": {1}}], ids=str
)
@pytest.mark.parametrize("task", ["games/stitch", "games/grid_navigation"])
def test_options_of_a_task_that_are_none_are_refused(tmp_path, task, options):
    quality = "star" if task == "games/stitch" else "strong_0"
    with pytest.raises(ValueError, match="task_options"):
        record(task, tmp_path / "out", qualities=[quality], task_options=options)
    assert not (tmp_path / "out").exists()
