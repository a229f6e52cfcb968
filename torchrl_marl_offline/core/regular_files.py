"""Files that others wrote: only regular ones are opened, and opening never waits.

A named pipe in a file's place would block a reader for ever, a device would never end, and a link in a folder that was
fetched could bring in any file of this machine. What is opened by name is the user's word: a link is followed there.
Nothing of the library and no torch is imported here.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
}


class NotRegularError(ValueError):
    """Something else lies in a file's place, or a link leads out of a folder; the message names it."""


def kind_of(path: str | Path, *, follow: bool = True) -> str | None:
    """Say what lies at ``path`` (``"a named pipe"``), or ``None`` for a regular file.

    Args:
        path: what is there; a link that leads nowhere raises as a missing file does.
        follow: whether a link counts as what it points to.

    Raises:
        OSError: there is nothing.
    """
    mode = os.stat(path, follow_symlinks=follow).st_mode
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def require_regular(path: str | Path) -> Path:
    """Return ``path`` if a regular file lies there.

    Raises:
        NotRegularError: it is a folder, a pipe, a device or a socket.
        OSError: there is nothing.
    """
    kind = kind_of(path)
    if kind is not None:
        raise NotRegularError(f"{path} is {kind} in the place of a file; put a regular file there.")
    return Path(path)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading bytes, without waiting for whatever else may be there.

    Raises:
        NotRegularError: it is a folder, a pipe, a device or a socket.
        OSError: there is nothing, or it may not be read.
    """
    require_regular(path)  # opening a device can already do something
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it was exchanged meanwhile
            raise NotRegularError(f"{path} is no regular file; put one there.")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: str | Path) -> str:
    """Read a regular file as UTF-8.

    Raises:
        NotRegularError: see :func:`open_regular`.
        UnicodeDecodeError: the bytes are no UTF-8.
    """
    with open_regular(path) as stream:
        return stream.read().decode("utf-8")


def read_json(path: str | Path) -> Any:
    """Read a regular file as JSON.

    Raises:
        NotRegularError: see :func:`open_regular`.
        ValueError: it is no JSON, names something twice or is nested beyond what can be read.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"names {name!r} twice")
    return found


def lies_at(path: str | Path) -> bool:
    """Say whether anything but a folder lies at ``path``, a pipe or a link that leads nowhere included.

    What a folder's format is told by is looked for so: :func:`require_inside` then says what is wrong with it.
    """
    return os.path.lexists(path) and not os.path.isdir(path)


def files_below(folder: str | Path, entries: Iterable[str] | None = None) -> Iterator[Path]:
    """Yield every file below ``folder``, after a look at what it is.

    A link may lead to another place in the folder, or to the blobs of the Hugging Face repository whose snapshot the
    folder is part of. The folder itself, which the user names, may be a link.

    Args:
        folder: where they lie.
        entries: names of the files and folders in it that are looked at; by default all.

    Raises:
        NotRegularError: a pipe, a device or a socket lies there, or a link leads elsewhere or nowhere.
        OSError: a folder cannot be read.
    """
    yield from _walk(Path(folder), _homes(folder), entries)


def require_inside(path: str | Path, folder: str | Path) -> Path:
    """Return ``path`` if a regular file of ``folder`` lies there; links as for :func:`files_below`.

    Raises:
        NotRegularError: something else lies there, or a link leads elsewhere or nowhere.
        OSError: there is nothing.
    """
    if Path(path).is_symlink():
        _check_link(Path(path), _homes(folder))
    return require_regular(path)


def _homes(folder: str | Path) -> list[str]:
    return [os.path.realpath(home) for home in (folder, _hub_blobs(Path(folder))) if home is not None]


def _walk(folder: Path, homes: list[str], entries: Iterable[str] | None = None) -> Iterator[Path]:
    for name in sorted(os.listdir(folder) if entries is None else entries):
        path = folder / name
        if path.is_symlink():
            _check_link(path, homes)
        if path.is_dir():
            if path.is_symlink():
                raise NotRegularError(f"{path} is a link to a folder; put the folder itself there.")
            yield from _walk(path, homes)
        else:
            yield require_regular(path)


def _check_link(path: Path, homes: list[str]) -> None:
    target = os.path.realpath(path)
    if not os.path.exists(target):
        raise NotRegularError(f"{path} is a link that leads nowhere; put the file itself there.")
    if not any(os.path.commonpath([home, target]) == home for home in homes):
        raise NotRegularError(f"{path} is a link that leads out of the folder; put the file itself there.")


def _hub_blobs(folder: Path) -> Path | None:
    """Return the blobs folder of the hub repository in whose ``snapshots`` a folder lies."""
    parts = Path(os.path.abspath(folder)).parts
    if "snapshots" not in parts:
        return None
    return Path(*parts[: len(parts) - 1 - parts[::-1].index("snapshots")]) / "blobs"
