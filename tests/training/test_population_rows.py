"""Members of a population that draw from rows of their own, and see leaves of their own."""

from __future__ import annotations

import pytest
import torch
from population_toys import SEEDS, make_data
from tensordict import TensorDict

from torchrl_marl_offline.training import PopulationBuffer

ROWS = [torch.tensor([3, 3, 8]), torch.arange(20, 60)]


@pytest.fixture(scope="module")
def data():
    numbered = make_data().data.clone()
    return numbered.set("number", torch.arange(len(numbered)))


def own(data, number: int) -> TensorDict:
    return TensorDict({("agents", "extra"): torch.arange(len(data)) + number}, [len(data)])


def make(data, **options) -> PopulationBuffer:
    return PopulationBuffer(data, batch_size=40, seeds=SEEDS[:2], **options)


def test_members_draw_their_rows_as_often_as_they_are_named(data):
    drawn = make(data, rows=ROWS).sample()["number"]
    assert set(drawn[0].tolist()) == {3, 8} and set(drawn[1].tolist()) <= set(range(20, 60))
    many = PopulationBuffer(data, batch_size=6000, seeds=SEEDS[:2], rows=ROWS).sample()["number"][0]
    assert (many == 3).float().mean().item() == pytest.approx(2 / 3, abs=0.03)


def test_members_draw_slices_of_their_episodes(data):
    """Each member's slices are those of a buffer over its episodes alone, as often as they are named."""
    toy = make_data()
    ids = toy.data["collector", "traj_ids"]
    episodes = [torch.tensor([1, 1, 4]), torch.tensor([0, 2, 3])]
    options = {"slice_len": 4, "burn_in": 1}
    drawn = make(data, episodes=episodes, **options).sample()
    assert drawn.shape == (2, 10, 4) and drawn["is_init"].shape == (2, 10, 4, 1)
    own_ids = ids[drawn["number"]]
    assert set(own_ids[0].flatten().tolist()) == {1, 4} and set(own_ids[1].flatten().tolist()) <= {0, 2, 3}
    alone = toy.select_episodes([0, 2, 3]).replay_buffer(batch_size=40, seed=SEEDS[1], **options).sample()
    assert torch.equal(drawn[1]["agents", "observation"], alone["agents", "observation"])
    many = PopulationBuffer(data, batch_size=4000, seeds=SEEDS[:2], episodes=episodes, **options).sample()
    assert (ids[many["number"]][0] == 1).float().mean().item() == pytest.approx(2 / 3, abs=0.06)


def test_state_refuses_other_episodes(data):
    options, episodes = {"slice_len": 4, "burn_in": 1}, [torch.tensor([1, 1, 4]), torch.tensor([0, 2, 3])]
    state = make(data, episodes=episodes, **options).state_dict()
    make(data, episodes=episodes, **options).load_state_dict(state)
    with pytest.raises(ValueError, match="other episodes than this buffer's episodes="):
        make(data, episodes=episodes[::-1], **options).load_state_dict(state)


def test_members_see_leaves_of_their_own(data):
    shared = own(data, 1000)
    batch = make(data, own=[shared, own(data, 5000)]).sample()
    difference = batch["agents", "extra"] - batch["number"]
    assert (difference[0] == 1000).all() and (difference[1] == 5000).all()
    alike = PopulationBuffer(data, batch_size=4, seeds=(1, 1), own=[shared, shared]).sample()
    assert torch.equal(alike[0]["agents", "extra"], alike[1]["agents", "extra"])


def test_state_brings_the_batches_back_and_other_rows_are_refused(data):
    leaves = [own(data, 1), own(data, 2)]
    buffer = make(data, rows=ROWS, own=leaves)
    buffer.sample()
    state = buffer.state_dict()
    expected = [buffer.sample() for _ in range(2)]
    again = make(data, rows=ROWS, own=leaves)
    again.load_state_dict(state)
    assert all((again.sample() == batch).all() for batch in expected)
    with pytest.raises(ValueError, match="other rows than this buffer's rows="):
        make(data, rows=[ROWS[0], ROWS[1] + 1], own=leaves).load_state_dict(state)
    with pytest.raises(ValueError, match="other rows"):
        make(data, own=leaves).load_state_dict(state)
    with pytest.raises(ValueError, match="other leaves of members than this buffer's own="):
        make(data, rows=ROWS, own=[leaves[0], own(data, 3)]).load_state_dict(state)


def test_a_members_buffer_goes_on_alone(data):
    population = make(data, rows=ROWS, own=[own(data, 1), own(data, 2)])
    population.sample()
    members = [population.member(index) for index in (0, 1)]
    drawn = population.sample()
    for index, buffer in enumerate(members):
        alone = buffer.sample()
        for key in ("number", ("agents", "extra"), "state"):
            assert torch.equal(alone.get(key), drawn[index].get(key))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ROWS[:1]}, "rows has 1 tensors for 2 seeds"),
        ({"rows": [ROWS[0], torch.tensor([84])]}, r"rows\[1\] must be numbers of rows, .* between 0 and 83"),
        ({"rows": [ROWS[0].float(), ROWS[1]]}, r"rows\[0\] must be numbers of rows"),
        ({"rows": ROWS, "slice_len": 4}, "leave out slice_len=, or rows="),
        ({"episodes": ROWS}, "episodes is read only with slice_len"),
        ({"episodes": ROWS[:1], "slice_len": 4}, "episodes has 1 tensors for 2 seeds"),
        ({"episodes": ROWS, "slice_len": 4}, r"episodes\[1\] must be numbers of episodes, .* between 0 and"),
        ({"own": [TensorDict({}, [84])]}, "own has 1 tensordicts for 2 seeds"),
        ({"own": [TensorDict({"a": torch.zeros(84)}, [84]), TensorDict({}, [84])]}, r"own\[1\] must be a tensordict"),
        ({"own": [TensorDict({"a": torch.zeros(3)}, [3])] * 2}, r"own\[0\] must be a tensordict \[84\]"),
    ],
)
def test_what_does_not_fit_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        make(data, **options)
