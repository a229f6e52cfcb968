from __future__ import annotations

import pytest
import torch
from data_toys import episodes

from torchrl_marl_offline.data import DatasetError, OfflineDataset, TaskSpec, concatenate, from_arrays, validate


def masked_dataset() -> OfflineDataset:
    mask = torch.ones(4, 2, 3)
    mask[:, 0, 0] = 0
    return from_arrays(
        observations=torch.rand(4, 2, 2),
        actions=torch.tensor([[1, 0], [2, 1], [1, 2], [2, 2]]),
        rewards=torch.ones(4),
        terminals=torch.tensor([0, 1, 0, 1]),
        action_mask=mask,
        success=torch.tensor([0, 1, 0, 0]),
    )


def test_success_summary_and_repr():
    dataset = masked_dataset()
    assert dataset.success().tolist() == [True, False]
    text = dataset.summary()
    assert "4 in 2 episodes" in text and "return       2.00 ± 0.00" in text and "success      0.5000" in text
    assert "2 to 2" in text
    assert "transitions=4, episodes=2, agents=2" in repr(dataset)
    assert episodes([2]).success() is None


def test_select_keeps_order_and_renumbers():
    part = episodes([3, 1, 4]).select_episodes([2, 0])
    assert part.data["agents", "observation"][:, 0, 0].tolist() == [2, 2, 2, 2, 0, 0, 0]
    assert part.data["agents", "observation"][:, 0, 1].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert part.data["collector", "traj_ids"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert part.metadata["n_episodes"] == 2 and part.metadata["n_transitions"] == 7
    validate(part)


def test_select_does_not_touch_the_original():
    dataset = episodes([3, 1, 4])
    dataset.select_episodes([2])
    assert dataset.data["collector", "traj_ids"].tolist() == [0, 0, 0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("choice", [[], [3], [-1], [0, 0], torch.tensor([True, False])])
def test_impossible_selections(choice):
    with pytest.raises(ValueError):
        episodes([3, 1, 4]).select_episodes(choice)


def test_split_by_episode():
    dataset = episodes([2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    train, held_out = dataset.split(fraction=0.3, seed=1)
    assert (train.n_episodes, held_out.n_episodes) == (7, 3)
    first = [part.data["agents", "observation"][:, 0, 0].unique().tolist() for part in (train, held_out)]
    assert sorted(first[0] + first[1]) == list(range(10))
    assert first[0] == sorted(first[0])
    again = dataset.split(fraction=0.3, seed=1)[1]
    assert torch.equal(again.episode_lengths, held_out.episode_lengths)
    others = {tuple(dataset.split(fraction=0.3, seed=seed)[1].episode_lengths.tolist()) for seed in range(5)}
    assert len(others) > 1
    for fraction in (0.0, 1.0):
        with pytest.raises(ValueError, match="fraction"):
            dataset.split(fraction=fraction, seed=0)
    assert [part.n_episodes for part in dataset.split(fraction=0.001, seed=0)] == [9, 1]


def test_concatenate():
    both = concatenate([episodes([2, 1]), episodes([3])])
    assert both.data["collector", "traj_ids"].tolist() == [0, 0, 1, 2, 2, 2]
    assert both.episode_returns().tolist() == [2.0, 1.0, 3.0]
    assert len(both.metadata["parts"]) == 2
    validate(both)
    with pytest.raises(DatasetError, match="they must agree"):
        concatenate([episodes([2], n=2), episodes([2], n=3)])
    other = episodes([2])
    other.data["next", "success"] = torch.zeros(2, 1, dtype=torch.bool)
    with pytest.raises(DatasetError, match=r"success.* is in only one"):
        concatenate([episodes([2]), other])


def test_returns_reduction_is_checked():
    with pytest.raises(ValueError, match="'mean' or 'sum'"):
        episodes([2]).episode_returns("max")


def test_validate_accepts_what_is_right():
    dataset = masked_dataset()
    validate(dataset)
    validate(dataset.data, dataset.spec)
    with pytest.raises(DatasetError, match="spec=TaskSpec"):
        validate(dataset.data)


def _set(key, index, value):
    def plant(data):
        changed = data.get(key).clone()
        changed[index] = value
        data.set(key, changed)

    return plant


DEFECTS = {
    "missing key": (lambda data: data.del_(("next", "state")), r"lacks \('next', 'state'\)"),
    "shape": (lambda data: data.set("state", torch.zeros(4, 5)), r"'state' has rows of shape \(5,\)"),
    "type": (lambda data: data.set("state", torch.zeros(4, 4, dtype=torch.float64)), "'state' has rows.*float64"),
    "success shape": (lambda data: data.set(("next", "success"), torch.zeros(4, dtype=torch.bool)), "success"),
    "NaN": (
        _set(("next", "agents", "observation"), (2, 1), float("nan")),
        "'observation'.* is NaN.* row 2, .*; 1 rows",
    ),
    "infinite": (_set("state", 1, float("-inf")), "'state' is NaN or infinite .first at row 1"),
    "above": (_set(("agents", "action"), (3, 0), 3), "lies outside 0..2 .first at row 3"),
    "below": (_set(("agents", "action"), (3, 0), -1), "lies outside 0..2"),
    "empty mask": (_set(("agents", "action_mask"), (1, 0), False), "allows no action at all .* row 1"),
    "empty next mask": (_set(("next", "agents", "action_mask"), (0, 0), False), r"\('next', .*allows no action"),
    "illegal": (_set(("agents", "action"), (2, 0), 0), r"\('agents', 'action'\) is illegal by .* row 2"),
    "illegal next": (_set(("next", "agents", "action"), (0, 0), 0), r"\('next', 'agents', 'action'\) is illegal"),
    "done": (_set(("next", "done"), 1, False), "differs from terminated or truncated .first at row 1"),
    "no end": (_set(("collector", "traj_ids"), slice(None), 0), "disagree about where an episode ends"),
    "crossing": (_set(("collector", "traj_ids"), 2, 0), "disagree about where an episode ends"),
    "reused id": (lambda data: data.set(("collector", "traj_ids"), torch.tensor([0, 0, 1, 1])), None),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_planted_defects_are_named(name):
    dataset = masked_dataset()
    plant, sentence = DEFECTS[name]
    plant(dataset.data)
    if sentence is None:  # the same assignment as before: not a defect
        validate(dataset)
        return
    with pytest.raises(DatasetError, match=sentence) as caught:
        validate(dataset)
    assert ";" in str(caught.value) and str(caught.value).endswith(".")  # what, then the remedy


def test_an_id_may_not_come_back():
    dataset = episodes([1, 1, 1])
    dataset.data["collector", "traj_ids"] = torch.tensor([0, 1, 0])
    with pytest.raises(DatasetError, match="an id of its own"):
        validate(dataset)


def test_continuous_bounds():
    dataset = episodes([3])
    dataset.data["agents", "action"][1] = 1.0 + 1e-6  # rounding
    validate(dataset)
    dataset.data["agents", "action"][1] = 1.01
    with pytest.raises(DatasetError, match=r"outside its bounds \[-1, 1\].* row 1.*clip"):
        validate(dataset)


def test_an_empty_dataset_is_refused():
    dataset = episodes([3])
    with pytest.raises(DatasetError, match="at least one transition"):
        OfflineDataset(dataset.data[:0], dataset.spec)


def test_a_spec_of_another_size_is_refused():
    dataset = episodes([3])
    with pytest.raises(DatasetError, match="the task needs"):
        OfflineDataset(dataset.data, TaskSpec(2, 5, 4, 1))
