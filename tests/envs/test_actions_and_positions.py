"""What is no joint action, and no position of a game, is refused in a sentence wherever it is given."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION
from torchrl_marl_offline.envs import make_env

DISCRETE = [
    *("games/two_step", "games/xor", "games/bridge", "games/recall", "games/stitch", "games/hanabi", "games/foraging"),
    *("games/commons", "games/stag_hunt", "games/public_goods", "games/grid_navigation", "games/grid_goals"),
    "rware/tiny",
]
CONTINUOUS = ["mpe/simple_spread", "mpe/spread_goals", "mpe/simple_tag", "vmas/balance"]
NOT_JOINT = {
    "floats": lambda action, count: action.float(),
    "flags": lambda action, count: action.bool(),
    "below": lambda action, count: action - 1 - action.min(),
    "beyond": lambda action, count: action + count,
    "one-hot": lambda action, count: torch.nn.functional.one_hot(action, count),
    "one more axis": lambda action, count: action.unsqueeze(-1),
}


@pytest.mark.parametrize("task", [*DISCRETE, "lle/mutual-0"])
def test_what_is_no_joint_action_is_refused(task):
    if task.startswith("lle"):
        pytest.importorskip("lle")
    env = make_env(task, num_envs=3, seed=0)
    td = env.reset()
    action, count = env.rand_action(td.clone())[ACTION], env.task_spec.action_size
    for make in NOT_JOINT.values():
        wanted = rf"^Actions of {task} are whole numbers from 0 to {count - 1}, \[3, {env.task_spec.n_agents}\], got "
        with pytest.raises(ValueError, match=wanted):
            env.step(td.clone().set(ACTION, make(action, count)))
    for kind in (torch.int32, torch.uint8):  # of other widths they are the same numbers
        assert env.step(td.clone().set(ACTION, action.to(kind)))["next", OBSERVATION].isfinite().all()


@pytest.mark.parametrize("task", CONTINUOUS)
def test_an_action_of_another_shape_is_refused(task):
    env = make_env(task, num_envs=3, seed=0)
    td = env.reset()
    action = env.rand_action(td.clone())[ACTION]
    for wrong in (action[..., :1], action.unsqueeze(-1), action[..., 0]):
        with pytest.raises(ValueError, match=rf"^Actions of {task} are numbers, \[3, "):
            env.step(td.clone().set(ACTION, wrong))
    assert env.step(td.set(ACTION, action * 1e9))["next", OBSERVATION].isfinite().all()  # which is clipped


def test_nan_comes_back_as_nan_or_is_refused_by_the_simulator():
    """A study knows by it that a run diverged."""
    for task in ("mpe/simple_spread", "mpe/spread_goals"):
        env = make_env(task, num_envs=2, seed=0)
        td = env.rand_action(env.reset())
        assert not env.step(td.set(ACTION, td[ACTION] * torch.nan))["next", OBSERVATION].isfinite().all()
    env = make_env("vmas/balance", num_envs=2, seed=0)
    td = env.rand_action(env.reset())
    with pytest.raises(ValueError, match="VMAS refuses the actions in vmas/balance: some are NaN"):
        env.step(td.set(ACTION, td[ACTION] * torch.nan))


@pytest.mark.parametrize("task", [*DISCRETE, *CONTINUOUS])
def test_there_is_no_step_before_the_first_reset(task):
    env, other = (make_env(task, num_envs=2, seed=0) for _ in range(2))
    td = other.rand_action(other.reset())
    if task.startswith("vmas"):
        return  # VMAS's games begin when they are made
    with pytest.raises(RuntimeError, match=r"before the first reset\(\)"):
        env.step(td)


CELLS = torch.tensor([[[0, 0], [1, 1]]] * 2)
PLACES = torch.zeros(2, 3, 2)
POSITIONS = {
    "games/stitch": {"context": torch.tensor([0, 3])},
    "games/recall": {"cue": torch.tensor([0, 1])},
    "games/prisoners_dilemma": {"actions": torch.tensor([[-1, -1], [0, 1]])},
    "games/bridge": {"agents": CELLS},
    "games/grid_navigation": {"agents": CELLS, "landmarks": CELLS + 2},
    "games/grid_goals": {"agents": CELLS, "goals": CELLS + 2},
    "games/commons": {
        "agents": torch.tensor([[[0, 0], [1, 1], [2, 2]]] * 2),
        "apples": torch.zeros(2, 7, 7, dtype=torch.bool),
    },
    "mpe/simple_spread": {"agent_pos": PLACES, "agent_vel": PLACES, "landmark_pos": PLACES},
    "mpe/spread_goals": {"position": PLACES, "velocity": PLACES, "goal": PLACES},
    "mpe/simple_tag": {
        "agent_pos": torch.zeros(2, 4, 2),
        "agent_vel": torch.zeros(2, 4, 2),
        "landmark_pos": torch.ones(2, 2, 2),
    },
    "games/foraging": {
        "food": torch.tensor([[[4, 4, 2]]] * 2),
        "agents": torch.tensor([[[0, 0, 1], [1, 1, 2]]] * 2),
    },
}


@pytest.mark.parametrize("task", POSITIONS)
def test_what_is_no_position_is_refused(task):
    env, given = make_env(task, num_envs=2, seed=0), POSITIONS[task]
    found = env.set_state(**given)[OBSERVATION]
    listed = env.set_state(**{name: value.tolist() for name, value in given.items()})[OBSERVATION]
    assert torch.equal(found, listed)
    for name, value in given.items():
        wrong = [value[:1], value.unsqueeze(-1), "x", None, value + 99 if name != "apples" else value.long() + 2]
        wrong[-1] = value * torch.nan if value.is_floating_point() else wrong[-1]
        wrong += [] if value.is_floating_point() else [value.float() + 0.5, value.long() - 99]
        for each in wrong:
            with pytest.raises(ValueError, match=rf"^{name} must be .* in this {task}, got "):
                env.set_state(**(given | {name: each}))


def test_positions_of_robots():
    env = make_env("rware/tiny", num_envs=1)
    shelves = len(env._shelves)
    given = {
        "cells": torch.tensor([[[0, 0], [1, 0]]]),
        "directions": torch.tensor([[0, 3]]),
        "carried": torch.tensor([[-1, -1]]),
        "shelves": torch.stack([env._row[env._shelves], env._column[env._shelves]], -1).unsqueeze(0),
        "requested": torch.tensor([[0, 1]]),
    }
    env.set_state(**given)
    for name, wrong in (("cells", -1), ("directions", 4), ("carried", shelves), ("shelves", 99), ("requested", -1)):
        with pytest.raises(ValueError, match=rf"^{name} must be whole numbers from "):
            env.set_state(**(given | {name: torch.full_like(given[name], wrong)}))


def test_positions_of_laser_worlds():
    pytest.importorskip("lle")
    env = make_env("lle/custom", map="S0 . X\nS1 G X")
    apart, none = torch.tensor([[[0, 0], [1, 0]]]), torch.tensor([[False]])
    env.set_state(apart, none)
    with pytest.raises(ValueError, match=r"^Agents cannot be on the cells \[\[0, 0\], \[0, 0\]\] together"):
        env.set_state(apart * 0, none)
    for cells in (apart + 9, apart - 1, apart + 0.5, torch.cat([apart, apart])):
        with pytest.raises(ValueError, match=r"^cells must be whole numbers from 0 to"):
            env.set_state(cells, none)
    with pytest.raises(ValueError, match=r"^gems must be"):
        env.set_state(apart, torch.zeros(1, 3, dtype=torch.bool))
