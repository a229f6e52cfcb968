"""What to do where compiling fails on this machine: say so, mend torch's cache, go on without.

Compiling needs a C++ compiler (Triton on a GPU) and a cache folder that can be written. A process that is ended while
it compiles can leave a file in that cache that is cut short, and every later run would fail on it.
"""

from __future__ import annotations

import re
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_RAISED = ContextVar("compile failures are raised", default=False)
_LIBRARY = re.compile(r"(/[^\s:'\"]+\.(?:so|pyd|dylib))\b")
_LONGEST = 200


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
    """Return the reason in one line, and delete a damaged library of torch's cache that it names."""
    *_, root = _causes(error)
    lines = str(root).strip().splitlines() or [""]
    reason = f"it failed here ({type(root).__name__}: {lines[0][:_LONGEST]})"
    removed = [path for path in _named_libraries(error) if _removed(path)]
    if removed:
        reason += f"; {removed[0]} was damaged and is deleted, so that the next run compiles it again"
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


def _named_libraries(error: BaseException) -> list[Path]:
    """Return the libraries below torch's cache folder that an error, or what caused it, names."""
    text = "\n".join(map(str, _causes(error)))
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        cache = Path(cache_dir()).resolve()  # which makes it, if it can
    except (ImportError, OSError):
        return []
    return [path for path in map(Path, _LIBRARY.findall(text)) if path.resolve().is_relative_to(cache)]


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
