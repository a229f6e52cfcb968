"""Classes that are known by a name, the library's and those of users."""

from __future__ import annotations

from collections.abc import MutableMapping


def register(kind: type, name: str, names: MutableMapping[str, type]) -> None:
    """Enter a class under its name.

    Raises:
        ValueError: the name is no identifier, or that of another class.
    """
    if not name.isidentifier():
        raise ValueError(f"The name of {kind.__qualname__} must be an identifier, got {name!r}.")
    known = names.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"{name!r} is the name of {known.__qualname__} already; give {kind.__qualname__} another.")
    names[name] = kind
