from __future__ import annotations

import pytest
import torch
from data_toys import episodes

from torchrl_marl_offline.data import DatasetError, OfflineDataset, validate
from torchrl_marl_offline.data.transitions.fingerprints import content_checksum, fingerprint
from torchrl_marl_offline.data.transitions.subsets import hold_out, mixture, select_by_return, subsample

LENGTHS = [4, 2, 9, 7, 1, 3, 8, 6, 10, 5]  # the return of an episode is its length


def serials(dataset: OfflineDataset) -> list[int]:
    """Return the original numbers of a dataset's episodes."""
    return dataset.data["agents", "observation"][dataset.episode_starts, 0, 0].int().tolist()


def parent(dataset: OfflineDataset) -> dict:
    return {"source": "from_arrays", "fingerprint": fingerprint(dataset)}


def test_by_return():
    dataset = episodes(LENGTHS)
    best = select_by_return(dataset, low=0.8)
    assert serials(best) == [2, 8] and best.episode_lengths.tolist() == [9, 10]
    assert serials(select_by_return(dataset, high=0.3)) == [1, 4, 5]
    assert serials(select_by_return(dataset, low=0.3, high=0.5)) == [0, 9]
    assert serials(select_by_return(dataset)) == list(range(10))
    validate(best)
    step = {"step": "select_by_return", "low": 0.8, "high": 1.0, "reduce": "mean", "episodes": 2, "of": 10}
    assert best.metadata["provenance"] == [step | {"parent": parent(dataset)}] and best.metadata["n_episodes"] == 2


def test_quantiles_partition_the_episodes_with_ties():
    dataset = episodes([3, 3, 3, 3, 3])
    parts = [select_by_return(dataset, low=a, high=b) for a, b in ((0.0, 0.4), (0.4, 1.0))]
    assert [serials(part) for part in parts] == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (0.5, 0.5, "needs low below high"),
        (-0.1, 0.5, "low must lie between 0 and 1, got -0.1"),
        (0.5, 1.1, "high must lie between 0 and 1, got 1.1"),
        (0.9, 0.2, "needs low below high"),
    ],
)
def test_quantiles_in_order(low, high, sentence):
    with pytest.raises(ValueError, match=sentence):
        select_by_return(episodes(LENGTHS), low=low, high=high)
    with pytest.raises(ValueError, match="No episode of 3"):
        select_by_return(episodes([1, 2, 3]), low=0.4, high=0.45)


def test_subsamples_are_nested_and_reproducible():
    dataset = episodes(LENGTHS)
    sets = [set(serials(subsample(dataset, fraction=fraction, seed=3))) for fraction in (0.1, 0.3, 0.5, 1.0)]
    assert [len(part) for part in sets] == [1, 3, 5, 10]
    assert sets[0] < sets[1] < sets[2] < sets[3]
    assert len({tuple(serials(subsample(dataset, fraction=0.3, seed=seed))) for seed in range(6)}) > 1
    first, again = (subsample(dataset, fraction=0.3, seed=3) for _ in range(2))
    assert content_checksum(first) == content_checksum(again) and first.metadata == again.metadata
    assert serials(first) == sorted(serials(first))
    assert subsample(dataset, fraction=0.001, seed=0).n_episodes == 1
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match="fraction must be above 0 and at most 1"):
            subsample(dataset, fraction=fraction, seed=0)


@pytest.mark.parametrize("cut", [hold_out, OfflineDataset.split])
def test_held_out_episodes_have_provenance(cut):
    dataset = episodes(LENGTHS)
    train, held_out = cut(dataset, fraction=0.2, seed=5)
    assert sorted(serials(train) + serials(held_out)) == list(range(10))
    step = {"step": "split", "fraction": 0.2, "seed": 5, "of": 10, "parent": parent(dataset)}
    assert held_out.metadata["provenance"] == [step | {"part": "held_out", "episodes": 2}]
    assert train.metadata["provenance"] == [step | {"part": "train", "episodes": 8}]
    assert "provenance" not in dataset.metadata


def test_a_selection_has_provenance():
    dataset = episodes(LENGTHS)
    chosen = dataset.select_episodes([3, 1]).select_episodes([1])
    steps = chosen.metadata["provenance"]
    assert [(step["step"], step["episodes"], step["of"]) for step in steps] == [
        ("select_episodes", 2, 10),
        ("select_episodes", 1, 2),
    ]
    assert steps[0]["parent"] == parent(dataset) != steps[1]["parent"] == parent(dataset.select_episodes([3, 1]))


def test_fingerprints_tell_recordings_apart():
    same, other = episodes(LENGTHS), episodes(LENGTHS[::-1])
    assert fingerprint(episodes(LENGTHS)) == fingerprint(same) != fingerprint(other)
    same.data["next", "agents", "reward"][3, 0] = 2.0
    assert fingerprint(episodes(LENGTHS)) != fingerprint(same)
    assert fingerprint(episodes(LENGTHS)) != fingerprint(episodes(LENGTHS, n=3))


def test_the_chain_of_steps_survives_the_disk(tmp_path):
    part = subsample(select_by_return(episodes(LENGTHS), low=0.5), fraction=0.4, seed=1)
    part.save(tmp_path / "part")
    steps = OfflineDataset.load(tmp_path / "part").metadata["provenance"]
    assert [(step["step"], step["episodes"], step["of"]) for step in steps] == [
        ("select_by_return", 5, 10),
        ("subsample", 2, 5),
    ]


def test_mixtures():
    expert, medium = episodes([2] * 10), episodes([3] * 8)
    both = mixture([expert, medium], [0.5, 0.5], seed=0)
    assert both.n_episodes == 16 and both.episode_lengths.tolist() == [2] * 8 + [3] * 8
    assert len(set(serials(both)[:8])) == 8  # none twice
    third = mixture([expert, medium], [2, 1], seed=0, episodes=9)
    assert third.episode_lengths.tolist() == [2] * 6 + [3] * 3
    validate(third)
    step = {"step": "mixture", "weights": [2, 1], "seed": 0, "episodes": [6, 3]}
    assert third.metadata["provenance"] == [step | {"parents": [parent(expert), parent(medium)]}]
    assert len(third.metadata["parts"]) == 2
    again = mixture([expert, medium], [2, 1], seed=0, episodes=9)
    assert content_checksum(third) == content_checksum(again)
    others = {tuple(serials(mixture([expert, medium], [2, 1], seed=seed, episodes=9))) for seed in range(5)}
    assert len(others) > 1
    assert mixture([expert, medium], [1, 1], seed=0, episodes=5).n_episodes == 5  # 2.5 each


def test_a_mixture_draws_from_each_set_by_itself():
    same = episodes([1] * 20)
    drawn = serials(mixture([same, same], [1, 1], seed=0, episodes=10))
    assert drawn[:5] != drawn[5:]


def test_a_mixture_keeps_what_its_parts_agree_on():
    parts = [OfflineDataset(episodes([n] * 2).data, episodes([n]).spec, {"time_limit": 5, "task": n}) for n in (2, 3)]
    metadata = mixture(parts, [1, 1], seed=0).metadata
    assert metadata["time_limit"] == 5 and "task" not in metadata


def test_impossible_mixtures():
    expert, medium = episodes([2] * 10), episodes([3] * 8)
    for weights, sentence in (([1], "one weight for each"), ([1, 0], "above 0, got 0"), ([1, -1], "above 0, got -1")):
        with pytest.raises(ValueError, match=sentence):
            mixture([expert, medium], weights, seed=0)
    with pytest.raises(ValueError, match="Dataset 1 should give 9 of its 8 episodes; at most 16"):
        mixture([expert, medium], [1, 1], seed=0, episodes=18)
    with pytest.raises(ValueError, match="each dataset has to give one"):
        mixture([expert, medium], [100, 1], seed=0, episodes=10)
    with pytest.raises(DatasetError, match="must agree"):
        mixture([expert, episodes([2] * 8, n=3)], [1, 1], seed=0)


def test_parts_are_copies():
    dataset = episodes(LENGTHS)
    part = subsample(dataset, fraction=1.0, seed=0)
    part.data["agents", "action"].zero_()
    assert dataset.data["agents", "action"].any()
    assert torch.equal(part.episode_lengths, dataset.episode_lengths)
