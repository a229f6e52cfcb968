"""The page of the study file: made of the schema that study files are checked by."""

from __future__ import annotations

import re

import make_study_reference
import pytest

from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.core.annotations import parameters_of
from torchrl_marl_offline.evaluation import FittedQSettings
from torchrl_marl_offline.study import EvaluationSettings, OfflineSettings, SearchSettings, StudySettings
from torchrl_marl_offline.study.settings import run_hints
from torchrl_marl_offline.study.sources import DatasetSource


def test_every_key_has_its_row():
    parts = re.split(r"^## `?(.*?)`?\n", make_study_reference.page(), flags=re.MULTILINE)
    found = {
        title: re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE) for title, text in zip(parts[1::2], parts[2::2])
    }
    assert found["[study]"] == list(parameters_of(StudySettings))
    assert found["[evaluation]"] == list(parameters_of(EvaluationSettings))
    assert found["[datasets.NAME]"] == list(parameters_of(DatasetSource))
    assert found["[methods.NAME]"] == ["variants", "grid", "ranges", "on", "datasets"]
    assert found["[search]"] == list(parameters_of(SearchSettings)) and found["[ranges]"] == []
    assert found["[offline]"] == list(parameters_of(OfflineSettings))
    assert found["[offline.fitting]"] == list(parameters_of(FittedQSettings))
    assert found["Ranges of values"] == ["low", "high", "log"]
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
    assert make_study_reference.kind_of(said) == kind and make_study_reference.range_in(said) == numbers
