"""The figures of a diagnosis: actions within the data's, curves over the updates, Q in the plane of actions.

They are those of Lee et al. 2026: Figure 1 (recorded and chosen actions with the convex hull of the data), Figures 3 to
6 (values, errors, gradients, gains over the updates), Figure 8 (recorded actions by their Q).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrl_marl_offline.core.figure_style import (
    COLOURS,
    DASHES,
    GREY,
    FigureFormat,
    broken_name,
    draw_curve,
    figure_style,
    make_figure,
    save_figure,
)
from torchrl_marl_offline.evaluation.diagnostics.diagnosed import Diagnosed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase


MOST_AGENTS = 4
"""Agents that are drawn."""
PANELS: dict[str, tuple[str, dict[str, str]]] = {
    "values": ("|Q| (discounted return)", {"qvalue_abs": "mean", "qvalue_largest": "largest"}),
    "error": ("TD error (discounted return)", {"td_error_abs": "mean"}),
    "gradient": ("gradient norm", {"grad_norm": "all networks"}),
    "gains": ("gain", {"discounted_gain": "γ‖J‖", "closed_loop_gain": "closed loop"}),
}
"""Panel of the curves -> label of its axis, and its columns with their names."""
LINES = {"qvalue_bound": "possible", "return_largest": "largest return", "return_mean": "mean return"}
"""Numbers that are drawn as lines beside the values."""
_WIDTH, _CELL, _CURVE = 3.2, 2.5, 3.0
_BINS = 30
_MOST_NAMED = 10

Draw = Callable[["FigureBase"], None]


@figure_style()
def draw_all(
    diagnoses: Sequence[Diagnosed], path: Path, formats: Sequence[FigureFormat] = ()
) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Draw all figures below one another, as one picture.

    Returns:
        What each shows, and where it lies in the picture: left, upper, right, lower in pixels.
    """
    parts = _parts(diagnoses)
    heights = [size[1] + 0.3 for _, size, _ in parts] or [1.0]
    figure = make_figure((max([6.4, *(size[0] for _, size, _ in parts)]), sum(heights)))
    below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for place, (caption, _, draw) in zip(below, parts):
        draw(place)
        place.suptitle(caption.partition(".")[0], x=0.01, ha="left")
    if not parts:
        below[0].text(0.02, 0.5, "There is nothing to draw: no curves, no checkpoint.")
    save_figure(figure, path, formats)
    total, boxes = figure.bbox.height, [place.bbox for place in below]
    return [
        (caption, (int(box.x0), int(total - box.y1), int(box.x1), int(total - box.y0)))
        for (caption, _, _), box in zip(parts, boxes)
    ]


def _parts(diagnoses: Sequence[Diagnosed]) -> list[tuple[str, tuple[float, float], Draw]]:
    """Return each figure's caption, size and function."""
    found: list[tuple[str, tuple[float, float], Draw]] = []
    with_actions = [each for each in diagnoses if each.material is not None and each.material.chosen is not None]
    if with_actions:
        agents = min(MOST_AGENTS, max(each.material.recorded.shape[1] for each in with_actions))
        size = (max(6.4, _WIDTH * agents), _CELL * len(with_actions) + 0.6)
        caption = "Actions. Recorded and chosen by each agent's policy in the same states, with the data's convex hull"
        caption += f"; of discrete actions their frequencies.{_first(with_actions)}"
        found.append((caption, size, partial(_draw_actions, with_actions, agents)))
    panels = [name for name, (_, columns) in PANELS.items() if any(_points(d, c) for d in diagnoses for c in columns)]
    if panels:
        lines = -(-len(panels) // 2)
        caption = (
            "Over the updates. Values with what the rewards allow and what the data earned, error, gradient, gains."
        )
        size = (9.6, _CURVE * lines + 0.5)
        found.append((caption, size, partial(_draw_curves, diagnoses, panels)))
    valued = [each for each in diagnoses if each.material is not None and each.material.values is not None]
    if valued:
        agents = min(MOST_AGENTS, max(each.material.recorded.shape[1] for each in valued))
        columns, lines = (agents, 1) if len(valued) == 1 else (len(valued), agents)
        size = (max(6.4, _WIDTH * columns), _CELL * lines + 0.4)
        caption = "Learned Q. Recorded actions by the Q of their joint action; of discrete actions the mean of each."
        caption += _first(valued)
        found.append((caption, size, partial(_draw_values, valued, agents)))
    return found


def _first(diagnoses: Sequence[Diagnosed]) -> str:
    """Say that not all agents are drawn, where there are more."""
    some = any(each.material.recorded.shape[1] > MOST_AGENTS for each in diagnoses)
    return f" The first {MOST_AGENTS} agents." if some else ""


# ------------------------------------------------------------------------------ actions


def _draw_actions(diagnoses: Sequence[Diagnosed], agents: int, figure: FigureBase) -> None:
    grid = figure.subplots(len(diagnoses), agents, squeeze=False)
    handles: dict[str, Any] = {}
    for line, each in zip(grid, diagnoses):
        material = each.material
        for agent, axis in enumerate(line):
            if agent >= material.recorded.shape[1]:
                axis.set_axis_off()
                continue
            alive = material.alive[:, agent]
            recorded, chosen = material.recorded[alive, agent], material.chosen[alive, agent]
            _actions_of(axis, recorded, chosen, discrete=material.discrete)
            axis.set_title(f"agent {agent}" if len(diagnoses) == 1 else f"{broken_name(each.name)}, agent {agent}")
            handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)


def _actions_of(axis: Axes, recorded: Tensor, chosen: Tensor, *, discrete: bool) -> None:
    if discrete:
        _bars(axis, {"recorded": recorded.mean(0), "chosen": chosen.mean(0)})
        axis.set_ylabel("share")
        return
    if recorded.shape[-1] == 1:
        low = float(torch.cat([recorded, chosen]).min()) if len(recorded) else 0.0
        high = float(torch.cat([recorded, chosen]).max()) if len(recorded) else 1.0
        edges = torch.linspace(low, max(high, low + 1e-6), _BINS + 1).tolist()
        axis.hist(recorded[:, 0].tolist(), edges, color=GREY, alpha=0.5, label="recorded")
        axis.hist(chosen[:, 0].tolist(), edges, histtype="step", color=COLOURS[1], lw=1.6, label="chosen")
        axis.set_xlabel("action")
        return
    x, y = plane(recorded, chosen)
    axis.plot(recorded[:, x], recorded[:, y], ".", color=GREY, ms=2, alpha=0.5, label="recorded", rasterized=True)
    axis.plot(chosen[:, x], chosen[:, y], "x", color=COLOURS[1], ms=2.5, alpha=0.4, label="chosen", rasterized=True)
    hull = convex_hull(recorded[:, [x, y]].tolist())
    axis.plot(*zip(*hull, hull[0]), color=COLOURS[0], lw=1.4, label="hull of the recorded") if hull else None
    axis.set(xlabel=f"action, component {x}", ylabel=f"component {y}")


def plane(recorded: Tensor, chosen: Tensor | None) -> tuple[int, int]:
    """Return the two components of actions ``[R, a]`` that differ most between the two; without, that vary most."""
    far = recorded.std(0, correction=0) if chosen is None else (chosen - recorded).abs().mean(0)
    x, y = sorted(far.argsort(descending=True, stable=True)[:2].tolist())
    return x, y


def convex_hull(points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return the corners of the convex hull of points in a plane, counterclockwise (Andrew's monotone chain).

    Example:
        >>> convex_hull([[0, 0], [1, 0], [0.5, 0.2], [1, 1], [0, 1]])
        [(0, 0), (1, 0), (1, 1), (0, 1)]
    """
    ordered = sorted({(x, y) for x, y in points})

    def half(of: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        corners: list[tuple[float, float]] = []
        for x, y in of:
            while len(corners) > 1:
                (ax, ay), (bx, by) = corners[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                corners.pop()
            corners.append((x, y))
        return corners[:-1]

    return ordered if len(ordered) < 3 else half(ordered) + half(ordered[::-1])


def _bars(axis: Axes, heights: dict[str, Tensor]) -> None:
    """Draw a bar of each kind at every action."""
    width = 0.8 / len(heights)
    for index, (label, values) in enumerate(heights.items()):
        places = [action + (index - (len(heights) - 1) / 2) * width for action in range(len(values))]
        look = {"color": GREY} if index == 0 else {"color": COLOURS[index], "hatch": "//", "edgecolor": "white"}
        axis.bar(places, values.tolist(), width, label=label, **look)
    axis.set_xlabel("action")
    if len(values) <= _MOST_NAMED:
        axis.set_xticks(range(len(values)))
    axis.grid(axis="x", visible=False)


# ------------------------------------------------------------------------------- curves


def _points(diagnosis: Diagnosed, column: str) -> list[tuple[int, float]]:
    pairs = [(row["step"], row[column]) for row in diagnosis.curves if isinstance(row.get(column), float)]
    return [(step, value) for step, value in pairs if math.isfinite(value)]


def _draw_curves(diagnoses: Sequence[Diagnosed], panels: Sequence[str], figure: FigureBase) -> None:
    grid = figure.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False).flatten()
    for axis in grid[len(panels) :]:
        axis.remove()
    for axis, panel in zip(grid, panels):
        label, columns = PANELS[panel]
        for index, each in enumerate(diagnoses):
            for variant, (column, name) in enumerate(columns.items()):
                if points := _points(each, column):
                    name = name if len(diagnoses) == 1 else f"{broken_name(each.name)}, {name}"
                    draw_curve(axis, *zip(*points), index=index, label=name, variant=variant)
        _log_if_wide(axis)
        if panel == "values":
            _draw_lines(axis, diagnoses)
        if panel == "gains":
            axis.axhline(1.0, color=GREY, lw=1.0, ls=":")
        axis.set(xlabel="updates", ylabel=label)
        axis.legend(fontsize=8, frameon=True, framealpha=0.8, edgecolor="none")


def _log_if_wide(axis: Axes) -> None:
    values = [value for line in axis.get_lines() for value in line.get_ydata()]
    if values and min(values) > 0 and max(values) > 100 * min(values):
        axis.set_yscale("log")


def _draw_lines(axis: Axes, diagnoses: Sequence[Diagnosed]) -> None:
    """Draw what is possible and what was earned, each value once: runs on one dataset share them."""
    drawn: set[tuple[str, str]] = set()
    for each in diagnoses:
        for index, (number, label) in enumerate(LINES.items()):
            value = abs(each.numbers.get(number, math.nan))
            if math.isfinite(value) and (number, f"{value:.4g}") not in drawn:
                drawn.add((number, f"{value:.4g}"))
                axis.axhline(value, color=GREY, lw=1.2, ls=DASHES[1 + index], label=f"{label} ({value:.3g})")


# ------------------------------------------------------------------------------- values


def _draw_values(diagnoses: Sequence[Diagnosed], agents: int, figure: FigureBase) -> None:
    """Draw a column for each run and a row for each agent; of one run the agents side by side."""
    is_one = len(diagnoses) == 1
    grid = (
        figure.subplots(1, agents, squeeze=False).T
        if is_one
        else figure.subplots(agents, len(diagnoses), squeeze=False)
    )
    for column, each in enumerate(diagnoses):
        material = each.material
        points = None
        for agent in range(agents):
            axis = grid[agent, column]
            if agent >= material.recorded.shape[1]:
                axis.set_axis_off()
                continue
            alive = material.alive[:, agent]
            points = _values_of(axis, material.recorded[alive, agent], material.values[alive, agent], material.discrete)
            axis.set_title(f"agent {agent}" if is_one else f"{broken_name(each.name)}, agent {agent}")
        if points is not None:
            figure.colorbar(points, ax=grid[:, column].tolist(), label="Q", pad=0.02)


def _values_of(axis: Axes, actions: Tensor, values: Tensor, discrete: bool) -> Any:
    """Draw one agent; return what a colour bar belongs to."""
    if discrete:
        count = actions.sum(0)
        _bars(axis, {"mean Q": (actions * values.unsqueeze(-1)).sum(0) / count.clamp_min(1)})
        axis.set_ylabel("mean Q")
        return None
    if actions.shape[-1] == 1:
        axis.plot(actions[:, 0], values, ".", color=COLOURS[0], ms=2, alpha=0.5, rasterized=True)
        axis.set(xlabel="action", ylabel="Q")
        return None
    x, y = plane(actions, None)
    order = values.argsort()
    axis.set(xlabel=f"action, component {x}", ylabel=f"component {y}")
    return axis.scatter(actions[order, x], actions[order, y], c=values[order], s=3, cmap="cividis", rasterized=True)
