"""Reader of OMIGA's HDF5 files (MA-MuJoCo): one time axis, arrays ``s``, ``o``, ``a``, ``r`` and ``d``.

==========  ==========================  ================================================================
array       shape                       meaning
==========  ==========================  ================================================================
``o``       ``[R, n, o]``               observations, z-scored per vector by the writer
``s``       ``[R, n, s]``, ``[R, s]``   state, one copy per agent
``a``       ``[R, n, a]``               actions in [-1, 1]
``r``       ``[R]``, ``[R, 1|n]``       reward, of the team or per agent
``d``       ``[R]``, ``[R, 1|n]``       set on the row that holds an episode's last observation
==========  ==========================  ================================================================

ReadRows are in time order and the next row is the next step. A row with ``d`` set starts no transition: it is the next
state of the row before, which ended the episode; so the authors' own loader reads it (``datasets/offline_dataset.py``
of ZhengYinan-AIR/OMIGA). An agent whose ``d`` is set before the others' is dead from that row on. Episodes of 1,000
transitions were stopped by the time limit, but are marked like the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import BOUNDS, COUNT, REAL
from torchrl_marl_offline.data.formats.content import Content
from torchrl_marl_offline.data.formats.hdf5 import check_arrays, open_hdf5
from torchrl_marl_offline.data.formats.streaming import (
    REWARD_FIELD,
    BadRows,
    ReadRows,
    RowStream,
    as_float,
    ends_at_time_limit,
    one_state,
    sample_rows,
)
from torchrl_marl_offline.data.transitions.agent_ends import AgentEnds, dead_agents_finding
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading
from torchrl_marl_offline.data.transitions.rounding import Rounding
from torchrl_marl_offline.data.transitions.values import flag_array, is_index_like

if TYPE_CHECKING:
    from collections.abc import Callable

    import h5py

FIELDS = ("s", "o", "a", "r", "d")
_ROWS_OF_FLAGS = 2**18


ARRAYS = frozenset(FIELDS)
"""What tells the format."""


def recognise(content: Content) -> Path | None:
    """Return the path that :func:`read_omiga_h5` wants, or None where it is of another format."""
    return content.path if content.arrays >= ARRAYS else None


def read_omiga_h5(path: str | Path, **options: Any) -> OfflineDataset:
    """Read a file into memory; see :func:`open_omiga_h5` for the options."""
    with reading(path):
        return open_omiga_h5(path, **options).to_dataset()


@checked
def open_omiga_h5(
    path: str | Path,
    *,
    task: str | None = None,
    action_bounds: Annotated[tuple[Bound, Bound], REAL, BOUNDS] = (-1.0, 1.0),
    time_limit: Annotated[int | None, COUNT] = 1000,
) -> RowStream:
    """Open one of OMIGA's HDF5 files for reading in blocks.

    Args:
        path: the file.
        task: name for the spec.
        action_bounds: lower and upper bound of every component of an action.
        time_limit: an episode of exactly so many transitions is read as truncated, with its true last observation.

    Raises:
        DatasetError: the file is not of this format, is cut short, or its arrays do not fit together.
        ImportError: h5py is not installed.
    """
    path = user_path(path)
    with reading(path):
        file = open_hdf5(path, "OMIGA")
        missing = [name for name in FIELDS if name not in file]
        if missing:
            raise DatasetError(
                f"{path} lacks {', '.join(missing)} (it has {', '.join(sorted(file)) or 'nothing'}); it is not an "
                "OMIGA file, or not a whole one: use the reader of its format or fetch it again."
            )
        check_arrays(file, FIELDS)
        _check_shapes(path, {name: tuple(file[name].shape) for name in FIELDS})
        if is_index_like(file["a"].dtype):
            raise DatasetError(
                f"{path} has actions of type {file['a'].dtype}, but OMIGA's format holds continuous ones; pass its "
                "arrays to from_arrays(), with n_actions= if they are indices."
            )
        _, agents, size = file["o"].shape

        rounding = Rounding()

        def rows(name: str, convert: Callable[[np.ndarray], torch.Tensor]) -> ReadRows:
            return lambda start, stop: convert(rounding.seen(file[name][start:stop], name))

        def reward(values: np.ndarray) -> torch.Tensor:
            return as_float(values).reshape(len(values), -1, 1).expand(-1, agents, 1).contiguous()

        findings: list[str] = []
        ended, living = _team_flags(file["d"], agents, findings)
        terminated, truncated, final = _ends(ended, time_limit, findings)
        bad = BadRows()
        sample = sample_rows(lambda start, stop: file["s"][start:stop], len(file["s"]))
        state_size, state = one_state(sample, findings, bad)
        fields = {
            OBSERVATION: rows("o", as_float),
            ACTION: rows("a", as_float),
            STATE: lambda start, stop: state(rounding.seen(file["s"][start:stop], "s"), start),
            REWARD_FIELD: rows("r", reward),
        }
        low, high = action_bounds
        spec = TaskSpec(agents, size, state_size, file["a"].shape[2], action_low=low, action_high=high, task=task)
        metadata = {"source": f"omiga_h5:{path}", "task": task, "time_limit": time_limit, "findings": findings}
        metadata["observations"] = "z-scored per vector by the writer"
        metadata["team_reward"] = file["r"].size == len(file["r"])
        return RowStream(
            spec, fields, terminated, truncated, metadata, final=final, bad=bad, living=living, rounding=rounding
        )


def _check_shapes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    o = shapes["o"]
    if len(o) != 3 or o[0] < 2:
        raise DatasetError(f"{path} has o of shape {o} instead of [R, n, o] with two rows or more; fetch it again.")
    length, agents = o[:2]
    flags = {(length,), (length, 1), (length, agents), (length, agents, 1)}
    a, s = shapes["a"], shapes["s"]
    fits = (
        a[:2] == (length, agents)
        and len(a) == 3
        and shapes["r"] in flags
        and shapes["d"] in flags
        and (s[:2] == (length, agents) if len(s) == 3 else len(s) == 2 and s[0] == length)
    )
    if not fits:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise DatasetError(f"{path} has arrays that do not fit together ({found}); fetch it again.")


def _team_flags(flags: h5py.Dataset, n_agents: int, findings: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return ``[R]`` bool, the rows with episodes' last observations, and ``[R, n]`` which agents live (None: all).

    A block at a time, the flags are stored as 8-byte numbers. An agent's own flag stands on the row of its own last
    observation, where it acts no more.
    """
    parts, ends = [], AgentEnds(n_agents)
    for start in range(0, len(flags), _ROWS_OF_FLAGS):
        block = flag_array(flags[start : start + _ROWS_OF_FLAGS], "d", start)
        block = np.broadcast_to(block.reshape(len(block), -1), (len(block), n_agents))
        ended, _, dead = ends.add(block, np.zeros_like(block))
        parts.append((ended, ~(dead | (block & ~ended[:, None]))))
    ended, living = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts))
    if living.all():
        return ended, None
    findings.append(dead_agents_finding(int((~living).sum())))
    return ended, living


def _ends(
    ended: torch.Tensor, time_limit: int | None, findings: list[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``terminated``, ``truncated`` and ``final``, ``[R]`` bool each."""
    final = ended.clone()
    if not final[-1]:
        final[-1] = True
        findings.append("the file ends within an episode; its last row is read as that episode's last observation")
    before = torch.zeros_like(final)
    before[:-1] = final[1:]
    kept = ~final
    terminated = torch.zeros_like(final)
    terminated[:-1] = ended[1:]
    terminated, truncated = terminated & kept, before & kept
    truncated &= ~terminated
    if not kept.any():
        raise DatasetError("holds no transition: d is set on every row; fetch it again.")
    short = (terminated[kept], truncated[kept])
    ends_at_time_limit(*short, time_limit, findings)
    terminated[kept], truncated[kept] = short
    return terminated, truncated, final
