"""The report of a suite's runs: what needs coordination, what nothing solves, and who gets what of mixed motives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.document import Block, Heading, Picture, Table, Text, to_html, to_markdown
from torchrl_marl_offline.core.figure_style import SHADE, FigureFormat, figure_style, make_figure, save_figure
from torchrl_marl_offline.core.files import write_text_atomic
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.envs.factory import make_env
from torchrl_marl_offline.envs.mixed_motives import RepeatedGame
from torchrl_marl_offline.evaluation.policy_strategies import policy_regret
from torchrl_marl_offline.study.report_tables import cell_of
from torchrl_marl_offline.study.table import RESULTS, read_results
from torchrl_marl_offline.suites.entries import Suite, SuiteError
from torchrl_marl_offline.suites.running import RUNS, datasets_of
from torchrl_marl_offline.suites.suite_methods import METHODS
from torchrl_marl_offline.suites.suite_page import SCALE
from torchrl_marl_offline.suites.suite_scores import (
    SOLVED,
    Cell,
    DatasetOutcome,
    cells_of,
    interval_of,
    mean_over,
    policy_of,
    verdict_of,
)
from torchrl_marl_offline.training.run.saved_policies import load_policy

CAPTION = "Mean score over seeds; 0: a random team, 1: the optimum; first column: the best that was recorded"


class SuiteReport(NamedTuple):
    """The files of a report: ``FOLDER/RUNS/SUITE.md``, ``.html`` and ``.png``."""

    markdown: Path
    html: Path
    picture: Path


@checked
def write_suite_report(
    suite: Suite, folder: str | Path, *, runs: str = RUNS, figures: Sequence[FigureFormat] = ()
) -> SuiteReport:
    """Write the report of a suite's runs, of those that are finished.

    Args:
        suite: the table.
        folder: where it was made and run.
        runs: name of the folder of the results within ``folder``.
        figures: formats of the picture beside PNG.

    Raises:
        SuiteError: nothing has been run there.
    """
    folder = user_path(folder)
    output = folder / runs
    if not (output / RESULTS).exists():
        raise SuiteError(
            f"There are no runs in {output}; run them first: marl-offline benchmark run {suite.name} --output {folder}."
        )
    cards = datasets_of(suite, folder)
    cells = cells_of(read_results(output), cards)
    if not cells:
        raise SuiteError(f"No run in {output} is finished; go on with marl-offline benchmark run {suite.name}.")
    picture = _draw(cells, cards, output / f"{suite.name}.png", figures)
    blocks = [
        *_opening(suite, cells),
        *_groups(cells, cards),
        *_verdicts(cells, cards),
        Picture(picture, CAPTION),
        *_motives(cells, cards, output),
        *_all_scores(cells, cards),
    ]
    files = SuiteReport(output / f"{suite.name}.md", output / f"{suite.name}.html", picture)
    write_text_atomic(files.markdown, to_markdown(blocks, output))
    write_text_atomic(files.html, to_html(blocks, suite.name))
    return files


Cells = Mapping[tuple[str, str], Cell]
Cards = Mapping[str, Mapping[str, Any]]


def _datasets(cells: Cells, cards: Cards) -> list[str]:
    return [name for name in cards if any(name == dataset for dataset, _ in cells)]


def _methods(cells: Cells) -> list[str]:
    there = {method for _, method in cells}
    return [name for name in METHODS if name in there]


def _opening(suite: Suite, cells: Cells) -> list[Block]:
    runs = sum(len(cell.rows) for cell in cells.values())
    rows = [row for cell in cells.values() for row in cell.rows]
    seeds = len({row["seed"] for row in rows})
    updates = sorted({int(row["steps"]) for row in rows})
    diverged = sorted({row["run"] for row in rows if row.get("diverged")})
    text = f"{runs} finished runs of {seeds} seeds, {', '.join(f'{count:,}' for count in updates)} updates each, "
    text += f"evaluated after the last of them. {SCALE} Intervals are 95 % Student t intervals over seeds."
    blocks: list[Block] = [Heading(f"{suite.name}, version {suite.version}", 1), Text(text)]
    if diverged:
        told = f"{len(diverged)} runs stopped being finite: {', '.join(diverged[:8])}"
        blocks.append(Text(told + (" and more." if len(diverged) > 8 else "."), warning=True))
    return blocks


def _groups(cells: Cells, cards: Cards) -> list[Block]:
    """Return each system's mean over the datasets of a group, and how many datasets it solves."""
    groups: dict[str, list[str]] = {}
    for dataset in _datasets(cells, cards):
        groups.setdefault(cards[dataset]["group"], []).append(dataset)
    rows = []
    for method in _methods(cells):
        row = [method]
        for names in groups.values():
            own = [cells[name, method] for name in names if (name, method) in cells]
            row.append(cell_of(mean_over(own)) if len(own) == len(names) else "-")
        finished = [cell for (_, name), cell in cells.items() if name == method]
        rows.append([*row, f"{sum(cell.is_solved for cell in finished)} of {len(finished)}"])
    text = "Mean scores over the datasets of a group, with the interval over seeds; - where some are not finished. "
    text += f"Solved are datasets on which the mean score is {SOLVED:g} or more."
    return [Heading("Systems"), Text(text), Table(["system", *groups, "solved"], rows)]


def _verdicts(cells: Cells, cards: Cards) -> list[Block]:
    found = {
        dataset: verdict_of([cell for (name, _), cell in cells.items() if name == dataset], cards[dataset])
        for dataset in _datasets(cells, cards)
    }
    rows = [_verdict_line(name, verdict, cards[name]) for name, verdict in found.items()]
    header = ["dataset", "stitchable", "best recorded", "best system", "score", "best independent", "score", "says"]

    def names(which: str, holds: Sequence[str]) -> Text:
        return Text(f"{which} ({len(holds)} of {len(found)}): {', '.join(holds) or 'none'}.")

    needing = [name for name, verdict in found.items() if verdict.needs_coordination]
    unsolved = [name for name, verdict in found.items() if not verdict.solved]
    beyond = [name for name, verdict in found.items() if verdict.beats_data]
    return [
        Heading("Datasets"),
        names("Need coordination: a critic of the team is above all independent ones, the intervals apart", needing),
        names(f"Nothing solves: no system's mean is {SOLVED:g} or more", unsolved),
        names("Beyond the data: the best system's interval lies above the best that was recorded", beyond),
        Text("The best of several systems is chosen by the very runs that are shown, so that its score is optimistic."),
        Table(header, rows),
    ]


def _verdict_line(name: str, verdict: DatasetOutcome, card: Mapping[str, Any]) -> list[str]:
    words = {
        "needs coordination": verdict.needs_coordination,
        "beyond the data": verdict.beats_data,
        "unsolved": not verdict.solved,
    }
    alone, share = verdict.independent, card["stitchable"]["share"]
    return [
        name,
        "all recorded" if share is None else f"{share:.2f}",
        f"{card['normalized']['best_recorded']:.3g}",
        verdict.best.method,
        cell_of(verdict.best.interval),
        "-" if alone is None else alone.method,
        "-" if alone is None else cell_of(alone.interval),
        ", ".join(word for word, holds in words.items() if holds),
    ]


def _motives(cells: Cells, cards: Cards, output: Path) -> list[Block]:
    """Return who gets what, where agents have rewards of their own, and each agent's regret where that is known."""
    rows = []
    for (dataset, method), cell in cells.items():
        if not any("return_sum" in row for row in cell.rows):
            continue
        shares = [_over_seeds(cell, name) for name in ("return_sum", "return_least", "gini")]
        rows.append([dataset, method, *shares, ", ".join(_regrets(cell, cards[dataset], output)) or "-"])
    if not rows:
        return []
    text = (
        "Sum and smallest of the agents' mean returns, their Gini coefficient (0: all alike), and each agent's exact "
    )
    text += (
        "regret: what it could gain at most by another policy of its own against the others' deterministic ones, by "
    )
    text += "dynamic programming over the steps of an episode. All are means over seeds."
    header = ["dataset", "system", "sum", "least", "Gini", "regret of each agent"]
    return [Heading("Mixed motives"), Text(text), Table(header, rows)]


def _over_seeds(cell: Cell, name: str) -> str:
    values = [float(row[name]) for row in cell.rows if name in row]
    return cell_of(interval_of(values)) if values else "-"


def _regrets(cell: Cell, card: Mapping[str, Any], output: Path) -> list[str]:
    """Return each agent's mean regret over the runs whose policies are there; nothing where it is not known."""
    env = make_env(card["task"], **card["task_options"])
    files = [file for row in cell.rows if (file := policy_of(output, row)) is not None]
    if not isinstance(env, RepeatedGame) or not files:
        return []
    found = [policy_regret(load_policy(file), env).regret.tolist() for file in files]
    return [f"{sum(each) / len(each):.4g}" for each in zip(*found)]


def _all_scores(cells: Cells, cards: Cards) -> list[Block]:
    methods = _methods(cells)
    rows = []
    for dataset in _datasets(cells, cards):
        own = [cells.get((dataset, method)) for method in methods]
        rows.append([dataset, *("-" if cell is None else cell_of(cell.interval) for cell in own)])
    return [Table(["dataset", *methods], rows, summary="Every system on every dataset")]


@figure_style({"axes.grid": False})
def _draw(cells: Cells, cards: Cards, path: Path, formats: Sequence[FigureFormat]) -> Path:
    """Draw the mean scores as a table of shades: a line for each dataset, a column for each system."""
    datasets, methods = _datasets(cells, cards), _methods(cells)
    columns = ["best recorded", *methods]
    lines = []
    for dataset in datasets:
        own = [cells.get((dataset, method)) for method in methods]
        best = cards[dataset]["normalized"]["best_recorded"]
        lines.append([best, *(float("nan") if cell is None else cell.interval.mean for cell in own)])
    figure = make_figure((3.2 + 0.62 * len(columns), 1.9 + 0.26 * len(datasets)))
    axis = figure.subplots()
    image = axis.imshow(lines, cmap=SHADE, vmin=0, vmax=1, aspect="auto")
    for i, line in enumerate(lines):
        for j, value in enumerate(line):
            if value == value:
                colour = "white" if value > 0.6 else "black"
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axis.set_yticks(range(len(datasets)), datasets, fontsize=8)
    for spine in axis.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, ax=axis, pad=0.01, label="score (0: random team, 1: optimum)")
    return save_figure(figure, path, formats)
