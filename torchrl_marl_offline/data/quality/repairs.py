"""Repair of what inspection finds, block by block, so that a dataset need not fit into memory.

Each repair is a step that mends one block after another, some with a look at the block that follows; the steps are
chained in the order of :data:`~.repair_steps.STEPS`. Where a step has to know more of what the steps before it make of
the rows (which episodes meet a time limit, which are copies), that is found out by a pass over them before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from tensordict import TensorDict, TensorDictBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import MASK
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT
from torchrl_marl_offline.data.quality.inspected_writing import write_blocks
from torchrl_marl_offline.data.quality.inspection import inspection_of
from torchrl_marl_offline.data.quality.repair_steps import ON_REQUEST, STEPS, StepContext
from torchrl_marl_offline.data.quality.scan import Scan
from torchrl_marl_offline.data.transitions import bad_episodes, row_blocks
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, values_are_checked
from torchrl_marl_offline.data.transitions.findings import Inspection
from torchrl_marl_offline.data.transitions.validation import check_values


@checked
def repair(
    dataset: OfflineDataset,
    inspection: Inspection | None = None,
    *,
    codes: Sequence[str] | None = None,
    episode_length: Annotated[int | None, COUNT] = None,
    path: str | Path | None = None,
    overwrite: bool = False,
) -> OfflineDataset:
    """Return a new dataset in which the findings are mended; the given one stays as it is.

    What was done stands in the metadata under ``"repairs"``, one sentence each, and in the provenance. The copy lies in
    memory, or memory-mapped in the folder ``path``. Then memory holds some blocks of 16 MiB or less, 8 bytes for each
    row and about 50 for each episode, however large the dataset is; every repair can be made so.

    Args:
        dataset: what was inspected.
        inspection: of this dataset; made here by default.
        codes: which findings to mend; by default all of the table in :mod:`~.inspection` that need not be asked for.
        episode_length: cut ``done_never_set`` into episodes of that many steps.
        path: the folder to write; it is there whole or not at all.
        overwrite: whether to replace a dataset that is there.

    Raises:
        ValueError: a code has no repair, or ``episode_length`` does not divide the rows.
        DatasetError: what is left is not valid, or fewer than half of the rows that counted do: something is wrong that
            masks do not mend.
        FileExistsError: there is something at ``path`` that must not be replaced.
    """
    if unknown := set(codes or ()) - STEPS.keys():
        raise ValueError(f"There is no repair of {', '.join(sorted(unknown))}; there is of {', '.join(STEPS)}.")
    path = None if path is None else user_path(path)
    limit = dataset.metadata.get("time_limit")
    source = Scan.of(row_blocks.blocks(dataset.data), dataset.spec, len(dataset), time_limit=limit)
    inspection = inspection_of(source, dataset.metadata) if inspection is None else inspection
    wanted = set(STEPS) - ON_REQUEST if codes is None else set(codes)
    wanted = wanted | {"done_never_set"} if episode_length is not None else wanted - {"done_never_set"}
    chain = _Chain(dataset, source, episode_length)
    for code in STEPS:
        if code in wanted and code in inspection:
            chain.append(code)
    if path is None:
        data = _in_memory(chain.blocks(), chain.length).to(dataset.device)
        counts = int(data.get(MASK).sum())
        return OfflineDataset(data, chain.spec, chain.metadata(counts, ask="duplicated_episodes" in wanted))
    leaves = {
        key: (tuple(leaf.shape[1:]), leaf.dtype)
        for key, leaf in next(chain.blocks()).items(include_nested=True, leaves_only=True)
    }

    def metadata(scan: Scan) -> dict:
        if values_are_checked() and scan["episode_marks"].count:
            marks = inspection_of(scan, {})["episode_marks"]
            raise DatasetError(f"After the repair {marks.what} on {marks.rows} rows; {marks.remedy}.")
        return chain.metadata(scan.length - scan["masked_rows"].count, ask="duplicated_episodes" in wanted)

    write_blocks(
        path,
        chain.checked(),
        leaves,
        spec=chain.spec,
        length=chain.length,
        metadata=metadata,
        time_limit=limit,
        overwrite=overwrite,
    )
    return OfflineDataset.load(path, verify=False)


class _Chain:
    """The steps that were chosen, one behind the other."""

    def __init__(self, dataset: OfflineDataset, source: Scan, episode_length: int | None) -> None:
        self.dataset = dataset
        self.source = source
        self.episode_length = episode_length
        self.spec, self.length = dataset.spec, len(dataset)
        self.jobs: dict[str, StepContext] = {}

    def append(self, code: str) -> None:
        step, scan = STEPS[code], self.source
        bad = self.dataset.metadata.get(bad_episodes.KEY, [])
        if step.scans and self.jobs:
            scan = Scan.of(self.blocks(), self.spec, self.length, time_limit=scan.time_limit)
        self.jobs[code] = job = StepContext(self.spec, self.length, self.source, scan, self.episode_length, bad)
        if step.result is not None:
            self.spec, self.length = step.result(job)

    def blocks(self) -> Iterator[TensorDict]:
        """Pass over the mended rows."""
        parts = row_blocks.blocks(self.dataset.data, copy=True)
        for code, job in self.jobs.items():
            parts = STEPS[code].apply(parts, job)
        return parts

    def checked(self) -> Iterator[TensorDict]:
        """Pass over the mended rows, with the checks of their values."""
        start = 0
        for rows in self.blocks():
            if values_are_checked():
                check_values(rows, self.spec, start=start)
            start += len(rows)
            yield rows

    def metadata(self, left: int, *, ask: bool) -> dict:
        """Return the metadata after a pass.

        Args:
            left: rows that still count.
            ask: whether dropping rows was asked for.
        """
        done = [f"{code}: {STEPS[code].sentence.format_map(job.tally)}" for code, job in self.jobs.items()]
        counted = self.source.length - self.source["masked_rows"].count
        if 2 * left < counted and not ask:
            raise DatasetError(
                f"Repair would leave {left} of the {counted} rows that count ({'; '.join(done)}); mend the source, or "
                "name what to repair by codes=."
            )
        metadata = dict(self.dataset.metadata)
        if "bad_episode" in self.jobs:
            del metadata[bad_episodes.KEY]
        if done:
            metadata["repairs"] = [*metadata.get("repairs", []), *done]
            metadata["provenance"] = [*metadata.get("provenance", []), {"step": "repair", "done": done}]
        return metadata


def _in_memory(parts: Iterator[TensorDict], length: int) -> TensorDictBase:
    result, start = None, 0
    for rows in parts:
        if result is None:
            leaves = rows.items(include_nested=True, leaves_only=True)
            result = TensorDict({key: leaf.new_empty(length, *leaf.shape[1:]) for key, leaf in leaves}, [length])
        result[start : start + len(rows)] = rows
        start += len(rows)
    return result
