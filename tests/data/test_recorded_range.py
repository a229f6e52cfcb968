"""The range of the recorded actions, and bounds of one's own, of datasets from everywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from torchrl_marl_offline import load_dataset
from torchrl_marl_offline.data import DatasetError, OfflineDataset, from_arrays
from torchrl_marl_offline.data.transitions.dataset_errors import value_checks_deferred

ACTION, NEXT_ACTION, NAN = ("agents", "action"), ("next", "agents", "action"), float("nan")


def arrays(actions, **more):
    length, agents = np.shape(actions)[:2]
    return {
        "observations": np.zeros((length, agents, 3), np.float32),
        "actions": np.asarray(actions, np.float32),
        "rewards": np.zeros(length, np.float32),
        "terminals": np.arange(length) == length - 1,
    } | more


LOGGED = [[[-0.5, 0.25], [0.0, 3.0]], [[1.0, 0.25], [0.4, 2.0]], [[0.0, 0.25], [0.2, 2.5]]]


def test_bounds_are_what_each_agent_did_in_each_component() -> None:
    spec = from_arrays(**arrays(LOGGED), action_bounds="data").spec
    low, high = (np.float32(bound) for bound in (spec.action_low, spec.action_high))
    assert (low == np.float32([[-0.5, 0.25], [0.0, 2.0]])).all()
    assert (high == np.float32([[1.0, 0.25], [0.4, 3.0]])).all()


def test_dead_agents_and_rows_that_do_not_count_are_not_looked_at() -> None:
    mask = np.array([[True, True], [True, True], [True, False]])
    wild = np.float32(LOGGED)
    wild[2, 1] = 9.0
    dataset = from_arrays(**arrays(wild, agent_mask=mask), action_bounds=(-10.0, 10.0))
    narrow = dataset.with_bounds("data")
    assert narrow.spec.action_high == ((1.0, 0.25), (pytest.approx(0.4), 3.0))
    assert narrow.data[ACTION][2, 1].tolist() == pytest.approx([0.4, 3.0])  # clipped where nothing counts
    assert dataset.data[ACTION][2, 1].tolist() == [9.0, 9.0]  # and not in place
    counts = torch.tensor([True, True, False])
    dataset.data.set(("collector", "mask"), counts)
    assert dataset.with_bounds("data").spec.action_low[1] == (0.0, 2.0)
    alone = from_arrays(**arrays(wild, agent_mask=mask & [True, False]), action_bounds=(-10.0, 10.0))
    assert alone.with_bounds("data").spec.action_high == (1.0, 0.25)  # an agent that never counts has the others'


def test_nan_does_not_count() -> None:
    dataset = from_arrays(**arrays(LOGGED), action_bounds=(-10.0, 10.0))
    dataset.data[ACTION][0] = NAN
    with value_checks_deferred():
        found = dataset.with_bounds("data").spec
    assert found.action_low == ((0.0, 0.25), (pytest.approx(0.2), 2.0))


def test_declared_bounds_are_kept_beside_and_through_files(tmp_path) -> None:
    dataset = from_arrays(**arrays(LOGGED), action_bounds=(-1.0, [[1.0, 1.0], [1.0, 4.0]]))
    narrow = dataset.with_bounds("data")
    assert narrow.task_spec == dataset.spec == dataset.task_spec != narrow.spec
    loaded = OfflineDataset.load(narrow.save(tmp_path / "narrow"))
    assert loaded.spec == narrow.spec and loaded.task_spec == dataset.spec
    assert loaded.with_bounds((-1.0, 4.0)).task_spec == dataset.spec
    again = load_dataset(dataset.save(tmp_path / "wide"), bounds="data")
    assert again.spec == narrow.spec
    assert json.loads((tmp_path / "wide" / "metadata.json").read_text())["spec"]["action_low"] == [-1.0, -1.0]
    assert narrow.select_episodes([0]).task_spec == dataset.spec


def test_a_table_has_bounds_of_its_own(tmp_path) -> None:
    path = tmp_path / "logs.csv"
    rows = [
        f"{episode},{t},{'ab'[i]},0.0,{LOGGED[t][i][0]},{LOGGED[t][i][1]},{episode}"
        for episode in range(2)
        for t in range(3)
        for i in range(2)
    ]
    path.write_text("\n".join(["episode,step,agent,obs_x,action_0,action_1,reward", *rows]))
    low, high = [[-1, 0], [0, 2]], [[1, 1], [1, 3]]
    table = load_dataset(f"table:{path}", action_bounds=(low, high))
    assert table.spec.action_high == ((1.0, 1.0), (1.0, 3.0))
    expected = from_arrays(**arrays(LOGGED), action_bounds="data").spec
    for spec in (
        load_dataset(f"table:{path}", action_bounds="data").spec,
        load_dataset(f"table:{path}", bounds="data").spec,  # outside of the -1 and 1 that it would have
    ):
        assert (spec.action_low, spec.action_high) == (expected.action_low, expected.action_high)


@pytest.mark.parametrize(
    ("bounds", "sentence"),
    [
        (([0.0, 0.0], [1.0, 4.0]), r"lies outside its bounds \[0, 4\], each component in its own part"),
        ((0.0, [1.0]), "has the shape of"),
        ((2.0, [1.0, 3.0]), "must not lie above"),
        ((0.0, [1.0, NAN]), "bounds must be finite, got nan"),
        ((0.0, [1.0, float("inf")]), "bounds must be finite, got inf"),
        ("recorded", "bounds must be"),
    ],
)
def test_wrong_bounds_are_refused(bounds, sentence) -> None:
    dataset = from_arrays(**arrays(LOGGED), action_bounds=(-10.0, 10.0))
    with pytest.raises(ValueError, match=sentence):
        dataset.with_bounds(bounds)
    if bounds != "recorded":
        with pytest.raises(ValueError, match=sentence.removeprefix("bounds ")):
            from_arrays(**arrays(LOGGED), action_bounds=bounds)


def test_indices_have_no_range() -> None:
    dataset = from_arrays(**arrays([[0, 1], [1, 0]]) | {"actions": np.array([[0, 1], [1, 0]])}, n_actions=2)
    for bounds in ("data", (0.0, 1.0)):
        with pytest.raises(DatasetError, match="these are indices; leave bounds= out"):
            dataset.with_bounds(bounds)


def test_statistics_of_inputs_leave_out_what_does_not_count() -> None:
    mask = np.array([[True, True], [True, False], [True, True]])
    observations = np.zeros((3, 2, 3), np.float32)
    observations[..., 0] = [[0.0, 2.0], [4.0, 1e9], [2.0, 2.0]]
    dataset = from_arrays(**arrays(LOGGED, agent_mask=mask) | {"observations": observations}, action_bounds="data")
    found = dataset.input_statistics()
    assert found.observation == (
        pytest.approx((2.0, 0.0, 0.0)),
        pytest.approx((1.6**0.5, 1.0, 1.0)),  # constants are divided by 1
    )
    assert len(found.state[0]) == 6 and found.are_badly_scaled
