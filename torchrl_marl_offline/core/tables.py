"""Tables of a TOML file: their keys with what annotations say of them, checked by pydantic, and as a JSON schema.

A table is made of the fields of dataclasses: the ranges, words and defaults that stand there are all that is known of
its keys. What is wrong is said in one sentence that names the table, the key and the remedy. pydantic is imported where
a table is read.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Required, Union, get_args, get_origin, get_type_hints

from typing_extensions import TypedDict, is_typeddict  # what pydantic needs before Python 3.12

from torchrl_marl_offline.core.annotations import fields_of
from torchrl_marl_offline.core.docstrings import plain_text, told_of
from torchrl_marl_offline.core.ranges import OneOf, Range, check, shown
from torchrl_marl_offline.core.relevance import ReadWith, conditions_of

ONCE = object()
"""Of an annotation: no value of the list is there twice."""


class Key(NamedTuple):
    """A key of a table.

    Attributes:
        hint: what it takes: a type, with the range of its numbers (:mod:`~torchrl_marl_offline.core.ranges`).
        default: what holds without it, where that can be said.
        text: what is said of it.
    """

    hint: Any
    default: Any = None
    text: str = ""


def keys_of(kind: type) -> dict[str, Key]:
    """Return the fields of a dataclass as keys, with what its docstring says of them and when they are read."""
    told = told_of(kind)
    return {
        name: Key(hint, None if default is MISSING else default, " ".join([told.get(name, ""), *_read_with(hint)]))
        for name, (hint, default) in fields_of(kind).items()
    }


def _read_with(hint: Any) -> list[str]:
    return [f"Read only with {one.words(one.other)}." for one in conditions_of(hint) if isinstance(one, ReadWith)]


def table_type(name: str, keys: Mapping[str, Key], text: str, *, required: Iterable[str] = ()) -> type:
    """Return the type of a table, as pydantic reads it: strictly, and without any other key.

    Args:
        name: of the type.
        keys: what the table may have.
        text: what is said of it.
        required: tables that it must have, and not empty.
    """
    from pydantic import ConfigDict, Field

    hints = {}
    for key, (hint, default, told) in keys.items():
        extra = {"default": default} if _is_plain(default) else {}
        said = {"description": plain_text(told).strip(), "json_schema_extra": extra}
        read = _read_by_pydantic(hint)
        if key in required:
            hints[key] = Required[Annotated[read, Field(min_length=1, **said)]]
        else:
            hints[key] = Annotated[read, Field(**said)]
    kind = TypedDict(name, hints, total=False)
    kind.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, json_schema_extra={"description": text})
    return kind


def _is_plain(default: Any) -> bool:
    """Say whether a file could hold a default: TOML has no null."""
    if isinstance(default, list | tuple):
        return all(map(_is_plain, default))
    return isinstance(default, bool | int | str) or (isinstance(default, float) and math.isfinite(default))


def _read_by_pydantic(hint: Any) -> Any:
    """Return an annotation as pydantic reads a TOML file by it: series are lists, and ranges are checked."""
    from pydantic import AfterValidator, BeforeValidator, Field, Strict

    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[_read_by_pydantic(parts[0]), AfterValidator(partial(_in_range, hint)), _Told(hint)]
    if origin in (Union, UnionType):
        return Union[tuple(map(_read_by_pydantic, parts))]  # noqa: UP007
    if origin in (list, tuple, Sequence):
        return Annotated[list[_read_by_pydantic(parts[0])], Field(min_length=1)]
    if origin is Mapping:
        return dict[str, Any]
    if hint is float:
        return Annotated[float, BeforeValidator(_exact)]
    if hint is Path:
        return Annotated[Path, Strict(False)]
    if hint in (int, str, bool, NoneType, Any) or origin in (Literal, dict) or is_typeddict(hint):
        return hint
    return Annotated[Any, AfterValidator(_not_of_a_file)]


def _check_once(values: Sequence[Any]) -> None:
    """Raise for a list that has a value twice."""
    seen = set()
    for value in values:
        if _hashable(value) in seen:
            raise ValueError(f"has {shown(value)} twice; leave one out.")
        seen.add(_hashable(value))


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else (type(value), value)


def _in_range(hint: Any, value: Any) -> Any:
    check("", value, hint)
    if ONCE in hint.__metadata__:
        _check_once(value)
    return value


def _exact(value: Any) -> Any:
    """Refuse a whole number that no float is equal to."""
    if isinstance(value, int) and abs(value) >= 2**53:
        raise ValueError(f"must be a number, got {shown(value)}.")
    return value


def _not_of_a_file(value: Any) -> Any:
    raise ValueError(f"is of a kind that no file can hold, got {shown(value)}.")


@dataclass(frozen=True, eq=False)
class _Told:
    """What of an annotation a JSON schema can say: ranges, names, and that no value is there twice."""

    hint: Any

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Callable[[Any], dict]) -> dict[str, Any]:
        schema = handler(core_schema)
        for extra in self.hint.__metadata__:
            if isinstance(extra, Range):
                _bound(schema, extra.as_schema())
            elif isinstance(extra, OneOf):
                schema |= {"enum": list(extra.names)} if extra.pattern is None else {"pattern": f"^({extra.pattern})$"}
            elif extra is ONCE:
                schema["uniqueItems"] = True
        return schema


def _bound(schema: dict[str, Any], bounds: Mapping[str, float]) -> None:
    if schema.get("type") in ("integer", "number") and not {"minimum", "exclusiveMinimum"} & set(schema):
        schema |= bounds
    for inner in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        _bound(inner, bounds)


@functools.cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def json_schema_of(kind: type) -> dict[str, Any]:
    """Return the JSON schema of a table's type."""
    from pydantic.json_schema import GenerateJsonSchema

    class OfToml(GenerateJsonSchema):
        """TOML has no null."""

        def nullable_schema(self, schema: Any) -> dict[str, Any]:
            return self.generate_inner(schema["schema"])

    return {"$schema": OfToml.schema_dialect, **_adapter(kind).json_schema(schema_generator=OfToml)}


def check_keys(table: Iterable[str], known: Iterable[str], where: str, what: str = "key") -> None:
    """Raise for a key, or another name, that is not known, naming the nearest that is.

    Raises:
        ValueError: there is one.
    """
    known = list(dict.fromkeys(known))
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(known)}."
            raise ValueError(f"{where} has an unknown {what} {name!r}; {remedy}")


def validated(
    kind: type, table: Mapping[str, Any], whole: str, *, examples: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a table as its type wants it: whole numbers as floats, where these are wanted.

    Args:
        kind: of :func:`table_type`.
        table: as TOML has it.
        whole: names the table in errors.
        examples: of the tables that it must have.

    Raises:
        ValueError: a key is unknown or lacking, or a value is of another kind, outside its range, or none of the words
            that are known.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(table)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    unknown = [each for each in errors if each["type"] == "extra_forbidden"]
    first = _innermost(table, unknown or errors)
    path = _path_to(table, first)
    where = table_name(*path[:-1]) if path[1:] else whole
    if unknown:
        check_keys({path[-1]: None}, _keys_at(kind, path[:-1]), where)
    if not path[1:] and path[0] in (examples or {}) and first["type"] in ("missing", "too_short"):
        raise ValueError(f"{whole} has no {path[0].removesuffix('s')}; add a table such as {examples[path[0]]}.")
    if first["type"] == "dict_type":
        full = table_name(*path)
        raise ValueError(f"{full[1:-1]} must be a table, {full}, got {shown(first['input'])}.")
    raise ValueError(f"{where} {path[-1]} {_most_telling([each for each in errors if _path_to(table, each) == path])}")


_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "path_type": "a path",
    "list_type": "a list of values",
    "dict_type": "a list of values or a table",  # of what can be a table alone, more is said before
    "too_short": "a list with at least one value",
}


def _path_to(table: Any, error: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that lead to what an error is about, without places in lists and options of unions."""
    path = []
    for part in error["loc"]:
        if isinstance(table, Mapping) and (part in table or error["type"] == "missing"):
            path.append(part)
            table = table.get(part)
        elif isinstance(table, list) and isinstance(part, int):
            table = table[part]
    return tuple(path)


def _innermost(table: Any, errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the first error; of a table that could also be something else, the first within it."""
    if not isinstance(errors[0]["input"], Mapping):
        return errors[0]
    path = _path_to(table, errors[0])
    within = [each for each in errors if (own := _path_to(table, each))[: len(path)] == path and len(own) > len(path)]
    return (within or errors)[0]


def _keys_at(kind: Any, path: Iterable[str]) -> list[str]:
    """Return the keys that a table within a type knows."""
    for part in path:
        kind = get_args(kind)[1] if get_origin(kind) is dict else get_type_hints(kind)[part]
        if get_origin(kind) in (Union, UnionType):
            kind = next(filter(is_typeddict, get_args(kind)))
    return list(get_type_hints(kind))


def _most_telling(errors: list[Mapping[str, Any]]) -> str:
    """Return what is wrong with a value, or with the first wrong one of a list.

    Each option of a union has refused it: what the one says whose kind it is, else the last.
    """
    places = [[part for part in each["loc"] if isinstance(part, int)] for each in errors]
    first = next(filter(None, places), [])
    errors = [each for each, place in zip(errors, places) if place in ([], first)]
    told = [str(each["ctx"]["error"]).strip() for each in errors if each["type"] == "value_error"]
    if told:
        return told[0]
    last = errors[-1]
    wanted = _WANTED.get(last["type"], "something else")
    if last["type"] == "literal_error":
        words = re.findall("'([^']*)'", last["ctx"]["expected"])
        wanted = f"one of {', '.join(words)}"
    return f"must be {wanted}, got {shown(last['input'])}."


def table_name(*path: str) -> str:
    """Return a table's name as TOML has it: ``[methods."a b"]``."""
    words = [name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False) for name in path]
    return f"[{'.'.join(words)}]"
