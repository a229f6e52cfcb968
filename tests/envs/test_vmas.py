"""VMAS behind the key layout: the same numbers as raw VMAS, its chance, its bounds, its pictures."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.envs.action_ranges import ActionRanges, pad_last
from torchrl_marl_offline.envs.vmas_heuristics import VmasHeuristic


def _raw(scenario, num_envs=4, seed=7):
    import vmas

    env = vmas.make_env(scenario, num_envs=num_envs, device="cpu", continuous_actions=True, seed=seed)
    env.seed(seed)
    return env


@pytest.mark.parametrize("scenario", ["balance", "simple_spread", "give_way", "simple_tag"])
def test_the_numbers_are_those_of_raw_vmas(scenario):
    ours, raw = make_env(f"vmas/{scenario}", num_envs=4, seed=7), _raw(scenario)
    observations, td = raw.reset(), ours.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        for i, observation in enumerate(observations):
            torch.testing.assert_close(td[OBSERVATION][:, i, : observation.shape[-1]], observation)
        torch.testing.assert_close(td[STATE], torch.cat(observations, -1))
        action = torch.rand(4, ours.task_spec.n_agents, 2, generator=generator) * 2 - 1
        action = action * ours.task_spec.action_high
        observations, rewards, done, _ = raw.step(list(action.unbind(1)))
        td = ours.step(td.set(ACTION, action))["next"]
        torch.testing.assert_close(td[REWARD].squeeze(-1), torch.stack(rewards, -1))
        assert torch.equal(td["terminated"].squeeze(-1), done)


def test_raw_vmas_and_the_global_generators_are_left_alone():
    def play(disturb):
        torch.manual_seed(3)
        np.random.seed(3)
        raw = _raw("navigation", seed=1)
        seen = [torch.cat(raw.reset(), -1)]
        for _ in range(3):
            if disturb:
                other = make_env("vmas/football", num_envs=2, seed=5)
                td = other.reset()
                other.step(td.set(ACTION, other.full_action_spec[ACTION].zero()))
            seen.append(torch.cat(raw.reset(), -1))
        return torch.stack(seen), torch.rand(3), np.random.rand(3)

    for alone, disturbed in zip(play(False), play(True)):
        assert np.array_equal(alone, disturbed)


def test_action_ranges_by_hand():
    at = torch.device("cpu")
    same = ActionRanges([[-2.0, -2.0], [-2.0]], [[2.0, 2.0], [2.0]], device=at)
    assert (same.low, same.high, same.sizes) == (-2.0, 2.0, (2, 1))
    first, second = same.split(torch.tensor([[[1.0, -3.0], [0.5, 9.0]]]))
    assert (first.tolist(), second.tolist()) == ([[1.0, -2.0]], [[0.5]])
    unequal = ActionRanges([[-2.0, 0.0], [-0.5]], [[2.0, 1.0], [0.7]], device=at)
    assert (unequal.low, unequal.high) == (-1.0, 1.0)
    first, second = unequal.split(torch.tensor([[[0.5, -1.0], [-5.0, 9.0]]]))
    assert (first.tolist(), second.tolist()) == ([[1.0, 0.0]], [[-0.5]])
    first, second = unequal.split(torch.tensor([[[2.0, 0.0], [1.0, 9.0]]]))
    torch.testing.assert_close(torch.cat([first, second], -1), torch.tensor([[2.0, 0.5, 0.7]]))
    assert second.item() <= np.float32(0.7)
    with pytest.raises(ValueError, match="need finite bounds"):
        ActionRanges([[-float("inf")]], [[1.0]], device=at)
    padded = pad_last([torch.ones(3, 2), torch.ones(3, 1)], 2)
    assert padded[0].tolist() == [[1, 1], [1, 0]]


def test_unequal_bounds_reach_the_simulator():
    env = make_env("vmas/kinematic_bicycle", num_envs=2, seed=0)
    spaces = env._simulator.action_space
    assert len({float(high) for space in spaces for high in space.high}) > 1
    env.step(env.reset().set(ACTION, torch.ones(2, 2, env.task_spec.action_size)))
    for agent, space in zip(env._simulator.agents, spaces):
        expected = torch.as_tensor(space.high).expand(2, -1)
        torch.testing.assert_close(agent.action.u / agent.action.u_multiplier_tensor, expected)


def test_any_number_of_environments_and_options():
    env = make_env("vmas/simple_spread", num_envs=5, seed=0, n_agents=4)
    assert env.rollout(2)[OBSERVATION].shape[:3] == (5, 2, 4)


def test_a_picture_shows_the_bodies_where_they_are():
    env = make_env("vmas/simple_spread", num_envs=2, seed=0)
    with pytest.raises(RuntimeError, match="before the first reset"):
        env.render()
    env.reset()
    world = env._simulator.world
    for body in world.entities:
        body.set_pos(torch.full((2, 2), 5.0), batch_index=None)
    world.agents[0].set_pos(torch.tensor([[0.5, 0.25], [-0.5, -0.5]]), batch_index=None)
    for agent in world.agents[1:]:
        agent.set_pos(torch.tensor([[-0.6, 0.1], [0.6, -0.1]]), batch_index=None)
    frames = [env.render(index, size=200) for index in (0, 1)]
    assert frames[0].dtype == np.uint8
    assert frames[0].shape == frames[1].shape == (200, 200, 3)
    zoom = env._simulator.scenario.viewer_zoom
    for frame, (x, y) in zip(frames, [(0.5, 0.25), (-0.5, -0.5)]):
        column, row = (round(100 + 100 * x / zoom), round(100 - 100 * y / zoom))
        assert (frame[row, column] < 255).any()
        assert (frame[200 - row, 200 - column] == 255).all()


def test_navigations_heuristic_says_what_it_needs():
    if find_spec("cvxpylayers") is not None:
        pytest.skip("cvxpylayers is there")
    with pytest.raises(ModuleNotFoundError, match=r"vmas/navigation needs the library 'cvxpylayers'.*pip install"):
        VmasHeuristic(make_env("vmas/navigation"))
