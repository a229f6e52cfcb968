"""The scripted team of the warehouse: it finds its request, delivers it and puts the shelf back."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION
from torchrl_marl_offline.envs import WarehouseController, make_env
from torchrl_marl_offline.envs.warehouse import FORWARD, LEFT, TOGGLE_LOAD
from torchrl_marl_offline.evaluation import evaluate


def placed(cell, direction, *, requested=0, carried=-1, shelf_at=None):
    """Return a warehouse of one robot, and its first observation; shelf 0 is the one in the upper left corner."""
    env = make_env("rware/tiny", agents=1, difficulty="normal")
    plan, _ = env.floor_plan()
    shelves = (~plan).nonzero()
    if shelf_at is not None:
        shelves[0] = torch.tensor(shelf_at)
    state = {"cells": [[cell]], "directions": [[direction]], "carried": [[carried]], "requested": [[requested]]}
    return env, env.set_state(**{name: torch.tensor(values) for name, values in state.items()}, shelves=shelves[None])


def test_the_floor():
    ways, goals = make_env("rware/tiny").floor_plan()
    assert ways.shape == (11, 10) and (~ways).sum() == 32
    assert [(goal // 10, goal % 10) for goal in goals.tolist()] == [(10, 4), (10, 5)]
    assert ways[10].all() and ways[:, 0].all() and not ways[1, 1]


@pytest.mark.parametrize(
    ("cell", "direction", "wanted"),
    [([1, 1], 0, TOGGLE_LOAD), ([3, 1], 0, FORWARD), ([1, 3], 2, FORWARD), ([1, 3], 0, LEFT)],
)
def test_a_robot_without_a_shelf_goes_to_its_request_and_loads(cell, direction, wanted):
    env, td = placed(cell, direction)
    assert WarehouseController(env, epsilon=0.0)(td)[ACTION].item() == wanted


def test_it_delivers_and_puts_the_shelf_back():
    env, td = placed([1, 1], 0)
    team, rewards, unloaded = WarehouseController(env, epsilon=0.0), [], None
    for _ in range(60):
        td = env.step(team(td))
        rewards.append(td["next", "agents", "reward"].sum().item())
        before, after = (each["agents", "observation"][0, 0] for each in (td, td["next"]))
        if before[2] and not after[2] and unloaded is None:
            unloaded = after[:2].tolist()
        td = env.step_mdp(td)
    assert rewards[0] == 0 and sum(rewards) >= 1 and unloaded == [1.0, 1.0]


@pytest.mark.parametrize(("agents", "least"), [(1, 12.0), (2, 18.0)])
def test_teams_deliver(agents, least):
    env = make_env("rware/tiny", num_envs=10, agents=agents, reward="team")
    found = evaluate(WarehouseController(env, epsilon=0.05, seed=0), env, episodes=10, seed=0)
    assert found.mean > least


def test_random_actions_are_seeded_and_other_tasks_refused():
    env = make_env("rware/small", num_envs=30, seed=0)
    td = env.reset()
    acted = [WarehouseController(env, epsilon=1.0, seed=seed)(td.clone())[ACTION] for seed in (0, 0, 1)]
    assert torch.equal(acted[0], acted[1]) and not torch.equal(acted[0], acted[2])
    with pytest.raises(ValueError, match=r"WarehouseController plays in environments of rware/\*, not games/xor"):
        WarehouseController(make_env("games/xor"))
