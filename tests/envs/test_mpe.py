"""``mpe/simple_spread`` against hand-computed numbers, mpe2's physics and the published random return."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env


def _state(agents, landmarks, velocity=None):
    agents = torch.tensor([agents])
    velocity = torch.zeros_like(agents) if velocity is None else torch.tensor([velocity])
    return agents, velocity, torch.tensor([landmarks])


def test_random_play_has_the_published_return():
    episodes = 40_000
    env = make_env("mpe/simple_spread", num_envs=episodes, seed=0)
    generator = torch.Generator().manual_seed(0)
    td, returns = env.reset(), 0.0
    for _ in range(25):
        td.set(ACTION, torch.rand(episodes, 3, 2, generator=generator) * 2 - 1)
        td = env.step(td)["next"]
        returns = returns + td[REWARD].mean((1, 2))
    assert td["truncated"].all()
    assert abs(returns.mean() - 160.4) < 1.2
    assert abs(returns.std() - 60.7) < 1.2


def test_starts_are_uniform_and_at_rest():
    env = make_env("mpe/simple_spread", num_envs=20_000, seed=0)
    observation = env.reset()[OBSERVATION]
    assert (observation[..., :2] == 0).all()
    position = observation[..., 2:4]
    landmark = observation[:, 0, 4:10].unflatten(-1, (3, 2)) + position[:, :1]
    for places in (position, landmark):
        assert places.abs().amax() <= 1 + 1e-6
        torch.testing.assert_close(places.mean(0), torch.zeros(3, 2), atol=0.02, rtol=0)  # 5 standard errors
        torch.testing.assert_close(places.var(0), torch.full((3, 2), 1 / 3), atol=0.011, rtol=0)
    everything = torch.cat([position, landmark], 1).flatten(1)
    assert (torch.corrcoef(everything.T) - torch.eye(12)).abs().amax() < 0.036


@pytest.mark.parametrize("integration", ["velocity_first", "position_first"])
def test_one_step_equals_mpe2(integration):
    """mpe2 moves with the old velocity; the original MPE, whose data is published, with the new one."""
    from mpe2.simple_spread.simple_spread import Scenario

    count = 300
    generator = torch.Generator().manual_seed(1)
    position, velocity, landmark, action = (
        torch.rand(count, 3, 2, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(4)
    )
    position[::3] *= 0.15  # deep contacts
    env = make_env("mpe/simple_spread", num_envs=count, dtype=torch.float64, integration=integration)
    td = env.set_state(position, velocity, landmark)
    observation = env.step(td.set(ACTION, action))["next", *OBSERVATION].numpy()
    world = Scenario().make_world(3)
    contacts = 0
    for i in range(count):
        for j, agent in enumerate(world.agents):
            agent.state.p_pos, agent.state.p_vel = position[i, j].numpy().copy(), velocity[i, j].numpy().copy()
            agent.action.u = 5.0 * action[i, j].numpy()
        for j, mark in enumerate(world.landmarks):
            mark.state.p_pos, mark.state.p_vel = landmark[i, j].numpy().copy(), np.zeros(2)
        free = 0.75 * velocity[i].numpy() + 0.5 * action[i].numpy()
        world.step()
        expected_velocity = np.stack([agent.state.p_vel for agent in world.agents])
        contacts += np.abs(expected_velocity - free).max() > 1e-3
        if integration == "position_first":
            expected_position = np.stack([agent.state.p_pos for agent in world.agents])
        else:
            expected_position = position[i].numpy() + 0.1 * expected_velocity
        np.testing.assert_allclose(observation[i, :, 0:2], expected_velocity, atol=1e-6, rtol=0)
        np.testing.assert_allclose(observation[i, :, 2:4], expected_position, atol=1e-6, rtol=0)
    assert contacts > 100


def test_float32_physics_is_close_to_float64():
    generator = torch.Generator().manual_seed(0)
    state = [torch.rand(500, 3, 2, generator=generator, dtype=torch.float64) - 0.5 for _ in range(4)]
    results = []
    for dtype in (torch.float32, torch.float64):
        env = make_env("mpe/simple_spread", num_envs=500, dtype=dtype)
        *places, action = (each.to(dtype) for each in state)
        td = env.set_state(*places)
        results.append(env.step(td.set(ACTION, action))["next", *OBSERVATION].double())
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)


def test_reward_by_hand():
    env = make_env("mpe/simple_spread")
    agents, _, landmarks = _state([[0.0, 0], [0.2, 0], [1, 1]], [[0.0, 0], [1, 0], [1, 1.5]])
    # 0 away: 1/0 clipped to 10; 0.8 away: 1.25; 0.5 away: 2. Agents 0 and 1 are 0.2 < 0.3 apart: -5 each.
    torch.testing.assert_close(env.reward(agents, landmarks), torch.tensor([[8.25, 8.25, 13.25]]))
    # all three together: -10 each, and the landmarks 10 (0.05 away: 20, clipped) + 1 + 0.5
    agents, _, landmarks = _state([[0.0, 0], [0.0, 0], [0, 0]], [[0.05, 0], [0, 1], [2, 0]])
    torch.testing.assert_close(env.reward(agents, landmarks), torch.full((1, 3), 1.5))


def test_step_and_observation_by_hand():
    env = make_env("mpe/simple_spread")
    state = _state([[0.0, 0], [1, 0], [0, 1]], [[0.05, 0], [2, 0], [0, 2]], [[0.0, 0], [0, 0], [0, 0.4]])
    td = env.set_state(*state)
    # the second component is clipped to -1 ... and the third agent coasts: v = 0.75 * 0.4 = 0.3, p = 1 + 0.03
    td.set(ACTION, torch.tensor([[[1.0, 0], [0, -3], [0, 0]]]))
    after = env.step(td)["next"]
    first = [0.5, 0, 0.05, 0, 0, 0, 1.95, 0, -0.05, 2, 0.95, -0.05, -0.05, 1.03, 0, 0, 0, 0]
    second = [0, -0.5, 1, -0.05, -0.95, 0.05, 1, 0.05, -1, 2.05, -0.95, 0.05, -1, 1.08, 0, 0, 0, 0]
    torch.testing.assert_close(after[OBSERVATION][0, 0], torch.tensor(first))
    torch.testing.assert_close(after[OBSERVATION][0, 1], torch.tensor(second))
    torch.testing.assert_close(after[STATE][0], after[OBSERVATION][0].flatten())
    far = (1 + 0.05**2) ** 0.5  # of landmark (2, 0) from the second agent
    expected = 10 + 1 / far + 1 / 0.97
    torch.testing.assert_close(after[REWARD].flatten(), torch.full((3,), expected))


def test_coincident_agents_stay_finite():
    env = make_env("mpe/simple_spread")
    td = env.set_state(*_state([[0.0, 0], [0.0, 0], [0, 0]], [[0.0, 0], [1, 1], [1, 0]]))
    assert env.step(td.set(ACTION, torch.zeros(1, 3, 2)))["next", *OBSERVATION].isfinite().all()


def test_rollout_is_what_it_has_always_been():
    """Of an earlier version whose steps were checked against mpe2, so that shared physics cannot shift unnoticed."""
    env = make_env("mpe/simple_spread", num_envs=2, seed=3, dtype=torch.float64)
    td, total = env.reset(), 0.0
    for step in range(25):
        angle = 0.4 * step + torch.arange(6, dtype=torch.float64).view(3, 2)
        td = env.step(td.set(ACTION, angle.cos().expand(2, 3, 2)))["next"]
        total = total + td[REWARD].sum((1, 2))
    expected = torch.tensor([439.263452806279, 445.425499404644], dtype=torch.float64)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-6)
    last = [-0.372625259234, 0.906934020310]  # of the third agent in the second environment
    torch.testing.assert_close(td[OBSERVATION][1, 2, 2:4], torch.tensor(last, dtype=torch.float64), rtol=0, atol=1e-8)
