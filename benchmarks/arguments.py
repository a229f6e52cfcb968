"""Arguments of the scripts in this folder: parsers of one sentence, and numbers with the library's own ranges."""

from __future__ import annotations

import argparse
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


def script_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose errors are one sentence."""
    return OneSentenceParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
