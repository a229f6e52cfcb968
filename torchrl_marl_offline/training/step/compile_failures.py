"""What to do where compiling fails on this machine: say so, mend torch's cache, go on without.

Compiling needs a C++ compiler (Triton on a GPU) and a cache folder that can be written. A process that is ended while
it compiles can leave a file in that cache that is cut short, and every later run would fail on it.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_RAISED = ContextVar("compile failures are raised", default=False)
_LIBRARY = re.compile(r"(/[^\s:'\"]+\.(?:so|pyd|dylib))\b")
_LONGEST = 200
_BEGAN, _BEING_WRITTEN = time.time(), 60.0
"""When this process began, and for how many seconds a file is taken for one that another process still writes."""


class CompileWarning(UserWarning):
    """Compiling failed, and the run goes on without."""


@contextmanager
def failures_are_raised() -> Iterator[None]:
    """Within the block, a failure to compile is raised instead of answered by going on without."""
    token = _RAISED.set(True)
    try:
        yield
    finally:
        _RAISED.reset(token)


def say_that_it_failed(error: Exception) -> None:
    """Warn of a failure to compile, or raise it where that is asked for.

    Warns:
        CompileWarning: the reason, and what was done about it.
    """
    if _RAISED.get():
        raise error
    message = f"compile: off, {why_it_failed(error)}; the run goes on without, with the same numbers up to rounding"
    warnings.warn(message, CompileWarning, stacklevel=2)


def why_it_failed(error: Exception) -> str:
    """Return the reason in one line, and delete damaged libraries of torch's cache: those that it names, and cut ones.

    One that may be cut because another process is writing it is left alone: deleted, it would be missing there.

    Torch does not always name the library that is cut short: without the small one by which it asks what the processor
    can do, it goes on, and writes code that this compiler refuses.
    """
    *_, root = _causes(error)
    lines = str(root).strip().splitlines() or [""]
    reason = f"it failed here ({type(root).__name__}: {lines[0][:_LONGEST]})"
    cache = _cache_folder()
    damaged = [*_named_libraries(error, cache), *_cut_libraries(cache)] if cache else []
    removed = [path for path in dict.fromkeys(damaged) if not _is_being_written(path) and _removed(path)]
    if removed:
        others = f" (and {len(removed) - 1} more)" if len(removed) > 1 else ""
        reason += f"; {removed[0]}{others} was damaged and is deleted, so that the next run compiles it again"
    return reason


def is_of_compiler(error: BaseException) -> bool:
    """Say whether an error comes from a compiler or its files, not from what was to be compiled."""
    for cause in _causes(error):
        kind = type(cause)
        if isinstance(cause, OSError | ImportError | subprocess.SubprocessError):
            return True
        if kind.__module__.startswith(("torch._inductor", "triton")) or kind.__name__ == "BackendCompilerFailed":
            return True
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on; torch's compiler keeps the cause in an attribute of its own."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = getattr(cause, "inner_exception", None) or cause.__cause__


def _cache_folder() -> Path | None:
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        return Path(cache_dir()).resolve()  # which makes it, if it can
    except (ImportError, OSError):
        return None


def _named_libraries(error: BaseException, cache: Path) -> list[Path]:
    """Return the libraries below torch's cache folder that an error, or what caused it, names as not to be loaded."""
    is_of_linker = any(isinstance(cause, subprocess.SubprocessError) for cause in _causes(error))
    text = "" if is_of_linker else "\n".join(map(str, _causes(error)))  # a compiler's command names what it makes
    return [path for path in map(Path, _LIBRARY.findall(text)) if path.resolve().is_relative_to(cache)]


def _cut_libraries(cache: Path) -> list[Path]:
    """Return the libraries below a folder that are shorter than they say they are."""
    if not sys.platform.startswith("linux"):
        return []  # whose format is read here
    return [path for path in sorted(cache.rglob("*.so")) if path.is_file() and _is_cut(path)]


def _is_cut(path: Path) -> bool:
    """Say whether an ELF file ends before its table of sections, which stands last."""
    try:
        with path.open("rb") as file:
            header = file.read(64)
        size = path.stat().st_size
    except OSError:
        return False
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return True
    order = ">" if header[5] == 2 else "<"
    (offset,) = struct.unpack_from(f"{order}Q", header, 0x28)
    entry, entries = struct.unpack_from(f"{order}HH", header, 0x3A)
    return size < offset + entry * entries


def _is_being_written(path: Path) -> bool:
    """Say whether a file changed since this process began, and lately, unlike one that an earlier run left."""
    try:
        changed = path.stat().st_mtime
    except OSError:
        return False
    return changed >= max(_BEGAN, time.time() - _BEING_WRITTEN)


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
