"""A policy in an environment of other sizes: one sentence that names both."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.modules import GRUModule
from torchrl_toys import remembering_actor

from torchrl_marl_offline import collect, load_policy, make_actor, make_env, save_policy
from torchrl_marl_offline.commands import main
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION
from torchrl_marl_offline.evaluation.in_environments import evaluate
from torchrl_marl_offline.evaluation.video import record_video

pytestmark = pytest.mark.fault("5.4")


def places(policy, env, folder):
    """Everything that lets a policy act in an environment."""
    return (
        lambda: evaluate(policy, env, episodes=2, seed=0),
        lambda: collect(env, policy, episodes=2),
        lambda: record_video(env, policy, folder / "a.gif"),
    )


@pytest.mark.parametrize("through_a_file", [False, True])
def test_both_sizes_are_named(through_a_file, tmp_path):
    small = make_env("games/grid_navigation", num_envs=2, agents=2)
    large = make_env("games/grid_navigation", num_envs=2, agents=3)
    policy = make_actor(small.task_spec, hidden=(4,))
    if through_a_file:
        policy = load_policy(save_policy(tmp_path / "p.pt", policy)).policy
    for play in places(policy, large, tmp_path):
        with pytest.raises(ValueError, match=r"2 agents, observations of 8 .* has 3 agents, observations of 12 "):
            play()
    assert evaluate(policy, small, episodes=2, seed=0).lengths.tolist()


def test_a_policy_that_does_not_say_its_sizes(tmp_path):
    env = make_env("mpe/simple_spread", num_envs=2)
    policy = TensorDictModule(torch.nn.Linear(7, 2), in_keys=[OBSERVATION], out_keys=[ACTION])
    for play in places(policy, env, tmp_path):
        with pytest.raises(ValueError, match=r"observations are \[3, 18\] \(agents, size\): mat1 and mat2 .*7x2"):
            play()


def test_kinds_of_actions_and_agents(tmp_path, capsys):
    discrete = make_env("games/grid_navigation", num_envs=2, agents=2)
    spread = make_env("mpe/simple_spread", num_envs=2)
    with pytest.raises(ValueError, match=r"5 discrete actions .* actions of 2 numbers"):
        evaluate(make_actor(discrete.task_spec, hidden=(4,)), spread, episodes=1, seed=0)
    path = save_policy(tmp_path / "p.pt", make_actor(discrete.task_spec, hidden=(4,)))
    assert main(["evaluate", str(path), "--env", "mpe/simple_spread", "--episodes", "1"]) == 1
    assert "made for 2 agents, observations of 8 numbers" in (said := capsys.readouterr().err)
    assert "has 3 agents, observations of 18 numbers" in said


def test_an_error_of_the_policys_own_is_left_alone():
    env = make_env("games/two_step", num_envs=2)

    def broken(tensordict):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        evaluate(broken, env, episodes=1, seed=0)


@pytest.mark.fault("3.18")
def test_what_is_around_a_policy_with_memory_must_say_so(tmp_path):
    env = make_env("games/recall", num_envs=2)
    ours = make_actor(env.task_spec, hidden=(4,), memory="gru", memory_size=4)
    theirs = remembering_actor(GRUModule, "h", spec=env.task_spec)
    for policy in (ours, theirs):
        for play in places(lambda td, policy=policy: policy(td), env, tmp_path):
            with pytest.raises(ValueError, match=r"has memory and does not say so: .* must have the policy's in_keys"):
                play()
        assert evaluate(policy, env, episodes=2, seed=0).lengths.tolist() == [6, 6]
