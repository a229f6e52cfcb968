"""Sections of a report that put datasets together: scores, performance profiles, probabilities of improvement."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy

from torchrl_marl_offline.core.document import Block, Heading, Picture, Table, Text
from torchrl_marl_offline.evaluation.pictures import METRIC_LABELS
from torchrl_marl_offline.study.figures import plot_improvement, plot_profile
from torchrl_marl_offline.study.report_content import Report, averaged, executed, score_header
from torchrl_marl_offline.study.report_tables import cell_of
from torchrl_marl_offline.study.scores import (
    COMPARABLE,
    Choice,
    improvement_probabilities,
    performance_profile,
    score_matrix,
)

MOST_PAIRS = 15
"""Pairs of methods in a picture; more are a table that is folded away."""


def comparisons(report: Report) -> list[Block]:
    """Put datasets together whose scores mean the same; those without a simulator have none."""
    blocks: list[Block] = []
    for evaluator, metric in itertools.product(report.evaluators, COMPARABLE):
        datasets = [name for name in report.plan.datasets if report.metrics.get(name) == metric]
        datasets = [name for name in datasets if any((name, evaluator, m) in report.choices for m in report.methods)]
        found = report.of(evaluator, datasets)
        if not found:
            continue
        if len(datasets) > 1:
            rows = [[name, *map(cell_of, report.intervals(choices))] for name, choices in found.items()]
            title = f"{len(datasets)} datasets, {METRIC_LABELS[metric]}, {executed(evaluator)}"
            blocks += [Heading(title), Table(score_header(found, ["method"]), rows)]
            text = "Mean and interquartile mean over runs and datasets; 95 % intervals by the stratified bootstrap."
            blocks.append(
                Text(f"{text} Datasets: {', '.join(datasets)}.{_left_out(report, evaluator, datasets, found)}")
            )
        blocks += _profile(report, evaluator, metric, found)
    for evaluator in report.evaluators:
        blocks += _improvement(report, evaluator)
    return blocks


def _left_out(report: Report, evaluator: str, datasets: Sequence[str], found: Mapping[str, Sequence[Choice]]) -> str:
    """Name the methods that have runs on some of the datasets alone, which cannot be put beside the others."""
    others = [
        name
        for name in report.methods
        if name not in found and any((dataset, evaluator, name) in report.choices for dataset in datasets)
    ]
    return f" Without runs on all of them, and so left out: {', '.join(others)}." if others else ""


def _profile(report: Report, evaluator: str, metric: str, found: Mapping[str, Sequence[Choice]]) -> list[Picture]:
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
        label=METRIC_LABELS[metric],
        title=f"performance profile, {executed(evaluator)}",
        formats=report.figures,
    )
    text = f"Share of runs whose {averaged(found)} evaluations is above a score; bands: 95 %."
    return [Picture(path, text)]


def _improvement(report: Report, evaluator: str) -> list[Block]:
    """Say how probable it is that a run of one method scores higher than one of another."""
    datasets = [
        name for name in report.plan.datasets if any((name, evaluator, m) in report.choices for m in report.methods)
    ]
    found = report.of(evaluator, datasets)
    matrices = {name: score_matrix(choices, "average_of_last") for name, choices in found.items()}
    matrices = {name: matrix for name, matrix in matrices.items() if len(matrix) > 1}
    blocks: list[Block] = [Heading(f"Probability of improvement, {executed(evaluator)}")]
    if len(matrices) < 2:
        what = "two methods that have two finished seeds each on every dataset"
        return [*blocks, Text(f"It is left out: it compares {what}.")]
    pairs = improvement_probabilities(matrices)
    text = (
        f"How probable it is that a run of the one method has a higher {averaged(found)} evaluations than a run of the "
        f"other, a tie counted as half (rliable's, mean over datasets; 95 % intervals by the stratified bootstrap). "
        f"0.5: neither. Datasets: {', '.join(datasets)}."
    )
    rows = [[one, other, cell_of(interval)] for (one, other), interval in pairs.items()]
    header, title = ["method", "other method", "probability"], "Probability of improvement of each pair"
    if len(pairs) > MOST_PAIRS:
        return [*blocks, Text(text), Table(header, rows, summary=title)]
    path = report.picture(f"improvement {evaluator}")
    plot_improvement(pairs, path, title=f"probability of improvement, {executed(evaluator)}", formats=report.figures)
    return [*blocks, Text(text), Table(header, rows), Picture(path, f"{title}; lines: 95 %.")]
