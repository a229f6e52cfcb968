"""The JSON schema of a study file says what reading one checks."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import processes
import pytest

from torchrl_marl_offline.algorithms import ALGORITHMS, Recipe, setting
from torchrl_marl_offline.commands.study import main
from torchrl_marl_offline.core.ranges import SHARE, Range
from torchrl_marl_offline.study import EvaluationSettings, StudyError, read_study, study_schema
from torchrl_marl_offline.study.settings import run_hints

SHIPPED = sorted((Path(__file__).parents[2] / "examples/studies").glob("*.toml"))
LEAST = {"methods": {"mix": {}}, "datasets": {"spread": {"task": "mpe/simple_spread"}}}


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def with_line(table: str, line: str) -> str:
    """Return a study file with one more line in a table."""
    dataset = (
        ""
        if line.partition(" ")[0] in ("task", "source") and table == "datasets.spread"
        else 'task = "mpe/simple_spread"\n'
    )
    parts = {"study": "", "evaluation": "", "methods.mix": "", "datasets.spread": dataset, "grid": ""}
    parts[table] = parts.get(table, "") + f"{line}\n"
    return "".join(f"[{name}]\n{lines}" for name, lines in parts.items())


def read(folder: Path, text: str) -> Any:
    (folder / "study.toml").write_text(text)
    return read_study(folder / "study.toml")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_study_fits_it(file, validator):
    validator.validate(tomllib.loads(file.read_text()))


REFUSED = {
    "study": (
        "step = 3",
        "steps = 3.5",
        "steps = true",
        'steps = "3"',
        "lr = -1",
        "lr = inf",
        "lr = 1e18",
        "steps = 0",
        "seeds = 0",
        "seeds = [-1]",
        "seeds = []",
        "seeds = [1, 1]",
        'seeds = "a"',
        "seeds = 1025",
        "name = 3",
        "output = [1]",
        'metric = "speed"',
        'metric = "agreement"',
        "compile = true",
        "hidden = 64",
        "hidden = [0]",
        "hidden = []",
        "gamma = 5",
    ),
    "evaluation": ("evry = 3", "held_out = 1.0", 'modes = ["best"]', 'modes = ["mode", "mode"]', 'modes = "mode"'),
    "methods.mix": (
        'decomposition = "mixre"',
        'scale = "large"',
        "scale = -1",
        "grid = 3",
        "grid.lr = 1",
        "grid.lr = []",
        "on = 3",
        "grid.lr = [1, 1.0]",
        "grid.lr = [-1]",
        "grid.lrr = [1]",
        "on.spread = 3",
        "on.spread.lr = -1",
        "variants.lr = []",
        "svn = 1",
        'svn = "yes"',
        'algorithm = "mine"',
    ),
    "datasets.spread": (
        'sorce = "x"',
        "fraction = 0",
        "episodes = 1.5",
        "seed = -1",
        "settings.stepps = 1",
        "settings = [1]",
        "options = 1",
        "task = 5",
    ),
    "grid": ("lr = 3", "xyzzy = [1]", "hidden = [[64], [64]]"),
}


@pytest.mark.parametrize(("table", "line"), [(table, line) for table, lines in REFUSED.items() for line in lines])
def test_what_is_refused_by_kind_range_or_key_does_not_fit(tmp_path, validator, table, line):
    text = with_line(table, line)
    with pytest.raises(StudyError):
        read(tmp_path, text)
    assert not validator.is_valid(tomllib.loads(text))


TAKEN = {
    "study": ("seeds = 3", "seeds = [3, 1]", "lr = 1", 'output = "out"'),
    "methods.mix": (
        "scale = 1",
        'scale = "learned"',
        "batch_norm = true",
        "grid.hidden = [[64], [64, 64]]",
        "on.spread.lr = 1",
        'datasets = ["spread"]',
    ),
    "datasets.spread": ('quality = "medium"\noptions.levels = { medium = 1.0 }', "fraction = 1", 'name = "a"'),
    "grid": ("lr = [1, 2]", "svn = [true, false]"),
}


@pytest.mark.parametrize(("table", "line"), [(table, line) for table, lines in TAKEN.items() for line in lines])
def test_what_is_read_fits(tmp_path, validator, table, line):
    text = with_line(table, line)
    assert read(tmp_path, text).methods and validator.is_valid(tomllib.loads(text))


@pytest.mark.parametrize("table", ["study", "evaluation", "methods.mix", "datasets.spread"])
def test_a_key_of_any_type_is_refused_by_both_or_by_none(tmp_path, validator, table):
    """Where the schema takes more, it is by what a schema cannot say."""
    name = {"study": "StudyTable", "evaluation": "EvaluationTable", "methods.mix": "Method"}.get(table, "Dataset")
    for key in study_schema()["$defs"][name]["properties"]:
        for value in ('"a"', "3", "-1", "0.5", "true", "[1]", '["a"]', "[]", "{a = 1}", "-inf"):
            text = with_line(table, f"{key} = {value}")
            try:
                read(tmp_path, text)
                refusal = None
            except StudyError as error:
                refusal = str(error)
            fits = validator.is_valid(tomllib.loads(text))
            by_more = (
                "belongs to",
                "needs either",
                "quality must be one",
                "becomes the name",
                "options: ",
                "unknown dataset",
            )
            assert fits == (refusal is None or any(word in refusal for word in by_more)), (text, refusal)


HUGE = f"0x{'f' * 5000}"


@pytest.mark.parametrize(
    ("table", "line", "sentence"),
    [
        ("study", f"name = {HUGE}", r"\[study\] name must be a string, got a number of 20000 bits\."),
        ("datasets.spread", f"name = {HUGE}", "name must be a string, got a number of 20000 bits"),
        ("grid", f"lr = [[{HUGE}]]", r"\[grid\] lr must be a number, got a list that is too long to show\."),
        ("study", f"lr{'.a' * 5000} = 1", r"\[study\] lr must be a number, got a dict that is too long to show\."),
        ("grid", 'algorithm = [0, "b"]', r"\[grid\] algorithm must be a string, got 0\."),
        ('methods."a\\nb"', "lr = -1", r'\[methods\."a\\nb"\] lr must be above 0, got -1\.0\.'),
        ("methods.mix", "variants = 3", r"methods.mix.variants must be a table, \[methods.mix.variants\], got 3\."),
    ],
)
def test_what_cannot_be_shown_ends_in_a_sentence(tmp_path, table, line, sentence):
    with pytest.raises(StudyError, match=sentence) as raised:
        read(tmp_path, with_line(table, line))
    assert "\n" not in str(raised.value)


def test_the_least_and_other_forms_of_datasets(validator):
    assert validator.is_valid(LEAST)
    for datasets in (["a", {"source": "b", "name": "c"}], {"a": {"source": "b"}}):
        assert validator.is_valid(LEAST | {"datasets": datasets})
    both = {"source": "b", "task": "c"}
    for datasets in ([], {}, [3], 3, {"a": {}}, {"a": both}, ["a", {"source": "b", "zz": 1}]):
        assert not validator.is_valid(LEAST | {"datasets": datasets})
    assert not validator.is_valid({"methods": {"mix": {}}}) and not validator.is_valid({**LEAST, "grids": {}})


def test_ranges_defaults_and_texts_are_those_of_the_dataclasses():
    tables = study_schema()["$defs"]
    every = tables["EvaluationTable"]["properties"]["every"]
    assert every["default"] == EvaluationSettings().every and every["minimum"] == 1
    assert every["description"] == "updates between evaluations; there is one after the last, too."
    assert tables["Method"]["properties"]["algorithm"]["enum"] == list(ALGORITHMS)
    assert tables["RunSettings"]["properties"].keys() == run_hints().keys()
    for name, table in tables.items():
        assert table["additionalProperties"] is False and table["title"] and table["description"], name
        assert all(key["description"] for key in table["properties"].values()), name


@pytest.mark.parametrize(
    ("legal", "words"),
    [
        (Range(0, 1, above=True), {"exclusiveMinimum": 0, "maximum": 1}),
        (SHARE, {"minimum": 0, "exclusiveMaximum": 1}),
        (Range(limit=8), {"minimum": -8, "maximum": 8}),
        (Range(0.5, limit=float("inf")), {"minimum": 0.5}),
    ],
)
def test_a_range_in_the_words_of_a_schema(legal, words):
    assert legal.as_schema() == words


def test_a_users_algorithm_is_in_it(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Mine(Recipe, name="of_a_test"):
        """Mine.

        Args:
            schema: how much, read by nothing else.
            items: a list.
            weigh: a function, which no file can hold.
        """

        schema: Annotated[float, SHARE] = setting(0.25, member=True)
        items: tuple[int, ...] = (1, 2)
        weigh: Any = print
        strange: complex = 1j

    try:
        method = study_schema()["$defs"]["Method"]["properties"]
        assert "of_a_test" in method["algorithm"]["enum"]
        assert method["schema"]["description"] == "of_a_test: how much, read by nothing else."
        assert method["schema"]["default"] == 0.25 and method["schema"]["exclusiveMaximum"] == 1
        assert method["items"]["default"] == [1, 2] and "default" not in method["weigh"]
        json.dumps(study_schema(), allow_nan=False)
        read(tmp_path, with_line("methods.mix", "schema = 0"))
        with pytest.raises(StudyError, match=r"\[methods.mix\] schema must be at least 0 and below 1, got 1\.0\."):
            read(tmp_path, with_line("methods.mix", "schema = 1"))
        with pytest.raises(StudyError, match=r"strange is of a kind that no file can hold, got 3\."):
            read(tmp_path, with_line("methods.mix", "strange = 3"))
    finally:
        del ALGORITHMS["of_a_test"]
    assert "schema" not in study_schema()["$defs"]["Method"]["properties"]


def test_the_command_prints_or_writes_it(tmp_path, capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(study_schema()))
    file = tmp_path / "study.schema.json"
    assert main(["schema", "--output", str(file)]) == 0
    assert json.loads(file.read_text()) == json.loads(json.dumps(study_schema()))
    assert "#:schema ./study.schema.json" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["schema", "--help"])
    assert "#:schema ./study.schema.json" in capsys.readouterr().out


def test_pydantic_is_imported_where_a_study_is_read(tmp_path):
    code = f"""
import sys
import torchrl_marl_offline.study, torchrl_marl_offline.commands.study_work
print("pydantic" in sys.modules)
from pathlib import Path
Path("study.toml").write_text({with_line("study", "seeds = 1")!r})
torchrl_marl_offline.study.read_study("study.toml")
print("pydantic" in sys.modules)
"""
    done = processes.run("-c", code, cwd=tmp_path)
    assert done.stdout.split() == ["False", "True"], done.stderr
