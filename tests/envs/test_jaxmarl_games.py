"""jaxmarl/*: JaxMARL's games through our environment, against JaxMARL stepped by hand with the same keys."""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

import torchrl_marl_offline as marl
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, REWARD, STATE, TaskSpec
from torchrl_marl_offline.envs import jax_games, jaxmarl_games, list_tasks, make_env
from torchrl_marl_offline.envs.jaxmarl_games import GAMES

needs_jaxmarl = pytest.mark.skipif(find_spec("jaxmarl") is None, reason="needs the extra smax (JaxMARL)")
pytestmark = pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")  # storm's

SPECS = {
    "overcooked_v2": (TaskSpec(2, 600, 1200, 6, discrete=True, task="jaxmarl/overcooked_v2"), 400),
    "switch_riddle": (TaskSpec(3, 2, 6, 3, discrete=True, task="jaxmarl/switch_riddle"), 6),
    "coin_game": (TaskSpec(2, 36, 72, 5, discrete=True, task="jaxmarl/coin_game"), 10),
    "storm": (TaskSpec(2, 409, 818, 5, discrete=True, task="jaxmarl/storm"), 152),
    "hanabi": (TaskSpec(2, 658, 1316, 21, discrete=True, has_action_mask=True, task="jaxmarl/hanabi"), 100),
}


@pytest.fixture(autouse=True)
def _quick_compiler(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0"))


def make(name, num_envs=3, seed=0, **options):
    return make_env(f"jaxmarl/{name}", num_envs=num_envs, seed=seed, **options)


@pytest.mark.skipif(find_spec("jaxmarl") is not None, reason="JaxMARL is installed")
def test_without_the_extra_one_sentence_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match=r"'jaxmarl/storm' needs the library 'jaxmarl'.*\[smax\]"):
        make("storm")
    assert "smax" in list_tasks()["jaxmarl/*"]


def by_hand(name):
    """Return a game of JaxMARL whose own time limit is out of reach, and its functions, each compiled once."""
    import jax
    from jaxmarl import make as made

    far = {"num_inner_steps": 10**6, "num_outer_steps": 1}
    options = {"coin_game": far, "storm": far, "overcooked_v2": {"max_steps": 10**6}}
    game = made(name, **options.get(name, {}))
    if name == "switch_riddle":
        game.max_steps = 10**6
    legal = jax.jit(game.get_legal_moves) if name == "hanabi" else None
    return game, jax.jit(game.reset), jax.jit(game.step_env), legal


class ByHand:
    """One game, for the keys that environment ``index`` has."""

    def __init__(self, played, index, seed):
        import jax

        self.game, self.begin, self.step_env, self.legal_moves = played
        self.random = jax.random
        self.key = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(seed), 0), index)
        self.episode = 0

    def reset(self):
        self.episode += 1
        start, self.chance = self.random.split(self.random.fold_in(self.key, self.episode))
        self.seen, self.state = self.begin(start)
        self.step_count = 0

    def step(self, joint):
        actions = {agent: np.int32(own) for agent, own in zip(self.game.agents, joint)}
        key = self.random.fold_in(self.chance, self.step_count)
        self.seen, self.state, rewards, dones, _ = self.step_env(key, self.state, actions)
        self.step_count += 1
        return [float(rewards[agent]) for agent in self.game.agents], bool(dones["__all__"])

    def observation(self):
        """Return ``[n, o]``."""
        n = len(self.game.agents)
        if "inventory" in self.seen:
            grid, table = (np.array(self.seen[key], np.float32) for key in ("observations", "inventory"))
            shown = table[3:].reshape(-1)
            return torch.tensor(np.stack([np.concatenate([grid[i].ravel(), table[:, i], shown]) for i in range(n)]))
        return torch.tensor(np.stack([np.array(self.seen[agent], np.float32).ravel() for agent in self.game.agents]))

    def legal(self):
        moves = self.legal_moves(self.state)
        return torch.tensor(np.stack([np.array(moves[agent]) for agent in self.game.agents])).bool()


def compare(name, steps):
    """Play five games at random across ends beside JaxMARL's: each next observation, the last ones too, before resets.

    Returns how many games ended, and whether anything was paid.
    """
    limit = {"overcooked_v2": 90, "storm": 15}.get(name, GAMES[name].limit)
    env = make(name, 5, seed=3, **({} if limit is None else {"max_steps": limit}))
    played = by_hand(name)
    games = [ByHand(played, index, 3) for index in range(5)]
    limit, td, ends, paid = env.max_episode_steps, env.reset(), 0, 0.0
    for game in games:
        game.reset()
    torch.manual_seed(0)
    for _ in range(steps):
        step, td = env.step_and_maybe_reset(env.rand_action(td))
        for index, game in enumerate(games):
            now = step["next"][index]
            rewards, terminated = game.step(step[ACTION][index].tolist())
            assert now[REWARD].flatten().tolist() == pytest.approx(rewards)
            assert torch.equal(now[OBSERVATION], game.observation())
            assert torch.equal(now[STATE], game.observation().flatten())
            assert now["terminated"].item() == terminated
            assert now["truncated"].item() == (game.step_count == limit and not terminated)
            if name == "hanabi":
                assert torch.equal(now[ACTION_MASK], game.legal())
            paid += sum(map(abs, rewards))
            if now["done"].item():
                ends += 1
                game.reset()
                assert torch.equal(td[OBSERVATION][index], game.observation())
    return ends, paid > 0


# in every step JaxMARL's storm draws from a permutation of 43,758 starts, which takes a CPU 30 ms
@needs_jaxmarl
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough) if name == "storm" else name for name in GAMES]
)
def test_a_thousand_random_steps_are_jaxmarls(name):
    ends, paid = compare(name, 200)
    assert ends >= 5
    assert paid or name in ("overcooked_v2", "storm")


@needs_jaxmarl
def test_a_hundred_random_steps_of_storm_are_jaxmarls():
    assert compare("storm", 20)[0] == 5


@needs_jaxmarl
@pytest.mark.parametrize("name", GAMES)
def test_specs(name):
    env = make(name)
    spec, limit = SPECS[name]
    assert (TaskSpec.from_env(env), env.max_episode_steps) == (spec, limit)
    assert env.own_rewards == (name in ("coin_game", "storm"))
    assert list_tasks()[f"jaxmarl/{name}"] == "installed"
    if name == "switch_riddle":
        check_env_specs(env)


@needs_jaxmarl
def test_the_time_limit_is_a_truncation_and_telling_in_the_last_step_is_none():
    env = make("switch_riddle")
    td = env.reset()
    for step in range(6):
        action = torch.zeros(3, 3, dtype=torch.int64)
        if step == 5:
            action[0] = 2  # whoever is in the room tells
        td = env.step(td.set(ACTION, action))["next"]
        assert td["done"].flatten().tolist() == [step == 5] * 3
    assert td["terminated"].flatten().tolist() == [True, False, False]
    assert td["truncated"].flatten().tolist() == [False, True, True]
    assert td[REWARD][0].abs().sum() == 3
    longer = make("switch_riddle", max_steps=9).rollout(20, lambda td: td.set(ACTION, torch.zeros(3, 3).long()))
    assert longer.shape == (3, 9)


@needs_jaxmarl
def test_seeds_and_numbers_of_environments():
    def play(num_envs, seed):
        env, generator = make("coin_game", num_envs, seed), torch.Generator().manual_seed(0)
        td, seen = env.reset(), []
        for _ in range(25):
            action = torch.randint(0, 5, (1, 2), generator=generator).expand(num_envs, 2)
            step, td = env.step_and_maybe_reset(td.set(ACTION, action))
            seen.append(step["next"].clone())
        return torch.stack(seen, 1)

    first, same, more, other = play(3, 7), play(3, 7), play(5, 7), play(3, 8)
    for key in (OBSERVATION, REWARD, "done"):
        assert torch.equal(first[key], same[key])
        assert torch.equal(first[key], more[key][:3])
    assert not torch.equal(first[OBSERVATION], other[OBSERVATION])
    assert not torch.equal(first[OBSERVATION][0], first[OBSERVATION][1])


@needs_jaxmarl
def test_agents_with_fewer_observations_and_actions_are_padded_and_masked(monkeypatch):
    name = "MPE_simple_speaker_listener_v4"
    monkeypatch.setitem(GAMES, name, jaxmarl_games._Kind("SimpleSpeakerListenerMPE"))
    env = make(name)
    assert env._rules.observation_sizes == [3, 11] and env._rules.numbers == [3, 5]
    data = env.rollout(30, break_when_any_done=False)
    assert data[ACTION_MASK][0, 0].int().tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert not data[OBSERVATION][:, :, 0, 3:].any()
    assert data[OBSERVATION][:, :, 0, :3].any()
    assert int(data[ACTION][..., 0].max()) == 2


@needs_jaxmarl
def test_shaped_rewards_are_each_cooks_own():
    plain, shaped = make("overcooked_v2", 20), make("overcooked_v2", 20, shaping=0.5)
    torch.manual_seed(0)
    play = shaped.rollout(120, break_when_any_done=False)
    td = plain.reset()
    for step in range(120):
        td = plain.step(td.set(ACTION, play[ACTION][:, step]))["next"]
        assert torch.equal(td[STATE], play["next", STATE][:, step])
    reward = play["next", *REWARD]
    assert (reward > 0).any()
    assert (reward[..., 0, 0] != reward[..., 1, 0]).any()


@needs_jaxmarl
def test_options():
    assert make("switch_riddle", num_agents=4).task_spec.n_agents == 4
    assert make("overcooked_v2", layout="coord_ring").task_spec.observation_size == 5 * 5 * 30
    table = make("coin_game", payoff_matrix=[[1, 1, -3], [1, 1, -3]])
    assert table._rules is make("coin_game", payoff_matrix=((1, 1, -3), (1, 1, -3)))._rules
    assert not make("coin_game", shared_rewards=True).own_rewards
    for name, options, message in (
        ("coin_game", {"num_outer_steps": 2}, "jaxmarl/coin_game has no option 'num_outer_steps'; it has max_steps,"),
        ("storm", {"agents": 3}, "jaxmarl/storm has no option 'agents'; it has .* num_agents"),
        ("hanabi", {"shaping": 1.0}, "jaxmarl/hanabi has no shaped rewards; leave shaping out"),
        (
            "overcooked_v2",
            {"layout": "kitchen"},
            "JaxMARL does not make jaxmarl/overcooked_v2.*Invalid layout: kitchen",
        ),
        ("switch_riddle", {"num_agents": 2}, "JaxMARL does not make jaxmarl/switch_riddle.*minimum number of agents"),
        ("switch_riddel", {}, "Unknown task 'jaxmarl/switch_riddel'; close names are jaxmarl/switch_riddle"),
    ):
        with pytest.raises(ValueError, match=message):
            make(name, **options)
    with pytest.raises(RuntimeError, match=r"JaxMARL on 'cuda:77' needs a JAX that sees this device: pip install"):
        jax_games.jax_device(torch.device("cuda:77"))


@needs_jaxmarl
def test_recorded_trained_and_evaluated():
    env = make("switch_riddle", 16)
    data = marl.collect(env, episodes=32, seed=0)
    assert data.spec.task == "jaxmarl/switch_riddle"
    for algorithm in ("recipe", "cloning"):
        loss = marl.make_loss(data.spec, algorithm=algorithm, hidden=(16,))
        marl.Trainer(loss, data.replay_buffer(batch_size=16, seed=0), steps=3, progress=False).train()
        assert -1 <= marl.evaluate(loss.actor_network, env, episodes=16, seed=1).mean <= 1
