"""A study's scores as files for other programs: CSV, and LaTeX with the package booktabs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchrl_marl_offline.evaluation.statistics import Interval
from torchrl_marl_offline.study.scores import READINGS, Choice, averaged_in_words

Choices = Mapping[tuple[str, str, str], Choice]

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {char: f"\\{char}" for char in "&%$#_{}"}


def score_rows(
    choices: Choices, metrics: Mapping[str, str], intervals: Callable[[Sequence[Choice]], Sequence[Interval]]
) -> list[dict[str, Any]]:
    """Return one row for each dataset, evaluator and method.

    Args:
        choices: (dataset, evaluator, method) -> the setting that is shown.
        metrics: dataset -> what its scores are.
        intervals: gives mean and IQM of each reading of a choice.

    Returns:
        Rows with ``dataset``, ``evaluator``, ``method``, ``setting``, ``metric``, ``seeds``, ``diverged`` and
        ``averaged`` (over how many evaluations the average goes), and for each reading of a curve
        (``average_of_last``, ``last``, ``best``) mean and IQM over seeds with the ends of their intervals.
    """
    rows = []
    for (dataset, evaluator, method), choice in choices.items():
        row = {"dataset": dataset, "evaluator": evaluator, "method": method, "setting": choice.setting}
        row |= {"metric": metrics[dataset], "seeds": len(choice.scores)}
        row |= {"diverged": sum(score.diverged for score in choice.scores)}
        row |= {"averaged": averaged_in_words(choice.scores).removeprefix("average of last ")}
        names = [f"{reading}_{what}" for reading in READINGS for what in ("mean", "iqm")]
        for name, interval in zip(names, intervals([choice])):
            row |= {f"{name}{end}": value for end, value in zip(("", "_low", "_high"), interval)}
        rows.append(row)
    return rows


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV under a header; numbers have all of their digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["dataset"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: a name comes from a study's file."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value


def to_latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a ``tabular`` with the rules of booktabs: a block for each dataset and evaluator, a row for each method.

    The best mean of a block is bold.
    """
    tables: dict[str, list[list[str]]] = {}
    blocks: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        blocks.setdefault((row["dataset"], row["metric"], row["evaluator"]), []).append(row)
    for names, block in blocks.items():
        averaged = dict.fromkeys(row["averaged"] for row in block)
        title = f"{', '.join(names)} (average of last {', '.join(averaged)})"
        rows_of = tables.setdefault(title, [])
        best = max(row["average_of_last_mean"] for row in block)
        for row in block:
            mean, iqm = (latex_interval(row, f"average_of_last_{name}") for name in ("mean", "iqm"))
            mean = f"\\textbf{{{mean}}}" if row["average_of_last_mean"] == best else mean
            rows_of.append([latex_text(row["method"]), latex_text(row["setting"]), str(row["seeds"]), mean, iqm])
    told = "mean and interquartile mean (IQM) over seeds, 95 % bootstrap intervals"
    return tabular(told, "llrrr", ["method", "setting", "seeds", "mean", "IQM"], tables)


def tabular(text: str, columns: str, header: Sequence[str], blocks: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Return a ``tabular`` with the rules of booktabs.

    Args:
        text: what the numbers are, for a comment.
        columns: their alignment, such as ``"llr"``.
        header: in LaTeX.
        blocks: title -> rows of cells in LaTeX.
    """
    lines = [f"% \\usepackage{{booktabs}}; {text}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines.append(f"{' & '.join(header)} \\\\")
    for title, rows in blocks.items():
        above = f"\\multicolumn{{{len(columns)}}}{{l}}{{{latex_text(title)}}} \\\\"
        lines += ["\\midrule", above, "\\midrule", *(f"{' & '.join(row)} \\\\" for row in rows)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def latex_text(text: str) -> str:
    r"""Return LaTeX that shows a text as it is.

    Example:
        >>> print(latex_text("td3_bc & 95 %"))
        td3\_bc \& 95 \%
    """
    return re.sub(r"[\\~^&%$#_{}]", lambda match: _LATEX[match[0]], " ".join(text.split()))


def cell_of(interval: Interval) -> str:
    """Return a number with its interval, where that has a width."""
    if interval.low == interval.high:
        return f"{interval.mean:.4g}"
    return f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def latex_interval(row: Mapping[str, Any], name: str) -> str:
    """Return the number of a row's column with its interval, in LaTeX."""
    return cell_of(Interval(*(row[f"{name}{end}"] for end in ("", "_low", "_high")))).replace("-", "$-$")
