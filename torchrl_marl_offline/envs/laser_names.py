"""The names of the laser worlds, known without importing their package."""

from __future__ import annotations

import re
from typing import Literal, get_args

WorldKind = Literal["none", "one_sided", "mutual"]
"""What help of each other a world is certified to need."""

CORE_WORLDS = (
    *("lle/none-0", "lle/none-1"),
    *("lle/one_sided-0", "lle/one_sided-1"),
    *("lle/mutual-0", "lle/mutual-1"),
)
"""Two small worlds of each kind, with their default options."""

_CERTIFIED = re.compile(rf"({'|'.join(get_args(WorldKind))})-(0|[1-9]\d{{0,8}})")
_PLACE = "laser_grid:certified_world"


class WorldNames(dict[str, str]):
    """Task name -> ``"module:function"``; also has every ``none-N``, ``one_sided-N`` and ``mutual-N``."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and _CERTIFIED.fullmatch(name) is not None)

    def __missing__(self, name: str) -> str:
        if name not in self:
            raise KeyError(name)
        return _PLACE


def world_names() -> WorldNames:
    """Return what :func:`~torchrl_marl_offline.make_env` finds below ``lle/``."""
    levels = {f"level{number}": "laser_grid:laser_level" for number in range(1, 7)}
    certified = {f"{kind}-{seed}": _PLACE for kind in get_args(WorldKind) for seed in range(3)}
    return WorldNames(levels | certified | {"custom": "laser_grid:custom_world"})


def split_world_name(name: str) -> tuple[WorldKind, int]:
    """Return kind and seed: ``split_world_name("mutual-1")`` is ``("mutual", 1)``.

    Raises:
        ValueError: it is no such name.
    """
    found = _CERTIFIED.fullmatch(name)
    if found is None:
        raise ValueError(f"A certified world is named none-N, one_sided-N or mutual-N, N its seed, got {name!r:.60}.")
    return found[1], int(found[2])
