"""Hindsight: which goals are taken, that rewards and ends follow from them, slices, reproducibility, refusals."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline import OfflineDataset, Trainer, collect, make_env, make_loss
from torchrl_marl_offline.core.goals import AtGoals
from torchrl_marl_offline.core.layout import ACHIEVED, GOAL, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.data import HindsightGoals, hindsight_buffer
from torchrl_marl_offline.training import Learner

KINDS = ("future", "final", "random")
NONE = dict.fromkeys(KINDS, 0.0)


@pytest.fixture(scope="module")
def env():
    return make_env("games/grid_goals", num_envs=10, seed=0, max_steps=8)


@pytest.fixture(scope="module")
def data(env):
    return collect(env, episodes=20, seed=0)


def rows(data):
    """All rows in order, as a buffer would return them."""
    sample = data.data.clone()
    return sample.set("index", torch.arange(len(data)))


def relabel(data, env, sample=None, **options):
    return HindsightGoals(data, env.outcome, **(NONE | {"seed": 0} | options))(rows(data) if sample is None else sample)


def achieved_of(data):
    return data.data["next", *ACHIEVED]


def test_nothing_changes_where_all_keep_their_goals(data, env):
    found, before = relabel(data, env), rows(data)
    assert (found == before).all()


def test_final_goals_are_those_of_the_last_step(data, env):
    found = relabel(data, env, final=1.0)
    lasts = data.episode_starts + data.episode_lengths - 1
    expected = achieved_of(data)[lasts].repeat_interleave(data.episode_lengths, 0)
    assert torch.equal(found[GOAL], expected)
    assert found["next", "success"][lasts].all()


def test_future_goals_were_achieved_later_in_the_same_episode(data, env):
    found = relabel(data, env, future=1.0)
    achieved, used = achieved_of(data), set()
    for start, length in zip(data.episode_starts.tolist(), data.episode_lengths.tolist()):
        for row in range(start, start + length):
            same = (achieved[row : start + length] == found[GOAL][row]).all(-1).all(-1)
            assert same.any()
            used.add(int(same.nonzero()[0]))
    assert len(used) > 4


def test_random_goals_come_from_everywhere(data, env):
    found = relabel(data, env, random=1.0)
    everything = {tuple(each) for each in achieved_of(data).flatten(1).tolist()}
    goals = {tuple(each) for each in found[GOAL].flatten(1).tolist()}
    assert goals <= everything
    assert len(goals) > len(everything) / 3


def test_shares_are_those_asked_for(env):
    many = collect(env, episodes=400, seed=1)
    final = achieved_of(many)[many.episode_starts + many.episode_lengths - 1]
    final = final.repeat_interleave(many.episode_lengths, 0)
    found = relabel(many, env, final=0.3)
    as_final = (found[GOAL] == final).all(-1).all(-1).float().mean()
    kept = (found[GOAL] == many.data[GOAL]).all(-1).all(-1).float().mean()
    assert abs(as_final - 0.3) < 0.03
    assert abs(kept - 0.7) < 0.03


def test_everything_follows_from_the_goal(data, env):
    found = relabel(data, env, future=0.9)
    reward, success = env.outcome(achieved_of(data), found[GOAL])
    assert torch.equal(found["next", *REWARD].squeeze(-1), reward)
    assert success.any()
    for key in ("success", "terminated"):
        assert torch.equal(found["next", key].squeeze(-1), success)
    assert torch.equal(found["next", "done"], data.data["next", "done"] | found["next", "terminated"])
    assert torch.equal(found["next", "truncated"], found["next", "done"] & ~found["next", "terminated"])
    for each in (found, found["next"]):
        assert torch.equal(each[OBSERVATION][..., -2:], found[GOAL])
        assert torch.equal(each[STATE][..., -4:], found[GOAL].flatten(-2))
    for before, after in ((data.data[OBSERVATION], found[OBSERVATION]), (data.data[STATE], found[STATE])):
        kept = before.shape[-1] - (2 if before.ndim == 3 else 4)
        assert torch.equal(before[..., :kept], after[..., :kept])


def test_one_draw_for_the_team_or_one_for_each_agent(data, env):
    joint = {tuple(each) for each in achieved_of(data).flatten(1).tolist()}

    def together(**options):
        goals = relabel(data, env, random=1.0, **options)[GOAL].flatten(1).tolist()
        return sum(tuple(each) in joint for each in goals) / len(goals)

    assert together() == 1
    assert together(per="agent") < 0.6


def test_a_function_of_ones_own_decides(data):
    found = HindsightGoals(data, AtGoals(within=1.0, pays="own"), future=1.0, seed=0)(rows(data))
    near = (achieved_of(data) - found[GOAL]).norm(dim=-1) <= 1
    assert torch.equal(found["next", *REWARD].squeeze(-1) == 1, near)
    assert torch.equal(found["next", "terminated"].squeeze(-1), near.all(-1))


@pytest.mark.parametrize("options", [{"slice_len": 4}, {"slice_len": 4, "burn_in": 1}])
def test_a_slice_has_one_goal_and_ends_where_it_is_reached(data, env, options):
    buffer = hindsight_buffer(data, env.outcome, batch_size=400, future=1.0, seed=0, **options)
    sample = buffer.sample().reshape(-1, 4)
    assert (sample[GOAL] == sample[GOAL][:, :1]).all()
    plain = data.replay_buffer(batch_size=400, seed=0, **options).sample().reshape(-1, 4)
    assert torch.equal(sample["index"], plain["index"])
    masked = 0
    for slice_, before in zip(sample, plain):
        index, success = slice_["index"], slice_["next", "success"].squeeze(-1)
        first = index[success].min() if success.any() else len(data)
        expected = before["collector", "mask"] & (index <= first)
        assert torch.equal(slice_["collector", "mask"], expected)
        masked += int((before["collector", "mask"] & ~expected).sum())
    assert masked > 10


def test_a_buffer_goes_on_with_the_same_goals(data, env):
    def make(seed):
        return hindsight_buffer(data, env.outcome, batch_size=64, seed=seed)

    buffer = make(3)
    buffer.sample()
    state, following = buffer.state_dict(), buffer.sample()
    other = make(4)
    other.load_state_dict(state)
    assert (other.sample() == following).all()
    assert (make(5).sample() == make(5).sample()).all()


def test_only_the_keys_that_were_asked_for_are_there(data, env):
    keys = [OBSERVATION, ("next", *REWARD), ("next", "terminated")]
    sample = hindsight_buffer(data, env.outcome, batch_size=256, seed=0, keys=keys).sample()
    assert GOAL not in sample.keys(include_nested=True)
    assert sample["next", "terminated"].any()


def without(data, key):
    return OfflineDataset(data.data.exclude(key), data.spec, dict(data.metadata))


def test_refusals(data, env):
    with pytest.raises(KeyError, match=r"no \('agents', 'goal'\); record it by collect\(\)"):
        HindsightGoals(without(data, GOAL), env.outcome)
    with pytest.raises(KeyError, match="achieved"):
        HindsightGoals(without(data, ("next", *ACHIEVED)), env.outcome)
    with pytest.raises(ValueError, match=r"future \+ final \+ random must be at most 1"):
        HindsightGoals(data, env.outcome, future=0.8, final=0.3)
    with pytest.raises(TypeError, match="outcome must be a function"):
        HindsightGoals(data, "team")
    with pytest.raises(KeyError, match="'index' of each row"):
        HindsightGoals(data, env.outcome)(data.data.clone())
    other = data.data.clone()
    other[STATE][3, -1] += 1
    with pytest.raises(ValueError, match="state does not end with the goals, 4 numbers"):
        HindsightGoals(OfflineDataset(other, data.spec, dict(data.metadata)), env.outcome)


def test_training_goes_on_with_the_same_goals(data, env, tmp_path):
    def trainer(steps, output):
        torch.manual_seed(0)
        loss = make_loss(data.spec, algorithm="cloning", hidden=(8,))
        buffer = hindsight_buffer(data, env.outcome, batch_size=16, seed=0, keys=loss.in_keys)
        learner = Learner(loss, compile="off")
        return loss, Trainer(learner, buffer, steps=steps, output=output, checkpoint_every=3, progress=False)

    whole, run = trainer(6, tmp_path / "whole")
    run.train()
    trainer(3, tmp_path / "half")[1].train()
    resumed, run = trainer(6, tmp_path / "half")
    run.resume()
    run.train()
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


AT = AtGoals()
OUTCOMES = {
    "nothing": lambda achieved, goal: None,
    "one tensor": lambda achieved, goal: AT(achieved, goal).reward,
    "the other way round": lambda achieved, goal: AT(achieved, goal)[::-1],
    "numbers for flags": lambda achieved, goal: (AT(achieved, goal).reward, AT(achieved, goal).success * 1.0),
    "one axis more": lambda achieved, goal: tuple(each.unsqueeze(-1) for each in AT(achieved, goal)),
    "a reward of the team": lambda achieved, goal: (AT(achieved, goal).reward[..., 0], AT(achieved, goal).success),
    "other sizes": lambda achieved, goal: (torch.zeros(3), torch.zeros(3, dtype=torch.bool)),
    "one argument": lambda achieved: achieved,
    "arrays": lambda achieved, goal: tuple(each.numpy() for each in AT(achieved, goal)),
    "an environment": make_env("games/grid_goals"),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_function_that_is_no_outcome_is_refused_when_the_buffer_is_made(data, outcome):
    with pytest.raises(TypeError, match=r"outcome must return reward \[\*B, n\] and success \[\*B\], of bools"):
        hindsight_buffer(data, OUTCOMES[outcome], batch_size=4)


def test_goals_that_may_be_counted_are_compared(data, env):
    whole = data.data.clone()
    for key in (GOAL, ("next", *ACHIEVED)):
        whole[key] = whole[key].long()
    found = hindsight_buffer(whole, env.outcome, batch_size=64, seed=0).sample()
    same = hindsight_buffer(data, env.outcome, batch_size=64, seed=0).sample()
    assert torch.equal(found["next", "success"], same["next", "success"]) and same["next", "success"].any()


def test_data_from_which_no_goal_can_be_taken_is_refused(data, env):
    def changed(key, change):
        rows = data.data.clone()
        return rows.set(key, change(rows[key].clone()))

    achieved = ("next", *ACHIEVED)
    for wrong in (lambda x: x[..., :1], lambda x: torch.cat([x, x], -1), lambda x: x[:, :1]):
        with pytest.raises(ValueError, match=r"Goals and what was achieved must be \[rows, agents, numbers\] alike"):
            HindsightGoals(changed(achieved, wrong), env.outcome)
    with pytest.raises(ValueError, match=r"next.agents.achieved is NaN or infinite somewhere"):
        HindsightGoals(changed(achieved, lambda x: x.index_fill(0, torch.tensor([3]), torch.nan)), env.outcome)
    with pytest.raises(ValueError, match="do not lie one after the other"):
        HindsightGoals(data.data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))], env.outcome)
    with pytest.raises(ValueError, match="must be"):
        HindsightGoals(data.data[:0], env.outcome)
    with pytest.raises(KeyError, match="traj_ids"):
        HindsightGoals(data.data.exclude("collector"), env.outcome)
