"""``mpe/simple_tag`` and ``mpe/simple_world`` against mpe2, hand-computed numbers and the published prey."""

from __future__ import annotations

import hashlib
import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env, mpe_prey
from torchrl_marl_offline.envs.mpe_physics import contact_forces

TASKS = {"mpe/simple_tag": 2, "mpe/simple_world": 5}  # -> landmarks
both = pytest.mark.parametrize("task", TASKS)


def _random_states(task, count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    position, velocity = (torch.rand(count, 4, 2, generator=generator, dtype=dtype) * 2 - 1 for _ in range(2))
    landmark = torch.rand(count, TASKS[task], 2, generator=generator, dtype=dtype) * 2 - 1
    action = torch.rand(count, 4, 2, generator=generator, dtype=dtype) * 2 - 1
    position[::3] *= 0.15  # deep contacts
    landmark[::3] *= 0.3
    return position, velocity * 1.3, landmark, action


def _mpe2_world(task):
    """Return mpe2's scenario and its world, made the published one: one prey, three leaders that say nothing."""
    if task == "mpe/simple_tag":
        scenario = import_module("mpe2.simple_tag.simple_tag").Scenario()
        return scenario, scenario.make_world(1, 3, 2)
    scenario = import_module("mpe2.simple_world_comm.simple_world_comm").Scenario()
    world = scenario.make_world(num_good_agents=1, num_adversaries=3)
    for agent in world.agents:
        agent.leader, agent.silent, agent.state.c = True, True, np.zeros(0)
    world.dim_c = 0
    return scenario, world


@both
@pytest.mark.parametrize("integration", ["velocity_first", "position_first"])
def test_one_step_equals_mpe2(task, integration):
    count = 200
    position, velocity, landmark, action = _random_states(task, count)
    settings = {"num_envs": count, "dtype": torch.float64, "integration": integration}
    env = make_env(task, opponent=lambda observation: action[:, 3], **settings)
    td = env.set_state(position, velocity, landmark)
    first = td[OBSERVATION].numpy()
    env.step(td.set(ACTION, action[:, :3]))
    scenario, world = _mpe2_world(task)
    contacts = capped = 0
    for i in range(count):
        for j, agent in enumerate(world.agents):
            agent.state.p_pos, agent.state.p_vel = position[i, j].numpy().copy(), velocity[i, j].numpy().copy()
            agent.action.u = agent.accel**2 * action[i, j].numpy()  # OMAR's code multiplies by accel twice, mpe2 once
        for j, mark in enumerate(world.landmarks):
            mark.state.p_pos, mark.state.p_vel = landmark[i, j].numpy().copy(), np.zeros(2)
        for j, agent in enumerate(world.agents[:3]):
            seen = scenario.observation(agent, world)
            np.testing.assert_allclose(first[i, j], seen, atol=1e-12)
        prey = env.observe({"position": position, "velocity": velocity, "landmark": landmark})[1][i]
        # mpe2 puts the velocities of other good agents, of whom there are none, behind the forests
        np.testing.assert_allclose(prey, scenario.observation(world.agents[3], world), atol=1e-12)
        free = 0.75 * velocity[i].numpy() + 0.1 * np.array([[9.0]] * 3 + [[16.0]]) * action[i].numpy()
        world.step()
        expected = np.stack([agent.state.p_vel for agent in world.agents])
        speed = np.linalg.norm(expected, axis=-1)
        capped += (np.abs(speed - [1, 1, 1, 1.3]) < 1e-9).sum()
        contacts += np.abs(expected - free)[speed < 0.99].max(initial=0) > 1e-3
        place = np.stack([agent.state.p_pos for agent in world.agents])
        if integration == "velocity_first":
            place = position[i].numpy() + 0.1 * expected
        np.testing.assert_allclose(env._game["velocity"][i], expected, atol=1e-9)
        np.testing.assert_allclose(env._game["position"][i], place, atol=1e-9)
    assert contacts > 50
    assert capped > 100


def test_contact_with_unequal_bodies_by_hand():
    # overlaps of 0.05 and 0.1: 100 * 0.05 = 5 to the left, 100 * 0.1 = 10 downwards; the third body is out of reach
    position = torch.tensor([[[0.0, 0.0]]], dtype=torch.float64)
    bodies = torch.tensor([[[0.2, 0.0], [0.0, 0.15], [2.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    reach = torch.tensor([[0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    force = contact_forces(position, bodies, reach)
    torch.testing.assert_close(force, torch.tensor([[[-5.0, -10.0]]], dtype=torch.float64), atol=1e-9, rtol=0)
    # half an overlap's width of softness: at a distance of exactly the reach, k log 2
    edge = contact_forces(position, torch.tensor([[[0.25, 0.0]]], dtype=torch.float64), 0.25)
    torch.testing.assert_close(edge[0, 0, 0].item(), -0.1 * np.log(2))


@both
def test_reward_by_hand(task):
    env = make_env(task)
    touch, radius = env.touch_reward, 0.075 + env.prey_radius
    prey = [0.0, 0.0]
    position = torch.tensor([[[3.0, 4.0], [radius - 0.001, 0.0], [0.0, -radius - 0.001], prey]])
    # distances 5, r - 0.001 and r + 0.001; one of them touches
    expected = touch - 0.1 * (5 + 2 * radius)
    torch.testing.assert_close(env.reward(position), torch.full((1, 3), expected))
    position[0, 2, 1] = -radius / 2
    torch.testing.assert_close(env.reward(position), torch.full((1, 3), 2 * touch - 0.1 * (5 + 1.5 * radius - 0.001)))
    assert (touch, env.prey_radius) == ((10.0, 0.05) if task == "mpe/simple_tag" else (5.0, 0.045))


def test_forests_are_seen_by_hand():
    env = make_env("mpe/simple_world", opponent="still")
    position = torch.tensor([[[0.0, 0.0], [0.374, 0.0], [0.376, 0.0], [1.0, 1.0]]])  # 0.3 + 0.075 = 0.375
    landmark = torch.tensor([[[-1.0, -1.0], [0.5, 0.5], [-0.5, 0.5], [0.0, 0.0], [5.0, 5.0]]])
    velocity = torch.zeros(1, 4, 2)
    velocity[0, 3] = torch.tensor([0.1, 0.2])
    seen = env.set_state(position, velocity, landmark)[OBSERVATION][0]
    places = [0, 0, 0, 0, -1, -1, 0.5, 0.5, -0.5, 0.5, 0, 0, 5, 5, 0.374, 0, 0.376, 0, 1, 1, 0.1, 0.2]
    torch.testing.assert_close(seen[0], torch.tensor([*places, 1.0, -1.0]))
    assert seen[:, -2:].tolist() == [[1, -1], [1, -1], [-1, -1]]


@both
def test_starts_are_uniform_and_at_rest(task):
    env = make_env(task, num_envs=20_000, seed=0)
    env.reset()
    assert (env._game["velocity"] == 0).all()
    for key, bound in (("position", 1.0), ("landmark", 0.9)):
        places = env._game[key]
        assert places.abs().amax() <= bound
        zero, spread = torch.zeros(places.shape[1:]), torch.full(places.shape[1:], bound**2 / 3)
        torch.testing.assert_close(places.mean(0), zero, atol=0.02, rtol=0)
        torch.testing.assert_close(places.var(0), spread, atol=0.011, rtol=0)


def _prey_thrust(task, opponent, num_envs=4, seed=0, steps=3):
    """Return what the prey does in the first steps: [steps, num_envs, 2], from its velocity far from everything."""
    env = make_env(task, num_envs=num_envs, seed=seed, opponent=opponent)
    env.reset()
    far = torch.tensor([[9.0, 9], [9, -9], [-9, 9], [0, 0]]).expand(num_envs, -1, -1)
    # the landmarks too are far from the prey
    td = env.set_state(far, torch.zeros(num_envs, 4, 2), torch.full((num_envs, TASKS[task], 2), 7.0))
    thrust, velocity = [], torch.zeros(num_envs, 2)
    for _ in range(steps):
        td = env.step(td.set(ACTION, torch.zeros(num_envs, 3, 2)))["next"]
        after = env._game["velocity"][:, 3]
        thrust.append((after - 0.75 * velocity) / 1.6)
        velocity = after
    return torch.stack(thrust)


@both
def test_a_random_prey_is_uniform_and_seeded(task):
    few, many = _prey_thrust(task, "random", 3, seed=5), _prey_thrust(task, "random", 9, seed=5)
    torch.testing.assert_close(few, many[:, :3])
    assert not torch.equal(few, _prey_thrust(task, "random", 3, seed=6))
    assert not torch.allclose(few[0], few[1])
    assert not torch.allclose(few[:, 0], few[:, 1])
    # one step cannot reach the speed limit with |u| < 0.8
    first = _prey_thrust(task, "random", 4000, steps=1)[0]
    slow = first[torch.linalg.vector_norm(first, dim=-1) < 0.8]
    assert slow.mean(0).abs().max() < 0.05
    assert 0.7 < first.abs().max() <= 1


@both
def test_still_and_callable_prey(task):
    assert (_prey_thrust(task, "still") == 0).all()
    width = {"mpe/simple_tag": 14, "mpe/simple_world": 22}[task]
    shapes = []

    def constant(observation):
        shapes.append(observation.shape)
        return torch.tensor([0.5, -0.25]).expand(len(observation), 2)

    expected = torch.tensor([0.5, -0.25]).expand(1, 4, 2)
    torch.testing.assert_close(_prey_thrust(task, constant, steps=1), expected)
    assert set(shapes) == {(4, width)}
    module = TensorDictModule(lambda seen: torch.full_like(seen[..., :2], 0.25), [OBSERVATION], [ACTION])
    torch.testing.assert_close(_prey_thrust(task, module, steps=1), torch.full((1, 4, 2), 0.25))
    # a thrust beyond the bounds is clipped, and then the speed is limited to 1.3
    beyond = _prey_thrust(task, lambda seen: torch.tensor([7.0, 0.0]).expand(len(seen), 2), steps=1)
    torch.testing.assert_close(beyond[0, 0], torch.tensor([1.3 / 1.6, 0.0]))
    env = make_env(task, opponent=lambda observation: observation)
    with pytest.raises(ValueError, match=rf"must return actions \[1, 2\], got \[1, {width}\]"):
        env.rollout(1)
    with pytest.raises(ValueError, match=r"opponent must be a str or .* or a function, got 3"):
        make_env(task, opponent=3)


def test_evasion_by_hand():
    position, nothing = torch.zeros(1, 2), torch.zeros(1, 0, 2)
    # walls cancel in the middle; a predator on the left pushes right with full thrust
    thrust = mpe_prey.flee(position, torch.tensor([[[-0.5, 0.0]]]), nothing, 0.25)
    torch.testing.assert_close(thrust, torch.tensor([[1.0, 0.0]]))
    # 1 / 0.5² = 4 to the right, 1 / 0.25² = 16 upwards
    thrust = mpe_prey.flee(position, torch.tensor([[[-0.5, 0.0], [0.0, -0.25]]]), nothing, 0.25)
    torch.testing.assert_close(thrust, torch.tensor([[0.25, 1.0]]))
    # an obstacle whose surface is 0.1 away pushes with 0.05 / 0.1² = 5 to the left, the predator with 4 to the right
    thrust = mpe_prey.flee(position, torch.tensor([[[-0.5, 0.0]]]), torch.tensor([[[0.35, 0.0]]]), 0.25)
    torch.testing.assert_close(thrust, torch.tensor([[-1.0, 0.0]]))
    # at the right wall: 0.3 / 0.1² - 0.3 / 1.9² = 29.9 to the left, against 4
    thrust = mpe_prey.flee(torch.tensor([[0.9, 0.0]]), torch.tensor([[[-0.5, 0.0]]]), nothing, 0.25)
    torch.testing.assert_close(thrust, torch.tensor([[-1.0, 0.0]]))


@both
def test_the_evading_prey_is_hard_but_not_impossible_to_catch(task):
    def returns(greedy, opponent):
        env = make_env(task, num_envs=500, seed=0, opponent=opponent)
        m = TASKS[task]

        def policy(td):
            to_prey = td[OBSERVATION][..., 2 * m + 8 : 2 * m + 10]
            chase = to_prey / to_prey.abs().amax(-1, keepdim=True)
            return td.set(ACTION, chase if greedy else torch.rand_like(to_prey) * 2 - 1)

        return env.rollout(25, policy)["next", *REWARD].mean((-2, -1)).sum(-1).mean()

    chased, random, still = returns(True, "evade"), returns(False, "evade"), returns(True, "still")
    assert still > 5 * chased > 0 > random


def _weights(inputs, seed=0, normalized=True):
    torch.manual_seed(seed)
    layers = [("fc1", nn.Linear(inputs, 8)), ("fc2", nn.Linear(8, 8)), ("fc3", nn.Linear(8, 2))]
    norm = nn.BatchNorm1d(inputs)
    norm.running_mean.uniform_()
    norm.running_var.uniform_(0.5, 2)
    chained = ([("in_fn", norm)] if normalized else []) + layers
    return nn.ModuleDict(chained).eval()


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("published", [True, False])
def test_prey_from_a_file(tmp_path, normalized, published):
    network = _weights(14, normalized=normalized)
    weights = network.state_dict()
    other = _weights(16, seed=1).state_dict()
    content = {"init_dict": {"lr": 0.01}, "agent_params": [{"policy": other}] * 3 + [{"policy": weights}]}
    torch.save(content if published else weights, tmp_path / "prey.pt")
    env = make_env("mpe/simple_tag", num_envs=5, opponent=str(tmp_path / "prey.pt"))
    observation = torch.randn(5, 14)
    hidden = network["in_fn"](observation) if normalized else observation
    expected = network["fc3"](network["fc2"](network["fc1"](hidden).relu()).relu()).tanh()
    torch.testing.assert_close(env._prey(observation), expected)
    assert env.rollout(2)[OBSERVATION].isfinite().all()
    assert env.reference_returns is None


def test_reference_returns_belong_to_the_published_prey(tmp_path, monkeypatch):
    torch.save(_weights(14).state_dict(), tmp_path / "prey.pt")
    assert make_env("mpe/simple_tag", opponent=tmp_path / "prey.pt").reference_returns is None
    assert make_env("mpe/simple_tag").reference_returns is None
    digest = hashlib.sha256((tmp_path / "prey.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(mpe_prey.PUBLISHED, "mpe/simple_tag", digest)
    assert make_env("mpe/simple_tag", opponent=tmp_path / "prey.pt").reference_returns == (-4.1, 185.6)


class _Unsafe:
    def __reduce__(self):
        return os.system, ("echo unsafe",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (_weights(22), "holds no weights of a prey"),  # a module, not its state dict
        (_Unsafe(), "holds no weights of a prey"),
        ({"agent_params": []}, "holds no weights of a prey"),
        ({"fc1.weight": torch.zeros(2, 14)}, "holds no weights of a prey"),
        ({}, r"maps 14 numbers to 2; the layers in .* are \[\]"),
        (_weights(22).state_dict(), r"maps 14 numbers to 2; the layers in .* are \[\(22, 8\)"),
    ],
)
def test_bad_files_of_weights(tmp_path, capfd, content, message):
    if content is not None:
        torch.save(content, tmp_path / "prey.pt")
    with pytest.raises(ValueError, match=message):
        make_env("mpe/simple_tag", opponent=tmp_path / "prey.pt")
    assert "unsafe" not in capfd.readouterr().out


@both
def test_random_play_against_the_published_prey(task):
    """The Random sets of OMAR hold 40,000 episodes of mean -4.13, std 10.81, and of -6.83, std 5.74."""
    folder = os.environ.get("TORCHRL_MARL_OFFLINE_DATA", "")
    file = Path(folder) / task / "pretrained_adv_model.pt"
    if not folder or not file.is_file():
        pytest.skip(f"put OMAR's pretrained prey at {task}/pretrained_adv_model.pt of TORCHRL_MARL_OFFLINE_DATA")
    episodes = 20_000
    env = make_env(task, num_envs=episodes, seed=0, opponent=file)
    returns = env.rollout(25)["next", *REWARD].mean((-2, -1)).sum(-1)
    mean, std = {"mpe/simple_tag": (-4.13, 10.81), "mpe/simple_world": (-6.83, 5.74)}[task]
    assert abs(returns.mean() - mean) < 4 * std * (1 / episodes + 1 / 40_000) ** 0.5
    assert abs(returns.std() / std - 1) < 0.05
    assert env.reference_returns == (round(mean, 1), {"mpe/simple_tag": 185.6, "mpe/simple_world": 79.5}[task])


@both
def test_state_is_the_joint_observation(task):
    td = make_env(task, num_envs=2, seed=0).reset()
    assert torch.equal(td[STATE], td[OBSERVATION].flatten(1))
