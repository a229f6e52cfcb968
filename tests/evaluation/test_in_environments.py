from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.envs.utils import check_env_specs
from torchrl.modules import IndependentNormal, ProbabilisticActor
from training_toys import ContinuousEnv, CountdownEnv, make_trainer, weights

from torchrl_marl_offline.evaluation import Evaluation, IllegalActionError, evaluate
from torchrl_marl_offline.training import preserved_rng


def stay(tensordict):
    return tensordict.set(("agents", "action"), torch.zeros(*tensordict.batch_size, 2, dtype=torch.int64))


class AddNoise(nn.Module):
    def forward(self, observation):
        return torch.cat([observation + 2.0, torch.zeros_like(observation)], -1)


def gaussian_actor():
    network = TensorDictModule(
        nn.Sequential(AddNoise(), NormalParamExtractor(), nn.Identity()),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "loc"), ("agents", "scale")],
    )
    return ProbabilisticActor(
        network,
        in_keys=[("agents", "loc"), ("agents", "scale")],
        out_keys=[("agents", "action")],
        distribution_class=IndependentNormal,
    )


def test_toy_environments_obey_their_specs():
    # Equal lengths: check_env_specs rolls out until the first slot is done, and resets the others by hand.
    env = CountdownEnv([[3], [3]])
    env.set_seed(0)
    check_env_specs(env)


def test_returns_lengths_and_success_by_hand():
    # Slot 0 plays 1, 4, 1, 4...; slot 1 plays 3, 3, ...; five episodes are three of slot 0 and two of slot 1.
    result = evaluate(stay, CountdownEnv([[1, 4], [3]]), episodes=5, seed=7)
    assert result.lengths.tolist() == [1, 4, 1, 3, 3]
    assert result.returns.tolist() == [2.0, 8.0, 2.0, 12.0, 12.0]
    assert result.success.tolist() == [False, True, False, True, True]
    assert result.mean == pytest.approx(7.2)
    assert result.normalized == pytest.approx(72.0)
    assert result.success_rate == pytest.approx(0.6)


def test_short_episodes_are_not_favoured():
    # The first four episodes to end are all slot 0's; the quota takes two of each slot.
    result = evaluate(stay, CountdownEnv([[1], [9]]), episodes=4, seed=0)
    assert result.lengths.tolist() == [1, 1, 9, 9]


def test_fewer_episodes_than_slots_and_no_success_signal():
    result = evaluate(stay, CountdownEnv([[2], [2], [2]], success=False, masked=False), episodes=2, seed=0)
    assert result.returns.tolist() == [4.0, 8.0]
    assert result.success is None
    assert result.success_rate is None
    assert "success" not in result.summary()


def test_std_and_interval_across_episodes():
    result = Evaluation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 1, 1]))
    assert result.std == pytest.approx(1.0)
    # t_{.975, 2} = 4.3027, times 1/sqrt(3)
    assert result.confidence_interval().half_width == pytest.approx(2.48414, abs=1e-4)
    summary = result.summary()
    assert summary["return"] == pytest.approx(2.0)
    assert summary["return_low"] == pytest.approx(2.0 - 2.48414, abs=1e-4)
    assert "normalized" not in summary
    assert "return_low" not in Evaluation(torch.tensor([1.0]), torch.tensor([1])).summary()


def test_the_gap_to_the_best_return_where_the_task_knows_it():
    result = Evaluation(torch.tensor([1.0, 2.0]), torch.tensor([1, 1]), best_return=4.0)
    assert result.gap == 2.5 == result.summary()["gap"]
    assert Evaluation(torch.tensor([1.0]), torch.tensor([1])).gap is None
    env = CountdownEnv([[1], [1]])
    assert "gap" not in evaluate(stay, env, episodes=2, seed=0).summary()
    env.best_return = 10.0
    result = evaluate(stay, env, episodes=2, seed=0)
    assert result.gap == 10 - result.mean


def test_the_same_seed_gives_the_same_episodes_and_another_seed_others():
    env = CountdownEnv([[3], [3]], noisy=True)
    first, again, other = (evaluate(stay, env, episodes=4, seed=seed).returns for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert env.seeds == [1, 1, 2]


def test_mode_and_sample():
    actor, env = gaussian_actor(), ContinuousEnv()
    assert evaluate(actor, env, episodes=8, seed=0, mode="mode").returns.tolist() == [2.0] * 8
    sampled = evaluate(actor, env, episodes=8, seed=0, mode="sample").returns
    assert sampled.std() > 0.1
    assert torch.equal(sampled, evaluate(actor, env, episodes=8, seed=0, mode="sample").returns)


def test_illegal_actions_are_counted_and_raised():
    def cheat(tensordict):
        return tensordict.set(("agents", "action"), torch.tensor([[0, 1], [1, 1]]))

    with pytest.raises(
        IllegalActionError, match=r"3 illegal actions out of 4; the first is action 1 of agent 1 in row"
    ):
        evaluate(cheat, CountdownEnv([[2], [2]]), episodes=2, seed=0)
    evaluate(cheat, CountdownEnv([[2], [2]], masked=False), episodes=2, seed=0)  # no mask: nothing is illegal


def test_an_episode_that_never_ends_is_an_error():
    env = CountdownEnv([[5]])
    env.max_episode_steps = 3
    with pytest.raises(RuntimeError, match="max_episode_steps = 3"):
        evaluate(stay, env, episodes=1, seed=0)


@pytest.mark.parametrize(("options", "message"), [({"episodes": 0}, "episodes"), ({"mode": "best"}, "mode")])
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(stay, CountdownEnv([[1]]), **({"episodes": 1, "seed": 0} | options))


def test_global_generators_and_module_modes_are_left_alone():
    actor = gaussian_actor()
    actor.train()
    actor.module[0].eval()
    modes = [module.training for module in actor.modules()]
    draws = []
    for evaluated in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        if evaluated:
            evaluate(actor, ContinuousEnv(), episodes=8, seed=5, mode="sample")
        draws.append((torch.rand(()).item(), random.random(), np.random.rand()))
    assert draws[0] == draws[1]
    assert [module.training for module in actor.modules()] == modes
    assert any(modes)
    assert not all(modes)


def test_preserved_rng_restores_after_an_error():
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError), preserved_rng():
        torch.rand(5)
        _ = 1 / 0
    assert torch.equal(torch.rand(()), expected)


def test_training_is_the_same_bit_for_bit_however_often_it_is_evaluated():
    def disturb():
        torch.rand(3)
        random.random()
        np.random.rand()
        return {"return": 1.0}

    trainers = []
    for every in (None, 20, 1):  # seeded, made and trained one after the other
        trainers.append(make_trainer(evaluators=every and {"x": disturb}, eval_every=every))
        trainers[-1].train()
    plain, evaluated, often = trainers
    assert len(often.logger.eval.rows) == 60
    assert torch.equal(weights(plain), weights(evaluated))
    assert torch.equal(weights(plain), weights(often))
