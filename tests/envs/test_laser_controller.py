"""Teams of lle/*: plans come to success, and what is left of a team that leaves its plan."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK
from torchrl_marl_offline.envs import CORE_WORLDS, LaserController, make_env
from torchrl_marl_offline.evaluation import evaluate

pytest.importorskip("lle")


@pytest.mark.parametrize("task", [*CORE_WORLDS, "lle/level1", "lle/level3", "lle/level6"])
def test_plans_come_to_success(task):
    env = make_env(task, num_envs=2)
    measured = evaluate(LaserController(env), env, episodes=2, seed=0)
    assert measured.success_rate == 1 and measured.gap == 0 and measured.mean == env.best_return
    assert measured.lengths.tolist() == [len(env.plan)] * 2


def test_gems_are_collected_where_they_pay():
    options = {"gems": 2, "num_envs": 1}
    full, exits = (make_env("lle/one_sided-2", reward=reward, **options) for reward in ("full", "exits"))
    assert len(full.plan) == full.certificate.shortest_with_gems > len(exits.plan) == exits.certificate.shortest
    assert evaluate(LaserController(full), full, episodes=1, seed=0).mean == 2 + 2 + 1
    assert evaluate(LaserController(exits), exits, episodes=1, seed=0).mean == 2 + 1


def test_a_dropped_team_follows_the_plan_until_a_step_of_its_own():
    env = make_env("lle/mutual-0", num_envs=400)
    steps = len(env.plan)
    data = env.rollout(steps, LaserController(env, "dropped", seed=0), break_when_any_done=False)
    planned = (data[ACTION] == torch.tensor(env.plan)).all(-1)  # [400, steps]
    # an episode that follows for k steps, k uniform; a random joint action is the plan's by chance at times
    follows = planned.cumprod(1).float().mean(0)
    expected = 1 - torch.arange(1, steps + 1) / steps
    assert (follows >= expected - 0.08).all() and (follows <= expected + 0.25).all()
    assert data[ACTION_MASK].gather(-1, data[ACTION].unsqueeze(-1)).all()


def test_teams_are_worse_the_more_chance_there_is_in_them():
    env = make_env("lle/none-1", num_envs=100)
    teams = [("expert", 0.0), ("expert", 0.1), ("dropped", 0.0), ("random", 0.0)]
    rates = [
        evaluate(LaserController(env, kind, epsilon=epsilon, seed=0), env, episodes=200, seed=0).success_rate
        for kind, epsilon in teams
    ]
    assert rates[0] == 1 and rates == sorted(rates, reverse=True) and rates[1] > rates[2] + 0.1 > rates[3] + 0.1


def test_equal_seeds_play_alike():
    def play(seed):
        env = make_env("lle/mutual-1", num_envs=20)
        return env.rollout(10, LaserController(env, "dropped", epsilon=0.1, seed=seed), break_when_any_done=False)

    assert torch.equal(play(1)[ACTION], play(1)[ACTION]) and not torch.equal(play(1)[ACTION], play(2)[ACTION])


def test_other_tasks_and_worlds_without_a_plan_are_refused():
    with pytest.raises(ValueError, match=r"plays in environments of lle/\*, not games/xor\."):
        LaserController(make_env("games/xor"))
    with pytest.raises(ValueError, match=r"lle/mutual-0 has no plan of up to 3 steps; take a larger max_steps"):
        LaserController(make_env("lle/mutual-0", max_steps=3))
    env = make_env("lle/mutual-0", max_steps=3)
    assert env.rollout(3, LaserController(env, "random", seed=0)).shape[1] >= 1
    env = make_env("lle/mutual-0")
    with pytest.raises(KeyError, match="needs 'step_count'"):
        LaserController(env, "dropped")(env.reset().exclude("step_count"))
