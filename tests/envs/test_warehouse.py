"""rware/*: who moves by hand, and games beside the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env, warehouse
from torchrl_marl_offline.envs.warehouse import FORWARD, TOGGLE_LOAD, robots_that_move


@pytest.mark.parametrize(
    ("target", "follows", "expected"),
    [
        ([7, 7, 8], [3, 3, 3], [1, 0, 1]),  # two want one free cell: the first goes
        ([7, 7, 1], [3, 3, 1], [0, 1, 1]),  # the one with a queue behind it goes, and the queue
        ([0, 0, 1], [0, 0, 1], [1, 0, 0]),  # one stays, and all behind it
        ([1, 0, 1], [1, 0, 1], [0, 0, 0]),  # two want each other's cells
        ([1, 2, 0], [1, 2, 0], [1, 1, 1]),  # three in a circle
        ([1, 2, 0, 1], [1, 2, 0, 1], [1, 1, 1, 0]),  # and one behind them
        ([9, 0, 0, 2], [4, 0, 0, 2], [1, 0, 1, 1]),  # two queues meet: the longer one
    ],
)
def test_who_moves(target, follows, expected):
    assert robots_that_move(torch.tensor([target]), torch.tensor([follows])).int().tolist() == [expected]


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("rware.warehouse")


def original(package, layout, agents, requests, reward, *, max_steps=500):
    rows, columns = {"tiny": (1, 3), "small": (2, 3), "medium": (2, 5), "large": (3, 5)}[layout]
    return package.Warehouse(
        shelf_columns=columns,
        column_height=8,
        shelf_rows=rows,
        n_agents=agents,
        msg_bits=0,
        sensor_range=1,
        request_queue_size=requests,
        max_inactivity_steps=None,
        max_steps=max_steps,
        reward_type=package.RewardType.GLOBAL if reward == "team" else package.RewardType.INDIVIDUAL,
    )


def state_of(game):
    """Return what :meth:`Warehouse.set_state` takes."""
    carried = [robot.carrying_shelf.id - 1 if robot.carrying_shelf else -1 for robot in game.agents]
    return {
        "cells": torch.tensor([[[int(robot.y), int(robot.x)] for robot in game.agents]]),
        "directions": torch.tensor([[robot.dir.value for robot in game.agents]]),
        "carried": torch.tensor([carried]),
        "shelves": torch.tensor([[[int(shelf.y), int(shelf.x)] for shelf in game.shelfs]]),
        "requested": torch.tensor([[shelf.id - 1 for shelf in game.request_queue]]),
    }


class Moves:
    """Calls :func:`robots_that_move`, and knows whether the package's order of sets decided what it was asked."""

    undecided = False

    def __call__(self, target, follows):
        n = target.shape[1]
        mirrored = torch.where(follows == n, n, n - 1 - follows).flip(1)
        moves = robots_that_move(target, follows)
        self.undecided = not torch.equal(robots_that_move(target.flip(1), mirrored).flip(1), moves)
        return moves


def begin(game, seed):
    """Begin an episode of the package's game with a requested shelf on its way to a goal."""
    game.reset(seed=seed)
    column, row = game.goals[0][0], game.grid_size[0] - 3
    robot, shelf = game.agents[0], game.request_queue[0]
    if not game.grid[0, row, column]:
        robot.x, robot.y, robot.dir = column, row, robot.dir.__class__.DOWN
        shelf.x, shelf.y, robot.carrying_shelf = column, row, shelf
        game._recalc_grid()
    return [game._make_obs(robot) for robot in game.agents]


def useful(game, generator):
    """Draw actions: mostly load below a requested shelf, and drive with it towards the goals."""
    actions = generator.choice(5, p=[0.05, 0.5, 0.15, 0.15, 0.15], size=game.n_agents)
    for number, robot in enumerate(game.agents):
        shelf = game.grid[1, robot.y, robot.x]
        if not robot.carrying_shelf and shelf and game.shelfs[shelf - 1] in game.request_queue:
            actions[number] = TOGGLE_LOAD
        elif robot.carrying_shelf in game.request_queue and actions[number] == TOGGLE_LOAD:
            actions[number] = FORWARD
    return actions


CASES = [
    ("tiny", 2, "normal", "individual"),
    ("tiny", 4, "hard", "team"),
    ("tiny", 6, "easy", "individual"),
    ("small", 3, "normal", "individual"),
    ("medium", 5, "hard", "individual"),
]


@pytest.mark.parametrize(("layout", "agents", "difficulty", "reward"), CASES)
def test_a_thousand_steps_equal_the_package_s(package, monkeypatch, layout, agents, difficulty, reward):
    moves = Moves()
    monkeypatch.setattr(warehouse, "robots_that_move", moves)
    env = make_env(f"rware/{layout}", agents=agents, difficulty=difficulty, reward=reward, seed=0, max_steps=100)
    game = original(package, layout, agents, env.requests, reward, max_steps=100)
    generator = np.random.default_rng(0)
    ended, compared, paid, moved, seed = True, 0, 0.0, 0, 0
    for _ in range(1000):
        if ended:
            seen, seed = begin(game, seed), seed + 1
            td = env.set_state(**state_of(game))
        np.testing.assert_array_equal(td[OBSERVATION][0].numpy(), np.stack(seen))
        action = useful(game, generator)
        before = td[OBSERVATION]
        seen, reward_of, ended, _, _ = game.step(action.tolist())
        td = env.step(td.set(ACTION, torch.from_numpy(action).unsqueeze(0)))["next"]
        steps = env._step_count.clone()
        if not moves.undecided:
            compared += 1
            assert td[REWARD].flatten().tolist() == reward_of
            ours, theirs = env._game, env.set_state(**state_of(game))
            same = [key for key in ("cell", "direction", "carried", "shelf") if torch.equal(ours[key], env._game[key])]
            assert same == ["cell", "direction", "carried", "shelf"]
            # requests are drawn, and as many as there were
            kept = ours["requested"] == env._game["requested"]
            assert (~kept).sum() <= sum(reward_of) and len(ours["requested"].unique()) == env.requests
            moved += int((theirs[OBSERVATION][..., :2] != before[..., :2]).any())
        paid += sum(reward_of)
        assert td["done"].item() == ended
        td = env.set_state(**state_of(game))
        env._step_count = steps
    assert compared > 950 and moved > 400 and paid >= 5


def by_hand(env):
    """Put two robots on the tiny floor: the first with shelf 5 two cells above the first goal."""
    shelves = env._shelves
    places = torch.stack([env._row[shelves], env._column[shelves]], -1)
    places[5] = torch.tensor([8, 4])
    state = {
        "cells": torch.tensor([[8, 4], [0, 0]]),
        "directions": torch.tensor([1, 0]),
        "carried": torch.tensor([5, -1]),
        "shelves": places,
        "requested": torch.tensor([7, 5]),
    }
    return env.set_state(
        **{key: each.unsqueeze(0).repeat(env.num_envs, *[1] * each.dim()) for key, each in state.items()}
    )


def test_a_delivery_and_the_request_after_it():
    env = make_env("rware/tiny", num_envs=2000, seed=0)
    td = by_hand(env)
    assert td[STATE][0].tolist() == [4, 8, 1, 0, 0, 0, *env._column[env._shelves[7:8]].tolist(), 2, 4, 8]
    for _ in range(2):
        assert not td.get(REWARD, torch.zeros(1)).any()
        td = env.step(td.set(ACTION, torch.tensor([FORWARD, 0]).expand(2000, 2)))["next"]
    assert td[REWARD][..., 0].unique(dim=0).tolist() == [[1, 0]]
    kept, drawn = env._game["requested"].unbind(1)
    assert (kept == 7).all() and not ((drawn == 5) | (drawn == 7)).any()
    counts = drawn.bincount(minlength=len(env._shelves))[[i for i in range(len(env._shelves)) if i not in (5, 7)]]
    expected = 2000 / len(counts)
    assert (counts - expected).abs().max() < 5 * expected**0.5
    assert make_env("rware/tiny", agents=3, difficulty="hard").requests == 1
    with pytest.raises(ValueError, match="less than one request"):
        make_env("rware/tiny", agents=1, difficulty="hard")
    with pytest.raises(ValueError, match="difficulty must be"):
        make_env("rware/tiny", difficulty="impossible")
