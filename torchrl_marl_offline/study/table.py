"""All results of a study as one table, made of the files of its jobs.

A row is one evaluation: of one run, by one evaluator, at one step. Nothing in it depends on when, where or in how many
parts the runs were trained; what does stands in ``timings.csv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.regular_files import require_regular
from torchrl_marl_offline.study.checking import StudyError
from torchrl_marl_offline.study.jobs import evaluations_of, job_result, job_state, job_step
from torchrl_marl_offline.study.plan import Plan, PlannedPopulation, job_folder
from torchrl_marl_offline.study.run_estimates import JobEstimates, read_estimates

if TYPE_CHECKING:
    import pandas

RESULTS, TIMINGS, DATA = "results.parquet", "timings.csv", "data"
IDENTITY = ("study", "dataset", "method", "run", "seed")
MEASURED = ("evaluator", "step", "return", "normalized", "success")
STATE = ("diverged", "diverged_step", "impossible_step", "finished")


def collect_results(plan: Plan, output: Path) -> pandas.DataFrame:
    """Gather the evaluations of all runs, of unfinished ones those that are there.

    Args:
        plan: of the study.
        output: its folder.

    Returns:
        A frame with the columns ``study``, ``dataset``, ``method``, ``run``, ``seed``, every setting, ``evaluator``,
        ``step``, ``return``, ``normalized``, ``success`` and what else was measured, ``diverged`` (the run stopped
        being finite, or was stopped, at ``diverged_step``; empty where that is not known yet), ``impossible_step`` (its
        values exceeded what the rewards allow) and ``finished``; sorted, equal for equal runs.
    """
    import pandas

    rows = [row for population in plan.populations for row in _population_rows(plan, population, output)]
    settings = list(dict.fromkeys(name for run in plan.runs for name in run.settings))
    measured = sorted({name for row in rows for name in row} - {*IDENTITY, *settings, *MEASURED, *STATE})
    columns = [*IDENTITY, *settings, *MEASURED, *measured, *STATE]
    frame = pandas.DataFrame.from_records(rows, columns=columns)
    for name in columns:
        frame[name] = frame[name].astype(_dtype(name, frame[name].dropna().tolist()))
    order = ["dataset", "method", "run", "evaluator", "step"]
    return frame.sort_values(order, kind="stable", ignore_index=True)


def write_results(plan: Plan, output: Path) -> Path:
    """Write ``results.parquet`` and ``timings.csv`` anew, each in one step; returns the path of the first."""
    frame = collect_results(plan, output)
    with replacing_file(output / RESULTS) as temporary:
        frame.to_parquet(temporary, index=False)
    _write_timings(plan, output)
    return output / RESULTS


def read_results(output: str | Path) -> pandas.DataFrame:
    """Read the table of a study.

    Raises:
        StudyError: there is none.
    """
    import pandas

    file = user_path(output) / RESULTS
    if not file.exists():
        raise StudyError(f"There is no table {file}; run the study, or name the folder of one.")
    return pandas.read_parquet(require_regular(file))


def _population_rows(plan: Plan, population: PlannedPopulation, output: Path) -> list[dict[str, Any]]:
    folder = job_folder(output, population)
    result, estimates = job_result(folder), read_estimates(folder)
    rows = []
    for run in population.runs:
        settings = {name: _cell(value) for name, value in run.settings.items()}
        facts = {"study": plan.name, "dataset": run.dataset, "method": run.method, "run": run.name, "seed": run.seed}
        facts |= settings | {"finished": result is not None}
        if result is not None:
            step = result["diverged"].get(run.name)
            facts |= {"diverged": step is not None, "diverged_step": step}
            facts |= {"impossible_step": result.get("impossible", {}).get(run.name)}
        facts |= {} if run.trial is None else {"trial": run.trial, "rung": run.rung}
        rows += [facts | row for row in evaluations_of(folder, run.name)]
        if estimates is not None and run.name in estimates.runs:
            rows.append(facts | {"step": population.steps} | estimate_row(estimates, run.name))
    return rows


def estimate_row(found: JobEstimates, run: str) -> dict[str, Any]:
    """Return the cells of a run's estimate; the estimate's word is their evaluator."""
    interval, better = found.runs[run].pooled()
    cells = {"estimate": interval.mean, "estimate_low": interval.low, "estimate_high": interval.high}
    gained = {"gain": better.mean, "gain_low": better.low, "gain_high": better.high}
    facts = {"improvement": better.probability, "estimate_gamma": found.gamma}
    return {"evaluator": found.by} | cells | gained | facts


def _write_timings(plan: Plan, output: Path) -> None:
    import pandas

    rows = []
    for population in plan.populations:
        folder = job_folder(output, population)
        state, result = job_state(folder), job_result(folder) or {}
        seconds = result.get("seconds")
        rows.append(
            {
                "population": population.name,
                "members": len(population.runs),
                "state": state,
                "step": population.steps if state == "finished" else job_step(folder),
                "seconds": seconds,
                "updates_per_second": population.updates / seconds if seconds else None,
                "device": result.get("device"),
                "threads": result.get("threads"),
            }
        )
    with replacing_file(output / TIMINGS) as temporary:
        pandas.DataFrame.from_records(rows).to_csv(temporary, index=False)


def _dtype(name: str, values: Sequence[Any]) -> str:
    """Choose a column type that can be empty, from the values that are there."""
    if name in ("diverged", "finished") or (values and all(isinstance(value, bool) for value in values)):
        return "boolean"
    if name in ("seed", "step", "diverged_step", "impossible_step", "trial", "rung") or (
        values and all(isinstance(value, int) for value in values)
    ):
        return "Int64"
    if values and all(isinstance(value, int | float) for value in values):
        return "float64"
    return "string" if values else "float64"


def _cell(value: Any) -> Any:
    """A list, such as the widths of a network, is one cell."""
    return " ".join(map(str, value)) if isinstance(value, list) else value
