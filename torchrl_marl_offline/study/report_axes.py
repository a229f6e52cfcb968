"""Section of a report of a factorial study: which choice explains the scores, and which value is best how often."""

from __future__ import annotations

from torchrl_marl_offline.core.document import Block, Heading, Table, Text
from torchrl_marl_offline.evaluation.pictures import METRIC_LABELS
from torchrl_marl_offline.study.axes import best_counts, factorial, variance_shares
from torchrl_marl_offline.study.report_content import Report, executed
from torchrl_marl_offline.study.scores import COMPARABLE


def axes_section(report: Report) -> list[Block]:
    """Return tables of the design of every evaluator and metric that means the same on all datasets it has."""
    blocks: list[Block] = []
    for evaluator in report.evaluators:
        for metric in dict.fromkeys(report.metrics.values()):
            datasets = {name for name, own in report.metrics.items() if own == metric}
            if metric not in COMPARABLE and len(datasets) > 1:
                continue
            scores = [s for s in report.scores if s.evaluator == evaluator and s.run.dataset in datasets]
            found = factorial(scores)
            if found is None:
                continue
            title = f"Which choice matters, {METRIC_LABELS.get(metric, metric)}, {executed(evaluator)}"
            rows = [
                [s.source, f"{s.interval.mean:.3f} [{s.interval.low:.3f}, {s.interval.high:.3f}]"]
                for s in variance_shares(found)
            ]
            design = " × ".join(f"{len(values)} {name}" for name, values in found.axes.items())
            text = (
                f"{design} × {found.scores.shape[-1]} seeds. Shares of the scores' variance, with 95 % intervals of "
                "resampled seeds; noise adds to every share where seeds are few."
            )
            for name, axis in found.along.items():
                text += f" {name} has one value beside each of {axis}, and its share is in that one's."
            counts = [
                [r.axis, str(r.value), f"{r.mean:.4g}", f"{r.best} of {r.of}", f"{r.first_two} of {r.of}"]
                for r in best_counts(found)
            ]
            blocks += [Heading(title), Text(text)]
            blocks.append(
                Table(["source", "share of the variance"], rows)
                if rows
                else Text("All scores are alike, so that there is no variance to explain.")
            )
            blocks += [Table(["setting", "value", "mean", "best", "best or second"], counts)]
            blocks.append(Text("Best among the values of a setting, in how many configurations of all others."))
    return blocks
