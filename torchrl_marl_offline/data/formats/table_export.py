"""Writer of tables: a dataset as one Parquet file, a row for each step; :mod:`~.table_reader` reads it bit for bit.

Each agent has columns of its own, ``agent_0_observation`` and so on; what has several numbers is a list. What follows a
row stands there only where the next row of its episode does not say it. The column map, the task's sizes and what is
told of the environment and the license stand in the file's own metadata.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchrl_marl_offline.core.callers import outside
from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_LOG_PROB,
    ACTION_MASK,
    AGENT_MASK,
    HAS_NEXT_ACTION,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TERMINATED,
    TRAJ_IDS,
    TRUNCATED,
    TaskSpec,
    joined,
    next_key,
)
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.data.formats.table_reader import NOTED
from torchrl_marl_offline.data.transitions.assembly import legal_placeholder, shift
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetWarning
from torchrl_marl_offline.data.transitions.validation import expected_leaves, optional_leaves

if TYPE_CHECKING:
    from tensordict import NestedKey

_ROWS = 2**16
_FOLLOWING = {OBSERVATION: "next_observation", STATE: "next_state", ACTION_MASK: "next_action_mask"}


def write_table(dataset: OfflineDataset, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a dataset as a Parquet file.

    Args:
        dataset: what to write.
        path: the file, ``*.parquet``.
        overwrite: whether to replace a file that is there.

    Raises:
        FileExistsError: there is something at ``path``.
        ImportError: pyarrow is not installed.
        ValueError: the path has another ending.

    Warns:
        DatasetWarning: the data have keys of the user's own, which no table keeps.
    """
    path = user_path(path)
    if path.suffix.lower() not in (".parquet", ".pq"):
        raise ValueError(f"{path} does not end in .parquet; name the file so.")
    if path.exists() and (path.is_dir() or not overwrite):
        remedy = "choose another file" if path.is_dir() else "pass overwrite=True or choose another file"
        raise FileExistsError(f"{path} already exists; {remedy}.")
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            "Writing Parquet files needs pyarrow; install it with pip install 'torchrl-marl-offline[tables]'."
        ) from error
    left_out(dataset, expected_leaves(dataset.spec) | optional_leaves(dataset.spec), "a table")
    writer = _Columns(dataset)
    notes = json.dumps({"columns": writer.map(), "metadata": _noted(dataset.metadata)})
    schema = writer.block(0, 1).schema.with_metadata({"torchrl_marl_offline": notes})
    with replacing_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as file:
        for start in range(0, len(dataset), _ROWS):
            batch = writer.block(start, min(start + _ROWS, len(dataset)))
            file.write_table(pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata))
    return path.absolute()


def left_out(dataset: OfflineDataset, kept: Any, what: str) -> None:
    """Warn of leaves that a format does not keep."""
    others = [key for key in dataset.data.keys(include_nested=True, leaves_only=True) if key not in kept]
    if others:
        told = ", ".join(joined(key) for key in others[:6])
        warnings.warn(f"{told}: {what} does not keep this; save the dataset as a folder.", DatasetWarning, outside())


def _noted(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: metadata[name] for name in NOTED if name in metadata}


class _Columns:
    """The columns of a dataset, some rows at a time."""

    def __init__(self, dataset: OfflineDataset) -> None:
        self.data, self.spec = dataset.data, dataset.spec
        self.length = len(dataset)
        self.starts = dataset.episode_starts
        named = dataset.metadata.get("agent_names")
        self.agents = _names(named, self.spec)
        self.present = set(self.data.keys(include_nested=True, leaves_only=True))
        self.has_state = not self._state_is_joined()
        self.tells_next_action = self._tells_next_action()

    def map(self) -> dict[str, Any]:
        """Return the column map."""
        own = "{agent}_"
        found: dict[str, Any] = {"episode": "episode", "time": "step", "agents": self.agents}
        found |= {"observations": own + "observation", "actions": own + "action", "reward": own + "reward"}
        found |= {"terminal": "terminated", "timeout": "truncated", "counts": "counts", "gaps": "ignore"}
        found |= {"next_observations": own + "next_observation", "next_actions": own + "next_action"}
        if self.has_state:
            found |= {"state": "state", "next_state": "next_state"}
        if self.spec.has_action_mask:
            found |= {"action_mask": own + "action_mask", "next_action_mask": own + "next_action_mask"}
        if AGENT_MASK in self.present:
            found |= {"mask": own + "mask", "next_mask": own + "next_mask"}
        if ACTION_LOG_PROB in self.present:
            found["action_log_prob"] = own + "action_log_prob"
        if next_key(SUCCESS) in self.present:
            found["success"] = "success"
        if self.tells_next_action:
            found["has_next_action"] = "has_next_action"
        found["discrete"] = self.spec.discrete
        if self.spec.discrete:
            found["n_actions"] = self.spec.action_size
        else:
            found["action_bounds"] = [self.spec.action_low, self.spec.action_high]
        return found | ({} if self.spec.task is None else {"task": self.spec.task})

    def block(self, start: int, stop: int) -> Any:
        """Return the rows from ``start`` to ``stop`` as a record batch."""
        import pyarrow as pa

        rows = self._rows(start, stop)
        episode = rows[TRAJ_IDS]
        columns = {"episode": pa.array(episode.numpy())}
        step = (
            torch.arange(start, stop)
            - self.starts[torch.searchsorted(self.starts, torch.arange(start, stop), right=True) - 1]
        )
        columns["step"] = pa.array(step.numpy())
        for name, key in (("terminated", next_key(TERMINATED)), ("truncated", next_key(TRUNCATED))):
            columns[name] = pa.array(rows[key][:, 0].numpy())
        columns["counts"] = pa.array(rows[MASK].numpy())
        if self.tells_next_action:
            columns["has_next_action"] = pa.array(rows[HAS_NEXT_ACTION].numpy())
        if next_key(SUCCESS) in self.present:
            columns["success"] = pa.array(rows[next_key(SUCCESS)][:, 0].numpy())
        if self.has_state:
            columns |= {"state": _list(rows[STATE]), "next_state": _list(*self._following(STATE, start, stop))}
        for agent, name in enumerate(self.agents):
            columns |= {f"{name}_{part}": values for part, values in self._of_agent(rows, agent).items()}
        self._add_following(columns, rows, start, stop)
        return pa.RecordBatch.from_pydict(columns)

    def _of_agent(self, rows: dict[NestedKey, torch.Tensor], agent: int) -> dict[str, Any]:
        import pyarrow as pa

        action = rows[ACTION][:, agent]
        found = {
            "observation": _list(rows[OBSERVATION][:, agent]),
            "action": pa.array(action.numpy()) if self.spec.discrete else _list(action),
            "reward": pa.array(rows[next_key(REWARD)][:, agent, 0].numpy()),
        }
        if self.spec.has_action_mask:
            found["action_mask"] = _list(rows[ACTION_MASK][:, agent])
        if AGENT_MASK in self.present:
            found["mask"] = pa.array(rows[AGENT_MASK][:, agent].numpy())
            found["next_mask"] = pa.array(rows[next_key(AGENT_MASK)][:, agent].numpy())
        if ACTION_LOG_PROB in self.present:
            found["action_log_prob"] = pa.array(rows[ACTION_LOG_PROB][:, agent].numpy())
        return found

    def _add_following(
        self, columns: dict[str, Any], rows: dict[NestedKey, torch.Tensor], start: int, stop: int
    ) -> None:
        import pyarrow as pa

        for key in (OBSERVATION, *((ACTION_MASK,) if self.spec.has_action_mask else ())):
            values, differs = self._following(key, start, stop)
            for agent, name in enumerate(self.agents):
                columns[f"{name}_{_FOLLOWING[key]}"] = _list(values[:, agent], differs[:, agent])
        values, told = self._next_actions(rows, start, stop)
        for agent, name in enumerate(self.agents):
            one = values[:, agent]
            columns[f"{name}_next_action"] = (
                pa.array(one.numpy(), mask=(~told).numpy()) if self.spec.discrete else _list(one, told)
            )

    def _rows(self, start: int, stop: int) -> dict[NestedKey, torch.Tensor]:
        keys = [key for key in self.present if self.has_state or key not in (STATE, next_key(STATE))]
        return {key: self._values(key, start, stop) for key in keys}

    def _values(self, key: NestedKey, start: int, stop: int) -> torch.Tensor:
        return self.data.get(key)[start:stop].as_subclass(torch.Tensor).cpu().contiguous()

    def _shifted(self, key: NestedKey, start: int, stop: int) -> torch.Tensor:
        """Return the values of the rows that follow, those of its own where a row is its episode's last."""
        ahead = min(stop + 1, self.length)
        last = self._values(next_key("done"), start, ahead)[:, 0].clone()
        last[-1] = True
        return shift(self._values(key, start, ahead), last)[: stop - start]

    def _following(self, key: NestedKey, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next values, and where they are not what the next row says."""
        values, shifted = self._values(next_key(key), start, stop), self._shifted(key, start, stop)
        return values, (_bits(values) != _bits(shifted)).any(-1)

    def _next_actions(
        self, rows: dict[NestedKey, torch.Tensor], start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next actions, and ``[rows]`` where they have to be told."""
        values, done = rows[next_key(ACTION)], rows[next_key("done")][:, 0]
        placeholder = legal_placeholder(rows[ACTION], rows.get(next_key(ACTION_MASK)))
        shifted = self._shifted(ACTION, start, stop)
        usual = torch.where(done.reshape(-1, *[1] * (values.ndim - 1)), placeholder, shifted)
        return values, (_bits(values) != _bits(usual)).flatten(1).any(-1) | (done & rows[HAS_NEXT_ACTION])

    def _all(self, holds: Callable[[int, int], bool]) -> bool:
        return all(holds(start, min(start + _ROWS, self.length)) for start in range(0, self.length, _ROWS))

    def _state_is_joined(self) -> bool:
        """Say whether the state is the joint observation, here and next, which need not be written twice."""
        if self.spec.state_size != self.spec.n_agents * self.spec.observation_size:
            return False

        def same(start: int, stop: int) -> bool:
            return all(
                torch.equal(_bits(self._values(one, start, stop)), _bits(self._values(other, start, stop).flatten(1)))
                for one, other in ((STATE, OBSERVATION), (next_key(STATE), next_key(OBSERVATION)))
            )

        return self._all(same)

    def _tells_next_action(self) -> bool:
        """Say whether the flag of a next action is not what the table's other columns say."""

        def usual(start: int, stop: int) -> bool:
            rows = self._rows(start, stop)
            told = self._next_actions(rows, start, stop)[1]
            return torch.equal(rows[HAS_NEXT_ACTION], ~rows[next_key("done")][:, 0] | told)

        return not self._all(usual)


def _names(given: Any, spec: TaskSpec) -> list[str]:
    """Return the agents' names, or numbers where columns of such names could be mistaken for each other."""
    numbered = [f"agent_{number}" for number in range(spec.n_agents)]
    if not (isinstance(given, list) and len(given) == spec.n_agents and all(isinstance(name, str) for name in given)):
        return numbered
    plain = all(name.isidentifier() and "next" not in name for name in given)
    return given if plain and len(set(given)) == len(given) else numbered


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int32) if values.dtype == torch.float32 else values


def _list(values: torch.Tensor, told: torch.Tensor | None = None) -> Any:
    """Return ``[rows, k]`` as lists, of which those are empty that need not be told."""
    import pyarrow as pa

    mask = None if told is None else pa.array((~told).numpy())
    flat = pa.array(np.ascontiguousarray(values.numpy()).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=mask)
