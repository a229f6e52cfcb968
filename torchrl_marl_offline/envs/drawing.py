"""Pictures of games, drawn from discs and polygons by matplotlib; no display is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from torchrl_marl_offline.core.figure_style import COLOURS

if TYPE_CHECKING:
    from torch import Tensor

Point = tuple[float, float]
Colour = str | tuple[float, float, float]

AGENT_COLOURS = COLOURS[:-1]  # without black, in which landmarks are drawn


@dataclass(frozen=True)
class Shape:
    """A filled disc, or a polygon, or with ``filled=False`` its outline; two points are a line.

    Args:
        points: the centre of a disc, or the corners.
        radius: of the disc.
        label: written at the first point.
    """

    points: Sequence[Point]
    radius: float = 0.0
    colour: Colour = "#222222"
    alpha: float = 1.0
    filled: bool = True
    label: str = ""


@dataclass(frozen=True)
class Scene:
    """Shapes in the order in which they are drawn, and the part of the plane that is seen."""

    low: Point
    high: Point
    shapes: list[Shape] = field(default_factory=list)


def discs(
    centres: Tensor, radius: float, colour: Colour | Sequence[Colour], *, alpha: float = 1.0, labels: Iterable[str] = ()
) -> list[Shape]:
    """Return discs at ``[n, 2]``, of one colour or of one each."""
    colours = [colour] * len(centres) if isinstance(colour, str) else colour
    labels = list(labels) or [""] * len(centres)
    return [
        Shape([tuple(centre)], radius=radius, colour=colours[i % len(colours)], alpha=alpha, label=labels[i])
        for i, centre in enumerate(centres.tolist())
    ]


def arena(places: Tensor, shapes: list[Shape]) -> Scene:
    """Return a view of the square in which everything starts, a little wider, or more where ``places`` lie farther."""
    reach = max(1.3, places.abs().max().item() + 0.1)
    return Scene((-reach, -reach), (reach, reach), shapes)


def board(rows: int, columns: int, shapes: list[Shape]) -> Scene:
    """Return a scene of square cells, row 0 at the top: cell (r, c) has its centre at (c, -r)."""
    edges = [Shape([(c - 0.5, 0.5), (c - 0.5, 0.5 - rows)], colour="#bbbbbb") for c in range(columns + 1)]
    edges += [Shape([(-0.5, 0.5 - r), (columns - 0.5, 0.5 - r)], colour="#bbbbbb") for r in range(rows + 1)]
    return Scene((-0.6, 0.4 - rows), (columns - 0.4, 0.6), edges + shapes)


def on_board(cells: Tensor) -> Tensor:
    """Return the centres ``[n, 2]`` of (row, column) cells ``[n, 2]``."""
    return cells.double().flip(-1) * cells.new_tensor([1, -1])


def draw(scene: Scene, *, size: int) -> np.ndarray:
    """Return a picture of height ``size``, uint8 ``[size, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = (high - low for low, high in zip(scene.low, scene.high))
    figure = Figure(figsize=(round(size * width / height) / 100, size / 100), dpi=100)  # without pyplot: no state
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(scene.low[0], scene.high[0]), ylim=(scene.low[1], scene.high[1]))
    axes.axis("off")
    for order, shape in enumerate(scene.shapes):
        axes.add_artist(_artist(shape, order))
        if shape.label:
            axes.text(*shape.points[0], shape.label, ha="center", va="center", fontsize=size / 28, zorder=order)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _artist(shape: Shape, order: int):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, Polygon

    style = {"color": shape.colour, "alpha": shape.alpha, "zorder": order}
    if len(shape.points) == 1:
        return Circle(shape.points[0], shape.radius, fill=shape.filled, linewidth=1 - shape.filled, **style)
    if len(shape.points) == 2:
        return Line2D(*zip(*shape.points), linewidth=1.5, **style)
    return Polygon(shape.points, closed=True, fill=shape.filled, linewidth=1 - shape.filled, **style)
