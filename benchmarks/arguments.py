"""Arguments of the scripts in this folder: parsers of one sentence, and numbers with the library's own ranges."""

from __future__ import annotations

import argparse
from typing import Annotated

import pandas

from torchrl_marl_offline.commands.parser import OneSentenceParser
from torchrl_marl_offline.commands.script_settings import SettingsError, check_device
from torchrl_marl_offline.core.ranges import COUNT, FEW, NON_NEGATIVE, SIZE, THREADS, UNIT, argument
from torchrl_marl_offline.study import Plan, Study, StudyError, plan_study, read_study
from torchrl_marl_offline.study.table import collect_results

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


def as_study(text: str) -> Study:
    """Read a study file."""
    try:
        return read_study(text)
    except StudyError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def finished_results(parser: argparse.ArgumentParser, study: Study) -> tuple[Plan, pandas.DataFrame]:
    """Return the plan of a study and the table of its finished runs; ends the script where there is none."""
    try:
        plan = plan_study(study)
    except StudyError as error:
        parser.error(str(error))
    frame = collect_results(plan, study.settings.output)
    if "finished" not in frame or not frame["finished"].fillna(False).any():
        parser.error(f"there is no finished run in {study.settings.output}; run the study first.")
    return plan, frame


def script_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose errors are one sentence."""
    return OneSentenceParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
