"""``record`` on games/grid_navigation: teams each strong in one role, and the score of the team of all strong roles."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, STATE
from torchrl_marl_offline.envs import GridController, make_env, role_team
from torchrl_marl_offline.recording import record

SIZES = {"transitions": 600, "num_envs": 20, "progress": False, "learner": {"hidden": (4,)}, "eval_episodes": 60}
OPTIONS = {"agents": 3, "max_steps": 15}


def test_roles_are_recorded_without_a_learner(tmp_path):
    names = ["strong_0", "strong_2", "strong_0-strong_1"]
    sets = record("games/grid_navigation", tmp_path / "a", qualities=names, task_options=OPTIONS, **SIZES)
    again = record("games/grid_navigation", tmp_path / "b", qualities=names, task_options=OPTIONS, **SIZES)
    assert list(sets) == names and all((sets[name].data == again[name].data).all() for name in names)
    assert not (tmp_path / "a" / "behaviour" / "eval.csv").exists()
    first = sets["strong_0"]
    held_out = first.metadata["held_out"]
    assert held_out["team"] == "strong_all"
    assert held_out["return"] == held_out["success"] > 0.9 > 2 * first.success().double().mean()
    assert held_out["length"] < 5
    assert first.metadata["recorded_with"] == {"seed": 0, "method": "script"}


def test_the_strong_alone_play_their_part_by_what_they_do():
    """The strong agent's actions are those of the optimal team in nearly every state, the others' are not."""
    env = make_env("games/grid_navigation", num_envs=50, seed=0, **OPTIONS)
    data = env.rollout(15, role_team("strong_1", agents=3, seed=0), break_when_any_done=False)
    best = GridController("optimal", seed=5)(TensorDict({key: data[key] for key in (STATE, ACTION_MASK)}, data.shape))
    same = (best[ACTION] == data[ACTION]).float().mean((0, 1))
    assert same[1] > 0.95
    assert same[[0, 2]].max() < 0.5


def test_one_epsilon_for_each_agent():
    data = make_env("games/grid_navigation", num_envs=400, seed=0, agents=3).reset()
    best = GridController(seed=1)(data.clone())[ACTION]
    found = GridController(epsilon=[0.0, 1.0, 0.0], seed=1)(data.clone())[ACTION]
    assert torch.equal(found[:, 0], best[:, 0])
    assert (found[:, 1] != best[:, 1]).float().mean() > 0.5
    with pytest.raises(ValueError, match="2 epsilons for 3 agents; give one each"):
        GridController(epsilon=[0.0, 0.5])(data.clone())


@pytest.mark.parametrize("quality", ["strong_3", "strong_", "weak_1", "strong_01"])
def test_unknown_teams_are_refused_before_anything_is_written(tmp_path, quality):
    with pytest.raises(ValueError, match=r"games/grid_navigation is strong_K.*with K below 3; got"):
        record("games/grid_navigation", tmp_path / "x", qualities=[quality], task_options=OPTIONS, **SIZES)
    assert not (tmp_path / "x").exists()


def test_other_tasks_have_no_roles(tmp_path):
    with pytest.raises(ValueError, match="must be one of random"):
        record("games/xor", tmp_path, qualities=["strong_0"], **SIZES)
