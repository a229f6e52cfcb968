from __future__ import annotations

import pytest
import torch
from data_toys import episodes
from host_waits import HostWaits
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer

from torchrl_marl_offline.core.layout import TRAJ_IDS
from torchrl_marl_offline.data import OfflineDataset, from_arrays

LENGTHS = [3, 1, 8, 5, 2]

KINDS = {
    "uniform": {},
    "slices": {"slice_len": 4},
    "whole slices": {"slice_len": 4, "short_episodes": "drop"},
    "prefetched": {"prefetch": 1},
}


def equal(left, right) -> bool:
    return bool((left == right).all())


def observations(sample):
    """Return [rows, 2] of (episode, time)."""
    return sample["agents", "observation"][:, 0].long()


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_restored_buffer_goes_on_bit_for_bit(options, tmp_path):
    dataset = episodes(LENGTHS)
    buffer = dataset.replay_buffer(batch_size=16, seed=0, **options)
    assert isinstance(buffer, TensorDictReplayBuffer)
    for _ in range(3):
        buffer.sample()
    torch.save(buffer.state_dict(), tmp_path / "state.pt")
    expected = [buffer.sample() for _ in range(4)]
    other = dataset.replay_buffer(batch_size=16, seed=77, **options)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=False))
    torch.manual_seed(123)  # the global generator plays no part
    assert all(equal(batch, other.sample()) for batch in expected)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_seeds(options):
    dataset = episodes(LENGTHS)
    first, same, other = (dataset.replay_buffer(batch_size=64, seed=seed, **options).sample() for seed in (0, 0, 1))
    assert equal(first, same)
    assert not torch.equal(observations(first), observations(other))


def test_without_a_seed_buffers_differ():
    dataset = episodes(LENGTHS)
    first, other = (observations(dataset.replay_buffer(batch_size=64).sample()) for _ in range(2))
    assert not torch.equal(first, other)


def test_uniform_samples_cover_rows_equally():
    buffer = episodes(LENGTHS).replay_buffer(batch_size=19_000, seed=0)
    sample = buffer.sample()
    counts = torch.bincount(sample["index"].flatten(), minlength=19)
    # 1,000 expected per row with deviation 31: five deviations
    assert (counts - 1_000).abs().max() < 155
    episode, time = observations(sample).unbind(-1)
    assert torch.equal(sample["collector", "traj_ids"], episode)
    assert torch.equal(sample["next", "agents", "observation"][:, 0, 1].long(), time + 1)


def test_slices_stay_in_one_episode_and_pads_are_masked():
    buffer = episodes(LENGTHS).replay_buffer(batch_size=4 * 500, slice_len=4, seed=0)
    sample = buffer.sample()
    assert sample.shape == (2_000,)
    slices = observations(sample).reshape(-1, 4, 2)
    mask = sample["collector", "mask"].reshape(-1, 4)
    episode, time = slices.unbind(-1)
    assert (episode == episode[:, :1]).all()
    assert torch.equal(mask.sum(1), torch.tensor(LENGTHS)[episode[:, 0]].clamp_max(4))
    steps = time - time[:, :1]
    assert (steps == torch.arange(4))[mask].all()
    # a pad repeats the episode's last row
    assert (time == torch.tensor(LENGTHS)[episode] - 1)[~mask].all()
    # episodes are equally likely, whatever their length: 100 expected, deviation 9
    assert (torch.bincount(episode[:, 0], minlength=5) - 100).abs().max() < 45
    last = mask.sum(1) - 1
    truncated = sample["next", "truncated"].reshape(-1, 4)
    assert truncated.gather(1, last.unsqueeze(1)).all() and truncated.sum() == len(slices)
    ends = time + 1 == torch.tensor(LENGTHS)[episode]
    assert torch.equal(sample["next", "terminated"].reshape(-1, 4)[mask], ends[mask])


def test_starts_of_slices_are_uniform():
    buffer = episodes([8]).replay_buffer(batch_size=4 * 1_000, slice_len=4, seed=0)
    starts = observations(buffer.sample()).reshape(-1, 4, 2)[:, 0, 1]
    # 5 starts, 200 expected each, deviation 13; a single episode must not wrap around its end
    assert (torch.bincount(starts, minlength=8) - torch.tensor([200] * 5 + [0] * 3)).abs().max() < 65


def test_dropped_short_episodes():
    buffer = episodes(LENGTHS).replay_buffer(batch_size=400, slice_len=4, short_episodes="drop", seed=0)
    sample = buffer.sample()
    assert set(sample["collector", "traj_ids"].tolist()) == {2, 3}
    assert sample["collector", "mask"].all()


def test_rows_masked_by_the_dataset_stay_masked_in_slices():
    dataset = from_arrays(
        observations=torch.zeros(6, 1, 1),
        actions=torch.zeros(6, 1, 1),
        rewards=torch.zeros(6),
        terminals=torch.zeros(6),
        truncations=torch.tensor([0, 0, 1, 0, 0, 1]),
    )
    for slice_len in (3, 5):
        sample = dataset.replay_buffer(batch_size=slice_len, slice_len=slice_len, seed=0).sample()
        assert sample["collector", "mask"].tolist() == [True, True, *[False] * (slice_len - 2)]


def test_keys_are_what_travels():
    dataset = episodes(LENGTHS)
    keys = [("agents", "observation"), ("next", "terminated")]
    sample = dataset.replay_buffer(batch_size=4, keys=keys).sample()
    # the episodes' last rows have no next action, and a loss has to see that; their mask is all true
    masks = {("collector", "has_next_action")}
    assert set(sample.keys(include_nested=True, leaves_only=True)) == {*keys, *masks, "index"}
    sliced = dataset.replay_buffer(batch_size=4, slice_len=2, keys=keys, seed=0).sample()
    assert {*keys, ("collector", "mask")} <= set(sliced.keys(include_nested=True, leaves_only=True))
    with pytest.raises(KeyError):
        dataset.replay_buffer(batch_size=4, keys=["nonsense"])


def test_the_state_holds_no_data_and_belongs_to_its_dataset():
    buffer = episodes(LENGTHS).replay_buffer(batch_size=4)
    assert buffer.state_dict()["_storage"]["rows"] == 19
    assert not any(isinstance(value, torch.Tensor) for value in buffer.state_dict()["_storage"].values())
    with pytest.raises(ValueError, match=r"of a dataset of 19 rows .* has 3 rows"):
        episodes([3]).replay_buffer(batch_size=4).load_state_dict(buffer.state_dict())


def test_dumps_and_loads(tmp_path):
    dataset = episodes(LENGTHS)
    buffer = dataset.replay_buffer(batch_size=16, seed=0)
    buffer.sample()
    buffer.dumps(tmp_path / "buffer")
    expected = buffer.sample()
    other = dataset.replay_buffer(batch_size=16, seed=5)
    other.loads(tmp_path / "buffer")
    assert equal(other.sample(), expected)
    assert sum(file.stat().st_size for file in (tmp_path / "buffer").rglob("*") if file.is_file()) < 20_000


def test_samples_of_a_memory_map_are_plain_tensors(tmp_path):
    dataset = episodes(LENGTHS)
    loaded = OfflineDataset.load(dataset.save(tmp_path / "toy"))
    ours, theirs = (part.replay_buffer(batch_size=16, seed=0).sample() for part in (loaded, dataset))
    assert equal(ours, theirs)
    assert all(type(leaf) is torch.Tensor for leaf in ours.values(True, True))
    ours["agents", "observation"].fill_(5.0)  # a sample is a copy
    assert equal(loaded.data, dataset.data)


@pytest.mark.parametrize("options", [KINDS[name] for name in ("uniform", "slices", "whole slices")])
def test_drawing_makes_no_host_wait(options):
    buffer = episodes(LENGTHS).replay_buffer(batch_size=16, seed=0, **options)
    with HostWaits() as waits:
        buffer.sample()
    assert "index_select" in waits.names and not waits.found


@pytest.mark.parametrize("slice_len", [1, 2, 3, 5, 8, 16])
def test_no_slice_crosses_an_episode(slice_len):
    generator = torch.Generator().manual_seed(slice_len)
    lengths = torch.randint(1, 12, (40,), generator=generator).tolist()
    sample = episodes(lengths).replay_buffer(batch_size=slice_len * 400, slice_len=slice_len, seed=0).sample()
    episode, time = observations(sample).reshape(-1, slice_len, 2).unbind(-1)
    assert (episode == episode[:, :1]).all() and len(episode.unique()) == 40
    length = torch.tensor(lengths)[episode[:, :1]]
    assert torch.equal(time, (time[:, :1] + torch.arange(slice_len)).clamp_max(length - 1))
    assert (time[:, 0] <= (length[:, 0] - slice_len).clamp_min(0)).all()


def test_slices_are_those_of_torchrls_sampler():
    sampler = SliceSampler(slice_len=4, traj_key=TRAJ_IDS, cache_values=True, strict_length=False, pad_output=True)
    theirs = TensorDictReplayBuffer(
        storage=LazyTensorStorage(19), sampler=sampler, batch_size=2_000, generator=torch.Generator().manual_seed(0)
    )
    theirs.extend(episodes(LENGTHS).data)
    ours = episodes(LENGTHS).replay_buffer(batch_size=2_000, slice_len=4, seed=0)

    def slices(buffer) -> dict[tuple, set]:
        """Return, by episode and first step, what the rest of the slice was."""
        sample = buffer.sample()
        keys = ("truncated", "done", "terminated")
        leaves = [observations(sample), *(sample["next", key] for key in keys), sample["collector", "mask"]]
        rows = torch.cat([leaf.reshape(2_000, -1).long() for leaf in leaves], -1).reshape(500, 4, -1)
        return {tuple(rows[i, 0, :2].tolist()): rows[i].tolist() for i in range(500)}

    assert slices(ours) == slices(theirs) and len(slices(ours)) == 1 + 1 + 5 + 2 + 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"slice_len": 3}, "must divide batch_size=16"),
        ({"slice_len": 0}, "slice_len must be at least 1"),
        ({"slice_len": 16, "short_episodes": "drop"}, "the longest has 8"),
        ({"slice_len": 4, "short_episodes": "stretch"}, "'pad' or 'drop'"),
        ({"prefetch": 3}, "prefetch must lie between 0 and 1"),
    ],
)
def test_impossible_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        episodes(LENGTHS).replay_buffer(batch_size=16, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"slice_len": 4}], ids=["uniform", "slices"])
def test_on_the_device(options):
    dataset = episodes(LENGTHS)
    buffer = dataset.replay_buffer(batch_size=16, device="cuda", seed=0, **options)
    assert buffer.sample().device.type == "cuda"
    state = buffer.state_dict()
    expected = buffer.sample()
    other = dataset.replay_buffer(batch_size=16, device="cuda", seed=9, **options)
    other.load_state_dict(state)
    assert equal(other.sample(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"slice_len": 4}], ids=["uniform", "slices"])
def test_drawing_on_the_device_makes_no_host_wait(options):
    buffer = episodes(LENGTHS).replay_buffer(batch_size=16, device="cuda", seed=0, **options)
    buffer.sample()
    torch.cuda.set_sync_debug_mode("error")
    try:
        buffer.sample()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_key_that_is_not_there_is_named_beside_those_that_are():
    with pytest.raises(KeyError, match=r"The data has no 'foo', which keys names; it has .*traj_ids"):
        episodes([3]).replay_buffer(batch_size=2, keys=["foo"])
    with pytest.raises(ValueError, match="device 'cuda:99' is not there"):
        episodes([3]).replay_buffer(batch_size=2, device="cuda:99")


# ------------------------------------------------------------------ sequences for networks with memory


@pytest.fixture
def lengths_and_sequences():
    """Episodes of 3, 9 and 5 rows, whose rows are told apart by their rewards."""
    lengths = [3, 9, 5]
    rows = sum(lengths)
    ends = torch.zeros(rows, dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    dataset = from_arrays(
        observations=torch.arange(rows * 2.0).reshape(rows, 2, 1),
        actions=torch.zeros(rows, 2, 1),
        rewards=torch.arange(float(rows)).unsqueeze(-1).expand(rows, 2),
        terminals=ends,
    )
    return lengths, dataset


@pytest.mark.parametrize("burn_in", [0, 2])
def test_sequences_stay_in_their_episodes(lengths_and_sequences, burn_in: int) -> None:
    lengths, dataset = lengths_and_sequences
    buffer = dataset.replay_buffer(batch_size=6 * 400, slice_len=6, burn_in=burn_in, seed=0)
    batch = buffer.sample()
    assert batch.batch_size == (400, 6)
    row = batch["next", "agents", "reward"][..., 0, 0].long()
    starts = torch.tensor([0, 3, 12])
    episode = (row.unsqueeze(-1) >= starts).sum(-1) - 1
    assert (episode == episode[:, :1]).all()
    time, length = row - starts[episode], torch.tensor(lengths)[episode]
    counts, begins = batch["collector", "mask"], batch["is_init"].squeeze(-1)
    assert not counts[:, :burn_in].any()
    # consecutive where they are of the episode, behind copies of its first row and before copies of its last
    step = time[:, 1:] - time[:, :-1]
    padded = ((time[:, 1:] == 0) & (step == 0)) | (time[:, :-1] == length[:, :-1] - 1)
    assert ((step == 1) | padded).all()
    assert torch.equal(begins.sum(-1), (time == 0).any(-1).long())
    assert (time[begins] == 0).all()
    assert set(row[counts].tolist()) == set(range(sum(lengths)))
    done = batch["next", "done"].squeeze(-1)
    assert (done & counts).sum(-1).eq(1).all()
    assert not (counts[:, 1:] & done[:, :-1] & counts[:, :-1]).any()


def test_memory_begins_behind_copies_of_a_first_row(lengths_and_sequences) -> None:
    _, dataset = lengths_and_sequences
    buffer = dataset.replay_buffer(batch_size=6 * 200, slice_len=6, burn_in=2, seed=0)
    batch = buffer.sample()
    at_start = (batch["next", "agents", "reward"][:, 2, 0, 0] == 3.0).nonzero()[:, 0]  # the second episode's first row
    assert len(at_start)
    chosen = batch[at_start[0]]
    assert chosen["next", "agents", "reward"][:3, 0, 0].tolist() == [3.0, 3.0, 3.0]
    assert chosen["is_init"].squeeze(-1).tolist()[2:] == [True, False, False, False]
    assert chosen["collector", "mask"].tolist() == [False, False, True, True, True, True]


def test_sequences_come_again_from_the_buffers_state(lengths_and_sequences) -> None:
    _, dataset = lengths_and_sequences
    buffers = [dataset.replay_buffer(batch_size=12, slice_len=6, burn_in=2, seed=seed) for seed in (0, 1)]
    buffers[0].sample()
    buffers[1].load_state_dict(buffers[0].state_dict())
    assert torch.equal(*(buffer.sample()["next", "agents", "reward"] for buffer in buffers))


def test_a_burn_in_of_all_rows_or_of_no_slices_is_refused(lengths_and_sequences) -> None:
    _, dataset = lengths_and_sequences
    with pytest.raises(ValueError, match="burn_in=6 leaves no row of slice_len=6 that counts"):
        dataset.replay_buffer(batch_size=12, slice_len=6, burn_in=6)
    with pytest.raises(ValueError, match="burn_in is read only with slice_len"):
        dataset.replay_buffer(batch_size=12, burn_in=2)
