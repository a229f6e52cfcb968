"""Grids: every combination of the values of some settings, with several seeds each."""

from __future__ import annotations

import re
from typing import Annotated

import pytest

from torchrl_marl_offline.commands.grid import expand_grid
from torchrl_marl_offline.commands.script_settings import SettingsError
from torchrl_marl_offline.core.ranges import COUNT, LEARNING_RATE, NON_NEGATIVE, RUN_SEED

HINTS = {
    "seed": Annotated[int, RUN_SEED],
    "lr": Annotated[float, LEARNING_RATE],
    "steps": Annotated[int, COUNT],
    "temperature": Annotated[float | None, NON_NEGATIVE],
}
VALUES = {"seed": 0, "lr": 0.1, "steps": 10, "temperature": None}


@pytest.mark.fault("3.6")
@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (["lr=-1"], "--grid lr must be above 0, got -1.0."),
        (["lr=0.1,nan"], "--grid lr must be above 0, got nan."),
        (["lr=0.1,inf"], "--grid lr must be finite, got inf."),
        (["steps=1,0"], "--grid steps must be at least 1, got 0."),
        (["lr=0.1,0.1"], "names a value twice"),
        (["lr=0.1", "lr=0.2"], "--grid gives lr twice"),
        (["temperature=1"], "with a name out of lr, steps"),
        (["nowhere=1"], "with a name out of lr, steps"),
        (["lr"], "--grid takes NAME=VALUE,VALUE"),
        (["lr=0.1,0.1000"], "names a value twice"),
    ],
)
def test_the_values_of_a_grid_have_the_ranges_of_their_settings(grid, sentence):
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        expand_grid(VALUES, HINTS, seeds=1, grid=grid, may_differ=["lr", "steps", "nowhere", "seed"])


def test_a_name_may_be_typed_as_its_option_is_and_close_values_are_told_apart():
    hints = HINTS | {"min_q_weight": Annotated[float, NON_NEGATIVE]}
    options = {"seeds": 1, "may_differ": ["min_q_weight"]}
    members = expand_grid(VALUES | {"min_q_weight": 1.0}, hints, grid=["min-q-weight=1.00000001,2"], **options)
    assert list(members) == ["min_q_weight=1.00000001-seed=0", "min_q_weight=2-seed=0"]


def test_there_are_as_many_seeds_as_a_machine_could_train():
    for seeds in (0, -1, 10**9):
        with pytest.raises(ValueError, match="seeds must be"):
            expand_grid(VALUES, HINTS, seeds=seeds, may_differ=[])


def test_a_grid_over_a_setting_that_has_no_value_by_default():
    options = {"seeds": 1, "may_differ": ["temperature", "steps"]}
    members = expand_grid(VALUES, HINTS, grid=["temperature=1,3", "steps=4,8"], **options)
    assert list(members) == [f"temperature={t}-steps={b}-seed=0" for t in (1, 3) for b in (4, 8)]
    last = members["temperature=3-steps=8-seed=0"]
    assert last == {"temperature": 3.0, "steps": 8, "seed": 0}
    assert isinstance(last["temperature"], float) and isinstance(last["steps"], int)
    with pytest.raises(SettingsError, match="wants numbers between its commas"):
        expand_grid(VALUES, HINTS, grid=["temperature=a"], **options)
