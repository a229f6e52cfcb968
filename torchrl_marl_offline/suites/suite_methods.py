"""The systems that a suite is run with: one small setting for all, and what is each one's own."""

from __future__ import annotations

from typing import Any

SHARED: dict[str, Any] = {
    "hidden": [64, 64],
    "batch_size": 128,
    "lr": 2e-3,
    "tau": 0.02,
    "gamma": 0.99,
    "normalize_inputs": "off",
}
"""Settings of all runs; a system that lacks one does without."""

_BRAC = {"value_learning": "td", "extraction": "brac", "alpha": 0.1, "svn": False}

METHODS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "recipe-independent": {"decomposition": "independent"},
    "brac-mixer": {"decomposition": "mixer"} | _BRAC,
    "brac-vdn": {"decomposition": "vdn"} | _BRAC,
    "brac-independent": {"decomposition": "independent"} | _BRAC,
    "cloning": {"algorithm": "cloning"},
    "cql": {"algorithm": "cql"},
    "omar": {"algorithm": "omar"},
    "icq": {"algorithm": "icq"},
    "omac": {"algorithm": "omac"},
    "omiga": {"algorithm": "omiga"},
    "bcq": {"algorithm": "bcq", "behaviour_hidden": [64, 64]},
}
"""Systems by name, which act by discrete and by continuous actions; ``recipe`` is the algorithm where none is named."""
