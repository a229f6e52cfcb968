"""Paths as users write them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST_NAME = 200
"""Bytes of a folder's name: those of files and locks beside it are made of it, and a file system allows 255."""


def user_path(path: str | Path) -> Path:
    """Return a path in which a leading ``~`` is the home folder: a shell leaves it alone in ``--output=~/runs``.

    Raises:
        ValueError: there is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path} names a home folder that is not known here; write the path in full.") from error


def folder_name(name: str, what: str) -> str:
    """Return a name that is to become a folder's, if it can be one, within the folder where it is made.

    Args:
        name: as the user gave it.
        what: it names, for the message.

    Raises:
        ValueError: it is empty, too long, has separators of paths or control characters, or is ``.`` or ``..``.
    """
    is_one = isinstance(name, str) and name.strip(" .") and not set(name) & set("/\\") and name.isprintable()
    if not is_one or len(os.fsencode(name)) > LONGEST_NAME:
        raise ValueError(
            f"{what} becomes the name of a folder, which {str(name)[:60]!r} cannot be: give it 1 to {LONGEST_NAME} "
            "bytes without slashes, not only dots."
        )
    return name


def mixed_skill_name(task: str, episodes: int, seed: int, options: Mapping[str, Any] | None = None) -> str:
    """Return the name of the folder in which a command keeps what it recorded itself.

    Args:
        task: ``"family/task"``.
        episodes: how many.
        seed: of the recording.
        options: of the task; a short sum of them stands in the name.
    """
    name = f"{task.replace('/', '-')}-mixed-{episodes}-seed{seed}"
    if not options:
        return name
    said = json.dumps(dict(options), sort_keys=True)
    return f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
