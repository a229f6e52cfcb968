"""overcooked/*: games beside the package, layouts, rewards, starts, and data of them."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from selection import some_of

import torchrl_marl_offline as marl
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.data.quality.card import describe
from torchrl_marl_offline.envs import OvercookedController, list_tasks, make_env
from torchrl_marl_offline.envs.overcooked import INTERACT, LAYERS, ONION, STAY
from torchrl_marl_offline.envs.overcooked_names import LAYOUTS
from torchrl_marl_offline.evaluation import make_simulator
from torchrl_marl_offline.recording import record_mixed_skill

NORTH, SOUTH, EAST, WEST = range(4)
needs_overcooked = pytest.mark.skipif(find_spec("overcooked") is None, reason="needs the package overcooked")


def kitchen(layout="cramped_room", **options):
    return make_env(f"overcooked/{layout}", seed=0, **options)


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("overcooked.mdp")


class Original:
    """A game of the package: its rules, without the planner, which writes into the package's folder."""

    def __init__(self, package, layout):
        self.rules = package.OvercookedGridworld.from_layout_name(layout)
        self.state, self.actions = self.rules.get_standard_start_state(), package.Action.ALL_ACTIONS

    def step(self, joint):
        self.state, infos = self.rules.get_state_transition(self.state, [self.actions[each] for each in joint])
        return sum(infos["sparse_reward_by_agent"]), sum(infos["shaped_reward_by_agent"])

    def observation(self):
        """Return the layers of both cooks, ``[2, 25 C]``, and whether time is short."""
        seen = torch.stack([torch.as_tensor(each) for each in self.rules.lossless_state_encoding(self.state)])
        seen = seen.permute(0, 3, 1, 2).flatten(2)
        return seen[:, :LAYERS].flatten(1).float(), float(seen[0, LAYERS, 0])


def compare(package, layout, steps, *, good, num_envs=5):
    """Play games of a layout beside the package's; returns what all earned: for delivered soups, and shaped rewards."""
    env = kitchen(layout, max_steps=1200, shaping=0.25, num_envs=num_envs)
    games = [Original(package, layout) for _ in range(num_envs)]
    team = OvercookedController(env, "team", epsilon=0.15, seed=1)
    generator, td, earned = torch.Generator().manual_seed(2), env.reset(), torch.zeros(2)
    for step in range(steps):
        if good:
            joint = team(td)[ACTION]
        else:  # to interact is as likely as to move
            joint = torch.randint(0, 9, (num_envs, 2), generator=generator).clamp_max(INTERACT)
        td = env.step(td.set(ACTION, joint))["next"]
        assert torch.equal(td[STATE], td[OBSERVATION][:, 0])
        assert not td["done"].any()
        for index, game in enumerate(games):
            paid = torch.tensor(game.step(joint[index].tolist()))
            earned += paid
            layers, urgent = game.observation()
            assert torch.equal(td[OBSERVATION][index, :, :-2], layers)
            expected = torch.tensor([(step + 1) / 1200, urgent])
            torch.testing.assert_close(td[OBSERVATION][index, :, -2:], expected.expand(2, 2), rtol=1e-6, atol=0)
            reward = (paid[0] + 0.25 * paid[1]).expand(2)
            torch.testing.assert_close(td[REWARD][index].flatten(), reward, rtol=1e-6, atol=0)
    return earned.tolist()


@pytest.mark.parametrize("layout", ["cramped_room", "forced_coordination", "schelling_s"])
def test_a_thousand_random_steps_are_the_packages(package, layout):
    assert compare(package, layout, 200, good=False)[1] > 0


def test_a_whole_episode_is_the_packages(package):
    compare(package, "simple_o", 400, good=False, num_envs=1)


@pytest.mark.parametrize("layout", ["cramped_room", "forced_coordination_tomato", "mdp_test"])
def test_games_of_a_good_team_are_the_packages(package, layout):
    delivered, shaped = compare(package, layout, 120, good=True)
    assert delivered > 0
    assert shaped > 0


@needs_overcooked
@pytest.mark.parametrize("layout", some_of(LAYOUTS, every=7))
def test_all_layouts_are_the_packages(package, layout):
    compare(package, layout, 60, good=True, num_envs=2)


def test_games_of_several_layouts_at_once_keep_their_own_soups(package):
    """The package keeps what soups are worth for all kitchens of a process at once."""
    first = kitchen("cramped_room_o_3orders")
    kitchen("simple_tomato")
    assert kitchen("cramped_room_o_3orders").kitchen == first.kitchen
    assert set(first.kitchen.values) == {0, 20, 9, 4}


def test_the_tasks_are_the_packages_layouts_for_two_with_finite_rewards(package):
    from overcooked.static import LAYOUTS_DIR

    usable = []
    for file in os.listdir(LAYOUTS_DIR):
        layout = package.OvercookedGridworld.from_layout_name(file.removesuffix(".layout"))
        if layout.num_players == 2 and layout.order_bonus < float("inf"):
            usable.append(layout.layout_name)
    assert sorted(usable) == list(LAYOUTS) and len(LAYOUTS) == 44
    tasks = list_tasks()
    assert all(tasks[f"overcooked/{name}"] == "installed" for name in LAYOUTS)


@needs_overcooked
def test_names_and_options_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"Unknown task 'overcooked/cramped_rom'; close names are overcooked/cramped_"):
        make_env("overcooked/cramped_rom")
    with pytest.raises(ValueError, match="Unknown task 'overcooked/tutorial_3'; close names are overcooked/tutorial_"):
        make_env("overcooked/tutorial_3")
    with pytest.raises(ValueError, match=r"has no option 'horizon'; it has layout, max_steps, shaping, random_pos"):
        kitchen(horizon=100)
    with pytest.raises(ValueError, match="shaping must be at least 0, got -1"):
        kitchen(shaping=-1.0)
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        kitchen(max_steps=0)


@pytest.mark.skipif(find_spec("overcooked") is not None, reason="overcooked is installed")
def test_without_the_package_one_sentence_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match=r"needs the library 'overcooked'.*\[coordination\]"):
        kitchen()
    assert "coordination" in list_tasks()["overcooked/*"]


@needs_overcooked
def test_a_soup_by_hand():
    """The first cook of the cramped room brings three onions, cooks, and delivers; the other stays."""
    env = kitchen(shaping=1.0)
    td, paid = env.reset(), []
    onion = [WEST, NORTH, WEST, INTERACT, EAST, NORTH, INTERACT]
    again = [WEST, INTERACT, EAST, NORTH, INTERACT]
    dish = [SOUTH, SOUTH, WEST, SOUTH, INTERACT]
    back = [EAST, NORTH, NORTH]
    serve = [INTERACT, SOUTH, EAST, SOUTH, INTERACT]
    plan = [*onion, *again, *again, INTERACT, *dish, *back, *[STAY] * 11, *serve]
    for own in plan:
        td = env.step(td.set(ACTION, torch.tensor([[own, STAY]])))["next"]
        paid.append(td[REWARD][0, 0, 0].item())
    assert [each for each in paid if each] == [3, 3, 3, 3, 5, 20]
    assert paid[-1] == 20
    assert not td["done"].any()
    assert env._game["held"].tolist() == [[0, 0]]


@needs_overcooked
def test_shaped_rewards_are_left_out_unless_asked_for():
    shaped, plain = kitchen(shaping=1.0, num_envs=20), kitchen(num_envs=20)
    torch.manual_seed(0)
    play = shaped.rollout(100, break_when_any_done=False)
    td = plain.reset()
    for step in range(100):
        td = plain.step(td.set(ACTION, play[ACTION][:, step]))["next"]
        assert torch.equal(td[STATE], play["next", STATE][:, step])
        assert not td[REWARD].any()
    assert play["next", *REWARD].sum() > 0


@needs_overcooked
def test_starts():
    fixed, drawn = kitchen(num_envs=50), kitchen(num_envs=500, random_positions=True)
    assert (fixed.reset()[STATE] == fixed.reset()[STATE][0]).all()
    first, second = drawn.reset()[STATE], drawn.reset()[STATE]
    assert not torch.equal(first, second)
    cells = drawn._game["cell"]
    assert (cells[:, 0] != cells[:, 1]).all()
    assert drawn._floor[cells].all()
    assert len({tuple(pair) for pair in cells.tolist()}) == 6 * 5
    held = kitchen("tutorial_1")
    assert held._game == {}
    assert held.reset()[STATE][:, :-2].sum() > 0


@needs_overcooked
def test_the_time_limit_is_the_only_end_and_a_truncation():
    data = kitchen(num_envs=2, max_steps=5).rollout(11, break_when_any_done=False)["next"]
    assert data["truncated"].squeeze(-1).int().tolist() == [[0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]] * 2
    assert not data["terminated"].any()
    assert data[STATE][0, :5, -2].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@needs_overcooked
def test_a_picture():
    env = kitchen()
    env.rollout(5, OvercookedController(env, epsilon=0.0, seed=0))
    before = env.render(size=64)
    env._game["held"][:] = ONION
    assert before.dtype.name == "uint8"
    assert (before != env.render(size=64)).any()


@needs_overcooked
def test_recorded_described_trained_and_evaluated(tmp_path):
    options = {"max_steps": 60, "shaping": 1.0}
    data = record_mixed_skill("overcooked/cramped_room", tmp_path, episodes=20, task_options=options)
    assert data.metadata["behaviour"] == "team with epsilon 0.1, alone, random, shares [0.4, 0.3, 0.3]"
    assert data.episode_returns().max() > data.episode_returns().min()
    card = str(describe(data))
    assert "overcooked/cramped_room" in card and "20 episodes" in card
    simulator = make_simulator(data, num_envs=2)
    assert (simulator.max_episode_steps, simulator.shaping) == (60, 1.0)
    for algorithm in ("recipe", "cloning"):
        loss = marl.make_loss(data.spec, algorithm=algorithm, hidden=(16,))
        marl.Trainer(loss, data.replay_buffer(batch_size=32, seed=0), steps=3, progress=False).train()
        assert marl.evaluate(loss.actor_network, simulator, episodes=2, seed=1).mean >= 0
