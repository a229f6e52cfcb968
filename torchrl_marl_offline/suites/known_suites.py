"""The suites by name."""

from __future__ import annotations

from torchrl_marl_offline.suites.coordination import COORDINATION
from torchrl_marl_offline.suites.entries import Suite, SuiteError

SUITES: dict[str, Suite] = {suite.name: suite for suite in (COORDINATION,)}


def suite_of(name: str) -> Suite:
    """Return a suite by its name.

    Raises:
        SuiteError: there is none.
    """
    if name not in SUITES:
        raise SuiteError(f"There is no suite {name!r}; known are {', '.join(SUITES)}.")
    return SUITES[name]
