"""What a run has shown, as a table: data and methods side by side, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.evaluation.in_environments import Evaluation
from torchrl_marl_offline.evaluation.pictures import plot_methods
from torchrl_marl_offline.evaluation.statistics import Interval, mean_confidence_interval
from torchrl_marl_offline.training.run.metrics import DIAGNOSES

if TYPE_CHECKING:
    from torchrl_marl_offline.data import OfflineDataset
    from torchrl_marl_offline.evaluation.held_out import HeldOutEvaluation

DIAGNOSIS = (
    "What held-out episodes say is a diagnosis, not a score: cloning agrees most with the data by construction. What a "
    "policy earns needs a simulator."
)
NOTHING_ILLEGAL = "No action mask: there is nothing illegal to propose."


def format_table(rows: Sequence[Sequence[Any]], *, header: Sequence[str]) -> str:
    """Return columns of equal width, the first aligned to the left, numbers with four digits.

    Example:
        >>> print(format_table([["data", 275.06], ["cloning", None]], header=["", "return"]))
                 return
        data      275.1
        cloning
    """
    cells = [[_cell(value) for value in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def write_report(
    folder: Path,
    *,
    finals: Mapping[str, Evaluation | HeldOutEvaluation],
    curves: Mapping[str, Mapping[str, float]],
    data: OfflineDataset,
) -> str:
    """Say what methods came to: a table, ``folder/summary.json`` and, where there are returns, ``methods.png``.

    Args:
        folder: of the run.
        finals: ``"method, way"`` -> the evaluation after training, on episodes of its own.
        curves: ``"method, way"`` -> what :func:`summarize_evaluations` says of the evaluations during training. Each
            method's better way is the one with the better average of the last of them, and gets a star.
        data: what the methods were trained on.

    Returns:
        The table with a note under it.
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
    plot_methods({_starred(name, better): interval for name, interval in intervals.items()}, folder / "methods.png")
    rows = []
    for name, interval in intervals.items():
        readings = [curves.get(name, {}).get(reading) for reading in ("last", "best", "average_of_last")]
        rows.append([_starred(name, better), interval.mean, f"[{interval.low:.4g}, {interval.high:.4g}]", *readings])
    averaged = sorted({int(curve["averaged"]) for curve in curves.values()})
    words = " to ".join(map(str, dict.fromkeys((averaged[0], averaged[-1]))))
    header = ["return per episode", "mean", "95 % interval", "last", "best", f"average of last {words}"]
    episodes = len(next(iter(returns.values())))
    note = (
        f"Means over {episodes} episodes after training; the intervals are across these episodes of one run, not "
        "across seeds.\nLast, best and average of last: evaluations during training. "
        "* the better way by the last column."
    )
    return f"{format_table(rows, header=header)}\n{note}"


def write_population_report(
    folder: Path,
    *,
    finals: Mapping[str, Mapping[str, Evaluation | HeldOutEvaluation]],
    metric: str,
    data: OfflineDataset,
    frozen: Mapping[str, int],
) -> str:
    """Say what populations came to: a table, ``folder/summary.json`` and ``methods.png``.

    Args:
        folder: of the runs.
        finals: ``"method, way"`` -> member -> its evaluation after training. Members whose names differ in the seed
            alone are one row.
        metric: the number of an evaluation's ``summary()`` to show.
        data: what the methods were trained on.
        frozen: the members that did not stay finite, and since when; they are left out.

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
        plot_methods(intervals, folder / "methods.png")
    rows = [
        [label, len(groups.get(label, [])) or None, i.mean, f"[{i.low:.4g}, {i.high:.4g}]"]
        for label, i in intervals.items()
    ]
    summary = {name: {member: r.summary() for member, r in members.items()} for name, members in finals.items()}
    write_json_atomic(folder / "summary.json", {"finals": summary, "frozen": frozen})
    note = "Means over seeds after training; the intervals are 95 % Student t intervals across seeds."
    note += f"\n{DIAGNOSIS}" if is_diagnosis else ""
    left_out = "".join(f"\nLeft out, not finite since step {at}: {name}" for name, at in frozen.items())
    return f"{format_table(rows, header=[metric, 'seeds', 'mean', '95 % interval'])}\n{note}{left_out}"


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
    table = format_table([[c, *(s.get(c) for s in summaries.values())] for c in columns], header=["", *summaries])
    checked = sum(result.checked_actions for result in finals.values())
    legal = f"Illegal proposals among {checked} checked, by mode and sampled: 0." if checked else NOTHING_ILLEGAL
    return f"{table}\n{legal}\n{DIAGNOSIS}"


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
