"""Files of a user's own that register algorithms, rules, mixers, readers or environments, imported by commands.

``marl-offline --import mine.py COMMAND ...`` imports them before the command starts, in its worker processes too.
Nothing is imported that a file names: neither a dataset nor a study can have code run.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

_IMPORTED: list[str] = []


def import_extensions(names: Sequence[str]) -> None:
    """Import each file ``PATH.py`` or module ``package.module``, once.

    Raises:
        ValueError: there is none, or it fails while it is imported.
    """
    for name in names:
        path = Path(name).expanduser().resolve() if name.endswith(".py") else None
        known = name if path is None else str(path)
        if known in _IMPORTED:
            continue
        try:
            importlib.import_module(name) if path is None else _import_file(path)
        except Exception as error:
            raise ValueError(f"--import {name} failed: {type(error).__name__}: {error}.") from error
        _IMPORTED.append(known)


def import_room(package: str) -> None:
    """Import every file of a package of the library's own, so that what it registers is known without a list of files.

    Args:
        package: its name; its subpackages are left alone.
    """
    for _, name, is_package in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not is_package:
            importlib.import_module(f"{package}.{name}")


def imported_extensions() -> tuple[str, ...]:
    """Return what was imported, as another process can import it."""
    return tuple(_IMPORTED)


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stem in sys.modules:
        raise ImportError(f"there is a module {path.stem!r} already; give the file another name")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # so that what it defines can be pickled
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
