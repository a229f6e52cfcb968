"""``load_dataset``: one name for every source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound
from torchrl_marl_offline.core.extensions import import_room
from torchrl_marl_offline.core.files import staged, writing
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import BOUNDS, REAL
from torchrl_marl_offline.data.formats.minari_export import write_minari
from torchrl_marl_offline.data.formats.readers import OWN, READERS, recognised
from torchrl_marl_offline.data.formats.streaming import RowStream
from torchrl_marl_offline.data.formats.table_export import write_table
from torchrl_marl_offline.data.hub import HUB, load_from_hub
from torchrl_marl_offline.data.published.caching import load_published
from torchrl_marl_offline.data.published.cards import SOURCES
from torchrl_marl_offline.data.quality.inspected_writing import save_inspected
from torchrl_marl_offline.data.quality.inspection import inspected
from torchrl_marl_offline.data.quality.loading import load_inspected
from torchrl_marl_offline.data.quality.repair_steps import STEPS
from torchrl_marl_offline.data.quality.repairs import repair as mend
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import value_checks_deferred
from torchrl_marl_offline.data.transitions.findings import Inspection

import_room("torchrl_marl_offline.data.formats")


@checked
def load_dataset(
    source: str | Path,
    *,
    repair: bool = False,
    strict: bool = False,
    inspect: bool = True,
    codes: Sequence[str] | None = None,
    bounds: Annotated[Literal["data"] | tuple[Bound, Bound] | None, REAL, BOUNDS] = None,
    **options: Any,
) -> OfflineDataset:
    """Load a dataset, and warn of what is wrong with it.

    Args:
        source: a published set, ``"og_marl:smac_v1/3m/Good"`` (:func:`list_datasets` names them all), which is fetched
            and converted the first time; ``"hf:OWNER/NAME"`` or ``"hf:OWNER/NAME@REVISION"``, what
            :func:`~torchrl_marl_offline.push_dataset` published; or a file or folder, whose format its content tells:
            the folder that :meth:`OfflineDataset.save` or :func:`convert_dataset` wrote, or one of the formats that may
            also be named, ``"pymarl:FILE"``, ``"vault:FOLDER"``, ``"omiga_h5:FILE"``, ``"omar_npy:FOLDER"``,
            ``"minari:FOLDER_OR_ID"``, ``"d4rl:FILE"``, or logs of your own, ``"table:FILE_OR_FOLDER"``.
        repair: mend what can be mended; see :func:`~.loading.load_inspected`.
        strict: refuse what is not clean.
        inspect: whether to say what inspection finds. A folder says what it was found to hold when it was written, and
            is believed where a look at its values agrees; the other formats are looked through after reading, which
            takes about half a second for a million rows.
        codes: with ``repair``, which findings to mend, as of :func:`~.repairs.repair`.
        bounds: other bounds of continuous actions than the source's, such as ``"data"``, the range of what was
            recorded; see :meth:`OfflineDataset.with_bounds`.
        options: those of :func:`~.caching.load_published`, :func:`~.hub.load_from_hub`, of the format's reader, or of
            :meth:`OfflineDataset.load`.

    Raises:
        HubError: a dataset of the hub cannot be had.
        DatasetError: the source is unknown, or what is there is not what it should be.
        ValueError: ``repair`` or ``strict`` without inspection, ``codes`` without ``repair``, or an unknown code.

    Warns:
        DatasetWarning: one for each error or warning that inspection finds.
    """
    _check_codes(codes, repair)
    read = partial(_load, source, **options) if bounds is None else partial(_load_within, bounds, source, **options)
    if inspect:
        return load_inspected(source, read, repair=repair, strict=strict, codes=codes)
    if repair or strict:
        raise ValueError("repair=True and strict=True need what inspection finds; leave inspect=False out.")
    return read()


@checked
def inspect_source(
    source: str | Path, read: Callable[[], OfflineDataset] | None = None
) -> tuple[Inspection, OfflineDataset | None]:
    """Read a source without the checks of its values, and inspect it.

    Args:
        source: as for :func:`load_dataset`.
        read: how to read it; by default ``load_dataset(source)``.

    Returns:
        The inspection, and the dataset as it was read: unchecked, and ``None`` where the reader failed.
    """
    return inspected(source, partial(load_dataset, source) if read is None else read)


def _check_codes(codes: Sequence[str] | None, repair: bool) -> None:
    if codes is None:
        return
    if not repair:
        raise ValueError("codes= says what to repair; pass repair=True too.")
    if isinstance(codes, str) or set(codes) - STEPS.keys():
        raise ValueError(f"codes must be a list of findings that can be repaired, got {codes!r}: {', '.join(STEPS)}.")


def _load(source: str | Path, **options: Any) -> OfflineDataset:
    prefix, place = resolved(source)
    if prefix in SOURCES:
        return load_published(place, **options)
    if prefix == HUB:
        return load_from_hub(place, **options)
    if prefix in READERS:
        return READERS[prefix].read(place, **options)
    return OfflineDataset.load(place, **options)


def _load_within(bounds: Any, source: str | Path, **options: Any) -> OfflineDataset:
    """Load a source whose actions need not lie within its own bounds."""
    with value_checks_deferred():
        dataset = _load(source, **options)
    return dataset.with_bounds(bounds)


def resolved(source: str | Path) -> tuple[str, str]:
    """Return the format of a source, or its publisher, and the path or name that the reader wants."""
    prefix, colon, rest = str(source).partition(":")
    if colon and prefix in SOURCES:
        return prefix, str(source)
    if colon and prefix == HUB:
        return prefix, rest
    if colon and prefix in READERS:
        return prefix, str(user_path(rest))
    prefix, path = recognised(user_path(source))
    return prefix, str(path)


@checked
def convert_dataset(
    source: str | Path,
    path: str | Path,
    *,
    repair: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    codes: Sequence[str] | None = None,
    **options: Any,
) -> Path:
    """Write any source as a dataset folder, which loads at once and memory-mapped.

    Vaults, OMIGA's files and OMAR's folders pass through memory in blocks; the other formats are read whole. What
    inspection finds is written, too: :func:`load_dataset` warns of it.

    Args:
        source: what :func:`load_dataset` takes.
        path: the folder to create; it is there whole or not at all.
        repair: mend what can be mended; see :func:`~.repairs.repair`. What passes in blocks is written twice.
        overwrite: whether to replace a dataset that is there.
        progress: show a bar on a terminal.
        codes: with ``repair``, which findings to mend, as of :func:`~.repairs.repair`.
        options: of the source's reader.
    """
    _check_codes(codes, repair)
    prefix, place = resolved(source)
    path = user_path(path)
    if prefix == OWN and Path(place).resolve() in path.resolve().parents:
        raise ValueError(f"{path} lies inside of its source {place}; choose a folder beside it.")
    if prefix in SOURCES:
        options["progress"] = progress
    if repair:
        switches = {"overwrite": overwrite, "progress": progress, "codes": codes}
        return _convert_repaired(source, path.absolute(), **switches, **options)
    if (open_stream := _stream(prefix)) is not None:
        return open_stream(place, **options).write(path, overwrite=overwrite, progress=progress)
    return save_inspected(_load(source, **options), path, overwrite=overwrite)


_NOT_WRITTEN = (
    ".csv",
    ".tsv",
    ".gz",
    ".npz",
    ".npy",
    ".h5",
    ".hdf5",
    ".json",
    ".txt",
    ".zip",
    ".pt",
    ".feather",
    ".arrow",
)
"""Endings of files that :func:`export_dataset` would otherwise make folders of."""


@checked
def export_dataset(
    dataset: OfflineDataset | str | Path,
    path: str | Path,
    *,
    format: Literal["parquet", "minari"] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a dataset in a form that others read: a Parquet table, or a Minari dataset of one agent.

    ``load_dataset(path)`` reads either again: the same rows, bit for bit, of the keys that the format keeps.

    Args:
        dataset: a dataset, or what :func:`load_dataset` takes.
        path: the file ``*.parquet`` or, for Minari, the folder to create.
        format: by default Parquet where the path ends in ``.parquet``, else Minari.
        overwrite: whether to replace a Parquet file that is there.

    Raises:
        DatasetError: Minari has no place for what is in the dataset.
        FileExistsError: there is something at ``path``.
        ValueError: the path ends as that of a file of another format.

    Warns:
        DatasetWarning: the format does not keep some keys or rows.
    """
    path = user_path(path)
    if format is None and path.name.lower().endswith(_NOT_WRITTEN):
        raise ValueError(
            f"{path} is the name of a file that is not written; end it in .parquet, or pass format='minari'."
        )
    dataset = dataset if isinstance(dataset, OfflineDataset) else load_dataset(dataset)
    if format is None:
        format = "parquet" if path.suffix.lower() in (".parquet", ".pq") else "minari"
    if format == "minari":
        if overwrite:
            raise ValueError("overwrite=True is for Parquet files; remove the folder of a Minari dataset yourself.")
        return write_minari(dataset, path)
    return write_table(dataset, path, overwrite=overwrite)


def _convert_repaired(
    source: str | Path, path: Path, *, overwrite: bool, progress: bool, codes: Sequence[str] | None, **options: Any
) -> Path:
    prefix, place = resolved(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), staged(path, folder=True) as raw:
        with value_checks_deferred():
            if (open_stream := _stream(prefix)) is not None:
                open_stream(place, **options).write(raw / "raw", progress=progress)
                dataset = OfflineDataset.load(raw / "raw", verify=False)
            else:
                dataset = _load(source, **options)
        mend(dataset, codes=codes, path=path, overwrite=overwrite)
    return path


def _stream(prefix: str) -> Callable[..., RowStream] | None:
    """Return what opens a format that is converted block by block, or None."""
    return READERS[prefix].open if prefix in READERS else None
