"""MuJoCo Warp gives MA-MuJoCo the same numbers, to single precision; here on its CPU, on a GPU where there is one."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env

pytestmark = [
    pytest.mark.slow,  # Warp compiles its kernels once
    pytest.mark.skipif(importlib.util.find_spec("mujoco_warp") is None, reason="needs the extra 'mamujoco'"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    if request.param == "cpu":
        import warp

        monkeypatch.setattr(warp.config, "optimization_level", 0)  # which compiles sooner
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


@pytest.mark.parametrize(("task", "lift"), [("2swimmer", 0.0), ("2reacher", 0.0), ("3hopper", 5.0)])
def test_same_numbers_without_contacts(device, task, lift):
    ours = make_env(f"mamujoco/{task}", num_envs=4, seed=0)
    theirs = make_env(f"mamujoco/{task}", num_envs=4, seed=0, backend="warp", device=device)
    ours.reset()
    qpos, qvel = ours._game["qpos"], ours._game["qvel"]
    if lift:
        qpos[:, 1] += lift
    expected, td = ours.set_state(qpos, qvel), theirs.set_state(qpos.to(device), qvel.to(device))
    for step in range(50):
        action = ours.full_action_spec[ACTION].rand()
        expected = ours.step(expected.set(ACTION, action))["next"]
        td = theirs.step(td.set(ACTION, action.to(device)))["next"]
        for key in (OBSERVATION, STATE, REWARD):
            assert (td[key].cpu() - expected[key]).abs().amax() < 1e-4, (key, step)
        assert torch.equal(td["done"].cpu(), expected["done"])


def test_same_returns_with_contacts(device):
    n, steps = 48, 60
    torch.manual_seed(0)
    actions = 2 * torch.rand(steps, n, 6, 1) - 1

    def returns(**options):
        env = make_env("mamujoco/6halfcheetah", num_envs=n, seed=0, **options)
        td, total = env.reset(), torch.zeros(n)
        for action in actions:
            td = env.step(td.set(ACTION, action.to(env.device)))["next"]
            total += td[REWARD][:, 0, 0].cpu()
        assert td[STATE].isfinite().all()
        return total.double()

    ours, theirs = returns(), returns(backend="warp", device=device)
    difference = ours - theirs
    assert difference.mean().abs() < 4 * difference.std() / n**0.5
    assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.9


def test_partial_reset_leaves_the_neighbours(device):
    env = make_env("mamujoco/2swimmer", num_envs=3, seed=0, backend="warp", device=device)
    td = env.rollout(2, break_when_any_done=False)[:, -1]["next"]
    before = td.clone()
    td["_reset"] = torch.tensor([[False], [True], [False]], device=device)
    after = env.reset(td)
    for key in (OBSERVATION, STATE):
        assert torch.equal(after[key][[0, 2]], before[key][[0, 2]])
        assert not torch.equal(after[key][1], before[key][1])
    alone = make_env("mamujoco/2swimmer", num_envs=2, seed=0, backend="warp", device=device)
    alone.reset()
    assert torch.allclose(alone.reset()[STATE][1], after[STATE][1], atol=1e-6)  # the second episode of its row
