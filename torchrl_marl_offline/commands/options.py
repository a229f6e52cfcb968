"""A dataclass of settings as options of a parser: words, numbers, switches, lists, with their ranges."""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torchrl_marl_offline.core.annotations import parameters_of
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import range_of


def flag(name: str) -> str:
    """Return an option's name as it stands on the command line; ``from_`` is ``--from``, no name of Python's."""
    return "--" + name.removesuffix("_").replace("_", "-")


def add_options(parser: argparse.ArgumentParser, kind: type, defaults: Any, *, leave_out: Collection[str] = ()) -> None:
    """Give a parser an option for each field of a dataclass; what is parsed has those that were given alone.

    Args:
        parser: to which they are added.
        kind: the dataclass; the string below a field is its help.
        defaults: an instance, whose values the help shows.
        leave_out: fields that are no options.
    """
    told = texts_of(kind)
    for name, (hint, _) in parameters_of(kind).items():
        if name in leave_out:
            continue
        legal = range_of(hint)
        text = " ".join(filter(None, [told.get(name), f"[{legal}]" if legal is not None else None]))
        add_option(parser, name, hint, f"{text} (default: {shown_value(getattr(defaults, name))})")


def add_option(parser: Any, name: str, hint: Any, text: str) -> None:
    """Add one option that reads what an annotation takes."""
    kinds = kinds_of(hint)
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if bool in kinds:
        options["action"] = SwitchOnce
    else:
        options |= {"action": Once, "type": reader_of(hint), "metavar": _metavar(kinds)}
        if any(is_series(kind) for kind in kinds):
            options |= {"nargs": "+"}
    parser.add_argument(flag(name), **options)


class Once(argparse.Action):
    """Keep what an option is given, and refuse to be given anything twice: one of the two would be lost."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Keep the values."""
        refuse_twice(self, parser, namespace)
        setattr(namespace, self.dest, values)


class SwitchOnce(argparse.BooleanOptionalAction):
    """``--name`` and ``--no-name``, of which one may be given once."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Keep which it was."""
        refuse_twice(self, parser, namespace)
        super().__call__(parser, namespace, values, option_string)


def refuse_twice(action: argparse.Action, parser: argparse.ArgumentParser, namespace: Any) -> None:
    """Exit with a sentence where an option has been given already."""
    if action.dest in vars(namespace):
        parser.error(f"argument {action.option_strings[0]}: is given twice; give it once, with all of its values")


def _metavar(kinds: Iterable[Any]) -> str:
    """Return what stands for a value in the help."""
    words = []
    for kind in elements_of(kinds):
        if get_origin(kind) is Literal:
            words += map(str, get_args(kind))
        elif kind is not NoneType:
            words.append({int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "NAME"))
    return "{" + ",".join(words) + "}" if len(words) > 1 else "".join(words) or "NAME"


def kinds_of(hint: Any) -> list[Any]:
    """Return the kinds that an annotation allows, without its ranges."""
    if get_origin(hint) is Annotated:
        return kinds_of(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in kinds_of(part)]
    return [hint]


def is_series(kind: Any) -> bool:
    """Say whether a kind is a list or a tuple of values."""
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Iterable)


def elements_of(kinds: Iterable[Any]) -> list[Any]:
    """Return kinds with those of their elements in the place of lists."""
    return [each for kind in kinds for each in (kinds_of(get_args(kind)[0]) if is_series(kind) else [kind])]


def reader_of(hint: Any) -> Callable[[str], Any]:
    """Return what reads a word, one of a list where the annotation is of lists, as what an annotation takes."""
    kinds = elements_of(kinds_of(hint))

    def read(word: str) -> Any:
        if not word.strip():
            raise argparse.ArgumentTypeError("must not be empty")
        for kind in kinds:
            try:
                return _read(word, kind)
            except ValueError:
                continue
        wanted = "a whole number" if kinds[0] is int else "a number" if float in kinds else _either(kinds)
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {word!r}" if len(word) < 80 else f"must be {wanted}")

    read.hint = hint
    return read


def _read(word: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return {str(each): each for each in get_args(kind)}[word] if word in map(str, get_args(kind)) else _no(word)
    if kind is NoneType:
        return None if word == "None" else _no(word)
    if kind is Path:
        return user_path(word)
    if kind is bool:
        return {"true": True, "false": False}.get(word.lower()) if word.lower() in ("true", "false") else _no(word)
    return kind(word) if kind in (int, float) else word


def _no(word: str) -> Any:
    raise ValueError(word)


def _either(kinds: Iterable[Any]) -> str:
    words = [repr(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def shown_value(value: Any) -> str:
    """Return a value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def texts_of(kind: type) -> dict[str, str]:
    """Return the string below each field of a dataclass and of those that it extends, where sources can be read."""
    if kind is object:
        return {}
    texts = {name: text for base in reversed(kind.__bases__) for name, text in texts_of(base).items()}
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    except (OSError, TypeError):  # typed in by hand, or built in
        body = []
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[field.target.id] = inspect.cleandoc(after.value.value)
    return texts
