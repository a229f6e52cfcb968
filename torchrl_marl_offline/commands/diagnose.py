"""Look at trained networks on their data: are the values, the gains and the policies sane?

    marl-offline diagnose runs/my-run
    marl-offline diagnose runs/td runs/sarsa runs/iql --output runs/compared
    marl-offline diagnose runs/population --strict

A RUN is the folder of a run; of a population, its members are looked at. Prints a verdict (sane, suspicious, diverged)
with reasons and numbers, and writes ``diagnosis.html``, ``diagnosis.png`` and ``diagnosis.json``. A folder without
settings, checkpoint or data is judged by its curves alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

from torchrl_marl_offline.commands.parser import OneSentenceParser, add_figures
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import SEED, SIZE, argument

NOT_SANE = 3
"""The exit status of ``--strict`` where a run is not sane."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, look at the runs, print and write what was found, and return the exit status.

    Args:
        arguments: by default those of the process.
    """
    parsed = make_parser().parse_args(arguments)
    return exit_status(lambda: import_module(f"{__name__}_work").run(parsed))


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = OneSentenceParser(
        prog="marl-offline diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=user_path, help="folder of a run, or of a population")
    parser.add_argument("--dataset", help="what they were trained on; by default what each run remembers")
    parser.add_argument(
        "--rows", type=argument(Annotated[int, SIZE]), default=4096, help="rows of the data that are looked at"
    )
    parser.add_argument("--seed", type=argument(Annotated[int, SEED]), default=0, help="of the draw of these rows")
    parser.add_argument("--device", default="cpu", help="where the networks are evaluated: cpu or cuda")
    parser.add_argument(
        "--output", type=user_path, metavar="FOLDER", help="of the page; by default the folder that holds all runs"
    )
    add_figures(parser, "the picture")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--strict", action="store_true", help=f"exit with status {NOT_SANE} where a run is not sane")
    return parser
