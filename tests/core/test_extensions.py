"""Files of a user's own: what they register is known by its name everywhere, in worker processes too."""

from __future__ import annotations

import json
from pathlib import Path

import processes
import pytest

from torchrl_marl_offline import commands
from torchrl_marl_offline.core.extensions import import_extensions, imported_extensions
from torchrl_marl_offline.core.registering import register

FILES = sorted((Path(__file__).parents[2] / "examples" / "extend").glob("*.py"))
IMPORTS = [word for file in FILES for word in ("--import", str(file))]
STUDY = """
[study]
name = "own"
output = "study"
seeds = [0]
steps = 2
batch_size = 8
hidden = [4]

[evaluation]
every = 2
episodes = 2

[datasets.robots]
source = "log.csv"

[datasets.navigation]
source = "navigation"

[methods.quiet]
algorithm = "quiet"
decomposition = "weakest_link"

[methods.cautious]
value_learning = "cautious"
decomposition = "vdn"
svn = false
"""
RECORD = """
import sys
from torchrl_marl_offline import collect, make_env
from torchrl_marl_offline.core.extensions import import_extensions
import_extensions([sys.argv[1]])
collect(make_env("own/navigation", num_envs=2), episodes=4, seed=0).save("navigation")
"""


def test_there_is_one_short_file_for_each_kind():
    assert [file.stem for file in FILES] == ["algorithm", "environment", "mixer", "reader", "rule"]
    assert all(len(file.read_text().splitlines()) <= 40 for file in FILES)


def test_a_study_of_everything_of_ones_own(tmp_path):
    by_name = {file.stem: str(file) for file in FILES}
    assert "n_agents=2" in processes.run(by_name["reader"], cwd=tmp_path).stdout  # which writes its log.csv
    recorded = processes.run("-c", RECORD, by_name["environment"], cwd=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    (tmp_path / "study.toml").write_text(STUDY)
    result = processes.run("-m", "torchrl_marl_offline", *IMPORTS, "study", "run", "study.toml", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    runs = json.loads((tmp_path / "study" / "plan.json").read_text())["populations"]
    assert {run["settings"].get("strength") for each in runs for run in each["runs"]} == {2.0, None}
    policies = {path.parts[-4] for path in (tmp_path / "study").rglob("policy.pt")}
    assert policies == {
        "robots--quiet--00",
        "robots--cautious--00",
        "navigation--quiet--00",
        "navigation--cautious--00",
    }
    without = processes.run("-m", "torchrl_marl_offline", "study", "plan", "study.toml", cwd=tmp_path)
    assert without.returncode == 1 and "algorithm must be 'recipe', " in without.stderr


@pytest.mark.parametrize("form", [["--import", "nope.py"], ["--import=nope.py"], ["--import", "no_such_module"]])
def test_what_cannot_be_imported_is_refused_before_the_command(form, capsys):
    assert commands.main([*form, "data", "list"]) == 1
    assert capsys.readouterr().err.startswith(f"error: --import {form[-1].removeprefix('--import=')} failed: ")


def test_a_file_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "broken_extension.py").write_text("raise RuntimeError('ouch')")
    before = imported_extensions()
    with pytest.raises(ValueError, match=r"^--import .*broken_extension.py failed: RuntimeError: ouch\.$"):
        import_extensions([str(tmp_path / "broken_extension.py")])
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ValueError, match="there is a module 'json' already"):
        import_extensions([str(tmp_path / "json.py")])
    assert imported_extensions() == before


def test_import_without_a_name_is_no_command(capsys):
    assert commands.main(["--import"]) == 2
    assert "--import" in capsys.readouterr().err


def test_a_name_belongs_to_one_class():
    names: dict[str, type] = {}
    register(int, "one", names)
    register(int, "one", names)
    with pytest.raises(ValueError, match="'one' is the name of int already; give str another"):
        register(str, "one", names)
    with pytest.raises(ValueError, match="The name of str must be an identifier, got 'a b'"):
        register(str, "a b", names)
