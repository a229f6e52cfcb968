"""What a search draws from: ranges of numbers and lists of values, and the trials that it draws."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import REAL, check
from torchrl_marl_offline.study.checking import StudyError

DIGITS = 4
"""Significant digits of a number that is drawn, as many as a table shows."""


@dataclass(frozen=True)
@checked
class ValueRange:
    """A range of a search: ``{ low = 0.1, high = 10, log = true }``.

    Attributes:
        low: smallest value.
        high: largest value.
        log: uniform in the logarithm; otherwise in the value.
    """

    low: Annotated[float, REAL]
    high: Annotated[float, REAL]
    log: bool = False

    def draw(self, kind: type, chance: random.Random) -> float | int:
        """Return a value of the kind that a setting has, ``int`` or ``float``."""
        if self.log:
            value = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        elif kind is int:
            return chance.randint(int(self.low), int(self.high))
        else:
            value = chance.uniform(self.low, self.high)
        value = round(value) if kind is int else float(f"{value:.{DIGITS}g}")
        return kind(min(max(value, self.low), self.high))


def number_kind(hint: Any) -> type | None:
    """Return ``int`` or ``float`` where a setting can be such a number, or ``None``."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return number_kind(parts[0])
    if origin in (Union, UnionType):
        return next(filter(None, map(number_kind, parts)), None)
    return hint if hint in (int, float) else None


def read_space(table: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a table of ranges: a :class:`ValueRange` or a list for each setting.

    Args:
        table: its keys, whose values have been checked one by one.
        hints: what each setting takes.
        where: the table, in messages.

    Raises:
        StudyError: a range that is empty, or that holds what the setting does not take.
    """
    return {name: _read(name, value, hints[name], where) for name, value in table.items()}


def _read(name: str, value: Any, hint: Any, where: str) -> Any:
    if name == "steps":
        raise StudyError(f"{where} steps: how long trials train is what the rungs of [search] say; leave it out.")
    if isinstance(value, list):
        return value
    if missing := [end for end in ("low", "high") if end not in value]:
        raise StudyError(f"{where} {name} has no {missing[0]}; give it low and high.")
    found = ValueRange(**value)
    if found.low >= found.high:
        raise StudyError(f"{where} {name} low must be below high ({found.high:g}), got {found.low:g}.")
    if found.log and found.low <= 0:
        raise StudyError(f"{where} {name} low must be above 0 with log = true, got {found.low:g}.")
    for end in ("low", "high"):
        number = getattr(found, end)
        if number_kind(hint) is int and number != int(number):
            raise StudyError(f"{where} {name} {end} must be a whole number, got {number:g}.")
        try:
            check(f"{name} {end}", int(number) if number_kind(hint) is int else number, hint)
        except ValueError as error:
            raise StudyError(f"{where} {error}") from None
    return found


def draw_points(
    space: Mapping[str, ValueRange | Sequence[Any]], hints: Mapping[str, Any], *, seed: int, name: str
) -> Any:
    """Yield settings without end, the same for the same seed and name.

    Each setting has a stream of its own, so that a further one changes nothing of the others' values.

    Args:
        space: setting -> what it is drawn from.
        hints: what each setting takes.
        seed: of the search.
        name: of the method.
    """
    chances = {key: random.Random(f"{seed}/{name}/{key}") for key in space}
    while True:
        yield {
            key: of.draw(number_kind(hints[key]) or float, chances[key])
            if isinstance(of, ValueRange)
            else chances[key].choice(of)
            for key, of in space.items()
        }
