"""Opening HDF5 files: plain numbers that lie in the file itself, and errors that say what else a file may be.

HDF5 can say that an array lies in another file (external links, virtual datasets, external storage), declare sizes
for which nothing is stored, or link to one array from many places. None of it is followed: every array is looked at
before one of its numbers is read, and what is reached under two names is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.core.regular_files import kind_of, open_regular
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.storage import is_dataset_folder
from torchrl_marl_offline.data.transitions.values import check_type

if TYPE_CHECKING:
    import h5py

_HDF5_MAGIC, _ZIP_MAGIC = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_MOST_LINKS = 8
_UNSTORED, _STORED, _SLACK_BYTES = 10, 250, 2**20
"""How many times the file's own size the arrays may declare for which nothing is stored, and all of them. Padded
episodes of real recordings, compressed, come to 75."""


class PlainGroup(Mapping):
    """A group of a file, with the arrays and groups that lie in that file.

    An array comes as :class:`h5py.Dataset`, after a look at where it lies, its type and its size.

    Args:
        group: of h5py.
        file: that the group is a part of; the group itself where it is ``None``.
        path: names that lead from the file to the group.
    """

    def __init__(self, group: h5py.Group, file: PlainFile | None = None, path: str = "") -> None:
        self._group, self._file, self._path = group, file, path  # a file that held itself would stay open

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)  # names alone: a link is not followed

    def __len__(self) -> int:
        return len(self._group)

    def __contains__(self, name: object) -> bool:
        parent, _, last = str(name).strip("/").rpartition("/")
        try:
            return _link(_find(self._group, parent, _MOST_LINKS), last) is not None
        except (KeyError, DatasetError):
            return False

    def __getitem__(self, name: str) -> Any:
        file = self if self._file is None else self._file
        path = "/".join(filter(None, [*self._path.split("/"), *name.split("/")]))
        return file.checked(_find(self._group, name, _MOST_LINKS), path)

    @property
    def attrs(self) -> Any:
        """The attributes of the group."""
        return self._group.attrs


class PlainFile(PlainGroup):
    """An open file; see :class:`PlainGroup`.

    Args:
        path: of it, for its size.
        file: the same, open.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        super().__init__(file)
        self._bytes = path.stat().st_size
        self._seen: dict[Any, str] = {}  # the name under which each group and array was reached
        self._declared = self._unstored = 0  # bytes of the arrays so far

    def __enter__(self) -> PlainFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._group.close()

    def checked(self, item: Any, name: str) -> Any:
        """Return a group or an array of the file, if it may be read.

        Raises:
            DatasetError: it lies elsewhere, holds no numbers, was reached under another name before, or is declared
                larger than what is stored can be.
        """
        import h5py

        known = item.id in self._seen
        if name != (before := self._seen.setdefault(item.id, name)):
            raise DatasetError(f"{name} is a link to {before}, which was read; write its numbers there instead.")
        if isinstance(item, h5py.Group):
            return PlainGroup(item, self, name)
        if not isinstance(item, h5py.Dataset):
            raise DatasetError(f"{name} is a {type(item).__name__}, no array; use the reader of its format.")
        if item.is_virtual or item.external:
            raise DatasetError(f"{name} lies in another file; copy its numbers into this one.")
        if item.shape is None:
            raise DatasetError(f"{name} is declared as empty, without a shape; write its numbers, or fetch it again.")
        check_type(item.dtype, name)
        if not known:
            self._count(item)
        if self._unstored > _UNSTORED * self._bytes + _SLACK_BYTES:
            raise DatasetError(
                f"{name} is declared as {item.shape}, most of which the file of {self._bytes:,} bytes does not hold; "
                "fetch it again, or write it anew without what is missing."
            )
        if self._declared > _STORED * self._bytes + _SLACK_BYTES:
            raise DatasetError(
                f"{name} and the arrays before it would become {self._declared:,} bytes of a file of {self._bytes:,}; "
                "if that is right, write it anew without compression (h5repack -f NONE)."
            )
        return item

    def _count(self, item: h5py.Dataset) -> None:
        declared, unstored = _sizes(item, self._bytes)
        self._declared += declared
        self._unstored += unstored


def _sizes(item: h5py.Dataset, file_bytes: int) -> tuple[int, int]:
    """Return the bytes that an array declares, and how many of them nothing is stored for."""
    declared = math.prod(item.shape) * item.dtype.itemsize
    if item.chunks is None:
        stored = item.id.get_storage_size()
        return declared, declared if stored > file_bytes else max(0, declared - stored)
    chunk = math.prod(item.chunks) * item.dtype.itemsize
    stored = item.id.get_num_chunks() * chunk
    return max(declared, chunk if stored else 0), max(0, declared - stored)


def _link(group: h5py.Group, name: str) -> Any:
    """Return what kind of link has a name, or ``None`` where nothing has it."""
    try:
        return group.get(name, getlink=True)
    except (AttributeError, KeyError, TypeError, ValueError):  # no group, no such name, a kind that nobody knows
        return None


def _find(group: h5py.Group, name: str, links: int) -> Any:
    """Return what a name leads to within the file."""
    import h5py

    found = group
    for part in filter(None, name.split("/")):
        link = _link(found, part) if isinstance(found, h5py.Group) else None
        if link is None:
            raise KeyError(name)
        if isinstance(link, h5py.SoftLink) and links > 0:
            found = _find(found.file if link.path.startswith("/") else found, link.path, links - 1)
        elif isinstance(link, h5py.HardLink):
            found = found[part]
        else:
            raise DatasetError(f"{name} is a link that leads out of the file; copy its numbers into this one.")
    return found


def check_arrays(file: PlainGroup, names: Iterable[str]) -> None:
    """Refuse groups in the place of arrays, before anything is read.

    Raises:
        DatasetError: there is one, or see :meth:`PlainFile.checked`.
    """
    for name in names:
        if isinstance(file[name], PlainGroup):
            raise DatasetError(f"{name} is a group of arrays; lay them side by side and pass them to from_arrays().")


def open_hdf5(path: Path, format_name: str) -> PlainFile:
    """Open a file for reading.

    Args:
        path: the file.
        format_name: what the reader calls its format, for the messages.

    Raises:
        DatasetError: there is no file, it is none of HDF5, or it is cut short.
        ImportError: h5py is not installed.
    """
    reader = format_name.lower()
    if path.is_dir():
        remedy = "load it with load_dataset(path)" if is_dataset_folder(path) else "give one .h5 file"
        raise DatasetError(f"{path} is a folder, but the {reader} reader reads one HDF5 file; {remedy}.")
    if not path.exists():
        raise DatasetError(f"{path} does not exist; give the path of a {format_name} HDF5 file.")
    if (kind := kind_of(path)) is not None:
        raise DatasetError(f"{path} is {kind}; give the path of a {format_name} HDF5 file.")
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"Reading {format_name} files needs h5py; install it with pip install h5py.") from error
    with open_regular(path) as stream:
        magic = stream.read(8)
    if magic[:4] == _ZIP_MAGIC:
        raise DatasetError(f"{path} is a zip or NumPy archive, not HDF5; pass its arrays to from_arrays().")
    if magic != _HDF5_MAGIC:
        raise DatasetError(f"{path} is not an HDF5 file; the {reader} reader reads {format_name}'s HDF5 episodes only.")
    try:
        return PlainFile(path, h5py.File(path, "r"))
    except OSError as error:
        raise DatasetError(f"{path} is a damaged or truncated HDF5 file ({error}); fetch it again.") from error
