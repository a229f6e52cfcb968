"""A suite of two datasets that are made in a moment, and one that cannot be."""

from __future__ import annotations

from torchrl_marl_offline.suites import Suite, SuiteEntry, SuiteError
from torchrl_marl_offline.suites.coordination import COORDINATION


def refuse(entry, making):
    raise SuiteError("There are no recordings of this one; give a folder.")


def small_suite(*, broken: bool = False, version: int = 1) -> Suite:
    """Return a suite of one game of one step and one of mixed motives, and, if asked, of one that cannot be made."""
    entries = {entry.name: entry for entry in COORDINATION.entries}
    small = [entries["stitch-additive-two_teams"], entries["motives-chicken"]]
    if broken:
        small.insert(1, SuiteEntry("broken", "more", "games/xor", record=refuse, optimum=refuse))
    return Suite("small", version, tuple(small), "Small.")
