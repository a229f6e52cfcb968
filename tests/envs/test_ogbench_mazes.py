"""OGBench's ant mazes with split ants: equal to the package step by step; starts and goals of its five tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule

from torchrl_marl_offline import collect, make_env
from torchrl_marl_offline.data import hindsight_buffer
from torchrl_marl_offline.evaluation import evaluate_goals, make_simulator
from torchrl_marl_offline.recording import record_mixed_skill

pytest.importorskip("ogbench")

TASK = "ogbench/antmaze-medium-2x4"


@pytest.fixture(scope="module")
def env():
    return make_env(TASK, num_envs=6, seed=0, max_steps=12)


def test_states_are_those_of_the_package(env):
    from ogbench.locomaze.maze import make_maze_env

    packaged = make_maze_env("ant", "maze", maze_type="medium")
    names = [packaged.model.joint(packaged.model.actuator_trnid[motor, 0]).name for motor in range(8)]
    assert names == [f"{part}_{leg}" for leg in (4, 1, 2, 3) for part in ("hip", "ankle")]
    assert [packaged.model.joint(number).name for number in range(1, 9)] == [
        f"{part}_{leg}" for leg in (1, 2, 3, 4) for part in ("hip", "ankle")
    ]
    packaged.reset(seed=0)
    qpos, qvel, goal = packaged.data.qpos.copy(), packaged.data.qvel.copy(), np.array(packaged.cur_goal_xy)
    packaged.set_state(qpos, qvel)
    alone = make_env(TASK, num_envs=1)
    td = alone.set_state(*(torch.from_numpy(each).unsqueeze(0) for each in (qpos, qvel, goal)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(15):
        control = torch.rand(8, generator=generator) * 2 - 1
        td["agents", "action"] = alone.split.actions(control).unsqueeze(0)
        td = alone.step(td)["next"]
        expected, reward, *_ = packaged.step(control.double().numpy())
        assert torch.equal(td["state"][0, :29], torch.from_numpy(expected).float())
        assert td["agents", "reward"].eq(reward).all()
    assert torch.equal(td["agents", "achieved"][0, 0], td["state"][0, :2])


def test_the_goal_ends_the_episode(env):
    alone = make_env(TASK, num_envs=2)
    qpos = alone.reset()["state"][:, :15].double()
    far = qpos[:, :2] + torch.tensor([[0.2, 0.0], [3.0, 0.0]])
    td = alone.set_state(qpos, torch.zeros(2, 14), far)
    td["agents", "action"] = torch.zeros(2, 2, 4)
    after = alone.step(td)["next"]
    for key in ("success", "terminated", "done"):
        assert after[key].flatten().tolist() == [True, False]
    assert after["agents", "reward"].flatten(1).tolist() == [[1, 1], [0, 0]]


def test_starts_and_goals_are_those_of_the_five_tasks(env):
    many = make_env(TASK, num_envs=200, seed=1).reset()
    starts, goals = many["agents", "achieved"][:, 0].double(), many["agents", "goal"][:, 0].double()
    off = ((starts.unsqueeze(1) - env.task_starts).abs().amax(-1) <= 1 + 1e-6) & (
        (goals.unsqueeze(1) - env.task_goals[:, 0].double()).abs().amax(-1) <= 1 + 1e-6
    )
    assert (off.sum(1) == 1).all() and off.float().mean(0).amin() > 0.1
    assert torch.equal(many["agents", "goal"][:, 0], many["agents", "goal"][:, 1])


def test_evaluation_over_the_five_goals(env):
    still = TensorDictModule(
        lambda seen: torch.zeros(*seen.shape[:-1], 4),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "action")],
    )
    found = evaluate_goals(still, env, goals=env.task_goals, episodes=1, seed=0)
    assert found.by_goal.tolist() == [0] * 5 and found.lengths.eq(12).all()
    given = env.given(env.task_goals).reset()
    assert torch.equal(given["agents", "goal"], env.task_goals)
    assert (given["agents", "achieved"][:, 0] - env.task_starts.float()).abs().max() <= 1
    with pytest.raises(ValueError, match="give all of them the same goal"):
        env.given([[[0.0, 0.0], [4.0, 0.0]]])


def test_random_play_is_recorded_and_relabelled(env):
    data = collect(env, episodes=6, seed=0)
    assert len(data) == 6 * 12 and data.spec.task == TASK
    batch = hindsight_buffer(data, env.outcome, future=1.0, batch_size=64, seed=0).sample()
    reached = batch["next", "success"].squeeze(-1)
    assert reached.float().mean() > 0.5  # the ant hardly leaves its place in a second
    assert torch.equal(batch["agents", "observation"][..., -2:], batch["agents", "goal"])


def test_four_agents_who_see_everything():
    env = make_env("ogbench/antmaze-medium-4x2", num_envs=2, sight="all")
    assert (env.task_spec.n_agents, env.task_spec.action_size, env.task_spec.observation_size) == (4, 2, 31)
    seen = env.reset()["agents", "observation"]
    assert torch.equal(seen[:, 0], seen[:, 3])


def test_a_recording_of_mixed_skill_is_random_play(tmp_path):
    data = record_mixed_skill(TASK, tmp_path, episodes=2, num_envs=2, task_options={"max_steps": 5})
    assert data.metadata["behaviour"] == "uniform over the legal actions" and len(data) == 10
    simulator = make_simulator(data, num_envs=2)
    assert simulator.max_episode_steps == 5 and simulator.task_spec.task == TASK


@pytest.mark.parametrize(
    ("name", "value"), [("qpos", torch.zeros(1, 14)), ("qvel", torch.full((1, 14), torch.nan)), ("goal", "x")], ids=str
)
def test_positions_that_are_none_are_refused(name, value):
    given = {"qpos": torch.zeros(1, 15), "qvel": torch.zeros(1, 14), "goal": torch.zeros(1, 2)} | {name: value}
    with pytest.raises(ValueError, match=rf"^{name} must be finite numbers"):
        make_env(TASK).set_state(**given)
