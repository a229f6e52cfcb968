"""What every environment of ``make_env`` keeps to."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import check_env_specs

from torchrl_marl_offline.data.layout import ACTION, ACTION_MASK, OBSERVATION, REWARD, STATE, TaskSpec
from torchrl_marl_offline.envs import factory, list_tasks, make_env

TASKS = [
    ("mpe/simple_spread", {}),
    ("games/two_step", {}),
    ("games/xor", {}),
    ("games/grid_navigation", {"agents": 3}),
    ("vmas/balance", {}),
    ("vmas/give_way", {}),
    ("vmas/simple_crypto", {}),
    ("vmas/kinematic_bicycle", {}),
]
IDS = [task for task, _ in TASKS]
contract = pytest.mark.parametrize(("task", "options"), TASKS, ids=IDS)


@contract
@pytest.mark.parametrize("num_envs", [1, 3])
def test_specs_and_layout(task, options, num_envs):
    env = make_env(task, num_envs=num_envs, seed=0, **options)
    assert env.batch_size == (num_envs,)
    assert env.batch_locked
    check_env_specs(env)
    spec = env.task_spec
    assert spec == TaskSpec.from_env(env)
    assert spec.task == task
    steps = env.max_episode_steps + 2
    data = env.rollout(steps, break_when_any_done=False)
    batch, n = (num_envs, steps), spec.n_agents
    for td in (data, data["next"]):
        assert td[OBSERVATION].shape == (*batch, n, spec.observation_size)
        assert td[OBSERVATION].dtype == torch.float32
        assert td[STATE].shape == (*batch, spec.state_size)
        assert td[STATE].dtype == torch.float32
        assert td[OBSERVATION].isfinite().all()
        assert td[STATE].isfinite().all()
        for key in ("done", "terminated", "truncated"):
            assert td[key].shape == (*batch, 1)
            assert td[key].dtype == torch.bool
        assert (td["done"] == td["terminated"] | td["truncated"]).all()
        assert (ACTION_MASK in td.keys(True)) == spec.has_action_mask
    assert data["next", *REWARD].shape == (*batch, n, 1)
    assert data["next", *REWARD].dtype == torch.float32
    assert data["next", *REWARD].isfinite().all()
    action = data[ACTION]
    if spec.discrete:
        assert action.shape == (*batch, n)
        assert action.dtype == torch.int64
        assert int(action.amin()) >= 0
        assert int(action.amax()) < spec.action_size
    else:
        assert action.shape == (*batch, n, spec.action_size)
        assert action.amin() >= spec.action_low
        assert action.amax() <= spec.action_high
        assert (env.full_action_spec[ACTION].space.low == spec.action_low).all()
        assert (env.full_action_spec[ACTION].space.high == spec.action_high).all()
    if spec.has_action_mask:
        assert data[ACTION_MASK].shape == (*batch, n, spec.action_size)
        assert data[ACTION_MASK].gather(-1, action.unsqueeze(-1)).all()
    assert data["next", "done"].any()


@contract
def test_time_limit_is_truncated_only(task, options):
    if task == "games/two_step":
        pytest.skip("the two-step game always terminates")
    env = make_env(task, num_envs=2, seed=0, max_steps=3, **options)
    assert env.max_episode_steps == 3
    data = env.rollout(3, break_when_any_done=False)["next"]
    assert data["truncated"].squeeze(-1).tolist() == [[False, False, True]] * 2
    assert not data["terminated"].any()
    assert data["step_count"].squeeze(-1).tolist() == [[1, 2, 3]] * 2


@contract
def test_same_seed_same_rollout(task, options):
    def play(seed):
        env = make_env(task, num_envs=3, seed=seed, **options)
        other = make_env(task, num_envs=3, seed=99, **options)
        torch.manual_seed(5)
        first = env.rollout(7, break_when_any_done=False)
        other.rollout(3)
        second = env.rollout(4, break_when_any_done=False)
        return torch.cat([first, second], 1)

    first, same, different = play(7), play(7), play(8)
    assert (first == same).all()
    if task not in ("games/two_step", "games/xor", "vmas/kinematic_bicycle"):  # these have no chance
        assert not torch.equal(first[STATE][:, 0], different[STATE][:, 0])
    env = make_env(task, num_envs=3, seed=8, **options)
    env.set_seed(7)
    assert torch.equal(env.reset()[STATE], first[STATE][:, 0])


@contract
def test_environments_leave_torchs_generator_alone(task, options):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    env = make_env(task, num_envs=2, seed=3, **options)
    td = env.reset()
    td.set(ACTION, env.full_action_spec[ACTION].zero())
    env.step(td)
    assert torch.equal(torch.get_rng_state(), before)


@contract
def test_partial_reset_leaves_the_neighbours(task, options):
    env = make_env(task, num_envs=3, seed=0, **options)
    td = env.rollout(1, break_when_any_done=False)[:, -1]["next"]
    before = td.clone()
    td["_reset"] = torch.tensor([[False], [True], [False]])
    after = env.reset(td)
    keep = torch.tensor([0, 2])
    for key in (OBSERVATION, STATE, "step_count"):
        assert torch.equal(after[key][keep], before[key][keep])
    assert after["step_count"][1] == 0
    if task not in ("games/xor", "vmas/kinematic_bicycle"):
        assert not torch.equal(after[STATE][1], before[STATE][1])


@contract
def test_next_observation_is_the_true_one_at_the_end(task, options):
    limit = {} if task == "games/two_step" else {"max_steps": 2}
    env = make_env(task, num_envs=2, seed=0, **limit, **options)
    alone = make_env(task, num_envs=2, seed=0, **limit, **options)
    td, alone_td = env.reset(), alone.reset()
    for _ in range(2):
        action = env.full_action_spec[ACTION].zero() + (
            0 if env.task_spec.discrete else 0.3 * env.task_spec.action_high
        )
        result, td = env.step_and_maybe_reset(td.set(ACTION, action))
        alone_td = alone.step(alone_td.set(ACTION, action))["next"]
    assert result["next", "done"].all()
    for key in (OBSERVATION, STATE):
        assert torch.equal(result["next", *([key] if isinstance(key, str) else key)], alone_td[key])
    assert not td["done"].any()
    assert (td["step_count"] == 0).all()


@pytest.mark.filterwarnings("ignore:Force limits not specified")
@pytest.mark.parametrize("task", [task for task in list_tasks() if task.startswith("vmas/")])
def test_all_vmas_scenarios(task):
    env = make_env(task, num_envs=2, seed=0, max_steps=3)
    check_env_specs(env)
    data = env.rollout(4, break_when_any_done=False)
    assert data[OBSERVATION].isfinite().all()
    assert data["next", *REWARD].isfinite().all()
    assert env.task_spec.state_size == sum(env.observation_sizes)
    assert env.task_spec.observation_size == max(env.observation_sizes)


def test_unknown_task_lists_close_names():
    with pytest.raises(ValueError, match=r"Unknown task 'mpe/simple_spred'; close names are mpe/simple_spread"):
        make_env("mpe/simple_spred")
    with pytest.raises(ValueError, match=r"games/grid_navigation"):
        make_env("grid_navigation")


def test_missing_library_says_what_to_install(monkeypatch):
    missing = factory.Family({"task": "games:Xor"}, library="no_such_library", install="pip install it")
    monkeypatch.setitem(factory.FAMILIES, "absent", missing)
    assert list_tasks()["absent/*"] == "pip install it"
    assert list_tasks()["games/xor"] == "installed"
    with pytest.raises(ModuleNotFoundError, match=r"'absent/task' needs the library 'no_such_library'.*pip install it"):
        make_env("absent/task")


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("games/grid_navigation", {"agents": 6}, "agents must be one of"),
        ("games/xor", {"num_envs": 0}, "num_envs must be at least 1"),
        ("games/xor", {"max_steps": 0}, "max_steps must be at least 1"),
        ("mpe/simple_spread", {"integration": "euler"}, "integration must be"),
    ],
)
def test_bad_options(task, options, message):
    with pytest.raises(ValueError, match=message):
        make_env(task, **options)
