"""``report.html`` and ``report.md``: what a study has shown so far."""

from __future__ import annotations

import hashlib
import itertools
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from torchrl_marl_offline.core.files import write_text_atomic
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.evaluation.pictures import plot_methods
from torchrl_marl_offline.evaluation.statistics import Interval
from torchrl_marl_offline.study.checking import StudyError, check_installed
from torchrl_marl_offline.study.document import Block, Heading, Picture, Table, Text, to_html, to_markdown
from torchrl_marl_offline.study.figures import plot_curves, plot_profile
from torchrl_marl_offline.study.jobs import job_state
from torchrl_marl_offline.study.plan import PLAN_FILE, Plan
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.study.scores import (
    COMPARABLE,
    READINGS,
    Choice,
    RunScore,
    averaged_in_words,
    choose,
    choose_metrics,
    mean_and_iqm,
    performance_profile,
    score_matrix,
    scores_of,
)
from torchrl_marl_offline.study.table import job_folder, read_results, write_results
from torchrl_marl_offline.training.run.metrics import OF_RECORDED_ACTIONS

if TYPE_CHECKING:
    import pandas

LABELS = {
    "return": "return per episode",
    "normalized": "normalized score (0 random, 100 expert)",
    "success": "success rate",
    "agreement": "share of recorded actions that the policy takes",
    "agreement_choice": "share of recorded actions that the policy takes, where there is a choice",
    "action_error": "mean distance from recorded actions",
}

DIAGNOSIS = (
    "There is no simulator of this task, so that nothing here says what a policy earns. How like the recorded actions "
    "its own are is a diagnosis: cloning is best at it by construction, and a policy that improves on the data may "
    "differ more. Methods are not ranked by it, and of a grid every setting is shown."
)


@dataclass(frozen=True)
class _Report:
    """What all sections of a report need."""

    plan: Plan
    output: Path
    frame: pandas.DataFrame
    metrics: Mapping[str, str]
    scores: Sequence[RunScore]
    choices: Mapping[tuple[str, str, str], Choice]

    @property
    def evaluators(self) -> list[str]:
        return list(dict.fromkeys(evaluator for _, evaluator, _ in self.choices))

    def is_diagnosed(self, dataset: str) -> bool:
        """Whether a dataset has no simulator, so that nothing of it is compared."""
        return self.metrics.get(dataset) in OF_RECORDED_ACTIONS

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(population.method for population in self.plan.populations))

    def label(self, dataset: str) -> str:
        return LABELS.get(self.metrics[dataset], self.metrics[dataset])

    def picture(self, name: str) -> Path:
        """Return where a picture goes; names of methods and datasets may hold what a file's name must not."""
        plain = re.sub(r"[ /]", "-", name)
        if len(plain) > 150 or re.search(r"[^A-Za-z0-9._=+()-]", plain):
            mark = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
            plain = f"{re.sub(r'[^A-Za-z0-9._=+-]+', '-', plain)[:150]}-{mark}"
        return self.output / "report" / f"{plain}.png"

    def of(self, evaluator: str, datasets: Sequence[str]) -> dict[str, list[Choice]]:
        """Return method -> its choices on the datasets, of the methods that have one on each."""
        found = {m: [self.choices.get((name, evaluator, m)) for name in datasets] for m in self.methods}
        return {m: choices for m, choices in found.items() if choices and None not in choices}


def write_study_report(output: str | Path) -> tuple[Path, Path]:
    """Write ``report.html``, which needs no other file, and ``report.md`` with its pictures in ``report/``.

    Args:
        output: the study's folder; its table is made anew from its jobs, finished or not.

    Returns:
        The paths of both.

    Raises:
        StudyError: the folder is not a study's, or none of its runs has been evaluated.
        ImportError: a library of the extra ``study`` is missing.
    """
    check_installed()
    output = user_path(output)
    plan = Plan.load(output)
    if plan is None:
        raise StudyError(f"{output} has no {PLAN_FILE}; name the output folder of a study that was run.")
    write_results(plan, output)
    frame = read_results(output)
    metrics = choose_metrics(frame, plan.metric)
    scores = scores_of(plan, frame, metrics)
    report = _Report(plan, output, frame, metrics, scores, choose(scores, metrics))
    blocks = [*_opening(report), *_aggregates(report)]
    for dataset in plan.datasets:
        blocks += _dataset(report, dataset)
    blocks += _closing(report)
    write_text_atomic(output / "report.md", to_markdown(blocks, output))
    write_text_atomic(output / "report.html", to_html(blocks, plan.name))
    return output / "report.html", output / "report.md"


def _opening(report: _Report) -> list[Block]:
    plan = report.plan
    blocks: list[Block] = [Heading(plan.name, 1)]
    states = {p.name: job_state(job_folder(report.output, p)) for p in plan.populations}
    count = {
        state: sum(len(p.runs) for p in plan.populations if states[p.name] == state)
        for state in ("finished", "begun", "failed", "new")
    }
    total = len(plan.runs)
    seeds = len({run.seed for run in plan.runs})
    blocks.append(
        Text(
            f"Runs: {total} ({len(report.methods)} methods, {len(plan.datasets)} datasets, {seeds} seeds), in "
            f"{len(plan.populations)} populations. Evaluated by {plan.evaluation.episodes} episodes every "
            f"{plan.evaluation.every:,} updates."
        )
    )
    if count["finished"] < total:
        rest = ", ".join(f"{n} {word}" for word, n in count.items() if n and word != "finished")
        text = f"This study is incomplete: {count['finished']} of {total} runs are finished ({rest}). "
        text += "The tables hold the finished runs alone, the curves all evaluations so far."
        blocks.append(Text(text, warning=True))
    diverged = report.frame[report.frame["diverged"].fillna(False)]["run"].nunique()
    if diverged:
        text = f"{diverged} runs stopped being finite; each counts with the last evaluations that were."
        blocks.append(Text(text, warning=True))
    impossible = report.frame[report.frame["impossible_step"].notna()]["run"].unique().tolist()
    if impossible:
        shown = ", ".join(impossible[:8]) + (f" and {len(impossible) - 8} more" if len(impossible) > 8 else "")
        text = f"The values of {len(impossible)} runs exceeded what the rewards of their data allow, so that their "
        text += f"policies follow an error: {shown}."
        blocks.append(Text(text, warning=True))
    if any(choice.candidates > 1 for choice in report.choices.values()):
        blocks.append(
            Text(
                f"Of a grid, the setting is shown whose average of the last {plan.last_k} evaluations (of all, where "
                "there are fewer) is best in the mean over seeds, chosen for each dataset, method and evaluator by the "
                "very runs that are shown: such a score is optimistic, the more so the larger the grid."
            )
        )
    return blocks


def _aggregates(report: _Report) -> list[Block]:
    """Put datasets together whose scores mean the same; those without a simulator have none."""
    blocks: list[Block] = []
    for evaluator, metric in itertools.product(report.evaluators, COMPARABLE):
        datasets = [name for name in report.plan.datasets if report.metrics.get(name) == metric]
        datasets = [name for name in datasets if any((name, evaluator, m) in report.choices for m in report.methods)]
        found = report.of(evaluator, datasets)
        if not found:
            continue
        if len(datasets) > 1:
            rows = [[name, *map(_cell, _intervals(choices))] for name, choices in found.items()]
            title = f"{len(datasets)} datasets, {LABELS[metric]}, {_executed(evaluator)}"
            blocks += [Heading(title), Table(_header(found, ["method"]), rows)]
            text = "Mean and interquartile mean over runs and datasets; 95 % intervals by the stratified bootstrap."
            blocks.append(Text(f"{text} Datasets: {', '.join(datasets)}."))
        blocks += _profile(report, evaluator, metric, found)
    return blocks


def _executed(evaluator: str) -> str:
    words = {"mode": "by the deterministic policy", "sample": "by the stochastic policy"}
    return words.get(evaluator, evaluator)


def _averaged(found: Mapping[str, Sequence[Choice]]) -> str:
    return averaged_in_words(score for choices in found.values() for choice in choices for score in choice.scores)


def _header(found: Mapping[str, Sequence[Choice]], first: Sequence[str]) -> list[str]:
    names = {"average_of_last": _averaged(found), "last": "last", "best": "best"}
    return [*first, *(f"{names[reading]}: {what}" for reading in READINGS for what in ("mean", "IQM"))]


def _intervals(choices: Sequence[Choice]) -> list[Interval]:
    """Return mean and IQM of each reading."""
    return [interval for reading in READINGS for interval in mean_and_iqm(score_matrix(choices, reading))]


def _cell(interval: Interval) -> str:
    if interval.low == interval.high:
        return f"{interval.mean:.4g}"
    return f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def _profile(report: _Report, evaluator: str, metric: str, found: Mapping[str, Sequence[Choice]]) -> list[Picture]:
    """Draw a profile of the methods that have two seeds."""
    matrices = {name: score_matrix(choices, "average_of_last") for name, choices in found.items()}
    matrices = {name: matrix for name, matrix in matrices.items() if len(matrix) > 1}
    if not matrices:
        return []
    values = numpy.concatenate([matrix.flatten() for matrix in matrices.values()])
    room = 0.02 * (float(numpy.ptp(values)) or 1.0)
    thresholds = numpy.linspace(values.min() - room, values.max() + room, 61)
    path = plot_profile(
        performance_profile(matrices, thresholds),
        thresholds.tolist(),
        report.picture(f"profile {metric} {evaluator}"),
        label=LABELS[metric],
        title=f"performance profile, {_executed(evaluator)}",
    )
    text = f"Share of runs whose {_averaged(found)} evaluations is above a score; bands: 95 %."
    return [Picture(path, text)]


def _dataset(report: _Report, dataset: str) -> list[Block]:
    blocks: list[Block] = [Heading(dataset)]
    part = report.frame[report.frame["dataset"] == dataset]
    if not len(part):
        return [*blocks, Text("Nothing has been evaluated yet.")]
    for evaluator in list(dict.fromkeys(part["evaluator"].dropna())):
        found, label = report.of(evaluator, [dataset]), report.label(dataset)
        blocks.append(Heading(f"{label}, {_executed(evaluator)}", 3))
        if report.is_diagnosed(dataset):
            blocks += [Text(DIAGNOSIS), *_diagnosis(report, dataset, evaluator)]
            blocks.append(_curves(report, part, dataset, evaluator))
            continue
        if found:
            intervals = {name: _intervals(choices) for name, choices in found.items()}
            blocks.append(_dataset_table(report, found, intervals))
            path = report.picture(f"methods {dataset} {evaluator}")
            note = f"{_averaged(found)}; bars: mean, lines: 95 % bootstrap interval over seeds"
            blocks.append(
                Picture(plot_methods({k: v[0] for k, v in intervals.items()}, path, label=label, note=note), note)
            )
        blocks.append(_curves(report, part, dataset, evaluator))
        blocks += _grid_table(report, dataset, evaluator)
    return blocks


def _dataset_table(
    report: _Report, found: Mapping[str, Sequence[Choice]], intervals: Mapping[str, Sequence[Interval]]
) -> Table:
    rows = []
    for name, choices in found.items():
        (choice,) = choices
        diverged = sum(score.diverged for score in choice.scores)
        rows.append([name, choice.setting, str(len(choice.scores)), str(diverged), *map(_cell, intervals[name])])
    return Table(_header(found, ["method", "setting", "seeds", "diverged"]), rows)


def _diagnosis(report: _Report, dataset: str, evaluator: str) -> list[Table]:
    """Return every method's every setting, in the plan's order: the last evaluation, no best and no choice."""
    groups: dict[tuple[str, str], list[RunScore]] = {}
    for score in report.scores:
        if (score.run.dataset, score.evaluator) == (dataset, evaluator):
            groups.setdefault((score.run.method, score.setting), []).append(score)
    rows = []
    for (method, setting), group in groups.items():
        diverged = sum(score.diverged for score in group)
        mean, _ = mean_and_iqm(score_matrix([Choice(tuple(group), 1)], "last"))
        rows.append([method, setting, str(len(group)), str(diverged), _cell(mean)])
    header = ["method", "setting", "seeds", "diverged", "at the last evaluation: mean"]
    return [Table(header, rows)] if rows else []


def _curves(report: _Report, part: pandas.DataFrame, dataset: str, evaluator: str) -> Picture:
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
    title = f"{dataset}, {_executed(evaluator)}"
    path = report.picture(f"curves {dataset} {evaluator}")
    plot_curves(curves, path, label=report.label(dataset), title=title)
    return Picture(path, "Learning curves: mean over seeds, band: Student's 95 % interval.")


def _by_step(rows: pandas.DataFrame, metric: str) -> dict[int, list[float]]:
    return {int(step): group.tolist() for step, group in rows.groupby("step")[metric]}


def _by_setting(report: _Report, rows: pandas.DataFrame, method: str, metric: str) -> dict[str, Mapping]:
    """Return a curve for each setting of a method's grid."""
    settings: dict[str, list[str]] = {}
    for run in report.plan.runs:
        if run.method == method:
            words = ", ".join(f"{name} {value}" for name, value in run.grid.items())
            settings.setdefault(f"{method} {words}".strip(), []).append(run.name)
    parts = {label: rows[rows["run"].isin(runs)] for label, runs in settings.items()}
    return {label: _by_step(part, metric) for label, part in parts.items() if len(part)}


def _grid_table(report: _Report, dataset: str, evaluator: str) -> list[Table]:
    """Return every setting of a grid with its means, folded away."""
    settings: dict[tuple[str, str], list[RunScore]] = {}
    for score in report.scores:
        if (score.run.dataset, score.evaluator) == (dataset, evaluator) and score.setting:
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


def _closing(report: _Report) -> list[Block]:
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
