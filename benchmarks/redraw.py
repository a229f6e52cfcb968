"""Draw the pictures of ``results/`` from the tables that stand there, in the one style of all figures.

    python benchmarks/redraw.py

They show what the tables hold: means after training with their 95 % intervals. Curves over the updates are drawn by the
scripts that train, into their output. The value tables of the two-step game are drawn by ``two_step.py`` alone, the
curves of stability by ``instability.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arguments import ScriptError, as_folder, run_script, script_parser
from grid_navigation import LEVELS

from torchrl_marl_offline.core.figure_style import (
    COLOURS,
    GREY,
    MARKERS,
    axis_label,
    draw_curve,
    figure_style,
    legend_beside,
    make_figure,
    new_figure,
    save_figure,
)
from torchrl_marl_offline.evaluation import Interval

HERE = Path(__file__).parent
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
CELL = re.compile(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\](?: \(({NUMBER})\))?")
RETURN, SCORE = "mean return of an episode", "normalized score (0 random, 100 expert)"
WAYS = {"mode": "deterministic policy", "sampled": "stochastic policy"}


@dataclass
class Panel:
    """What one panel shows.

    Attributes:
        title: above it.
        label: of its axis, with the unit.
        series: name -> row -> mean and interval.
        levels: name -> a value that is drawn as a line.
        log: whether the axis is logarithmic.
    """

    title: str
    label: str
    series: Mapping[str, Mapping[str, Interval]]
    levels: Mapping[str, float] | None = None
    log: bool = False


def results_text() -> str:
    """Return all pages of results, one after another."""
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted((HERE / "results").glob("*.md")))


def table_under(text: str, heading: str, column: str) -> list[dict[str, str]]:
    """Return the rows of the first table below a heading that has a column, by the names of its columns.

    Raises:
        ScriptError: there is none.
    """
    section = re.split(r"\n##? ", text.partition(f"# {heading}\n")[2], maxsplit=1)[0]
    for block in re.findall(r"(?:^\|.*\|\n)+", section, flags=re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        if column in lines[0]:
            return [dict(zip(lines[0], line)) for line in lines[2:]]
    raise ScriptError(f"results/*.md have no table with a column {column!r} below {heading!r}; restore it.")


def interval(cell: str) -> Interval:
    """Return what a cell holds: ``"444 [436, 452]"``."""
    return Interval(*map(float, _parts(cell)[:3]))


def published(cell: str) -> Interval | None:
    """Return the number in brackets behind an interval."""
    found = _parts(cell)[3]
    return None if found is None else Interval(*[float(found)] * 3)


def _parts(cell: str) -> Sequence[str | None]:
    found = CELL.search(cell.replace("*", ""))
    if found is None:
        raise ScriptError(f"A cell of results/*.md holds {cell!r} where a mean and its interval should be; restore it.")
    return found.groups()


def column(rows: Sequence[Mapping[str, str]], name: str, of: str) -> dict[str, Interval]:
    """Return the intervals of a column by the words of another."""
    return {row[of]: interval(row[name]) for row in rows}


@figure_style({"axes.grid.axis": "x"})
def draw(panels: Sequence[Panel], path: Path, title: str) -> Path:
    """Draw panels side by side, a marker with its interval for each row and series."""
    names = list(dict.fromkeys(name for panel in panels for series in panel.series.values() for name in series))
    series = list(dict.fromkeys(name for panel in panels for name in panel.series))
    figure = make_figure((max(8.4, 3.4 * len(panels) + 2.4), 1.7 + (0.24 + 0.1 * len(series)) * len(names)))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels):
        for index, kind in enumerate(series):
            found = [(row, panel.series[kind][name]) for row, name in enumerate(names) if name in panel.series[kind]]
            places = [row + 0.24 * (index - (len(series) - 1) / 2) for row, _ in found]
            means = [value.mean for _, value in found]
            errors = [[v.mean - v.low for _, v in found], [v.high - v.mean for _, v in found]]
            look = {"color": COLOURS[index], "fmt": MARKERS[index], "label": kind, "ms": 5.5, "capsize": 3}
            axis.errorbar(means, places, xerr=errors, **look)
        for dash, (name, level) in zip(("--", ":"), (panel.levels or {}).items()):
            axis.axvline(level, color=GREY, ls=dash, lw=1.4, label=name)
        axis.set_yticks(range(len(names)), names)
        axis.set(ylim=(len(names) - 0.5, -0.5), xlabel=axis_label(panel.label), title=panel.title)
        if panel.log:
            axis.set_xscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"{title}: means over seeds, 95 % intervals", x=0.01, ha="left")
    return save_figure(figure, path)


def pictures(text: str) -> dict[str, tuple[list[Panel], str]]:
    """Return name of a picture -> its panels and its title, from the text of all pages."""
    found: dict[str, tuple[list[Panel], str]] = {}

    def ways(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, Interval]]:
        return {words: column(rows, name, "method") for name, words in WAYS.items()}

    rows = table_under(text, "The main job: `mpe/simple_spread`, data of mixed skill", "sampled")
    levels = {"data": interval(rows[0]["data"]).mean}
    found["spread"] = ([Panel("", RETURN, ways(rows), levels)], "mpe/simple_spread, mixed-skill data")
    rows = table_under(text, "Recorded data with its simulator: `cn-2-medium`", "sampled")
    panel = Panel("", "success rate (share of episodes)", ways(rows), LEVELS)
    found["grid_navigation"] = ([panel], "games/grid_navigation, cn-2-medium")
    rows = table_under(text, "Recorded qualities of `mpe/simple_spread`", "quality")
    panels = []
    for quality in dict.fromkeys(row["quality"] for row in rows):
        own = [row for row in rows if row["quality"] == quality]
        panels.append(Panel(quality, SCORE, ways(own), {"data": interval(own[0]["data"]).mean}))
    found["spread_qualities"] = (panels, "mpe/simple_spread, recorded qualities")
    return found | _choices(text) | _systems(text) | _all_systems(text) | _online(text)


def _choices(text: str) -> dict[str, Any]:
    panels = []
    for quality in ("random", "medium-replay", "expert"):
        critic = f"critic, {quality} data"
        rows = table_under(text, "Figure 7, small: `mpe/simple_spread`", critic)
        panels.append(Panel(quality, SCORE, {name: column(rows, name, critic) for name in list(rows[0])[1:]}))
    games = []
    for game in ("best left out", "foraging by roles"):
        rows = table_under(text, "Figure 7, small: two games", f"critic, {game}")
        series = {name: column(rows, name, f"critic, {game}") for name in list(rows[0])[1:]}
        games.append(Panel(game, RETURN, series))
    return {
        "choices": (panels, "Decomposition, value learning and extraction, mpe/simple_spread"),
        "choices_games": (games, "Decomposition, value learning and extraction, two games"),
    }


def _systems(text: str) -> dict[str, Any]:
    heading = "All systems on recorded `mpe/simple_spread`"
    rows = table_under(text, heading, "expert")
    qualities = list(rows[0])[1:]
    said = re.search(rf"The data's means are ({NUMBER}), ({NUMBER}), ({NUMBER}) and ({NUMBER})", text)
    means = dict(zip(qualities, map(float, said.groups())))
    found = {}
    for quality in ("medium-replay", "expert"):
        others = {row["system"]: published(row[quality]) for row in rows}
        series = {
            "measured": column(rows, quality, "system"),
            "published": {name: value for name, value in others.items() if value is not None},
        }
        panel = Panel("", SCORE, series, {"data": means[quality]})
        found[f"systems_spread_{quality}"] = ([panel], f"mpe/simple_spread, recorded {quality} data")
    return found


def _all_systems(text: str) -> dict[str, Any]:
    found = {}
    for task in ("spread", "tag", "world"):
        rows = table_under(text, f"`mpe/simple_{task}`, four qualities", task)
        data, *systems, best = rows
        panels = []
        for quality in list(rows[0])[1:]:
            own = [row for row in systems if row[quality]]
            known = {"data": data[quality], "best published": best[quality]}
            levels = {name: float(level) for name, level in known.items() if level}
            panels.append(Panel(quality, SCORE, {"measured": column(own, quality, task)}, levels))
        found[f"systems_{task}"] = (panels, f"mpe/simple_{task}, all systems")
    return found


def _online(text: str) -> dict[str, Any]:
    rows = table_under(text, "From offline to online", "last online")
    panels = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        series = {name: column(own, name, "method") for name in ("offline", "lowest online", "last online")}
        panels.append(Panel(task, RETURN, series, {"data": interval(own[0]["data"]).mean}))
    return {"offline_to_online": (panels, "Offline, then online")}


@figure_style()
def draw_curves(tables: Mapping[str, Sequence[Mapping[str, str]]], path: Path, title: str) -> Path:
    """Draw tables of scores against updates side by side, a curve for each row: means and 95 % intervals.

    Args:
        tables: title -> rows, whose first cell is the curve's name and whose other columns are numbers of updates.
        path: of the picture.
        title: of all.
    """
    figure, axes = new_figure(len(tables), size=(5.4 * len(tables), 4.2))
    for axis, (words, rows) in zip(axes, tables.items()):
        name, *steps = rows[0]
        for index, row in enumerate(rows):
            found = {int(step.replace(",", "")): interval(row[step]) for step in steps if row.get(step)}
            band = [value.low for value in found.values()], [value.high for value in found.values()]
            means = [value.mean for value in found.values()]
            draw_curve(axis, list(found), means, index=index, label=row[name], band=band)
        axis.set(title=words, xlabel="updates", ylabel=axis_label(SCORE))
    legend_beside(figure, axes[-1])
    figure.suptitle(f"{title}: means over seeds, 95 % intervals", x=0.01, ha="left")
    return save_figure(figure, path)


def curves(text: str) -> dict[str, tuple[dict[str, list[dict[str, str]]], str]]:
    """Return name of a picture -> its tables of scores against updates and its title, from the text of all pages."""
    of_length = {name: table_under(text, "Score against length", name) for name in ("spread-random", "spread-expert")}
    return {"length_spread": (of_length, "mpe/simple_spread, score against length")}


def main() -> None:
    """Draw all of them."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=as_folder, default=HERE / "results")
    args = parser.parse_args()
    for name, (panels, title) in pictures(results_text()).items():
        print(draw(panels, args.output / f"{name}.png", title))
    for name, (tables, title) in curves(results_text()).items():
        print(draw_curves(tables, args.output / f"{name}.png", title))


if __name__ == "__main__":
    run_script(main)
