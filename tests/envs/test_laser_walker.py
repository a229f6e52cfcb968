"""Teams that walk to an aim in lle/*: shortest ways, against the solver's proofs and the package's steps."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK
from torchrl_marl_offline.envs import CORE_WORLDS, LaserWalker, make_env
from torchrl_marl_offline.evaluation import evaluate

pytest.importorskip("lle")


@pytest.mark.parametrize(
    "task", [*CORE_WORLDS[:5:2], *(pytest.param(t, marks=pytest.mark.thorough) for t in CORE_WORLDS)]
)
def test_the_shortest_way_out_is_as_long_as_the_solver_s(task):
    env = make_env(task, num_envs=2)
    team = LaserWalker(env)
    measured = evaluate(team, env, episodes=2, seed=0)
    assert measured.gap == 0 and measured.lengths.tolist() == [env.certificate.shortest] * 2 == [team.steps] * 2
    assert max(team.steps_out) == team.steps


def test_the_positions_and_their_moves_are_the_game_s():
    env = make_env("lle/mutual-0", num_envs=50, seed=0)
    found = env.positions
    data = env.rollout(40, break_when_any_done=False)
    number = (data["state"].unsqueeze(-2) == found.state).all(-1).to(torch.uint8).argmax(-1)
    code = (data[ACTION] * torch.tensor([1, 5])).sum(-1)
    assert torch.equal(found.state[number], data["state"]) and found.legal[number, code].all()
    assert torch.equal(found.state[found.following[number, code]], data["next", "state"])
    ended = data["next", "terminated"].squeeze(-1)
    assert not found.legal[found.following[number, code][ended]].any() and ended.any()
    legal = found.legal[number].unflatten(-1, (5, 5))  # second agent, first agent
    assert torch.equal(legal.any(-2), data[ACTION_MASK][..., 0, :]) and torch.equal(
        legal.any(-1), data[ACTION_MASK][..., 1, :]
    )


def test_aims_of_one_agent():
    env = make_env("lle/one_sided-0", num_envs=1)
    for agent in range(2):
        out = LaserWalker(env, "one_out", agent=agent)
        measured = evaluate(out, env, episodes=1, seed=0)
        assert (measured.mean, measured.lengths.item()) == (1.0, env.max_episode_steps)
        assert out.steps_out[agent] == out.steps and out.steps_out[1 - agent] is None
        dies = LaserWalker(env, "beam", agent=agent)
        measured = evaluate(dies, env, episodes=1, seed=0)
        assert (measured.mean, measured.lengths.item()) == (-1.0, dies.steps) and dies.steps_out == [None, None]


def test_who_cannot_reach_the_aim_acts_at_random_by_legal_actions():
    env = make_env("lle/custom", map="S0 . @ X\nS1 . @ X", num_envs=40, seed=0)
    team = LaserWalker(env, seed=0)
    assert team.steps is None
    data = env.rollout(6, team, break_when_any_done=False)
    assert data[ACTION_MASK].gather(-1, data[ACTION].unsqueeze(-1)).all() and len(data[ACTION].unique()) >= 4


def test_what_it_cannot_play_is_refused():
    env = make_env("lle/none-1")
    with pytest.raises(ValueError, match="There is no agent 2 among 2"):
        LaserWalker(env, "beam", agent=2)
    with pytest.raises(ValueError, match="LaserWalker plays in environments of lle"):
        LaserWalker(make_env("games/xor"))


def test_worlds_with_too_many_positions_are_refused(monkeypatch):
    monkeypatch.setattr("torchrl_marl_offline.envs.laser_grid._EXPLORED", 500)
    with pytest.raises(ValueError, match="The world of lle/none-1 has more positions than the 20 that are tried"):
        LaserWalker(make_env("lle/none-1"))
