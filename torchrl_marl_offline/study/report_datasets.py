"""The section of a report about one dataset: tables, pictures, the grid, and where each run lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchrl_marl_offline.core.document import Block, Heading, Link, Picture, Table, Text
from torchrl_marl_offline.evaluation.pictures import plot_methods
from torchrl_marl_offline.evaluation.statistics import Interval
from torchrl_marl_offline.study.figures import plot_curves
from torchrl_marl_offline.study.jobs import MEMBERS, job_state
from torchrl_marl_offline.study.plan import job_folder
from torchrl_marl_offline.study.report_content import Report, averaged, executed, score_header
from torchrl_marl_offline.study.report_estimates import estimates_section
from torchrl_marl_offline.study.report_search import search_section
from torchrl_marl_offline.study.report_tables import cell_of
from torchrl_marl_offline.study.scores import (
    READINGS,
    Choice,
    RunScore,
    averaged_in_words,
    mean_and_iqm,
    score_matrix,
)

if TYPE_CHECKING:
    import pandas

DIAGNOSIS = (
    "There is no simulator of this task, so that nothing in this table says what a policy earns. How like the recorded "
    "actions its own are is a diagnosis: cloning is best at it by construction, and a policy that improves on the data "
    "may differ more. Methods are not ranked by it, and of a grid every setting is shown."
)

ESTIMATE_INSTEAD = 'With [study] select = "fqe" what policies earn is estimated from held-out episodes.'


def dataset_section(report: Report, dataset: str) -> list[Block]:
    """Return what is known of one dataset."""
    blocks: list[Block] = [Heading(dataset)]
    blocks += search_section(report.whole, report.output, dataset)
    part = report.frame[report.frame["dataset"] == dataset]
    if not len(part):
        return [*blocks, Text("Nothing has been evaluated yet.")]
    blocks += estimates_section(report.estimates, dataset, report.scores, report.evaluators)
    for evaluator in list(dict.fromkeys(part["evaluator"].dropna())):
        found, label = report.of(evaluator, [dataset]), report.label(dataset)
        blocks.append(Heading(f"{label}, {executed(evaluator)}", 3))
        if report.is_diagnosed(dataset):
            told = DIAGNOSIS if dataset in report.estimates.jobs else f"{DIAGNOSIS} {ESTIMATE_INSTEAD}"
            blocks += [Text(told), *_diagnosis(report, dataset, evaluator)]
            blocks += _curves(report, part, dataset, evaluator)
            continue
        if found:
            intervals = {name: report.intervals(choices) for name, choices in found.items()}
            blocks.append(_dataset_table(report, found, intervals))
            path = report.picture(f"methods {dataset} {evaluator}")
            note = f"{averaged(found)}; bars: mean, lines: 95 % bootstrap interval over seeds"
            means, title = {k: v[0] for k, v in intervals.items()}, f"{dataset}, {executed(evaluator)}"
            plot_methods(means, path, label=label, note=note, title=title, formats=report.figures)
            blocks.append(Picture(path, note))
        blocks += _curves(report, part, dataset, evaluator)
        blocks += _grid_table(report, dataset, evaluator)
    return [*blocks, *_runs(report, dataset)]


def _dataset_table(
    report: Report, found: Mapping[str, Sequence[Choice]], intervals: Mapping[str, Sequence[Interval]]
) -> Table:
    rows = []
    for name, choices in found.items():
        (choice,) = choices
        diverged = sum(score.diverged for score in choice.scores)
        rows.append([name, choice.setting, str(len(choice.scores)), str(diverged), *map(cell_of, intervals[name])])
    return Table(score_header(found, ["method", "setting", "seeds", "diverged"]), rows)


def _diagnosis(report: Report, dataset: str, evaluator: str) -> list[Table]:
    """Return every method's every setting, in the plan's order: the last evaluation, no best and no choice."""
    groups: dict[tuple[str, str], list[RunScore]] = {}
    for score in report.scores:
        if (score.run.dataset, score.evaluator) == (dataset, evaluator):
            groups.setdefault((score.run.method, score.setting), []).append(score)
    rows = []
    for (method, setting), group in groups.items():
        diverged = sum(score.diverged for score in group)
        mean, _ = mean_and_iqm(score_matrix([Choice(tuple(group), 1)], "last"))
        rows.append([method, setting, str(len(group)), str(diverged), cell_of(mean)])
    header = ["method", "setting", "seeds", "diverged", "at the last evaluation: mean"]
    return [Table(header, rows)] if rows else []


def _curves(report: Report, part: pandas.DataFrame, dataset: str, evaluator: str) -> list[Picture]:
    """Draw the chosen settings; of a method that has none yet, all runs; without a simulator each setting."""
    metric = report.metrics[dataset]
    measured = part[(part["evaluator"] == evaluator) & part[metric].notna()]
    curves = {}
    for method in report.methods:
        rows = measured[measured["method"] == method]
        if report.is_diagnosed(dataset):
            curves |= _by_setting(report, rows, method, metric)
            continue
        choice = report.choices.get((dataset, evaluator, method))
        if choice is not None:
            rows = rows[rows["run"].isin([score.run.name for score in choice.scores])]
        if len(rows):
            curves[method] = _by_step(rows, metric)
    if not curves:
        return []
    title = f"{dataset}, {executed(evaluator)}"
    path = report.picture(f"curves {dataset} {evaluator}")
    plot_curves(curves, path, label=report.label(dataset), title=title, formats=report.figures)
    return [Picture(path, "Learning curves: mean over seeds, band: Student's 95 % interval.")]


def _by_step(rows: pandas.DataFrame, metric: str) -> dict[int, list[float]]:
    return {int(step): group.tolist() for step, group in rows.groupby("step")[metric]}


def _by_setting(report: Report, rows: pandas.DataFrame, method: str, metric: str) -> dict[str, Mapping]:
    """Return a curve for each setting of a method's grid."""
    settings: dict[str, list[str]] = {}
    for run in report.plan.runs:
        if run.method == method:
            words = ", ".join(f"{name} {value}" for name, value in run.grid.items())
            settings.setdefault(f"{method} {words}".strip(), []).append(run.name)
    parts = {label: rows[rows["run"].isin(runs)] for label, runs in settings.items()}
    return {label: _by_step(part, metric) for label, part in parts.items() if len(part)}


def _grid_table(report: Report, dataset: str, evaluator: str) -> list[Table]:
    """Return every setting of a grid with its means, folded away."""
    settings: dict[tuple[str, str], list[RunScore]] = {}
    for score in report.scores:
        searched = score.run.trial is not None
        if (score.run.dataset, score.evaluator) == (dataset, evaluator) and score.setting and not searched:
            settings.setdefault((score.run.method, score.setting), []).append(score)
    if not settings:
        return []
    rows = []
    for (method, setting), group in settings.items():
        means = [sum(getattr(score, reading) for score in group) / len(group) for reading in READINGS]
        rows.append([method, setting, str(len(group)), *(f"{mean:.4g}" for mean in means)])
    averaged = averaged_in_words(score for group in settings.values() for score in group)
    header = ["method", "setting", "seeds", averaged, "last", "best"]
    return [Table(header, rows, summary="Every setting of the grid: means over seeds")]


def _runs(report: Report, dataset: str) -> list[Table]:
    """Return every run with a link to its folder, where it has one, folded away."""
    rows = []
    for population in report.whole.populations:
        place = job_folder(report.output, population)
        state = job_state(place)
        for run in population.runs:
            if run.dataset != dataset:
                continue
            folder = place / MEMBERS / run.name
            name = Link(run.name, folder.relative_to(report.output).as_posix()) if folder.is_dir() else run.name
            setting = ", ".join(f"{name} {value}" for name, value in run.grid.items())
            rows.append([name, run.method, setting, str(run.seed), state])
    header = ["run", "method", "setting", "seed", "state"]
    return [Table(header, rows, summary=f"Runs on {dataset} and their folders")] if rows else []
