"""Scripted teams with goals: they reach them, walk elsewhere until the episode ends, and are recorded."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline import record_mixed_skill
from torchrl_marl_offline.core.layout import ACHIEVED, ACTION, ACTION_MASK, GOAL
from torchrl_marl_offline.envs import GoalController, make_env

TASKS = ["games/grid_goals", "mpe/spread_goals"]


@pytest.mark.parametrize("task", TASKS)
def test_who_walks_to_the_goals_reaches_them(task):
    env = make_env(task, num_envs=60, seed=0)
    play = env.rollout(50, GoalController(env, seed=0), break_when_any_done=False)
    assert play["next", "success"].any(1).float().mean() > 0.9
    if ACTION_MASK in play.keys(True):
        assert play[ACTION_MASK].gather(-1, play[ACTION].unsqueeze(-1)).all()


@pytest.mark.parametrize("task", TASKS)
def test_who_walks_elsewhere_stays_there(task):
    env = make_env(task, num_envs=60, seed=0, max_steps=40)
    policy, td = GoalController(env, "elsewhere", seed=0), env.reset()
    td = policy(td)
    places, going = policy._places.clone(), torch.ones(60, 1, 1, dtype=torch.bool)
    for _ in range(39):
        td = policy(env.step(td)["next"])
        going &= ~td["done"].unsqueeze(-1)
    assert torch.equal(policy._places, places)
    assert going.float().mean() > 0.8
    far = (td[ACHIEVED] - places).norm(dim=-1)
    assert far.median() < 0.3
    assert (td[ACHIEVED] - td[GOAL]).norm(dim=-1).median() > far.median()
    td = policy(env.reset())
    assert not torch.equal(policy._places, places)


def test_noise_and_random_play():
    env = make_env("games/grid_goals", num_envs=300, seed=0, agents=3)
    data = env.reset()
    best = GoalController(env, seed=0)(data.clone())[ACTION]
    for policy, low, high in (
        (GoalController(env, noise=0.3, seed=1), 0.7, 0.9),
        (GoalController(env, "random"), 0, 0.5),
    ):
        action = policy(data.clone())[ACTION]
        assert data[ACTION_MASK].gather(-1, action.unsqueeze(-1)).all()
        assert low < (action == best).float().mean() < high


@pytest.mark.parametrize("task", TASKS)
def test_mixtures_are_recorded(tmp_path, task):
    data = record_mixed_skill(task, tmp_path, episodes=100)
    assert 0 < data.success().float().mean() < 0.4
    assert data.data[GOAL].shape == data.data["next", *ACHIEVED].shape


def test_tasks_without_goals_and_time_are_refused():
    with pytest.raises(ValueError, match=r"games/xor has no goals"):
        GoalController(make_env("games/xor"))
    env = make_env("games/grid_goals")
    with pytest.raises(KeyError, match="needs 'step_count'"):
        GoalController(env, "elsewhere")(env.reset().exclude("step_count"))
