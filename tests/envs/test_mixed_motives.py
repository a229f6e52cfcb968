"""Repeated games of mixed motives: rewards by hand, regret by hand and by going through every response."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import StrategyController, make_env
from torchrl_marl_offline.envs.mixed_motives import STRATEGIES, strategy

TWO = {
    "games/stag_hunt": [[(4, 4), (0, 3)], [(3, 0), (2, 2)]],
    "games/chicken": [[(3, 3), (1, 4)], [(4, 1), (0, 0)]],
    "games/prisoners_dilemma": [[(3, 3), (0, 5)], [(5, 0), (1, 1)]],
}


@pytest.mark.parametrize("task", TWO)
def test_rewards_of_two_agents(task):
    env = make_env(task, num_envs=4, max_steps=2)
    td = env.reset()
    assert not td[OBSERVATION].any() and not td[STATE].any()
    joint = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    td = env.step(td.set(ACTION, joint))["next"]
    assert td[REWARD].squeeze(-1).tolist() == [list(TWO[task][a][b]) for a, b in joint.tolist()]
    assert td[STATE][1].tolist() == [1, 0, 0, 1]
    assert td[OBSERVATION][1].tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]  # one's own action first
    td = env.step(td.set(ACTION, joint))["next"]
    assert td["truncated"].all() and not td["terminated"].any()
    team = torch.tensor(TWO[task]).float().mean(-1)
    assert env.reference_returns == (2 * team.mean().item(), 2 * team.max().item())


def test_public_goods_by_hand():
    env = make_env("games/public_goods", num_envs=2, agents=4, factor=2.0)
    td = env.step(env.reset().set(ACTION, torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]])))["next"]
    assert td[REWARD].squeeze(-1).tolist() == [[2.0] * 4, [0.5, 1.5, 1.5, 1.5]]
    assert env.reference_returns[1] == 20 * 2.0


def everyone(env, *names):
    return torch.stack([strategy(env, agent, name) for agent, name in enumerate(names)])


@pytest.mark.parametrize(
    ("task", "names", "value", "regret"),
    [
        ("games/prisoners_dilemma", ("defect", "defect"), (10, 10), (0, 0)),
        ("games/prisoners_dilemma", ("cooperate", "cooperate"), (30, 30), (20, 20)),
        ("games/prisoners_dilemma", ("tit_for_tat", "tit_for_tat"), (30, 30), (2, 2)),
        ("games/prisoners_dilemma", ("cooperate", "defect"), (0, 50), (10, 0)),
        ("games/stag_hunt", ("cooperate", "cooperate"), (40, 40), (0, 0)),
        ("games/stag_hunt", ("defect", "defect"), (20, 20), (0, 0)),
        ("games/chicken", ("cooperate", "defect"), (10, 40), (0, 0)),
        ("games/chicken", ("defect", "defect"), (0, 0), (10, 10)),
        ("games/prisoners_dilemma", ("random", "random"), (22.5, 22.5), (7.5, 7.5)),
    ],
)
def test_regret_by_hand(task, names, value, regret):
    env = make_env(task, max_steps=10)
    found = env.regret(everyone(env, *names))
    assert found.value.tolist() == pytest.approx(value) and found.regret.tolist() == pytest.approx(regret)
    torch.testing.assert_close(found.best, found.value + found.regret)


@pytest.mark.parametrize("seed", range(3))
def test_regret_by_going_through_every_response(seed):
    """Against drawn strategies, all policies of the last joint action and time are tried over two steps."""
    env = make_env("games/chicken", max_steps=2)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(2, 5, dtype=torch.float64, generator=generator)
    found = env.regret(drawn)

    def expected(first, then):
        """Return the first agent's return if it defects with these probabilities, at first and after each."""
        total = 0.0
        for a, b in product((0, 1), repeat=2):
            chance = (first if a else 1 - first) * (drawn[1, 0] if b else 1 - drawn[1, 0])
            after = 2 * a + b
            second = 0.0
            for c, d in product((0, 1), repeat=2):
                part = (then[after] if c else 1 - then[after]) * (drawn[1, 1 + after] if d else 1 - drawn[1, 1 + after])
                second += part * TWO["games/chicken"][c][d][0]
            total += chance * (TWO["games/chicken"][a][b][0] + second)
        return float(total)

    assert found.value[0].item() == pytest.approx(expected(drawn[0, 0], drawn[0, 1:]))
    responses = [expected(first, then) for first in (0, 1) for then in product((0, 1), repeat=4)]
    assert found.best[0].item() == pytest.approx(max(responses))


def test_strategies_play_as_their_values_say():
    for task, names in (
        ("games/prisoners_dilemma", ("tit_for_tat", "random")),
        ("games/public_goods", ("win_stay_lose_shift", "random", "defect", "tit_for_tat")),
    ):
        env = make_env(task, num_envs=2000, max_steps=4)
        returns = env.rollout(4, StrategyController(env, names, seed=1))["next", *REWARD].squeeze(-1).sum(1)  # [B, n]
        value = env.regret(everyone(env, *names)).value.float()
        error = returns.std(0) / len(returns) ** 0.5
        assert ((returns.mean(0) - value).abs() <= 5 * error + 1e-5).all()


def test_public_goods_has_the_regret_of_keeping():
    env = make_env("games/public_goods", agents=3, factor=1.5, max_steps=4)
    found = env.regret(everyone(env, *["cooperate"] * 3))
    torch.testing.assert_close(found.value, torch.full((3,), 6.0, dtype=torch.float64))
    torch.testing.assert_close(found.regret, torch.full((3,), 2.0, dtype=torch.float64))  # 1 - 1.5 / 3 a step
    assert env.regret(everyone(env, *["defect"] * 3)).regret.abs().max() == 0


def test_what_cannot_be_is_refused():
    env = make_env("games/chicken")
    assert strategy(env, 1, "tit_for_tat").tolist() == [0, 0, 0, 1, 1] and len(STRATEGIES) == 5
    with pytest.raises(ValueError, match=r"probabilities \[2, 5\]"):
        env.regret(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"probabilities \[2, 5\]"):
        env.regret(torch.full((2, 5), 1.5))
    with pytest.raises(ValueError, match="strategy must be one of cooperate"):
        strategy(env, 0, "grudge")
    with pytest.raises(ValueError, match="1 strategies for 2 agents"):
        StrategyController(env, ["defect"])
    with pytest.raises(ValueError, match="not in games/xor"):
        StrategyController(make_env("games/xor"), ["defect", "defect"])
    with pytest.raises(ValueError, match="agents must"):
        make_env("games/public_goods", agents=9)


def test_what_are_no_strategies_is_refused_in_regrets_and_by_the_team():
    env = make_env("games/prisoners_dilemma", max_steps=10)
    fine = torch.stack([strategy(env, agent, "tit_for_tat") for agent in range(2)])
    for same in (fine, fine.tolist(), fine.numpy()):
        assert env.regret(same).regret.tolist() == [2.0, 2.0]
        assert torch.equal(StrategyController(env, same).strategies, fine)
    for wrong in (
        fine[:, :4],
        fine.T,
        fine.unsqueeze(-1),
        fine + 1,
        fine * torch.nan,
        None,
        5,
        [0.5, 0.5],
        "cooperate",
    ):
        with pytest.raises(ValueError, match=r"strategies must be probabilities \[2, 5\]|strategies for 2 agents"):
            StrategyController(env, wrong)
        with pytest.raises(ValueError, match=r"strategies must be probabilities \[2, 5\]"):
            env.regret(wrong)
    for agent in (2, -1, "a"):
        with pytest.raises(ValueError, match="agent"):
            strategy(env, agent, "tit_for_tat")
    with pytest.raises(ValueError, match=r"not in games/stitch\.$"):
        strategy(make_env("games/stitch"), 0, "random")
