"""Pictures of a study: learning curves over seeds, performance profiles, probabilities of improvement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torchrl_marl_offline.core.figure_style import (
    COLOURS,
    GREY,
    FigureFormat,
    axis_label,
    broken_name,
    draw_curve,
    figure_style,
    legend_beside,
    new_figure,
    save_figure,
)
from torchrl_marl_offline.evaluation.statistics import Interval, mean_confidence_interval

Curve = Mapping[int, Sequence[float]]


def plot_curves(
    curves: Mapping[str, Curve], path: Path, *, label: str, title: str, formats: Sequence[FigureFormat] = ()
) -> Path:
    """Draw each method's mean over the seeds at every evaluation, with Student's 95 % interval where there are two.

    Args:
        curves: method -> step -> one value a seed; at least one method has values.
        path: the PNG to write.
        label: of the vertical axis, with its unit.
        title: of the picture.
        formats: further formats, written beside ``path``.
    """
    lines = {
        name: {step: _interval(values) for step, values in sorted(curve.items()) if values}
        for name, curve in curves.items()
    }
    drawn = {name: (list(line), list(line.values())) for name, line in lines.items() if line}
    return _plot(drawn, path, "updates", label, title, formats)


def plot_profile(
    profiles: Mapping[str, Sequence[Interval]],
    thresholds: Sequence[float],
    path: Path,
    *,
    label: str,
    title: str,
    formats: Sequence[FigureFormat] = (),
) -> Path:
    """Draw the share of runs that score above each threshold, with its 95 % interval."""
    lines = {name: (list(thresholds), list(profile)) for name, profile in profiles.items()}
    return _plot(lines, path, label, "share of runs that score higher", title, formats)


@figure_style({"axes.grid.axis": "x"})
def plot_improvement(
    pairs: Mapping[tuple[str, str], Interval], path: Path, *, title: str, formats: Sequence[FigureFormat] = ()
) -> Path:
    """Draw the probability that one method improves on another, a row a pair, with its 95 % interval."""
    figure, (axis,) = new_figure(1, size=(8.4, 1.4 + 0.34 * len(pairs)))
    rows = range(len(pairs))
    means, lows, highs = zip(*pairs.values())
    errors = [[m - low for m, low in zip(means, lows)], [high - m for m, high in zip(means, highs)]]
    axis.errorbar(means, rows, xerr=errors, fmt="o", color=COLOURS[0], capsize=4, lw=1.6)
    axis.axvline(0.5, color=GREY, ls="--", lw=1.2)
    axis.set_yticks(rows, [broken_name(f"{one} > {other}", 40) for one, other in pairs])
    axis.set(xlim=(-0.02, 1.02), ylim=(len(pairs) - 0.4, -0.6), xlabel="probability of improvement (0.5: neither)")
    figure.suptitle(title, x=0.01, ha="left")
    return save_figure(figure, path, formats)


def _interval(values: Sequence[float]) -> Interval:
    return mean_confidence_interval(values) if len(values) > 1 else Interval(values[0], values[0], values[0])


@figure_style()
def _plot(
    lines: Mapping[str, tuple[Sequence[float], Sequence[Interval]]],
    path: Path,
    xlabel: str,
    ylabel: str,
    title: str,
    formats: Sequence[FigureFormat],
) -> Path:
    figure, (axis,) = new_figure(1, size=(8.4, 3.4 + 0.13 * max(0, len(lines) - 12)))
    for index, (name, (positions, intervals)) in enumerate(lines.items()):
        means, lows, highs = zip(*intervals)
        draw_curve(axis, positions, means, index=index, label=name, band=(lows, highs))
    axis.set(xlabel=xlabel, ylabel=axis_label(ylabel))
    figure.suptitle(title, x=0.01, ha="left")
    legend_beside(figure, axis)
    return save_figure(figure, path, formats)
