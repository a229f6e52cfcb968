"""Goals in hindsight in populations: each member's samples, numbers and continuation are those of its run alone."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline import collect, make_env, make_loss
from torchrl_marl_offline.core.functional_parameters import tensors_of
from torchrl_marl_offline.core.layout import GOAL
from torchrl_marl_offline.data import HindsightGoals, hindsight_buffer
from torchrl_marl_offline.training import (
    Learner,
    PopulationBuffer,
    PopulationLearner,
    Trainer,
    split_population,
)
from torchrl_marl_offline.training.run.value_alarm import reward_facts

SEEDS = (3, 8, 5)
SHARES = {"future": 0.5, "final": 0.2, "random": 0.1}
SAMPLING = ({}, {"slice_len": 4}, {"slice_len": 4, "burn_in": 1})


@pytest.fixture(scope="module")
def env():
    return make_env("games/grid_goals", num_envs=20, seed=0, max_steps=8)


@pytest.fixture(scope="module")
def data(env):
    return collect(env, episodes=40, seed=0)


def make(data, env, *, sampling=None, per="team", seeds=SEEDS, keys=None, batch_size=40) -> PopulationBuffer:
    sampling = sampling or {}
    goals = HindsightGoals.drawn_with(data, sampling, outcome=env.outcome, per=per, **SHARES)
    return PopulationBuffer(data, batch_size=batch_size, seeds=seeds, hindsight=goals, keys=keys, **sampling)


def alone(data, env, seed, *, sampling=None, per="team", keys=None, batch_size=40):
    options = {"batch_size": batch_size, "seed": seed, "keys": keys, "per": per}
    return hindsight_buffer(data, env.outcome, **SHARES, **options, **(sampling or {}))


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
@pytest.mark.parametrize("per", ["team", "agent"])
def test_every_member_draws_what_it_would_draw_alone(data, env, sampling, per):
    together = make(data, env, sampling=sampling, per=per)
    runs = [alone(data, env, seed, sampling=sampling, per=per) for seed in SEEDS]
    relabelled = 0
    for _ in range(3):
        batch = together.sample()
        for index, run in enumerate(runs):
            expected = run.sample()
            own = batch[index]
            for key in own.keys(True, True):
                assert torch.equal(own[key], expected[key]), key
            relabelled += int((own[GOAL] != data.data[GOAL][expected["index"]]).any((-1, -2)).sum())
    assert relabelled > 60


def test_a_member_trains_as_alone_and_goes_on_alone(data, env, tmp_path):
    def built(seed):
        torch.manual_seed(seed)
        return make_loss(data.spec, algorithm="recipe", hidden=(8,), decomposition="vdn")

    losses = {f"seed={seed}": built(seed) for seed in SEEDS}
    keys = next(iter(losses.values())).in_keys
    learner = PopulationLearner(losses, lr=[1e-3] * 3, compile="off")
    options = {"steps": 5, "progress": False}
    many = Trainer(learner, make(data, env, keys=keys, batch_size=16), output=tmp_path / "many", **options)
    many.train()
    split_population(many)
    for seed, (_, trained) in zip(SEEDS, learner.member_losses(), strict=True):
        loss = built(seed)
        buffer = alone(data, env, seed, keys=keys, batch_size=16)
        torch.manual_seed(seed)  # the noise of a member is that of its run
        Trainer(Learner(loss, lr=1e-3, compile="off"), buffer, output=tmp_path / f"{seed}", **options).train()
        for name, tensor in tensors_of(loss).items():
            assert torch.allclose(tensor, tensors_of(trained)[name], atol=1e-5), name
    on = Trainer(
        Learner(built(SEEDS[1]), lr=1e-3, compile="off"),
        alone(data, env, 0, keys=keys, batch_size=16),
        output=many.member_folder(f"seed={SEEDS[1]}"),
        steps=7,
        progress=False,
    )
    on.resume()
    expected = many.buffer.sample()[1]
    assert torch.equal(on.buffer.sample()["next", "terminated"], expected["next", "terminated"])


def test_state_brings_the_goals_back_and_other_goals_are_refused(data, env):
    buffer = make(data, env)
    buffer.sample()
    state, expected = buffer.state_dict(), buffer.sample()
    again = make(data, env, seeds=(1, 2, 3))
    again.load_state_dict(state)
    assert (again.sample() == expected).all()
    with pytest.raises(
        ValueError, match=r"hindsight was future 0\.5, final 0\.2, random 0\.1, per team and is off now"
    ):
        PopulationBuffer(data, batch_size=40, seeds=SEEDS).load_state_dict(state)
    with pytest.raises(ValueError, match=r"and is future 0\.5, final 0\.2, random 0\.1, per agent now"):
        make(data, env, per="agent").load_state_dict(state)


def test_hindsight_of_other_data_or_slices_is_refused(data, env):
    other = collect(env, episodes=20, seed=1)
    options = {"batch_size": 40, "seeds": SEEDS}
    with pytest.raises(ValueError, match=r"hindsight is of \d+ rows and slice_len=None, the buffer of \d+"):
        PopulationBuffer(data, hindsight=HindsightGoals(other, env.outcome), **options)
    with pytest.raises(ValueError, match="for the same slices"):
        PopulationBuffer(data, slice_len=4, hindsight=HindsightGoals(data, env.outcome), **options)
    with pytest.raises(ValueError, match="own= and hindsight= both say"):
        leaves = data.data.select(GOAL)
        PopulationBuffer(data, own=[leaves] * 3, hindsight=HindsightGoals(data, env.outcome), **options)


def test_the_alarm_knows_what_hindsight_pays(data, env):
    """Where no recorded step is paid, values of goals reached in hindsight are no impossible ones."""
    loss = make_loss(data.spec, algorithm="recipe", hidden=(4,))
    poor = data.data.clone()
    poor["next", "agents", "reward"].zero_()
    assert reward_facts(loss, data.replay_buffer(batch_size=4)).largest <= 1
    unpaid = type(data)(poor, data.spec, dict(data.metadata))
    assert reward_facts(loss, unpaid.replay_buffer(batch_size=4)).largest == 0
    assert reward_facts(loss, hindsight_buffer(unpaid, env.outcome, batch_size=4)).largest == 1
