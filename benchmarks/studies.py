"""Studies as arguments of scripts that look at what they trained."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence

import pandas

from torchrl_marl_offline.evaluation import Interval, mean_confidence_interval
from torchrl_marl_offline.study import Plan, Study, StudyError, plan_study, read_study
from torchrl_marl_offline.study.gaps import gaps
from torchrl_marl_offline.study.scores import choose_metrics
from torchrl_marl_offline.study.table import collect_results


def as_study(text: str) -> Study:
    """Read a study file."""
    try:
        return read_study(text)
    except StudyError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def finished_results(parser: argparse.ArgumentParser, study: Study) -> tuple[Plan, pandas.DataFrame]:
    """Return the plan of a study and the table of its finished runs; ends the script where there is none.

    Says on standard error which finished runs the table shows by less than their last evaluation.
    """
    try:
        plan = plan_study(study)
    except StudyError as error:
        parser.error(str(error))
    frame = collect_results(plan, study.settings.output)
    if "finished" not in frame or not frame["finished"].fillna(False).any():
        parser.error(f"there is no finished run in {study.settings.output}; run the study first.")
    shown = {run.name for run in plan.runs}
    for told in gaps(plan, frame, choose_metrics(frame, "auto"), study.settings.output, shown=shown):
        print(told, file=sys.stderr)
    return plan, frame


def over_seeds(values: Sequence[float]) -> Interval:
    """Return the mean and its 95 % t interval; of one value, which has none, NaN as its ends."""
    return mean_confidence_interval(values) if len(values) > 1 else Interval(values[0], math.nan, math.nan)


def digits_of(values: Iterable[float]) -> int:
    """Return to how many digits behind the point scores of this size are shown."""
    return 1 if max(map(abs, values), default=0.0) >= 10 else 2
