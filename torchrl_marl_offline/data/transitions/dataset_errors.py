"""What is wrong with a dataset, and whether its values are looked at when it is built."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from torchrl_marl_offline.core.files import WriteError
from torchrl_marl_offline.core.regular_files import NotRegularError

_LONGEST_MESSAGE = 2000
_values_are_checked: ContextVar[bool] = ContextVar("values_are_checked", default=True)


@contextmanager
def value_checks_deferred() -> Iterator[None]:
    """Let datasets that are built inside the block check keys, shapes and types only.

    So inspection and repair see what :func:`~.validation.validate` would refuse, whichever reader it came through.
    ``validate`` itself checks everything, here too.
    """
    token = _values_are_checked.set(False)
    try:
        yield
    finally:
        _values_are_checked.reset(token)


def values_are_checked() -> bool:
    """Say whether a dataset that is built now looks at its values."""
    return _values_are_checked.get()


class DatasetError(ValueError):
    """A dataset, or the file it should come from, is not what it has to be; the message names the remedy.

    It is one line that any terminal can print: names from a file may hold anything.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__("".join(char if char.isprintable() else "?" for char in str(message))[:_LONGEST_MESSAGE])


class DatasetWarning(UserWarning):
    """A dataset has a defect that training may stumble over; the message names the remedy."""


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn whatever a format's library raises over damaged content into a :class:`DatasetError` that names the file.

    Missing libraries and a full disk (``ImportError``, ``OSError`` with an ``errno``) keep their own errors.
    """
    try:
        yield
    except (DatasetError, NotRegularError) as error:
        if str(path) not in str(error):
            raise DatasetError(f"{path}: {error}") from error
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(str(error)) from error
    except (ImportError, WriteError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DatasetError(
            f"{path} cannot be read ({reason}); it is damaged or of another format, fetch it again."
        ) from error
