"""Options that are read only beside others: said once, where the option is declared.

    temperature: Annotated[float, NON_NEGATIVE, ReadWith("extraction", "awr")] = 10.0

Given explicitly where it changes nothing, such an option is refused: somebody believes that it does. Its default may
stand there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, get_origin

from torchrl_marl_offline.core.annotations import parameters_of
from torchrl_marl_offline.core.ranges import Range, shown


class Condition(Protocol):
    """What has to be so for an option to be read."""

    def refusal(self, option: str, values: Mapping[str, Any], name: Callable[[str], str]) -> str | None:
        """Return why an option is not read beside ``values``, or None where it is."""


@dataclass(frozen=True, init=False, eq=False)
class ReadWith:
    """An option is read only where another has one of some values, is above a number, or is given at all.

    Attributes:
        other: the other option.
        values: its values; ``among`` is a collection of them to which others may be added.
        above: or the number; None, which stands for a default, is taken for more.
        given: or whether it is not None.
    """

    other: str
    values: Collection[Any] = ()
    above: float | None = None
    given: bool = False

    def __init__(
        self,
        other: str,
        *values: Any,
        among: Collection[Any] | None = None,
        above: float | None = None,
        given: bool = False,
    ) -> None:
        values = values if among is None else among
        for name, value in (("other", other), ("values", values), ("above", above), ("given", given)):
            object.__setattr__(self, name, value)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Say whether the option is read beside these values; also where the other is not among them."""
        value = values.get(self.other)
        if self.given:
            return value is not None
        if self.above is not None:
            return value is None or value > self.above
        return self.other not in values or value in self.values

    def refusal(self, option: str, values: Mapping[str, Any], name: Callable[[str], str]) -> str | None:
        """Return why an option is not read beside ``values``, or None where it is."""
        if self.holds(values):
            return None
        other, value = name(self.other), values.get(self.other)
        return (
            f"{name(option)} is read only with {self.words(other)}, and {other} is {shown(value)} here; leave "
            f"{name(option)} out."
        )

    def words(self, other: str) -> str:
        """Return what it is read with, ``other`` being the other's name."""
        if self.given:
            return other
        if self.above is not None:
            return f"{other} above {self.above:g}"
        if tuple(self.values) in ((None,), ((),)):
            return f"no {other}"
        return f"{other} {' or '.join(map(repr, self.values))}"


class _OfContinuous(ReadWith):
    """An option is read only in tasks of continuous actions; the values may have that under :data:`DISCRETE`."""

    def __init__(self) -> None:
        super().__init__(DISCRETE, False)

    def refusal(self, option: str, values: Mapping[str, Any], name: Callable[[str], str]) -> str | None:
        """Return why an option is not read beside ``values``, or None where it is."""
        if self.holds(values):
            return None
        return f"{name(option)} is read only in {self.words('')}, and those of this one are discrete; leave it out."

    def words(self, other: str) -> str:
        """Return what it is read with."""
        return "a task of continuous actions"


DISCRETE = "actions are discrete"
"""The name of what a task says beside the options; no option can have it."""
OF_CONTINUOUS = _OfContinuous()
"""An option is read only in tasks of continuous actions."""


def conditions_of(hint: Any) -> list[Condition]:
    """Return the conditions under which an annotated option is read; none where it always is."""
    if get_origin(hint) is not Annotated:
        return []
    return [extra for extra in hint.__metadata__ if hasattr(extra, "refusal") and not isinstance(extra, Range)]


def check_read(
    subject: Callable, given: Iterable[str], values: Mapping[str, Any], *, name: Callable[[str], str] = str
) -> None:
    """Refuse options that were given and change nothing.

    Args:
        subject: the function or class that declares them.
        given: names of what was given explicitly.
        values: of all options, defaults included.
        name: writes an option's name as its user does, such as ``--name``.

    Raises:
        ValueError: there is one; the message names what it would be read with.
    """
    known = parameters_of(subject)
    for option in given:
        refusal = unread(subject, option, values, name=name)
        if refusal is not None and values[option] != known[option][1]:  # a default may stand there
            raise ValueError(refusal)


def unread(
    subject: Callable, option: str, values: Mapping[str, Any], *, name: Callable[[str], str] = str
) -> str | None:
    """Return why an option of ``subject`` changes nothing beside ``values``, or None where it does."""
    hint, _ = parameters_of(subject).get(option, (None, None))
    refusals = (condition.refusal(option, values, name) for condition in conditions_of(hint))
    return next((refusal for refusal in refusals if refusal is not None), None)
