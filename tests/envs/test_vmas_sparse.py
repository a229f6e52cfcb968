"""Sparse forms of VMAS: the scenario's own reward without its shaping, success, and teams that reach the goals."""

from __future__ import annotations

import copy

import pytest
import torch
from selection import some_of
from tensordict import TensorDict

from torchrl_marl_offline import make_simulator, record_mixed_skill
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD
from torchrl_marl_offline.envs import SteeringController, make_env
from torchrl_marl_offline.envs.vmas_sparse import FORMS
from torchrl_marl_offline.envs.vmas_steering import STEERING
from torchrl_marl_offline.recording.graded import record


def _world(env):
    return env._simulator.world.agents


def _distances(env):
    return torch.stack([(agent.state.pos - agent.goal.state.pos).norm(dim=-1) for agent in _world(env)], -1)


def _play(task, kind=None, **options):
    """Play one episode."""
    env = make_env(task, num_envs=1, seed=0, **options)
    return env, env.rollout(env.max_episode_steps, SteeringController(env, kind))[0]["next"]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_a_task_with_success(name):
    env = make_env(f"vmas/{name}_sparse", num_envs=2, seed=0, max_steps=3)
    data = env.rollout(3)
    assert env.task_spec.task == f"vmas/{name}_sparse"
    assert env.max_episode_steps == 3
    assert make_env(f"vmas/{name}_sparse").max_episode_steps == FORMS[name].max_steps
    assert data["next", "success"].dtype == torch.bool
    assert (data["next", "success"] == data["next", "terminated"]).all()


@pytest.mark.parametrize("name", some_of(["navigation", "give_way", "passage"], every=2))
def test_the_reward_is_the_scenarios_own_without_its_shaping(name):
    """The same actions in the shaped scenario pay the fall of all distances beside what the sparse one pays."""
    factor = 100 if name == "passage" else 1
    shaped = {"navigation": {"final_reward": 1.0}, "give_way": {"final_reward": 1.0}, "passage": FORMS[name].options}
    sparse = make_env(f"vmas/{name}_sparse", num_envs=3, seed=3)
    other = make_env(f"vmas/{name}", num_envs=3, seed=3, **shaped[name])
    td, td_other = sparse.reset(), other.reset()
    torch.testing.assert_close(td["state"], td_other["state"])
    before, moved = _distances(other).sum(-1, keepdim=True), 0.0
    for step in range(8):
        action = sparse.full_action_spec[ACTION].rand()
        td, td_other = sparse.step(td.set(ACTION, action))["next"], other.step(td_other.set(ACTION, action))["next"]
        after = _distances(other).sum(-1, keepdim=True)
        shaping = (factor * (before - after)).expand(-1, len(_world(other)))
        torch.testing.assert_close(td[REWARD].squeeze(-1) + shaping, td_other[REWARD].squeeze(-1), atol=2e-4, rtol=0)
        moved += (before - after).abs().sum().item()
        before = after
        assert step or td[REWARD].abs().max() % 10 == 0
    assert moved > 0.01


def test_navigation_pays_where_it_ends():
    env, after = _play("vmas/navigation_sparse", n_agents=2, agent_collision_penalty=0)
    paid = after[REWARD].squeeze(-1)
    assert after["success"][-1]
    assert paid[-1].tolist() == [1.0, 1.0]
    assert not paid[:-1].any()
    assert {agent.goal.shape.radius for agent in _world(env)} == {agent.shape.radius for agent in _world(env)}
    assert {agent.goal.shape.radius for agent in _world(make_env("vmas/navigation"))} == {0.05}


def test_passage_pays_one_for_its_goal_alone():
    env = make_env("vmas/passage_sparse", num_envs=2, seed=0)
    env.reset()
    for agent in _world(env):
        agent.set_pos(agent.goal.state.pos, batch_index=None)
    _world(env)[0].set_pos(_world(env)[0].goal.state.pos[1] + 0.3, batch_index=1)
    td = env.step(env.full_action_spec.zero())["next"]
    assert td["success"].flatten().tolist() == [True, False]
    assert td[REWARD].squeeze(-1).tolist() == [[1.0] * 5, [0.0] * 5]


def test_dispersion_pays_all_for_each_food():
    _, after = _play("vmas/dispersion_sparse")
    assert after["success"][-1]
    assert after[REWARD].sum(0).flatten().tolist() == [4.0] * 4


def test_give_way_pays_when_both_are_there():
    env = make_env("vmas/give_way_sparse", num_envs=2, seed=0)
    env.reset()
    for agent in _world(env):
        agent.set_pos(agent.goal.state.pos.clone(), batch_index=None)
    _world(env)[0].set_pos(torch.tensor([0.0, 0.0]), batch_index=1)
    td = env.step(env.full_action_spec.zero())["next"]
    assert td["success"].flatten().tolist() == [True, False]
    assert td[REWARD].squeeze(-1).tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_whoever_waits_goes_into_the_niche_and_out_of_it_by_hand():
    env = make_env("vmas/give_way_sparse")
    at = [
        [(-1.0, 0.0), (0.6, 0.0)],  # to the niche; the other keeps away
        [(0.0, 0.4), (0.6, 0.0)],  # in it: the other passes
        [(0.0, 0.4), (-0.6, 0.0)],  # has passed: down
        [(0.0, 0.0), (-0.6, 0.0)],  # and on
    ]
    expected = [[(1, 0), (0, 0)], [(0, 1), (-1, 0)], [(0, -1), (-1, 0)], [(1, 0), (-1, 0)]]
    observation = torch.cat([torch.tensor(at), torch.zeros(4, 2, 2)], -1)
    for kind, sign, order in (("first_waits", 1.0, [0, 1]), ("second_waits", -1.0, [1, 0])):
        seen = observation[:, order] * torch.tensor([sign, 1.0, 1.0, 1.0])
        action = SteeringController(env, kind)(TensorDict({OBSERVATION: seen}, [4]))[ACTION]
        assert (action.sign() * torch.tensor([sign, 1.0]))[:, order].long().tolist() == [
            [list(pair) for pair in row] for row in expected
        ]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["first_waits", "second_waits"])
def test_give_way_needs_one_that_waits(kind):
    _, after = _play("vmas/give_way_sparse", kind)
    assert after["success"][-1]
    assert after[REWARD].sum(0).flatten().tolist() == [1.0, 1.0]


@pytest.mark.thorough
def test_agents_that_do_not_wait_block_each_other():
    env, after = _play("vmas/give_way_sparse", "nobody_waits", max_steps=170)
    assert not after["success"].any()
    left, right = (agent.state.pos[0, 0] for agent in _world(env))
    assert left < right


def test_good_teams_are_better_than_the_others():
    def returns(task, kind):
        return _play(task, kind)[1][REWARD].mean()

    for scenario in ("dispersion", "dropout"):
        good, bad = STEERING[scenario]
        assert returns(f"vmas/{scenario}_sparse", good) > returns(f"vmas/{scenario}_sparse", bad)
    assert not _play("vmas/navigation_sparse", "drift")[1]["success"].any()


def test_what_a_form_sets_cannot_be_given():
    with pytest.raises(ValueError, match=r"navigation_sparse sets pos_shaping_factor itself, to 0; take vmas/navig"):
        make_env("vmas/navigation_sparse", pos_shaping_factor=1)
    with pytest.raises(ValueError, match=r"close names are .*vmas/navigation_sparse"):
        make_env("vmas/navigation_spars")
    with pytest.raises(ValueError, match=r"SteeringController plays in vmas/navigation.*, not in vmas/balance"):
        SteeringController(make_env("vmas/balance"))
    with pytest.raises(ValueError, match=r"kind must be one of apart, nearest in vmas/dispersion_sparse, got 'goal'"):
        SteeringController(make_env("vmas/dispersion_sparse"), "goal")


def test_a_copy_keeps_the_form():
    env = make_env("vmas/passage_sparse", num_envs=2, seed=0)
    other = copy.deepcopy(env)
    td = env.reset()
    assert other._simulator.scenario.shaping_factor == 0
    assert env.step(td.set(ACTION, env.full_action_spec[ACTION].rand()))["next", *REWARD].abs().max() % 10 == 0


@pytest.mark.parametrize("name", some_of(FORMS, every=5, first=2))
def test_they_are_recorded(tmp_path, name):
    task = f"vmas/{name}_sparse"
    mixed = record_mixed_skill(task, tmp_path / "mixed", episodes=60, num_envs=60)
    assert mixed.metadata["task"] == task
    assert mixed.success().any() == (name != "passage")
    assert make_simulator(mixed, num_envs=2).has_success
    settings = {"transitions": 500, "updates": 4, "num_envs": 100, "batch_size": 8, "eval_every": 2, "eval_episodes": 2}
    options = {"compile": False, "progress": False, "learner": {"hidden": (8,)}, "task_options": {"max_steps": 5}}
    medium = record(task, tmp_path / "graded", qualities=["medium"], **settings, **options)["medium"]
    assert ("next", "success") in medium.data.keys(include_nested=True)
