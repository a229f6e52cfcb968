"""Tasks with goals: exact success, the goals where the layout has them, given goals, refusals."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.core.goals import AtGoals
from torchrl_marl_offline.core.layout import ACHIEVED, ACTION, GOAL, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation import evaluate_goals

TASKS = ["games/grid_goals", "mpe/spread_goals"]


def test_outcomes_by_hand():
    achieved = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [2.0, 2.0]]])
    goal = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [2.0, 2.0]]])
    team, own = (AtGoals(pays=pays)(achieved, goal) for pays in ("team", "own"))
    assert team.success.tolist() == own.success.tolist() == [False, True]
    assert team.reward.tolist() == [[0, 0], [1, 1]]
    assert own.reward.tolist() == [[1, 0], [1, 1]]
    assert AtGoals(within=5.0)(achieved, goal).success.tolist() == [True, True]
    assert AtGoals(within=4.9)(achieved, goal).success.tolist() == [False, True]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("pays", ["team", "own"])
def test_the_goal_stands_at_the_end_and_pays_by_the_tasks_function(task, pays):
    env = make_env(task, num_envs=200, seed=0, max_steps=20, pays=pays)
    data = env.rollout(20, break_when_any_done=False)
    after = data["next"]
    for each in (data, after):
        torch.testing.assert_close(each[OBSERVATION][..., -2:], each[GOAL])
        n = env.task_spec.n_agents
        torch.testing.assert_close(each[STATE][..., -2 * n :], each[GOAL].flatten(-2))
    outcome = env.outcome(after[ACHIEVED], data[GOAL])
    assert torch.equal(after[REWARD].squeeze(-1), outcome.reward)
    assert torch.equal(after["success"].squeeze(-1), outcome.success)
    assert torch.equal(after["terminated"], after["success"])
    assert pays == "team" or outcome.reward.any()


def test_grid_success_is_exact():
    env = make_env("games/grid_goals", num_envs=3)
    env.reset()
    goals = torch.tensor([[[0, 0], [5, 5]]]).repeat(3, 1, 1)
    agents = torch.tensor([[[0, 1], [5, 5]], [[5, 5], [0, 1]], [[1, 1], [5, 5]]])
    td = env.set_state(agents, goals)
    assert td[OBSERVATION][0].tolist() == [[1, 2, 6, 6, 1, 1], [6, 6, 1, 2, 6, 6]]
    west_and_stay = torch.tensor([[3, 0], [0, 3], [3, 0]])
    after = env.step(td.set(ACTION, west_and_stay))["next"]
    assert after["success"].flatten().tolist() == [True, False, False]  # each its own cell, not one of them
    assert after[REWARD].squeeze(-1).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert after[ACHIEVED][0].tolist() == [[1, 1], [6, 6]]


def test_spread_is_reached_within_a_distance():
    env = make_env("mpe/spread_goals", num_envs=2, within=0.2)
    goal = torch.tensor([[-0.8, 0.0], [0.0, 0.0], [0.8, 0.0]]).repeat(2, 1, 1)
    position = goal + torch.tensor([0.0, 0.19])
    position[1, 2, 1] = 0.21
    td = env.set_state(position, torch.zeros_like(position), goal)
    after = env.step(td.set(ACTION, torch.zeros(2, 3, 2)))["next"]
    assert after["success"].flatten().tolist() == [True, False]


def test_drawn_goals_can_be_reached_together():
    grid = make_env("games/grid_goals", num_envs=500, seed=0, agents=5).reset()
    cells = torch.cat([grid[ACHIEVED], grid[GOAL]], 1)
    number = (13 * cells[..., 0] + cells[..., 1]).sort(-1).values
    assert (number.diff(dim=-1) > 0).all()
    goal = make_env("mpe/spread_goals", num_envs=500, seed=0).reset()[GOAL]
    apart = torch.stack([(goal[:, i] - goal[:, j]).norm(dim=-1) for i, j in ((0, 1), (0, 2), (1, 2))])
    assert apart.min() >= 0.5


@pytest.mark.parametrize("task", TASKS)
def test_given_goals_are_kept_over_episodes_and_starts_differ(task):
    n = make_env(task).task_spec.n_agents
    goals = [[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]][:n], [[4.0, 4.0], [5.0, 5.0], [6.0, 6.0]][:n]]
    env = make_env(task, num_envs=4, seed=0, goals=goals)
    first, second = env.reset(), env.reset()
    for td in (first, second):
        assert td[GOAL].tolist() == [*goals, *goals]
    assert not torch.equal(first[ACHIEVED], second[ACHIEVED])
    assert env.given(goals[:1]).reset()[GOAL].tolist() == goals[:1]


def test_success_is_measured_for_each_goal():
    """Agents that always go north and west reach the corner and its neighbour, and no others."""

    def policy(td):
        row, column = td[ACHIEVED].unbind(-1)
        to_corner = torch.where(column > 1, 3, torch.where(row > 1, 1, 0))
        return td.set(
            ACTION, torch.where(td["agents", "action_mask"].gather(-1, to_corner[..., None])[..., 0], to_corner, 0)
        )

    env = make_env("games/grid_goals", num_envs=2, seed=0)
    goals = [[[1, 1], [2, 1]], [[6, 6], [5, 6]]]
    found = evaluate_goals(policy, env, goals=goals, episodes=20, seed=0)
    assert found.success.shape == (2, 20)
    assert found.goals.tolist() == goals
    assert 0.2 < found.by_goal[0] < 0.8  # whoever comes first stands in the corner
    assert found.by_goal[1] == found.worst == 0
    assert found.mean == found.by_goal[0] / 2
    assert found.lengths[1].unique().tolist() == [50]
    assert found.confidence_interval().low < found.mean


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"goals": [[[1, 1]]]}, r"goals must be numbers \[goals, 2, 2\]"),
        ({"goals": "here"}, "goals must be a list of numbers or a Tensor, got .here."),
        ({"goals": [[[0, 1], [1, 1]]]}, "whole numbers from 1 to 6"),
        ({"goals": [[[1.5, 1], [1, 1]]]}, "whole numbers from 1 to 6"),
        ({"goals": [[[1, 1], [1, 1]]]}, "Two agents have the same cell as their goal"),
        ({"agents": 7}, "agents must be one of"),
        ({"pays": "all"}, "pays must be"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make_env("games/grid_goals", **options)


def test_tasks_without_goals_are_refused():
    with pytest.raises(ValueError, match=r"games/xor has no goals"):
        evaluate_goals(lambda td: td, make_env("games/xor"), goals=[[[1, 1], [2, 2]]], episodes=1, seed=0)
