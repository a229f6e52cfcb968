"""Errors as who typed a command reads them: one sentence on stderr and an exit status; defects keep their traceback."""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PACKAGE = __name__.partition(".")[0]
INTERRUPTED = "interrupted; start again, or go on with --resume and the run's folder."


def sentence_of(error: BaseException, told: tuple[type[BaseException], ...] = ()) -> str | None:
    """Return what is wrong in one sentence, or ``None`` for a defect.

    An error that a ``raise`` of this library or of the script made names its remedy. What the machine says, of files,
    memory and missing libraries, is told too. Anything else is a defect.

    Args:
        error: what was raised.
        told: further kinds that are no defects, whoever raises them: where what is wrong comes from a user's file.
    """
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return f"There is not enough memory ({_one_line(str(error)) or 'MemoryError'}); take smaller sizes."
    if not (_is_told(error) or isinstance(error, (OSError, ImportError, *told))):
        return None
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.filename}: {error.strerror}." if error.filename is not None else f"{error.strerror.rstrip('.')}."
        )
    return _one_line(str(error.args[0] if isinstance(error, KeyError) and error.args else error))


def _is_told(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return True
    frame, line = frames[-1]
    module = frame.f_globals.get("__name__", "")
    ours = module == "__main__" or module.partition(".")[0] == PACKAGE
    return ours and linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")


def _is_out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def plain_errors(interrupted: str = INTERRUPTED, told: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """End the process with one sentence for Ctrl-C and for what :func:`sentence_of` tells.

    A reader that closes the pipe (``| head``) ends it quietly, and what a terminal cannot show is replaced.

    Args:
        interrupted: said after Ctrl-C, where the interruption says nothing itself.
        told: see :func:`sentence_of`.
    """
    _show_what_can_be_shown()
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        sys.exit(1)
    except KeyboardInterrupt as interruption:
        _say(f"error: {_one_line(str(interruption)) or interrupted}")
        sys.exit(130)
    except Exception as error:
        sentence = sentence_of(error, told)
        if sentence is None:
            raise
        _say(f"error: {sentence}")
        sys.exit(1)


def exit_status(
    run: Callable[[], int | None], interrupted: str = INTERRUPTED, told: tuple[type[BaseException], ...] = ()
) -> int:
    """Return the exit status of a command: its own, or that of :func:`plain_errors`."""
    try:
        with plain_errors(interrupted, told):
            return run() or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def _show_what_can_be_shown() -> None:
    """Let a terminal that knows ASCII alone show ``?`` in the place of what it does not know."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            stream.reconfigure(errors="replace")


def _forget_stdout() -> None:
    """Send what is still to be written nowhere, so that the end of the process finds no closed pipe."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
