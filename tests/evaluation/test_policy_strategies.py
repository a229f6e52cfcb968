"""Policies as strategies: what they do in every situation, and the regret that follows."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline import make_actor
from torchrl_marl_offline.envs import StrategyController, make_env
from torchrl_marl_offline.envs.mixed_motives import STRATEGIES, strategy
from torchrl_marl_offline.evaluation.policy_strategies import policy_regret, strategies_of


@pytest.mark.parametrize("names", [("tit_for_tat", "defect", "win_stay_lose_shift"), ("cooperate",) * 3])
def test_a_scripted_team_is_the_strategies_that_it_plays(names):
    env = make_env("games/public_goods", agents=3, max_steps=4)
    wanted = torch.stack([strategy(env, agent, name) for agent, name in enumerate(names)])
    team = StrategyController(env, names)
    assert "random" in STRATEGIES and torch.equal(strategies_of(team, env), wanted)
    assert torch.equal(policy_regret(team, env).regret, env.regret(wanted).regret)


def test_a_network_s_mode_and_its_probabilities():
    env = make_env("games/stag_hunt", max_steps=3)
    torch.manual_seed(0)
    actor = make_actor(env.task_spec, hidden=(8,))
    mode, drawn = strategies_of(actor, env), strategies_of(actor, env, mode="sample")
    assert mode.shape == drawn.shape == (2, 5) and set(mode.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mode, (drawn > 0.5).double()) and ((drawn > 0) & (drawn < 1)).all()
    logits = actor(env.situations())["agents", "logits"].double()
    torch.testing.assert_close(drawn, (logits[..., 1] - logits[..., 0]).sigmoid().T)


def test_what_is_no_strategy_is_refused():
    env = make_env("games/stag_hunt")
    with pytest.raises(ValueError, match="no strategy of one step's memory"):
        strategies_of(make_actor(env.task_spec, hidden=(8,), memory="gru"), env)
    with pytest.raises(ValueError, match="repeated games of mixed motives, not of games/xor"):
        policy_regret(make_actor(env.task_spec, hidden=(8,)), make_env("games/xor"))
    with pytest.raises(ValueError, match="take mode="):
        strategies_of(StrategyController(env, ["defect", "defect"]), env, mode="sample")
