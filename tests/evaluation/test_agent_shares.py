"""How agents share what they earn: numbers by hand, and where evaluations say so."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.envs import ForagingController, StrategyController, make_env
from torchrl_marl_offline.evaluation import evaluate
from torchrl_marl_offline.evaluation.agent_shares import AgentShares, shares_of


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([[1.0, 3.0], [3.0, 5.0]], (6.0, 2.0, 2 / 12)),  # means 2 and 4: |2 - 4| twice, over 2 * 2 * 6
        ([[5.0, 5.0, 5.0]], (15.0, 5.0, 0.0)),
        ([[9.0, 0.0, 0.0]], (9.0, 0.0, 2 / 3)),
        ([[3.0, -1.0]], (2.0, -1.0, None)),
        ([[0.0, 0.0]], (0.0, 0.0, None)),
    ],
)
def test_shares_by_hand(returns, expected):
    found = shares_of(torch.tensor(returns))
    assert found == AgentShares(*(each if each is None else pytest.approx(each) for each in expected))


def test_returns_that_are_no_numbers_have_no_shares():
    assert shares_of(torch.tensor([[1.0, torch.nan]])).gini is None


def test_an_evaluation_tells_the_shares_of_agents_with_rewards_of_their_own():
    env = make_env("games/chicken", num_envs=2, max_steps=10)
    found = evaluate(StrategyController(env, ["defect", "cooperate"]), env, episodes=2, seed=0)
    assert found.agent_returns.tolist() == [[40.0, 10.0]] * 2 and found.mean == 25.0
    told = {name: found.summary()[name] for name in ("return_sum", "return_least", "gini")}
    assert told == {"return_sum": 50.0, "return_least": 10.0, "gini": pytest.approx(0.3)}
    alike = evaluate(StrategyController(env, ["cooperate", "cooperate"]), env, episodes=2, seed=0)
    assert alike.summary()["gini"] == 0.0
    poor = evaluate(StrategyController(env, ["defect", "defect"]), env, episodes=2, seed=0).summary()
    assert poor["return_least"] == 0.0 and "gini" not in poor


@pytest.mark.parametrize("reward", ["team", "individual"])
def test_a_team_s_reward_has_no_shares(reward):
    env = make_env("games/foraging", num_envs=4, seed=0, reward=reward)
    found = evaluate(ForagingController("team", seed=0), env, episodes=4, seed=0)
    assert (found.agent_returns is None) == (reward == "team")
    assert ("return_sum" in found.summary()) == (reward == "individual")
