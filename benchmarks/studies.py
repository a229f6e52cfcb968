"""Studies as arguments of scripts that look at what they trained."""

from __future__ import annotations

import argparse

import pandas

from torchrl_marl_offline.study import Plan, Study, StudyError, plan_study, read_study
from torchrl_marl_offline.study.table import collect_results


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
