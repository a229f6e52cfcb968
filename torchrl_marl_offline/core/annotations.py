"""What a callable's parameters are annotated with, read where they were written."""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, get_type_hints


def is_data(kind: type) -> bool:
    """Say whether a class is a dataclass itself, not by what it is derived from."""
    return "__dataclass_fields__" in vars(kind)


def parameters_of(subject: Callable) -> Mapping[str, tuple[Any, Any]]:
    """Return name -> (annotation, default) of the parameters of a function or a class."""
    if isinstance(subject, type):
        return fields_of(subject) if is_data(subject) else _of_function(inspect.unwrap(subject.__init__))
    return _of_function(inspect.unwrap(subject))


@functools.cache
def _of_function(function: Callable) -> Mapping[str, tuple[Any, Any]]:
    found = {}
    names = getattr(function, "__globals__", {})
    for parameter in inspect.signature(function).parameters.values():
        hint = _meaning(parameter.annotation, names)
        hint = tuple[hint, ...] if parameter.kind is parameter.VAR_POSITIONAL else hint
        found[parameter.name] = (hint, parameter.default)
    return found


@functools.cache
def fields_of(kind: type) -> Mapping[str, tuple[Any, Any]]:
    """Return the fields of a dataclass; each one's annotation is read in the module that wrote it."""
    hints = {}
    for base in reversed(kind.__mro__):
        names = getattr(sys.modules.get(base.__module__), "__dict__", {})
        hints |= {name: _meaning(text, names) for name, text in vars(base).get("__annotations__", {}).items()}
    return {f.name: (hints[f.name], f.default) for f in fields(kind) if f.init}


def _meaning(annotation: Any, names: Mapping[str, Any]) -> Any:
    """Return what an annotation means; names that are not there at run time mean anything."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return get_type_hints(holder, globalns={}, localns=_Names(names), include_extras=True)["it"]
    except (TypeError, AttributeError, SyntaxError):
        return Any


class _Names(dict):
    """A module's names; those that only a type checker knows stand for anything that is no number."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, _Unknown)


class _UnknownKind(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __instancecheck__(cls, value: Any) -> bool:
        return not isinstance(value, int | float)


class _Unknown(metaclass=_UnknownKind):
    """What an annotation names that is not there at run time."""
