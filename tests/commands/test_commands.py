"""The commands under one name, and their earlier names."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import processes
import pytest
import torch
from selection import some_of

import torchrl_marl_offline as marl
from torchrl_marl_offline import commands
from torchrl_marl_offline.commands import COMMANDS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments, capsys):
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)
    assert max(map(len, said.splitlines())) <= 80


def test_the_arguments_are_those_of_the_process_by_default(monkeypatch, capsys):
    for words, said in ((["marl-offline"], "usage: marl-offline"), (["marl-offline", "--version"], "marl-offline 0")):
        monkeypatch.setattr("sys.argv", words)
        assert main() == 0
        assert capsys.readouterr().out.startswith(said)


def test_the_version_and_a_command_that_is_not_there(capsys):
    assert main(["--version"]) == 0
    first, python, system, *packages = capsys.readouterr().out.splitlines()
    assert first == f"marl-offline {marl.__version__}" and python.endswith(sys.version.partition(" ")[0])
    assert platform.machine() in system
    assert [line.split()[0] for line in packages] == list(commands.REPORTED)
    assert packages[:2] == [f"torch {torch.__version__}", f"torchrl {version('torchrl')}"]
    assert main(["recrod"]) == 2
    assert capsys.readouterr().err.startswith("error: There is no command 'recrod'; known are data, ")


ALONE = """
import sys, time
began = time.perf_counter()
from torchrl_marl_offline import commands
try:
    commands.main(sys.argv[1:])
except SystemExit as leaving:
    assert not leaving.code
assert "torch" not in sys.modules
"""


def alone(*arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_version_do_without_torch(arguments):
    said = alone(*arguments)
    assert said and all(len(line) <= 80 for line in said.splitlines())


def test_a_shell_can_complete_every_command_and_option():
    script = alone("completion", "bash")
    for name in COMMANDS:
        assert re.search(rf"'{name}'|_{name}_", script), name
        for action in import_module(f"torchrl_marl_offline.commands.{name}").make_parser()._actions:
            assert all(option in script for option in action.option_strings)
    assert "--video" in script and "--repair" in script
    assert "#compdef marl-offline" in alone("completion", "zsh")


@pytest.mark.thorough
@pytest.mark.parametrize("name", some_of(["data", "evaluate", "export", "study"], every=4))
def test_the_earlier_names_still_work_with_a_hint(name, tmp_path):
    arguments = (
        ["list", "og_marl", "nope"] if name == "data" else [*(["plan"] if name == "study" else []), str(tmp_path)]
    )
    now = processes.run("-m", "torchrl_marl_offline", name, *arguments)
    before = processes.run("-W", "ignore", "-m", f"torchrl_marl_offline.{name}", *arguments)
    assert now.returncode == before.returncode == 1 and now.stderr.startswith("error: ")
    assert before.stderr == f"hint: this command is now called marl-offline {name}\n{now.stderr}"


def test_names_that_have_moved_are_found_where_they_were():
    for package, names in (("data", ["make_simulator", "record_mixed_skill"]), ("training", ["record", "make_matd3"])):
        place = import_module(f"torchrl_marl_offline.{package}")
        for name in names:
            with pytest.warns(DeprecationWarning, match=rf"{package}\.{name} is now torchrl_marl_offline\.\w+\.{name}"):
                assert getattr(place, name).__name__ == name
        with pytest.raises(AttributeError, match="has no attribute 'nope'"):
            _ = place.nope
