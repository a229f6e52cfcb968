"""The commons: harvest, growth and its end by hand, the tragedy, each agent's own reward, refusals."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import CommonsController, make_env


def board(*cells):
    apples = torch.zeros(7, 7, dtype=torch.bool)
    for row, column in cells:
        apples[row, column] = True
    return apples


def test_whoever_steps_on_an_apple_has_it():
    env = make_env("games/commons", num_envs=2, agents=2, growth=0.0)
    env.reset()
    agents = torch.tensor([[[0, 0], [3, 3]], [[0, 0], [0, 2]]])
    td = env.set_state(agents, torch.stack([board((0, 1), (3, 4), (6, 6)), board((0, 1), (6, 6))]))
    assert td[OBSERVATION].shape == (2, 2, 53)
    assert td[OBSERVATION][0, 1, :4].tolist() == [4, 4, 1, 1]
    assert td[STATE][0, 4:].nonzero().flatten().tolist() == [1, 25, 48]
    after = env.step(td.set(ACTION, torch.tensor([[4, 0], [4, 3]])))["next"]
    assert after[REWARD].squeeze(-1).tolist() == [[1, 0], [0, 0]]  # both that aim at one cell stay
    assert after[STATE][:, 4:].sum(-1).tolist() == [2, 2]
    assert not after["terminated"].any()


def test_it_ends_with_the_last_apple():
    env = make_env("games/commons", num_envs=1, agents=2, growth=0.0)
    env.reset()
    td = env.set_state(torch.tensor([[[0, 0], [3, 3]]]), board((0, 1))[None])
    after = env.step(td.set(ACTION, torch.tensor([[4, 0]])))["next"]
    assert after["terminated"].item() and not after["truncated"].item()


def test_growth_is_as_likely_as_neighbours_make_it():
    count, growth = 4000, 0.05
    env = make_env("games/commons", num_envs=count, agents=2, growth=growth, seed=0)
    env.reset()
    apples = board((1, 1), (1, 3), (3, 1))
    agents = torch.tensor([[6, 6], [2, 1]]).expand(count, 2, 2)
    td = env.set_state(agents, apples.expand(count, 7, 7).clone())
    after = env.step(td.set(ACTION, torch.zeros(count, 2, dtype=torch.int64)))["next"]
    found = after[STATE][:, 4:].view(count, 7, 7).mean(0)
    expected = torch.zeros(7, 7)
    for row, column in apples.nonzero().tolist():
        expected[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] += growth
    expected[2, 1] = 0  # under an agent
    expected[apples] = 1
    assert ((found - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt() + 1e-6).all()
    assert expected[2, 2] == pytest.approx(3 * growth)


def _harvest(env, kinds, **options):
    policy, td = CommonsController(env, kinds, seed=0, **options), env.reset()
    total, going = 0.0, torch.ones(env.num_envs, 1, 1)
    for _ in range(env.max_episode_steps):
        td = env.step(policy(td))["next"]
        total = total + td[REWARD] * going
        going = going * ~td["terminated"].unsqueeze(-1)
    return total.squeeze(-1).mean(0)


def test_the_tragedy():
    env = make_env("games/commons", num_envs=40, seed=0)
    greedy, restrained = _harvest(env, "greedy"), _harvest(env, "restrained")
    assert restrained.mean() > 3 * greedy.mean()
    among_restrained = _harvest(env, ["greedy", "restrained", "restrained"])
    assert among_restrained[0] > 1.5 * among_restrained[1:].max()  # it pays to be greedy
    assert among_restrained.sum() < 0.8 * restrained.sum()  # and the others pay for it


def test_who_is_restrained_leaves_lonely_apples_until_the_end():
    env = make_env("games/commons", num_envs=1, agents=2, max_steps=4, growth=0.0)
    env.reset()
    td = env.set_state(torch.tensor([[[0, 0], [6, 6]]]), board((0, 1))[None])
    policy = CommonsController(env, ["restrained", "greedy"], leave=1, rush=2)
    actions = []
    for _ in range(3):
        td = policy(td)
        actions.append(td[ACTION][0].tolist())
        td = env.step(td.set(ACTION, torch.zeros(1, 2, dtype=torch.int64)))["next"]
    assert [first for first, _ in actions] == [0, 0, 4]
    assert all(second in (1, 3) for _, second in actions)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["greedy"], "1 kinds for 3 agents"),
        (["greedy", "greedy", "lazy"], "lazy"),
    ],
)
def test_refused_teams(kinds, words):
    with pytest.raises(ValueError, match=words):
        CommonsController(make_env("games/commons"), kinds)


def test_another_game_is_refused():
    with pytest.raises(ValueError, match=r"CommonsController plays in games/commons, not in games/xor"):
        CommonsController(make_env("games/xor"))
    with pytest.raises(ValueError, match="growth"):
        make_env("games/commons", growth=0.2)
