"""The page of the study file: made of the schema that study files are checked by."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.core.annotations import parameters_of
from torchrl_marl_offline.study import EvaluationSettings, StudySettings
from torchrl_marl_offline.study.settings import run_hints
from torchrl_marl_offline.study.sources import DatasetSource

ROOT = Path(__file__).parents[1]
program = runpy.run_path(str(ROOT / "docs/make_study_reference.py"))


def test_the_page_is_not_stale(capsys):
    assert program["main"](["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_fails_the_check(tmp_path, capsys):
    page = tmp_path / "page.md"
    assert program["main"](["--check", "--page", str(page)]) == 1
    assert program["main"](["--page", str(page)]) == 0
    assert program["main"](["--check", "--page", str(page)]) == 0
    page.write_text(page.read_text().replace("whole number", "number", 1))
    assert program["main"](["--check", "--page", str(page)]) == 1
    assert f"{page} is stale; run python docs/make_study_reference.py" in capsys.readouterr().err


def test_every_key_has_its_row():
    parts = re.split(r"^## `?(.*?)`?\n", program["study_reference"](), flags=re.MULTILINE)
    found = {
        title: re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE) for title, text in zip(parts[1::2], parts[2::2])
    }
    assert found["[study]"] == list(parameters_of(StudySettings))
    assert found["[evaluation]"] == list(parameters_of(EvaluationSettings))
    assert found["[datasets.NAME]"] == list(parameters_of(DatasetSource))
    assert found["[methods.NAME]"] == ["variants", "grid", "on"]
    assert found["Settings of runs"] == list(run_hints())
    assert all(f"`{name}`" in parts[-1] for name in ALGORITHMS)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in "".join(parts).splitlines() if line[:1] == "|"} == {6}


@pytest.mark.parametrize(
    ("said", "kind", "numbers"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 10**12}, "whole number", "at least 1, at most 1e12"),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "number", "above 0, below 1"),
        ({"type": "array", "items": {"enum": ["a"], "type": "string"}}, "list, each string", "`a`"),
        ({"anyOf": [{"type": "number"}, {"type": "boolean"}]}, "number or true or false", ""),
        ({"$ref": "#/$defs/Lists"}, "table", ""),
    ],
)
def test_a_row_by_hand(said, kind, numbers):
    assert program["kind_of"](said) == kind and program["range_in"](said) == numbers
