"""Learning online: rounds of experience, the ring, the journal, and runs that are stopped and go on."""

from __future__ import annotations

import shutil
from itertools import pairwise

import pytest
import torch
from tensordict import TensorDict
from trainers import trainer_for

from torchrl_marl_offline import BRAC, TD, OfflineMARLLoss, collect, evaluate, make_actor, make_critic, make_env
from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    HAS_NEXT_ACTION,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TaskSpec,
    next_key,
)
from torchrl_marl_offline.data import DatasetError
from torchrl_marl_offline.recording.learners import (
    TEAM_REWARD,
    DelayedUpdates,
    make_online_learner,
    with_team_reward,
)
from torchrl_marl_offline.training import CheckpointManager, CollectorSource, Learner, OnlineReplay, Trainer, read_csv


def make_replay(folder, *, capacity=1000, calls=None, **options) -> OnlineReplay:
    env = make_env("games/xor", num_envs=2)

    def source(number):
        if calls is not None:
            calls.append(number)
        return collect(env, episodes=2, seed=number)

    settings = {"batch_size": 4, "update_to_data": 0.03, "seed": 5} | options
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


@pytest.mark.fault("2.3")
def test_a_checkpoint_needs_no_rows_that_had_left_the_ring(tmp_path):
    def filled(folder):
        replay = make_replay(folder, capacity=110, keep_all=False)
        for _ in range(5):
            draw(replay, 3)
            replay.state_dict()
        return replay

    replay = filled(tmp_path)
    state, files = replay.state_dict(), {path.name for path in replay.journal.iterdir()}
    expected = draw(replay, 9)
    replay.state_dict()  # killed after this: what a later checkpoint needs no more is gone, and it was never written
    gone = files - {path.name for path in replay.journal.iterdir()}
    assert gone and gone < {file["name"] for file in state["files"]}
    again = make_replay(tmp_path, capacity=110, keep_all=False)
    again.check_state_dict(state)
    again.load_state_dict(state)
    assert equal(draw(again, 9), expected)


def test_what_no_replay_reads_or_has_is_refused(tmp_path):
    for option in ({"offline_until": 10}, {"offline_fraction": 0.3}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is read only with offline"):
            make_replay(tmp_path, **option)
    env = make_env("mpe/simple_spread", num_envs=2)
    spec = TaskSpec.from_env(env)
    source = CollectorSource(env, make_actor(spec, hidden=(4,)), steps_per_round=2)
    other = collect(make_env("games/xor", num_envs=2), episodes=2, seed=0)
    with pytest.raises(ValueError, match="offline was recorded in games/xor, whose n_agents is 2; mpe/simple"):
        OnlineReplay(source, capacity=100, batch_size=4, update_to_data=0.5, journal=tmp_path / "j", offline=other)
    with pytest.raises(ValueError, match=r"keys names agents.nothing, which the experience does not have"):
        make_replay(tmp_path, keys=[ACTION, ("agents", "nothing")]).sample()
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not there"):
            make_replay(tmp_path, device="cuda")


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
        update_to_data=0.02,
        journal=tmp_path / "journal",
        prepare=with_team_reward,
        keys=learner.keys,
    )
    before = {name: parameter.detach().clone() for name, parameter in learner.loss.named_parameters()}
    Trainer(Learner(learner.loss, optimizer=learner.optimizer), replay, steps=4, progress=False).train()
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


def offline_data():
    dataset = collect(make_env("games/xor", num_envs=4), episodes=8, seed=99)
    dataset.data[next_key(REWARD)].fill_(1000.0)  # tells offline rows from online ones
    return dataset


def shares(replay: OnlineReplay, n: int) -> list[int]:
    return [int((replay.sample()[next_key(REWARD)][:, 0, 0] == 1000).sum()) for _ in range(n)]


def test_a_share_of_every_batch_is_offline_and_can_fall_to_nothing(tmp_path):
    constant = make_replay(tmp_path, batch_size=8, offline=offline_data(), offline_fraction=0.25)
    assert shares(constant, 6) == [2] * 6
    falling = make_replay(tmp_path / "b", batch_size=8, offline=offline_data(), offline_fraction=0.5, offline_until=4)
    assert shares(falling, 6) == [4, 3, 2, 1, 0, 0]  # 8 * 0.5 * (1 - sample / 4)


def test_masks_of_rows_and_agents_are_in_every_sample_whichever_keys_are_named(tmp_path):
    dead, keys = torch.tensor([True, False]), [ACTION, next_key(REWARD)]

    def source(number):
        dataset = collect(make_env("games/xor", num_envs=2), episodes=2, seed=number)
        dataset.data[MASK][::2] = False
        for key in (AGENT_MASK, next_key(AGENT_MASK)):
            dataset.data[key] = dead.repeat(len(dataset), 1)
        return dataset

    def replay(name, **options):
        sizes = {"capacity": 100, "batch_size": 32, "update_to_data": 1.0, "seed": 5, "keys": keys}
        return OnlineReplay(source, journal=tmp_path / name, **sizes, **options)

    alone = replay("alone").sample()
    assert {True, False} == set(alone[MASK].tolist()) and (alone[AGENT_MASK] == dead).all()
    offline = offline_data()
    offline.data[MASK][1::2] = False
    mixed = replay("mixed", offline=offline, offline_fraction=0.5).sample()
    assert {True, False} == set(mixed[:16][MASK].tolist())
    assert mixed[:16][AGENT_MASK].all() and (mixed[16:][AGENT_MASK] == dead).all()  # recorded ones all live
    assert HAS_NEXT_ACTION in mixed.keys(True)
    assert AGENT_MASK not in offline.data.keys(True)


def test_a_mixed_replay_goes_on_with_the_batches_that_would_have_come(tmp_path):
    options = {"batch_size": 8, "offline_fraction": 0.5, "offline_until": 10}
    replay = make_replay(tmp_path, offline=offline_data(), **options)
    draw(replay, 4)
    state = replay.state_dict()
    expected = draw(replay, 5)
    again = make_replay(tmp_path, offline=offline_data(), **options)
    again.load_state_dict(state)
    assert equal(draw(again, 5), expected)


@pytest.mark.parametrize("task", ["mpe/simple_spread", "games/grid_navigation"])
def test_collectors_go_on_where_the_round_before_ended(task):
    torch.manual_seed(0)
    env = make_env(task, num_envs=3, max_steps=10)
    source = CollectorSource(
        env, make_actor(env.task_spec, hidden=(8,)), steps_per_round=7, exploration="sample", seed=4
    )
    rounds = [source(number) for number in range(3)]
    assert [len(part) for part in rounds] == [21, 21, 21]
    for part, following in pairwise(rounds):
        now, after = part.data.reshape(3, 7), following.data.reshape(3, 7)
        for env_index in range(3):
            done = now["next", "done"][env_index, :, 0]
            inside = ~done[:-1]
            here, there = now[next_key(OBSERVATION)][env_index, :-1], now[OBSERVATION][env_index, 1:]
            assert torch.equal(here[inside], there[inside])
            assert done[-1]  # the end of a round is an end of its rows
            assert now["next", "truncated"][env_index, -1] or now["next", "terminated"][env_index, -1]
        if task == "mpe/simple_spread":  # episodes of 10 steps end within the rounds: all go on across their ends
            assert torch.equal(now[next_key(OBSERVATION)][:, -1], after[OBSERVATION][:, 0])
    if task == "mpe/simple_spread":  # 7 + 3 steps make an episode of 10
        ends = rounds[1].data.reshape(3, 7)["next", "done"][0, :, 0]
        assert ends.tolist() == [False, False, True, False, False, False, True]


def test_collectors_explore_only_when_told():
    torch.manual_seed(0)
    env = make_env("mpe/simple_spread", num_envs=3)
    actor = make_actor(env.task_spec, hidden=(8,), scale=0.5)
    for exploration, is_mode in (("mode", True), ("sample", False)):
        data = CollectorSource(env, actor, steps_per_round=5, exploration=exploration)(0).data
        mode = actor.get_dist(data.clone()).deterministic_sample
        assert torch.equal(data[ACTION], mode) is is_mode
    with pytest.raises(ValueError, match="'mode' or 'sample', got 'greedy'"):
        CollectorSource(env, actor, steps_per_round=5, exploration="greedy")


def test_collectors_act_by_running_statistics():
    torch.manual_seed(0)
    env = make_env("mpe/simple_spread", num_envs=3)
    actor = make_actor(env.task_spec, hidden=(8,), batch_norm=True)
    before = {name: tensor.clone() for name, tensor in actor.state_dict().items()}
    data = CollectorSource(env, actor, steps_per_round=5)(0).data
    assert actor.training and all(torch.equal(actor.state_dict()[name], before[name]) for name in before)
    assert torch.equal(data[ACTION], actor.eval().get_dist(data.clone()).deterministic_sample)


def test_the_first_online_evaluation_is_the_last_offline_one(tmp_path):
    env, eval_env = (make_env("mpe/simple_spread", num_envs=8) for _ in range(2))
    dataset = collect(env, episodes=16, seed=0)

    def make_loss(seed):
        torch.manual_seed(seed)
        networks = make_actor(dataset.spec, hidden=(8,)), make_critic(dataset.spec, hidden=(8,))
        loss = OfflineMARLLoss(*networks, value_learning=TD(), extraction=BRAC(alpha=0.1))
        return loss.make_value_estimator(gamma=0.95)

    def train(loss, buffer, steps, output, resume=False):
        play = {"mode": lambda: evaluate(loss.actor_network, eval_env, episodes=16, seed=5)}
        options = {"evaluators": play, "eval_every": 5, "eval_at_start": True, "progress": False}
        trainer = trainer_for(loss, buffer, steps=steps, output=output, **options)
        assert not resume or trainer.resume() == 5
        trainer.train()
        return read_csv(output / "eval.csv")

    before = train(make_loss(0), dataset.replay_buffer(batch_size=32, seed=0), 5, tmp_path / "a")
    loss = make_loss(1)
    CheckpointManager(tmp_path / "a" / "checkpoints").load(loss=loss)
    source = CollectorSource(env, loss.actor_network, steps_per_round=5)
    replay = OnlineReplay(source, capacity=500, batch_size=32, update_to_data=0.125, journal=tmp_path / "journal")
    after = train(loss, replay, 5, tmp_path / "b")
    assert [row["step"] for row in before] == [row["step"] for row in after] == [0, 5]
    assert before[-1]["return"] == after[0]["return"] != after[-1]["return"]
    assert replay.transitions == 40
    again = train(loss, replay, 10, tmp_path / "b", resume=True)
    assert [row["step"] for row in again] == [0, 5, 10]
