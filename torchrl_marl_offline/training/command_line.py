"""The command line of a training script: settings, presets, ``config.json``, and errors in one sentence."""

from __future__ import annotations

import argparse
import itertools
import json
import linecache
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.training.summary import write_json_atomic

Settings = TypeVar("Settings")
CONFIG_FILE = "config.json"


class SettingsError(ValueError):
    """The arguments of a script do not fit together; the message names the remedy."""


def parse_settings(
    kind: type[Settings], *, presets: Mapping[str, Mapping[str, Any]], arguments: Sequence[str] | None = None
) -> Settings:
    """Read a dataclass of settings from the command line.

    ``--preset NAME`` changes defaults; an argument that is given wins over it. With ``--resume DIR`` all settings are
    those of ``DIR/config.json``, and an argument that says otherwise is an error.

    Args:
        kind: a dataclass whose fields all have defaults, with the fields ``preset``, ``resume`` and ``output``.
        presets: name -> the fields whose default it changes.
        arguments: by default those of the process.

    Raises:
        SettingsError: an unknown preset, a folder without ``config.json``, or an argument against it.
    """
    import tyro

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
        start = replace(read_config(kind, folder), resume=folder, output=folder)
    elif early.preset in presets:
        start = kind(**{"preset": early.preset, **presets[early.preset]})
    else:
        raise SettingsError(f"--preset must be one of {', '.join(presets)}, got {early.preset!r}.")
    settings = _with_full_paths(tyro.cli(kind, default=start, args=arguments))
    if early.resume is not None:
        _check_agreement(start, settings)
    return settings


def _check_agreement(stored: Any, given: Any) -> None:
    for field in fields(stored):
        old, new = getattr(stored, field.name), getattr(given, field.name)
        if old != new:
            flag = "--" + field.name.replace("_", "-")
            raise SettingsError(
                f"{flag} is {new} on the command line, but the run in {stored.resume} was started with {old}; leave it "
                "out to go on, or start a new run in another folder."
            )


def write_config(folder: Path, settings: Any) -> None:
    """Write the settings to ``folder/config.json``, all but where they came from (``resume``).

    Raises:
        SettingsError: the folder has one already: it belongs to an earlier run.
    """
    if (folder / CONFIG_FILE).exists():
        raise SettingsError(f"{folder} holds an earlier run; go on with --resume {folder}, or name another --output.")
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
        stored = json.loads(file.read_text(encoding="utf-8"))
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


def expand_settings(
    settings: Settings, *, seeds: int, grid: Sequence[str] = (), may_differ: Sequence[str]
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
        SettingsError: a name that cannot differ, a value that is no number, or no seed.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Args:
        ...     seed: int = 0
        ...     lr: float = 0.1
        >>> list(expand_settings(Args(), seeds=2, grid=["lr=0.1,0.2"], may_differ=["lr"]))
        ['lr=0.1-seed=0', 'lr=0.1-seed=1', 'lr=0.2-seed=0', 'lr=0.2-seed=1']
    """
    if seeds < 1:
        raise SettingsError(f"--seeds must be at least 1, got {seeds}.")
    axes: dict[str, list[Any]] = {}
    for word in grid:
        name, equals, values = word.partition("=")
        name = name.replace("-", "_")
        if not equals or not values or name not in may_differ or name == "seed":
            known = ", ".join(n for n in may_differ if n != "seed")
            raise SettingsError(f"--grid takes NAME=VALUE,VALUE,... with a name out of {known}; got {word!r}.")
        value = getattr(settings, name)
        kind = float if value is None else type(value)
        try:
            axes[name] = [kind(value) for value in values.split(",")]
        except ValueError as error:
            raise SettingsError(f"--grid {word} wants numbers between its commas.") from error
    axes["seed"] = list(range(settings.seed, settings.seed + seeds))
    points = [dict(zip(axes, point)) for point in itertools.product(*axes.values())]
    return {"-".join(f"{k}={v:g}" for k, v in point.items()): replace(settings, **point) for point in points}


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the process with one sentence for Ctrl-C and for an error that a ``raise`` of this library or of the script
    made: it names its remedy. Any other is a defect, and keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(
            "Interrupted outside of training; start again, or go on with --resume and the run's folder.",
            file=sys.stderr,
        )
        sys.exit(130)
    except Exception as error:
        frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
        module = frame.f_globals.get("__name__", "")
        ours = module == "__main__" or module.partition(".")[0] == __name__.partition(".")[0]
        if not ours or not linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise "):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {text}", file=sys.stderr)
        sys.exit(1)
