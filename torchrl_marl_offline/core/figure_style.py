"""The look of every figure, in one place: colours, markers, dashes, sizes; and how a figure is made and written.

Methods are told apart without colour, too: each has a marker and a dash pattern of its own. Matplotlib is imported when
a figure is made, and draws to a file without a display.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.paths import user_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FigureFormat = Literal["png", "pdf", "svg"]
"""What a figure may be written as."""

FORMATS: tuple[FigureFormat, ...] = get_args(FigureFormat)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, told apart with any common colour blindness; their yellow is too light for a line."""

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SHADE = "Blues"
"""Colour map of tables of values: its lightness alone says what is more."""

GREY, LIGHT_GREY = "#555555", "#E4E4E4"

_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.titlesize": 12,
    "figure.dpi": 130,
    "savefig.dpi": "figure",
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT_GREY,
    "grid.linewidth": 0.8,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # fonts that journals accept, in which a reader can search
    "svg.hashsalt": "torchrl_marl_offline",  # equal figures are equal files
}
_METADATA = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
_MOST_MARKERS = 8


@contextmanager
def figure_style(changes: dict[str, Any] | None = None) -> Iterator[None]:
    """Draw in the one style within the block, or within the function that this decorates.

    Args:
        changes: matplotlib's settings that a figure has otherwise.
    """
    import matplotlib

    cycle = {"axes.prop_cycle": matplotlib.cycler(color=COLOURS)}
    with matplotlib.rc_context(_STYLE | cycle | (changes or {})):
        yield


def look(index: int) -> dict[str, Any]:
    """Return colour, dashes and marker of the method at ``index``; 56 methods have looks that differ.

    Example:
        >>> look(1)
        {'color': '#D55E00', 'ls': '--', 'marker': 's'}
    """
    dash = DASHES[(index // len(COLOURS) + index) % len(DASHES)]
    return {"color": COLOURS[index % len(COLOURS)], "ls": dash, "marker": MARKERS[index % len(MARKERS)]}


def draw_curve(
    axis: Axes,
    positions: Sequence[float],
    values: Sequence[float],
    *,
    index: int,
    label: str,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    variant: int | None = None,
) -> None:
    """Draw a curve in the look of the method at ``index``; one point alone is a marker, its band a line.

    Args:
        axis: where it is drawn.
        positions: along the horizontal axis, e.g. updates.
        values: one at each position.
        index: of the method.
        label: in the legend.
        band: the lower and the upper end of an interval, one each at each position.
        variant: of several curves of one method, which: they share its colour and marker and differ in dashes; all but
            the first have hollow markers.
    """
    style, every = look(index), max(1, len(positions) // _MOST_MARKERS)
    if variant is not None:
        style |= {"ls": DASHES[variant % len(DASHES)]} | ({"mfc": "white"} if variant else {})
    axis.plot(positions, values, **style, markevery=(index % every, every), label=label)
    if band is not None and len(positions) == 1:
        axis.vlines(positions, *band, color=style["color"], lw=1.2)
    elif band is not None:
        axis.fill_between(positions, *band, color=style["color"], alpha=0.15, linewidth=0)


def make_figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure of ``size`` inches, made without a display or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure


def new_figure(panels: int, size: tuple[float, float] | None = None) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of ``panels`` axes side by side, three to a row; each is to be drawn in."""
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure = make_figure(size or (4.4 * columns, 3.4 * lines))
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[panels:]:
        axis.remove()
    return figure, axes[:panels]


def axis_label(text: str) -> str:
    """Break a label that is longer than an axis before its unit."""
    return text.replace(" (", "\n(") if len(text) > 30 else text


def broken_name(name: str, width: int = 26) -> str:
    """Break a long name into lines, so that what is drawn keeps room."""
    return "\n".join(textwrap.wrap(name, width)[:4]) or name


def legend_beside(figure: Figure, axis: Axes) -> None:
    """Put the legend of an axis at the right of the figure, where it hides nothing."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        labels = [broken_name(label) for label in labels]
        figure.legend(handles, labels, loc="outside right upper", handlelength=3.2)


def save_figure(figure: Figure, path: str | Path, formats: Sequence[FigureFormat] = ()) -> Path:
    """Write a figure, each file in one step; equal figures are equal files.

    Args:
        figure: what is written.
        path: of the PNG, PDF or SVG.
        formats: further formats, written beside it under the same name.

    Returns:
        ``path``.
    """
    path = user_path(path)
    with figure_style():
        for file in dict.fromkeys([path, *(path.with_suffix(f".{kind}") for kind in formats)]):
            with replacing_file(file) as temporary:
                figure.savefig(temporary, facecolor="white", metadata=_METADATA.get(file.suffix))
    return path
