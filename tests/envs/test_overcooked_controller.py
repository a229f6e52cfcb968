"""The hand-written cooks: what they deliver, and by which recipe."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, REWARD, STATE
from torchrl_marl_offline.envs import OvercookedController, make_env
from torchrl_marl_offline.envs.overcooked_controller import best_recipe

pytest.importorskip("overcooked")


def returns(layout, kind="team", *, epsilon=0.1, steps=120, num_envs=8):
    env = make_env(f"overcooked/{layout}", num_envs=num_envs, max_steps=steps)
    data = env.rollout(steps, OvercookedController(env, kind, epsilon=epsilon, seed=0), break_when_any_done=False)
    return data["next", *REWARD][..., 0, 0].sum(1)


@pytest.mark.parametrize(
    "layout", ["cramped_room", "forced_coordination", "asymmetric_advantages", "coordination_ring"]
)
def test_teams_deliver_and_random_play_does_not(layout):
    assert returns(layout).mean() > 10
    assert returns(layout, "random").mean() < 5


def test_one_that_reckons_with_the_other_delivers_more():
    team, alone = (returns("centre_pots", kind, steps=150, num_envs=30).mean() for kind in ("team", "alone"))
    assert team > alone


@pytest.mark.parametrize(
    ("layout", "recipe"), [("cramped_room", (3, 0)), ("simple_tomato", (0, 3)), ("mdp_test", (2, 1))]
)
def test_recipes(layout, recipe):
    assert best_recipe(make_env(f"overcooked/{layout}").kitchen) == recipe


def test_seeds_batches_and_other_tasks():
    env = make_env("overcooked/cramped_room", num_envs=6, random_positions=True, seed=0)
    td = env.reset()
    one, same, other = (OvercookedController(env, epsilon=0.5, seed=seed)(td.clone())[ACTION] for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    folded = td.view(2, 3)
    again = OvercookedController(env, epsilon=0.0, seed=3)(folded.clone())[ACTION]
    assert again.shape == (2, 3, 2)
    assert folded[STATE].shape[:2] == (2, 3)
    with pytest.raises(ValueError, match=r"plays in environments of overcooked/\*, not games/xor"):
        OvercookedController(make_env("games/xor"))
    with pytest.raises(ValueError, match="kind must be 'team', 'alone' or 'random', got 'greedy'"):
        OvercookedController(env, "greedy")
