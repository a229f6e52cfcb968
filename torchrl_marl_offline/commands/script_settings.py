"""The command line of a training script: settings, presets, ``config.json``; all is checked before anything is done."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from torchrl_marl_offline.commands.options import add_options, flag, reader_of
from torchrl_marl_offline.commands.parser import OneSentenceParser
from torchrl_marl_offline.core.errors import plain_errors
from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.core.paths import LONGEST_NAME, user_path
from torchrl_marl_offline.core.ranges import check_all
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.core.relevance import check_read
from torchrl_marl_offline.data.transitions.storage import is_dataset_folder
from torchrl_marl_offline.training.run.run_lock import claim_folder, refuse_if_in_use
from torchrl_marl_offline.training.run.run_settings import CONFIG_FILE

__all__ = ["SettingsError", "check_device", "parse_settings", "plain_errors", "write_config"]

Settings = TypeVar("Settings")


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
    parser = OneSentenceParser(description=kind.__doc__)
    add_options(parser, kind, start)
    given = vars(parser.parse_args(arguments))
    settings = with_full_paths(replace(start, **with_tuples(given)))
    if early.resume is not None:
        _check_agreement(start, settings)
    check_settings(kind, settings, () if early.resume is not None else list(given))
    return settings


def words_read(option: str, hint: Any, words: Any) -> Any:
    """Return what words of a command line mean where an annotation says what is wanted.

    Args:
        option: as it is called in the message.
        hint: the annotation.
        words: one, a list of them, or a bool that has been read already.

    Raises:
        SettingsError: they cannot be read.
    """
    read = reader_of(hint)
    try:
        return words if isinstance(words, bool) else tuple(map(read, words)) if isinstance(words, list) else read(words)
    except argparse.ArgumentTypeError as error:
        raise SettingsError(f"{option} {error}.") from None


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
    if is_dataset_folder(folder):
        raise SettingsError(f"--output {folder} holds a dataset; name another folder.")
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
    write_config_file(folder, asdict(settings))


def write_config_file(folder: Path, values: Mapping[str, Any]) -> None:
    """Write values by name, as :func:`write_config` does."""
    check_is_new(folder)
    claim_folder(folder)
    write_json_atomic(folder / CONFIG_FILE, {k: v for k, v in values.items() if k != "resume"})


def read_config(kind: type[Settings], folder: Path) -> Settings:
    """Read what :func:`write_config` wrote.

    Raises:
        SettingsError: there is none, it is damaged, or it is of another script or version.
    """
    stored, hints = read_config_file(folder), get_type_hints(kind)
    try:
        paths = {n: Path(v) for n, v in stored.items() if v is not None and _is_path(hints[n])}
        return kind(**with_tuples(stored) | paths)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{folder / CONFIG_FILE} is damaged, or of another script or version; start a new run."
        ) from error


def read_config_file(folder: Path) -> dict[str, Any]:
    """Read the values by name that :func:`write_config_file` wrote.

    Raises:
        SettingsError: there are none, or they are damaged.
    """
    file = folder / CONFIG_FILE
    if folder.is_file():
        raise SettingsError(f"{folder} is a file; name the folder of an earlier run (its --output).")
    if not file.is_file():
        raise SettingsError(f"{folder} holds no {CONFIG_FILE}; name the folder of an earlier run (its --output).")
    try:
        return dict(read_json(file).items())
    except (ValueError, AttributeError) as error:
        raise SettingsError(f"{file} is damaged, or of another script or version; start a new run.") from error


def with_full_paths(settings: Settings) -> Settings:
    """Let a leading ``~`` of every path be the home folder."""
    paths = {name: value for name, value in vars(settings).items() if isinstance(value, Path)}
    return replace(settings, **{name: user_path(value) for name, value in paths.items()})


def _is_path(hint: Any) -> bool:
    return hint is Path or Path in get_args(hint)


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with tuples for lists, which is what JSON and a parser make of them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
