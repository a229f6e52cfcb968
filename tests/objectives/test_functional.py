"""The mathematics by numbers computed by hand."""

from __future__ import annotations

import math

import torch
from torch.testing import assert_close

from torchrl_marl_offline.objectives import functional as F

NAN = math.nan


def test_masked_mean() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 10.0]])
    assert_close(F.masked_mean(x), torch.tensor(4.0))
    assert_close(F.masked_mean(x, dims=(0,)), torch.tensor([2.0, 6.0]))
    mask = torch.tensor([[True, True], [True, False]])
    assert_close(F.masked_mean(x, mask), torch.tensor(2.0))
    assert_close(F.masked_mean(x, mask, (0,)), torch.tensor([2.0, 2.0]))
    assert_close(F.masked_mean(x, torch.tensor([[True], [False]])), torch.tensor(1.5))  # broadcast


def test_masked_mean_ignores_nan_and_survives_an_empty_selection() -> None:
    x = torch.tensor([1.0, NAN], requires_grad=True)
    mean = F.masked_mean(x, torch.tensor([True, False]))
    mean.backward()
    assert_close(mean, torch.tensor(1.0))
    assert_close(x.grad, torch.tensor([1.0, 0.0]))
    assert_close(F.masked_mean(x, torch.tensor([False, False])), torch.tensor(0.0))


def test_masked_mean_over_no_dimension() -> None:
    x = torch.tensor([1.0, 5.0])
    assert_close(F.masked_mean(x, dims=()), x)
    assert_close(F.masked_mean(x, torch.tensor([True, False]), ()), torch.tensor([1.0, 0.0]))


def test_team_reward() -> None:
    reward = torch.tensor([[[1.0], [2.0], [6.0]]])  # [B=1, n=3, 1]
    assert_close(F.team_reward(reward, "mean"), torch.tensor([[[3.0]]]))
    assert_close(F.team_reward(reward, "sum"), torch.tensor([[[9.0]]]))


def test_expectile_weighted_square() -> None:
    diff = torch.tensor([2.0, -2.0, 0.0])
    assert_close(F.expectile_weighted_square(diff, 0.9), torch.tensor([3.6, 0.4, 0.0]))
    assert_close(F.expectile_weighted_square(diff, torch.tensor(0.5)), torch.tensor([2.0, 2.0, 0.0]))


def test_scale_invariant() -> None:
    value = torch.tensor([1.0, 3.0, -8.0], requires_grad=True)  # mean -4/3, mean absolute 4
    out = F.scale_invariant(value)
    assert_close(out, torch.tensor([7 / 12, 13 / 12, -5 / 3]))
    out.sum().backward()
    assert_close(value.grad, torch.full((3,), 0.25))  # the statistics are constants
    masked = F.scale_invariant(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False]))
    assert_close(masked[:2], torch.tensor([-0.5, 0.5]))


def test_standardize() -> None:
    assert_close(F.standardize(torch.tensor([1.0, 5.0])), torch.tensor([-1.0, 1.0]))
    masked = F.standardize(torch.tensor([1.0, 5.0, 77.0]), torch.tensor([True, True, False]))
    assert_close(masked, torch.tensor([-1.0, 1.0, 37.0]))
    assert_close(F.standardize(torch.ones(3)), torch.zeros(3))


def test_advantage_weight() -> None:
    advantage = torch.tensor([0.0, 1.0, -1.0, 3.0, 1000.0, -1000.0])
    weight = F.advantage_weight(advantage, 2.0)
    expected = [1.0, math.e**2, math.e**-2, 100.0, 100.0, math.exp(-50.0)]
    assert_close(weight, torch.tensor(expected))
    assert_close(F.advantage_weight(advantage[3:4], 2.0, max_weight=1e9), torch.tensor([math.e**6]))
    clipped = F.advantage_weight(advantage[4:], 2.0, exponent_range=(-1.0, 2.0))
    assert_close(clipped, torch.tensor([math.e**2, math.e**-1]))


def test_effective_sample_size() -> None:
    assert_close(F.effective_sample_size(torch.ones(7)), torch.tensor(1.0))
    assert_close(F.effective_sample_size(torch.tensor([1.0, 0.0, 0.0, 0.0])), torch.tensor(0.25))
    assert_close(F.effective_sample_size(torch.tensor([1.0, 3.0])), torch.tensor(0.8))
    assert_close(
        F.effective_sample_size(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])), torch.tensor(0.8)
    )
    assert F.effective_sample_size(torch.zeros(3)).isfinite()
