"""What all sections of a study's report need."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torchrl_marl_offline.core.figure_style import FigureFormat
from torchrl_marl_offline.evaluation.pictures import METRIC_LABELS
from torchrl_marl_offline.evaluation.statistics import Interval
from torchrl_marl_offline.study.plan import Plan
from torchrl_marl_offline.study.report_estimates import StudyEstimates
from torchrl_marl_offline.study.scores import (
    READINGS,
    Choice,
    RunScore,
    averaged_in_words,
    mean_and_iqm,
    score_matrix,
)
from torchrl_marl_offline.training.run.metrics import OF_RECORDED_ACTIONS

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Report:
    """A study as its report shows it.

    Attributes:
        plan: of the study.
        output: its folder.
        frame: its table.
        metrics: dataset -> the column that is shown.
        scores: of all finished runs.
        choices: (dataset, evaluator, method) -> the setting that is shown.
        figures: formats of the pictures beside PNG.
        whole: the plan with the trials of its searches, which ``plan`` lacks.
        estimates: what held-out episodes say of the runs.
    """

    plan: Plan
    output: Path
    frame: pandas.DataFrame
    metrics: Mapping[str, str]
    scores: Sequence[RunScore]
    choices: Mapping[tuple[str, str, str], Choice]
    figures: Sequence[FigureFormat] = ()
    whole: Plan | None = None
    estimates: StudyEstimates = field(default_factory=StudyEstimates)
    _intervals: dict[tuple[int, ...], list[Interval]] = field(default_factory=dict)

    @property
    def evaluators(self) -> list[str]:
        """Those whose scores are compared."""
        return list(dict.fromkeys(evaluator for _, evaluator, _ in self.choices))

    def is_diagnosed(self, dataset: str) -> bool:
        """Whether a dataset has no simulator, so that nothing of it is compared."""
        return self.metrics.get(dataset) in OF_RECORDED_ACTIONS

    @property
    def methods(self) -> list[str]:
        """In the plan's order."""
        return list(dict.fromkeys(population.method for population in self.plan.populations))

    def label(self, dataset: str) -> str:
        """Return what is measured on a dataset, with its unit."""
        return METRIC_LABELS.get(self.metrics[dataset], self.metrics[dataset])

    def picture(self, name: str) -> Path:
        """Return where a picture goes; names of methods and datasets may hold what a file's name must not."""
        plain = re.sub(r"[ /]", "-", name)
        if len(plain) > 150 or re.search(r"[^A-Za-z0-9._=+()-]", plain):
            mark = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
            plain = f"{re.sub(r'[^A-Za-z0-9._=+-]+', '-', plain)[:150]}-{mark}"
        return self.output / "report" / f"{plain}.png"

    def of(self, evaluator: str, datasets: Sequence[str]) -> dict[str, list[Choice]]:
        """Return method -> its choices on the datasets, of the methods that have one on each."""
        found = {m: [self.choices.get((name, evaluator, m)) for name in datasets] for m in self.methods}
        return {m: choices for m, choices in found.items() if choices and None not in choices}

    def intervals(self, choices: Sequence[Choice]) -> list[Interval]:
        """Return mean and IQM of each reading; they are resampled once for all that shows them."""
        key = tuple(map(id, choices))
        if key not in self._intervals:
            readings = (mean_and_iqm(score_matrix(choices, reading)) for reading in READINGS)
            self._intervals[key] = [interval for pair in readings for interval in pair]
        return self._intervals[key]


def executed(evaluator: str) -> str:
    """Say how the policies played, in words."""
    words = {"mode": "by the deterministic policy", "sample": "by the stochastic policy"}
    return words.get(evaluator, evaluator)


def averaged(found: Mapping[str, Sequence[Choice]]) -> str:
    """Say over how many evaluations the averages of the last go."""
    return averaged_in_words(score for choices in found.values() for choice in choices for score in choice.scores)


def score_header(found: Mapping[str, Sequence[Choice]], first: Sequence[str]) -> list[str]:
    """Return the header of a table of mean and IQM of each reading."""
    names = {"average_of_last": averaged(found), "last": "last", "best": "best"}
    return [*first, *(f"{names[reading]}: {what}" for reading in READINGS for what in ("mean", "IQM"))]
