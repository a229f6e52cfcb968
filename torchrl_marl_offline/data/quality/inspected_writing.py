"""Writing a dataset's folder with what inspection finds, whole or block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict
from tqdm import tqdm

from torchrl_marl_offline.data.quality.inspection import inspect, inspection_of
from torchrl_marl_offline.data.quality.scan import Scan
from torchrl_marl_offline.data.transitions import storage
from torchrl_marl_offline.data.transitions.dataset_errors import values_are_checked

if TYPE_CHECKING:
    from tensordict import NestedKey

    from torchrl_marl_offline.core.layout import TaskSpec
    from torchrl_marl_offline.data.transitions.dataset import OfflineDataset


def save_inspected(dataset: OfflineDataset, path: str | Path, *, overwrite: bool = False) -> Path:
    """Inspect a dataset and write its folder with the findings: ``load_dataset`` warns of them without another look."""
    dataset.inspection = inspect(dataset)
    return dataset.save(path, overwrite=overwrite)


def write_blocks(
    path: str | Path,
    parts: Iterable[TensorDict],
    leaves: Mapping[NestedKey, tuple[tuple[int, ...], torch.dtype]],
    *,
    spec: TaskSpec,
    length: int,
    metadata: Callable[[Scan], dict[str, Any]],
    time_limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write the dataset folder that ``OfflineDataset.load`` reads, or nothing; see :func:`.storage.replacing`.

    The rows are inspected while they pass, and the findings are written too.

    Args:
        path: the folder to create.
        parts: the rows, block by block.
        leaves: shape and type of one row of each leaf.
        spec: the task's sizes.
        length: rows of all blocks together.
        metadata: called with the scan of all rows, after the last one.
        time_limit: steps after which the task stops an episode, or ``None``.
        overwrite: whether to replace a dataset that is there.
        progress: show a bar on a terminal.
    """
    shapes = {key: ((length, *row), dtype) for key, (row, dtype) in leaves.items()}
    scan = Scan(spec, length, time_limit=time_limit)
    with (
        storage.replacing(path, overwrite=overwrite) as folder,
        tqdm(total=length, unit="row", desc="convert", disable=None if progress else True) as bar,
    ):
        files = storage.lay_out(folder / storage.DATA_FOLDER, length, shapes)
        with ExitStack() as stack:
            streams = {key: stack.enter_context(file.open("wb", buffering=0)) for key, file in files.items()}
            for rows in parts:
                scan.add(rows)
                for key, stream in streams.items():
                    storage.append_rows(stream, rows.get(key))
                bar.update(len(rows))
        facts = metadata(scan.close()) | {"n_transitions": length, "n_episodes": len(scan.lengths)}
        facts |= {"values_checked": values_are_checked()}
        facts["inspection"] = inspection_of(scan, facts).to_dict()
        storage.seal(folder, shapes, spec, facts)
    return Path(path).absolute()
