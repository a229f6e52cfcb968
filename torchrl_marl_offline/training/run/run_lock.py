"""One process at a time works in a run's folder."""

from __future__ import annotations

import os
import socket
import weakref
from contextlib import suppress
from io import FileIO
from pathlib import Path

from torchrl_marl_offline.core.files import try_lock, writing

LOCK_FILE, COMMAND_FILE = ".run.lock", ".command.lock"  # a study's jobs have a .lock of their own
_HELD: dict[Path, weakref.ref[RunLock]] = {}
_CLAIMED: list[RunLock] = []


class RunInUseError(RuntimeError):
    """Another process works in the folder; the message names both."""


class RunLock:
    """The right to write into a run's folder.

    The operating system gives it back when the process ends, however it ends. Within one process the newest object
    has it: a notebook's cell that is run again takes over from what it made before, unless that is still training.

    Args:
        folder: of the run.
        file: name of the lock in it.
    """

    def __init__(self, folder: str | Path, file: str = LOCK_FILE) -> None:
        self.folder, self.file = Path(folder), file
        self.busy = False
        self._file: FileIO | None = None

    def acquire(self) -> None:
        """Take the lock, if this object does not have it already.

        Raises:
            RunInUseError: another process has it, or another run of this process that is training.
            WriteError: the folder cannot be written to.
        """
        if self._file is not None:
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            place = self.folder.resolve() / self.file
            self._take_over(place)
            file = place.open("a+b", buffering=0)
        if try_lock(file.fileno()) is False:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip()
            file.close()
            raise RunInUseError(_in_use(self.folder, holder or "another process"))
        with suppress(OSError):  # on a full disk it is locked all the same
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._file, _HELD[place] = file, weakref.ref(self)
        weakref.finalize(self, file.close)

    def release(self) -> None:
        """Give the lock back, if this object has it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take_over(self, place: Path) -> None:
        for other in [held() for held in _HELD.values()]:
            if other is None or other is self or not other._has(place):
                continue
            if other.busy:
                raise RunInUseError(_in_use(self.folder, f"another run of this process, {os.getpid()}"))
            other.release()

    def _has(self, place: Path) -> bool:
        """Whether this object holds the file at a place, to which its folder may have been moved."""
        with suppress(OSError):
            return self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), place.stat())
        return False


def _in_use(folder: Path, holder: str) -> str:
    return f"{folder} is in use by {holder}; wait until it has ended, or name another folder."


def claim_folder(folder: str | Path) -> None:
    """Keep other commands out of a folder until this process ends; the trainers in it have locks of their own.

    Of the processes that share a run, the first alone claims it.

    Raises:
        RunInUseError: another process works there.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        lock = RunLock(folder, COMMAND_FILE)
        lock.acquire()
        _CLAIMED.append(lock)


def claimed_around(place: Path) -> Path | None:
    """Return the folder that this process claimed and that holds ``place``, or is it; or None."""
    around = {each.resolve() for each in (place, *place.absolute().parents)}
    return next((lock.folder for lock in reversed(_CLAIMED) if lock.folder.resolve() in around), None)


def refuse_if_in_use(folder: str | Path) -> None:
    """Refuse a folder in which another command works; nothing is written, and nothing is kept from others.

    Raises:
        RunInUseError: one does.
    """
    place = Path(folder) / COMMAND_FILE
    own = any(lock._has(place) for lock in _CLAIMED)
    if own or not place.is_file():
        return
    with suppress(OSError), place.open("r+b", buffering=0) as file:
        if try_lock(file.fileno()) is False:
            holder = file.read(200).decode(errors="replace").strip()
            raise RunInUseError(_in_use(Path(folder), holder or "another process"))
