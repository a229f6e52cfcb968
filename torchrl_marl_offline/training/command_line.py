"""The command line of a training script: settings, presets, ``config.json``; all is checked before anything is done."""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import io
import itertools
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from torchrl_marl_offline.core.annotations import parameters_of
from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.errors import plain_errors
from torchrl_marl_offline.core.paths import LONGEST_NAME, user_path
from torchrl_marl_offline.core.ranges import FEW, check, check_all, range_of
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.core.relevance import check_read
from torchrl_marl_offline.training.run_lock import claim_folder, refuse_if_in_use
from torchrl_marl_offline.training.summary import write_json_atomic

__all__ = ["SettingsError", "check_device", "expand_settings", "parse_settings", "plain_errors", "write_config"]

Settings = TypeVar("Settings")
CONFIG_FILE = "config.json"


class SettingsError(ValueError):
    """The arguments of a script do not fit together; the message names the remedy."""


def parse_settings(
    kind: type[Settings], *, presets: Mapping[str, Mapping[str, Any]], arguments: Sequence[str] | None = None
) -> Settings:
    """Read a dataclass of settings from the command line, and refuse what cannot be done before anything is.

    ``--preset NAME`` changes defaults; an argument that is given wins over it. With ``--resume DIR`` all settings are
    those of ``DIR/config.json``, and an argument that says otherwise is an error. Numbers have the ranges of the
    fields' annotations (:mod:`~torchrl_marl_offline.core.ranges`), which ``--help`` shows; an option that is given
    where it changes nothing (:mod:`~torchrl_marl_offline.core.relevance`) is an error, too.

    Args:
        kind: a dataclass whose fields all have defaults, with the fields ``preset``, ``resume`` and ``output``.
        presets: name -> the fields whose default it changes.
        arguments: by default those of the process.

    Raises:
        SettingsError: an unknown preset, a folder without ``config.json``, or an argument against it; a number outside
            its range, an option that is not read, a device that is not there, a folder that cannot be written or
            holds an earlier run.
        SystemExit: an argument that cannot be read at all; status 2, after one sentence on stderr.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--preset", default=kind().preset)
    peek.add_argument("--resume")
    try:
        early = peek.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise SettingsError(f"{error}; see --help.") from error
    if early.resume is not None:
        folder = user_path(early.resume)
        if (folder / CONFIG_FILE).is_file():
            claim_folder(folder)
        start = replace(read_config(kind, folder), resume=folder, output=folder)
    elif early.preset in presets:
        start = kind(**{"preset": early.preset, **presets[early.preset]})
    else:
        raise SettingsError(f"--preset must be one of {', '.join(presets)}, got {early.preset!r}.")
    settings = _with_full_paths(_read(kind, start, arguments))
    if early.resume is not None:
        _check_agreement(start, settings)
    check_settings(kind, settings, () if early.resume is not None else _given(kind, arguments))
    return settings


def _read(kind: type[Settings], start: Settings, arguments: Sequence[str]) -> Settings:
    """Let tyro read the arguments; what it says of a wrong one becomes a sentence."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, default=start, args=arguments, registry=_with_ranges(kind))
    except SystemExit as end:
        if end.code:
            print(f"error: {_sentence_in(said.getvalue())}; see --help.", file=sys.stderr)
        raise


def _sentence_in(box: str) -> str:
    """Return what a box of tyro's says, without its frame, title and further paragraphs."""
    lines = box.splitlines()
    words = [line.strip(" │╭╮╰╯─-|") for line in lines]
    bars = [number for number, line in enumerate(lines) if "──" in line or ("--" in line and not words[number])]
    said = words[bars[0] + 1 : bars[1]] if len(bars) > 1 else words
    return " ".join(filter(None, said)).rstrip(".")


def _with_ranges(kind: type) -> Any:
    """Return tyro's rule for a class of settings whose help also says the ranges of the numbers."""
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

    registry = ConstructorRegistry()

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type is not kind:
            return None
        hints, told = get_type_hints(kind), _texts_of(kind)
        return StructConstructorSpec(
            kind,
            tuple(
                StructFieldSpec(f.name, hints[f.name], getattr(info.default, f.name), helptext=told.get(f.name))
                for f in fields(kind)
            ),
        )

    return registry


def _texts_of(kind: type) -> dict[str, str]:
    """Return the docstring of each field of a class of settings, with its range."""
    texts = {}
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    except OSError:  # typed in by hand
        body = []
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[field.target.id] = inspect.cleandoc(after.value.value)
    for name, (hint, _) in parameters_of(kind).items():
        if (legal := range_of(hint)) is not None:
            texts[name] = f"{texts.get(name, '')} [{legal}]"
    return texts


def _given(kind: type, arguments: Sequence[str]) -> list[str]:
    """Return the names of the fields that the arguments name."""
    words = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word.startswith("--")}
    return [f.name for f in fields(kind) if f.name in words or f"no_{f.name}" in words]


def flag(name: str) -> str:
    """Return an option's name as it stands on the command line."""
    return "--" + name.replace("_", "-")


def check_settings(kind: type[Settings], settings: Settings, given: Sequence[str] = ()) -> None:
    """Refuse settings that cannot be trained with, before anything is done.

    Args:
        kind: their class.
        settings: of a script.
        given: names of those that were given explicitly.

    Raises:
        SettingsError: see :func:`parse_settings`.
    """
    values = {f.name: getattr(settings, f.name) for f in fields(kind)}
    try:
        check_all(kind, values, name=flag)
        check_read(kind, given, values, name=flag)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if "device" in values:
        check_device(values["device"])
    if values["output"] is not None:
        check_output(values["output"], is_new=values["resume"] is None)


def check_device(device: str) -> None:
    """Refuse a device that is no CPU or CUDA device, or is not there.

    Raises:
        SettingsError: it is not.
    """
    import torch

    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not index.isdecimal()):
        raise SettingsError(f"--device must be cpu or cuda, got {device!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda needs an NVIDIA GPU and a CUDA build of torch; use --device cpu.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from 0.")


def check_output(folder: Path, *, is_new: bool) -> None:
    """Refuse a folder that cannot be made or written, or that holds an earlier run.

    Args:
        folder: the run's.
        is_new: the run is not one that goes on.

    Raises:
        SettingsError: it cannot be used; nothing was made.
    """
    for part in folder.absolute().parts:
        if len(os.fsencode(part)) > LONGEST_NAME:
            raise SettingsError(f"--output {part[:40]}...: a folder's name may have {LONGEST_NAME} bytes; shorten it.")
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:
        raise SettingsError(f"--output {str(folder)[:40]}...: {error.strerror}; name another folder.") from error
    if not there.is_dir():
        raise SettingsError(f"--output {folder}: {there} is a file; name another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingsError(f"--output {folder}: {there} may not be written; name another folder.")
    if is_new:
        check_is_new(folder)


def check_is_new(folder: Path) -> None:
    """Refuse a folder that belongs to an earlier run.

    Raises:
        SettingsError: it does.
        RunInUseError: another process still works there.
    """
    if (folder / CONFIG_FILE).exists():
        refuse_if_in_use(folder)
        raise SettingsError(f"{folder} holds an earlier run; go on with --resume {folder}, or name another --output.")


def _check_agreement(stored: Any, given: Any) -> None:
    for field in fields(stored):
        old, new = getattr(stored, field.name), getattr(given, field.name)
        if old != new:
            raise SettingsError(
                f"{flag(field.name)} is {new} on the command line, but the run in {stored.resume} was started with "
                f"{old}; leave it out to go on, or start a new run in another folder."
            )


def write_config(folder: Path, settings: Any) -> None:
    """Write the settings to ``folder/config.json``, all but where they came from (``resume``).

    Raises:
        SettingsError: the folder has one already: it belongs to an earlier run.
        RunInUseError: another process works there.
    """
    check_is_new(folder)
    claim_folder(folder)
    write_json_atomic(folder / CONFIG_FILE, {k: v for k, v in asdict(settings).items() if k != "resume"})


def read_config(kind: type[Settings], folder: Path) -> Settings:
    """Read what :func:`write_config` wrote.

    Raises:
        SettingsError: there is none, it is damaged, or it is of another script or version.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise SettingsError(f"{folder} holds no {CONFIG_FILE}; name the folder of an earlier run (its --output).")
    hints = get_type_hints(kind)
    try:
        stored = read_json(file)
        if "weights" in hints:
            stored = _with_weights(stored)
        return kind(**{name: _restore(value, hints[name]) for name, value in stored.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{file} is damaged, or of another script or version; start a new run.") from error


def _with_weights(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, with the weights that AWR had before they could be chosen, if it is so old."""
    has_awr = stored.get("algorithm", "recipe") == "recipe" and stored["extraction"] == "awr"
    if "weights" in stored or not has_awr:
        return dict(stored)
    temperature = stored["temperature"] or {"quick": 3.0, "paper": 10.0}[stored["preset"]]
    return {**stored, "weights": "clipped", "temperature": temperature}


def _with_full_paths(settings: Any) -> Any:
    """Let a leading ``~`` of every path be the home folder."""
    paths = {name: value for name, value in vars(settings).items() if isinstance(value, Path)}
    return replace(settings, **{name: user_path(value) for name, value in paths.items()})


def _restore(value: Any, hint: Any) -> Any:
    """Undo what JSON does to paths and tuples."""
    if value is not None and (hint is Path or Path in get_args(hint)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


@checked
def expand_settings(
    settings: Settings, *, seeds: Annotated[int, FEW], grid: Sequence[str] = (), may_differ: Sequence[str]
) -> dict[str, Settings]:
    """Return the members of a population: every combination of a grid, with ``seeds`` seeds each.

    Args:
        settings: a dataclass with a field ``seed``, from which the seeds count on.
        seeds: how many.
        grid: ``"name=value,value,..."``, each a number field of ``settings``, or one that is ``None`` by default.
        may_differ: the names that a grid can have.

    Returns:
        A name such as ``"temperature=3-seed=0"``, which can name a folder, -> settings.

    Raises:
        SettingsError: a name that cannot differ, a value that is no number, outside its range or there twice.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Args:
        ...     seed: int = 0
        ...     lr: float = 0.1
        >>> list(expand_settings(Args(), seeds=2, grid=["lr=0.1,0.2"], may_differ=["lr"]))
        ['lr=0.1-seed=0', 'lr=0.1-seed=1', 'lr=0.2-seed=0', 'lr=0.2-seed=1']
    """
    names = [name for name in may_differ if hasattr(settings, name) and name != "seed"]
    axes: dict[str, list[Any]] = {}
    for word in grid:
        name, equals, values = word.partition("=")
        name = name.replace("-", "_")
        if not equals or not values or name not in names:
            raise SettingsError(
                f"--grid takes NAME=VALUE,VALUE,... with a name out of {', '.join(names)}; got {word!r}."
            )
        if name in axes:
            raise SettingsError(f"--grid gives {name} twice; put its values behind one {name}=.")
        axes[name] = _axis(settings, name, values)
    axes["seed"] = list(range(settings.seed, settings.seed + seeds))
    _check_axis(settings, "seed", axes["seed"][-1:], "--seeds")
    points = [dict(zip(axes, point)) for point in itertools.product(*axes.values())]
    members = {"-".join(f"{k}={v:g}" for k, v in point.items()): replace(settings, **point) for point in points}
    if len(members) < len(points):
        raise SettingsError(f"--grid {' '.join(grid)} names a value twice; leave one out.")
    return members


def _axis(settings: Any, name: str, values: str) -> list[Any]:
    default = getattr(settings, name)
    kind = float if default is None else type(default)
    try:
        axis = [kind(value) for value in values.split(",")]
    except ValueError as error:
        raise SettingsError(f"--grid {name}={values} wants numbers between its commas.") from error
    _check_axis(settings, name, axis, f"--grid {name}")
    return axis


def _check_axis(settings: Any, name: str, values: Sequence[Any], where: str) -> None:
    hint = parameters_of(type(settings))[name][0]
    for value in values:
        try:
            check(where, value, hint)
        except ValueError as error:
            raise SettingsError(str(error)) from None
