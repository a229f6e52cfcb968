"""Online learning with the offline loop: a replay buffer that gathers experience as it is sampled."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tensordict import unravel_key
from torchrl.data import LazyTensorStorage, OfflineToOnlineReplayBuffer, ReplayBuffer, TensorDictReplayBuffer
from torchrl.envs.utils import set_exploration_type

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.devices import check_device_is_there
from torchrl_marl_offline.core.exploration import EXPLORATION
from torchrl_marl_offline.core.layout import (
    ACTION,
    AGENT_MASK,
    DONE,
    EPISODE,
    EPISODE_STEP,
    TRAJ_IDS,
    TRUNCATED,
    TaskSpec,
    joined,
    next_key,
)
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.core.ranges import CAPACITY, COUNT, POSITIVE, SEED, SIZE, SIZE_OR_NONE, UNIT
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.data.collection import KEPT, as_dataset
from torchrl_marl_offline.data.policy_fit import Carried, fitted
from torchrl_marl_offline.data.transitions.buffers import check_slices, make_replay_buffer, masks_beside
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset, concatenate
from torchrl_marl_offline.data.transitions.ring_sequences import InSlices, RingSequenceSampler
from torchrl_marl_offline.envs.base import EpisodesLostError
from torchrl_marl_offline.envs.episodes import flat_tensors, load_episodes, put_flat_tensors, save_episodes
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
        slice_len: for networks with memory: samples are sequences, ``[batch_size // slice_len, slice_len]``, as of
            ``dataset.replay_buffer(batch_size=, slice_len=, burn_in=)``; no slice crosses an episode. An episode is
            sampled as far as it is in the ring: see
            :class:`~torchrl_marl_offline.data.transitions.ring_sequences.RingSequenceSampler`. Episodes that rounds
            cut apart are known by ``("collector", "episode")`` and ``("collector", "step")`` of the source's rows, as
            :class:`CollectorSource` writes them; without these, what a source returns are whole episodes.
        burn_in: rows of a slice that memory alone sees, and that count in no loss; fewer than ``slice_len``.
        update_to_data: samples for each transition, for instance 1/32; the rest of a division is kept.
        journal: folder of the experience's files.
        offline: a dataset that every batch takes a share of, through TorchRL's
            :class:`~torchrl.data.OfflineToOnlineReplayBuffer`; by default batches are online experience alone.
        offline_fraction: that share, in (0, 1); with ``slice_len``, of the slices.
        offline_until: the number of samples over which the share falls linearly to 0; by default it stays.
        prepare: applied to the rows of a round before they enter the ring, for instance to add the team's reward.
        keys: leaves of the prepared rows that samples hold; by default all (with ``offline``, both need the same).
            Masks of rows and agents always stay, because a loss reads them where they are.
        keep_all: keep the whole journal; otherwise files go once ``2 * capacity`` newer transitions are there and the
            newest checkpoint does not need them, so that this one can always be resumed, and older ones until
            ``capacity`` transitions after them.
        device: where the ring lies.
        seed: of the sampling.

    Attributes:
        rounds: rounds gathered so far.
        transitions: transitions gathered so far, those included that have left the ring.
        samples: batches drawn so far.
        episodes: episodes gathered so far, those that rounds cut apart once for each part; numbers at
            ``("collector", "traj_ids")`` go through all rounds.

    Example:
        >>> CheckpointManager("runs/offline/checkpoints").load(loss=loss)               # doctest: +SKIP
        >>> source = CollectorSource(env, loss.actor_network, steps_per_round=10, exploration="sample")
        ...                                                                              # doctest: +SKIP
        >>> replay = OnlineReplay(source, capacity=100_000, batch_size=256,              # doctest: +SKIP
        ...                       update_to_data=1 / 32, journal="runs/online/experience", keys=loss.in_keys)
        >>> Trainer(loss, replay, steps=10_000, output="runs/online").train()            # doctest: +SKIP

    Raises:
        ValueError: a round is larger than ``capacity``, which is refused at once where the source has a
            ``round_shape``, environments and steps, or ``capacity`` holds no more than a burn-in of each environment;
            ``update_to_data`` is not above 0, or batches are no whole slices.
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
        slice_len: Annotated[int | None, SIZE] = None,
        burn_in: Annotated[int, SIZE_OR_NONE, ReadWith("slice_len", given=True)] = 0,
        offline: OfflineDataset | None = None,
        offline_fraction: Annotated[float, UNIT, ReadWith("offline", given=True)] = 0.5,
        offline_until: Annotated[int | None, COUNT, ReadWith("offline", given=True)] = None,
        prepare: Callable[[TensorDictBase], TensorDictBase] | None = None,
        keys: Sequence[NestedKey] | None = None,
        keep_all: bool = True,
        device: torch.device | str = "cpu",
        seed: Annotated[int, SEED] = 0,
    ) -> None:
        self.source, self.capacity, self.update_to_data = source, capacity, update_to_data
        self.journal, self.keep_all = Path(journal), keep_all
        self.prepare, self.keys = prepare, keys
        check_device_is_there(device)
        self.device = torch.device(device)
        self.batch_size, self.offline_until = batch_size, offline_until
        self.slice_len, self.burn_in = slice_len, burn_in
        self._check_capacity(*getattr(source, "round_shape", (0, 0)))
        self._is_mixed = offline is not None
        self._generator = torch.Generator(device=self.device).manual_seed(seed)
        self._offline, self._mixed, self._buffer = None, None, self._make_ring()
        if offline is not None:
            _check_task(source, offline)
            self._offline = self._make_offline(offline, seed + 1)
            self._mixed = OfflineToOnlineReplayBuffer(
                self._offline, online_storage=self._buffer.storage, offline_fraction=offline_fraction
            )
            self._mixed._online_buffer = self._buffer  # its own leaves out what slices say of their rows
        self._buffer.set_rng(self._generator)
        self.rounds, self.transitions, self.episodes, self.samples, self._credit = 0, 0, 0, 0, 0.0
        self._files: list[dict[str, Any]] = []  # name, first row, number of rows, first episode
        self._unsaved: list[OfflineDataset] = []
        self._saved = 0  # transitions at the checkpoint before

    @property
    def cuts_episodes(self) -> bool:
        """Whether rounds have a length of their own, at whose end episodes go on."""
        return hasattr(self.source, "round_shape")

    def _check_capacity(self, envs: int, steps: int) -> None:
        if envs * steps > self.capacity:
            raise ValueError(_too_large(envs * steps, self.capacity))
        if self.slice_len is not None and envs * (self.burn_in + 1) > self.capacity:
            raise ValueError(
                f"A ring of capacity {self.capacity} has {self.capacity // envs} rows of each of {envs} environments, "
                f"and none behind burn_in={self.burn_in} of them; raise capacity=, or choose a shorter burn-in."
            )

    def _make_ring(self) -> TensorDictReplayBuffer:
        storage = LazyTensorStorage(self.capacity, device=self.device)
        if self.slice_len is None:
            self._sequences = None
            return (ReplayBuffer if self._is_mixed else TensorDictReplayBuffer)(storage=storage)
        check_slices(self.batch_size, self.slice_len, self.burn_in)
        self._sequences = RingSequenceSampler(self.capacity, self.slice_len, self.burn_in, device=self.device)
        return TensorDictReplayBuffer(storage=storage, sampler=InSlices(self._sequences))

    def _make_offline(self, offline: OfflineDataset, seed: int) -> ReplayBuffer:
        rows, options = self._prepared(offline.data), {"batch_size": None, "device": self.device, "seed": seed}
        if self.slice_len is None:
            return make_replay_buffer(rows, buffer_class=ReplayBuffer, **options)
        buffer = make_replay_buffer(rows, slice_len=self.slice_len, burn_in=self.burn_in, **options)
        buffer.set_sampler(InSlices(buffer.sampler))
        return buffer

    def __len__(self) -> int:
        return len(self._buffer)

    def sample(self) -> TensorDictBase:
        """Return a batch, after a round of experience where one is due."""
        while self._credit < 1 - 1e-9:  # sums of fractions miss whole numbers by a hair
            self._gather()
        self._credit -= 1
        if self._mixed is not None and self.offline_until is not None:
            self._mixed.anneal(self.samples, self.offline_until)
        self.samples += 1
        source = self._buffer if self._mixed is None else self._mixed
        return source.sample(self.batch_size // (self.slice_len or 1))  # of slices it counts these

    @checked
    def experience(self, transitions: Annotated[int | None, COUNT] = None) -> OfflineDataset:
        """Return all episodes so far, in the order of their rounds, or those within the first ``transitions`` rows.

        Those that rounds cut apart are an episode for each part, which ends in a truncation.

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
            "slice_len": self.slice_len,
            "burn_in": self.burn_in,
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
        earlier = {name: getattr(self, name) for name in ("capacity", "batch_size", "update_to_data")}
        earlier |= {"slice_len": None, "burn_in": 0}  # what earlier versions did not save
        for name, default in earlier.items():
            if state.get(name, default) != getattr(self, name):
                was = state.get(name, default)
                raise ValueError(f"{name} was {was} and is {getattr(self, name)} now; go on with that of the run")
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
        if self._sequences is not None and needed:
            self._sequences.look(self.transitions)
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
            raise ValueError(_too_large(len(episodes), self.capacity))
        self._extend(episodes.data, self.episodes)
        self._unsaved.append(episodes)
        self.episodes += episodes.n_episodes
        self.rounds += 1
        self.transitions += len(episodes)
        self._credit += self.update_to_data * len(episodes)
        if self._sequences is not None:
            self._sequences.look(self.transitions)

    def _extend(self, rows: TensorDictBase, first_episode: int) -> None:
        episode, step = rows.get(EPISODE, None), rows.get(EPISODE_STEP, None)
        parts = rows.get(TRAJ_IDS)
        if episode is None or step is None:  # of a source that returns whole episodes
            episode, step = parts + first_episode, torch.cat([parts[:1] * 0, (parts.diff() == 0).long()])
        rows = rows.copy().set("collector", rows.get("collector").copy().set(TRAJ_IDS[1], episode))
        written = zip(*(each.split(self.capacity) for each in (self._prepared(rows), episode, step == 0)))
        for part, number, begins in written:
            index = self._buffer.extend(part.to(self.device))
            if self._sequences is not None:
                self._sequences.write(*(each.to(self.device) for each in (index, number, begins)))

    def _prepared(self, rows: TensorDictBase) -> TensorDictBase:
        rows = rows if self.prepare is None else self.prepare(rows)
        if self.keys is None:
            found = rows.exclude(EPISODE, EPISODE_STEP)
        else:
            masks = [key for key in masks_beside(self.keys) if rows.get(key, None) is not None]
            if missing := [key for key in self.keys if rows.get(key, None) is None]:
                raise ValueError(f"keys names {joined(unravel_key(missing[0]))}, which the experience does not have.")
            found = rows.select(*self.keys, *masks, *([] if self.slice_len is None else [TRAJ_IDS]))
        if self._is_mixed:  # in one part of a batch as in the other
            found = found.copy()
            for key in (AGENT_MASK, next_key(AGENT_MASK)):
                if found.get(key, None) is None:
                    found.set(key, torch.ones(rows.get(ACTION).shape[:2], dtype=torch.bool, device=rows.device))
        return found

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
    """Rounds of experience of environments that play on, for :class:`OnlineReplay`.

    Every environment goes on where the round before left it, and so does a policy with memory. The last row of a round
    is marked truncated where its episode goes on, which changes no target of TD or IQL: they bootstrap from the true
    next observation. Rows say by ``("collector", "episode")`` and ``("collector", "step")`` which of them belong
    together, so that sequences are drawn across the ends of rounds.

    The unfinished episodes are a part of checkpoints: what the simulator holds, its random numbers, the observation
    that comes next, what the policy remembers, what transforms of ``env`` and buffers of ``policy`` have summed up: a
    resumed run goes on in the middle of them, bit for bit. PettingZoo's environments, which cannot be saved, play
    theirs again from the seed. What is *not* restored, with a warning at the first checkpoint: environments of
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

    Raises:
        PolicyError: the policy was made for other sizes than the environment's.
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
        self.env, self.policy, self.seed = env, policy, seed
        self.steps_per_round, self.exploration = steps_per_round, exploration
        self._act, self._carried = fitted(policy, env), Carried(policy)
        self._at: TensorDictBase | None = None  # what the policy reads next
        envs = env.batch_size[0]
        self._episode = torch.arange(-envs, 0, device=env.device)  # each environment's, numbered over all of them
        self._step = torch.zeros_like(self._episode)
        self._warned = False

    @property
    def round_shape(self) -> tuple[int, int]:
        """How many environments a round has, and how many steps of each."""
        return self.env.batch_size[0], self.steps_per_round

    def __call__(self, number: int) -> OfflineDataset:
        """Return the next round; the first one starts with new episodes."""
        with torch.no_grad(), evaluation_mode(self.policy), set_exploration_type(EXPLORATION[self.exploration]):
            if self._at is None:
                self._start(self.seed + number)
            steps = torch.stack([self._play() for _ in range(self.steps_per_round)], 1)  # [num_envs, steps_per_round]
        steps[next_key(TRUNCATED)][:, -1] |= ~steps[next_key(DONE)][:, -1]
        return as_dataset(steps.reshape(-1), self.env.task_spec, {"source": "collector"}, check=False)

    def _play(self) -> TensorDictBase:
        """Take one step of every environment."""
        step, following = self.env.step_and_maybe_reset(self._act(self._at))
        self._at = self._carried.onward(step, following)
        kept = step.select(*KEPT, next_key(DONE), strict=False).clone()
        kept.set(EPISODE, self._episode).set(EPISODE_STEP, self._step)
        done = kept.get(next_key(DONE)).reshape(-1)
        self._episode = torch.where(done, self._episode + len(done), self._episode)
        self._step = torch.where(done, 0, self._step + 1)
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Return the unfinished episodes; warns, once, of an environment that cannot tell them."""
        numbers = {"episode": self._episode.clone(), "step": self._step.clone()}
        if self._at is None:
            return {"episodes": None, "numbers": numbers}
        episodes = save_episodes(self.env)
        if episodes is None:
            self._warn_of_lost_episodes("its state cannot be saved")
            return {"episodes": None, "numbers": numbers}
        return {
            "episodes": episodes,
            "numbers": numbers,
            "carried": flat_tensors(self._at),
            "policy": {name: buffer.clone() for name, buffer in _buffers(self.policy).items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the middle of the episodes of :meth:`state_dict`, or with new ones where it has none."""
        self._at = None
        if "numbers" in state:  # earlier versions saved none
            self._episode, self._step = (state["numbers"][name].to(self.env.device) for name in ("episode", "step"))
        if state["episodes"] is None:
            return
        numbers = self._episode, self._step
        with preserved_rng(), torch.no_grad():
            self._start(self.seed)
        try:
            load_episodes(self.env, state["episodes"])
        except EpisodesLostError as error:
            self._at = None
            self._warn_of_lost_episodes(str(error))
            return
        self._episode, self._step = numbers
        put_flat_tensors(self._at, state["carried"], device=self.env.device)
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
        """Begin new episodes."""
        self.env.set_seed(seed)
        self._at = self._carried.begin(self.env.reset())
        self._episode, self._step = self._episode + len(self._episode), torch.zeros_like(self._step)


def _check_task(source: Source, offline: OfflineDataset) -> None:
    """Refuse data of a task of other sizes than that which is played, whose rows could not be in one batch."""
    if not hasattr(source, "env"):
        return
    played, recorded = TaskSpec.from_env(source.env), offline.spec
    names = ("n_agents", "observation_size", "action_size", "discrete")
    if unlike := [name for name in names if getattr(played, name) != getattr(recorded, name)]:
        name = unlike[0]
        raise ValueError(
            f"offline was recorded in {recorded.task}, whose {name} is {getattr(recorded, name)}; {played.task} is "
            f"played, whose {name} is {getattr(played, name)}. Take data and environment of one task."
        )


def _too_large(rows: int, capacity: int) -> str:
    return f"A round has {rows} transitions, more than the capacity of {capacity}; raise capacity=."


def _buffers(policy: TensorDictModuleBase) -> dict[str, torch.Tensor]:
    return dict(policy.named_buffers()) if isinstance(policy, torch.nn.Module) else {}
