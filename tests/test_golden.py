"""What every algorithm computes is what it was when ``tests/files/golden.json`` was written."""

from __future__ import annotations

import json

import pytest
from golden import FILE, UPDATES, cases, differences, figures
from selection import thorough

from torchrl_marl_offline.algorithms import settings_of

EXPECTED = json.loads(FILE.read_text())["cases"]
CASES = {str(case): case for case in cases()}
TRAINED = [
    name
    for name, case in CASES.items()
    if case.decomposition in (None, settings_of(case.algorithm).get("decomposition"))
    and "refused" not in EXPECTED[name]
]
"""Those that are trained here: each algorithm's own decomposition. The program of that file trains all of them."""


def test_every_combination_is_written_down():
    assert list(EXPECTED) == list(CASES)
    assert sum("refused" in numbers for numbers in EXPECTED.values()) < 40


OFTEN = [name for index, name in enumerate(CASES) if name in TRAINED or index % 4 == 0]


@pytest.mark.parametrize("name", [name if name in OFTEN else thorough(name) for name in CASES])
def test_the_numbers_are_what_they_were(name):
    """To rounding: processors differ in the last bits, and twenty updates carry that on."""
    updates = UPDATES if name in TRAINED else 0
    found = figures(CASES[name], updates=updates)
    expected = {step: numbers for step, numbers in EXPECTED[name].items() if not step.isdigit() or int(step) <= updates}
    assert differences(found, expected, relative=1e-6 if updates else 1e-9) == []


def test_a_difference_is_seen():
    numbers = {"0": {"loss": 1.0, "parameters": 2.0}}
    assert differences(numbers, {"0": {"loss": 1.0 + 1e-15, "parameters": 2.0}}) != []
    assert differences(numbers, {"0": {"loss": 1.0 + 1e-15, "parameters": 2.0}}, relative=1e-12) == []
    assert differences(numbers, {"0": {"loss": 1.1}}, relative=1e-12) != []
    assert differences(numbers, {"refused": "ValueError"}) != []
