"""A recorded dataset: transitions in time order, the task's sizes and where it all came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound, as_bound
from torchrl_marl_offline.core.input_statistics import InputStatistics
from torchrl_marl_offline.core.layout import (
    AGENT_MASK,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TRAJ_IDS,
    TaskSpec,
    next_key,
)
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import BOUNDS, OPEN_UNIT, PREFETCH, REAL, SEED, SIZE, SIZE_OR_NONE
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.data.transitions import storage
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading, values_are_checked
from torchrl_marl_offline.data.transitions.findings import Inspection
from torchrl_marl_offline.data.transitions.fingerprints import fingerprint
from torchrl_marl_offline.data.transitions.recorded_range import clipped_where_nothing_counts, recorded_range
from torchrl_marl_offline.data.transitions.stored_values import agrees
from torchrl_marl_offline.data.transitions.validation import check_leaves, check_metadata, validate

if TYPE_CHECKING:
    from tensordict import NestedKey
    from torchrl.data import TensorDictReplayBuffer

_BLOCK = 2**16  # rows that are looked at together


class OfflineDataset:
    """Transitions ``[T]`` of whole episodes, end to end in time order.

    Args:
        data: the transitions in the layout of :mod:`torchrl_marl_offline.core.layout`, batch size ``[T]``. Episode
            ids are renumbered from 0 in the order of the rows.
        spec: the task's sizes.
        metadata: where the data came from; must be JSON-ready. ``n_transitions`` and ``n_episodes`` are filled in;
            ``"license"`` and ``"citation"``, texts, are shown on the dataset's card.
        check: whether to look at every value (:func:`validate`), or at keys, shapes and types only.

    Raises:
        DatasetError: what is wrong with ``data``.

    Example:
        >>> from torchrl_marl_offline.data import from_arrays
        >>> dataset = from_arrays(
        ...     observations=torch.zeros(4, 2, 3),
        ...     actions=torch.zeros(4, 2, 1),
        ...     rewards=torch.ones(4),
        ...     terminals=torch.tensor([False, True, False, True]),
        ... )
        >>> dataset.episode_returns().tolist()
        [2.0, 2.0]
        >>> dataset.replay_buffer(batch_size=8, seed=0).sample()["agents", "observation"].shape
        torch.Size([8, 2, 3])
    """

    @checked
    def __init__(
        self, data: TensorDictBase, spec: TaskSpec, metadata: dict[str, Any] | None = None, *, check: bool = True
    ) -> None:
        if check and values_are_checked():
            validate(data, spec)
        else:
            check_leaves(data, spec)
        self.data = data
        self.spec = spec
        ids = data.get(TRAJ_IDS)
        ends = torch.cat([(ids[1:] != ids[:-1]).nonzero()[:, 0].cpu() + 1, torch.tensor([len(ids)])])
        self.episode_starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
        """Row of each episode's first transition, ``[E]`` int64 on the CPU."""
        self.episode_lengths = ends - self.episode_starts
        """Transitions of each episode, ``[E]`` int64 on the CPU."""
        check_metadata({} if metadata is None else metadata)
        self.metadata = dict(metadata or {}) | {"n_transitions": len(data), "n_episodes": len(ends)}
        self.inspection: Inspection | None = None
        """What inspection found: set by ``load_dataset``, and by :meth:`load` where it stands in the folder; ``None``
        where nobody has looked, or where the values have errors that the folder does not tell of."""

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return (
            f"OfflineDataset(task={self.spec.task!r}, transitions={len(self)}, episodes={self.n_episodes}, "
            f"agents={self.spec.n_agents}, source={self.metadata.get('source')!r})"
        )

    @property
    def n_episodes(self) -> int:
        """Number of episodes ``E``."""
        return len(self.episode_starts)

    # Statistics

    def episode_returns(self, reduce: Literal["mean", "sum"] = "mean") -> torch.Tensor:
        """Return ``[E]`` float32: the undiscounted sum over time of the team's reward, on the CPU.

        Every stored row counts, also those that training leaves out for want of a successor.

        Args:
            reduce: the team's reward is the ``"mean"`` or the ``"sum"`` of the agents' rewards.
        """
        if reduce not in ("mean", "sum"):
            raise ValueError(f"reduce must be 'mean' or 'sum', got {reduce!r}.")
        reward = self.data.get(next_key(REWARD)).squeeze(-1).double()  # [T, n, 1] -> [T, n]
        team = (reward.mean(-1) if reduce == "mean" else reward.sum(-1)).cpu()
        return torch.segment_reduce(team, "sum", lengths=self.episode_lengths).float()

    def agent_returns(self) -> torch.Tensor:
        """Return ``[E, n]`` float64: the undiscounted sum over time of each agent's reward, on the CPU."""
        reward = self.data.get(next_key(REWARD)).squeeze(-1).double().cpu()  # [T, n, 1] -> [T, n]
        return torch.segment_reduce(reward, "sum", lengths=self.episode_lengths, axis=0)

    def success(self) -> torch.Tensor | None:
        """Return ``[E]`` bool, whether each episode succeeded, or ``None`` where the source does not say."""
        flags = self.data.get(next_key(SUCCESS), None)
        if flags is None:
            return None
        return torch.segment_reduce(flags[:, 0].float().cpu(), "max", lengths=self.episode_lengths) > 0

    def observation_statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each component of an observation: ``make_actor(observation_norm=)``.

        Over agents and rows that count: not where ``("collector", "mask")`` or ``("agents", "mask")`` is false. A
        component that never changes (its deviation is below a millionth of its mean) gets the deviation 1.

        Returns:
            Two lists of ``o`` numbers, JSON-ready.

        Raises:
            ValueError: no row counts.
        """
        return self._moments(OBSERVATION)

    def input_statistics(self) -> InputStatistics:
        """Return mean and standard deviation of observations and states, by which networks' inputs can be normalized.

        ``make_loss(dataset.spec, inputs=dataset.input_statistics())``. Counted as by :meth:`observation_statistics`; a
        state of any row that counts.

        Raises:
            ValueError: no row counts.
        """
        observation, state = self._moments(OBSERVATION), self._moments(STATE)
        return InputStatistics((tuple(observation[0]), tuple(observation[1])), (tuple(state[0]), tuple(state[1])))

    @checked
    def statistics_where(self, normalize: Literal["auto", "on", "off"]) -> InputStatistics | None:
        """Return what networks' inputs are to be normalized by, or ``None`` where they are to be seen as they are.

        Args:
            normalize: always, never, or where a component of observations or states is badly scaled (``"auto"``).
        """
        if normalize == "off":
            return None
        found = self.input_statistics()
        return found if normalize == "on" or found.are_badly_scaled else None

    def _moments(self, key: NestedKey) -> tuple[list[float], list[float]]:
        counts, agents = self.data.get(MASK, None), self.data.get(AGENT_MASK, None)
        rows_of = self.data.get(key)
        of_agents = rows_of.ndim == 3
        sums, squares = rows_of.new_zeros((2, rows_of.shape[-1]), dtype=torch.float64)
        number = 0
        for start in range(0, len(self), _BLOCK):
            rows = slice(start, start + _BLOCK)
            block = rows_of[rows].as_subclass(torch.Tensor)  # [rows, n, o] or [rows, s]
            kept = torch.ones(block.shape[:-1], dtype=torch.bool, device=block.device)
            if counts is not None:
                kept &= counts[rows].unsqueeze(-1) if of_agents else counts[rows]
            if agents is not None and of_agents:
                kept &= agents[rows]
            values = block[kept].double()  # [values, o]
            number += len(values)
            sums += values.sum(0)
            squares += values.square().sum(0)
        if number == 0:
            raise ValueError("No observation of this dataset counts: its masks are false everywhere.")
        mean = sums / number
        deviation = (squares / number - mean.square()).clamp_min(0).sqrt()
        deviation = torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0)
        return mean.float().tolist(), deviation.float().tolist()

    def summary(self) -> str:
        """Return a few lines of text: sizes, returns with quantiles, success, lengths, findings."""
        returns, lengths = self.episode_returns(), self.episode_lengths
        quantiles = torch.quantile(returns, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist()
        lines = [
            f"{self.spec.task or 'unnamed task'}, {self.spec.n_agents} agents, from {self.metadata.get('source', '?')}",
            f"transitions  {len(self)} in {self.n_episodes} episodes",
            f"return       {returns.mean():.2f} ± {returns.std(correction=0):.2f}"
            f"  (min, quartiles, max: {', '.join(f'{q:.2f}' for q in quantiles)})",
            f"length       {lengths.float().mean():.1f}, {lengths.min()} to {lengths.max()}",
        ]
        success = self.success()
        if success is not None:
            lines.append(f"success      {success.float().mean():.4f}")
        lines += [f"finding      {finding}" for finding in self.metadata.get("findings", [])]
        return "\n".join(lines)

    # Bounds

    @checked
    def with_bounds(self, bounds: Annotated[Literal["data"] | tuple[Bound, Bound], REAL, BOUNDS]) -> OfflineDataset:
        """Return the same transitions with other bounds of the actions, to which policies and searches then keep.

        With ``"data"`` they are what was recorded, for each agent and component: the lowest and the highest action of
        the rows and agents that count. A policy of such a dataset never leaves them, wherever it acts; a component that
        never changed is that constant. What padding and rows that do not count hold is clipped to them.

        The metadata's ``"declared_bounds"`` keep the bounds from before, which are those of the task.

        Args:
            bounds: ``"data"``, or the lower and the upper bound: of each, one number, one for each component, or a list
                of these for each agent.

        Raises:
            DatasetError: actions are indices, or bounds of another shape, or the wrong way round, or recorded actions
                lie outside of them.

        Example:
            >>> from torchrl_marl_offline.data import from_arrays
            >>> dataset = from_arrays(
            ...     observations=torch.zeros(2, 1, 3),
            ...     actions=torch.tensor([[[-0.5, 0.25]], [[1.0, 0.25]]]),
            ...     rewards=torch.ones(2),
            ...     terminals=torch.tensor([False, True]),
            ... )
            >>> narrow = dataset.with_bounds("data").spec
            >>> narrow.action_low, narrow.action_high
            ((-0.5, 0.25), (1.0, 0.25))
        """
        if self.spec.discrete:
            raise DatasetError("Bounds are of continuous actions, and these are indices; leave bounds= out.")
        is_data = isinstance(bounds, str)
        low, high = recorded_range(self.data, self.spec) if is_data else map(as_bound, bounds)
        try:
            spec = replace(self.spec, action_low=low, action_high=high)
        except ValueError as error:
            raise DatasetError(str(error)) from error
        declared = self.metadata.get("declared_bounds", [self.spec.action_low, self.spec.action_high])
        metadata = self.metadata | {"declared_bounds": declared}
        data = clipped_where_nothing_counts(self.data, spec) if is_data else self.data
        return OfflineDataset(data, spec, metadata)

    @property
    def task_spec(self) -> TaskSpec:
        """The sizes and bounds of the task itself, where :meth:`with_bounds` gave others to the policies."""
        if "declared_bounds" not in self.metadata:
            return self.spec
        low, high = self.metadata["declared_bounds"]
        return replace(self.spec, action_low=low, action_high=high)

    # Parts

    def select_episodes(
        self, episodes: Sequence[int] | torch.Tensor, *, step: dict[str, Any] | None = None
    ) -> OfflineDataset:
        """Return a dataset of the given episodes, in the given order.

        The metadata's ``"provenance"``, a list that reads from the source to the last step, gets one more: ``step``,
        how many episodes of how many, and the source and :func:`~.fingerprints.fingerprint` of this dataset.

        Args:
            episodes: indices in ``0..E-1``, each at most once, or a bool tensor ``[E]``.
            step: how they were chosen, JSON-ready, with a ``"step"``; by default ``{"step": "select_episodes"}``.
        """
        index = torch.as_tensor(episodes).cpu()
        if index.dtype == torch.bool:
            if len(index) != self.n_episodes:
                raise ValueError(f"A selection by flags needs {self.n_episodes} of them, got {len(index)}.")
            index = index.nonzero()[:, 0]
        if len(index) == 0 or index.min() < 0 or index.max() >= self.n_episodes:
            raise ValueError(f"Select at least one episode, numbered 0 to {self.n_episodes - 1}.")
        if len(index.unique()) != len(index):
            raise ValueError("Select each episode at most once.")
        starts, lengths = self.episode_starts[index], self.episode_lengths[index]
        # Row numbers of the chosen episodes: each one's start, repeated, plus the time within it.
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])
        rows = torch.arange(int(lengths.sum())) + (starts - offsets).repeat_interleave(lengths)
        told = (step or {"step": "select_episodes"}) | {"episodes": len(index), "of": self.n_episodes}
        told["parent"] = {"source": self.metadata.get("source"), "fingerprint": fingerprint(self)}
        metadata = self.metadata | {"provenance": [*self.metadata.get("provenance", []), told]}
        return OfflineDataset(renumber(self.data[rows.to(self.device)], lengths), self.spec, metadata, check=False)

    @checked
    def split(
        self, *, fraction: Annotated[float, OPEN_UNIT], seed: Annotated[int, SEED]
    ) -> tuple[OfflineDataset, OfflineDataset]:
        """Split by episode into ``(train, held_out)``; episodes keep their order, the provenance says what was done.

        Args:
            fraction: share of the episodes that is held out, in (0, 1); at least one episode stays on either side.
            seed: seed of the permutation that chooses them.
        """
        if self.n_episodes < 2:
            raise ValueError(f"split needs two episodes or more, got {self.n_episodes}.")
        n_held_out = min(max(round(fraction * self.n_episodes), 1), self.n_episodes - 1)
        order = torch.randperm(self.n_episodes, generator=torch.Generator().manual_seed(seed))
        held_out = torch.zeros(self.n_episodes, dtype=torch.bool)
        held_out[order[:n_held_out]] = True
        how = {"step": "split", "fraction": fraction, "seed": seed}
        return (
            self.select_episodes(~held_out, step=how | {"part": "train"}),
            self.select_episodes(held_out, step=how | {"part": "held_out"}),
        )

    # Device, disk, buffers

    @property
    def device(self) -> torch.device:
        """Where the data lies."""
        return self.data.get(TRAJ_IDS).device

    def to(self, device: torch.device | str) -> OfflineDataset:
        """Return the dataset with its data on ``device``."""
        return OfflineDataset(self.data.to(device), self.spec, self.metadata, check=False)

    @checked
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder that :meth:`load` and ``load_dataset`` read; see :func:`storage.save`.

        Where the dataset was inspected (:attr:`inspection`), the findings are written too, and ``load_dataset`` warns
        of them without another look; else it inspects what it loads.
        """
        metadata = dict(self.metadata)
        if self.inspection is not None:
            metadata["inspection"] = self.inspection.to_dict()
        return storage.save(user_path(path), self.data, self.spec, metadata, overwrite=overwrite)

    @classmethod
    @checked
    def load(cls, path: str | Path, *, device: torch.device | str | None = None, verify: bool = True) -> OfflineDataset:
        """Read a folder that :meth:`save` wrote; says nothing of what is in it, ``load_dataset`` warns.

        Writing into the tensors of a memory-mapped dataset in place would write into its files: clone first.

        Args:
            path: the folder.
            device: where to put the data; by default it stays memory-mapped.
            verify: whether to compare every file with its checksum, and every value with what the stored inspection
                says; sizes, and the values of some rows, are always compared. See :mod:`~.stored_values`.
        """
        data, spec, metadata = storage.load(user_path(path), verify=verify)
        with reading(path):
            check_metadata(metadata)
            found = metadata.pop("inspection", None)
            dataset = cls(data, spec, metadata, check=False)
            told = None if found is None else Inspection.from_dict(found)
            if told is not None and agrees(dataset, told, whole=verify):
                dataset.inspection = told
        if device is not None:
            dataset.data = data.to(device)
        return dataset

    @checked
    def replay_buffer(
        self,
        *,
        batch_size: Annotated[int, SIZE],
        device: torch.device | str | None = None,
        slice_len: Annotated[int | None, SIZE] = None,
        burn_in: Annotated[int | None, SIZE_OR_NONE, ReadWith("slice_len", given=True)] = None,
        short_episodes: Literal["pad", "drop"] = "pad",
        seed: Annotated[int | None, SEED] = None,
        keys: Sequence[NestedKey] | None = None,
        prefetch: Annotated[int | None, PREFETCH] = None,
    ) -> TensorDictReplayBuffer:
        """Return a buffer that samples from this dataset; see :func:`~.buffers.make_replay_buffer`."""
        return make_replay_buffer(
            self.data,
            batch_size=batch_size,
            device=device,
            slice_len=slice_len,
            burn_in=burn_in,
            short_episodes=short_episodes,
            seed=seed,
            keys=keys,
            prefetch=prefetch,
        )


def renumber(data: TensorDictBase, lengths: torch.Tensor) -> TensorDictBase:
    """Return ``data`` with episode ids 0..E-1 for episodes of the given lengths, ``[E]``."""
    data = data.copy() if not data.is_locked else TensorDict(dict(data.items()), data.batch_size)
    ids = torch.arange(len(lengths)).repeat_interleave(lengths)
    collector = data.get("collector").copy()
    collector.set(TRAJ_IDS[1], ids.to(data.get(TRAJ_IDS).device))
    return data.set("collector", collector)


def concatenate(datasets: Sequence[OfflineDataset], *, metadata: dict[str, Any] | None = None) -> OfflineDataset:
    """Put datasets of one task end to end.

    Args:
        datasets: one or more, with equal sizes and the same leaves.
        metadata: of the result; by default the parts' metadata under ``"parts"``.

    Raises:
        DatasetError: the sizes or the leaves of two datasets differ.
    """
    if not datasets:
        raise ValueError("concatenate needs at least one dataset.")
    first = datasets[0]
    keys = set(first.data.keys(include_nested=True, leaves_only=True))
    for number, other in enumerate(datasets[1:], 1):
        if other.spec != first.spec:
            raise DatasetError(f"Dataset {number} has {other.spec}, but the first has {first.spec}; they must agree.")
        difference = keys ^ set(other.data.keys(include_nested=True, leaves_only=True))
        if difference:
            raise DatasetError(
                f"{', '.join(map(repr, sorted(difference, key=str)))} is in only one of dataset 0 and dataset "
                f"{number}; exclude it there first."
            )
    lengths = torch.cat([dataset.episode_lengths for dataset in datasets])
    data = renumber(torch.cat([dataset.data for dataset in datasets]), lengths)
    if metadata is None:
        metadata = {"source": "concatenate", "parts": [dict(dataset.metadata) for dataset in datasets]}
    return OfflineDataset(data, first.spec, metadata, check=False)
