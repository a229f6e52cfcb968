"""Online learning with the offline loop: a replay buffer that gathers experience as it is sampled."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torchrl.data import LazyTensorStorage, OfflineToOnlineReplayBuffer, ReplayBuffer, TensorDictReplayBuffer

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.exploration import EXPLORATION
from torchrl_marl_offline.core.layout import DONE, TRAJ_IDS, TRUNCATED
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.core.ranges import CAPACITY, COUNT, POSITIVE, SEED, SIZE, UNIT
from torchrl_marl_offline.data.collection import as_dataset
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset, concatenate
from torchrl_marl_offline.envs.base import EpisodesLostError
from torchrl_marl_offline.envs.episodes import flat_tensors, load_episodes, put_flat_tensors, save_episodes
from torchrl_marl_offline.modules.history import encoder_of
from torchrl_marl_offline.training.run.checkpoints import BufferState, check_generator, restore_generator

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDictBase
    from tensordict.nn import TensorDictModuleBase
    from torchrl.envs import EnvBase

Source = Callable[[int], OfflineDataset]
_ROUNDS = re.compile(r"rows-\d+-\d+", re.ASCII)


class OnlineReplay:
    """What a :class:`~torchrl_marl_offline.Trainer` samples when it learns online.

    Rounds of experience alternate with samples: ``source(round)`` returns episodes, or parts of them that end in a
    truncation, which enter a ring of ``capacity`` transitions; each transition pays for ``update_to_data`` samples, and
    when they are spent the next round is due. A checkpoint holds the counters and names the files of the experience so
    far: the journal, one dataset folder for all rounds between two checkpoints, written before the checkpoint is. So
    resuming loses nothing, and what was gathered after the checkpoint is gathered again. If the
    source's episodes depend on the round, the networks, torch's generators and the source's own ``state_dict()`` alone,
    a resumed run equals one that was never stopped, bit for bit.

    Args:
        source: called with the number of a round, from 0; returns its episodes. One that keeps something between the
            rounds, as :class:`CollectorSource` keeps unfinished episodes, has ``state_dict`` and ``load_state_dict``,
            which take part in checkpoints.
        capacity: transitions that are kept for sampling.
        batch_size: rows of a sample, drawn uniformly with replacement.
        update_to_data: samples for each transition, for instance 1/32; the rest of a division is kept.
        journal: folder of the experience's files.
        offline: a dataset that every batch takes a share of, through TorchRL's
            :class:`~torchrl.data.OfflineToOnlineReplayBuffer`; by default batches are online experience alone.
        offline_fraction: that share, in (0, 1).
        offline_until: the number of samples over which the share falls linearly to 0; by default it stays.
        prepare: applied to the rows of a round before they enter the ring, for instance to add the team's reward.
        keys: leaves of the prepared rows that samples hold; by default all (with ``offline``, both need the same).
        keep_all: keep the whole journal; otherwise files go once ``2 * capacity`` newer transitions are there and the
            newest checkpoint does not need them, so that this one can always be resumed, and older ones until
            ``capacity`` transitions after them.
        device: where the ring lies.
        seed: of the sampling.

    Attributes:
        rounds: rounds gathered so far.
        transitions: transitions gathered so far, those included that have left the ring.
        samples: batches drawn so far.
        episodes: episodes gathered so far; ``("collector", "traj_ids")`` counts through all rounds.

    Example:
        >>> CheckpointManager("runs/offline/checkpoints").load(loss=loss)               # doctest: +SKIP
        >>> source = CollectorSource(env, loss.actor_network, steps_per_round=10, exploration="sample")
        ...                                                                              # doctest: +SKIP
        >>> replay = OnlineReplay(source, capacity=100_000, batch_size=256,              # doctest: +SKIP
        ...                       update_to_data=1 / 32, journal="runs/online/experience", keys=loss.in_keys)
        >>> Trainer(loss, replay, steps=10_000, output="runs/online").train()            # doctest: +SKIP

    Raises:
        ValueError: a round is larger than ``capacity``, or ``update_to_data`` is not above 0.
    """

    gathers_experience = True
    """That a sample may change what is there: nothing is drawn from it for measurements."""

    @checked
    def __init__(
        self,
        source: Source,
        *,
        capacity: Annotated[int, CAPACITY],
        batch_size: Annotated[int, SIZE],
        update_to_data: Annotated[float, POSITIVE],
        journal: str | Path,
        offline: OfflineDataset | None = None,
        offline_fraction: Annotated[float, UNIT] = 0.5,
        offline_until: Annotated[int | None, COUNT] = None,
        prepare: Callable[[TensorDictBase], TensorDictBase] | None = None,
        keys: Sequence[NestedKey] | None = None,
        keep_all: bool = True,
        device: torch.device | str = "cpu",
        seed: Annotated[int, SEED] = 0,
    ) -> None:
        self.source, self.capacity, self.update_to_data = source, capacity, update_to_data
        self.journal, self.keep_all = Path(journal), keep_all
        self.prepare, self.keys = prepare, keys
        self.device = torch.device(device)
        self.batch_size, self.offline_until = batch_size, offline_until
        storage = LazyTensorStorage(capacity, device=self.device)
        self._generator = torch.Generator(device=self.device).manual_seed(seed)
        self._offline = offline and make_replay_buffer(
            self._prepared(offline.data), batch_size=None, device=self.device, seed=seed + 1, buffer_class=ReplayBuffer
        )
        if offline is None:
            self._buffer = self._mixed = TensorDictReplayBuffer(storage=storage)
        else:
            self._mixed = OfflineToOnlineReplayBuffer(
                self._offline, online_storage=storage, offline_fraction=offline_fraction
            )
            self._buffer = self._mixed.online_buffer
        self._buffer.set_rng(self._generator)
        self.rounds, self.transitions, self.episodes, self.samples, self._credit = 0, 0, 0, 0, 0.0
        self._files: list[dict[str, Any]] = []  # name, first row, number of rows, first episode
        self._unsaved: list[OfflineDataset] = []
        self._saved = 0  # transitions at the checkpoint before

    def __len__(self) -> int:
        return len(self._buffer)

    def sample(self) -> TensorDictBase:
        """Return a batch, after a round of experience where one is due."""
        while self._credit < 1 - 1e-9:  # sums of fractions miss whole numbers by a hair
            self._gather()
        self._credit -= 1
        if self._offline is not None and self.offline_until is not None:
            self._mixed.anneal(self.samples, self.offline_until)
        self.samples += 1
        return self._mixed.sample(self.batch_size)

    @checked
    def experience(self, transitions: Annotated[int | None, COUNT] = None) -> OfflineDataset:
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
            "samples": self.samples,
            "credit": self._credit,
            "capacity": self.capacity,
            "batch_size": self.batch_size,
            "update_to_data": self.update_to_data,
            "files": [dict(file) for file in self._files],
            "generator": self._generator.get_state(),
            "offline": None if self._offline is None else BufferState(self._offline).state_dict(),
            "source": self.source.state_dict() if hasattr(self.source, "state_dict") else None,
        }

    saving_writes_files = True

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse what :meth:`load_state_dict` refuses, and change nothing.

        Raises:
            DatasetError: a file of the journal is missing or damaged.
            ValueError: the offline data, the size of a batch or the kind of device is another.
        """
        for file in self._in_ring(state["files"], state["transitions"]):
            self._read(file)
        check_generator(self._generator, state["generator"])
        for name in ("capacity", "batch_size", "update_to_data"):
            if state.get(name, getattr(self, name)) != getattr(self, name):
                raise ValueError(
                    f"{name} was {state[name]} and is {getattr(self, name)} now; go on with that of the run"
                )
        if (state["offline"] is None) != (self._offline is None):
            raise ValueError("offline data is in only one of the checkpoint and this run")
        if self._offline is not None:
            BufferState(self._offline).check_state_dict(state["offline"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned and fill the ring from the journal.

        Raises:
            DatasetError: a file of the journal is missing or damaged.
        """
        self.rounds, self.transitions, self.episodes = state["rounds"], state["transitions"], state["episodes"]
        self.samples, self._credit, self._saved = state["samples"], state["credit"], state["transitions"]
        self._files, self._unsaved = [dict(file) for file in state["files"]], []
        for file in self._files:
            if not _ROUNDS.fullmatch(str(file["name"])):  # folders of that name are read, and deleted when they are old
                raise ValueError(f"the checkpoint names {file['name']!r} as a part of the journal, which it cannot be")
        self._buffer.empty()
        needed = self._in_ring(self._files, self.transitions)
        if needed:
            # Where rows lie decides which of them an index draws, so each goes back to its place in the ring.
            self._buffer.writer._cursor = needed[0]["first"] % self.capacity
        for file in needed:
            self._extend(self._read(file).data, file["episode"])
        restore_generator(self._generator, state["generator"])
        if self._offline is not None:
            BufferState(self._offline).load_state_dict(state["offline"])
        if state.get("source") is not None:  # earlier versions saved none
            self.source.load_state_dict(state["source"])

    def _in_ring(self, files: Sequence[Mapping[str, Any]], transitions: int) -> list[Mapping[str, Any]]:
        """Return the files whose rows are in the ring: others may have left the journal, or half of them.

        The run that wrote a checkpoint may have been killed while it wrote the one that needs them no more.
        """
        return [file for file in files if file["first"] + file["rows"] > transitions - self.capacity]

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
        self._credit += self.update_to_data * len(episodes)

    def _extend(self, rows: TensorDictBase, first_episode: int) -> None:
        collector = rows.get("collector").copy().set(TRAJ_IDS[1], rows.get(TRAJ_IDS) + first_episode)
        rows = rows.copy().set("collector", collector)
        for part in self._prepared(rows).split(self.capacity):
            self._buffer.extend(part.to(self.device))

    def _prepared(self, rows: TensorDictBase) -> TensorDictBase:
        rows = rows if self.prepare is None else self.prepare(rows)
        return rows if self.keys is None else rows.select(*self.keys)

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
            # The checkpoint before this one must not need them either, until this one is whole.
            self._forget(before=min(self.transitions - 2 * self.capacity, self._saved - self.capacity))
        self._saved = self.transitions

    def _forget(self, *, before: int) -> None:
        while self._files and self._files[0]["first"] + self._files[0]["rows"] <= before:
            shutil.rmtree(self.journal / self._files.pop(0)["name"], ignore_errors=True)

    def _read(self, file: Mapping[str, Any]) -> OfflineDataset:
        return OfflineDataset.load(self.journal / file["name"])


class CollectorSource:
    """Rounds of experience from TorchRL's :class:`~torchrl.collectors.Collector`, for :class:`OnlineReplay`.

    Every environment goes on where the round before left it. The last row of a round is marked truncated where its
    episode goes on, which changes no target of TD or IQL: they bootstrap from the true next observation.

    The unfinished episodes are a part of checkpoints: what the simulator holds, its random numbers, the observation
    that comes next, what transforms of ``env`` and buffers of ``policy`` have summed up: a resumed run goes on in the
    middle of them, bit for bit. PettingZoo's environments, which cannot be saved, play theirs again from the
    seed. What is *not* restored, with a warning at the first checkpoint: environments of
    :func:`~torchrl_marl_offline.envs.from_torchrl` and StarCraft's games; what a policy, or a prey that was given
    as ``opponent=``, keeps outside of its buffers is not either. A resumed run begins new episodes there, under a
    seed of its own.

    Args:
        env: an environment of :func:`~torchrl_marl_offline.make_env`.
        policy: the policy that learns; add TorchRL's exploration modules to it, if it should explore.
        steps_per_round: of every environment.
        exploration: ``"mode"`` executes the policy's mode: no exploration at all. ``"sample"`` draws from its
            distribution, and lets exploration modules act. Advantage-weighted regression stands still on its own mode,
            where a Gaussian's likelihood has no gradient: it needs ``"sample"``.
        seed: of the environments.
    """

    @checked
    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        *,
        steps_per_round: Annotated[int, SIZE],
        exploration: Literal["mode", "sample"] = "mode",
        seed: Annotated[int, SEED] = 0,
    ) -> None:
        if exploration not in EXPLORATION:
            raise ValueError(f"exploration must be 'mode' or 'sample', got {exploration!r}.")
        if encoder_of(policy if isinstance(policy, torch.nn.Module) else None) is not None:
            raise ValueError(
                "A policy with memory cannot learn online yet: rounds of experience do not carry its memory; build it "
                "without memory, or train on a dataset."
            )
        self.env, self.policy, self.seed = env, policy, seed
        self.steps_per_round, self.exploration = steps_per_round, exploration
        self._rounds: Iterator[TensorDictBase] | None = None
        self._collector: Any = None
        self._warned = False

    def __call__(self, number: int) -> OfflineDataset:
        """Return the next round; the first one starts with new episodes."""
        with torch.no_grad(), evaluation_mode(self.policy):
            if self._rounds is None:
                self._start(self.seed + number)
            steps = next(self._rounds).copy()  # [num_envs, steps_per_round]
        following = steps.get("next").copy()
        cut = torch.zeros_like(following.get(DONE))
        cut[:, -1] = ~following.get(DONE)[:, -1]
        steps.set("next", following.set(TRUNCATED, following.get(TRUNCATED) | cut))
        return as_dataset(steps.reshape(-1), self.env.task_spec, {"source": "collector"}, check=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the unfinished episodes; warns, once, of an environment that cannot tell them."""
        if self._rounds is None:
            return {"episodes": None}
        episodes = save_episodes(self.env)
        if episodes is None:
            self._warn_of_lost_episodes("its state cannot be saved")
            return {"episodes": None}
        return {
            "episodes": episodes,
            # where the collector stands: the observation that comes next, and what goes with it but its own numbers
            # of trajectories, which nothing here reads
            "carried": flat_tensors(self._collector._carrier.exclude("collector")),
            "policy": {name: buffer.clone() for name, buffer in _buffers(self.policy).items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the middle of the episodes of :meth:`state_dict`, or with new ones where it has none."""
        self._rounds = None
        if state["episodes"] is None:
            return
        with preserved_rng(), torch.no_grad(), evaluation_mode(self.policy):
            self._start(self.seed)
        try:
            load_episodes(self.env, state["episodes"])
        except EpisodesLostError as error:
            self._rounds = None
            self._warn_of_lost_episodes(str(error))
            return
        carrier = self._collector._carrier
        own = carrier.get("collector")
        put_flat_tensors(carrier, state["carried"], device=self.env.device)
        carrier.set("collector", own)
        for name, buffer in _buffers(self.policy).items():
            if name in state["policy"]:
                buffer.copy_(state["policy"][name])

    def _warn_of_lost_episodes(self, reason: str) -> None:
        if not self._warned:
            warnings.warn(
                f"The unfinished episodes of {self.env.task_spec.task} are no part of the checkpoints ({reason}): a "
                f"resumed run begins new ones, and is not the undisturbed run bit for bit.",
                stacklevel=2,
            )
        self._warned = True

    def _start(self, seed: int) -> None:
        """Begin new episodes, with a collector of their own."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what TorchRL's collectors say of themselves
            from torchrl.collectors import Collector

            if self._collector is not None:
                self._collector.shutdown(close_env=False)  # or it would close the environment of the next one
            self.env.set_seed(seed)
            self._collector = Collector(
                self.env,
                self.policy,
                frames_per_batch=self.steps_per_round * self.env.batch_size[0],
                total_frames=-1,
                exploration_type=EXPLORATION[self.exploration],
                auto_register_policy_transforms=False,
            )
            self._rounds = iter(self._collector)


def _buffers(policy: TensorDictModuleBase) -> dict[str, torch.Tensor]:
    return dict(policy.named_buffers()) if isinstance(policy, torch.nn.Module) else {}
