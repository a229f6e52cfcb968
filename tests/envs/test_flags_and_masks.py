"""PettingZoo and TorchRL environments that keep to the letter of their interface in unlike ways."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from pettingzoo import ParallelEnv
from torchrl.data import Bounded
from torchrl.envs import SerialEnv, StepCounter, TransformedEnv
from wrapped_toys import Toy

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, AGENT_MASK, OBSERVATION, REWARD, STATE, next_key
from torchrl_marl_offline.data import collect, from_arrays
from torchrl_marl_offline.envs import from_pettingzoo, from_torchrl
from torchrl_marl_offline.evaluation import evaluate
from torchrl_marl_offline.modules import make_critic


class Odd(ParallelEnv):
    """Agent "a" ends at step 3 and "b" at step 6; action 1 is forbidden at odd times, if there is a mask."""

    metadata: ClassVar = {"name": "odd"}
    possible_agents: ClassVar = ["a", "b"]

    def __init__(self, *, keeps=True, end=("terminated",), mask=None, state=None, legal_from=0):
        self.keeps, self.end, self.mask_in, self.given, self.legal_from = keeps, end, mask, state, legal_from

    def observation_space(self, agent):
        seen = Box(0, 9, (2,) if agent == "a" else (3,))
        masks = {"action_mask": Box(0, 1, (2,), np.int8)}
        return {
            "observation": Dict({"observation": seen, **masks}),
            "more in the observation": Dict({"far": seen, "near": Box(0, 9, (1,)), **masks}),
        }.get(self.mask_in, seen)

    def action_space(self, agent):
        return Discrete(2)

    def _look(self):
        seen = {name: np.full(2 + (name == "b"), self.time, np.float32) for name in self.agents}
        has_mask = self.mask_in is not None and self.time >= self.legal_from
        masks = {name: {"action_mask": np.array([1, self.time % 2 == 0], np.int8)} for name in self.agents}
        if self.mask_in == "more in the observation":
            seen = {name: {"far": each, "near": each[:1], **masks[name]} for name, each in seen.items()}
        elif self.mask_in is not None and "observation" in self.mask_in and has_mask:
            seen = {name: {"observation": each, **masks[name]} for name, each in seen.items()}
        return seen, masks if self.mask_in == "infos" and has_mask else {name: {} for name in self.agents}

    def reset(self, seed=None, options=None):
        self.time, self.agents, self.dead = 0, ["a", "b"], set()
        return self._look()

    def step(self, actions):
        assert set(actions) == set(self.agents)
        if self.mask_in is not None and self.time >= self.legal_from and self.time % 2:
            assert not any(actions.values()), "an illegal action was played"
        self.time += 1
        over = {name for name in self.agents if self.time >= {"a": 3, "b": 6}[name]}
        flags = [{n: n in over and kind in self.end for n in self.agents} for kind in ("terminated", "truncated")]
        seen, infos = self._look()
        rewards = dict.fromkeys(self.agents, 1.0)
        if not self.keeps:
            self.agents = [name for name in self.agents if name not in over]
        return seen, rewards, *flags, infos

    def state(self):
        if self.given is None:
            raise NotImplementedError
        return self.given(self.time)


@pytest.mark.fault("3.11")
@pytest.mark.parametrize("end", [("terminated",), ("truncated",), ("terminated", "truncated")], ids="-".join)
@pytest.mark.parametrize("keeps", [True, False], ids=["keeps its list", "empties its list"])
def test_flags_end_an_episode_whatever_the_list_of_agents_says(keeps, end):
    env = from_pettingzoo(lambda: Odd(keeps=keeps, end=end), num_envs=2, seed=0, max_steps=20)
    data = env.rollout(8, break_when_any_done=False)[0]
    assert data["next", "done"].flatten().tolist() == [t == 5 for t in range(8)]
    kind = "terminated" if "terminated" in end else "truncated"
    assert data["next", kind].any() and data["next", "done"].sum() == data["next", kind].sum()
    assert data[AGENT_MASK][:, 0].tolist() == [True] * 3 + [False] * 3 + [True] * 2
    assert data[next_key(AGENT_MASK)][:6].tolist() == [[True, True]] * 2 + [[False, True]] * 4
    assert data["next", *REWARD][:6, :, 0].tolist() == [[1, 1]] * 3 + [[0, 1]] * 3
    assert not data["next", *OBSERVATION][3:6, 0].any() and data["next", *OBSERVATION][2, 0].tolist() == [3, 3, 0]
    assert data[STATE][6].tolist() == [0] * 6  # a new episode


@pytest.mark.fault("3.11")
@pytest.mark.parametrize("legal_from", [0, 1])
@pytest.mark.parametrize("where", ["observation", "more in the observation", "undeclared in the observation", "infos"])
def test_masks_are_found_where_they_are(where, legal_from):
    env = from_pettingzoo(Odd(mask=where, legal_from=legal_from * (where == "infos")), seed=0, max_steps=20)
    assert env.task_spec.has_action_mask
    assert env.observation_sizes == ((3, 4) if where == "more in the observation" else (2, 3))
    data = env.rollout(12, break_when_any_done=False)[0]  # random legal actions; the environment looks at them
    assert data[ACTION_MASK][:6, 1].tolist() == [[True, t % 2 == 0] for t in range(6)]
    td = env.reset()
    td = env.step(td.set(ACTION, torch.zeros(1, 2, dtype=torch.int64)))["next"]
    with pytest.raises(ValueError, match="Action 1 of 'b' is illegal now in environment 0: mind the mask"):
        env.step(td.set(ACTION, torch.tensor([[0, 1]])))


@pytest.mark.fault("3.11")
def test_a_mask_that_comes_late_is_asked_for():
    late = Odd(mask="infos", legal_from=3)
    env = from_pettingzoo(late, seed=0, max_steps=20)
    with pytest.raises(ValueError, match=r"has an action_mask now and had none .* action_mask=True"):
        env.rollout(6)
    env = from_pettingzoo(late, seed=0, max_steps=20, action_mask=True)
    assert env.rollout(6)[ACTION_MASK].shape == (1, 6, 2, 2)


@pytest.mark.fault("4.4")
def test_classes_and_states_of_every_form():
    assert from_pettingzoo(Odd, num_envs=2, max_steps=9).batch_size == (2,)
    nested = {"z": 1, "a": (np.ones((2, 2)), [3.0, {"t": 4}])}
    env = from_pettingzoo(Odd(state=lambda time: nested | {"z": time}), max_steps=9)
    assert env.rollout(3)[STATE][0, 2].tolist() == [1, 1, 1, 1, 3, 4, 2]
    grows = from_pettingzoo(Odd(state=lambda time: np.zeros(4 + time)), max_steps=9)
    with pytest.raises(ValueError, match=r"state\(\) has 5 numbers now and had 4 at the start"):
        grows.rollout(3)
    with pytest.raises(ValueError, match=r"state\(\) returns 'x', which is no number"):
        from_pettingzoo(Odd(state=lambda time: {"k": "x"}), max_steps=9)
    attribute = Odd()
    attribute.state = {"a": None, "b": 3}  # no method: the environment's own affair
    assert from_pettingzoo(attribute, max_steps=9).task_spec.state_size == 6


BOXES = {"x": Bounded(-1, 1, (2, 2)), "y": Bounded(-1, 1, (1, 1))}


@pytest.mark.fault("3.10")
@pytest.mark.parametrize("kind", ["pettingzoo", "torchrl"])
def test_one_game_has_one_size_of_state(kind):
    env = (
        from_pettingzoo(Odd(), max_steps=9) if kind == "pettingzoo" else from_torchrl(Toy(BOXES, batch=()), max_steps=9)
    )
    recorded = collect(env, episodes=2, seed=0)
    rows = recorded.data
    discrete = {"n_actions": 2} if env.task_spec.discrete else {}
    again = from_arrays(
        observations=rows[OBSERVATION],
        actions=rows[ACTION],
        rewards=rows[next_key(REWARD)],
        terminals=rows["next", "terminated"][:, 0],
        agent_mask=rows[AGENT_MASK],
        **discrete,
    )
    assert again.spec.state_size == recorded.spec.state_size == env.task_spec.state_size
    torch.testing.assert_close(again.data[STATE], rows[STATE])
    critic = make_critic(env.task_spec, decomposition="mixer", hidden=(4,))
    assert critic(again.data.clone())["state_action_value"].shape[0] == len(rows)


@pytest.mark.fault("4.4")
@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: TransformedEnv(env, StepCounter(max_steps=9))])
def test_torchrl_steps_copies_one_after_another(wrap):
    env = from_torchrl(wrap(SerialEnv(2, lambda: Toy(BOXES, batch=()))), max_steps=9)
    data = env.rollout(6, break_when_any_done=False)
    assert data["next", "terminated"][..., 0].tolist() == [[t == 3 for t in range(6)]] * 2
    assert data[OBSERVATION][0, :, 0, 0].tolist() == [0, 1, 2, 3, 0, 1]
    with pytest.raises(ValueError, match="SerialEnv does not say how long an episode may last: give max_steps"):
        from_torchrl(SerialEnv(2, lambda: Toy(BOXES, batch=())))


@pytest.mark.fault("3.13")
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_actions_that_are_no_numbers_are_named(kind):
    if kind == "continuous":
        env = from_torchrl(Toy(BOXES, batch=()), max_steps=9)

        def act(td):
            action = torch.zeros(*td.shape, 3, 2)
            action[:, 1] = torch.where(td[OBSERVATION][:, 1, :1] >= 2, torch.nan, 0.0)
            return td.set(ACTION, action)
    else:
        env = from_pettingzoo(Odd(), max_steps=9)

        def act(td):
            scores = torch.zeros(*td.shape, 2, 2)
            scores[:, 1] = torch.where(td[OBSERVATION][:, 1, :1] >= 2, torch.nan, -torch.inf)
            return td.set(("agents", "logits"), scores).set(ACTION, scores.argmax(-1))

    with pytest.raises(RuntimeError, match="The policy's action of agent 1 in row 0 is not a number at step 3"):
        evaluate(act, env, episodes=1, seed=0)
