"""Scripted teams of games/foraging: moves by hand, and their order of skill."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK
from torchrl_marl_offline.envs import ForagingController, make_env
from torchrl_marl_offline.envs.foraging import LOAD
from torchrl_marl_offline.evaluation import evaluate

STAY, NORTH, SOUTH, WEST, EAST = range(5)


def test_moves_by_hand():
    env = make_env("games/foraging", agents=3, food=2)
    food, agents = [[1, 4, 2], [6, 6, 1]], [[1, 1, 1], [1, 3, 1], [6, 4, 2]]
    td = env.set_state(torch.tensor([food]), torch.tensor([agents]))
    # all three to the first food, at which the second stands already; the last is two steps from the other
    team, greedy = (ForagingController(kind)(td.clone())[ACTION][0].tolist() for kind in ("team", "greedy"))
    assert team[0] in (NORTH, EAST) and team[1:] == [LOAD, NORTH]
    assert greedy[0] in (NORTH, EAST) and greedy[1:] == [LOAD, EAST]


def many(agents):
    """Return 200 equal games of 6 × 6 cells with food at (2, 3)."""
    env = make_env("games/foraging", num_envs=200, agents=len(agents), grid=6)
    food, agents = torch.tensor([[[2, 3, 2]]]), torch.tensor([agents])
    return env.set_state(food.repeat(200, 1, 1), agents.repeat(200, 1, 1))


def test_who_loads_keeps_its_cell_and_others_go_around():
    action = ForagingController("greedy", seed=0)(many([[2, 1, 1], [2, 2, 1], [4, 3, 1]]))[ACTION]
    assert (action == torch.tensor([NORTH, LOAD, NORTH])).all()


def test_of_two_that_aim_at_one_cell_the_first_goes():
    action = ForagingController("team", seed=0)(many([[3, 2, 1], [4, 3, 1]]))[ACTION]
    assert (action[:, 0] == EAST).all()
    assert set(action[:, 1].tolist()) == {STAY, NORTH, SOUTH, WEST, EAST}


@pytest.mark.parametrize("cooperative", [False, True])
def test_skill_and_legality(cooperative):
    env = make_env("games/foraging", num_envs=200, seed=0, agents=3, food=3, cooperative=cooperative, reward="team")
    found = {}
    for kind in ("team", "greedy", "random"):
        policy = ForagingController(kind, seed=1, epsilon=0.0 if kind == "random" else 0.1)
        play = env.rollout(20, policy, break_when_any_done=False)
        assert play[ACTION_MASK].gather(-1, play[ACTION].unsqueeze(-1)).all()
        found[kind] = evaluate(policy, env, episodes=400, seed=3).mean
    assert found["team"] > 0.9
    assert found["random"] < 0.5 * found["greedy"] < 0.5 * found["team"]


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be"):
        ForagingController("optimal")
