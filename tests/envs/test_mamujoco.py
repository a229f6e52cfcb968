"""MA-MuJoCo as an environment: names, sizes, padding, seeds, starts, threads, pictures."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import list_tasks, make_env
from torchrl_marl_offline.envs.mamujoco.names import ALIASES, PARTITIONS
from torchrl_marl_offline.envs.mamujoco.reference import make_reference

pytest.importorskip("gymnasium_robotics", reason="needs the extra 'mamujoco'")


@pytest.mark.parametrize(
    ("task", "obsk", "sizes", "state"),
    [
        ("2ant", 0, (61, 61), 105),
        ("2ant", 1, (63, 63), 105),
        ("3hopper", 0, (7, 7, 7), 11),
        ("3hopper", 1, (8, 9, 8), 11),
        ("6halfcheetah", 0, (7,) * 6, 17),
        ("6halfcheetah", 1, (9, 9, 8, 9, 9, 8), 17),
        ("2halfcheetah", 1, (12, 12), 17),
        ("2humanoid", 1, (242, 170), 348),
        ("ManySegmentSwimmer-3x2", 1, (5, 6, 5), 16),
        ("2ant", None, (105,), 105),
    ],
)
def test_sizes(task, obsk, sizes, state):
    env = make_env(f"mamujoco/{task}", agent_obsk=obsk)
    assert env.observation_sizes == sizes
    assert env.task_spec.n_agents == len(sizes)
    assert env.task_spec.observation_size == max(sizes)
    assert env.task_spec.state_size == state
    assert env.max_episode_steps == 1000
    assert env.reference_returns is None


def test_names():
    tasks = list_tasks()
    for name in (*ALIASES, *ALIASES.values(), *PARTITIONS):
        assert tasks[f"mamujoco/{name}"] == "installed"
    short, full = make_env("mamujoco/2antd", seed=0), make_env("mamujoco/Ant-2x4d", seed=0)
    assert torch.equal(short.reset()[OBSERVATION], full.reset()[OBSERVATION])
    assert make_env("mamujoco/ManySegmentAnt-1x2").task_spec.n_agents == 1
    for unknown in ("Ant-8x1", "ManySegmentAnt", "ManySegmentAnt-0x2", "2ants"):
        with pytest.raises(ValueError, match=r"Unknown task 'mamujoco/.*close names are mamujoco/"):
            make_env(f"mamujoco/{unknown}")


def play(env, actions):
    """Return the states and rewards of given actions ``[T, B, n, a]``."""
    td, seen = env.reset(), []
    for action in actions:
        result, td = env.step_and_maybe_reset(td.set(ACTION, action))
        seen.append(torch.cat([result["next", STATE], result["next", *REWARD].flatten(1)], -1))
    return torch.stack(seen)


def test_the_number_of_environments_and_threads_changes_nothing():
    actions = 2 * torch.rand(40, 7, 3, 1) - 1  # hoppers fall, and begin again, within 40 steps
    reference = play(make_env("mamujoco/3hopper", num_envs=7, seed=3, threads=1), actions)
    for num_envs, threads in ((1, 1), (4, 1), (7, 2), (7, 16)):
        env = make_env("mamujoco/3hopper", num_envs=num_envs, seed=3, threads=threads)
        assert torch.equal(play(env, actions[:, :num_envs]), reference[:, :num_envs])


def test_a_reset_of_nothing():
    env = make_env("mamujoco/3hopper", num_envs=3, seed=3, threads=2)
    td = env.rollout(3)[:, -1]["next"].exclude(("agents", "reward"))
    before = td[STATE].clone()
    assert torch.equal(env.reset(td.set("_reset", torch.zeros(3, 1, dtype=torch.bool)))[STATE], before)


def test_a_fall_is_no_truncation():
    data = make_env("mamujoco/3hopper", num_envs=20, seed=0).rollout(100, break_when_any_done=False)["next"]
    falls = data["terminated"]
    assert falls.any()
    assert not data["truncated"].any()
    assert (data["done"] == falls).all()
    height, angle = data[STATE][..., 0], data[STATE][..., 1]
    assert ((height <= 0.7) | (angle.abs() >= 0.2))[falls.squeeze(-1)].all()
    healthy = make_env("mamujoco/3hopper", num_envs=20, seed=0, terminate_when_unhealthy=False)
    assert not healthy.rollout(100, break_when_any_done=False)["next", "terminated"].any()


def test_padding_of_actions_is_ignored():
    env, other = (make_env("mamujoco/2humanoid", num_envs=2, seed=0) for _ in range(2))
    assert env.action_sizes == (9, 8)
    action = env.full_action_spec[ACTION].rand()
    padded = action.clone()
    padded[:, 1, 8] = 0.1
    after = env.step(env.reset().set(ACTION, action))["next"]
    assert (after == other.step(other.reset().set(ACTION, padded))["next"]).all()
    assert (after[OBSERVATION][:, 1, 170:] == 0).all()
    padded[:, 1, 7] = 0.1
    assert not torch.equal(other.step(other.reset().set(ACTION, padded))["next", STATE], after[STATE])


def test_set_state_is_a_start():
    env = make_env("mamujoco/6halfcheetah", num_envs=2, seed=0, dtype=torch.float64)
    actions = env.full_action_spec[ACTION].rand().expand(5, -1, -1, -1)
    qpos, qvel = torch.linspace(-0.1, 0.1, 18, dtype=torch.float64).view(2, 9), torch.ones(2, 9, dtype=torch.float64)

    def go():
        td = env.set_state(qpos, qvel)
        assert torch.equal(td[STATE], torch.cat([qpos[:, 1:], qvel], -1))
        for action in actions:
            td = env.step(td.set(ACTION, action))["next"]
        return td[STATE]

    first = go()
    env.rollout(20, break_when_any_done=False)
    assert torch.equal(go(), first)
    assert env.set_state(qpos, qvel)["step_count"].sum() == 0
    with pytest.raises(ValueError, match=r"qpos must have the shape \[2, 9\]"):
        env.set_state(qpos[:1], qvel)


def test_what_an_agent_sees_can_be_chosen():
    seen = {"local_categories": [["qvel"], ["qpos", "qfrc_actuator"]], "global_categories": ("qvel",)}
    env = make_env("mamujoco/2halfcheetah", seed=0, **seen)
    td = env.rollout(1)["next"]
    qvel = td[STATE][0, 0, 8:]
    # own velocities by label (bfoot, bshin, bthigh); position and motor force of fthigh; x, z, y of the root
    agent = td[OBSERVATION][0, 0, 0]
    assert agent[:3].tolist() == [qvel[5], qvel[4], qvel[3]]
    assert agent[3] == td[STATE][0, 0, 5]
    assert agent[5:].tolist() == qvel[:3].tolist()
    joints = make_reference("HalfCheetah", "6x1").agent_action_partitions
    mine = {"partition": [sum(joints[:1], ()), sum(joints[1:], ())], "edges": [], "globals": []}
    assert make_env("mamujoco/HalfCheetah-2x3", agent_factorization=mine, agent_obsk=0).action_sizes == (1, 5)
    node = deepcopy(joints[0][0])
    node.extra_obs = {"qpos": lambda data: 2 * data.qpos[3:4]}
    strange = mine | {"partition": [(node,), *mine["partition"][1:]]}
    with pytest.raises(ValueError, match="sees something that is no entry of MjData"):
        make_env("mamujoco/HalfCheetah-2x3", agent_factorization=strange, agent_obsk=0)
    mine["partition"] = mine["partition"][1:]
    with pytest.raises(ValueError, match="every motor to exactly one agent"):
        make_env("mamujoco/HalfCheetah-2x3", agent_factorization=mine, agent_obsk=0)


def test_options_of_gymnasium():
    free, dear = (make_env("mamujoco/2ant", seed=0, ctrl_cost_weight=weight) for weight in (0.0, 2.0))
    action = torch.full((1, 2, 4), 0.5)
    rewards = [env.step(env.reset().set(ACTION, action))["next", *REWARD] for env in (free, dear)]
    assert torch.allclose(rewards[0] - rewards[1], torch.tensor(2 * 8 * 0.25))
    with pytest.raises(TypeError, match="no_such_option"):
        make_env("mamujoco/2ant", no_such_option=1)
    with pytest.raises(TypeError, match="CoupledHalfCheetah has no options"):
        make_env("mamujoco/CoupledHalfCheetah-1p1", ctrl_cost_weight=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "brax"}, "backend must be 'mujoco' or 'warp'"),
        ({"backend": "mujoco", "device": "meta"}, "'mujoco' runs on the CPU"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"threads": 2, "backend": "warp"}, "backend 'warp' takes none"),
        ({"local_categories": [["qpos"]]}, "local_categories must have a list for each distance .* 2 in all, got 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_env("mamujoco/2ant", **options)


@pytest.mark.parametrize("scenario", PARTITIONS)
def test_starts_are_distributed_as_gymnasiums(scenario):
    n = 1500
    reference = make_reference(scenario, None).single_agent_env
    reference.reset(seed=0)
    base, theirs = reference.unwrapped, []
    for _ in range(n):
        base.reset_model()
        theirs.append(torch.as_tensor([*base.data.qpos, *base.data.qvel]))
    env = make_env(f"mamujoco/{scenario}", num_envs=n, seed=0)
    env.reset()
    ours = torch.cat([env._game["qpos"], env._game["qvel"]], -1)
    # two-sample Kolmogorov-Smirnov, coordinate by coordinate
    both = torch.cat([ours, torch.stack(theirs)]).T.contiguous()  # [coordinates, 2 n]
    points = both.sort(-1).values
    below = [torch.searchsorted(part.sort(-1).values.contiguous(), points, right=True) / n for part in both.split(n, 1)]
    assert (below[0] - below[1]).abs().amax() < 2.5 * (2 / n) ** 0.5  # p = 7e-6 for each
    assert torch.allclose(both[:, :n].mean(-1), both[:, n:].mean(-1), atol=0.02)


def test_ten_thousand_random_steps():
    env = make_env("mamujoco/2ant", num_envs=50, seed=0, max_steps=100)
    data = env.rollout(200, break_when_any_done=False)
    for td in (data, data["next"]):
        assert td[OBSERVATION].isfinite().all()
        assert td[STATE].isfinite().all()
    assert data["next", *REWARD].isfinite().all()
    assert data["next", "truncated"].any()
    rewards = data["next", *REWARD]
    assert torch.equal(rewards[..., 0, :], rewards[..., 1, :])  # the team's


def test_pictures():
    env = make_env("mamujoco/6halfcheetah", num_envs=2, seed=0)
    with pytest.raises(RuntimeError, match="before the first reset"):
        env.render()
    env.reset()
    before = env._game["qpos"].clone()
    try:
        frame = env.render(size=96)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert frame.shape == (96, 96, 3)
    assert frame.dtype.name == "uint8"
    assert frame.std() > 10
    assert (frame == env.render(0, size=96)).all()
    assert (frame != env.render(1, size=96)).any()
    assert env.render(size=64).shape == (64, 64, 3)
    assert torch.equal(env._game["qpos"], before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Gymnasium's, of a half-made viewer
def test_no_way_to_draw_is_said(monkeypatch):
    from torchrl_marl_offline.envs.mamujoco import rendering

    monkeypatch.setattr(rendering, "_libraries", lambda: ("no_such_library",))
    env = make_env("mamujoco/6halfcheetah")
    env.reset()
    with pytest.raises(RuntimeError, match=r"cannot draw here \(no_such_library: RuntimeError\); install EGL"):
        env.render()
