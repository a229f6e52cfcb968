"""The leaves of a dataset folder, mapped into memory as its header lists them.

The header alone says what is mapped: each leaf's name, shape and type, and each file's size. What else lies under
``data`` is refused, not read: a folder that comes from others can hold ``meta.json`` files and pickles that tensordict
would load, and a checksum can be made anew by whoever changed the folder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.utils import _encode_key_for_filesystem

from torchrl_marl_offline.core.regular_files import NotRegularError, files_below, kind_of, read_json
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.mapped_files import map_file

_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
DTYPES = {str(dtype): dtype for dtype in (*_WHOLE, *_REAL)}
"""The types that a leaf can have, by the name in the header."""
META_FILE = "meta.json"
_MOST_AXES = 16
_BYTES_AT_ONCE, _BYTES_LOOKED_AT, _BLOCKS = 2**24, 2**16, 16
_REMEDY = "restore the folder or record the data again"


@dataclass(frozen=True)
class Leaf:
    """One tensor of a folder.

    Attributes:
        key: its name, level by level.
        shape: ``[T, ...]``.
        dtype: one of :data:`DTYPES`.
    """

    key: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def file(self) -> str:
        """The file below the folder of the data, as tensordict names it."""
        return "/".join(map(_encode_key_for_filesystem, self.key)) + ".memmap"

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_names(keys: Iterable[tuple[str, ...]]) -> None:
    """Refuse leaves whose names the header cannot tell apart.

    Raises:
        DatasetError: a name is empty, ``.`` or ``..``, or has a slash.
    """
    for key in keys:
        wrong = next((name for name in key if not name or name in (".", "..") or "/" in name), None)
        if wrong is not None:
            raise DatasetError(f"{key!r} cannot be written as {wrong!r} is no file's name; rename the leaf.")


def listed_leaves(file: Path, leaves: Any) -> list[Leaf]:
    """Return the leaves that a header lists.

    Args:
        file: of the header, for messages.
        leaves: name, with a slash between levels -> ``[shape, type]``.

    Raises:
        DatasetError: one of them is none that the library writes, or they do not fit together.
    """
    if not isinstance(leaves, dict) or not leaves:
        raise DatasetError(f"{file} lists no leaves; {_REMEDY}.")
    found = [_leaf(file, name, facts) for name, facts in leaves.items()]
    keys = {leaf.key for leaf in found}
    for leaf in found:
        if any(leaf.key[:level] in keys for level in range(1, len(leaf.key))):
            raise DatasetError(f"{file} lists {'/'.join(leaf.key)!r} below another leaf; {_REMEDY}.")
    lengths = {leaf.shape[0] for leaf in found}
    if len(lengths) > 1:
        raise DatasetError(f"{file} lists leaves of {', '.join(map(str, sorted(lengths)))} rows; {_REMEDY}.")
    return found


def _leaf(file: Path, name: Any, facts: Any) -> Leaf:
    match facts:
        case [[_, *_] as shape, str(dtype)] if dtype in DTYPES and len(shape) <= _MOST_AXES:
            sizes = all(type(size) is int and size >= 0 for size in shape)
        case _:
            sizes = False
    key = tuple(str(name).split("/"))
    if not sizes or any(not part or part in (".", "..") for part in key):
        raise DatasetError(f"{file} lists the leaf {name!r} as {str(facts)[:80]}, which is no tensor's; {_REMEDY}.")
    return Leaf(key, tuple(shape), DTYPES[dtype])


def check_files(folder: Path, leaves: Iterable[Leaf], files: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Hold what a header says of its files, and what lies in ``folder``, against the leaves.

    Args:
        folder: of the data.
        leaves: what :func:`listed_leaves` returned.
        files: name below the dataset's folder -> ``{"bytes": ..., "blake2b": ...}``.

    Returns:
        The batch sizes of nested TensorDicts, where tensordict's own files say them.

    Raises:
        DatasetError: a file is listed, or lies there, that is of no leaf; or one has another size than its leaf.
    """
    metas, levels = check_list(folder, leaves, files)
    _check_what_lies_there(folder.parent, folder, set(files), levels)
    return _check_metas(folder.parent, sorted(metas & set(files)), leaves)


def check_list(folder: Path, leaves: Iterable[Leaf], files: Any) -> tuple[set[str], set[str]]:
    """Hold what a header says of its files against the leaves; the files need not be there.

    Returns:
        The names that tensordict's own files may have, and the folders that there may be, below the dataset's folder.

    Raises:
        DatasetError: see :func:`check_files`.
    """
    root = folder.parent
    wanted = {f"{folder.name}/{leaf.file}": leaf for leaf in leaves}
    levels = {f"{folder.name}/{os.path.dirname(leaf.file)}".rstrip("/") for leaf in leaves}
    levels |= {str(parent) for level in list(levels) for parent in Path(level).parents if parent.parts}
    metas = {f"{level}/{META_FILE}" for level in levels}
    if not isinstance(files, dict):
        raise DatasetError(f"{root} lists no files; {_REMEDY}.")
    for name, facts in files.items():
        if not isinstance(facts, dict) or type(facts.get("bytes")) is not int or type(facts.get("blake2b")) is not str:
            raise DatasetError(f"{root} says nothing of the size or checksum of {name!r}; {_REMEDY}.")
        if name not in wanted and name not in metas:
            raise DatasetError(f"{root} lists the file {name!r}, which is of no leaf; {_REMEDY}.")
    for name, leaf in wanted.items():
        stated = files.get(name, {"bytes": 0})["bytes"]  # a leaf without elements has no file
        if stated != leaf.bytes:
            raise DatasetError(
                f"{root / name} is listed with {stated} bytes where its leaf has {leaf.bytes}; {_REMEDY}."
            )
    return metas, levels


def _check_what_lies_there(root: Path, folder: Path, files: set[str], levels: set[str]) -> None:
    if not folder.is_dir():
        raise DatasetError(f"{folder} is missing; {_REMEDY}.")
    if kind_of(folder, follow=False) != "a folder":
        raise DatasetError(f"{folder} is {kind_of(folder, follow=False) or 'a file'}; put the folder itself there.")
    try:
        found = {file.relative_to(root).as_posix() for file in files_below(folder)}
    except NotRegularError as error:
        raise DatasetError(str(error)) from error
    strange = sorted(found - files)
    if not strange:  # an empty folder holds no file
        inner = {Path(path).relative_to(root).as_posix() for path, _, _ in os.walk(folder)}
        strange = sorted(inner - levels)
    if strange:
        raise DatasetError(f"{root} holds {strange[0]!r}, which its header does not list; remove it.")


def _check_metas(root: Path, metas: Iterable[str], leaves: Iterable[Leaf]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Refuse what tensordict's own files say beyond the header: others may open the folder with tensordict."""
    by_key = {leaf.key: leaf for leaf in leaves}
    inner = {key[:level] for key in by_key for level in range(len(key))}
    sizes = {}
    for name in metas:
        file, level = root / name, tuple(name.split("/")[1:-1])
        try:
            told = read_json(file) if file.exists() else {}  # what is missing is said by name elsewhere
            kind = str(told.get("_type", TensorDict))
        except (ValueError, AttributeError) as error:
            raise DatasetError(f"{file} is damaged ({error}); {_REMEDY}.") from error
        if not kind.endswith("TensorDict'>"):
            raise DatasetError(f"{file} is of {kind[:80]!r}; {_REMEDY}.")
        for child, facts in told.items():
            key = (*level, child)
            if isinstance(facts, dict) and not _agrees(facts, by_key.get(key), key in inner):
                raise DatasetError(f"{file} says of {child!r} what the header does not; {_REMEDY}.")
        size = told.get("shape")
        below = [leaf.shape for leaf in by_key.values() if leaf.key[: len(level)] == level]
        if size is not None:
            if not size or any(list(shape[: len(size)]) != size for shape in below):
                raise DatasetError(f"{file} states the shape {size}, which is not its leaves'; {_REMEDY}.")
            sizes[level] = tuple(size)
    return sizes


def _agrees(facts: Mapping[str, Any], leaf: Leaf | None, is_inner: bool) -> bool:
    if leaf is None:
        return is_inner and facts == {"type": "TensorDict"}
    told = (facts.get("shape"), facts.get("dtype"), bool(facts.get("is_nested")), "type" in facts)
    return told == (list(leaf.shape), str(leaf.dtype), False, False)


def map_leaves(
    folder: Path, leaves: Iterable[Leaf], sizes: Mapping[tuple[str, ...], tuple[int, ...]] | None = None
) -> TensorDict:
    """Return the transitions, ``[T]``: every leaf mapped from its file, which has been checked.

    A folder that may not be written is mapped privately: what is changed in memory stays there.

    Args:
        folder: of the data.
        leaves: what :func:`listed_leaves` returned.
        sizes: what :func:`check_files` returned.
    """
    nested: dict[str, Any] = {}
    length = 0
    for leaf in leaves:
        length = leaf.shape[0]
        level = nested
        for name in leaf.key[:-1]:
            level = level.setdefault(name, {})
        level[leaf.key[-1]] = _mapped(folder / leaf.file, leaf)
    return _tensordict(nested, (), {(): (length,)} | dict(sizes or {}))


def check_bools(folder: Path, leaves: Iterable[Leaf], *, whole: bool) -> None:
    """Refuse leaves of bools with a byte that is neither 0 nor 1, which torch takes for both.

    Args:
        folder: of the data.
        leaves: what :func:`listed_leaves` returned.
        whole: look at every byte, else at some that are spread evenly.

    Raises:
        DatasetError: there is one.
    """
    for leaf in leaves:
        if leaf.dtype == torch.bool and leaf.bytes:
            content = np.memmap(folder / leaf.file, np.uint8, "r")
            starts = range(0, leaf.bytes, _BYTES_AT_ONCE)
            for start in starts if whole else spread(leaf.bytes, _BYTES_LOOKED_AT):
                if content[start : start + (_BYTES_AT_ONCE if whole else _BYTES_LOOKED_AT)].max() > 1:
                    raise DatasetError(f"{folder / leaf.file} holds bytes that are neither true nor false; {_REMEDY}.")


def spread(length: int, size: int) -> list[int]:
    """Return where blocks of ``size`` start that lie evenly over ``length``, the first and the last included."""
    last = max(0, length - size)
    count = min(_BLOCKS, 1 + -(-last // size))
    return sorted({last * number // max(1, count - 1) for number in range(count)})


def _mapped(file: Path, leaf: Leaf) -> torch.Tensor:
    if leaf.bytes == 0:
        return torch.empty(leaf.shape, dtype=leaf.dtype)
    return map_file(file, leaf.dtype, leaf.shape)


def _tensordict(
    nested: Mapping[str, Any], level: tuple[str, ...], sizes: Mapping[tuple[str, ...], tuple[int, ...]]
) -> TensorDict:
    content = {
        name: _tensordict(value, (*level, name), sizes) if isinstance(value, dict) else value
        for name, value in nested.items()
    }
    return TensorDict(content, batch_size=sizes.get(level, sizes[()][:1]), device="cpu")
