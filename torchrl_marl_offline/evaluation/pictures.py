"""Pictures of a run: learning curves from its CSV files, and methods side by side with their intervals.

Matplotlib is imported when a picture is drawn, and draws to a file without a display.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.figure_style import (
    COLOURS,
    GREY,
    FigureFormat,
    axis_label,
    broken_name,
    draw_curve,
    figure_style,
    new_figure,
    save_figure,
)
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT_OR_NONE, REAL
from torchrl_marl_offline.evaluation.statistics import Interval
from torchrl_marl_offline.training.run.logging import Row, read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchrl_marl_offline.data import OfflineDataset

# Column of train.csv -> label of the axis; columns that a run does not have get no panel.
TRAINING_PANELS = {
    "qvalue_abs": "mean |Q| (discounted return)",
    "value_norm_scale": "SVN σ (discounted return)",
    "effective_sample_size": "AWR effective sample size\n(share of the batch)",
    "grad_norm": "gradient norm",
}
METRIC_LABELS = {
    "return": "mean return of an episode",
    "normalized": "normalized score (0 random, 100 expert)",
    "success": "success rate (share of episodes)",
    "agreement": "share of recorded actions\nthat the policy takes",
    "agreement_choice": "share of recorded actions that\nthe policy takes, where there is a choice",
    "action_error": "mean distance from recorded actions",
}
"""What is measured, with its unit, as it stands at an axis."""


LONGEST_SOURCE = 50
"""Characters of a dataset's source in a title."""


@checked
@figure_style()
def plot_learning_curves(
    runs: Mapping[str, str | Path] | str | Path,
    path: str | Path,
    *,
    metric: str = "return",
    metric_label: str | None = None,
    data_mean: Annotated[float | None, REAL] = None,
    panels: Mapping[str, str] | None = None,
    starts: Annotated[Mapping[str, int] | None, COUNT_OR_NONE] = None,
    title: str | None = None,
    formats: Sequence[FigureFormat] = (),
) -> Path:
    """Draw evaluation over the steps, and beside it what training reports (|Q|, SVN's σ, AWR's sample size, ...).

    Args:
        runs: name -> folder with ``train.csv`` and ``eval.csv``, or one such folder. A run's evaluators are curves of
            one colour and different dashes; the band is the 95 % interval across episodes.
        path: the PNG (or PDF, SVG) to write.
        metric: column of ``eval.csv``, e.g. ``"return"``, ``"success"`` or ``"normalized"``.
        metric_label: label of its axis.
        data_mean: the dataset's mean of ``metric``, drawn as a line.
        panels: column of ``train.csv`` -> axis label; by default :data:`TRAINING_PANELS`.
        starts: name of a run -> the step of another run from which it goes on (online after offline training).
        title: of the picture.
        formats: further formats, written beside ``path``.

    Returns:
        ``path``.

    Raises:
        FileNotFoundError: if a run has no ``train.csv``.
        ValueError: no run has a finite number that could be drawn.
    """
    if not isinstance(runs, Mapping):
        runs = {"": runs}
    starts = starts or {}
    train = {
        name: _shifted(read_csv(user_path(folder) / "train.csv"), starts.get(name, 0)) for name, folder in runs.items()
    }
    evaluations = {
        name: _shifted(_read_if_there(user_path(folder) / "eval.csv"), starts.get(name, 0))
        for name, folder in runs.items()
    }
    panels = TRAINING_PANELS if panels is None else panels
    present = {c: label for c, label in panels.items() if any(_points(rows, c) for rows in train.values())}
    evaluated = any(_points(rows, metric) for rows in evaluations.values())
    if not present and not evaluated:
        raise ValueError(f"There is nothing to draw yet: no run has {metric!r} or any of {', '.join(panels)}.")

    figure, axes = new_figure(len(present) + evaluated)
    if evaluated:
        _draw_evaluations(axes[0], evaluations, metric, data_mean)
        axes[0].set_ylabel(axis_label(metric_label or METRIC_LABELS.get(metric, metric.replace("_", " "))))
    for axis, (column, label) in zip(axes[int(evaluated) :], present.items()):
        for index, (name, rows) in enumerate(train.items()):
            if points := _points(rows, column):
                draw_curve(axis, *zip(*points), index=index, label=name)
        axis.set_ylabel(label)
        if column in ("qvalue_abs", "value_norm_scale", "grad_norm"):
            _log_scale_if_wide(axis)
    for axis in axes:
        axis.set_xlabel("updates")
        axis.set_xlim(left=0)
    if len(runs) > 1 and present:
        axes[int(evaluated)].legend(handlelength=3.2)  # by run; the evaluations have a legend of their own
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return save_figure(figure, path, formats)


def _points(rows: Sequence[Row], column: str) -> list[tuple[int, float]]:
    """Return step and value of the rows that have a finite number in a column."""
    return [(row["step"], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]


def _shifted(rows: Sequence[Row], start: int) -> list[Row]:
    return [row | {"step": row["step"] + start} for row in rows]


def _draw_evaluations(
    axis: Axes, evaluations: Mapping[str, Sequence[Row]], metric: str, data_mean: float | None
) -> None:
    curves: dict[tuple[str, str], list[Row]] = {}
    for name, rows in evaluations.items():
        for row in rows:
            if math.isfinite(row.get(metric, math.nan)):
                curves.setdefault((name, row["evaluator"]), []).append(row)
    only_run, seen = len(evaluations) == 1, dict.fromkeys(evaluations, -1)
    for position, ((name, evaluator), rows) in enumerate(curves.items()):
        seen[name] += 1
        index, variant = (position, None) if only_run else (list(evaluations).index(name), seen[name])
        label = evaluator if only_run else f"{name}, {evaluator}" if evaluator != name else name
        ends = [f"{metric}_low", f"{metric}_high"]
        is_banded = all(end in row for row in rows for end in ends)
        band = tuple([row[end] for row in rows] for end in ends) if is_banded else None
        steps, values = [row["step"] for row in rows], [row[metric] for row in rows]
        draw_curve(axis, steps, values, index=index, label=label, band=band, variant=variant)
    if data_mean is not None:
        axis.axhline(data_mean, color=GREY, lw=1.5, ls=(0, (4, 3)), label=f"data mean ({data_mean:.4g})")
    handles, labels = axis.get_legend_handles_labels()
    axis.figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), handlelength=3.2)


def title_of(data: OfflineDataset) -> str:
    """Return what figures of a dataset are titled: its task and where it comes from."""
    source = str(data.metadata.get("source", ""))
    source = source if len(source) <= LONGEST_SOURCE else f"… {source[2 - LONGEST_SOURCE :]}"
    return ", ".join(filter(None, [data.spec.task or "unnamed task", f"data of {source}" if source else ""]))


@figure_style({"axes.grid.axis": "x"})
def plot_methods(
    methods: Mapping[str, Interval | tuple[float, float, float]],
    path: str | Path,
    *,
    label: str = METRIC_LABELS["return"],
    title: str | None = None,
    note: str | None = "bars: mean; lines: 95 % confidence interval",
    formats: Sequence[FigureFormat] = (),
) -> Path:
    """Draw one bar per method with its confidence interval.

    Args:
        methods: name -> (mean, low, high), as :func:`mean_confidence_interval` returns it; drawn from top to bottom.
        path: the PNG (or PDF, SVG) to write.
        label: what is measured, with its unit.
        title: of the picture.
        note: what bars and lines mean.
        formats: further formats, written beside ``path``.

    Returns:
        ``path``.
    """
    if not methods:
        raise ValueError("plot_methods needs at least one method.")
    figure, (axis,) = new_figure(1, size=(7.0, 1.1 + 0.3 * bool(title) + 0.42 * len(methods)))
    means, lows, highs = zip(*methods.values())
    errors = [[m - low for m, low in zip(means, lows)], [high - m for m, high in zip(means, highs)]]
    rows = range(len(methods))
    axis.barh(rows, means, xerr=errors, color=COLOURS[0], height=0.62, error_kw={"lw": 1.6, "capsize": 4})
    axis.set_yticks(rows, [broken_name(name) for name in methods])
    axis.set_ylim(len(methods) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.axvline(0.0, color="black", lw=0.8)
    low, high = min(*lows, 0.0), max(*highs, 0.0)
    for row, mean in enumerate(means):
        axis.annotate(f"{mean:.4g}", (high, row), xytext=(8, 0), textcoords="offset points", va="center")
    axis.set_xlim(low - 0.04 * (high - low) * bool(low), high + 0.12 * (high - low) or 1.0)
    axis.set_xlabel(label if note is None else f"{label}\n{textwrap.fill(f'({note})', 46)}")
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return save_figure(figure, path, formats)


def _log_scale_if_wide(axis: Axes) -> None:
    """Use a logarithmic axis where positive values span more than two orders of magnitude, as in a divergence."""
    values = [value for line in axis.get_lines() for value in line.get_ydata() if value > 0]
    everything = sum(len(line.get_ydata()) for line in axis.get_lines())
    if values and len(values) == everything and max(values) > 100 * min(values):
        axis.set_yscale("log")


def _read_if_there(path: Path) -> list[Row]:
    return read_csv(path) if path.exists() else []
