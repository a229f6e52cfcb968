"""Settings are given by their names: what is said to who leaves the name out."""

from __future__ import annotations

from typing import Any, Self


class NamedSettings:
    """Base class of dataclasses whose fields are settings."""

    def __new__(cls, *settings: Any, **named: Any) -> Self:
        """Refuse more settings without names than have a place.

        Raises:
            TypeError: the message shows the call with a name.
        """
        fields = {name: each for name, each in getattr(cls, "__dataclass_fields__", {}).items() if each.init}
        places = [name for name, each in fields.items() if not each.kw_only]
        if len(fields) > len(places) and len(settings) > len(places) and cls.__dataclass_params__.init:
            own = [name for name in vars(cls).get("__annotations__", {}) if name in fields]
            name = next(name for name in [*own, *fields] if name not in places)
            raise TypeError(
                f"{cls.__name__} takes its settings by their names, such as {cls.__name__}({name}={settings[-1]!r})."
            )
        return super().__new__(cls)
