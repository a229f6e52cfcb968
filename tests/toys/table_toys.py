"""Small logs whose every value is known, as columns, and writers of the three kinds of files."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def long_log(lengths: tuple[int, ...] = (3, 2), agents: tuple[Any, ...] = ("a", "b"), **more: Any) -> dict[str, list]:
    """Episode e, step t, agent i: observation (e, t + i / 10), action t / 10 - i / 100, reward t + i.

    Episodes of even numbers terminate, the others time out. ``more`` replaces columns, ``None`` takes one away.
    """
    rows = [(e, t, i) for e, length in enumerate(lengths) for t in range(length) for i in range(len(agents))]
    last = [t == lengths[e] - 1 for e, t, _ in rows]
    columns: dict[str, Any] = {
        "episode": [e for e, _, _ in rows],
        "step": [t for _, t, _ in rows],
        "agent": [agents[i] for *_, i in rows],
        "obs_x": [float(e) for e, _, _ in rows],
        "obs_y": [t + i / 10 for _, t, i in rows],
        "action": [t / 10 - i / 100 for _, t, i in rows],
        "reward": [float(t + i) for _, t, i in rows],
        "terminated": [end and e % 2 == 0 for end, (e, *_) in zip(last, rows)],
        "truncated": [end and e % 2 == 1 for end, (e, *_) in zip(last, rows)],
    }
    return {name: values for name, values in (columns | more).items() if values is not None}


def wide_log(lengths: tuple[int, ...] = (3, 2), n: int = 2, **more: Any) -> dict[str, list]:
    """The same log with one row for each step: columns ``robot_0_obs_x`` and so on."""
    rows = [(e, t) for e, length in enumerate(lengths) for t in range(length)]
    columns: dict[str, Any] = {"episode": [e for e, _ in rows], "step": [t for _, t in rows]}
    for i in range(n):
        columns[f"robot_{i}_obs_x"] = [float(e) for e, _ in rows]
        columns[f"robot_{i}_obs_y"] = [t + i / 10 for _, t in rows]
        columns[f"robot_{i}_action"] = [t / 10 - i / 100 for _, t in rows]
        columns[f"robot_{i}_reward"] = [float(t + i) for _, t in rows]
    last = [t == lengths[e] - 1 for e, t in rows]
    columns["terminated"] = [end and e % 2 == 0 for end, (e, _) in zip(last, rows)]
    columns["truncated"] = [end and e % 2 == 1 for end, (e, _) in zip(last, rows)]
    return {name: values for name, values in (columns | more).items() if values is not None}


def rows_of(columns: Mapping[str, list], order: list[int]) -> dict[str, list]:
    """Return some rows of a log, in another order, or twice."""
    return {name: [values[row] for row in order] for name, values in columns.items()}


def without_rows(columns: Mapping[str, list], *rows: int) -> dict[str, list]:
    """Return a log without some rows."""
    length = len(next(iter(columns.values())))
    return rows_of(columns, [row for row in range(length) if row % length not in {one % length for one in rows}])


def write_table(path: Path, columns: Mapping[str, Any]) -> Path:
    """Write columns as what the path's ending says; ``None`` is an empty cell, in npz NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".parquet"):
        pa, pq = _pyarrow()
        pq.write_table(pa.table({name: pa.array(list(values)) for name, values in columns.items()}), path)
    elif path.name.endswith(".npz"):
        filled = {name: [np.nan if one is None else one for one in values] for name, values in columns.items()}
        np.savez(path, **{name: np.array(values) for name, values in filled.items()})
    else:
        with gzip.open(path, "wt", newline="") if path.name.endswith(".gz") else path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values()))
    return path


def _pyarrow() -> tuple[Any, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa, pq
