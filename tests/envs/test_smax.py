"""smax/*: JaxMARL's battles through our environment, against JaxMARL itself."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from layout_checks import assert_battle_layout
from torchrl.envs import check_env_specs

from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TaskSpec,
)
from torchrl_marl_offline.envs import jax_games, list_tasks, make_env
from torchrl_marl_offline.envs.smax import SCENARIOS

STOP, FIRST_ATTACK = 4, 5
ROOT = Path(__file__).parents[2]

needs_jaxmarl = pytest.mark.skipif(find_spec("jaxmarl") is None, reason="needs the extra smax (JaxMARL)")


@pytest.fixture(autouse=True)
def _quick_compiler(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0"))


def make(num_envs=3, seed=0, **options):
    return make_env("smax/3m", num_envs=num_envs, seed=seed, **options)


def attack(td):
    """The first enemy in reach, or else east, where the enemy starts."""
    mask = td[ACTION_MASK]
    reach = mask[..., FIRST_ATTACK:]
    action = torch.where(reach.any(-1), FIRST_ATTACK + reach.int().argmax(-1), 1)
    return torch.where(mask.gather(-1, action.unsqueeze(-1)).squeeze(-1), action, STOP)


def roll(env, steps, policy=attack):
    """Return ``[B, steps]`` with episodes begun anew, under a policy that draws nothing."""
    return env.rollout(steps, lambda td: td.set(ACTION, policy(td)), break_when_any_done=False)


@pytest.mark.skipif(find_spec("jaxmarl") is not None, reason="JaxMARL is installed")
def test_without_the_extra_one_sentence_says_what_to_install():
    with pytest.raises(ModuleNotFoundError) as error:
        make_env("smax/2s3z")
    message = str(error.value)
    assert "'smax/2s3z' needs the library 'jaxmarl'" in message
    assert "torchrl-marl-offline[smax]" in message
    assert message.count(". ") == 0
    assert "smax" in list_tasks()["smax/*"]


def test_the_constraints_differ_from_the_others_only_where_they_must():
    def pins(name):
        lines = (ROOT / name).read_text().splitlines()
        return dict(line.split("==") for line in lines if "==" in line)

    main, smax = pins("constraints.txt"), pins("constraints-smax.txt")
    assert {name for name in main if smax.get(name, main[name]) != main[name]} == {"gymnasium"}
    assert {"jaxmarl", "jax", "jaxlib", "torch", "torchrl", "tensordict", "numpy"} <= set(smax)


@needs_jaxmarl
def test_the_scenarios_are_jaxmarls():
    make(1)
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO

    assert set(SCENARIOS) == set(MAP_NAME_TO_SCENARIO)
    tasks = list_tasks()
    assert all(tasks[f"smax/{name}"] == "installed" for name in SCENARIOS)


@needs_jaxmarl
def test_specs_layout_and_a_thousand_random_steps():
    streams = sys.stdout, sys.stderr
    env = make(3)
    assert (sys.stdout, sys.stderr) == streams  # which importing JaxMARL replaces
    check_env_specs(env)
    assert TaskSpec.from_env(env) == TaskSpec(3, 75, 72, 8, discrete=True, has_action_mask=True, task="smax/3m")
    assert (env.batch_size, env.max_episode_steps, env.reference_returns) == ((3,), 100, None)
    data = env.rollout(334, break_when_any_done=False)
    assert data.shape == (3, 334)
    assert_battle_layout(data, env.task_spec)
    for td in (data, data["next"]):
        assert td[ACTION_MASK][..., STOP].all()
        dead = ~td[AGENT_MASK]
        assert (td[ACTION_MASK][dead].sum(-1) == 1).all()
        assert (td[OBSERVATION][dead] == 0).all()
    assert data["next", "terminated"].any()
    assert dead.any()


@needs_jaxmarl
def test_it_is_jaxmarls_game():
    """Fifty steps from the same start, with the same actions and keys, played by JaxMARL one battle at a time."""
    env = make(3)
    td = env.reset()
    import jax
    import numpy as np

    game, battles = env._rules.game, env._games
    states = [jax.tree.map(lambda leaf, i=i: leaf[i], battles.state) for i in range(3)]
    step = jax.jit(game.step_env)
    for t in range(50):
        td = env.step(td.set(ACTION, attack(td)))
        for i in range(3):
            actions = {agent: np.int32(td[ACTION][i, j]) for j, agent in enumerate(game.agents)}
            key = jax.random.fold_in(battles.key[i], t)
            seen, states[i], rewards, dones, _ = step(key, states[i], actions)
            legal, now = game.get_avail_actions(states[i]), td["next"]
            for j, agent in enumerate(game.agents):
                assert torch.equal(now[ACTION_MASK][i, j], torch.tensor(np.array(legal[agent])).bool())
                assert now[AGENT_MASK][i, j].item() == (not dones[agent])
                torch.testing.assert_close(now[OBSERVATION][i, j], torch.tensor(np.array(seen[agent])))
                torch.testing.assert_close(now[REWARD][i, j, 0], torch.tensor(np.array(rewards[agent])))
            torch.testing.assert_close(now[STATE][i], torch.tensor(np.array(seen["world_state"])))
            assert now["terminated"][i].item() == bool(dones["__all__"])
        td = env.step_mdp(td)
        if td["done"].any():
            break
    assert td["done"].any()
    assert t > 5


@needs_jaxmarl
def test_victory_defeat_and_the_true_next_observation():
    env = make(3, seed=1)
    end = roll(env, 150)
    healths = end["next", STATE][..., : 6 * 10].unflatten(-1, (6, 10))[..., 0]  # three allies, three enemies
    allies, enemies = (healths[..., :3] > 0).any(-1, True), (healths[..., 3:] > 0).any(-1, True)
    assert torch.equal(end["next", "terminated"], ~(allies & enemies))
    assert torch.equal(end["next", SUCCESS], allies & ~enemies)
    for key in (SUCCESS, "terminated"):
        assert end["next", key].any()
        assert not end["next", key].all()
    assert (end["next", "terminated"] & ~end["next", SUCCESS]).any()
    won = end["next", SUCCESS].squeeze(-1)
    assert (end["next", *REWARD][won] > 1).all()
    for i, t in end["next", "done"].squeeze(-1)[:, :-1].nonzero().tolist():
        assert (healths[i, t + 1] > 0).all()  # the next battle has begun with everybody
        assert (end[STATE][i, t + 1, : 6 * 10].view(6, 10)[:, 0] == 1).all()
        assert end[AGENT_MASK][i, t + 1].all()
        assert end["next", "step_count"][i, t + 1] == 1


@needs_jaxmarl
def test_the_time_limit_is_truncated_only():
    env = make(3, max_steps=3)
    assert env.max_episode_steps == 3
    data = roll(env, 7)["next"]
    assert data["truncated"].squeeze(-1).int().tolist() == [[0, 0, 1, 0, 0, 1, 0]] * 3
    assert not data["terminated"].any()
    assert not data[SUCCESS].any()


@needs_jaxmarl
def test_partial_resets_from_outside_leave_the_neighbours():
    env, alone = make(3), make(3)
    td, alone_td = (each[:, -1]["next"].exclude(REWARD) for each in (roll(env, 9), roll(alone, 9)))
    before = td.clone()
    after = env.reset(td.set("_reset", torch.tensor([[False], [True], [False]])))
    for key in (OBSERVATION, STATE, "step_count", ACTION_MASK, AGENT_MASK):
        assert torch.equal(after[key][::2], before[key][::2])
    assert after["step_count"].flatten().tolist() == [9, 0, 9]
    assert not torch.equal(after[OBSERVATION][1], before[OBSERVATION][1])
    for _ in range(12):
        action = attack(alone_td)
        alone_td = alone.step(alone_td.set(ACTION, action))["next"].exclude(REWARD)
        after = env.step(after.set(ACTION, torch.stack([action[0], attack(after)[1], action[2]])))["next"]
        for key in (OBSERVATION, STATE, "terminated"):
            assert torch.equal(after[key][::2], alone_td[key][::2])


@needs_jaxmarl
def test_a_battle_that_is_begun_early_is_the_one_that_would_have_come_next():
    env, together = make(3), make(3)
    early = env.reset(env.reset().set("_reset", torch.tensor([[False], [True], [False]])))
    first, second = together.reset(), together.reset()
    assert torch.equal(early[STATE][1], second[STATE][1])
    assert torch.equal(early[STATE][::2], first[STATE][::2])
    assert not torch.equal(first[STATE], second[STATE])


@needs_jaxmarl
def test_seeds():
    first, same, other = (roll(make(3, seed=seed), 60) for seed in (7, 7, 8))
    assert (first == same).all()
    assert not torch.equal(first[STATE][:, 0], other[STATE][:, 0])
    assert not torch.equal(first[STATE][0, 0], first[STATE][1, 0])
    more = roll(make(5, seed=7), 60)
    assert first["next", "done"].any()
    for key in (OBSERVATION, STATE, ACTION, "done"):
        torch.testing.assert_close(more[:3][key], first[key], rtol=0, atol=1e-4)
    env = make(3, seed=8)
    env.reset()
    env.set_seed(7)
    state = torch.get_rng_state()
    assert torch.equal(env.reset()[STATE], first[STATE][:, 0])
    env.step(env.reset().set(ACTION, torch.full((3, 3), STOP)))
    assert torch.equal(torch.get_rng_state(), state)
    low, high = (make(3, seed=seed).reset()[STATE] for seed in (1, 1 + 2**32))
    assert not torch.equal(low, high)


@needs_jaxmarl
def test_what_was_recorded_stays_as_it_was():
    """Tensors share JAX's memory, and later steps must not write into it, nor writing into them change the game."""
    env, other = make(3), make(3)
    td, other_td = env.reset(), other.reset()
    kept, copies = [], []
    for _ in range(30):
        action = attack(td)
        step = env.step(td.set(ACTION, action))
        kept.append(step.clone(False))
        copies.append(step.clone())
        td = env.step_mdp(step)
        other_step = other.step(other_td.set(ACTION, action))
        other_td = other.step_mdp(other_step)
        assert torch.equal(other_step["next", STATE], step["next", STATE])
        other_step["next", STATE].zero_()
        other_step["next", OBSERVATION].fill_(7.0)
        other_td[ACTION_MASK].zero_()
        action.zero_()
        copies[-1][ACTION].zero_()
    assert all((one == copy).all() for one, copy in zip(kept, copies))


@needs_jaxmarl
def test_tensors_are_handed_over_without_a_copy():
    import jax.numpy as jnp

    array = jnp.arange(48, dtype=jnp.float32).reshape(2, 3, 8)
    tensor = jax_games.to_torch(array)
    assert tensor.data_ptr() == array.unsafe_buffer_pointer()
    assert tensor[1, 2, 7] == 47
    assert jax_games.to_torch(jnp.array([1, 0], jnp.uint8)).tolist() == [True, False]
    actions = torch.arange(6, dtype=torch.int32).view(2, 3)
    array = jax_games.to_jax(actions)
    assert array.unsafe_buffer_pointer() == actions.data_ptr()
    assert (array.dtype, array.tolist()) == ("int32", [[0, 1, 2], [3, 4, 5]])


@needs_jaxmarl
def test_a_picture():
    env = make(3)
    env.reset()
    picture = env.render(1, size=64)
    assert (picture.shape[0], picture.dtype.name) == (64, "uint8")
    assert picture.std() > 0


@needs_jaxmarl
def test_bad_options():
    with pytest.raises(ValueError, match="action_type must be 'discrete'"):
        make_env("smax/3m", action_type="continuous")
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        make(0)
    with pytest.raises(RuntimeError, match=r"A game of JaxMARL on 'cuda:77' needs a JAX that sees this device: pip in"):
        jax_games.jax_device(torch.device("cuda:77"))
