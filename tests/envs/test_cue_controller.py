"""Scripted teams for the games of memory: they reach the exact optima, and remember only their own episode."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl.envs import RewardSum, TransformedEnv

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD
from torchrl_marl_offline.envs import CueController, MixedSkill, make_env
from torchrl_marl_offline.envs.scripted import SKILL
from torchrl_marl_offline.evaluation import evaluate

GAMES = [
    ("games/recall", {}),
    ("games/recall", {"agents": 3, "cues": 3, "actions": 5, "delay": 20, "prior": (3, 1, 2)}),
    ("games/telephone", {}),
    ("games/telephone", {"delay": 1, "words": 2, "prior": (1, 2, 3, 4)}),
    ("games/telephone", {"agents": 3, "words": 2, "delay": 20}),
    ("games/telephone", {"agents": 4, "cues": 7, "words": 2, "delay": 4, "prior": (1, 2, 3, 4, 5, 6, 7)}),
    ("games/telephone", {"agents": 3, "cues": 5, "words": 3, "delay": 2, "prior": (1, 1, 1, 1, 6)}),
]


def _exact_return(policy, task, options):
    """Return the mean return of a deterministic team: one episode with each cue, weighed by the prior."""
    env = make_env(task, num_envs=options.get("cues", 4), **options)
    td, total = env.set_state(torch.arange(env.cues)), 0.0
    for _ in range(env.max_episode_steps):
        td = env.step(policy(td))["next"]
        total += td[REWARD].mean((1, 2)).double()
    return float(total @ torch.tensor(env.prior, dtype=torch.float64))


@pytest.mark.parametrize(("task", "options"), GAMES)
def test_teams_reach_the_exact_values(task, options):
    env = make_env(task, **options)
    assert _exact_return(CueController(env), task, options) == pytest.approx(env.best_return)
    assert _exact_return(CueController(env, "memoryless"), task, options) == pytest.approx(env.best_memoryless_return)


@pytest.mark.parametrize(("task", "options"), GAMES)
def test_the_team_without_memory_acts_alike_on_what_looks_alike(task, options):
    env = make_env(task, num_envs=50, seed=0, **options)
    mixed = MixedSkill([CueController(env, "random", seed=0), CueController(env, "memoryless")], per="agent", seed=1)
    data = env.rollout(3 * env.max_episode_steps, mixed, break_when_any_done=False)
    for agent in range(env.task_spec.n_agents):
        plays = data[SKILL][..., agent] == 1
        seen, action = data[OBSERVATION][..., agent, :][plays], data[ACTION][..., agent][plays]
        looks = seen.unique(dim=0, return_inverse=True)[1]
        for look in range(int(looks.max()) + 1):
            assert len(action[looks == look].unique()) == 1


def test_a_team_told_by_hand():
    # 5 cues by 2 words: 3 digits, least first; the likeliest cue, 4, is number 0, then 0, 1, 2, 3 in their order
    env = make_env("games/telephone", cues=5, words=2, delay=4, prior=(1, 1, 1, 1, 6))
    policy, td, played = CueController(env), env.set_state(torch.tensor([2])), []
    for _ in range(5):
        td = policy(td)
        played.append(td[ACTION][0].tolist())
        td = env.step(td)["next"]
    # cue 2 is number 3, 110 from its least digit; the other one knows 0, 1 and then 3, cues 4, 0 and 2
    assert played == [[1, 4], [1, 0], [0, 2], [0, 2], [0, 2]]
    assert td["success"].all()


def test_rows_remember_their_own_episode():
    env = make_env("games/recall", num_envs=300, seed=0, delay=3)
    policy = CueController(env)
    td = env.step(policy(env.reset()))["next"]
    third = (torch.arange(300) % 3 == 0).unsqueeze(-1)
    td = env.reset(td.exclude(("agents", "reward")).set("_reset", third))  # in the middle of an episode
    paid = torch.zeros(300)
    for _ in range(4):
        step, td = env.step_and_maybe_reset(policy(td))
        paid += step["next", *REWARD].mean((1, 2))
    assert (paid == 1).all()


def test_a_step_that_was_left_out_is_an_error():
    env = make_env("games/telephone", num_envs=2, seed=0)
    policy, message = CueController(env), "was not asked in the steps before this one"
    td = env.reset()
    after = env.step(td.clone().set(ACTION, torch.zeros(2, 2, dtype=torch.int64)))["next"]
    with pytest.raises(RuntimeError, match=message):
        policy(after.clone())
    policy(td.clone())
    policy(after.clone())
    with pytest.raises(RuntimeError, match=message):
        policy(after.clone())  # twice
    policy(td.clone())
    with pytest.raises(RuntimeError, match=message):
        policy(after[:1].clone())  # of another batch
    CueController(env, "memoryless")(after.clone())
    CueController(env, "random")(after.clone())
    with pytest.raises(KeyError, match="CueController needs 'step_count'"):
        policy(td.exclude("step_count"))


@pytest.mark.parametrize("task", ["games/recall", "games/telephone"])
def test_any_batch_shape_and_transforms(task):
    env = TransformedEnv(make_env(task, num_envs=6, seed=0), RewardSum(in_keys=[REWARD], out_keys=["total"]))
    flat, folded = CueController(env), CueController(env)
    td = env.reset()
    for _ in range(env.max_episode_steps):
        action = flat(td.clone())[ACTION]
        assert torch.equal(folded(td.clone().view(2, 3))[ACTION].flatten(0, 1), action)
        td = env.step(td.set(ACTION, action))["next"]
    assert td["success"].all()


def test_epsilon_and_seeds():
    env = make_env("games/recall", num_envs=20_000, seed=0, delay=2)
    noisy = CueController(env, epsilon=0.2, seed=3)
    first, second = (env.rollout(3, CueController(env, epsilon=0.2, seed=3)) for _ in range(2))
    assert not torch.equal(first[OBSERVATION], second[OBSERVATION])  # new cues
    explored = (first[ACTION] != first["state"][..., :4].argmax(-1, keepdim=True)).float().mean()
    assert abs(explored - 0.2 * 3 / 4) < 0.005
    returns = env.rollout(3, noisy)["next", *REWARD].mean((2, 3)).sum(1)
    assert abs(returns.mean() - 0.85**2) < 4 * math.sqrt(0.85**2 * (1 - 0.85**2) / 20_000)
    td = env.reset()
    again = [CueController(env, "random", seed=5)(td.clone())[ACTION] for _ in range(2)]
    assert torch.equal(*again)


def test_mixtures_of_memory():
    env = make_env("games/telephone", num_envs=2_000, seed=0, words=2, agents=3)
    kinds = ("optimal", "memoryless", "random")
    policy = MixedSkill([CueController(env, kind, seed=i) for i, kind in enumerate(kinds)], seed=3)
    data = env.rollout(4 * 6, policy, break_when_any_done=False)
    success, skill = data["next", "success"].squeeze(-1)[:, 5::6], data[SKILL][:, 5::6, 0]
    assert success[skill == 0].all()
    for index in (1, 2):
        assert abs(success[skill == index].float().mean() - 0.25) < 0.04
    measured = evaluate(policy, env, episodes=3_000, seed=1)  # begins anew after an unfinished episode
    assert abs(measured.mean - 0.5) < 0.05 and measured.normalized == pytest.approx(100 * (measured.mean - 0.25) / 0.75)


def test_bad_arguments_of_cue_controllers():
    env = make_env("games/recall")
    with pytest.raises(ValueError, match="kind must be 'optimal', 'memoryless' or 'random', got"):
        CueController(env, "best")
    with pytest.raises(ValueError, match="epsilon must lie between 0 and 1"):
        CueController(env, epsilon=2.0)
    for other, name in ((make_env("games/xor"), "games/xor"), ("games/recall", "'games/recall'")):
        with pytest.raises(ValueError, match=f"environments of games/recall and games/telephone, not {name}"):
            CueController(other)
