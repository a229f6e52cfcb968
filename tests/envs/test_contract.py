"""What every environment of ``make_env`` keeps to."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from host_waits import NO_DEVICE, HostWaits
from selection import some_of
from torchrl.envs import check_env_specs

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, REWARD, STATE, TaskSpec
from torchrl_marl_offline.envs import factory, list_tasks, make_env

TASKS = [
    ("mpe/simple_spread", {}),
    ("mpe/simple_tag", {}),
    ("mpe/simple_world", {"opponent": "random"}),
    ("games/two_step", {}),
    ("games/xor", {}),
    ("games/climb", {"penalty": True}),
    ("games/bridge", {}),
    ("games/grid_navigation", {"agents": 3, "sight": 3}),
    ("games/grid_goals", {"agents": 3}),
    ("mpe/spread_goals", {"pays": "own"}),
    ("games/recall", {"delay": 3}),
    ("games/telephone", {"agents": 3, "words": 2, "delay": 3}),
    ("games/stitch", {"agents": 3, "actions": 4}),
    ("games/hanabi", {"agents": 3}),
    ("games/foraging", {"agents": 3, "food": 2, "sight": 2}),
    ("rware/tiny", {}),
    ("rware/small", {"agents": 4, "difficulty": "hard", "reward": "team"}),
    ("lle/level1", {}),
    ("lle/level6", {"sight": 5, "reward": "exits"}),
    ("overcooked/cramped_room", {}),
    ("overcooked/forced_coordination", {"shaping": 1.0, "random_positions": True}),
    ("games/prisoners_dilemma", {}),
    ("games/public_goods", {"agents": 3}),
    ("games/commons", {"agents": 4}),
    ("vmas/balance", {}),
    ("vmas/give_way", {}),
    ("vmas/simple_crypto", {}),
    ("vmas/kinematic_bicycle", {}),
    ("mamujoco/2reacher", {}),
    ("mamujoco/3pusher", {}),
    *([("ogbench/antmaze-medium-2x4", {})] if find_spec("ogbench") else []),
]
IDS = [task for task, _ in TASKS]
FIXED_LENGTH = (
    "games/two_step",
    "games/climb",
    "games/recall",
    "games/telephone",
    "games/stitch",
    "games/hanabi",
)  # these always terminate, and take no max_steps
MIXED_MOTIVES = ("games/prisoners_dilemma", "games/public_goods")
WITHOUT_CHANCE = (
    "games/two_step",
    "games/xor",
    "games/climb",
    "games/bridge",
    "vmas/kinematic_bicycle",
    "lle/level1",
    "lle/level6",
    "overcooked/cramped_room",
    *MIXED_MOTIVES,
)
ONE_STATE = ("games/xor", "games/climb", "vmas/kinematic_bicycle")  # a start looks like any other time
VMAS = [task for task in list_tasks() if task.startswith("vmas/")]


def _short(task, max_steps):
    return {} if task in FIXED_LENGTH else {"max_steps": max_steps}


contract = pytest.mark.parametrize(("task", "options"), TASKS, ids=IDS)


@contract
@pytest.mark.parametrize("num_envs", [1, 3])
def test_specs_and_layout(task, options, num_envs):
    env = make_env(task, num_envs=num_envs, seed=0, **_short(task, 20), **options)
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


@pytest.mark.parametrize(("task", "options"), [task for task in TASKS if task[0].startswith(("mpe/", "games/"))])
def test_tensors_are_made_where_the_environment_is(task, options):
    env = make_env(task, num_envs=3, seed=0, **_short(task, 3), **options)
    with HostWaits() as waits:
        following = env.reset()
        for _ in range(5):
            following = env.step_and_maybe_reset(env.rand_action(following))[1]
    assert len(waits.names) > 5 and not [name for name in waits.found if name.endswith(NO_DEVICE)]


@contract
def test_time_limit_is_truncated_only(task, options):
    if task in FIXED_LENGTH:
        pytest.skip("the game always terminates")
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
    if task not in WITHOUT_CHANCE:
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
    td = _moved(env, env.rollout(1, break_when_any_done=False)[:, -1]["next"])
    before = td.clone()
    td["_reset"] = torch.tensor([[False], [True], [False]])
    after = env.reset(td)
    keep = torch.tensor([0, 2])
    for key in (OBSERVATION, STATE, "step_count"):
        assert torch.equal(after[key][keep], before[key][keep])
    assert after["step_count"][1] == 0
    if task not in ONE_STATE:
        assert not torch.equal(after[STATE][1], before[STATE][1])


@contract
def test_next_observation_is_the_true_one_at_the_end(task, options):
    env, alone = (make_env(task, num_envs=2, seed=0, **_short(task, 2), **options) for _ in range(2))
    td, alone_td = env.reset(), alone.reset()
    ended = torch.zeros(2, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        action = env.full_action_spec[ACTION].zero() + (
            0 if env.task_spec.discrete else 0.3 * env.task_spec.action_high
        )
        result, td = env.step_and_maybe_reset(td.set(ACTION, action))
        alone_td = alone.step(alone_td.set(ACTION, action))["next"]
        ends = result["next", "done"].squeeze(-1) & ~ended  # the first ones
        for key in (OBSERVATION, STATE):
            assert torch.equal(result["next", *([key] if isinstance(key, str) else key)][ends], alone_td[key][ends])
        assert not td["done"].any()
        assert (td["step_count"][ends] == 0).all()
        ended |= ends
    assert ended.all()


def _moved(env, td):
    """Walk on until every environment has left its start, which a random action may not do."""
    may_stay = env.task_spec.task in ("games/bridge", "lle/level1", "lle/level6")
    start = env.reset()[STATE] if may_stay else None
    while start is not None and (td[STATE] == start).all(-1).any():
        td = env.rollout(1, auto_reset=False, tensordict=td, break_when_any_done=False)[:, -1]["next"]
    return td


@contract
def test_a_reset_forgets_the_episode_before(task, options):
    """An environment that is reset alone, in the middle, plays the episode that it plays when all are reset."""
    if task.startswith("vmas/"):
        options = options | {"starts": "independent"}
    alone, together = (make_env(task, num_envs=3, seed=2, **options) for _ in range(2))
    td = alone.rollout(1, break_when_any_done=False)[:, -1]["next"].exclude(("agents", "reward"))
    td["_reset"] = torch.tensor([[False], [True], [True]])
    td = alone.reset(td)
    together.reset()
    other = together.reset()
    for key in (OBSERVATION, STATE, "step_count"):
        torch.testing.assert_close(td[key][1:], other[key][1:])
    action = alone.full_action_spec[ACTION].zero()
    after, expected = (env.step(each.set(ACTION, action))["next"] for env, each in ((alone, td), (together, other)))
    for key in (OBSERVATION, REWARD, "terminated"):
        torch.testing.assert_close(after[key][1:], expected[key][1:])


@contract
def test_an_environment_plays_the_same_among_few_or_many(task, options):
    if task == "vmas/simple_crypto":
        pytest.skip("VMAS draws for the whole batch at every reset of one environment")
    if task.startswith("vmas/"):
        options = options | {"starts": "independent"}

    def play(num_envs):
        env = make_env(task, num_envs=num_envs, seed=4, **_short(task, 9), **options)
        low = env.full_action_spec[ACTION].zero() + (0 if env.task_spec.discrete else env.task_spec.action_low)
        td, seen = env.reset(), []
        for step in range(20):
            # the same action everywhere; ends fall together in some tasks, and apart in others
            action = step % env.task_spec.action_size if env.task_spec.discrete else 0.1 * step
            td, following = env.step_and_maybe_reset(td.set(ACTION, low + action))
            seen.append(torch.cat([td["next", STATE], td["next", *REWARD].flatten(1)], -1)[:3])
            td = following
        return torch.stack(seen)

    few, many = play(3), play(11)
    torch.testing.assert_close(few, many, rtol=0, atol=1e-5)
    if task not in WITHOUT_CHANCE:
        assert not torch.equal(few[0], few[-1])
        assert not torch.equal(few[:, 0], few[:, 1])


@contract
def test_starts_have_one_distribution(task, options):
    """The starts of first episodes, of later ones and of partial resets have the same mean and spread."""
    if task in (*WITHOUT_CHANCE, "vmas/give_way"):
        pytest.skip("the start is always the same")
    count = 300 if task.startswith("vmas/") else 3000
    env = make_env(task, num_envs=count, seed=0, **options)
    first = env.reset()[STATE]
    td = env.reset()
    later = td[STATE].clone()
    half = torch.arange(count).unsqueeze(-1) % 2 == 0
    again = env.reset(td.set("_reset", half))[STATE]
    assert torch.equal(again[1::2], later[1::2])
    varying = first.std(0) > 1e-6
    assert varying.any()
    for starts in (later, again):
        torch.testing.assert_close(starts[:, ~varying], first[:, ~varying], rtol=0, atol=1e-5)
    first, later, again = (starts[:, varying] for starts in (first, later, again))
    scale = first.std(0)
    for starts in (later, again, again[::2]):
        assert not torch.equal(starts, first[: len(starts)])
        error = (2 / len(starts)) ** 0.5
        assert ((starts.mean(0) - first.mean(0)).abs() / scale).max() < 5 * error
        # a number that is seldom another has a less certain spread than a Gaussian one
        error = (((first - first.mean(0)) / scale) ** 4).mean(0).clamp_min(5).sub(1).div(2 * len(starts)).sqrt()
        assert ((starts.std(0) / scale - 1).abs() / error).max() < 6


@contract
def test_ten_thousand_random_steps_stay_finite(task, options):
    env = make_env(task, num_envs=400, seed=0, **_short(task, 15), **options)
    data = env.rollout(25, break_when_any_done=False)
    assert data.shape == (400, 25)
    for key in (OBSERVATION, STATE, REWARD):
        assert data["next"][key].isfinite().all()
        assert data["next"][key].abs().max() < 1e4
    assert data["next", "step_count"].max() <= env.max_episode_steps
    assert data["next", "done"].any()


@contract
def test_actions_beyond_the_bounds_are_clipped(task, options):
    if make_env(task, **options).task_spec.discrete:
        pytest.skip("the actions are discrete")

    def play(factor):
        env = make_env(task, num_envs=3, seed=0, **options)
        high = env.full_action_spec[ACTION].zero() + env.task_spec.action_high * factor
        return env.step(env.reset().set(ACTION, high))["next"]

    for key in (OBSERVATION, REWARD):
        torch.testing.assert_close(play(1.0)[key], play(7.0)[key], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Force limits not specified")
@pytest.mark.parametrize("task", some_of(VMAS, every=3))
def test_all_vmas_scenarios(task):
    env = make_env(task, num_envs=3, seed=0, max_steps=3)
    check_env_specs(env)
    data = env.rollout(4, break_when_any_done=False)
    for key in (OBSERVATION, REWARD):
        assert data["next"][key].isfinite().all()
    last = data["next"][:, 2]
    assert (last["done"] == last["truncated"] | last["terminated"]).all()
    assert not (last["truncated"] & last["terminated"]).any()
    assert env.task_spec.state_size == sum(env.observation_sizes)
    assert env.task_spec.observation_size == max(env.observation_sizes)
    for i, size in enumerate(env.observation_sizes):
        assert (data[OBSERVATION][..., i, size:] == 0).all()
    td = data[:, -1]["next"].exclude(("agents", "reward")).set("_reset", torch.tensor([[False], [True], [False]]))
    # VMAS puts the marks of joints between their ends anew, in all environments
    bodies = [body for body in env._simulator.world.entities if not body.name.startswith("joint ")]
    before = [body.state.pos.clone() for body in bodies]
    after = env.reset(td.clone())
    for body, place in zip(bodies, before):
        assert torch.equal(body.state.pos[0], place[0])
        assert torch.equal(body.state.pos[2], place[2])
    assert torch.equal(after[OBSERVATION][::2], td[OBSERVATION][::2])
    assert env.render(1, size=64).shape[0] == 64


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
        ("games/grid_navigation", {"sight": 0}, "sight must be at least 1"),
        ("games/xor", {"num_envs": 0}, "num_envs must be at least 1"),
        ("games/xor", {"max_steps": 0}, "max_steps must be at least 1"),
        ("mpe/simple_spread", {"integration": "euler"}, "integration must be"),
        ("mpe/simple_tag", {"integration": "euler"}, "integration must be"),
        ("mpe/simple_tag", {"opponent": "flee"}, "opponent must be 'evade', 'random', 'still', a policy or a file"),
        ("vmas/balance", {"starts": "other"}, "starts must be"),
    ],
)
def test_bad_options(task, options, message):
    with pytest.raises(ValueError, match=message):
        make_env(task, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"foo": 1}, "mpe/simple_spread has no option 'foo'; it has max_steps, dtype, integration."),
        ({"device": "tpuu"}, "device must be one such as cpu or cuda, got 'tpuu'."),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there: torch sees"),
        ({"device": 3}, None),
    ],
)
def test_an_unknown_option_and_a_device_that_is_not_there_are_refused(options, sentence):
    with pytest.raises(ValueError) as error:
        make_env("mpe/simple_spread", **options)
    assert sentence is None or str(error.value).startswith(sentence)
