"""``marl-offline benchmark``: what it lists, makes and refuses, and its help."""

from __future__ import annotations

import json

import pytest
from suite_toys import small_suite

from torchrl_marl_offline.commands import benchmark_work
from torchrl_marl_offline.commands.benchmark import main, make_parser
from torchrl_marl_offline.suites import SUITES


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(SUITES, "small", small_suite(broken=True))
    monkeypatch.delenv(benchmark_work.RECORDINGS, raising=False)


def test_list(small, capsys):
    assert main(["list"]) == 0
    assert "small: Small. 3 datasets, and 0 with --more." in capsys.readouterr().out
    assert main(["list", "coordination"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SUITES["coordination"].entries)
    assert any(line.startswith("hanabi-2p ") and "(--more)" in line for line in lines)
    assert main(["list", "small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[2]["task"] == "games/chicken"


def test_make_says_what_is_made_and_what_cannot_be(small, tmp_path, capsys):
    make = ["make", "small", "--output", str(tmp_path)]
    assert main([*make, "--only", "motives"]) == 0
    assert "made    motives-chicken: 5,000 transitions" in capsys.readouterr().out
    assert main(make) == 1
    said = capsys.readouterr().out
    assert "failed  broken: There are no recordings of this one; give a folder." in said
    assert "1 datasets were made, 1 were there, 1 failed" in said and str(tmp_path / "README.md") in said
    assert main([*make, "--seed", "1"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_recordings_are_those_of_the_environment_variable_where_none_are_named(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(benchmark_work.RECORDINGS, str(tmp_path / "nowhere"))
    assert main(["make", "small", "--output", str(tmp_path / "out")]) == 1
    assert "nowhere is no folder of recordings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["make", "smal", "--output", "out"], 1, "There is no suite 'smal'; known are coordination, small."),
        (["make", "small", "--output", "out", "--only", "x"], 1, "unknown dataset 'x'"),
        (["run", "small", "--output", "out", "--algorithms", "recipes"], 1, "did you mean 'recipe'?"),
        (["run", "small", "--output", "out"], 1, "make them first: marl-offline benchmark make small --output out"),
        (["report", "small", "--output", "out"], 1, "run them first: marl-offline benchmark run small --output out"),
        (["make", "small"], 2, "--output"),
        (["run", "small", "--output", "out", "--seeds", "0"], 2, "--seeds must be at least 1"),
    ],
)
def test_refusals_are_one_sentence(small, tmp_path, monkeypatch, capsys, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    if status == 2:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
    else:
        assert main(arguments) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_help_fits_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    (commands,) = [action.choices for action in make_parser()._actions if action.choices]
    assert list(commands) == ["list", "make", "run", "report"]
    for command in commands.values():
        assert max(map(len, command.format_help().splitlines())) <= 80
