"""Train a behaviour policy online and record datasets of graded quality: ``marl-offline record TASK FOLDER``.

Run it again to go on with a recording that was interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from torchrl_marl_offline.commands import data
from torchrl_marl_offline.commands.parser import OneSentenceParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Record, and return the exit status.

    Args:
        arguments: by default those of the process.
    """
    parsed = make_parser().parse_args(arguments)
    parsed.run = "record_graded"
    return data.do(parsed)


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = OneSentenceParser(
        prog="marl-offline record", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data.add_recording(parser)
    return parser
