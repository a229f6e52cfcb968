"""A scripted team that plays where it was not made for is told so, and does not fail inside or play anything."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline import make_env
from torchrl_marl_offline.envs import (
    CommonsController,
    CueController,
    ForagingController,
    GoalController,
    GridController,
    HanabiController,
    LaserController,
    LaserWalker,
    OvercookedController,
    StitchController,
    StrategyController,
    WarehouseController,
)

TEAMS = {
    "hanabi": (lambda env: HanabiController(env), "games/hanabi", {"agents": 2}, {"agents": 3}),
    "commons": (lambda env: CommonsController(env, "restrained"), "games/commons", {"agents": 2}, {"agents": 3}),
    "cues": (lambda env: CueController(env), "games/recall", {"cues": 2, "actions": 4}, {"cues": 3, "actions": 4}),
    "stitch": (lambda env: StitchController(env, "star"), "games/stitch", {"contexts": 3}, {"contexts": 2}),
    "warehouse": (lambda env: WarehouseController(env), "rware/tiny", {"agents": 2}, {"agents": 3}),
    "strategies": (
        lambda env: StrategyController(env, ["random"] * env.task_spec.n_agents),
        "games/public_goods",
        {"agents": 2},
        {"agents": 3},
    ),
}


@pytest.mark.parametrize("name", TEAMS)
def test_a_game_of_other_sizes(name):
    make, task, own, others = TEAMS[name]
    env, other = (make_env(task, num_envs=2, seed=0, **options) for options in (own, others))
    team = make(env)
    assert env.rollout(1, team)["agents", "action"].dtype == torch.int64
    with pytest.raises(
        ValueError, match=rf"^{type(team).__name__} reads .* of width \d+, and this one has \d+; let it"
    ):
        other.rollout(1, team)


@pytest.mark.parametrize("make", [lambda env: ForagingController("team"), lambda env: GridController("optimal")])
def test_a_game_without_masks(make):
    env = make_env("games/xor", num_envs=2, seed=0)
    with pytest.raises(ValueError, match=r"reads agents\.action_mask.*, and there is none; let it play where"):
        env.rollout(1, make(env))


def test_a_game_without_goals():
    team = GoalController(make_env("games/grid_goals", num_envs=2, seed=0), "goal")
    with pytest.raises(ValueError, match=r"reads agents\.achieved of width 2, and there is none"):
        team(make_env("games/grid_navigation", num_envs=2, seed=0).reset())


@pytest.mark.parametrize("kind", [LaserController, LaserWalker])
def test_another_laser_world(kind):
    pytest.importorskip("lle")
    team = kind(make_env("lle/custom", map="S0 . X\nS1 . X"))
    with pytest.raises(ValueError, match=rf"^{kind.__name__} reads state of width 6, and this one has 7"):
        make_env("lle/custom", map="S0 G X\nS1 . X").rollout(1, team)


def test_another_kitchen():
    pytest.importorskip("overcooked")
    team = OvercookedController(make_env("overcooked/cramped_room"))
    with pytest.raises(ValueError, match=r"^OvercookedController reads state of width 502, and this one has \d+"):
        make_env("overcooked/counter_circuit").rollout(1, team)
