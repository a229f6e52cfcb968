"""What other operating systems lack, taken away: everything can still be imported, and data is still written."""

from __future__ import annotations

import os
import pkgutil
import shutil
import sys
from pathlib import Path

import processes
import pytest
from data_toys import episodes

import torchrl_marl_offline
from torchrl_marl_offline import OfflineDataset
from torchrl_marl_offline.core import files
from torchrl_marl_offline.training.run.run_lock import RunLock

PACKAGE = torchrl_marl_offline.__name__
LACKING = """
import errno, importlib, os, signal, stat, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "torchrl_marl_offline"]:
    del sys.modules[name]
for name in ("fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios", "tty", "pty"):
    sys.modules[name] = None
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE", "pthread_sigmask"):
    delattr(signal, name)
for name in ("fork", "setsid", "statvfs", "sysconf", "sched_getaffinity", "getuid", "mkfifo", "mknod", "sync"):
    delattr(os, name)
for name in ("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_TMPFILE", "O_SYNC"):
    delattr(os, name)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(len(sys.argv[1:]), "imported")
"""


def test_every_module_is_imported_without_what_is_posix_alone():
    found = pkgutil.walk_packages(torchrl_marl_offline.__path__, f"{PACKAGE}.")
    names = [name for _, name, _ in found if not name.endswith("__main__")]
    done = processes.run("-c", LACKING, *names)
    assert done.stdout.splitlines()[-1:] == [f"{len(names)} imported"] and len(names) > 150, done.stderr[-2000:]


@pytest.fixture
def _like_windows(monkeypatch):
    """Open no folder, rename no open file, have no locks."""
    opens, renames = os.open, os.replace

    def open_file(path, *arguments, **options):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return opens(path, *arguments, **options)

    def replace(source, target):
        held = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
        if any(Path(path).is_relative_to(Path(source).resolve()) for path in held):
            raise PermissionError(13, "The process cannot access the file", str(source))
        return renames(source, target)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # which open folders
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setitem(sys.modules, "fcntl", None)


@pytest.mark.usefixtures("_like_windows")
def test_files_and_folders_are_written_where_none_is_opened_or_locked(tmp_path, monkeypatch):
    dataset = episodes([3, 1])
    (tmp_path / "elsewhere").mkdir()
    for write in (lambda path: dataset.save(path), lambda path: files.write_text_atomic(path, "a")):
        with pytest.raises(OSError):
            write(tmp_path / "elsewhere" / "before")  # what the fixture takes away is needed elsewhere
    monkeypatch.setattr(files, "WINDOWS", True)
    files.write_text_atomic(tmp_path / "text", "a")
    files.write_text_atomic(tmp_path / "text", "b")
    dataset.save(tmp_path / "data")
    dataset.save(tmp_path / "data", overwrite=True)
    assert (tmp_path / "text").read_text() == "b" and len(OfflineDataset.load(tmp_path / "data")) == 4
    RunLock(tmp_path / "run").acquire()  # where there are no locks, nothing keeps others out
    RunLock(tmp_path / "run").acquire()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "elsewhere", "run", "text"]
