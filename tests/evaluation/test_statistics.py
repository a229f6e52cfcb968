from __future__ import annotations

import math

import pytest
import torch

from torchrl_marl_offline.evaluation import bootstrap_confidence_interval, mean_confidence_interval
from torchrl_marl_offline.evaluation.statistics import student_t_quantile


# Two-sided quantiles of Student's t from the printed tables.
@pytest.mark.parametrize(
    ("level", "degrees", "quantile"),
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.30265),
        (0.95, 3, 3.18245),
        (0.95, 4, 2.77645),
        (0.95, 9, 2.26216),
        (0.95, 30, 2.04227),
        (0.95, 120, 1.97993),
        (0.99, 4, 4.60409),
        (0.90, 5, 2.01505),
        (0.95, 100_000, 1.95999),
        (0.95, 100_001, 1.95999),
    ],
)
def test_student_t_quantile_equals_the_tables(level, degrees, quantile):
    assert student_t_quantile(level, degrees) == pytest.approx(quantile, rel=1e-5)


def test_interval_by_hand():
    # mean 3, s = sqrt(2.5), k = 5: half = 2.77645 * sqrt(2.5 / 5)
    interval = mean_confidence_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3
    assert interval.half_width == pytest.approx(2.77645 * math.sqrt(0.5), rel=1e-5)
    assert interval.high - 3 == pytest.approx(3 - interval.low)


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 5, generator=generator)
    covered = sum(low <= 0 <= high for _, low, high in map(mean_confidence_interval, draws)) / 2000
    assert covered == pytest.approx(0.95, abs=0.02)


def test_booleans_are_shares():
    assert mean_confidence_interval(torch.tensor([True, False, True, True])).mean == 0.75


def test_bootstrap_brackets_the_mean_and_leaves_the_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    values = list(range(20))
    interval = bootstrap_confidence_interval(values)
    assert torch.equal(torch.get_rng_state(), state)
    assert interval == bootstrap_confidence_interval(values)
    # normal theory: 9.5 ± 1.96 * sqrt(33.25 / 20)
    assert interval.low == pytest.approx(9.5 - 2.527, abs=0.15)
    assert interval.high == pytest.approx(9.5 + 2.527, abs=0.15)
    assert bootstrap_confidence_interval([4.0, 4.0]) == (4, 4, 4)


@pytest.mark.parametrize("interval", [mean_confidence_interval, bootstrap_confidence_interval])
def test_bad_input(interval):
    with pytest.raises(ValueError, match="at least two values, got 1"):
        interval([1.0])
    with pytest.raises(ValueError, match="finite values"):
        interval([1.0, math.nan])
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval([1.0, 2.0], level=95)
