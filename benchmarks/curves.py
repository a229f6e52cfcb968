"""Scores against the number of updates: a study's curves as tables.

    python benchmarks/curves.py examples/studies/below_published.toml --at 5000 10000 20000

Reads what the study has finished so far, and trains nothing. For each dataset a row for each system (and setting of a
grid) with the mean over the training seeds and its 95 % t interval at every evaluation, or at those of ``--at``, of the
last policies by mode: of the normalized score where the task has one, else of its success, else of the return. A run
that diverged counts with the last evaluation that was finite.
"""

from __future__ import annotations

import math

import pandas
from arguments import as_size, run_script, script_parser
from measuring import markdown, with_interval
from studies import as_study, digits_of, finished_results, over_seeds

from torchrl_marl_offline.study import Plan
from torchrl_marl_offline.study.scores import choose_metrics

Curve = dict[int, list[float]]
"""Updates -> one score for each training seed."""


def curves_of(
    plan: Plan, frame: pandas.DataFrame, dataset: str, metric: str, *, unfinished: bool = False
) -> dict[str, Curve]:
    """Return the curves of a dataset's finished runs by system; a setting of a grid makes a system of its own.

    Args:
        plan: of the study.
        frame: its results.
        dataset: whose.
        metric: the score.
        unfinished: also the runs that are not finished, as far as they are.
    """
    shown = frame["finished"].fillna(False).astype(bool) | unfinished
    shown = frame[shown & (frame["evaluator"] == "mode")]
    parts = {str(name): part for name, part in shown.groupby("run", sort=False)}
    curves: dict[str, Curve] = {}
    for run in plan.runs:
        if run.dataset == dataset and run.name in parts:
            curve = curves.setdefault(f"{run.method}, {run.setting}" if run.setting else run.method, {})
            own = parts[run.name].sort_values("step")
            last_finite = own[metric].ffill()  # a run that diverged counts with what it was before
            for step, score in zip(own["step"], last_finite):
                if not math.isnan(score):
                    curve.setdefault(int(step), []).append(score)
    return curves


def table_of(dataset: str, curves: dict[str, Curve], at: list[int] | None) -> str:
    """Return a row for each system and a column for each number of updates."""
    steps = sorted({step for curve in curves.values() for step in curve if at is None or step in at})
    digits = digits_of(value for curve in curves.values() for values in curve.values() for value in values)
    rows = [
        [name, *(with_interval(over_seeds(curve[step]), digits) if step in curve else "" for step in steps)]
        for name, curve in curves.items()
    ]
    return markdown([dataset, *(f"{step:,}" for step in steps)], rows)


def main() -> None:
    """Print the tables of what is finished."""
    parser = script_parser(__doc__)
    parser.add_argument("study", type=as_study, help="a study file of which runs are finished")
    parser.add_argument("--at", type=as_size, nargs="+", metavar="UPDATES", help="evaluations to show; by default all")
    parser.add_argument("--unfinished", action="store_true", help="also runs that are not finished, as far as they are")
    settings = parser.parse_args()
    plan, frame = finished_results(parser, settings.study)
    known = {int(step) for step in frame["step"].dropna()}
    missing = sorted(set(settings.at or ()) - known)
    if missing:
        parser.error(f"nothing was evaluated at {', '.join(map(str, missing))}; there are {sorted(known)}.")
    tables = {}
    for dataset, metric in choose_metrics(frame, "auto").items():
        curves = curves_of(plan, frame, dataset, metric, unfinished=settings.unfinished)
        if curves:
            tables[dataset] = table_of(dataset, curves, settings.at)
    if not tables:
        parser.error("no finished run was evaluated by mode in a simulator; curves are of that evaluator alone.")
    for table in tables.values():
        print(table, end="\n\n")


if __name__ == "__main__":
    run_script(main)
