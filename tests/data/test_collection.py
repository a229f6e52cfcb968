from __future__ import annotations

import pytest
import torch
from data_toys import CountingEnv
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_marl_offline.data import collect, validate


@pytest.mark.parametrize("episodes", [1, 2, 3, 20, 64])
def test_exactly_so_many_whole_episodes(episodes):
    dataset = collect(CountingEnv(3), episodes=episodes, seed=0)
    validate(dataset)
    assert dataset.n_episodes == episodes
    assert set(dataset.episode_lengths.tolist()) <= {1, 9}
    assert dataset.metadata["source"] == "collect" and dataset.metadata["task"] == "toys/counting"


def test_slots_share_evenly():
    data = collect(CountingEnv(4), episodes=10, seed=0).data
    serial = data["agents", "observation"][:, 0, 0]
    starts = data["agents", "observation"][:, 0, 1] == 0
    # two slots give three episodes each, two give two, each counting from its first
    assert serial[starts].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1]


def test_transitions_are_exact():
    dataset = collect(CountingEnv(3), episodes=20, seed=1)
    data = dataset.data
    here, there = data["agents", "observation"], data["next", "agents", "observation"]
    assert torch.equal(there, here + torch.tensor([0.0, 1.0]))  # also after the last step: no reset shows
    assert torch.equal(data["next", "state"][:, 1], data["state"][:, 1] + 1)
    last = dataset.episode_starts + dataset.episode_lengths - 1
    short = dataset.episode_lengths == 1
    assert torch.equal(data["next", "terminated"][last, 0], short)
    assert torch.equal(data["next", "truncated"][last, 0], ~short)
    assert torch.equal(dataset.success(), short)
    assert 0 < short.sum() < 20
    inside = torch.ones(len(data), dtype=torch.bool)
    inside[last] = False
    rows = inside.nonzero()[:, 0]
    assert torch.equal(data["next", "agents", "action"][rows], data["agents", "action"][rows + 1])
    assert torch.equal(data["collector", "has_next_action"], inside)
    assert torch.equal(data["next", "agents", "reward"][..., 0], (data["agents", "action"] == 2).float())
    assert data["collector", "mask"].all()


def test_short_episodes_are_not_preferred():
    dataset = collect(CountingEnv(64), episodes=64, seed=0)
    # 1 or 9 by a fair coin: mean 5, deviation of the mean 0.5; the first 64 to finish would have a mean near 1
    assert dataset.episode_lengths.float().mean().item() == pytest.approx(5.0, abs=2.0)


def test_random_play_is_uniform_over_the_legal_actions():
    action = collect(CountingEnv(8), episodes=200, seed=0).data["agents", "action"]
    first = torch.bincount(action[:, 0], minlength=3) / len(action)
    second = torch.bincount(action[:, 1], minlength=3) / len(action)
    assert (first - 1 / 3).abs().max() < 0.08  # about 1,000 rows: five deviations
    assert second[0] == 0 and (second[1:] - 1 / 2).abs().max() < 0.08


def test_seeds_and_generators():
    env = CountingEnv(3)
    state = torch.get_rng_state()
    first = collect(env, episodes=12, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    again, other = collect(env, episodes=12, seed=5), collect(env, episodes=12, seed=6)
    assert (first.data == again.data).all()
    assert first.episode_lengths.tolist() != other.episode_lengths.tolist()


def test_steps_are_at_least_so_many_and_whole():
    dataset = collect(CountingEnv(3), steps=50, seed=0)
    assert 50 <= len(dataset) <= 50 + 3 * 9
    validate(dataset)


def test_policy_exploration_and_metadata():
    seen = set()

    def always_two(tensordict):
        seen.add(exploration_type())
        return tensordict.set(("agents", "action"), torch.full((3, 2), 2))

    dataset = collect(CountingEnv(3), always_two, episodes=3, seed=0, exploration="mode", metadata={"quality": "best"})
    assert (dataset.data["agents", "action"] == 2).all()
    assert torch.equal(dataset.episode_returns(), dataset.episode_lengths.float())
    assert seen == {ExplorationType.DETERMINISTIC}
    assert dataset.metadata["quality"] == "best" and dataset.metadata["exploration"] == "mode"
    collect(CountingEnv(3), always_two, episodes=1, progress=True)
    assert seen == {ExplorationType.DETERMINISTIC, ExplorationType.RANDOM}


def test_an_environment_that_never_ends():
    with pytest.raises(RuntimeError, match="max_episode_steps=9"):
        collect(CountingEnv(3, truncates=False), episodes=30, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give either episodes or steps"),
        ({"episodes": 1, "steps": 1}, "Give either episodes or steps"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"steps": -1}, "steps must be at least 1, got -1"),
    ],
)
def test_impossible_requests(options, message):
    with pytest.raises(ValueError, match=message):
        collect(CountingEnv(3), **options)
    with pytest.raises(ValueError, match="'sample' or 'mode'"):
        collect(CountingEnv(3), episodes=1, exploration="greedy")
