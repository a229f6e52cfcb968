"""Sequences from a ring of experience, against a list of what was written."""

from __future__ import annotations

import pytest
import torch
from selection import thorough
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_marl_offline.core.layout import IS_INIT, MASK, TRAJ_IDS, next_key
from torchrl_marl_offline.data.transitions.ring_sequences import RingSequenceSampler

Row = tuple[int, int]  # episode, step


class Written:
    """Environments that play episodes of drawn lengths, a few steps of each at a time, into a ring.

    Attributes:
        rows: what is in the ring, the oldest first.
        ends: last rows of episodes.
    """

    def __init__(self, capacity: int, slice_len: int, burn_in: int, *, envs: int, longest: int) -> None:
        self.sampler = RingSequenceSampler(capacity, slice_len, burn_in)
        self.buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(capacity), sampler=self.sampler)
        self.buffer.set_rng(torch.Generator().manual_seed(0))
        self.capacity, self.envs, self.longest = capacity, envs, longest
        self.g = torch.Generator().manual_seed(1)
        self.at = [(env, 0, self._length()) for env in range(envs)]
        self.count, self.rows, self.ends = 0, list[Row](), set[Row]()

    def _length(self) -> int:
        return int(torch.randint(1, self.longest + 1, (), generator=self.g))

    def play(self, steps: int) -> None:
        found = []
        for env in range(self.envs):
            for _ in range(steps):
                episode, step, length = self.at[env]
                found.append((episode, step))
                if step + 1 == length:
                    self.ends.add((episode, step))
                    self.at[env] = (episode + self.envs, 0, self._length())
                else:
                    self.at[env] = (episode, step + 1, length)
        cut = torch.tensor([[row in self.ends or k % steps == steps - 1] for k, row in enumerate(found)])
        episode, step = torch.tensor(found).unbind(-1)
        data = TensorDict({"step": step, TRAJ_IDS: episode, next_key("done"): cut, MASK: torch.ones_like(cut[:, 0])})
        index = self.buffer.extend(data.auto_batch_size_(1))
        self.count += len(found)
        self.rows = (self.rows + found)[-self.capacity :]
        self.sampler.write(index, episode, step == 0)
        self.sampler.look(self.count)


def starts(rows: list[Row], slice_len: int, burn_in: int) -> set[Row]:
    """Return where a part that counts may begin: behind the burn-in's rows, and as long as it can be."""
    found, size = set[Row](), slice_len - burn_in
    for episode in {episode for episode, _ in rows}:
        steps = [step for each, step in rows if each == episode]
        assert steps == list(range(steps[0], steps[-1] + 1))
        allowed = [step for step in steps if steps[0] == 0 or step >= steps[0] + burn_in]
        found |= {(episode, step) for step in allowed if step == allowed[0] or step + size - 1 <= steps[-1]}
    return found


CASES = [(60, 5, 2, 3, 9, 4), (60, 4, 0, 3, 9, 4), thorough((40, 8, 3, 2, 30, 7)), thorough((48, 6, 2, 4, 3, 5))]


@pytest.mark.parametrize(("capacity", "slice_len", "burn_in", "envs", "longest", "steps"), CASES)
@pytest.mark.parametrize("rounds", [1, 2, 5, thorough(11)])
def test_every_slice_is_a_piece_of_one_episode(capacity, slice_len, burn_in, envs, longest, steps, rounds) -> None:
    written = Written(capacity, slice_len, burn_in, envs=envs, longest=longest)
    for _ in range(rounds):
        written.play(steps)
    there, seen = set(written.rows), dict[Row, int]()
    batch = written.buffer.sample(4000 * slice_len)
    assert batch.shape == (4000, slice_len)
    columns = [batch[key].reshape(4000, slice_len).tolist() for key in (TRAJ_IDS, "step", MASK, IS_INIT)]
    ends = batch[next_key("done")][..., 0].tolist()
    for episodes, times, counts, begins, done in zip(*columns, ends):
        counted = [k for k in range(slice_len) if counts[k]]
        assert counted == list(range(burn_in, burn_in + len(counted))) and counted
        first, episode = times[burn_in], episodes[burn_in]
        assert all((episode, step) in there for step in times) and set(episodes) == {episode}
        for k in range(burn_in + len(counted)):
            assert times[k] == max(first + k - burn_in, 0)  # copies of the first row before an episode
            assert begins[k] == (first + k - burn_in == 0)
            assert done[k] == (k == counted[-1])
        last = (episode, times[counted[-1]])
        assert len(counted) == slice_len - burn_in or last in written.ends or (episode, last[1] + 1) not in there
        seen[episode, first] = seen.get((episode, first), 0) + 1
    expected = starts(written.rows, slice_len, burn_in)
    assert seen.keys() == expected
    mean = 4000 / len(expected)
    assert max(abs(count - mean) for count in seen.values()) < 5 * mean**0.5  # all are equally likely


def test_a_ring_of_nothing_but_ends_without_a_past_is_refused() -> None:
    written = Written(8, 4, 2, envs=4, longest=1000)
    written.play(2)
    with pytest.raises(ValueError, match="No episode in the ring has a row behind burn_in=2 rows; raise capacity, 8"):
        written.play(2)
