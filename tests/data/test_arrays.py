from __future__ import annotations

import numpy as np
import pytest
import torch
from data_toys import episodes

from torchrl_marl_offline.data import DatasetError, DatasetWarning, from_arrays
from torchrl_marl_offline.data.quality.inspection import inspect


def toy(**changes) -> dict:
    """Five rows: an episode of 3 that terminates, one of 2 that is truncated."""
    arrays = {
        "observations": np.arange(20, dtype=np.float64).reshape(5, 2, 2),
        "actions": np.array([[0, 1], [1, 2], [2, 0], [1, 1], [0, 2]]),
        "rewards": np.array([[1.0, 3.0], [2.0, 0.0], [0.0, 4.0], [1.0, 1.0], [5.0, 7.0]]),
        "terminals": np.array([0, 0, 1, 0, 0]),
        "truncations": np.array([0, 0, 0, 0, 1]),
        "n_actions": 3,
    }
    return arrays | changes


def test_next_values_stay_within_the_episode():
    data = from_arrays(**toy()).data
    observation = data["agents", "observation"]
    following = data["next", "agents", "observation"]
    assert torch.equal(following[[0, 1, 3]], observation[[1, 2, 4]])
    assert torch.equal(following[[2, 4]], observation[[2, 4]])  # nothing is known after the end
    assert data["next", "agents", "action"][[0, 1, 3]].tolist() == [[1, 2], [2, 0], [0, 2]]
    assert data["collector", "has_next_action"].tolist() == [True, True, False, True, False]
    assert data["collector", "traj_ids"].tolist() == [0, 0, 0, 1, 1]
    assert data["next", "terminated"].flatten().tolist() == [False, False, True, False, False]
    assert data["next", "truncated"].flatten().tolist() == [False, False, False, False, True]
    assert data["next", "done"].flatten().tolist() == [False, False, True, False, True]


def test_a_truncated_row_without_successor_does_not_count():
    dataset = from_arrays(**toy())
    assert dataset.data["collector", "mask"].tolist() == [True, True, True, True, False]
    assert any("1 truncated rows have no recorded successor" in finding for finding in dataset.metadata["findings"])


def test_a_truncated_row_with_its_true_successor_counts():
    following = np.arange(20, dtype=np.float32).reshape(5, 2, 2) + 100
    dataset = from_arrays(**toy(next_observations=following))
    assert dataset.data["collector", "mask"].all()
    assert torch.equal(dataset.data["next", "agents", "observation"], torch.from_numpy(following))
    assert torch.equal(dataset.data["next", "state"], torch.from_numpy(following).flatten(1))


def test_a_state_without_its_successor_masks_the_truncated_row():
    following = np.zeros((5, 2, 2))
    dataset = from_arrays(**toy(next_observations=following, state=np.arange(15).reshape(5, 3)))
    assert dataset.data["collector", "mask"].tolist() == [True, True, True, True, False]
    assert dataset.data["next", "state"][0].tolist() == [3.0, 4.0, 5.0]
    assert dataset.spec.state_size == 3 and "state" not in dataset.metadata


def test_without_state_the_joint_observation_stands_in():
    dataset = from_arrays(**toy())
    assert dataset.metadata["state"] == "joint observation"
    assert dataset.data["state"][1].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert dataset.spec.state_size == 4


def test_rewards_and_returns():
    dataset = from_arrays(**toy())
    assert dataset.metadata["team_reward"] is False
    assert dataset.episode_returns().tolist() == [5.0, 7.0]  # (2 + 1 + 2), (1 + 6)
    assert dataset.episode_returns("sum").tolist() == [10.0, 14.0]
    team = from_arrays(**toy(rewards=np.array([1.0, 2.0, 3.0, 4.0, 5.0])))
    assert team.metadata["team_reward"] is True
    assert team.data["next", "agents", "reward"][1].tolist() == [[2.0], [2.0]]
    assert team.episode_returns().tolist() == [6.0, 9.0]


def test_rows_after_the_last_end_are_a_truncated_episode():
    dataset = from_arrays(**toy(truncations=None))
    assert dataset.data["next", "truncated"].flatten().tolist() == [False, False, False, False, True]
    assert any("one truncated episode" in finding for finding in dataset.metadata["findings"])


def test_terminals_that_are_never_set_are_reported():
    dataset = from_arrays(**toy(truncations=None, terminals=np.zeros(5)))
    assert dataset.n_episodes == 1
    assert any("is `terminals` set at all" in finding for finding in dataset.metadata["findings"])


def test_an_episode_ends_where_every_agent_has_ended():
    terminals = np.array([[0, 0], [1, 0], [1, 1], [0, 0], [1, 0]])
    truncations = np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 1]])
    data = from_arrays(**toy(terminals=terminals, truncations=truncations)).data
    assert data["next", "terminated"].flatten().tolist() == [False, False, True, False, False]
    assert data["next", "truncated"].flatten().tolist() == [False, False, False, False, True]


def test_placeholders_are_legal_and_empty_final_masks_are_opened():
    mask = np.ones((5, 2, 3), dtype=np.int32)
    mask[2, 1] = [1, 0, 1]
    following = np.roll(mask, -1, axis=0)
    following[2] = 0  # as files that leave the mask of a terminal state empty
    following[4, 0] = [0, 0, 1]
    arrays = toy(action_mask=mask, next_action_mask=following, next_observations=np.zeros((5, 2, 2)))
    del arrays["n_actions"]
    dataset = from_arrays(**arrays)
    assert dataset.data["next", "agents", "action_mask"][2].all()
    assert dataset.data["next", "agents", "action"][4].tolist() == [2, 0]
    assert dataset.spec.has_action_mask and dataset.spec.action_size == 3
    assert any("final rows allow no action" in finding for finding in dataset.metadata["findings"])


def test_continuous_actions_and_read_only_arrays():
    actions = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 2, 2)
    actions.setflags(write=False)
    dataset = from_arrays(**toy(actions=actions, n_actions=None))
    assert not dataset.spec.discrete and dataset.spec.action_size == 2
    assert dataset.data["next", "agents", "action"][4].tolist() == actions[4].tolist()


def test_episodes_of_unequal_length():
    dataset = episodes([3, 1, 4])
    assert dataset.episode_lengths.tolist() == [3, 1, 4]
    assert dataset.episode_starts.tolist() == [0, 3, 4]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"observations": np.zeros((5, 4))}, r"observations has shape \(5, 4\)"),
        ({"actions": np.zeros((4, 2), dtype=int)}, r"actions has shape \(4, 2\)"),
        ({"rewards": np.zeros((5, 3))}, r"rewards has shape \(5, 3\)"),
        ({"terminals": np.zeros((5, 3))}, r"terminals has shape \(5, 3\)"),
        ({"n_actions": None}, "Discrete actions need their number"),
        ({"n_actions": 2}, r"\('agents', 'action'\) lies outside 0..1"),
        ({"n_actions": 4, "action_mask": np.ones((5, 2, 3))}, "n_actions=4, but action_mask has 3 columns"),
        ({"action_mask": np.zeros((5, 2, 3))}, "allows no action at all"),
        ({"actions": np.full((5, 2, 1), 1.5), "n_actions": None}, r"lies outside its bounds \[-1, 1\]"),
        ({"rewards": np.array([0, 0, np.nan, 0, 0])}, r"\('next', 'agents', 'reward'\) is NaN .*first at row 2"),
    ],
)
def test_defects_are_named(changes, sentence):
    with pytest.raises(DatasetError, match=sentence):
        from_arrays(**toy(**changes))


# Values and tensors of other kinds


def walk(kind, name, rows=40):
    """One array of the kind, each of whose values float64 or int64 tells apart and float32 does not."""
    width = {"observations": (2, 3), "state": (4,), "rewards": ()}[name.removeprefix("next_")]
    numbers = np.arange(rows * int(np.prod(width, dtype=int))).reshape(rows, *width)
    alternating = (np.arange(rows) % 2).reshape(rows, *[1] * len(width))
    kinds = {"seconds": 1.7e9 + 0.01 * numbers, "bits": 2**60 + 1 + numbers, "odd": 2**24 + 1 + 2 * numbers}
    return kinds[kind] if kind != "pairs" else 2.0**24 + alternating + 0 * numbers


@pytest.mark.parametrize("kind", ["seconds", "bits", "odd", "pairs"])
@pytest.mark.parametrize("name", ["observations", "state", "rewards", "next_observations", "next_state"])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_values_that_float32_cannot_tell_apart_are_told_of(kind, name, make):
    arrays = {"observations": np.zeros((40, 2, 3)), "actions": np.zeros((40, 2, 1)), "rewards": np.zeros(40)}
    arrays |= {"terminals": np.arange(40) % 10 == 9}
    arrays |= {"state": np.zeros((40, 4)), "next_state": np.zeros((40, 4))} if name.endswith("state") else {}
    with pytest.warns(DatasetWarning, match=f"from_arrays: {name} .*; subtract an offset from it"):
        dataset = from_arrays(**arrays | {name: make(walk(kind, name))})
    assert inspect(dataset)["rounded_values"].severity == "warning"


@pytest.mark.filterwarnings("error")
def test_what_float32_holds_and_noise_are_not_told_of():
    rng = np.random.default_rng(0)
    decay = 1 + np.exp(-np.arange(240.0))
    values = [
        rng.normal(size=240),
        1 + 1e-16 * rng.normal(size=240),
        np.full(240, 1.7e9),
        decay,
        np.arange(240) * 2**25,
    ]
    for part in (*values, np.full(240, 0.1, np.float32)):
        flags = np.arange(40) % 10 == 9
        arrays = {"actions": np.zeros((40, 2, 1)), "rewards": np.zeros(40), "terminals": flags}
        assert "rounded" not in from_arrays(observations=part.reshape(40, 2, 3), **arrays).metadata


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: values.to_sparse(), "sparse tensor; give its .to_dense"),
        (lambda values: values.to("meta"), "meta device"),
        (lambda values: values + 0j, "complex numbers"),
    ],
)
@pytest.mark.parametrize(
    "name", ["observations", "actions", "rewards", "terminals", "state", "next_observations", "agent_mask", "success"]
)
def test_a_tensor_of_another_kind_is_refused_by_name(name, change, told):
    shapes = {"observations": (4, 2, 3), "next_observations": (4, 2, 3), "actions": (4, 2, 1), "state": (4, 2)}
    shapes |= {"agent_mask": (4, 2)}
    names = {"observations", "actions", "rewards", "terminals", name}
    arrays = {each: torch.ones(shapes.get(each, (4,)), dtype=torch.float64) for each in names}
    with pytest.raises(DatasetError, match=f"{name} .*{told}"):
        from_arrays(**arrays | {name: change(arrays[name])})


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
def test_arrays_without_rows_agents_or_numbers_are_refused(shape):
    arrays = {"actions": np.zeros((*shape[:2], 1)), "rewards": np.zeros(shape[0]), "terminals": np.zeros(shape[0])}
    with pytest.raises(DatasetError, match="give at least one of each"):
        from_arrays(observations=np.zeros(shape), **arrays)


@pytest.mark.parametrize("metadata", [5, {"findings": 5}, {"time_limit": "x"}, {"repairs": [1]}, {"rounded": "x"}])
def test_metadata_of_another_type_is_refused(metadata):
    arrays = {"actions": np.zeros((4, 2, 1)), "rewards": np.zeros(4), "terminals": np.ones(4)}
    with pytest.raises(DatasetError, match="metadata"):
        from_arrays(observations=np.zeros((4, 2, 3)), metadata=metadata, **arrays)


def test_pictures_are_told_to_be_flattened():
    with pytest.raises(DatasetError, match=r"observations has shape \(4, 2, 8, 8, 3\).*reshape\(4, 2, -1\)"):
        from_arrays(
            observations=np.zeros((4, 2, 8, 8, 3), "float32"),
            actions=np.zeros((4, 2), int),
            rewards=np.zeros(4, "float32"),
            terminals=np.arange(4) == 3,
            n_actions=3,
        )


# Lists of episodes whose agents differ in number, and lists that may mean two things


def of_unequal_teams(final=0, by_agent=False, **more):
    teams = ((3, 2), (2, 3), (4, 1))  # lengths and agents
    ends = {"terminals": [True, False, True]}
    if by_agent:
        ends = {"terminals": [np.repeat(np.arange(t)[:, None] == t - 1, n, 1) for t, n in teams]}
    given = {
        "observations": [np.full((t + final, n, 2), 1.0 + e) for e, (t, n) in enumerate(teams)],
        "actions": [np.full((t, n, 1), 2.0 + e / 10) for e, (t, n) in enumerate(teams)],
        "rewards": [np.ones((t, n)) for t, n in teams],
        "action_bounds": (2.0, 3.0),
    }
    return from_arrays(**given | ends | more)


@pytest.mark.parametrize("final", [0, 1])
@pytest.mark.parametrize("by_agent", [False, True])
def test_episodes_with_fewer_agents_are_filled_up_and_masked(final, by_agent):
    dataset = of_unequal_teams(final, by_agent)
    assert dataset.spec.n_agents == 3 and dataset.episode_lengths.tolist() == [3, 2, 4]
    there = [[1, 1, 0]] * 3 + [[1, 1, 1]] * 2 + [[1, 0, 0]] * 4
    assert dataset.data["agents", "mask"].int().tolist() == there
    assert dataset.data["agents", "observation"][..., 0].tolist() == [
        [seen * (1.0 + episode) for seen in row]
        for row, episode in zip(there, dataset.data["collector", "traj_ids"].tolist())
    ]
    flags = dataset.data["next", "terminated"][:, 0].int().tolist()
    assert flags == [0, 0, 1, 0, int(by_agent), 0, 0, 0, 1]
    assert (
        "episodes have 1 to 3 agents: they were filled up to 3, and the added ones do not count"
        in (dataset.metadata["findings"])
    )
    assert dataset.data["collector", "mask"].all() == (final == 1 or by_agent)


def test_a_mask_of_agents_and_actions_by_index_are_filled_up_too():
    dataset = of_unequal_teams(
        actions=[np.full((t, n), 1) for t, n in ((3, 2), (2, 3), (4, 1))],
        action_mask=[np.ones((t, n, 2), bool) for t, n in ((3, 2), (2, 3), (4, 1))],
        agent_mask=[np.ones((3, 2)), np.array([[1, 1, 1], [1, 0, 1]]), np.ones((4, 1))],
        rewards=[np.ones(t) for t in (3, 2, 4)],
        action_bounds=(-1.0, 1.0),
    )
    assert dataset.data["agents", "mask"].int().tolist()[3:6] == [[1, 1, 1], [1, 0, 1], [1, 0, 0]]
    assert dataset.spec.has_action_mask and dataset.episode_returns().tolist() == [3.0, 2.0, 4.0]


def test_an_episode_whose_arrays_disagree_about_its_agents_is_still_bad():
    rewards = [np.ones((3, 2)), np.ones((2, 2)), np.ones((4, 1))]
    with pytest.raises(DatasetError, match=r"episode 1: its .* have rows of shape"):
        of_unequal_teams(rewards=rewards)
    assert of_unequal_teams(rewards=rewards, repair=True).n_episodes == 2


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("flags", ["for each step", "for each episode"])
def test_episodes_of_one_agent_of_equal_length_are_not_taken_for_steps(repair, flags):
    given = {
        "observations": [np.zeros((4, 3))] * 2,
        "actions": [np.zeros((4, 1))] * 2,
        "rewards": [np.ones(4)] * 2,
        "terminals": [np.arange(4) == 3] * 2 if flags == "for each step" else [True, True],
        "repair": repair,
    }
    with pytest.raises(DatasetError, match=r"may be steps of 4 agents or episodes of 4 steps; give numpy.stack"):
        from_arrays(**given)
    given |= {"repair": False, "terminals": [np.arange(4) == 3] * 2}
    steps = from_arrays(**given | {name: np.stack(given[name]) for name in ("observations", "actions", "rewards")})
    assert steps.spec.n_agents == 4
    given["terminals"] = [True, True]
    with_axis = {name: [part[:, None] for part in given[name]] for name in ("observations", "actions", "rewards")}
    assert from_arrays(**given | with_axis).episode_lengths.tolist() == [4, 4]


def test_steps_in_a_list_with_a_reward_of_the_team_are_read_as_before():
    dataset = from_arrays(
        observations=[np.zeros((2, 3))] * 4,
        actions=[np.zeros((2, 1))] * 4,
        rewards=[1.0] * 4,
        terminals=np.arange(4) == 3,
    )
    assert dataset.spec.n_agents == 2 and len(dataset) == 4
