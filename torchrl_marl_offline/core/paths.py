"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path


def user_path(path: str | Path) -> Path:
    """Return a path in which a leading ``~`` is the home folder: a shell leaves it alone in ``--output=~/runs``.

    Raises:
        ValueError: there is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path} names a home folder that is not known here; write the path in full.") from error
