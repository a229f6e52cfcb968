"""Continuous actions of unequal sizes and bounds, as one rectangular tensor."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline import TaskSpec
from torchrl_marl_offline.envs.action_ranges import ActionRanges

LOWS, HIGHS = [[-1.0, 0.0], [-3.0]], [[1.0, 5.0], [3.0]]


@pytest.mark.parametrize("own", [False, True])
def test_unequal_bounds_are_scaled_or_kept(own: bool) -> None:
    ranges = ActionRanges(LOWS, HIGHS, device="cpu", own_bounds=own)
    spec = TaskSpec(2, 3, 4, 2, action_low=ranges.low, action_high=ranges.high)
    action = torch.tensor([[[0.5, 0.5], [9.0, 0.0]]])
    first, second = ranges.split(action)
    assert ranges.scaled is not own
    if own:
        assert spec.action_low == ((-1.0, 0.0), (-3.0, 0.0)) and spec.action_high == ((1.0, 5.0), (3.0, 0.0))
        assert first.tolist() == [[0.5, 0.5]] and second.tolist() == [[3.0]]
    else:
        assert (spec.action_low, spec.action_high) == (-1.0, 1.0)
        assert first.tolist() == [[0.5, 3.75]] and second.tolist() == [[3.0]]


def test_equal_bounds_are_those_of_the_layout_either_way() -> None:
    for own in (False, True):
        ranges = ActionRanges([[-2.0], [-2.0]], [[2.0], [2.0]], device="cpu", own_bounds=own)
        assert (ranges.low, ranges.high, ranges.scaled) == (-2.0, 2.0, False)
