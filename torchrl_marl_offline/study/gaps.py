"""What the tables of a study do not show of its finished runs, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torchrl_marl_offline.study.jobs import job_state
from torchrl_marl_offline.study.plan import Plan, job_folder

if TYPE_CHECKING:
    import pandas


def gaps(
    plan: Plan, frame: pandas.DataFrame, metrics: Mapping[str, str], output: Path, *, shown: Collection[str]
) -> list[str]:
    """Return a sentence for each way in which finished runs are shown by less than their last evaluation.

    Args:
        plan: of the study.
        frame: what :func:`~.table.collect_results` gathered.
        metrics: dataset -> the column that is shown of it.
        output: the study's folder.
        shown: names of the runs that tables show.
    """
    finished = [p for p in plan.populations if job_state(job_folder(output, p)) == "finished"]
    steps = {run.name: p.steps for p in finished for run in p.runs if run.name in shown}
    diverged = set(frame[frame["diverged"].fillna(False)]["run"])
    silent = steps.keys() - set(frame["run"])
    last = _last_evaluations(frame, metrics)
    early = {run for run in steps.keys() - silent - diverged if last.get(run, 0) < steps[run]}
    found = []
    if silent:
        found.append(f"{len(silent)} finished runs have no evaluation in their files, and are in no table: ")
        found[-1] += f"{_some(silent)}."
    if early:
        found.append(
            f"{len(early)} finished runs lack their evaluation after the last update, as if their eval.csv had "
        )
        found[-1] += f"been cut, and are shown by an earlier one, if by any: {_some(early)}."
    if diverged:
        found.append(f"{len(diverged)} runs stopped being finite; each counts with the last evaluations that were.")
    return found


def _last_evaluations(frame: pandas.DataFrame, metrics: Mapping[str, str]) -> dict[str, int]:
    """Return, for each run, the last step at which all its evaluators found a number."""
    last: dict[str, int] = {}
    for dataset, part in frame.groupby("dataset"):
        measured = part[part[metrics[str(dataset)]].notna()]
        steps = measured.groupby(["run", "evaluator"])["step"].max()
        last |= {str(run): int(step) for run, step in steps.groupby("run").min().items()}
    return last


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (" and more" if len(names) > 8 else "")
