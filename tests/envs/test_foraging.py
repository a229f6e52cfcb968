"""games/foraging: steps by hand, starts, and games beside the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.envs.foraging import LEVELS, LOAD, foraging_options

STAY, NORTH, SOUTH, WEST, EAST = range(5)


def two_agents(**options):
    """Return 5 × 5 cells with food of level 3 at (2, 2) and of level 1 at (3, 4)."""
    env = make_env("games/foraging", grid=6, food=2, **options)
    food = torch.tensor([[[2, 2, 3], [3, 4, 1]]])
    return env, env.set_state(food, torch.tensor([[[2, 1, 1], [2, 3, 2]]]))


def step(env, td, *action):
    return env.step(td.set(ACTION, torch.tensor([action])))["next"]


def test_food_is_shared_by_the_levels_of_those_who_load():
    env, td = two_agents()
    assert td[STATE].tolist() == [[2, 2, 3, 3, 4, 1, 2, 1, 1, 2, 3, 2]]
    assert td[OBSERVATION].tolist() == [[[2, 2, 3, 3, 4, 1, 2, 1, 1, 2, 3, 2], [2, 2, 3, 3, 4, 1, 2, 3, 2, 2, 1, 1]]]
    assert td[ACTION_MASK].int().tolist() == [[[1, 1, 1, 1, 0, 1], [1, 1, 1, 0, 1, 1]]]
    alone = step(env, td, STAY, LOAD)
    assert not alone[REWARD].any() and alone[STATE].equal(td[STATE])
    both = step(env, alone, LOAD, LOAD)
    torch.testing.assert_close(both[REWARD].flatten(), torch.tensor([1 * 3 / (3 * 4), 2 * 3 / (3 * 4)]))
    assert both[STATE].tolist() == [[-1, -1, 0, 3, 4, 1, 2, 1, 1, 2, 3, 2]]
    assert both[OBSERVATION][0, 0].tolist() == [3, 4, 1, -1, -1, 0, 2, 1, 1, 2, 3, 2]
    there = step(env, both, EAST, SOUTH)
    last = step(env, there, NORTH, LOAD)
    assert last[REWARD].flatten().tolist() == [0, 0.25]
    assert last["terminated"].all() and last["success"].all() and not last["truncated"].any()


def test_penalty_and_the_team_s_reward():
    env, td = two_agents(penalty=0.125)
    td = step(env, td, LOAD, STAY)
    assert td[REWARD].flatten().tolist() == [-0.125, 0]
    env, td = two_agents(penalty=0.125, reward="team")
    assert step(env, td, LOAD, EAST)[REWARD].flatten().tolist() == [-0.125, -0.125]
    assert step(env, env.set_state(*split(td)), LOAD, LOAD)[REWARD].flatten().tolist() == [0.75, 0.75]


def split(td):
    """Return food and agents of the state of :func:`two_agents`."""
    return td[STATE].long().unflatten(-1, (2, 2, 3)).unbind(1)


def test_agents_that_aim_at_one_cell_stay_and_block_nobody():
    env = make_env("games/foraging", grid=6, agents=3)
    food = torch.tensor([[[4, 4, 1]]])
    td = env.set_state(food, torch.tensor([[[0, 0, 1], [0, 1, 1], [1, 2, 1]]]))
    td = step(env, td, EAST, WEST, STAY)  # two swap places
    assert td[STATE].view(4, 3)[1:, :2].tolist() == [[0, 1], [0, 0], [1, 2]]
    td = step(env, td, EAST, EAST, NORTH)  # the first and the third aim at (0, 2), the second at the first's cell
    assert td[STATE].view(4, 3)[1:, :2].tolist() == [[0, 1], [0, 1], [1, 2]]


def test_what_is_farther_than_sight_is_not_seen():
    env = make_env("games/foraging", grid=8, sight=2, food=2, agents=3)
    food = torch.tensor([[[1, 3, 2], [4, 5, 1]]])
    td = env.set_state(food, torch.tensor([[[0, 1, 1], [4, 3, 2], [6, 7, 1]]]))
    # near the edge agents are seen up to row and column 4, food up to 2 away
    assert td[OBSERVATION][0, 0].tolist() == [1, 3, 2, -1, -1, 0, 0, 1, 1, 4, 3, 2, -1, -1, 0]
    assert td[OBSERVATION][0, 1].tolist() == [2, 4, 1, -1, -1, 0, 2, 2, 2, -1, -1, 0, -1, -1, 0]
    assert td[OBSERVATION][0, 2].tolist() == [0, 0, 1, -1, -1, 0, 2, 2, 1, -1, -1, 0, -1, -1, 0]


@pytest.mark.parametrize("cooperative", [False, True])
def test_starts(cooperative):
    env = make_env("games/foraging", num_envs=4000, seed=0, grid=6, agents=4, food=3, cooperative=cooperative, sight=6)
    food, agents = env.reset()[STATE].long().unflatten(-1, (-1, 3)).split([3, 4], 1)
    cell = agents[..., 0] * 6 + agents[..., 1]
    assert all(len(set(row)) == 4 for row in cell[:500].tolist())
    chosen = torch.bincount(cell.flatten(), minlength=36)
    assert (chosen - 16000 / 36).abs().max() < 5 * (16000 / 36) ** 0.5
    assert agents[..., 2].unique().tolist() == list(range(1, LEVELS + 1))
    there = food[..., 2] > 0
    assert there[:, 0].all() and not there.all()  # four interior cells of six by six often have no room for three
    places = food[..., :2][there]
    assert places.min() == 1 and places.max() == 4
    between = (food[:, :, None, :2] - food[:, None, :, :2]).abs()
    apart = (between.amax(-1) > 1) & ~((between.amin(-1) == 0) & (between.sum(-1) <= 2))
    pairs = there[:, :, None] & there[:, None] & ~torch.eye(3, dtype=torch.bool)
    assert apart[pairs].all()
    on_food = (food[:, :, None, :2] == agents[:, None, :, :2]).all(-1) & there.unsqueeze(-1)
    assert not on_food.any()
    most = agents[..., 2].sort(-1).values[:, :3].sum(-1, keepdim=True).expand_as(there)
    levels = food[..., 2]
    if cooperative:
        assert levels[there].equal(most[there])
    else:
        for highest in range(3, 7):
            counts = torch.bincount(levels[there & (most == highest)], minlength=highest + 1)[1:]
            assert len(counts) == highest
            expected = counts.sum() / highest
            assert (counts - expected).abs().max() < 5 * expected**0.5


NAMES = [
    "Foraging-8x8-2p-1f-v3",
    "Foraging-5x5-2p-1f-coop-v3",
    "Foraging-10x10-3p-3f-v3",
    "Foraging-2s-8x8-2p-2f-coop-v3",
    "Foraging-2s-10x10-3p-3f-v3",
    "Foraging-2s-7x7-5p-4f-v3",
]


@pytest.fixture(scope="module")
def package():
    """Return the package's environment class; its registrations, thousands of them, are of no use here."""
    pytest.importorskip("lbforaging")
    return pytest.importorskip("lbforaging.foraging").ForagingEnv


def original(package, options, *, max_steps=50):
    """Make an environment as the package registers it."""
    return package(
        players=options["agents"],
        min_player_level=1,
        max_player_level=2,
        field_size=(options["grid"], options["grid"]),
        min_food_level=1,
        max_food_level=None,
        max_num_food=options["food"],
        sight=options["sight"] or options["grid"],
        max_episode_steps=max_steps,
        force_coop=options["cooperative"],
        grid_observation=False,
        penalty=options["penalty"],
    )


def state_of(game, food):
    """Return food and agents of the package's game as tensors."""
    there = [[int(row), int(column), int(game.field[row, column])] for row, column in zip(*game.field.nonzero())]
    agents = [[*map(int, player.position), int(player.level)] for player in game.players]
    return torch.tensor([there + [[-1, -1, 0]] * (food - len(there))]), torch.tensor([agents])


def useful(mask, generator):
    """Draw an action for each agent: mostly load where that is legal, so that agents meet at food."""
    action = generator.integers(0, LOAD + 1, size=len(mask))
    loads = mask[:, LOAD].numpy() & (generator.random(len(mask)) < 0.9)
    return np.where(loads, LOAD, action)


@pytest.mark.parametrize(("name", "penalty"), [(name, (0.0, 0.1)[number % 2]) for number, name in enumerate(NAMES)])
def test_a_thousand_steps_equal_the_package_s(package, name, penalty):
    options = foraging_options(name) | {"penalty": penalty}
    game, env = original(package, options), make_env("games/foraging", **options)
    generator = np.random.default_rng(0)
    ended, rewarded, number = True, 0, 0
    for _ in range(1000):
        if ended:
            seen, _ = game.reset(seed=number)
            number += 1
            td = env.set_state(*state_of(game, options["food"]))
        np.testing.assert_array_equal(td[OBSERVATION][0].numpy(), np.stack(seen))
        legal = [[action.value for action in game._valid_actions[player]] for player in game.players]
        assert [mask.nonzero().flatten().tolist() for mask in td[ACTION_MASK][0]] == legal
        action = useful(td[ACTION_MASK][0], generator)
        seen, reward, ended, _, _ = game.step(action.tolist())
        td = env.step(td.set(ACTION, torch.from_numpy(action).unsqueeze(0)))["next"]
        assert td[REWARD].flatten().tolist() == np.float32(reward).tolist()
        assert td["done"].item() == ended and td["success"].item() == (game.field.sum() == 0)
        rewarded += any(each > 0 for each in reward)
    assert number > 10
    assert rewarded > 2


def test_the_names_of_the_package(package):
    gymnasium = pytest.importorskip("gymnasium")
    names = [name for name in gymnasium.registry if name.startswith("Foraging-") and "grid" not in name]
    assert len(names) == 1920
    for name in names:
        registered, options = gymnasium.registry[name].kwargs, foraging_options(name)
        sight = options["sight"] or options["grid"]
        assert registered["field_size"] == (options["grid"], options["grid"])
        assert (registered["players"], registered["max_num_food"], registered["sight"]) == (
            options["agents"],
            options["food"],
            sight,
        )
        assert (registered["force_coop"], registered["penalty"]) == (options["cooperative"], options["penalty"])


def test_what_cannot_be_is_refused():
    for name in ("Foraging-8x9-2p-1f-v3", "Foraging-8x8-2p", "lbf", "", None, 3):
        with pytest.raises(ValueError, match=r"such as 'Foraging-2s-8x8-2p-2f-coop-v3'"):
            foraging_options(name)
    for options, sentence in (
        ({"grid": 2}, "grid must be"),
        ({"grid": 3, "agents": 9}, "9 agents leave no cell of 3 × 3 free"),
        ({"reward": "global"}, "reward must be"),
        ({"penalty": -1.0}, "penalty must be"),
        ({"sight": 0}, "sight must be"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make_env("games/foraging", **options)
    env = make_env("games/foraging", food=2)
    agents = torch.tensor([[[0, 0, 1], [7, 7, 1]]])
    with pytest.raises(ValueError, match="Two foods lie next to one cell"):
        env.set_state(torch.tensor([[[2, 2, 1], [2, 4, 1]]]), agents)
    with pytest.raises(
        ValueError, match=r"food must be whole numbers from -1 to \(7, 7, 6\), \[1, 2, 3\], .*, got \[1, 1, 3\]"
    ):
        env.set_state(torch.tensor([[[2, 2, 1]]]), agents)
