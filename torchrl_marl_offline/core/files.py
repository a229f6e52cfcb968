"""Files and folders that are written as a whole or not at all, and errors that name the file and the cause.

What is not finished lies under a hidden name beside the target, with a lock that its writer holds: a process that is
killed lets go of it, and the next writer of the same target deletes what was left. Windows has no such locks, renames
no file that is open and opens no folder: nothing is held open there, and what a killed process left stays.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from torchrl_marl_offline.core.paths import user_path

_CAUSES = {
    errno.ENOSPC: ("no space is left on its disk", "free some, or write to another disk"),
    errno.EDQUOT: ("your quota of its disk is used up", "free some space, or write to another disk"),
    errno.EFBIG: ("it outgrows the largest file that may be written here", "raise ulimit -f, or write to another disk"),
    errno.EIO: ("its disk reports a failure", "write to another disk"),
    errno.EROFS: ("its disk cannot be written to", "choose another folder"),
    errno.EACCES: ("there is no permission to write there", "change it, or choose another folder"),
    errno.EPERM: ("there is no permission to write there", "change it, or choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.EEXIST: ("a file stands where a folder of its path should be", "choose another folder"),
    errno.ENOTDIR: ("a file stands where a folder of its path should be", "choose another folder"),
    errno.EISDIR: ("a folder of that name is there", "choose another name"),
    errno.EMFILE: ("too many files are open", "raise ulimit -n"),
}
_ONLY_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_LONGEST_STEM = 150  # of the 255 bytes of a name; a mark follows
_SILENT_SECONDS = 3600
WINDOWS = os.name == "nt"
_MARK = r"\.tmp-(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{8}"


class WriteError(OSError):
    """A file or folder could not be written; the message names it, the cause and the remedy."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what the operating system says against writing within the block into a :class:`WriteError`.

    Libraries that wrap such an error in one of their own, or raise another while they close the file, are seen
    through.

    Args:
        path: what is written, for the message.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError) as error:
        number = _number_of(error, Path(path))
        if number is None:
            raise
        cause, remedy = _CAUSES[number]
        raise WriteError(number, f"{path} cannot be written: {cause}; {remedy}, and run this again.") from error


def _number_of(error: BaseException | None, path: Path) -> int | None:
    """Return the operating system's number of what went wrong, where it is of writing ``path``."""
    seen: set[int] = set()
    while isinstance(error, OSError | RuntimeError) and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _CAUSES and _is_of_writing(error, path):
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _is_of_writing(error: OSError, path: Path) -> bool:
    """Say whether an error can only come from writing, or names a file beside or below ``path``."""
    if error.errno in _ONLY_WRITING or not isinstance(error.filename, str | os.PathLike):
        return True
    named, place = Path(error.filename).absolute(), path.absolute()
    return named in (place, *place.parents) or place.parent in named.parents


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``, renamed when the block ends well: a reader sees no part of a file.

    It has the ending of ``path`` and goes when the block fails.

    Raises:
        WriteError: the file cannot be written.
    """
    path = user_path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged(path) as temporary:
            yield temporary
            os.replace(temporary, path)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write a text file so that a reader sees the old text or the new, never a part."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON by a rename; dataclasses, paths and tensors are converted, NaN becomes null."""
    write_text_atomic(path, json.dumps(_to_json(value), indent=2, allow_nan=False) + "\n")


def _to_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _to_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if hasattr(value, "tolist"):  # a tensor or an array
        return _to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def append_whole(path: Path, content: bytes) -> None:
    """Append all of ``content`` to a file, or nothing.

    Raises:
        WriteError: it cannot be written.
    """
    with writing(path), path.open("ab", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        try:
            left = memoryview(content)
            while left:
                left = left[stream.write(left) :]
        except OSError:
            os.truncate(path, size)
            raise


@contextmanager
def staged(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Make an empty hidden file or folder beside ``target``; what is still there at the end of the block goes.

    Args:
        target: what the block is about to make of it.
        folder: whether it is a folder.
    """
    remove_leftovers(target)
    temporary, lock = _claimed(target, folder)
    try:
        yield temporary
    finally:
        remove(temporary)
        if lock is not None:
            os.close(lock)


def _claimed(target: Path, folder: bool) -> tuple[Path, int | None]:
    """Make something that nobody takes for a leftover: it has our lock before anybody else could have it."""
    while True:
        mark = f".tmp-{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        temporary = target.with_name(f".{_stem(target)}{mark}{target.suffix[:20] if not folder else ''}")
        if folder:
            temporary.mkdir()
            if WINDOWS:
                return temporary, None
            lock = os.open(temporary, os.O_RDONLY)
        else:
            lock = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            if WINDOWS:
                os.close(lock)
                return temporary, None
        if try_lock(lock) is not False and temporary.exists():
            return temporary, lock
        os.close(lock)


def _stem(target: Path) -> str:
    name = target.name.encode()
    return target.name if len(name) <= _LONGEST_STEM else hashlib.blake2b(name, digest_size=16).hexdigest()


def try_lock(descriptor: int) -> bool | None:
    """Take the lock of an open file: ``False`` where another has it, ``None`` where this file system has no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, ImportError):
        return None
    return True


def flush(path: Path) -> None:
    """Have the operating system put a file, or a folder's list of names where it can, on its disk."""
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(target: Path) -> None:
    """Delete the hidden files and folders beside ``target`` whose writers were killed before they were finished.

    On another machine, whose locks may not be seen from here, a writer is taken for dead when nothing was written for
    an hour.
    """
    stem, name = re.escape(_stem(target)), re.escape(target.name)
    ours = rf"\.{stem}(?:{_MARK})(?:{re.escape(target.suffix)}|-old)?"
    earlier = rf"\.+{name}(?:\.tmp-.+-\d+-[0-9a-f]{{8}})+(?:-old)?|\.{name}\.\d+\.tmp"
    earlier += rf"|\.{re.escape(target.stem)}\.\d+{re.escape(target.suffix)}" if target.suffix else ""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(target.parent) as entries:
        hidden = [entry.name for entry in entries if entry.name.startswith(".")]
        for entry in hidden:
            if re.fullmatch(ours, entry) or re.fullmatch(earlier, entry):
                remove_if_abandoned(target.parent / entry)


def remove_if_abandoned(entry: Path) -> None:
    """Delete what a writer left, unless it is still at work; see :func:`remove_leftovers`."""
    mark = re.search(_MARK, entry.name)
    elsewhere = mark is not None and mark["host"] != socket.gethostname()[:40]
    try:
        descriptor = os.open(entry, os.O_RDONLY)
    except OSError:
        return
    try:
        locked = try_lock(descriptor)
        if (locked and not elsewhere) or (locked is not False and _is_silent(entry)):
            remove(entry)
    finally:
        os.close(descriptor)


def _is_silent(entry: Path) -> bool:
    with suppress(OSError):
        newest = max(path.stat().st_mtime for path in (entry, *entry.rglob("*")))
        return time.time() - newest > _SILENT_SECONDS
    return False


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk where a folder is, or would be."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
