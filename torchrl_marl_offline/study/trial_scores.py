"""What the trials of a search have come to, by the files of their jobs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_marl_offline.evaluation.summary import summarize_evaluations
from torchrl_marl_offline.study.choosing import ESTIMATES
from torchrl_marl_offline.study.jobs import MEMBERS, job_result
from torchrl_marl_offline.study.plan import Plan, PlannedPopulation, job_folder
from torchrl_marl_offline.study.run_estimates import read_estimates
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.study.scores import METRICS
from torchrl_marl_offline.training.run.logging import read_csv


def trial_scores(plan: Plan | None, output: Path) -> Callable[[Sequence[Run]], Mapping[str, float] | None]:
    """Return what says of runs of one rung what they are ranked by, ``None`` until all have finished.

    By ``"return"`` it is what :attr:`Plan.metric` says, the average of the last evaluations by the first of the
    evaluators; otherwise the estimate. A run that stopped being finite has NaN, and so has an estimate that the rewards
    of the data do not allow.
    """
    populations = {} if plan is None else {population.name: population for population in plan.populations}
    place = {run.name: population.name for population in populations.values() for run in population.runs}

    def score(runs: Sequence[Run]) -> dict[str, float] | None:
        found: dict[str, float] = {}
        for name in dict.fromkeys(place.get(run.name) for run in runs):
            result = name and job_result(job_folder(output, populations[name]))
            if not result:
                return None
            found |= _of_population(plan, populations[name], job_folder(output, populations[name]), result)
        return found

    return score


def _of_population(
    plan: Plan, population: PlannedPopulation, folder: Path, result: Mapping[str, Any]
) -> dict[str, float]:
    found = dict.fromkeys((run.name for run in population.runs), math.nan)
    if plan.search.by in ESTIMATES:
        estimates = read_estimates(folder)
        usable = {} if estimates is None else {name: e.mean for name, e in estimates.runs.items() if e.is_usable}
        return found | usable
    for run in population.runs:
        file = folder / MEMBERS / run.name / "eval.csv"
        if run.name not in result["diverged"] and file.exists():
            found[run.name] = return_of(read_csv(file), plan)
    return found


def return_of(rows: Sequence[Mapping[str, Any]], plan: Plan) -> float:
    """Return a run's average of the last evaluations by the first evaluator, NaN where there is none."""
    wanted = METRICS if plan.metric == "auto" else (plan.metric,)
    metric = next((name for name in wanted if any(name in row for row in rows)), None)
    own = [row for row in rows if row["evaluator"] == plan.evaluation.modes[0]]
    curves = summarize_evaluations(own, metric, last_k=plan.last_k) if metric is not None else {}
    return next((curve["average_of_last"] for curve in curves.values()), math.nan)
