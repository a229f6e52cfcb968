"""Datasets on disk: a memory-mapped TensorDict and ``metadata.json``, written as a whole or not at all.

``PATH/data`` is what ``TensorDict.memmap`` writes; ``PATH/metadata.json`` holds the format's version, the task's sizes,
the metadata, shape and type of every leaf, the size and BLAKE2b checksum of every file under ``data``, and its own
checksum. Everything is written into a hidden folder beside the target, flushed to the disk, and renamed: a process
killed at any moment leaves the target as it was. What is read is what ``metadata.json`` lists, plain numbers of stated
shapes and types (:mod:`~torchrl_marl_offline.data.transitions.mapped_leaves`): nothing in a folder is executed.

Checksums tell damage, not intent: whoever changes a folder can make them anew. What they cannot vouch for is looked at
again: that names, shapes, types and sizes agree, that metadata has the types that are read, that bools are 0 or 1, and
that the values are what the stored inspection says (:mod:`~.stored_values`): all of them where
``verify`` reads every byte anyway, else blocks that are spread evenly. Nothing tells whether the numbers are those that
were recorded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from tensordict import TensorDict, TensorDictBase, is_tensor_collection
from tensordict.utils import _encode_key_for_filesystem

from torchrl_marl_offline.core.files import flush, staged, writing
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.regular_files import NotRegularError, lies_at, read_json, require_inside
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading
from torchrl_marl_offline.data.transitions.mapped_leaves import (
    check_bools,
    check_files,
    check_list,
    check_names,
    listed_leaves,
    map_leaves,
)

if TYPE_CHECKING:
    from tensordict import NestedKey

FORMAT = "torchrl_marl_offline.dataset"
VERSION = 1
METADATA_FILE = "metadata.json"
DATA_FOLDER = "data"
_THREADS = 4
_BYTES_AT_ONCE = 32 * 2**20


def is_dataset_folder(path: Path) -> bool:
    """Say whether ``path`` is a folder that :func:`save` wrote, whole or damaged."""
    return lies_at(path / METADATA_FILE) and (path / DATA_FOLDER).is_dir()


def save(
    path: str | Path, data: TensorDictBase, spec: TaskSpec, metadata: dict[str, Any], *, overwrite: bool = False
) -> Path:
    """Write a dataset folder in one step, and clear away what killed writers of the same folder left.

    Args:
        path: the folder to create.
        data: transitions, batch size ``[T]``.
        spec: the task's sizes.
        metadata: JSON-ready.
        overwrite: whether to replace a dataset that is there. A kill between the two renames leaves none.

    Raises:
        FileExistsError: there is something at ``path`` that must not be replaced.
        TypeError: the metadata is not JSON-ready, or a leaf is not a tensor.
    """
    json.dumps({"spec": spec.to_dict(), "metadata": metadata})  # before gigabytes are written
    leaves = dict(data.items(include_nested=True, leaves_only=True))
    if others := [key for key, value in leaves.items() if not isinstance(value, torch.Tensor)]:
        raise TypeError(f"{others[0]!r} is not a tensor, and a dataset holds nothing else; exclude it.")
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in leaves.items()}
    sizes = {
        key: tuple(value.batch_size) for key, value in data.items(include_nested=True) if is_tensor_collection(value)
    }
    check_names(map(_parts, leaves))
    with replacing(path, overwrite=overwrite) as temporary:
        files = lay_out(temporary / DATA_FOLDER, len(data), shapes, sizes)
        for key, file in files.items():
            with file.open("wb", buffering=0) as stream:
                for rows in blocks(leaves[key]):
                    append_rows(stream, rows)
        seal(temporary, shapes, spec, metadata)
    return Path(path).absolute()


def lay_out(
    folder: Path,
    length: int,
    leaves: dict[NestedKey, tuple[tuple[int, ...], torch.dtype]],
    batch_sizes: dict[NestedKey, tuple[int, ...]] | None = None,
) -> dict[NestedKey, Path]:
    """Write the headers of a memory-mapped TensorDict of ``length`` rows; return the file of each leaf, to be written.

    Its files are written like any others: where the disk is full, a page that is written through a map ends the
    process, and such pages count as its memory.

    Args:
        folder: to be made.
        length: rows.
        leaves: shape and type of each.
        batch_sizes: of nested TensorDicts; by default ``[length]``.
    """
    headers: dict[tuple[str, ...], dict[str, Any]] = {(): {}}
    files = {}
    for key, (shape, dtype) in leaves.items():
        names = (key,) if isinstance(key, str) else key
        for depth in range(1, len(names)):
            headers.setdefault(names[:depth], {})
            headers[names[: depth - 1]][names[depth - 1]] = {"type": "TensorDict"}
        told = {"device": "cpu", "shape": list(shape), "dtype": str(dtype), "is_nested": False}
        headers[names[:-1]][names[-1]] = told
        encoded = [_encode_key_for_filesystem(name) for name in names]
        files[key] = folder.joinpath(*encoded[:-1], f"{encoded[-1]}.memmap")
    for names, header in headers.items():
        size = (batch_sizes or {}).get(names if len(names) > 1 else "".join(names), (length,))
        header |= {"shape": list(size), "device": "cpu", "_type": str(TensorDict)}
        place = folder.joinpath(*map(_encode_key_for_filesystem, names))
        place.mkdir(parents=True, exist_ok=True)
        (place / "meta.json").write_text(json.dumps(header), encoding="utf-8")
    return files


def blocks(leaf: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a leaf's rows, some at a time."""
    size = max(1, leaf[:1].numel() * leaf.element_size())
    yield from leaf.split(max(1, _BYTES_AT_ONCE // size))


def append_rows(stream: BinaryIO, rows: torch.Tensor) -> None:
    """Write the bytes of some rows to an unbuffered file."""
    values = rows.detach().as_subclass(torch.Tensor).cpu().contiguous().reshape(-1).view(torch.uint8)
    left = memoryview(values.numpy())
    while left:
        left = left[stream.write(left) :]


@contextmanager
def replacing(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a hidden folder beside ``path`` that takes its place when the block ends well, and goes when it does not.

    Args:
        path: the folder to create.
        overwrite: whether to replace a dataset that is there.

    Raises:
        FileExistsError: there is something at ``path`` that must not be replaced.
        WriteError: the disk is full, or the folder cannot be written for another reason.
    """
    path = Path(path).absolute()
    if path.exists() and not (overwrite and is_dataset_folder(path)):
        remedy = "pass overwrite=True or choose another folder" if is_dataset_folder(path) else "choose another folder"
        raise FileExistsError(f"{path} already exists; {remedy}.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged(path, folder=True) as temporary:
            yield temporary
            _flush(temporary)
            _move_into_place(temporary, path)


def seal(
    folder: Path, leaves: dict[NestedKey, tuple[tuple[int, ...], torch.dtype]], spec: TaskSpec, metadata: dict[str, Any]
) -> None:
    """Write ``metadata.json`` of the data that lies under ``folder``, with the checksum of every file.

    Args:
        folder: what :func:`replacing` gave.
        leaves: shape and type of every leaf.
        spec: the task's sizes.
        metadata: JSON-ready.
    """
    header = {"format": FORMAT, "version": VERSION, "spec": spec.to_dict(), "metadata": metadata}
    header["leaves"] = {"/".join(_parts(key)): [list(shape), str(dtype)] for key, (shape, dtype) in leaves.items()}
    files = [file for file in sorted((folder / DATA_FOLDER).rglob("*")) if file.is_file()]
    header["files"] = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "blake2b": found}
        for file, found in zip(files, _checksums(files))
    }
    (folder / METADATA_FILE).write_text(_header_text(header), encoding="utf-8")


def _parts(key: NestedKey) -> tuple[str, ...]:
    return key if isinstance(key, tuple) else (key,)


def load(path: str | Path, *, verify: bool = True) -> tuple[TensorDictBase, TaskSpec, dict[str, Any]]:
    """Read a dataset folder: the memory-mapped transitions, the sizes and the metadata.

    Args:
        path: the folder.
        verify: whether to compare every file with its checksum; sizes are always compared.

    Raises:
        DatasetError: the folder is not a dataset, or a file of it is missing, cut short or changed.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise DatasetError(f"{path} {what}; give the folder that OfflineDataset.save wrote.")
    header = _read_header(path / METADATA_FILE)
    with reading(path):
        leaves = listed_leaves(path / METADATA_FILE, header["leaves"])
        sizes = check_files(path / DATA_FOLDER, leaves, header["files"])
    for name, facts in header["files"].items():
        _check_size(path / name, facts)
    if verify:
        files = [path / name for name in header["files"]]
        for file, facts, found in zip(files, header["files"].values(), _checksums(files)):
            if found != facts["blake2b"]:
                raise DatasetError(
                    f"{file} was changed after it was written; restore the folder or record the data again."
                )
    with reading(path):  # files from before the header had a checksum
        check_bools(path / DATA_FOLDER, leaves, whole=verify)
        return map_leaves(path / DATA_FOLDER, leaves, sizes), _task_spec(header["spec"]), header["metadata"]


def listed_files(folder: str | Path) -> dict[str, int]:
    """Return the size of every file that a dataset folder's header lists, by its name in the folder.

    The header alone is read and checked: the files need not be there.

    Raises:
        DatasetError: the header is damaged, or lists what no dataset holds.
    """
    file = Path(folder) / METADATA_FILE
    header = _read_header(file)
    with reading(file):
        leaves = listed_leaves(file, header["leaves"])
        check_list(Path(folder) / DATA_FOLDER, leaves, header["files"])
    return {name: facts["bytes"] for name, facts in header["files"].items()}


def header_with(folder: str | Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """Return the content of ``metadata.json`` with other metadata, and the checksum of that.

    Args:
        folder: of a dataset.
        change: is given the metadata and returns them as they are to be.

    Raises:
        DatasetError: the header is damaged.
    """
    header = _read_header(Path(folder) / METADATA_FILE)
    return _header_text(header | {"metadata": change(header["metadata"])}).encode()


def checksum(file: Path) -> str:
    """Return the BLAKE2b digest (16 bytes, hexadecimal) of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _checksums(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing lets other threads run
        return list(pool.map(checksum, files))


def _read_header(file: Path) -> dict[str, Any]:
    if not lies_at(file):
        raise DatasetError(f"{file.parent} holds no {METADATA_FILE}; give the folder that OfflineDataset.save wrote.")
    try:
        header = read_json(require_inside(file, file.parent))
        found = header["format"], header["version"]
    except NotRegularError as error:
        raise DatasetError(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{file} is damaged or not of a dataset; restore it or record the data again.") from error
    if found != (FORMAT, VERSION):
        raise DatasetError(f"{file} is of format {found}, this library reads {(FORMAT, VERSION)}; record it again.")
    stated = header.pop("header", None)
    parts = {"spec", "metadata", "leaves", "files"}
    whole = parts <= header.keys() and isinstance(header["metadata"], dict)
    if not whole or (stated is not None and stated != _header_checksum(header)):
        raise DatasetError(f"{file} was changed after it was written; restore it or record the data again.")
    return header


def _task_spec(facts: dict[str, Any]) -> TaskSpec:
    """Return the sizes; they have been written as whole numbers and are read as nothing else."""
    spec = TaskSpec(**facts)
    wanted = dict.fromkeys(("n_agents", "observation_size", "state_size", "action_size"), int)
    wanted |= dict.fromkeys(("discrete", "has_action_mask"), bool)
    for name, kind in wanted.items():
        if type(facts.get(name, getattr(spec, name))) is not kind:
            raise DatasetError(f"has the {name} {facts[name]!r} in its metadata; restore it or record the data again.")
    return spec


def _header_text(header: dict[str, Any]) -> str:
    return json.dumps(header | {"header": _header_checksum(header)}, indent=1)


def _header_checksum(header: dict[str, Any]) -> str:
    """Return the digest of the content; what JSON makes of it counts, not its keys' order or its spaces."""
    content = json.dumps(json.loads(json.dumps(header)), sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _check_size(file: Path, facts: dict[str, Any]) -> None:
    if not file.is_file():
        raise DatasetError(f"{file} is missing; restore the folder or record the data again.")
    size = file.stat().st_size
    if size != facts["bytes"]:
        raise DatasetError(
            f"{file} has {size} bytes instead of {facts['bytes']}; restore the folder or record the data again."
        )


def _flush(folder: Path) -> None:
    for entry in [*folder.rglob("*"), folder]:
        flush(entry)


def _move_into_place(temporary: Path, path: Path) -> None:
    aside = None
    if path.exists():
        aside = path.with_name(temporary.name + "-old")
        os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except OSError as error:
        if not path.exists():
            raise
        raise FileExistsError(f"{path} was written by another process meanwhile; choose another folder.") from error
    flush(path.parent)  # the rename itself
    if aside is not None:
        shutil.rmtree(aside)
