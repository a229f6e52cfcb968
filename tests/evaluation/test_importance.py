"""Importance sampling and doubly robust estimates against the formulas, written out over three tiny episodes."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_marl_offline.evaluation.offline import importance
from torchrl_marl_offline.evaluation.offline.estimates import OfflineEstimate, paired_difference

GAMMA = 0.8
RATIOS = [[2.0, 0.5], [0.25, 3.0, 2.0], [1.5]]
REWARDS = [[1.0, -2.0], [0.5, 4.0, 1.0], [3.0]]
ACTION_VALUES = [[0.3, -1.0], [1.0, 2.0, 0.7], [2.5]]
STATE_VALUES = [[0.6, -0.5], [1.5, 2.5, 0.2], [2.0]]
EPISODES, STEPS = range(3), range(3)


def table(episodes: list[list[float]]) -> torch.Tensor:
    flat = torch.tensor([number for each in episodes for number in each], dtype=torch.float64)
    lengths = torch.tensor([len(each) for each in episodes])
    return importance.padded(flat, lengths.cumsum(0) - lengths, lengths)


def weight(episode: int, step: int) -> float:
    return math.prod(RATIOS[episode][: step + 1])


def at(values: list[list[float]], episode: int, step: int) -> float:
    return values[episode][step] if step < len(values[episode]) else 0.0


def weights() -> torch.Tensor:
    found, clipped = importance.log_weights(table(RATIOS).where(table(RATIOS) > 0, torch.ones(())).log())
    assert clipped == 0.0
    return found


ONCE = torch.ones(1, 3, dtype=torch.float64)


def test_an_episode_that_has_ended_keeps_its_weight():
    expected = [[weight(e, t) for t in STEPS] for e in EPISODES]
    torch.testing.assert_close(weights().exp(), torch.tensor(expected, dtype=torch.float64))


def test_per_decision():
    expected = sum(GAMMA**t * weight(e, t) * at(REWARDS, e, t) for e in EPISODES for t in STEPS) / 3
    assert importance.per_decision(weights(), table(REWARDS), GAMMA, ONCE).item() == pytest.approx(expected)


def test_weighted_per_decision():
    total = {t: sum(weight(e, t) for e in EPISODES) for t in STEPS}
    expected = sum(GAMMA**t * weight(e, t) / total[t] * at(REWARDS, e, t) for e in EPISODES for t in STEPS)
    found = importance.weighted_per_decision(weights(), table(REWARDS), GAMMA, ONCE)
    assert found.item() == pytest.approx(expected)
    shifted = importance.weighted_per_decision(weights() - 900.0, table(REWARDS), GAMMA, ONCE)
    assert shifted.item() == pytest.approx(expected)  # a common factor cancels, however small


def test_weighted_doubly_robust():
    total = {t: sum(weight(e, t) for e in EPISODES) for t in STEPS}
    share = {(e, t): weight(e, t) / total[t] for e in EPISODES for t in STEPS} | {(e, -1): 1 / 3 for e in EPISODES}
    expected = sum(
        GAMMA**t
        * (share[e, t] * (at(REWARDS, e, t) - at(ACTION_VALUES, e, t)) + share[e, t - 1] * at(STATE_VALUES, e, t))
        for e in EPISODES
        for t in STEPS
    )
    arguments = table(REWARDS), table(ACTION_VALUES), table(STATE_VALUES), GAMMA, ONCE
    assert importance.weighted_doubly_robust(weights(), *arguments).item() == pytest.approx(expected)


def test_a_resample_is_the_estimate_of_its_episodes():
    counts = torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64)
    chosen = [0, 0, 2]
    some = weights()[chosen], table(REWARDS)[chosen]
    for function in (importance.per_decision, importance.weighted_per_decision):
        expected = function(*some, GAMMA, ONCE)
        torch.testing.assert_close(function(weights(), table(REWARDS), GAMMA, counts), expected)
    values = table(ACTION_VALUES), table(STATE_VALUES)
    expected = importance.weighted_doubly_robust(*some, *(each[chosen] for each in values), GAMMA, ONCE)
    found = importance.weighted_doubly_robust(weights(), table(REWARDS), *values, GAMMA, counts)
    torch.testing.assert_close(found, expected)


def test_with_equal_weights_all_of_them_are_the_mean_return():
    expected = sum(GAMMA**t * at(REWARDS, e, t) for e in EPISODES for t in STEPS) / 3
    even = torch.zeros(3, 3, dtype=torch.float64)
    values = torch.zeros(3, 3, dtype=torch.float64)
    assert importance.per_decision(even, table(REWARDS), GAMMA, ONCE).item() == pytest.approx(expected)
    assert importance.weighted_per_decision(even, table(REWARDS), GAMMA, ONCE).item() == pytest.approx(expected)
    found = importance.weighted_doubly_robust(even, table(REWARDS), values, values, GAMMA, ONCE)
    assert found.item() == pytest.approx(expected)


def test_effective_sample_size_by_hand():
    last = torch.tensor([[9.0, 1.0], [9.0, 1.0], [9.0, 2.0]], dtype=torch.float64).log()
    assert importance.effective_episodes(last) == pytest.approx(16 / 6)
    assert importance.effective_episodes(torch.full((3, 2), -torch.inf)) == 0.0


def test_weights_are_clipped_and_the_share_is_told():
    found, clipped = importance.log_weights(torch.tensor([[2.0, 2.0], [0.5, 0.5]]).double().log(), clip=3.0)
    torch.testing.assert_close(found.exp(), torch.tensor([[2.0, 3.0], [0.5, 0.25]]).double())
    assert clipped == 0.25


def test_an_action_that_the_policy_never_takes_ends_an_episodes_weight():
    found, _ = importance.log_weights(torch.tensor([[-torch.inf, 1.0], [0.0, torch.inf]]).double())
    assert found[0].exp().tolist() == [0.0, 0.0] and found[1].isfinite().all()
    rewards = torch.ones(2, 2, dtype=torch.float64)
    assert importance.weighted_per_decision(found, rewards, 1.0, torch.ones(1, 2).double()).item() == 2.0


def test_paired_bootstrap_on_planted_numbers():
    values, others = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 2.0, 2.0, 5.0])
    found = paired_difference(2.5, values, 2.25, others, "percentiles")
    assert found.mean == pytest.approx(0.25) and found.probability == 2.5 / 4
    assert (found.low, found.high) == pytest.approx((-1 + 0.075, 1.0))  # quantiles of -1, 0, 1, 1


def test_a_paired_t_interval_on_planted_numbers():
    values, others = torch.tensor([5.0, 5.0, 5.0]), torch.tensor([4.0, 3.0, 2.0])
    found = paired_difference(5.0, values, 3.0, others, "t")
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - 4.302653, 2 + 4.302653), abs=1e-4)
    assert found.probability == pytest.approx(0.5 + 1 / math.sqrt(6), abs=1e-6)  # of T with 2 degrees, at 2
    mirrored = paired_difference(3.0, others, 5.0, values, "t")
    assert mirrored.probability == pytest.approx(0.5 - 1 / math.sqrt(6), abs=1e-6)
    alike = paired_difference(5.0, values, 5.0, values, "t")
    assert alike.probability == 0.5


def test_an_estimates_interval_and_row():
    few = OfflineEstimate("fqe", 2.0, torch.tensor([1.0, 2.0, 3.0]), 0.9, "t", {"episodes": 7.0})
    assert few.interval == pytest.approx((2 - 4.302653, 2 + 4.302653), abs=1e-4)
    assert few.summary()["episodes"] == 7.0 and few.summary()["value"] == 2.0
    many = OfflineEstimate("wis", 0.0, torch.arange(101.0), 0.9)
    assert many.confidence_interval(0.9)[1:] == pytest.approx((5.0, 95.0))
    assert math.isnan(OfflineEstimate("fqe", 0.0, torch.zeros(1), 0.9, "t").interval[0])


@pytest.mark.parametrize("by", ["percentiles", "t"])
def test_a_difference_that_rounding_makes_is_none(by):
    values = torch.tensor([1.0, -2.0, 3.0, 40.0]).double()
    found = paired_difference(10.5, values * (1 + 1e-12), 10.5, values, by)
    assert found == (0.0, 0.0, 0.0, 0.5)
    assert paired_difference(10.5, values + 0.1, 10.4, values, by).probability == 1.0


@pytest.mark.parametrize("by", ["percentiles", "t"])
def test_one_resample_says_nothing_of_a_probability(by):
    found = paired_difference(2.0, torch.tensor([2.0]), 1.0, torch.tensor([1.0]), by)
    assert found.mean == 1.0 and all(math.isnan(number) for number in found[1:])
