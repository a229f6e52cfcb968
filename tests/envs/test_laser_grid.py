"""lle/*: steps by hand, games beside the package, starts, positions, and what cannot be made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from selection import some_of

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import CORE_WORLDS, factory, generate_world, laser_grid, list_tasks, make_env
from torchrl_marl_offline.envs.laser_grid import EAST, NORTH, SOUTH, STAY, WEST

lle = pytest.importorskip("lle")

BLOCKED = "S1 . . X\n. . . L0W\nS0 . . X"  # the laser of agent 0 shines along the middle row


def step(env, td, *action):
    return env.step(td.set(ACTION, torch.tensor([action] * env.num_envs)))["next"]


def test_who_blocks_its_laser_lets_the_other_pass():
    env = make_env("lle/custom", map=BLOCKED)
    td = env.reset()
    assert td[ACTION_MASK].int().tolist() == [[[1, 0, 1, 0, 1], [0, 1, 1, 0, 1]]]
    torch.testing.assert_close(td[STATE], torch.tensor([[2 / 3, 0, 0, 0, 1, 1]]))
    beam = td[OBSERVATION].view(1, 2, 8, 3, 4)[0, 0, 2, 1]
    assert beam.tolist() == [1, 1, 1, -1]
    td = step(env, td, NORTH, STAY)  # agent 0 blocks the beam at the edge, where nobody stands behind it
    assert td[OBSERVATION].view(1, 2, 8, 3, 4)[0, 0, 2, 1].tolist() == [0, 1, 1, -1]
    td = step(env, td, EAST, STAY)
    td = step(env, td, STAY, SOUTH)  # the other one passes behind it
    assert td[OBSERVATION].view(1, 2, 8, 3, 4)[0, 1, 2, 1].tolist() == [0, 0, 1, -1]
    assert td["terminated"].item() is False and not td[REWARD].any()
    alone = step(env, td, SOUTH, STAY)  # and dies when the beam comes back
    assert alone[REWARD].flatten().tolist() == [-1, -1]
    assert alone["terminated"].all() and not alone["success"].any() and not alone["truncated"].any()


def test_exits_gems_and_what_pays():
    world = "S0 G X\nS1 . X"
    earned = {}
    for reward in ("full", "exits", "done"):
        env = make_env("lle/custom", map=world, num_envs=2, reward=reward)
        td, earned[reward] = env.reset(), []
        for joint in ((EAST, EAST), (EAST, STAY), (STAY, EAST)):
            td = step(env, td, *joint)
            earned[reward].append(td[REWARD][1, 0].item())
        assert td["success"].all() and td["terminated"].all()
        assert td[ACTION_MASK][0].int().tolist() == [[0, 0, 0, 0, 1]] * 2
        assert env.best_return == sum(earned[reward])
    assert earned == {"full": [1, 1, 2], "exits": [0, 1, 2], "done": [0, 0, 1]}


def test_an_illegal_action_is_to_stay():
    env = make_env("lle/custom", map=BLOCKED)
    td = env.reset()
    assert torch.equal(step(env, td, WEST, NORTH)[STATE], td[STATE])


def test_positions_are_set():
    env = make_env("lle/custom", map="S0 G . X\nS1 . G X", num_envs=2)
    td = env.set_state(
        torch.tensor([[[0, 2], [1, 1]], [[1, 0], [0, 0]]]), torch.tensor([[True, False], [False, False]])
    )
    torch.testing.assert_close(td[STATE], torch.tensor([[0, 0.5, 0.5, 0.25, 1, 0, 1, 1], [0.5, 0, 0, 0, 0, 0, 1, 1]]))
    td = step(env, td, EAST, EAST)  # the first comes to an exit, the second to a gem; in the other world the second too
    assert td[REWARD][:, 0].flatten().tolist() == [2, 1]
    with pytest.raises(ValueError):
        env.set_state(torch.zeros(2, 2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.bool))


GAMES = [
    ("lle/level6", {}),
    ("lle/level5", {"sight": 5}),
    ("lle/mutual-1", {"sight": 3, "gems": 2}),
    ("lle/one_sided-0", {"agents": 3}),
    *(pytest.param(f"lle/level{number}", {"sight": 7}, marks=pytest.mark.thorough) for number in range(1, 7)),
    *(pytest.param(f"lle/mutual-{seed}", {"size": 6}, marks=pytest.mark.thorough) for seed in range(10, 16)),
]


@pytest.mark.parametrize(("task", "options"), GAMES)
def test_a_thousand_steps_are_the_package_s(task, options):
    env = make_env(task, num_envs=4, **options)
    seen = f"partial{env.sight}x{env.sight}" if env.sight else "flattened"
    theirs = [lle.LLE.from_str(env.world).obs_type(seen).state_type("normalized-state").build() for _ in range(4)]
    for each in theirs:
        each.reset()
    torch.manual_seed(0)
    td, ends = env.reset(), 0
    for _ in range(250):
        result, td = env.step_and_maybe_reset(env.rand_action(td))
        after = result["next"]
        for index, each in enumerate(theirs):
            told = each.step(result[ACTION][index].tolist())
            assert np.array_equal(after[OBSERVATION][index].numpy(), told.obs.data.reshape(each.n_agents, -1))
            assert np.array_equal(after[ACTION_MASK][index].numpy(), told.obs.available_actions)
            np.testing.assert_allclose(after[STATE][index].numpy(), told.state.data, rtol=1e-6)
            assert (after[REWARD][index] == float(told.reward[0])).all()
            assert after["terminated"][index].item() == told.done
            assert after["success"][index].item() == (each.n_arrived == each.n_agents)
            ends += int(after["done"][index])
            if after["done"][index]:
                each.reset()
    assert ends > 5


def test_what_is_forgotten_is_asked_of_the_package_again(monkeypatch):
    def play():
        env = make_env("lle/mutual-0", num_envs=6)
        torch.manual_seed(3)
        return env, env.rollout(60, break_when_any_done=False)

    _, expected = play()
    monkeypatch.setattr(laser_grid, "_REMEMBERED", 7)
    env, found = play()
    assert (found == expected).all() and len(env._following) <= 7


def test_one_start_whatever_the_seed():
    first, other = (make_env("lle/none-0", num_envs=3, seed=seed).reset() for seed in (0, 1))
    assert torch.equal(first[OBSERVATION], other[OBSERVATION])
    assert torch.equal(first[STATE][0], first[STATE][2])


def test_worlds_by_their_names():
    assert set(CORE_WORLDS) < set(list_tasks()) and {f"lle/level{n}" for n in range(1, 7)} < set(list_tasks())
    env = make_env("lle/mutual-1234567", size=6)
    assert env.world == generate_world("mutual", 1234567, size=6).world and env.max_episode_steps == 36
    assert make_env("lle/level4").max_episode_steps == 78
    for name in ("lle/mutual-", "lle/mutual-01", "lle/both-1", "lle/level7", "lle/none--1"):
        with pytest.raises(ValueError, match=f"Unknown task '{name}'"):
            make_env(name)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            "lle/custom",
            {"map": "S0 . ?"},
            "The map of the world cannot be read: .*; its tiles are those of the package lle",
        ),
        ("lle/custom", {"map": "S0 . S1"}, "cannot be read: Not enough exit tiles: 2 starts, 0 exits"),
        ("lle/custom", {"map": 3}, "A world is given by its map"),
        ("lle/mutual-0", {"map": "S0 X"}, "has no option 'map'; it has"),
        ("lle/none-0", {"lasers": 3}, "at most one laser of each agent's colour: lasers=3, agents=2"),
        ("lle/mutual-0", {"lasers": 1}, "block their lasers for each other; take lasers=2"),
        ("lle/none-0", {"size": 3}, "size must be at least 4"),
        ("lle/none-0", {"reward": "gems"}, "reward must be 'full', 'exits' or 'done'"),
        ("lle/level1", {"sight": 4}, "sight must be 3, 5 or 7"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_sentence(task, options, message):
    with pytest.raises(ValueError, match=message):
        make_env(task, **options)


def test_a_map_that_draws_its_starts_is_refused():
    world = "width = 3\nheight = 2\nexits = [{ col = 2 }]\n[[agents]]\nstarts = [{ col = 0 }]\n"
    with pytest.raises(ValueError, match="draws its agents' starts by chance; give each agent one start"):
        make_env("lle/custom", map=world)


def test_without_the_package_the_extra_is_named(monkeypatch):
    missing = factory.FAMILIES["lle"]._replace(library="no_such_library")
    monkeypatch.setitem(factory.FAMILIES, "lle", missing)
    with pytest.raises(ModuleNotFoundError, match=r"'lle/mutual-0' needs .* pip install '.*\[coordination\]'\.$"):
        make_env("lle/mutual-0")
    assert list_tasks()["lle/*"] == missing.install


@pytest.mark.parametrize("task", some_of([*CORE_WORLDS, "lle/level6"], every=3))
def test_a_partial_reset_starts_anew_and_leaves_the_rest(task):
    env = make_env(task, num_envs=5)
    start = env.reset().clone()
    td = start
    torch.manual_seed(1)
    for _ in range(2):
        td = env.step(env.rand_action(td))["next"]
    before = td.clone()
    reset = torch.tensor([[True], [False], [False], [True], [False]])
    after = env.reset(td.exclude("agents.reward").set("_reset", reset))
    kept, anew = ~reset.flatten(), reset.flatten()
    for key in (OBSERVATION, STATE, ACTION_MASK):
        assert torch.equal(after[key][kept], before[key][kept]) and torch.equal(after[key][anew], start[key][anew])
    assert after["step_count"].flatten().tolist() == [0, 2, 2, 0, 2]
