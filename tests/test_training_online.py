"""Learning online: rounds of experience, the ring, the journal, and runs that are stopped and go on."""

from __future__ import annotations

import shutil

import pytest
import torch
from tensordict import TensorDict

from torchrl_marl_offline import collect, make_env
from torchrl_marl_offline.data import DatasetError
from torchrl_marl_offline.data.layout import ACTION, ACTION_MASK, OBSERVATION, REWARD, STATE, next_key
from torchrl_marl_offline.training import Trainer
from torchrl_marl_offline.training.online import OnlineReplay
from torchrl_marl_offline.training.online_learners import (
    TEAM_REWARD,
    DelayedUpdates,
    make_online_learner,
    with_team_reward,
)


def make_replay(folder, *, capacity=1000, calls=None, **options) -> OnlineReplay:
    env = make_env("games/xor", num_envs=2)

    def source(number):
        if calls is not None:
            calls.append(number)
        return collect(env, episodes=2, seed=number)

    settings = {"batch_size": 4, "updates_per_round": 3, "seed": 5} | options
    return OnlineReplay(source, capacity=capacity, journal=folder / "journal", **settings)


def draw(replay: OnlineReplay, n: int) -> list[TensorDict]:
    return [replay.sample().select(ACTION, next_key(REWARD), ("collector", "traj_ids")).clone() for _ in range(n)]


def equal(first, second) -> bool:
    return len(first) == len(second) and all((a == b).all() for a, b in zip(first, second))


def test_a_round_precedes_every_third_sample(tmp_path):
    calls = []
    replay = make_replay(tmp_path, calls=calls)
    seen = []
    for _ in range(7):
        replay.sample()
        seen.append(len(calls))
    assert seen == [1, 1, 1, 2, 2, 2, 3]
    assert calls == [0, 1, 2]
    length = len(collect(make_env("games/xor", num_envs=2), episodes=2, seed=0))
    assert len(replay) == replay.transitions == 3 * length
    assert replay.rounds == 3


def test_experience_is_everything_in_order_and_can_be_cut_between_episodes(tmp_path):
    replay = make_replay(tmp_path)
    draw(replay, 4)
    replay.state_dict()  # the first two rounds go to the journal
    draw(replay, 3)  # the third is not there yet
    rounds = [collect(make_env("games/xor", num_envs=2), episodes=2, seed=number) for number in range(3)]
    rows = torch.cat([part.data[ACTION] for part in rounds])
    assert torch.equal(replay.experience().data[ACTION], rows)
    first = len(rounds[0])
    assert len(replay.experience(2 * first)) == 2 * first
    one_episode = int(rounds[0].episode_lengths[0])
    assert replay.experience(first + one_episode).n_episodes == 3
    assert replay.experience(first + one_episode + 1).n_episodes == 3  # never a part of an episode


@pytest.mark.parametrize("capacity", [1000, 130])  # 130: the ring has wrapped around
def test_a_resumed_replay_draws_what_would_have_come(tmp_path, capacity):
    replay = make_replay(tmp_path, capacity=capacity)
    draw(replay, 8)
    replay.state_dict()
    draw(replay, 6)
    state = replay.state_dict()
    expected = draw(replay, 9)
    replay.state_dict()  # rows after the state; the resumed run writes them again
    again = make_replay(tmp_path, capacity=capacity)
    again.load_state_dict(state)
    assert (again.rounds, len(again)) == (5, min(capacity, again.transitions))
    assert equal(draw(again, 9), expected)
    assert again.experience().data[ACTION].shape == replay.experience().data[ACTION].shape


def test_a_journal_that_is_not_whole_is_refused(tmp_path):
    replay = make_replay(tmp_path)
    draw(replay, 3)
    state = replay.state_dict()
    (folder,) = (tmp_path / "journal").iterdir()
    victim = next(folder.rglob("action.memmap"))
    whole = victim.read_bytes()
    victim.write_bytes(bytes([whole[0] ^ 255]) + whole[1:])
    with pytest.raises(DatasetError, match="was changed after it was written"):
        make_replay(tmp_path).load_state_dict(state)
    shutil.rmtree(folder)
    with pytest.raises(DatasetError, match=str(folder.name)):
        make_replay(tmp_path).load_state_dict(state)


def test_old_files_go_only_when_asked(tmp_path):
    def fill(folder, **options):
        replay = make_replay(folder, capacity=110, **options)
        for _ in range(6):
            draw(replay, 3)
            replay.state_dict()
        return replay

    assert len(list((fill(tmp_path / "all").journal).iterdir())) == 6
    few = fill(tmp_path / "few", keep_all=False)
    kept = sorted(few.journal.iterdir())
    assert 2 <= len(kept) < 6
    again = make_replay(tmp_path / "few", capacity=110, keep_all=False)
    again.load_state_dict(few.state_dict())
    assert equal(draw(again, 4), draw(few, 4))
    with pytest.raises(ValueError, match="no longer holds the first rounds"):
        few.experience()


def test_a_round_larger_than_the_ring_is_refused(tmp_path):
    with pytest.raises(ValueError, match="more than the capacity of 10; raise capacity="):
        make_replay(tmp_path, capacity=10).sample()


def test_delayed_updates_touch_their_parameters_every_third_step():
    waiting, eager = torch.nn.Parameter(torch.zeros(())), torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([waiting, eager], lr=1.0)
    DelayedUpdates(optimizer, [waiting], every=3)
    seen = []
    for _ in range(7):
        optimizer.zero_grad()
        (waiting + eager).backward()
        optimizer.step()
        seen.append((-int(waiting), -int(eager)))
    assert seen == [(0, 1), (0, 2), (1, 3), (1, 4), (1, 5), (2, 6), (2, 7)]


def test_the_team_reward_is_the_mean_over_agents_and_the_rows_stay_as_they_were():
    rows = TensorDict({"next": TensorDict({"agents": {"reward": torch.tensor([[[1.0], [4.0]]])}}, [1])}, [1])
    assert with_team_reward(rows)["next", TEAM_REWARD].tolist() == [[2.5]]
    assert (next_key(TEAM_REWARD)) not in rows.keys(True)


@pytest.mark.parametrize("task", ["mpe/simple_spread", "games/two_step", "games/grid_navigation", "vmas/balance"])
def test_every_network_of_the_learners_learns(tmp_path, task):
    torch.manual_seed(0)
    env = make_env(task, num_envs=4, seed=0)
    learner = make_online_learner(env, hidden=(16,))
    replay = OnlineReplay(
        lambda number: collect(env, learner.explorer, episodes=4, seed=number),
        capacity=10_000,
        batch_size=32,
        updates_per_round=2,
        journal=tmp_path / "journal",
        prepare=with_team_reward,
        keys=learner.keys,
    )
    before = {name: parameter.detach().clone() for name, parameter in learner.loss.named_parameters()}
    Trainer(learner.loss, replay, steps=4, optimizer=learner.optimizer, progress=False).train()
    after = dict(learner.loss.named_parameters())
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert any("target" in name for name in before) or any("target" in name for name, _ in learner.loss.named_buffers())


def test_qmix_explores_among_the_legal_actions_only():
    env = make_env("games/grid_navigation", num_envs=16, seed=0)
    learner = make_online_learner(env, hidden=(16,), noise=0.2)
    for share, epsilon in [(0.0, 1.0), (0.5, 0.6), (1.0, 0.2), (3.0, 0.2)]:
        learner.set_exploration(share)
        assert learner.explorer[-1].eps.item() == pytest.approx(epsilon)
    learner.set_exploration(0.0)
    dataset = collect(env, learner.explorer, episodes=32, seed=1)
    assert dataset.data[ACTION_MASK].gather(-1, dataset.data[ACTION].unsqueeze(-1)).all()
    greedy = collect(env, learner.explorer, episodes=32, seed=1, exploration="mode")
    chosen = learner.actor(greedy.data.select(OBSERVATION, ACTION_MASK, STATE).clone())[ACTION]
    assert torch.equal(chosen, greedy.data[ACTION])
