"""Other people's environments in the key layout: ``from_pettingzoo`` and ``from_torchrl``."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Sequence
from pettingzoo import ParallelEnv
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, OneHot
from torchrl.envs import PettingZooWrapper, StepCounter, TransformedEnv, VmasEnv, check_env_specs
from wrapped_toys import Toy

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, AGENT_MASK, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.data import collect
from torchrl_marl_offline.envs import from_pettingzoo, from_torchrl, make_env
from torchrl_marl_offline.evaluation import evaluate


class Relay(ParallelEnv):
    """A toy with unequal agents: "a" leaves after two steps by dying, the episode ends in the fourth.

    "a" sees (time, start) and has two actions, "b" sees (time, start, last action of a) and has three, from 1 on.
    """

    metadata: ClassVar = {"name": "relay"}

    def __init__(self, *, end="terminated", masked=False, leave="terminated"):
        self.possible_agents = ["a", "b"]
        self.end, self.masked, self.leave = end, masked, leave
        seen = {"a": Box(-9, 9, (2,)), "b": Box(-9, 9, (1, 3))}
        self.spaces = {
            name: Dict({"observation": space, "action_mask": Box(0, 1, (2 + i,), np.int8)}) if masked else space
            for i, (name, space) in enumerate(seen.items())
        }
        self.closed = False

    def observation_space(self, agent):
        return self.spaces[agent]

    def action_space(self, agent):
        return {"a": Discrete(2), "b": Discrete(3, start=1)}[agent]

    def reset(self, seed=None, options=None):
        self.start = np.random.default_rng(seed).random()
        self.time, self.last, self.agents = 0, 0, ["a", "b"]
        return self._look(self.agents), {name: {} for name in self.agents}

    def _look(self, names):
        seen = {"a": np.array([self.time, self.start]), "b": np.array([[self.time, self.start, self.last]])}
        if self.masked:
            masks = {"a": np.array([1, 1], np.int8), "b": np.array([self.time != 1, 1, 1], np.int8)}
            return {name: {"observation": seen[name], "action_mask": masks[name]} for name in names}
        return {name: seen[name] for name in names}

    def step(self, actions):
        assert set(actions) == set(self.agents)
        assert all(isinstance(action, int) for action in actions.values())
        acting = self.agents
        self.time += 1
        self.last = actions.get("a", 7)
        flags = {"terminated": dict.fromkeys(acting, False), "truncated": dict.fromkeys(acting, False)}
        leaving = {2: ["a"], 4: ["b"]}.get(self.time, [])
        for name in leaving:
            flags[self.end if self.time == 4 else self.leave][name] = True
        self.agents = [name for name in acting if name not in leaving]
        rewards = {name: 10.0 * self.time + actions[name] for name in acting}
        return self._look(acting), rewards, flags["terminated"], flags["truncated"], {name: {} for name in acting}

    def close(self):
        self.closed = True


def _play(env, actions):
    """Return the rows of a roll-out with given joint actions, resetting in between."""
    td, rows = env.reset(), []
    for action in actions:
        row, td = env.step_and_maybe_reset(td.set(ACTION, torch.tensor(action).expand(*env.batch_size, -1)))
        rows.append(row)
    return rows


def test_relay_by_hand():
    env = from_pettingzoo(Relay(), seed=0, max_steps=10)
    check_env_specs(env)
    spec = env.task_spec
    assert (spec.n_agents, spec.observation_size, spec.state_size, spec.action_size) == (2, 3, 6, 3)
    assert (spec.discrete, spec.has_action_mask, spec.task) == (True, True, "pettingzoo/relay")
    assert (env.observation_sizes, env.max_episode_steps, env.reference_returns) == ((2, 3), 10, None)
    rows = _play(env, [[1, 2], [0, 1], [0, 0], [0, 2], [1, 1]])
    start = rows[0][OBSERVATION][0, 0, 1].item()
    seen = torch.stack([row["next", *OBSERVATION][0] for row in rows[:4]])
    expected = [
        [[1, start, 0], [1, start, 1]],
        [[2, start, 0], [2, start, 0]],  # the last observation of "a"
        [[0, 0, 0], [3, start, 7]],
        [[0, 0, 0], [4, start, 7]],
    ]
    torch.testing.assert_close(seen, torch.tensor(expected))
    torch.testing.assert_close(rows[2]["next", STATE], torch.tensor([[0, 0, 0, 3, start, 7]]))
    # actions of "b" count from 1; the dead agent's reward is 0
    assert [row["next", *REWARD].flatten().tolist() for row in rows[:4]] == [[11, 13], [20, 22], [0, 31], [0, 43]]
    assert [row["next", *AGENT_MASK].tolist()[0] for row in rows[:3]] == [[True, True], [False, True], [False, True]]
    # at the end, who was there counts as alive
    assert rows[3]["next", *AGENT_MASK].tolist() == [[False, True]]
    assert [row["next", "terminated"].item() for row in rows] == [False, False, False, True, False]
    assert not any(row["next", "truncated"].any() for row in rows)
    assert rows[0][ACTION_MASK].tolist() == [[[True, True, False], [True, True, True]]]
    assert rows[2][ACTION_MASK].tolist() == [[[True, False, False], [True, True, True]]]
    # the fifth row begins a new episode, with another seed
    assert rows[4][AGENT_MASK].all()
    assert rows[4][STATE][0, 0] == 0
    assert rows[4][STATE][0, 1] != pytest.approx(start)


@pytest.mark.parametrize("leave", ["terminated", "truncated"])
def test_an_end_by_truncation_is_told_apart(leave):
    rows = _play(from_pettingzoo(Relay(end="truncated", leave=leave), max_steps=10), [[0, 0]] * 4)
    assert [row["next", "truncated"].item() for row in rows] == [False, False, False, True]
    assert not any(row["next", "terminated"].any() for row in rows)
    rows = _play(from_pettingzoo(Relay(leave=leave), max_steps=3), [[0, 0]] * 3)
    assert [row["next", "truncated"].item() for row in rows] == [False, False, True]
    rows = _play(from_pettingzoo(Relay(), max_steps=4), [[0, 0]] * 4)  # ended by itself, in the last possible step
    assert (rows[3]["next", "terminated"].item(), rows[3]["next", "truncated"].item()) == (True, False)


def test_action_masks_in_observations():
    env = from_pettingzoo(lambda: Relay(masked=True), num_envs=3, seed=0, max_steps=10)
    check_env_specs(env)
    rows = _play(env, [[0, 1], [1, 2], [0, 1]])
    assert rows[1][ACTION_MASK][0].tolist() == [[True, True, False], [False, True, True]]
    assert env.task_spec.observation_size == 3
    data = env.rollout(40, break_when_any_done=False)
    assert data[ACTION_MASK].gather(-1, data[ACTION].unsqueeze(-1)).all()


def test_seeds_and_partial_resets_do_not_depend_on_the_others():
    few, many = (from_pettingzoo(Relay, num_envs=count, seed=3, max_steps=9) for count in (2, 5))
    for _ in range(3):
        assert torch.equal(few.reset()[STATE], many.reset()[STATE][:2])
    assert len(set(many.reset()[STATE][:, 1].tolist())) == 5
    td = _play(few, [[0, 0]])[-1]["next"].exclude(("agents", "reward"))
    after = few.reset(td.clone().set("_reset", torch.tensor([[True], [False]])))
    assert torch.equal(after[STATE][1], td[STATE][1])
    assert after[STATE][0, 0] == 0
    assert after["step_count"].flatten().tolist() == [0, 1]
    few.set_seed(3)
    many.set_seed(3)
    assert torch.equal(few.reset()[STATE], many.reset()[STATE][:2])


def test_collection_and_evaluation():
    env = from_pettingzoo(Relay, num_envs=2, seed=0, max_steps=10)
    dataset = collect(env, episodes=4, seed=0)
    assert len(dataset.data) == 16
    assert dataset.data[AGENT_MASK].float().mean() == 0.75
    evaluation = evaluate(lambda td: td.set(ACTION, torch.zeros(2, 2, dtype=torch.int64)), env, episodes=4, seed=0)
    assert evaluation.lengths.tolist() == [4] * 4
    # per step the mean over two agents of 10 t + action: (10 + 11 + 20 + 21 + 31 + 41) / 2
    assert evaluation.returns.tolist() == [67.0] * 4
    env.close()
    assert all(each.closed for each in env._envs)


@pytest.mark.parametrize("continuous", [False, True])
def test_mpe2_plays_the_same_inside_and_outside(continuous):
    from mpe2 import simple_world_comm_v3

    raw = simple_world_comm_v3.parallel_env(continuous_actions=continuous)
    env = from_pettingzoo(lambda: simple_world_comm_v3.parallel_env(continuous_actions=continuous), num_envs=2, seed=0)
    assert env.max_episode_steps == 25
    check_env_specs(env)
    names, sizes = raw.possible_agents, env.observation_sizes
    env.set_seed(5)
    td = env.reset()
    seed = int((env.random.uniform(1)[1] * 2**31).long())
    observations, _ = raw.reset(seed=seed)
    for step in range(25):
        for i, name in enumerate(names):
            seen = torch.from_numpy(observations[name]).float()
            torch.testing.assert_close(td[OBSERVATION][1, i, : sizes[i]], seen)
            assert (td[OBSERVATION][1, i, sizes[i] :] == 0).all()
        torch.testing.assert_close(td[STATE][1], torch.from_numpy(raw.state()).float())
        td = env.rand_action(td)
        action = td[ACTION][1]
        if not continuous:
            chosen = {name: int(action[i]) for i, name in enumerate(names)}
        else:
            chosen = {name: action[i, : raw.action_space(name).shape[0]].numpy() for i, name in enumerate(names)}
        observations, rewards, _, truncated, _ = raw.step(chosen)
        td = env.step(td)["next"]
        torch.testing.assert_close(td[REWARD][1].flatten(), torch.tensor([float(rewards[name]) for name in names]))
        assert td["truncated"][1].item() == all(truncated.values()) == (step == 24)


def test_environments_by_turns():
    from mpe2 import simple_speaker_listener_v4

    env = from_pettingzoo(simple_speaker_listener_v4.env(), seed=0)  # agents act at the same time
    check_env_specs(env)
    assert env.task_spec.n_agents == 2
    aec = simple_speaker_listener_v4.env()
    aec.unwrapped.metadata["is_parallelizable"] = False
    try:
        with pytest.raises(ValueError, match=r"act in turns.*is_parallelizable"):
            from_pettingzoo(aec)
    finally:
        aec.unwrapped.metadata["is_parallelizable"] = True


def test_pictures_are_the_environments_own():
    env = from_pettingzoo(Relay(), max_steps=5)
    env._envs[0].render = lambda: np.full((4, 6, 4), 7.0)
    assert env.render().shape == (4, 6, 3)
    env._envs[0].render = lambda: None
    with pytest.raises(RuntimeError, match="render_mode='rgb_array'"):
        env.render()


class _Odd(Relay):
    def __init__(self, seen=None, does=None, **options):
        super().__init__(**options)
        self._seen, self._does = seen, does

    def observation_space(self, agent):
        return self._seen or super().observation_space(agent)

    def action_space(self, agent):
        return self._does[agent] if self._does else super().action_space(agent)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (Relay, {}, "Relay does not say how long an episode may last: give max_steps"),
        (Relay(), {"num_envs": 2}, "give a function that makes one"),
        (Relay, {"num_envs": 0}, "num_envs must be at least 1"),
        (_Odd(does={"a": Discrete(2), "b": Box(0, 1, (2,))}), {"max_steps": 5}, "one kind for all"),
        (_Odd(does={"a": Discrete(2), "b": MultiDiscrete([2, 2])}), {"max_steps": 5}, "only Discrete and Box"),
        (_Odd(does={"a": Box(0, 1, (2,)), "b": Box(0, np.inf, (1,))}), {"max_steps": 5}, "need finite bounds"),
        (_Odd(seen=Sequence(Discrete(2))), {"max_steps": 5}, "cannot be flattened"),
    ],
)
def test_what_pettingzoo_cannot_give(env, options, message):
    with pytest.raises(ValueError, match=message):
        from_pettingzoo(env, **options)


def test_what_is_not_pettingzoo():
    with pytest.raises(TypeError, match="got int"):
        from_pettingzoo(3)
    with pytest.raises(TypeError, match="got dict"):
        from_pettingzoo(dict)
    env = from_pettingzoo(Relay(), max_steps=9)
    td = env.reset()
    with pytest.raises(ValueError, match="'a' has 2 actions, got action 2"):
        env.step(td.set(ACTION, torch.tensor([[2, 0]])))
    env = from_pettingzoo(Relay(), max_steps=9)
    td = env.reset()
    for _ in range(4):
        td = env.step(td.set(ACTION, torch.zeros(1, 2, dtype=torch.int64)))["next"]
    with pytest.raises(RuntimeError, match="Environment 0 is done"):
        env.step(td.set(ACTION, torch.zeros(1, 2, dtype=torch.int64)))


BOXES = {"x": Bounded(-1, 1, (3, 2, 2)), "y": Bounded(0, 4, (3, 1, 1))}


def test_torchrl_groups_by_hand():
    toy = Toy(BOXES)
    env = from_torchrl(toy, seed=11, max_steps=6)
    check_env_specs(env)
    spec = env.task_spec
    assert (spec.n_agents, spec.observation_size, spec.state_size, spec.action_size) == (3, 3, 9, 2)
    assert (spec.discrete, spec.action_low, spec.action_high, spec.task) == (False, -1.0, 1.0, "torchrl/Toy")
    assert toy.seeded == 11
    td, rows = env.reset(), []
    for _ in range(5):
        row, td = env.step_and_maybe_reset(
            td.set(ACTION, torch.tensor([[0.5, 1.0], [-1.0, 5.0], [0.5, 9.0]]).expand(3, 3, 2))
        )
        rows.append(row)
    assert rows[1][OBSERVATION][0].tolist() == [[1, 1, 0], [1, 1, 0], [1.5, 1.5, 1]]
    assert rows[1][STATE][0].tolist() == [1, 1, 0, 1, 1, 0, 1.5, 1.5, 1]
    # rewards a_1 + 2 a_2; the third agent's 0.5 is scaled from [-1, 1] to [0, 4]
    torch.testing.assert_close(rows[0]["next", *REWARD][0].flatten(), torch.tensor([2.5, 1.0, 3.0]))
    assert [row["next", "terminated"][0].item() for row in rows] == [False, False, False, True, False]
    assert [row["next", *AGENT_MASK][0].tolist() for row in rows[:2]] == [[True] * 3, [True, True, False]]
    assert rows[3]["next", *OBSERVATION][0, 0, 0] == 4
    assert rows[4][OBSERVATION][0, 0, 0] == 0


def test_torchrl_partial_resets_and_time_limits():
    env = from_torchrl(TransformedEnv(Toy(BOXES), StepCounter(max_steps=3)))
    assert env.max_episode_steps == 3
    check_env_specs(env)
    data = env.rollout(3, break_when_any_done=False)["next"]
    assert data["truncated"][0].flatten().tolist() == [False, False, True]
    assert not data["terminated"].any()
    env = from_torchrl(Toy(BOXES), max_steps=9)
    td = env.rollout(2)[:, -1]["next"].exclude(("agents", "reward"))
    after = env.reset(td.clone().set("_reset", torch.tensor([[False], [True], [False]])))
    assert after[OBSERVATION][:, 0, 0].tolist() == [2, 0, 2]
    assert after["step_count"].flatten().tolist() == [2, 0, 2]
    ends = env.rollout(4, auto_reset=False, tensordict=after, break_when_any_done=False)["next", "done"].squeeze(-1)
    assert ends.tolist() == [[False, True, False, False], [False, False, False, True], [False, True, False, False]]


@pytest.mark.parametrize("kind", [Categorical, OneHot])
def test_torchrl_discrete_groups_of_unequal_numbers(kind):
    shapes = {"x": ((3, 2), 2), "y": ((3, 1), 4)}
    if kind is OneHot:
        actions = {name: OneHot(n, (*shape, n), dtype=torch.int64) for name, (shape, n) in shapes.items()}
    else:
        actions = {name: Categorical(n, shape, dtype=torch.int64) for name, (shape, n) in shapes.items()}
    env = from_torchrl(Toy(actions), max_steps=9)
    check_env_specs(env)
    assert (env.task_spec.action_size, env.task_spec.has_action_mask) == (4, True)
    td = env.reset()
    assert td[ACTION_MASK][0].tolist() == [[True, True, False, False]] * 2 + [[True] * 4]
    after = env.step(td.set(ACTION, torch.tensor([[0, 1, 3]]).expand(3, 3)))["next"]
    expected = [1, 2, 4] if kind is OneHot else [0, 1, 3]
    assert after[REWARD][0].flatten().tolist() == expected
    with pytest.raises(ValueError, match="Group 'x' has 2 actions"):
        env.step(td.set(ACTION, torch.full((3, 3), 2)))


def test_torchrl_single_environment_with_everything_at_the_root():
    boxes = {"x": Bounded(-1, 1, (2, 2)), "y": Bounded(-1, 1, (1, 1))}
    env = from_torchrl(Toy(boxes, batch=(), done_at_root=True, root_reward=True), max_steps=9)
    check_env_specs(env)
    data = env.rollout(6, break_when_any_done=False)
    assert data.shape == (1, 6)
    assert data["next", "terminated"].flatten().tolist() == [False, False, False, True, False, False]
    assert data["next", *REWARD][0, 1].flatten().tolist() == [2.0, 2.0, 2.0]


def test_torchrl_group_map_orders_the_groups():
    env = from_torchrl(Toy(BOXES), group_map=["y", "x"], max_steps=9)
    assert env.observation_sizes == (3, 2, 2)
    with pytest.raises(ValueError, match=r"must name every group that acts, \['x', 'y'\], once; it names \['x'\]"):
        from_torchrl(Toy(BOXES), group_map={"x": ["a", "b"]}, max_steps=9)


def test_vmas_env_and_our_own_tell_the_same():
    theirs = from_torchrl(VmasEnv("balance", num_envs=3, seed=0), max_steps=20)
    check_env_specs(theirs)
    assert theirs.task_spec == replace(make_env("vmas/balance").task_spec, task="torchrl/VmasEnv")
    with pytest.raises(ValueError, match="reports its time limit as a termination"):
        from_torchrl(VmasEnv("balance", num_envs=3, max_steps=5))


@pytest.mark.filterwarnings("ignore:PettingZoo in TorchRL is tested")
def test_pettingzoo_through_torchrl_and_straight():
    from mpe2 import simple_tag_v3

    direct = from_pettingzoo(simple_tag_v3.parallel_env(), seed=0)
    wrapped = from_torchrl(PettingZooWrapper(simple_tag_v3.parallel_env()), seed=0)
    check_env_specs(wrapped)
    assert direct.max_episode_steps == wrapped.max_episode_steps == 25
    assert direct.observation_sizes == wrapped.observation_sizes
    data = wrapped.rollout(30, break_when_any_done=False)
    assert data["next", "truncated"].flatten().nonzero().flatten().tolist() == [24]


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (lambda: Toy(BOXES), {}, "Toy does not say how long an episode may last: give max_steps"),
        (
            lambda: Toy({"x": Categorical(2, (3, 2)), "y": Bounded(0, 1, (3, 1, 1))}),
            {"max_steps": 3},
            "have discrete and some continuous actions",
        ),
        (
            lambda: Toy({"x": MultiCategorical([2, 2], (3, 2, 2)), "y": Categorical(2, (3, 1))}),
            {"max_steps": 3},
            "The actions of group 'x' are MultiCategorical",
        ),
        (lambda: Toy({"x": Categorical(2, (3, 2)), "z": Categorical(2, (3, 1))}), {"max_steps": 3}, "'z' has no obs"),
    ],
)
def test_what_torchrl_cannot_give(env, options, message):
    with pytest.raises(ValueError, match=message):
        from_torchrl(env(), **options)


def test_what_is_not_a_multi_agent_environment():
    with pytest.raises(TypeError, match="got Relay"):
        from_torchrl(Relay())
    single = Toy(BOXES)
    single.action_spec = Composite(action=Bounded(-1, 1, (3, 2)), shape=(3,))
    with pytest.raises(ValueError, match=r"Every action key must be \(group, 'action'\)"):
        from_torchrl(single, max_steps=3)
