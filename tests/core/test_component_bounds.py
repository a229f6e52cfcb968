"""Bounds of a continuous action that differ between components or agents."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from torchrl_marl_offline import TaskSpec

SIZES = {"n_agents": 2, "observation_size": 3, "state_size": 4, "action_size": 2}
NAN, INF = float("nan"), float("inf")


def test_plain_numbers_stay_as_they_are() -> None:
    spec = TaskSpec(**SIZES, action_low=-1, action_high=2.5)
    assert (spec.action_low, spec.action_high) == (-1, 2.5) and not spec.has_component_bounds
    assert '"action_low": -1.0, "action_high": 1.0' in json.dumps(TaskSpec(**SIZES).to_dict())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ([-1.0, -1.0], [1.0, 1.0], (-1.0, 1.0)),  # the same everywhere
        ([[0.0, 0.0], [0.0, 0.0]], 1.0, (0.0, 1.0)),
        (-1.0, [1.0, 2.0], ((-1.0, -1.0), (1.0, 2.0))),
        ([[-1, 0], [-1, 0]], [1, 2], ((-1.0, 0.0), (1.0, 2.0))),  # the same for all agents
        ([[-1, 0], [-2, 0]], [1, 2], (((-1.0, 0.0), (-2.0, 0.0)), (1.0, 2.0))),
        ([0.5, 0.5], [0.5, 0.5], ((0.5, 0.5), (0.5, 0.5))),  # constants are never plain numbers
        (np.array([[-1.0, 0.0], [-2.0, 0.0]]), torch.tensor([1.0, 2.0]), (((-1.0, 0.0), (-2.0, 0.0)), (1.0, 2.0))),
    ],
)
def test_bounds_have_one_form_and_survive_files(low, high, expected) -> None:
    spec = TaskSpec(**SIZES, action_low=low, action_high=high)
    assert (spec.action_low, spec.action_high) == expected
    assert TaskSpec(**json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(replace(spec))
    found = torch.zeros(5, 2, 2)
    for bound, given in zip(spec.bounds_like(found), (low, high)):
        assert torch.equal(found + bound, found + torch.as_tensor(given, dtype=torch.float32))


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (1.0, 1.0, "TaskSpec.action_low must lie below action_high, got 1.0 and 1.0"),
        ([0, 2], [1, 1], "must not lie above action_high, got 2.0 and 1.0 of agent 0, component 1"),
        ([0, 0, 0], 1, r"TaskSpec.action_low has the shape of \(0, 0, 0\); give one number, a list of 2"),
        ([[0, 0]], 1, r"TaskSpec.action_low has the shape of .*, or 2 such lists, one for each agent"),
        ([[0, 0], [0]], 1, "TaskSpec.action_low has the shape of"),
        ([0, [0, 0]], 1, r"action_low must be a number, got \[0, 0\]; give one number, a list with one for each"),
        ([0, NAN], 1, "action_low must be finite, got nan"),
        (0, [[1, 1], [INF, 1]], "action_high must be finite, got inf"),
        ("low", 1, "action_low must be a .*number.*, got 'low'; give one number, a list with one for each component"),
        (None, 1, "action_low must be"),
    ],
)
def test_wrong_bounds_are_refused_in_one_sentence(low, high, sentence) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        TaskSpec(**SIZES, action_low=low, action_high=high)
    assert "\n" not in str(error.value)


def test_indices_have_no_bounds_of_components() -> None:
    with pytest.raises(ValueError, match="are of continuous actions; leave them out"):
        TaskSpec(**SIZES, discrete=True, action_low=[0, 0])


def test_whose_actions_can_be_played_in_a_task() -> None:
    task = TaskSpec(**SIZES, action_low=[-1, -2], action_high=[1, 2], task="a/b")
    assert replace(task, task=None).fits(task)
    assert replace(task, action_low=[[-1, 0], [0, 0]], action_high=0.5).fits(task)
    assert not replace(task, action_high=[1.1, 2]).fits(task)
    assert not replace(task, action_low=-2.0).fits(task)
    assert not replace(task, observation_size=4).fits(task)
