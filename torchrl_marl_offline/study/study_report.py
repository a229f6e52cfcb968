"""``report.html`` and ``report.md``: what a study has shown so far."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.document import Block, Heading, Link, Links, Table, Text, to_html, to_markdown
from torchrl_marl_offline.core.figure_style import FigureFormat
from torchrl_marl_offline.core.files import write_json_atomic, write_text_atomic
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.study.checking import StudyError, check_installed
from torchrl_marl_offline.study.choosing import ESTIMATES
from torchrl_marl_offline.study.gaps import gaps
from torchrl_marl_offline.study.jobs import job_state
from torchrl_marl_offline.study.marl_eval import marl_eval_form
from torchrl_marl_offline.study.plan import PLAN_FILE, Plan, job_folder
from torchrl_marl_offline.study.report_axes import axes_section
from torchrl_marl_offline.study.report_comparisons import comparisons
from torchrl_marl_offline.study.report_content import Report
from torchrl_marl_offline.study.report_datasets import dataset_section
from torchrl_marl_offline.study.report_estimates import (
    FILES,
    StudyEstimates,
    estimate_rows,
    estimates_form,
    estimates_latex,
)
from torchrl_marl_offline.study.report_tables import score_rows, to_csv, to_latex
from torchrl_marl_offline.study.run_estimates import JobEstimates, choose_by_estimates, estimates_of
from torchrl_marl_offline.study.runs import Run, slug
from torchrl_marl_offline.study.scores import choose, choose_metrics, scores_of
from torchrl_marl_offline.study.table import RESULTS, read_results, write_results

CSV, LATEX, MARL_EVAL = "table.csv", "table.tex", "marl_eval"


@checked
def write_study_report(output: str | Path, *, figures: Sequence[FigureFormat] = ()) -> tuple[Path, Path]:
    """Write the report of a study, finished or not, into its folder.

    - ``report.html``: the page, which needs no other file and no network; it fits 1,100 pixels, a telephone and A4 in
      landscape. A click on a table's header sorts it, by a script within the page. Its links to the runs' folders are
      relative: they hold as long as the page lies in the study's folder.
    - ``report.md`` with its pictures in ``report/``.
    - ``table.csv`` and ``table.tex``: each method's scores on each dataset, as of the report's tables; the second is a
      ``tabular`` for LaTeX's package booktabs (:mod:`~torchrl_marl_offline.study.report_tables`).
    - ``marl_eval-EVALUATOR.json``, e.g. ``marl_eval-mode.json``: the chosen runs in the form of marl-eval
      (:mod:`~torchrl_marl_offline.study.marl_eval`).

    Args:
        output: the study's folder; its table is made anew from its jobs.
        figures: formats of the pictures in ``report/`` beside PNG: ``"pdf"``, ``"svg"``.

    Returns:
        The paths of ``report.html`` and ``report.md``.

    Raises:
        ValueError: a format that is none.
        StudyError: the folder is not a study's, or none of its runs has been evaluated.
        ImportError: a library of the extra ``study`` is missing.
    """
    check_installed()
    output = user_path(output)
    plan = Plan.load(output)
    if plan is None:
        raise StudyError(f"{output} has no {PLAN_FILE}; name the output folder of a study that was run.")
    write_results(plan, output)
    report = make_report(plan, output, figures)
    blocks = [*_opening(report), *_files(report), *comparisons(report), *axes_section(report)]
    for dataset in plan.datasets:
        blocks += dataset_section(report, dataset)
    blocks += _closing(report)
    write_text_atomic(output / "report.md", to_markdown(blocks, output))
    write_text_atomic(output / "report.html", to_html(blocks, plan.name))
    return output / "report.html", output / "report.md"


def make_report(plan: Plan, output: Path, figures: Sequence[FigureFormat] = ()) -> Report:
    """Return what a report shows of a study whose table is written.

    Raises:
        StudyError: none of its runs has been evaluated.
    """
    frame = read_results(output)
    metrics = choose_metrics(frame, plan.metric)
    shown = replace(plan, populations=tuple(p for p in plan.populations if p.runs[0].rung is None))
    frame = frame[frame["run"].isin([run.name for run in shown.runs]) & ~frame["evaluator"].isin(ESTIMATES)]
    scores, estimates = scores_of(shown, frame, metrics), study_estimates(shown, output)
    choices = choose(scores, metrics, estimates.settings() if estimates.by else None)
    return Report(shown, output, frame, metrics, scores, choices, figures, whole=plan, estimates=estimates)


def study_estimates(plan: Plan, output: Path) -> StudyEstimates:
    """Return what the finished jobs of a plan have estimated."""
    if plan.estimated_by is None:
        return StudyEstimates()
    of_jobs = estimates_of(plan, output)
    jobs: dict[str, list[JobEstimates]] = {}
    for population in plan.populations:
        if population.name in of_jobs and of_jobs[population.name].runs:
            jobs.setdefault(population.dataset, []).append(of_jobs[population.name])
    runs = {name: estimate for found in of_jobs.values() for name, estimate in found.runs.items()}
    return StudyEstimates(plan.estimated_by, jobs, choose_by_estimates(plan.runs, runs), runs)


def _opening(report: Report) -> list[Block]:
    plan = report.whole
    blocks: list[Block] = [Heading(plan.name, 1)]
    states = {p.name: job_state(job_folder(report.output, p)) for p in plan.populations}
    count = {
        state: sum(len(p.runs) for p in plan.populations if states[p.name] == state)
        for state in ("finished", "begun", "failed", "new")
    }
    total = len(plan.runs)
    seeds = len({run.seed for run in plan.runs if run.rung is None})
    methods = {population.method for population in plan.populations}
    tried = sum(run.rung is not None for run in plan.runs)
    trials = f", {tried} of them trials of a search" if plan.search is not None else ""
    blocks.append(
        Text(
            f"Runs: {total} ({len(methods)} methods, {len(plan.datasets)} datasets, {seeds} seeds{trials}), in "
            f"{len(plan.populations)} populations. Evaluated by {plan.evaluation.episodes} episodes every "
            f"{plan.evaluation.every:,} updates."
        )
    )
    if count["finished"] < total:
        rest = ", ".join(f"{n} {word}" for word, n in count.items() if n and word != "finished")
        text = f"This study is incomplete: {count['finished']} of {total} runs are finished ({rest}). "
        text += "The tables hold the finished runs alone, the curves all evaluations so far."
        blocks.append(Text(text, warning=True))
    shown = {run.name for run in report.plan.runs}
    told = gaps(plan, report.frame, report.metrics, report.output, shown=shown)
    blocks += [Text(text, warning=True) for text in told]
    impossible = report.frame[report.frame["impossible_step"].notna()]["run"].unique().tolist()
    if impossible:
        shown = ", ".join(impossible[:8]) + (f" and {len(impossible) - 8} more" if len(impossible) > 8 else "")
        text = f"The values of {len(impossible)} runs exceeded what the rewards of their data allow, so that their "
        text += f"policies follow an error: {shown}."
        blocks.append(Text(text, warning=True))
    if any(len(choice.ranking) > 1 for choice in report.estimates.choices.values()):
        text = f"Of a grid, the setting is shown whose estimate by {report.estimates.by} is highest in the mean over "
        text += (
            "seeds, chosen for each dataset and method on episodes that no run is trained on, never by agreement with "
        )
        text += "the data."
        blocks.append(Text(text))
    if any(choice.candidates > 1 for choice in report.choices.values()):
        blocks.append(
            Text(
                f"Of a grid, the setting is shown whose average of the last {plan.last_k} evaluations (of all, where "
                "there are fewer) is best in the mean over seeds, chosen for each dataset, method and evaluator by the "
                "very runs that are shown: such a score is optimistic, the more so the larger the grid."
            )
        )
    return blocks


def _files(report: Report) -> list[Block]:
    """Write the scores for other programs, and say where."""
    blocks = _estimate_files(report)
    if not report.choices:
        return blocks
    rows = score_rows(report.choices, report.metrics, report.intervals)
    write_text_atomic(report.output / CSV, to_csv(rows))
    write_text_atomic(report.output / LATEX, to_latex(rows))
    names, left_out = [CSV, LATEX, RESULTS], []
    for evaluator in report.evaluators:
        options = {"evaluator": evaluator, "last_k": report.plan.last_k}
        form, without = marl_eval_form(report.frame, report.choices, report.plan.datasets, **options)
        if form:
            names.append(f"{MARL_EVAL}-{slug([evaluator])}.json")
            write_json_atomic(report.output / names[-1], form)
        left_out += [what for what in without if what not in left_out]
    blocks.append(Links("The scores as files:", [Link(name, name) for name in names]))
    if left_out:
        rule = "An environment's methods in marl-eval's form have the same seeds and evaluations on all of its datasets"
        blocks.append(Text(f"{rule}; left out of {MARL_EVAL}-*.json: {'; '.join(left_out)}."))
    return blocks


def _estimate_files(report: Report) -> list[Block]:
    """Write the estimates for other programs, and say where."""
    if not report.estimates.choices:
        return []
    rows = estimate_rows(report.estimates)
    write_text_atomic(report.output / FILES["csv"], to_csv(rows))
    write_text_atomic(report.output / FILES["latex"], estimates_latex(rows))
    form = estimates_form(report.estimates, report.scores, report.evaluators)
    write_json_atomic(report.output / FILES["json"], form)
    return [Links("The estimates as files:", [Link(name, name) for name in FILES.values()])]


def _closing(report: Report) -> list[Block]:
    names = ("torch", "torchrl", "tensordict", "torchrl-marl-offline", "rliable")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    shared = _shared(report.plan.runs)
    blocks: list[Block] = [Table(["setting", "value"], list(shared.items()), summary="Settings that all runs share")]
    for method in report.methods:
        own = _shared([run for run in report.plan.runs if run.method == method])
        rows = [(name, value) for name, value in own.items() if name not in shared]
        if rows:
            blocks.append(Table(["setting", "value"], rows, summary=f"Settings of {method}"))
    return [*blocks, Text(f"Report made with {versions}, Python {platform.python_version()}.")]


def _shared(runs: Sequence[Run]) -> dict[str, str]:
    """Return the settings that every one of the runs has, with one value."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            found.setdefault(name, set()).add(str(value))
    everywhere = [name for name in found if all(name in run.settings for run in runs)]
    return {name: next(iter(found[name])) for name in everywhere if len(found[name]) == 1}
