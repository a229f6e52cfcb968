"""Who sees and moves what of OGBench's ant, by hand."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.core.split_ant import LEGS, SplitAnt, split_maze_name


def test_neighbouring_legs_by_hand():
    split = SplitAnt("2x4")
    body, goal = torch.arange(29.0), torch.tensor([[50.0, 60.0], [50.0, 60.0]])
    seen, state = split.seen(body, goal)
    torso, moves = [0, 1, 2, 3, 4, 5, 6], [15, 16, 17, 18, 19, 20]
    assert seen.tolist() == [
        [*torso, 7, 8, 9, 10, *moves, 21, 22, 23, 24, 50, 60],
        [*torso, 11, 12, 13, 14, *moves, 25, 26, 27, 28, 50, 60],
    ]
    assert state.tolist() == [*range(29), 50, 60, 50, 60] and split.observation_size == seen.shape[-1]
    # the model's motors: those of leg 4, then of 1, 2, 3
    assert split.motors().tolist() == [[2, 3, 4, 5], [6, 7, 0, 1]]
    assert split.actions(torch.arange(8)).tolist() == [[2, 3, 4, 5], [6, 7, 0, 1]]


@pytest.mark.parametrize("partition", LEGS)
def test_every_motor_is_one_agent_s(partition):
    split = SplitAnt(partition, "all")
    control = torch.randn(5, 3, 8)
    assert torch.equal(split.controls(split.actions(control)), control)
    assert sorted(split.motors().flatten().tolist()) == list(range(8))
    body, goal = torch.randn(4, 29), torch.randn(4, split.n_agents, 2)
    seen, _ = split.seen(body, goal)
    assert torch.equal(seen[:, 0, :29], body) and torch.equal(seen[..., -2:], goal)
    assert seen.shape[1:] == (split.n_agents, split.observation_size)


def test_names():
    assert split_maze_name("antmaze-giant-2x4d") == ("giant", "2x4d")
    for name in ("antmaze-medium", "antmaze-teleport-2x4", "humanoidmaze-medium-2x4", "antmaze-medium-3x3"):
        with pytest.raises(ValueError, match="An ant maze is named antmaze-medium-2x4"):
            split_maze_name(name)
