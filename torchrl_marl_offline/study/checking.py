"""What a study file may say: keys that are known, values of the right kind, errors in one sentence."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torchrl_marl_offline.core.ranges import check
from torchrl_marl_offline.training.run.metrics import DIAGNOSES

Kind = TypeVar("Kind")
_KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", Path: "a path"}


class StudyError(ValueError):
    """A study file, or the folder of a study, is not what it should be; the message names the remedy."""


def check_installed() -> None:
    """Raise for a library of the extra ``study`` that is missing, before anything is trained.

    Raises:
        ImportError: there is one.
    """
    missing = [name for name in ("pandas", "pyarrow", "rliable") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"A study's table and report need {' and '.join(missing)}; install the extra: pip install "
            "'torchrl-marl-offline[study]'."
        )


def check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise for a key that is not known, naming the nearest that is.

    Raises:
        StudyError: there is one.
    """
    known = list(dict.fromkeys(known))
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(known)}."
            raise StudyError(f"{where} has an unknown key {name!r}; {remedy}")


def check_once(values: Sequence[Any], where: str) -> None:
    """Raise for a list that has a value twice.

    Raises:
        StudyError: it has.
    """
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise StudyError(f"{where} has {twice[0]!r} twice; leave one out.")


def check_metric(name: str) -> None:
    """Raise for a metric that must not be compared.

    Raises:
        StudyError: it says how like the data policies are, not what they earn.
    """
    if name in DIAGNOSES:
        raise StudyError(
            f"[study] metric {name!r} says how like the recorded data a policy is, not what it earns: cloning has the "
            "best by construction. It is reported as a diagnosis; leave metric out, or name one of a simulator."
        )


def subtable(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the table ``name`` of a table, empty where it is not there.

    Raises:
        StudyError: it is something else.
    """
    content = table.get(name, {})
    if not isinstance(content, Mapping):
        raise StudyError(f"{name} must be a table, [{name}], got {content!r}.")
    return content


def build(kind: type[Kind], table: Mapping[str, Any], where: str) -> Kind:
    """Make a dataclass of a table, its values converted to what the fields say.

    Raises:
        StudyError: a key is unknown or lacking, or a value is of another kind.
    """
    hints = get_type_hints(kind, include_extras=True)
    check_keys(table, [f.name for f in fields(kind)], where)
    values = {name: converted(value, hints[name], f"{where} {name}") for name, value in table.items()}
    for f in fields(kind):
        if f.default is MISSING and f.default_factory is MISSING and f.name not in values:
            raise StudyError(f"{where} lacks {f.name!r}.")
    return kind(**values)


def converted(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as ``hint`` wants it: a whole number as a float, a list as a tuple.

    Args:
        value: as TOML has it.
        hint: the type, with the range of its numbers (:mod:`~torchrl_marl_offline.core.ranges`).
        where: names it in errors.

    Raises:
        StudyError: it is of another kind, a number outside its range, or none of a literal's words.
    """
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _in_range(converted(value, choices[0], where), hint, where)
    if origin is Literal:
        if value in choices:
            return value
        raise StudyError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}.")
    if origin in (Union, UnionType):
        if value is None and type(None) in choices:
            return None
        for choice in (each for each in choices if each is not type(None)):
            try:
                return converted(value, choice, where)
            except StudyError as error:
                last = error
        raise last
    if origin in (tuple, Sequence):
        if not isinstance(value, list | tuple) or not value:
            raise StudyError(f"{where} must be a list with at least one value, got {value!r}.")
        return tuple(converted(item, choices[0], where) for item in value)
    if origin is Mapping and not isinstance(value, Mapping):
        raise StudyError(f"{where} must be a table, got {value!r}.")
    if origin is Mapping or hint is Any:
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**53 else value  # one that is too large is refused as it was written
    if hint not in _KINDS or not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise StudyError(f"{where} must be {_KINDS.get(hint, 'something else')}, got {value!r}.")
    return value


def _in_range(value: Any, hint: Any, where: str) -> Any:
    try:
        check(where, value, hint)
    except ValueError as error:
        raise StudyError(str(error)) from None
    return value
