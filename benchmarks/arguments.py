"""Arguments of the scripts in this folder: parsers of one sentence, and numbers with the library's own ranges."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from torchrl_marl_offline.commands.parser import OneSentenceParser
from torchrl_marl_offline.commands.script_settings import SettingsError, check_device
from torchrl_marl_offline.core.ranges import COUNT, FEW, NON_NEGATIVE, SIZE, THREADS, UNIT, argument

as_count = argument(Annotated[int, COUNT])
as_few = argument(Annotated[int, FEW])
as_size = argument(Annotated[int, SIZE])
as_threads = argument(Annotated[int, THREADS])
as_share = argument(Annotated[float, UNIT])
as_amount = argument(Annotated[float, NON_NEGATIVE])


def as_device(text: str) -> str:
    """Read the name of a device that is there."""
    try:
        check_device(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--device ").rstrip(".")) from None
    return text


def as_file(text: str) -> Path:
    """Read the path of a file to write: none of a folder, and in none that is a file."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    as_folder(str(path.parent))
    return path


def as_folder(text: str) -> Path:
    """Read the path of a folder to write into, there or not."""
    path = Path(text)
    found = next((each for each in (path, *path.parents) if each.exists()), path)
    if found.exists() and not found.is_dir():
        raise argparse.ArgumentTypeError(f"{found} is a file; name a folder")
    return path


class ScriptError(ValueError):
    """What a script's user can mend, in one sentence."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script; what its user can mend ends it in one sentence, anything else in a traceback."""
    try:
        main()
    except (ValueError, OSError) as error:
        is_of_library = type(error).__module__.startswith("torchrl_marl_offline.")
        if not is_of_library and not isinstance(error, ScriptError | OSError):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def script_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose errors are one sentence."""
    return OneSentenceParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
