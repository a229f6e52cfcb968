"""Findings: what inspection says about a dataset, as objects, text and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torchrl_marl_offline.core.checked import checked

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that inspection found.

    Args:
        code: its name, as in the table of :mod:`torchrl_marl_offline.data.quality.inspection`.
        severity: how bad it is.
        rows: how many transitions it concerns; 0 where that is not known by row (``unreadable``, ``reader``).
        first_row: the first of them, or ``None`` where it concerns the whole dataset.
        what: what was found.
        remedy: what loading or the user can do about it.
    """

    code: str
    severity: Severity
    rows: int
    first_row: int | None
    what: str
    remedy: str

    def __str__(self) -> str:
        where = "" if self.first_row is None else f", first at row {self.first_row}"
        rows = f" ({self.rows} rows{where})" if self.rows else ""
        return f"{self.severity:8} {self.code}: {self.what}{rows}; {self.remedy}."


@dataclass(frozen=True)
class Inspection:
    """All findings on one dataset, errors first, and its facts: sizes and coverage."""

    source: str
    facts: dict[str, Any]
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        counts = {severity: len(self.of_severity(severity)) for severity in SEVERITIES}
        counted = ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for severity, n in counts.items() if n)
        return "\n".join([self.source, *([facts] if facts else []), counted or "no findings", *map(str, self.findings)])

    def __contains__(self, code: str) -> bool:
        return any(finding.code == code for finding in self.findings)

    def __getitem__(self, code: str) -> Finding:
        for finding in self.findings:
            if finding.code == code:
                return finding
        found = ", ".join(finding.code for finding in self.findings) or "nothing"
        raise KeyError(f"No finding {code!r} on {self.source}; found: {found}.")

    @checked
    def of_severity(self, *severities: Severity) -> tuple[Finding, ...]:
        """Return the findings of the given severities."""
        return tuple(finding for finding in self.findings if finding.severity in severities)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Errors and warnings."""
        return self.of_severity("error", "warning")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"source": self.source, "facts": self.facts, "findings": [asdict(finding) for finding in self.findings]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Inspection:
        """Restore what :meth:`to_dict` returned.

        Raises:
            TypeError: these are others.
        """
        kinds = {"code": str, "rows": int, "first_row": int | None, "what": str, "remedy": str}
        fits = isinstance(values.get("source"), str) and isinstance(values.get("facts"), dict)
        if not fits or not isinstance(values.get("findings"), list):
            raise TypeError("the stored inspection lacks its source, facts or findings")
        for finding in values["findings"]:
            if finding.get("severity") not in SEVERITIES or any(
                not isinstance(finding.get(name), kind) for name, kind in kinds.items()
            ):
                raise TypeError("a finding of the stored inspection has parts of other types")
        return cls(values["source"], values["facts"], tuple(Finding(**finding) for finding in values["findings"]))

    def to_json(self) -> str:
        """Return JSON text; equal datasets give equal text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
