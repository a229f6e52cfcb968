"""The end of a run in numbers: last, best and average-of-last-k evaluation side by side, and the JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import COUNT
from torchrl_marl_offline.training.run.logging import Row


@checked
def summarize_evaluations(
    rows: Sequence[Row], metric: str = "return", *, last_k: Annotated[int, COUNT] = 5, lower_is_better: bool = False
) -> dict[str, dict[str, float]]:
    """Put the three usual readings of a learning curve side by side, for each evaluator.

    ``best`` is the optimistic one: it is chosen by the episodes that measure it.

    Args:
        rows: rows of ``eval.csv`` (``RunLogger.eval.rows`` or :func:`read_csv`); those without ``metric`` are passed
            over.
        metric: the column.
        last_k: how many evaluations at the end are averaged (all, where there are fewer).
        lower_is_better: of an error, ``best`` is the lowest.

    Returns:
        evaluator -> ``last``, ``last_step``, ``best``, ``best_step``, ``average_of_last`` and ``averaged``, the number
        of them.

    Example:
        >>> rows = [{"step": s, "evaluator": "mode", "return": r} for s, r in ((1, 2.0), (2, 6.0), (3, 4.0))]
        >>> summary = summarize_evaluations(rows, last_k=2)["mode"]
        >>> summary["last"], summary["best"], summary["average_of_last"]
        (4.0, 6.0, 5.0)
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if metric in row:
            curves.setdefault(row["evaluator"], []).append((row["step"], row[metric]))
    summary = {}
    for evaluator, curve in curves.items():
        curve.sort()
        best_step, best = (min if lower_is_better else max)(curve, key=lambda point: point[1])
        tail = [value for _, value in curve[-last_k:]]
        summary[evaluator] = {
            "last": curve[-1][1],
            "last_step": curve[-1][0],
            "best": best,
            "best_step": best_step,
            "average_of_last": sum(tail) / len(tail),
            "averaged": len(tail),
        }
    return summary
