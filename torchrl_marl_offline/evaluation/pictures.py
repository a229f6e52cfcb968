"""Pictures of a run: learning curves from its CSV files, and methods side by side with their intervals.

Matplotlib is imported when a picture is drawn, and draws to a file without a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT_OR_NONE, REAL
from torchrl_marl_offline.evaluation.statistics import Interval
from torchrl_marl_offline.training.run.logging import Row, read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any common colour blindness; each comes with a dash pattern of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))

# Column of train.csv -> label of the axis; columns that a run does not have get no panel.
TRAINING_PANELS = {
    "qvalue_abs": "mean |Q| (discounted return)",
    "value_norm_scale": "SVN σ (discounted return)",
    "effective_sample_size": "AWR effective sample size\n(share of the batch)",
    "grad_norm": "gradient norm",
}
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}


@checked
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

    Returns:
        ``path``.

    Raises:
        FileNotFoundError: if a run has no ``train.csv``.
    """
    if not isinstance(runs, Mapping):
        runs = {"": runs}
    starts = starts or {}
    train = {
        name: _shifted(read_csv(user_path(folder) / "train.csv"), starts.get(name, 0)) for name, folder in runs.items()
    }
    evaluations = {
        name: _shifted(_read_if_there(folder / "eval.csv"), starts.get(name, 0)) for name, folder in runs.items()
    }
    panels = TRAINING_PANELS if panels is None else panels
    present = {
        column: label for column, label in panels.items() if any(column in row for r in train.values() for row in r)
    }
    evaluated = any(metric in row for rows in evaluations.values() for row in rows)

    figure, axes = new_figure(len(present) + evaluated)
    if evaluated:
        _draw_evaluations(axes[0], evaluations, metric, data_mean)
        axes[0].set_ylabel(metric_label or _METRIC_LABELS.get(metric, metric.replace("_", " ")))
    for axis, (column, label) in zip(axes[int(evaluated) :], present.items()):
        for index, (name, rows) in enumerate(train.items()):
            points = [(row["step"], row[column]) for row in rows if column in row]
            if points:
                look = {"color": COLOURS[index % len(COLOURS)], "ls": DASHES[index % len(DASHES)]}
                axis.plot(*zip(*points), **look, marker=point_marker(points), label=name)
        axis.set_ylabel(label)
        if column in ("qvalue_abs", "value_norm_scale", "grad_norm"):
            _log_scale_if_wide(axis)
    for axis in axes:
        axis.set_xlabel("updates")
        axis.set_xlim(left=0)
    if len(runs) > 1 and present:
        axes[int(evaluated)].legend(frameon=False, fontsize=9)  # by run; the evaluations have a legend of their own
    if title:
        figure.suptitle(title)
    return save_figure(figure, path)


def point_marker(points: Sequence[Any]) -> str | None:
    """Return the marker of a curve: a curve of one point has no line that would show it."""
    return "o" if len(points) == 1 else None


def _shifted(rows: Sequence[Row], start: int) -> list[Row]:
    return [row | {"step": row["step"] + start} for row in rows]


_METRIC_LABELS = {
    "return": "return per episode",
    "success": "success rate",
    "normalized": "normalized score\n(0 random, 100 expert)",
    "agreement": "share of recorded actions",
}


def _draw_evaluations(
    axis: Axes, evaluations: Mapping[str, Sequence[Row]], metric: str, data_mean: float | None
) -> None:
    curves: dict[tuple[int, str, str], list[Row]] = {}
    for index, (name, rows) in enumerate(evaluations.items()):
        for row in rows:
            if metric in row:
                curves.setdefault((index, name, row["evaluator"]), []).append(row)
    only_run = len(evaluations) == 1
    seen: dict[int, int] = {}
    for position, ((index, name, evaluator), rows) in enumerate(curves.items()):
        dash = seen[index] = seen.get(index, -1) + 1
        colour = COLOURS[(position if only_run else index) % len(COLOURS)]
        steps = [row["step"] for row in rows]
        label = evaluator if only_run else f"{name}, {evaluator}" if evaluator != name else name
        values = [row[metric] for row in rows]
        axis.plot(steps, values, color=colour, ls=DASHES[dash % len(DASHES)], marker="o", ms=3, label=label)
        if all(f"{metric}_low" in row for row in rows):
            low, high = ([row[f"{metric}_{end}"] for row in rows] for end in ("low", "high"))
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    if data_mean is not None:
        axis.axhline(data_mean, color="#555555", lw=1.5, ls=(0, (4, 3)), label=f"data mean ({data_mean:.4g})")
    axis.legend(frameon=False, fontsize=9)


def plot_methods(
    methods: Mapping[str, Interval | tuple[float, float, float]],
    path: str | Path,
    *,
    label: str = "return per episode",
    title: str | None = None,
    note: str | None = "bars: mean; lines: 95 % confidence interval",
) -> Path:
    """Draw one bar per method with its confidence interval.

    Args:
        methods: name -> (mean, low, high), as :func:`mean_confidence_interval` returns it; drawn from top to bottom.
        path: the PNG (or PDF, SVG) to write.
        label: what is measured, with its unit.
        title: of the picture.
        note: what bars and lines mean.

    Returns:
        ``path``.
    """
    if not methods:
        raise ValueError("plot_methods needs at least one method.")
    import matplotlib

    with matplotlib.rc_context(_STYLE | {"axes.grid.axis": "x"}):
        figure, (axis,) = new_figure(1, size=(7.0, 1.1 + 0.48 * len(methods)))
        means, lows, highs = zip(*methods.values())
        errors = [[m - low for m, low in zip(means, lows)], [high - m for m, high in zip(means, highs)]]
        colours = [COLOURS[index % len(COLOURS)] for index in range(len(methods))]
        rows = range(len(methods))
        axis.barh(rows, means, xerr=errors, color=colours, height=0.62, error_kw={"lw": 1.6, "capsize": 4})
        axis.set_yticks(rows, list(methods))
        axis.invert_yaxis()
        axis.tick_params(axis="y", length=0)
        edge = max(*highs, 0.0)
        for row, mean in enumerate(means):
            axis.annotate(f"{mean:.4g}", (edge, row), xytext=(8, 0), textcoords="offset points", va="center")
        axis.set_xlim(min(*lows, 0.0) * 1.05, edge + 0.12 * (edge - min(*lows, 0.0)) or 1.0)
        axis.set_xlabel(label if note is None else f"{label}\n({note})")
        if title:
            axis.set_title(title, loc="left")
        return save_figure(figure, path)


def new_figure(panels: int, size: tuple[float, float] | None = None) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of ``panels`` axes side by side, three to a row, made without a display or global state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = max(panels, 1)
    columns = min(panels, 3)
    lines = -(-panels // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size or (4.4 * columns, 3.4 * lines), dpi=130)
        FigureCanvasAgg(figure)
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[panels:]:
        axis.remove()
    return figure, axes[:panels]


def _log_scale_if_wide(axis: Axes) -> None:
    """Use a logarithmic axis where positive values span more than two orders of magnitude, as in a divergence."""
    values = [value for line in axis.get_lines() for value in line.get_ydata() if value > 0]
    everything = sum(len(line.get_ydata()) for line in axis.get_lines())
    if values and len(values) == everything and max(values) > 100 * min(values):
        axis.set_yscale("log")


def _read_if_there(path: Path) -> list[Row]:
    return read_csv(path) if path.exists() else []


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure in one step, and return its path."""
    path = user_path(path)
    options: dict[str, Any] = {"facecolor": "white"}
    with replacing_file(path) as temporary:
        figure.savefig(temporary, **options)
    return path
