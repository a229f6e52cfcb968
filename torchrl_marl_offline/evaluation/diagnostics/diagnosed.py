"""What was found of a run, as the page and the text show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchrl_marl_offline.evaluation.diagnostics.measuring import Material
from torchrl_marl_offline.evaluation.diagnostics.verdicts import Verdict


@dataclass(frozen=True)
class Diagnosed:
    """What was found of a run, or of a loss.

    Attributes:
        name: by which it is shown.
        verdict: sane, suspicious or diverged, with reasons.
        numbers: by the names of :data:`NUMBERS`, which says what each means; those that exist.
        by_agent: ``"credit"``, the share of each agent, and ``"advantage_correlation"``, a row for each agent.
        curves: the rows of ``train.csv``.
        missing: what could not be looked at, and why.
        rows: of the data that were looked at.
        step: of the checkpoint; ``None`` for a loss in memory and for curves alone.
        material: what the figures of actions and values are drawn of; ``None`` for curves alone.
    """

    name: str
    verdict: Verdict
    numbers: Mapping[str, float]
    by_agent: Mapping[str, list] = field(default_factory=dict)
    curves: Sequence[Mapping[str, Any]] = ()
    missing: Sequence[str] = ()
    rows: int = 0
    step: int | None = None
    material: Material | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; numbers that are not finite are ``None``."""
        return {
            "name": self.name,
            "verdict": self.verdict.word,
            "reasons": [reason.text for reason in self.verdict.reasons],
            "step": self.step,
            "rows": self.rows,
            "numbers": {name: _finite(value) for name, value in self.numbers.items()},
            "by_agent": {name: _finite(value) for name, value in self.by_agent.items()},
            "missing": list(self.missing),
        }


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value if math.isfinite(value) else None
