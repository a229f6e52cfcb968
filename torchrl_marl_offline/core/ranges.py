"""The legal range of a number, written once: where the parameter is declared.

A parameter says its range in its annotation, and :func:`~.checked.checked` refuses by it:

>>> from typing import Annotated
>>> from torchrl_marl_offline.core.checked import checked
>>> @checked
... def play(*, episodes: Annotated[int, SIZE] = 10, gamma: Annotated[float, UNIT] = 0.99):
...     return episodes
>>> play(episodes=0)
Traceback (most recent call last):
    ...
ValueError: episodes must be at least 1, got 0.

Whatever else takes that number reads the range from there: a command's option (:func:`argument`), a study's key
(:func:`check`), a text (:func:`range_of`). No torch is imported here.

What is no number is said by its annotation alone, and refused by the same rule: a ``bool`` is true or false and no
string, a ``Literal`` is one of its words, a ``Callable`` can be called. Numbers that are ordered say it once, too: the
two of a pair by :data:`INCREASING`, two parameters by :class:`AtMost`.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from torchrl_marl_offline.core.annotations import is_data, parameters_of


@dataclass(frozen=True)
class Range:
    """The numbers that a parameter may have; a tuple's or mapping's range is that of each of its numbers.

    Attributes:
        low: the smallest.
        high: the largest that means something.
        above: ``low`` itself is not legal.
        below: ``high`` itself is not legal.
        limit: the largest that a machine could mean: beyond it memory or arithmetic ends, not the meaning.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    limit: float = 1e12

    def __contains__(self, number: float) -> bool:
        return self._means(number) and abs(number) <= self.limit

    def _means(self, number: float) -> bool:
        low = number > self.low if self.above else number >= self.low
        return low and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        bounds = math.isfinite(self.low), math.isfinite(self.high)
        if bounds == (True, True):
            if self.above == self.below:
                return f"between {self.low:g} and {self.high:g}" + (", both excluded" if self.above else "")
            return f"{self._low()} and {self._high()}"
        return self._low() if bounds[0] else self._high() if bounds[1] else "finite"

    def _low(self) -> str:
        return f"{'above' if self.above else 'at least'} {self.low:g}"

    def _high(self) -> str:
        return f"{'below' if self.below else 'at most'} {self.high:g}"

    def as_schema(self) -> dict[str, float]:
        """Return the range as the keywords of a JSON schema.

        Example:
            >>> RATE.as_schema(), SIZE.as_schema()
            ({'exclusiveMinimum': 0, 'maximum': 1}, {'minimum': 1, 'maximum': 1048576})
        """
        low, high = max(self.low, -self.limit), min(self.high, self.limit)
        words = {
            "exclusiveMinimum" if self.above and low == self.low else "minimum": low,
            "exclusiveMaximum" if self.below and high == self.high else "maximum": high,
        }
        numbers = {word: number for word, number in words.items() if math.isfinite(number)}
        return {word: int(number) if number == int(number) else number for word, number in numbers.items()}

    def refusal(self, number: float) -> str | None:
        """Return what a number must be, ``"at least 1"``, or None where it is that."""
        if not self._means(number):
            return str(self)
        if abs(number) <= self.limit:
            return None
        if abs(number) == math.inf:
            return "finite"
        return f"at most {self.limit:,.0f}" if number > 0 else f"at least {-self.limit:,.0f}"


class Increasing:
    """Of a pair of numbers: the first is below the second."""

    def refusal_of(self, value: Any) -> _Refusal | None:
        """Return what is wrong with a pair, or None."""
        low, high = value
        return None if low < high else _Refusal("two rising numbers", tuple(value))


INCREASING = Increasing()
"""The order of ``(low, high)``: reversed or equal they would hold nothing, or one number for all."""


@dataclass(frozen=True)
class AtMost:
    """A parameter's number is not above that of another parameter.

    Attributes:
        other: its name; None there is no bound.
        strict: whether it is below it.
        above: name of a third one, above which, and not above the other, a multiple of the number lies.
    """

    other: str
    strict: bool = False
    above: str | None = None


@dataclass(frozen=True, eq=False)
class OneOf:
    """A parameter is one of some names, to which others may be added.

    Attributes:
        names: as they are when a value is checked.
        pattern: a regular expression of all of them, where one has a number in it; ``names`` then only show them.
    """

    names: Collection[str]
    pattern: str | None = None

    def __contains__(self, value: Any) -> bool:
        return value in self.names if self.pattern is None else re.fullmatch(self.pattern, value) is not None


REAL = Range()
BOUNDS = "give one number, a list with one for each component, or such a list for each agent"
"""The remedy for a bound of actions that is neither."""
POSITIVE = Range(0, above=True)
ABOVE_ONE = Range(1, above=True)
"""A bound in units of a mean."""
NON_NEGATIVE = Range(0)
UNIT = Range(0, 1)
"""A share, a probability, a discount."""
OPEN_UNIT = Range(0, 1, above=True, below=True)
"""An expectile, a confidence level."""
RATE = Range(0, 1, above=True)
"""A share of which 0 would do nothing: the targets' ``tau``."""
LEARNING_RATE = Range(0, above=True, limit=1e17)
DISCOUNT = UNIT
COUNT = Range(1)
"""Steps, transitions: what takes time, not memory."""
COUNT_OR_NONE = Range(0)
"""The same, where 0 stands for none, or for a choice that the text names."""
SIZE = Range(1, limit=2**20)
"""What lies in memory at once: rows of a batch, environments, episodes of an evaluation, samples of an action."""
ROWS = Range(2, limit=2**20)
"""Rows of a training batch, over which losses and networks take deviations."""
SIZE_OR_NONE = Range(0, limit=2**20)
FEW = Range(1, limit=1024)
"""Heads, members, layers, iterations, workers: what has networks or loops of its own."""
SEVERAL = Range(2, limit=1024)
"""The same, where one is not enough: candidates of which some are better."""
FEW_OR_NONE = Range(0, limit=2**16)
SHARE = Range(0, 1, below=True)
"""A part of a whole that is not all of it."""
CAPACITY = Range(1, limit=2**27)
"""Transitions of a replay buffer."""
MEMORY = Range(0, limit=2**50)
"""Bytes."""
FRAMES = Range(0.01, limit=1000)
"""Frames per second."""
PIXELS = Range(32, limit=4096)
"""Height of a picture."""
WIDTHS = Range(1, limit=2**14)
"""Widths of layers."""
THREADS = Range(1, limit=1024)
THREADS_OR_AUTO = Range(0, limit=1024)
"""0 leaves the choice to torch or to the machine."""
PREFETCH = Range(0, 1)
"""Threads that prepare samples: more would draw in any order."""
SEED = Range(0, limit=2**53)
OPSET = Range(7, limit=100)
"""Of ONNX."""
HOURS = Range(0, limit=1e6)
GIBIBYTES = Range(0, limit=2**20)
RUN_SEED = Range(0, limit=2**31 - 1)
"""A run's, from which those of its parts are counted."""
EVALUATED = Range(1, limit=100_000)
"""Episodes of an evaluation during training; a last one may have several times as many."""


def check_all(
    subject: Callable,
    values: Mapping[str, Any],
    *,
    others: Mapping[str, Any] | None = None,
    name: Callable[[str], str] = str,
) -> None:
    """Check values of some of a callable's parameters, whatever else it takes.

    Args:
        subject: the function or class that declares them.
        values: by name.
        others: those of all parameters, of which some bound others; by default ``values``.
        name: writes a parameter's name as its user does, such as ``--name``.

    Raises:
        ValueError: as :func:`~.checked.checked`.
    """
    for parameter, (hint, default) in declared(subject).items():
        if parameter in values and not (values[parameter] is None and default is None):
            check(name(parameter), values[parameter], hint)
    others = values if others is None else others
    for parameter, (hint, _) in declared(subject).items():
        for bound in (extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, AtMost)):
            _check_at_most(bound, parameter, others, name)


def _check_at_most(bound: AtMost, parameter: str, values: Mapping[str, Any], name: Callable[[str], str]) -> None:
    number, most = _plain(values.get(parameter)), _plain(values.get(bound.other))
    if number is not None and most is not None and (number > most or (bound.strict and number == most)):
        words = "below" if bound.strict else "at most"
        raise ValueError(f"{name(parameter)} must be {words} {name(bound.other)} ({shown(most)}), got {shown(number)}.")
    least = None if bound.above is None else _plain(values.get(bound.above))
    # a third number beyond the other is refused by a bound of its own
    if None not in (number, most, least) and least < most < (least // number + 1) * number:
        raise ValueError(
            f"{name(parameter)} must have a multiple above {name(bound.above)} ({shown(least)}) and at most "
            f"{name(bound.other)} ({shown(most)}), got {shown(number)}."
        )


def declared(subject: Callable) -> Mapping[str, tuple[Any, Any]]:
    """Return name -> (annotation, default) of the parameters of a callable whose annotation says what they take."""
    return _declared(subject.__init__ if isinstance(subject, type) and not is_data(subject) else subject)


@functools.cache
def _declared(subject: Callable) -> Mapping[str, tuple[Any, Any]]:
    return {name: found for name, found in parameters_of(subject).items() if says_what_it_takes(found[0])}


def range_of(hint: Any) -> Range | None:
    """Return the first range that an annotation declares, at any depth."""
    if get_origin(hint) is Annotated:
        own = [extra for extra in hint.__metadata__ if isinstance(extra, Range)]
        return own[0] if own else range_of(get_args(hint)[0])
    found = (range_of(part) for part in get_args(hint) if get_origin(hint) is not Literal)
    return next((one for one in found if one is not None), None)


def says_what_it_takes(hint: Any) -> bool:
    """Say whether an annotation has, at any depth, a range, a bool, words or a function that can be checked."""
    return range_of(hint) is not None or bool(kinds_in(hint))


def kinds_in(hint: Any) -> set[Any]:
    """Return which of ``bool``, ``Literal`` and ``Callable`` an annotation has at any depth."""
    origin = get_origin(hint) or hint
    if origin in (bool, Literal, Callable):
        return {origin}
    if any(isinstance(extra, OneOf) for extra in getattr(hint, "__metadata__", ())):
        return {OneOf}
    return {found for part in get_args(hint) for found in kinds_in(part)}


def check(name: str, value: Any, hint: Any) -> None:
    """Raise unless a value is what an annotation wants.

    Args:
        name: of the parameter, for the message.
        value: a number, or a list, tuple or mapping of numbers where the annotation is one.
        hint: such as ``Annotated[int, COUNT]``; a string after the range says what to do instead.

    Raises:
        ValueError: it is not; the message is one sentence.
    """
    refusal = _refusal(value, hint, None)
    if refusal is not None:
        remedies = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, str)]
        raise ValueError(f"{'; '.join([f'{name} {refusal}', *remedies])}.")


class _Refusal(NamedTuple):
    """What a value should have been."""

    wanted: str
    value: Any
    is_kind: bool = False

    def __str__(self) -> str:
        must = "must lie" if self.wanted.startswith("between") else "must be"
        return f"{must} {self.wanted}, got {shown(self.value)}"


def _refusal(value: Any, hint: Any, legal: Range | None) -> _Refusal | None:
    """Return what is wrong with a value under an annotation, or None."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        named = next((extra for extra in hint.__metadata__ if isinstance(extra, OneOf)), None)
        if named is not None:
            is_one = value in named if isinstance(value, str) else value is None and NoneType in get_args(parts[0])
            return None if is_one else _Refusal(_either(tuple(named.names)), value, True)
        own = next((extra for extra in hint.__metadata__ if isinstance(extra, Range)), legal)
        found = _refusal(value, parts[0], own)
        ordered = found is None and value is not None and INCREASING in hint.__metadata__
        return INCREASING.refusal_of(value) if ordered else found
    if origin in (Union, UnionType):
        return _most_telling([_refusal(value, part, legal) for part in parts], value)
    if hint in (int, float):
        return legal and _number_refusal(value, hint, legal)
    if hint is bool:
        return None if is_bool(value) else _Refusal("True or False", value, True)
    if origin is Literal:
        is_one = any(type(value) is type(part) and value == part for part in parts)
        return None if is_one else _Refusal(_either(parts), value, True)
    return _other_refusal(value, NoneType if hint is None else origin or hint, parts, legal)


def _other_refusal(value: Any, kind: Any, parts: tuple, legal: Range | None) -> _Refusal | None:
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or kind in (object, Any):
        return None
    if issubclass(kind, Mapping) and parts:
        values = value.values() if isinstance(value, Mapping) else ()
        found = [_refusal(item, parts[1], legal) for item in values]
        return _first(found) if isinstance(value, Mapping) else _Refusal("a mapping", value, True)
    if issubclass(kind, Iterable) and parts:
        return _series_refusal(value, kind, parts, legal)
    if isinstance(value, kind):
        return None
    words = {NoneType: "None", Callable: "a function"}
    return _Refusal(words.get(kind, f"a {kind.__name__}"), value, True)


def _either(words: tuple) -> str:
    *before, last = map(repr, words)
    return f"{', '.join(before)} or {last}" if before else last


def is_bool(value: Any) -> bool:
    """Say whether a value is true or false, as Python, numpy or a tensor with one element has it."""
    return isinstance(_python(value), bool)


def _series_refusal(value: Any, kind: type, parts: tuple, legal: Range | None) -> _Refusal | None:
    is_series = hasattr(value, "__len__") and hasattr(value, "__iter__") and getattr(value, "ndim", 1) >= 1
    if not is_series or isinstance(value, str | bytes | Mapping):
        return _Refusal("a list of numbers" if legal else f"a {kind.__name__}", value, True)
    is_fixed = kind is tuple and Ellipsis not in parts
    if is_fixed and len(value) != len(parts):
        return _Refusal(f"a list of {len(parts)} values", value, True)
    return _first(
        _refusal(item, part, legal) for item, part in zip(value, parts if is_fixed else parts[:1] * len(value))
    )


def _first(refusals: Iterable[_Refusal | None]) -> _Refusal | None:
    return next((one for one in refusals if one is not None), None)


def _most_telling(refusals: list[_Refusal | None], value: Any) -> _Refusal | None:
    """Return None where one option of a union takes a value; else a range's refusal before that of a kind."""
    if None in refusals:
        return None
    near = sorted((one for one in refusals if not one.is_kind or one.value is not value), key=lambda one: one.is_kind)
    wanted = dict.fromkeys(one.wanted for one in refusals if one.wanted != "None")
    return near[0] if near else _Refusal(" or ".join(wanted), value, True)


def _number_refusal(value: Any, kind: type, legal: Range) -> _Refusal | None:
    number = _plain(value)
    if number is None or (kind is int and not isinstance(number, int)):
        return _Refusal("a whole number" if kind is int else "a number", value, True)
    wanted = legal.refusal(number)
    return wanted and _Refusal(wanted, number)


def _plain(value: Any) -> int | float | None:
    """Return a number as Python has it, from numpy and from a tensor with one element too; None for what is none."""
    value = _python(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _python(value: Any) -> Any:
    """Return what a scalar of numpy, or a tensor without dimensions, is in Python."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def in_python(value: Any) -> Any:
    """Return Python's numbers and lists in the place of NumPy's, also within dicts, lists and tuples.

    What is kept of a setting is saved, and a file with a scalar of NumPy cannot be loaded.
    """
    if type(value) is dict:
        return {name: in_python(each) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(in_python, value))
    return value.tolist() if type(value).__module__ == "numpy" else value


def shown(value: Any) -> str:
    """Return a value as a message has it, in a few words however long it is."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"a number of {value.bit_length()} bits"
    try:
        text = " ".join((str(value) if isinstance(value, os.PathLike) else repr(value)).split())
    except (RecursionError, ValueError):  # tables of a thousand levels, and what holds a number of as many digits
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def argument(hint: Any) -> Callable[[str], Any]:
    """Return the ``type=`` of an argparse option whose range is that of an annotation, which is its ``hint``.

    Args:
        hint: such as ``Annotated[int, SIZE]``.
    """
    kind = _kind(hint)

    def read(text: str) -> int | float:
        try:
            number = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(str(_Refusal(wanted, text))) from None
        if (refusal := _refusal(number, hint, None)) is not None:
            raise argparse.ArgumentTypeError(str(refusal))
        return number

    read.hint = hint
    return read


def _kind(hint: Any) -> type:
    """Return int where an annotation's first number is one, else float."""
    return _kind(get_args(hint)[0]) if get_args(hint) else int if hint is int else float


def option_of(subject: Callable, name: str) -> Any:
    """Return the annotation of a callable's parameter, for :func:`argument` and :func:`check`."""
    return declared(subject)[name][0]
