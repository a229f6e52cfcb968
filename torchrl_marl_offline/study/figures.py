"""Pictures of a study: learning curves over seeds, and performance profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torchrl_marl_offline.evaluation.pictures import COLOURS, DASHES, new_figure, point_marker, save_figure
from torchrl_marl_offline.evaluation.statistics import Interval, mean_confidence_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Mapping[int, Sequence[float]]


def plot_curves(curves: Mapping[str, Curve], path: Path, *, label: str, title: str) -> Path:
    """Draw each method's mean over the seeds at every evaluation, with Student's 95 % interval where there are two.

    Args:
        curves: method -> step -> one value a seed.
        path: the PNG to write.
        label: of the vertical axis.
        title: of the picture.
    """
    lines = {
        name: {step: _interval(values) for step, values in sorted(curve.items()) if values}
        for name, curve in curves.items()
    }
    drawn = {name: (list(line), list(line.values())) for name, line in lines.items()}
    return _plot(drawn, path, "updates", label, title)


def plot_profile(
    profiles: Mapping[str, Sequence[Interval]], thresholds: Sequence[float], path: Path, *, label: str, title: str
) -> Path:
    """Draw the share of runs that score above each threshold, with its 95 % interval."""
    lines = {name: (list(thresholds), list(profile)) for name, profile in profiles.items()}
    return _plot(lines, path, label, "share of runs that score higher", title)


def _interval(values: Sequence[float]) -> Interval:
    return mean_confidence_interval(values) if len(values) > 1 else Interval(values[0], values[0], values[0])


def _plot(
    lines: Mapping[str, tuple[Sequence[float], Sequence[Interval]]], path: Path, xlabel: str, ylabel: str, title: str
) -> Path:
    figure, (axis,) = new_figure(1, size=(8.4, 3.2 + 0.13 * max(0, len(lines) - 12)))
    for index, (name, (positions, intervals)) in enumerate(lines.items()):
        if not intervals:
            continue
        colour = COLOURS[index % len(COLOURS)]
        means, lows, highs = zip(*intervals)
        dash = DASHES[(index // len(COLOURS) + index) % len(DASHES)]
        axis.plot(positions, means, color=colour, ls=dash, label=name, lw=1.6, marker=point_marker(positions))
        if len(positions) == 1:  # a band needs two
            axis.vlines(positions, lows, highs, color=colour, lw=1.2)
        axis.fill_between(positions, lows, highs, color=colour, alpha=0.13, linewidth=0)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.set_title(title, loc="left")
    _legend_beside(figure, axis)
    return save_figure(figure, path)


def _legend_beside(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
