"""Names that have moved to another package and can still be had where they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def moved(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__`` for names that have moved: each is found, with a DeprecationWarning.

    Args:
        package: its name.
        places: name -> the package that has it now. It is imported when the name is asked for, not before: it may stand
            above this one.
    """

    def __getattr__(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warnings.warn(f"{package}.{name} is now {places[name]}.{name}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(places[name]), name)

    return __getattr__
