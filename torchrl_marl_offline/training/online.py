"""Online learning with the offline loop: a replay buffer that gathers experience as it is sampled."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_marl_offline.data.dataset import OfflineDataset, concatenate
from torchrl_marl_offline.data.layout import TRAJ_IDS

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDictBase

Source = Callable[[int], OfflineDataset]


class OnlineReplay:
    """What a :class:`~torchrl_marl_offline.Trainer` samples when it learns online.

    Every ``updates_per_round`` calls of :meth:`sample` are preceded by a round of experience: ``source(round)`` returns
    whole episodes, which enter a ring of ``capacity`` transitions. A checkpoint holds the counters and names the files
    of the experience so far: the journal, one dataset folder for all rounds between two checkpoints, written before
    the checkpoint is. So resuming loses nothing, and what was gathered after the checkpoint is gathered again. If the
    source's episodes depend on the round, the networks and torch's generators alone, a resumed run equals one that was
    never stopped, bit for bit.

    Args:
        source: called with the number of a round, from 0; returns its episodes.
        capacity: transitions that are kept for sampling.
        batch_size: rows of a sample, drawn uniformly with replacement.
        updates_per_round: samples between two rounds.
        journal: folder of the experience's files.
        prepare: applied to the rows of a round before they enter the ring, for instance to add the team's reward.
        keys: leaves of the prepared rows that samples hold; by default all.
        keep_all: keep the whole journal; otherwise files go once ``2 * capacity`` newer transitions are there, so that
            a checkpoint can be resumed until ``capacity`` transitions after it.
        device: where the ring lies.
        seed: of the sampling.

    Attributes:
        rounds: rounds gathered so far.
        transitions: transitions gathered so far, those included that have left the ring.
        episodes: episodes gathered so far; ``("collector", "traj_ids")`` counts through all rounds.

    Raises:
        ValueError: a round is larger than ``capacity``.
    """

    def __init__(
        self,
        source: Source,
        *,
        capacity: int,
        batch_size: int,
        updates_per_round: int,
        journal: str | Path,
        prepare: Callable[[TensorDictBase], TensorDictBase] | None = None,
        keys: Sequence[NestedKey] | None = None,
        keep_all: bool = True,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.source, self.capacity, self.updates_per_round = source, capacity, updates_per_round
        self.journal, self.keep_all = Path(journal), keep_all
        self.prepare, self.keys = prepare, keys
        self.device = torch.device(device)
        self._buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(capacity, device=self.device),
            batch_size=batch_size,
            generator=torch.Generator(device=self.device).manual_seed(seed),
        )
        self.rounds, self.transitions, self.episodes, self._samples_left = 0, 0, 0, 0
        self._files: list[dict[str, Any]] = []  # name, first row, number of rows, first episode
        self._unsaved: list[OfflineDataset] = []

    def __len__(self) -> int:
        return len(self._buffer)

    def sample(self) -> TensorDictBase:
        """Return a batch, after a round of experience where one is due."""
        if self._samples_left == 0:
            self._gather()
            self._samples_left = self.updates_per_round
        self._samples_left -= 1
        return self._buffer.sample()

    def experience(self, transitions: int | None = None) -> OfflineDataset:
        """Return all episodes so far, in the order of their rounds, or those within the first ``transitions`` rows.

        Raises:
            ValueError: the first of them have left the journal.
        """
        if self._files and self._files[0]["first"] > 0:
            raise ValueError(f"{self.journal} no longer holds the first rounds; pass keep_all=True.")
        everything = concatenate([*map(self._read, self._files), *self._unsaved])
        if transitions is None:
            return everything
        return everything.select_episodes(everything.episode_starts + everything.episode_lengths <= transitions)

    def state_dict(self) -> dict[str, Any]:
        """Write what was gathered since the last call into the journal; return the counters and the journal's index."""
        self._write_journal()
        return {
            "rounds": self.rounds,
            "transitions": self.transitions,
            "episodes": self.episodes,
            "samples_left": self._samples_left,
            "files": [dict(file) for file in self._files],
            "generator": self._buffer._rng.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned and fill the ring from the journal.

        Raises:
            DatasetError: a file of the journal is missing or damaged.
        """
        self.rounds, self.transitions, self.episodes = state["rounds"], state["transitions"], state["episodes"]
        self._samples_left = state["samples_left"]
        self._files, self._unsaved = [dict(file) for file in state["files"]], []
        self._buffer.empty()
        if self._files:
            # Where rows lie decides which of them an index draws, so each goes back to its place in the ring.
            self._buffer.writer._cursor = self._files[0]["first"] % self.capacity
        for file in self._files:
            self._extend(self._read(file).data, file["episode"])
        self._buffer._rng.set_state(state["generator"].cpu())

    def _gather(self) -> None:
        episodes = self.source(self.rounds)
        if len(episodes) > self.capacity:
            raise ValueError(
                f"A round has {len(episodes)} transitions, more than the capacity of {self.capacity}; raise capacity=."
            )
        self._extend(episodes.data, self.episodes)
        self._unsaved.append(episodes)
        self.episodes += episodes.n_episodes
        self.rounds += 1
        self.transitions += len(episodes)

    def _extend(self, rows: TensorDictBase, first_episode: int) -> None:
        collector = rows.get("collector").copy().set(TRAJ_IDS[1], rows.get(TRAJ_IDS) + first_episode)
        rows = rows.copy().set("collector", collector)
        rows = rows if self.prepare is None else self.prepare(rows)
        if self.keys is not None:
            rows = rows.select(*self.keys)
        for part in rows.split(self.capacity):
            self._buffer.extend(part.to(self.device))

    def _write_journal(self) -> None:
        if not self._unsaved:
            return
        rows = concatenate(self._unsaved, metadata={"source": "online"})
        first = self.transitions - len(rows)
        name = f"rows-{first:09d}-{self.transitions:09d}"
        rows.save(self.journal / name, overwrite=True)  # there already, if a killed run came this far
        episode = self.episodes - rows.n_episodes
        self._files.append({"name": name, "first": first, "rows": len(rows), "episode": episode})
        self._unsaved = []
        if not self.keep_all:
            self._forget(before=self.transitions - 2 * self.capacity)

    def _forget(self, *, before: int) -> None:
        while self._files and self._files[0]["first"] + self._files[0]["rows"] <= before:
            shutil.rmtree(self.journal / self._files.pop(0)["name"], ignore_errors=True)

    def _read(self, file: Mapping[str, Any]) -> OfflineDataset:
        return OfflineDataset.load(self.journal / file["name"])
