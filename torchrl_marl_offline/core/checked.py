"""``@checked``: a function or a class refuses what its annotations do not allow, before it does anything."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar

from torchrl_marl_offline.core.annotations import fields_of, parameters_of
from torchrl_marl_offline.core.ranges import check_all, declared, in_python
from torchrl_marl_offline.core.relevance import check_read

Subject = TypeVar("Subject")


def checked(subject: Subject) -> Subject:
    """Refuse numbers outside the ranges that a function, or a class's ``__init__``, declares, and what is no bool, none
    of a literal's words, or no function where the annotation wants one.

    Works on functions, methods and classes. Below ``@dataclass`` a class is checked in its ``__post_init__``, and so
    are the dataclasses derived from it. ``None`` is legal where it is the default or in the annotation. Annotations are
    read at the first call, so that names which only a type checker imports do no harm. NumPy's scalars become Python's
    numbers where a range is declared.

    Raises:
        ValueError: at the call, for a number outside its range, for NaN, and for what is no such number: a bool, a
            string, or a fraction where whole numbers are counted; for a string or a number in the place of a bool, for
            another word than a literal's, and for what cannot be called.
    """
    if not isinstance(subject, type):
        return _checked_call(subject, subject)
    if "__init__" in vars(subject):
        source = subject if is_dataclass(subject) else subject.__init__
        subject.__init__ = _checked_call(subject.__init__, source)
    else:
        _check_after_init(subject)
    return subject


def _checked_call(function: Callable, source: Callable) -> Callable:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind_partial(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which says what is wrong with the call
        given = bound.arguments
        values = {name: default for name, (_, default) in parameters_of(source).items()} | given
        check_all(source, given, others=values)
        check_read(source, given, values)
        given.update({name: in_python(given[name]) for name in declared(source) if name in given})
        return function(*bound.args, **bound.kwargs)

    return call


def check_fields(instance: Any, kind: type) -> None:
    """Check the fields of a dataclass by the ranges that ``kind`` declares, and hold Python's numbers for NumPy's.

    Raises:
        ValueError: see :func:`checked`.
    """
    values = {name: getattr(instance, name) for name in fields_of(kind)}
    check_all(kind, values)
    check_read(kind, values, values)
    for name in declared(kind):
        object.__setattr__(instance, name, in_python(values[name]))


def _check_after_init(kind: type) -> None:
    before = getattr(kind, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        check_fields(self, kind)
        if before is not None:
            before(self)

    kind.__post_init__ = __post_init__
