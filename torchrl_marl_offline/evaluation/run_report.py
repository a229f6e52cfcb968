"""What a run has shown, as a table: data and methods side by side, with their intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.core.figure_style import FigureFormat
from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.evaluation.in_environments import Evaluation
from torchrl_marl_offline.evaluation.pictures import METRIC_LABELS, plot_methods, title_of
from torchrl_marl_offline.evaluation.statistics import Interval, mean_confidence_interval
from torchrl_marl_offline.training.run.metrics import DIAGNOSES

if TYPE_CHECKING:
    from torchrl_marl_offline.data import OfflineDataset
    from torchrl_marl_offline.evaluation.held_out import HeldOutEvaluation

DIAGNOSIS = (
    "What held-out episodes say is a diagnosis, not a score: cloning agrees most with the data by construction. What a "
    "policy earns needs a simulator."
)
WIDTH = 80
"""The most characters in a line of a table."""

_LEAST_FIRST = 12  # characters of a table's first column
NOTHING_ILLEGAL = "No action mask: there is nothing illegal to propose."


def format_table(rows: Sequence[Sequence[Any]], *, header: Sequence[str], width: int | None = None) -> str:
    """Return columns of equal width, the first aligned to the left, numbers with four digits.

    Args:
        rows: of words, numbers and ``None``, which is an empty cell.
        header: above the columns.
        width: the most characters of a line: where a table is wider, its header is broken into lines, and after that
            the first column.

    Example:
        >>> print(format_table([["data", 275.06], ["cloning", None]], header=["", "return"]))
                 return
        data      275.1
        cloning
    """
    body = [[_cell(value) for value in row] for row in rows]
    columns = list(zip(*[header, *body], strict=True))
    widths = [max(map(len, column)) for column in columns]
    if width is not None and _total(widths) > width:
        narrowest = [max([0, *(len(word) for word in head.split()), *map(len, rest)]) for head, *rest in columns]
        widths = [narrow if i else wide for i, (narrow, wide) in enumerate(zip(narrowest, widths))]
        widths[0] = max(_LEAST_FIRST, min(widths[0], width - _total(widths) + widths[0]))
    lines = []
    for row in [header, *body]:
        parts = [_broken(cell, room, " " if i == 0 else "") for i, (cell, room) in enumerate(zip(row, widths))]
        for level in range(max(map(len, parts))):
            texts = [part[level] if level < len(part) else "" for part in parts]
            lines.append("  ".join(t.rjust(w) if i else t.ljust(w) for i, (t, w) in enumerate(zip(texts, widths))))
    return "\n".join(line.rstrip() for line in lines)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _broken(cell: str, room: int, indent: str) -> list[str]:
    """Return a cell in lines; those of a name are indented, so that it is not taken for two."""
    return [cell] if len(cell) <= room else textwrap.wrap(cell, room, subsequent_indent=indent)


def _filled(text: str) -> str:
    """Return paragraphs in lines of a terminal; lines that are short enough stay."""
    lines = text.splitlines()
    return "\n".join(line if len(line) <= WIDTH else textwrap.fill(line, WIDTH) for line in lines)


def write_report(
    folder: Path,
    *,
    finals: Mapping[str, Evaluation | HeldOutEvaluation],
    curves: Mapping[str, Mapping[str, float]],
    data: OfflineDataset,
    figures: Sequence[FigureFormat] = (),
) -> str:
    """Say what methods came to: a table, ``folder/summary.json`` and, where there are returns, ``methods.png``.

    Args:
        folder: of the run.
        finals: ``"method, way"`` -> the evaluation after training, on episodes of its own.
        curves: ``"method, way"`` -> what :func:`summarize_evaluations` says of the evaluations during training. Each
            method's better way is the one with the better average of the last of them, and gets a star.
        data: what the methods were trained on.
        figures: formats of ``methods`` beside PNG.

    Returns:
        The table with a note under it, in lines of at most 80 characters where names allow it.
    """
    summary = {
        name: {"final": result.summary(), "during training": _unselected(curves.get(name), result)}
        for name, result in finals.items()
    }
    returns = {name: result.returns for name, result in finals.items() if isinstance(result, Evaluation)}
    recorded = mean_confidence_interval(data.episode_returns())
    summary["data"] = {"return": recorded.mean, "return_low": recorded.low, "return_high": recorded.high}
    write_json_atomic(folder / "summary.json", summary)
    if not returns:
        return _held_out_table(finals)
    better = best_ways(curves)
    label = f"data ({data.n_episodes} episodes)"
    intervals = {label: recorded} | {name: mean_confidence_interval(values) for name, values in returns.items()}
    starred = {_starred(name, better): interval for name, interval in intervals.items()}
    plot_methods(starred, folder / "methods.png", title=title_of(data), formats=figures)
    rows = []
    for name, interval in intervals.items():
        readings = [curves.get(name, {}).get(reading) for reading in ("last", "best", "average_of_last")]
        rows.append([_starred(name, better), interval.mean, f"[{interval.low:.4g}, {interval.high:.4g}]", *readings])
    averaged = sorted({int(curve["averaged"]) for curve in curves.values()})
    words = " to ".join(map(str, dict.fromkeys((averaged[0], averaged[-1]))))
    header = ["return of an episode", "mean", "95 % interval", "last", "best", f"average of last {words}"]
    episodes = len(next(iter(returns.values())))
    note = (
        f"Means over {episodes} episodes after training; the intervals are across these episodes of one run, not "
        "across seeds.\nLast, best and average of last: evaluations during training. "
        "* the better way by the last column."
    )
    return f"{format_table(rows, header=header, width=WIDTH)}\n{_filled(note)}"


def write_population_report(
    folder: Path,
    *,
    finals: Mapping[str, Mapping[str, Evaluation | HeldOutEvaluation]],
    metric: str,
    data: OfflineDataset,
    frozen: Mapping[str, int],
    figures: Sequence[FigureFormat] = (),
) -> str:
    """Say what populations came to: a table, ``folder/summary.json`` and ``methods.png``.

    Args:
        folder: of the runs.
        finals: ``"method, way"`` -> member -> its evaluation after training. Members whose names differ in the seed
            alone are one row.
        metric: the number of an evaluation's ``summary()`` to show.
        data: what the methods were trained on.
        frozen: the members that did not stay finite, and since when; they are left out.
        figures: formats of ``methods`` beside PNG.

    Returns:
        The table with a note under it. Intervals are across seeds, where there are two or more.
    """
    groups: dict[str, list[float]] = {}
    for name, members in finals.items():
        method, _, way = name.rpartition(", ")
        for member, result in members.items():
            if f"{method}/{member}" not in frozen:
                label = " ".join(part for part in (method, member.rpartition("seed=")[0].strip("-")) if part)
                groups.setdefault(f"{label}, {way}", []).append(result.summary()[metric])
    intervals = {
        label: mean_confidence_interval(values) if len(values) > 1 else Interval(values[0], values[0], values[0])
        for label, values in groups.items()
    }
    if metric == "return":
        intervals = {f"data ({data.n_episodes} episodes)": mean_confidence_interval(data.episode_returns())} | intervals
    is_diagnosis = metric in DIAGNOSES
    if not is_diagnosis:  # bars would rank
        label = METRIC_LABELS.get(metric, metric)
        plot_methods(intervals, folder / "methods.png", label=label, title=title_of(data), formats=figures)
    rows = [
        [label, len(groups.get(label, [])) or None, i.mean, f"[{i.low:.4g}, {i.high:.4g}]"]
        for label, i in intervals.items()
    ]
    summary = {name: {member: r.summary() for member, r in members.items()} for name, members in finals.items()}
    write_json_atomic(folder / "summary.json", {"finals": summary, "frozen": frozen})
    note = "Means over seeds after training; the intervals are 95 % Student t intervals across seeds."
    note += f"\n{DIAGNOSIS}" if is_diagnosis else ""
    left_out = "".join(f"\nLeft out, not finite since step {at}: {name}" for name, at in frozen.items())
    header = [METRIC_LABELS.get(metric, metric), "seeds", "mean", "95 % interval"]
    return f"{format_table(rows, header=header, width=WIDTH)}\n{_filled(note)}{left_out}"


def best_ways(curves: Mapping[str, Mapping[str, float]]) -> set[str]:
    """Return, of the names ``"method, way"`` of each method, the one with the best average of last evaluations."""
    methods = dict.fromkeys(name.rpartition(", ")[0] for name in curves)
    return {
        max(
            (name for name in curves if name.startswith(f"{method}, ")),
            key=lambda name: curves[name]["average_of_last"],
        )
        for method in methods
    }


def _held_out_table(finals: Mapping[str, HeldOutEvaluation]) -> str:
    summaries = {name: result.summary() for name, result in finals.items()}
    columns = list(dict.fromkeys(column for summary in summaries.values() for column in summary))
    table = format_table(
        [[c, *(s.get(c) for s in summaries.values())] for c in columns], header=["", *summaries], width=WIDTH
    )
    checked = sum(result.checked_actions for result in finals.values())
    legal = f"Illegal proposals among {checked} checked, by mode and sampled: 0." if checked else NOTHING_ILLEGAL
    return f"{table}\n{_filled(legal)}\n{_filled(DIAGNOSIS)}"


def _unselected(curve: Mapping[str, float] | None, result: Evaluation | HeldOutEvaluation) -> Mapping | None:
    """Leave out the best of a diagnosis: it would be an evaluation chosen by likeness to the data."""
    if curve is None or isinstance(result, Evaluation):
        return curve
    return {name: curve[name] for name in ("last", "last_step")}


def _starred(name: str, better: set[str]) -> str:
    return f"{name} *" if name in better else name


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
