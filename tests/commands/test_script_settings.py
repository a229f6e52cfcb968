"""Settings: presets, config.json, resuming, and what contradicts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import processes
import pytest

from torchrl_marl_offline.commands.script_settings import SettingsError, parse_settings, plain_errors, write_config
from torchrl_marl_offline.core.errors import sentence_of
from torchrl_marl_offline.core.ranges import COUNT, LEARNING_RATE, NON_NEGATIVE, SEED, THREADS_OR_AUTO, WIDTHS
from torchrl_marl_offline.core.relevance import ReadWith


@dataclass(frozen=True)
class Settings:
    """Settings of a toy."""

    steps: int = 10
    hidden: tuple[int, ...] = (64, 64)
    svn: bool = True
    dataset: str | None = None
    output: Path | None = None
    resume: Path | None = None
    preset: Literal["quick", "paper"] = "quick"


PRESETS = {"quick": {}, "paper": {"steps": 500, "hidden": (512,)}}


def parse(*arguments) -> Settings:
    return parse_settings(Settings, presets=PRESETS, arguments=[str(argument) for argument in arguments])


def test_an_argument_wins_over_the_preset_and_the_preset_over_the_default():
    assert parse() == Settings()
    assert parse("--preset", "paper") == Settings(500, (512,), preset="paper")
    assert parse("--steps", 3, "--preset=paper") == Settings(3, (512,), preset="paper")
    assert parse("--hidden", 1, 2, 3, "--no-svn").hidden == (1, 2, 3)
    with pytest.raises(SettingsError, match="--preset must be one of quick, paper, got 'slow'"):
        parse("--preset", "slow")


def test_resume_takes_everything_from_the_folder(tmp_path):
    started = Settings(7, (3,), svn=False, output=tmp_path, preset="paper")
    write_config(tmp_path, started)
    resumed = parse("--resume", tmp_path)
    assert resumed == Settings(7, (3,), svn=False, output=tmp_path, resume=tmp_path, preset="paper")
    assert parse("--resume", tmp_path, "--steps", 7, "--preset", "paper") == resumed
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert parse("--resume", moved).output == moved


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [(("--steps", 8), "--steps is 8"), (("--svn",), "--svn is True"), (("--output", "x"), "--output is x")],
)
def test_an_argument_against_the_folder_is_an_error(tmp_path, arguments, flag):
    write_config(tmp_path, Settings(7, svn=False, output=tmp_path))
    with pytest.raises(SettingsError, match=rf"{flag} on the command line, but the run in .* was started with"):
        parse("--resume", tmp_path, *arguments)


def test_folders_without_a_usable_config(tmp_path):
    with pytest.raises(SettingsError, match=r"holds no config.json; name the folder of an earlier run"):
        parse("--resume", tmp_path)
    for text in ('{"steps"', '{"no_such_field": 1}', "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(SettingsError, match="is damaged, or of another script or version"):
            parse("--resume", tmp_path)


def test_a_run_does_not_overwrite_the_settings_of_another(tmp_path):
    write_config(tmp_path, Settings(1))
    with pytest.raises(SettingsError, match="holds an earlier run; go on with --resume"):
        write_config(tmp_path, Settings(2))
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 1


def test_what_the_library_raises_ends_the_process_with_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended, plain_errors():
        parse("--resume", tmp_path)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no config.json")
    with pytest.raises(SystemExit) as ended, plain_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    with pytest.raises(ZeroDivisionError), plain_errors():
        1 / 0  # noqa: B018


@dataclass(frozen=True)
class Ranged:
    """Settings with ranges and conditions."""

    steps: Annotated[int, COUNT] = 10
    """Updates."""
    lr: Annotated[float, LEARNING_RATE] = 0.1
    hidden: Annotated[tuple[int, ...], WIDTHS] = (8,)
    extraction: Literal["awr", "brac"] = "awr"
    temperature: Annotated[float | None, NON_NEGATIVE, ReadWith("extraction", "awr")] = None
    alpha: Annotated[float, NON_NEGATIVE, ReadWith("extraction", "brac")] = 1.0
    threads: Annotated[int, THREADS_OR_AUTO] = 1
    seed: Annotated[int, SEED] = 0
    device: str = "cpu"
    output: Path | None = None
    resume: Path | None = None
    preset: Literal["quick"] = "quick"


def refused(capsys, *arguments: str) -> str:
    """Return the one line that a script with these arguments says, and that it ends with status 1 or 2."""
    with pytest.raises(SystemExit) as ended, plain_errors():
        parse_settings(Ranged, presets={"quick": {}}, arguments=[str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert ended.value.code in (1, 2) and said.startswith("error: ") and said.count("\n") == 1, said
    return said


@pytest.mark.fault("5.5")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--lr", -1), "--lr must be above 0, got -1.0."),
        (("--lr", "nan"), "--lr must be above 0, got nan."),
        (("--lr", "fast"), "--lr must be a number, got 'fast'"),
        (("--lr",), "--lr expected one argument"),
        (("--hidden", 8, 0), "--hidden must be at least 1, got 0."),
        (("--steps", 0), "--steps must be at least 1, got 0."),
        (("--steps", 10**18), "--steps must be at most 1,000,000,000,000"),
        (("--steps", "9" * 5000), "error"),
        (("--seed", -1), "--seed must be at least 0, got -1."),
        (("--threads", -1), "--threads must be at least 0, got -1."),
        (("--threads", 100000), "--threads must be at most 1,024, got 100000."),
        (("--extraction", "nope"), "--extraction must be 'awr' or 'brac', got 'nope'"),
        (("--nope", 1), "unrecognized arguments: --nope 1"),
        (("--device", "gpu"), "--device must be cpu or cuda, got 'gpu'."),
        (("--device", "cuda:x"), "--device must be cpu or cuda, got 'cuda:x'."),
        (("--output", "file"), "file is a file; name another folder."),
        (("--output", "file/run"), "file is a file; name another folder."),
        (("--output", "x" * 240), "a folder's name may have 200 bytes; shorten it."),
        (("--output", "x/" * 3000), "File name too long; name another folder."),
        (("--output", "earlier"), "earlier holds an earlier run; go on with --resume earlier"),
        (("--resume", "nowhere"), "nowhere holds no config.json"),
    ],
)
def test_everyday_mistakes_are_one_sentence_before_anything_is_written(
    capsys, tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("earlier").mkdir()
    Path("earlier/config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert sentence in refused(capsys, *arguments)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.fault("3.7")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--extraction", "brac", "--temperature", 2), "--temperature is read only with --extraction 'awr'"),
        (("--alpha", 2), "--alpha is read only with --extraction 'brac', and --extraction is 'awr' here"),
        (("--alpha=2",), "leave --alpha out"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(capsys, arguments, sentence):
    assert sentence in refused(capsys, *arguments)


def test_defaults_may_stand_where_they_change_nothing():
    parse = partial(parse_settings, Ranged, presets={"quick": {}})
    assert parse(arguments=["--extraction", "brac"]).alpha == 1.0
    assert parse(arguments=["--alpha", "1.0"]).alpha == 1.0
    assert parse(arguments=["--extraction", "brac", "--alpha", "3"]).alpha == 3.0


def test_help_shows_the_ranges(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_settings(Ranged, presets={"quick": {}}, arguments=["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Updates. [at least 1] (default: 10)" in said and "[above 0]" in said


@pytest.mark.fault("5.5")
def test_a_reader_that_closes_the_pipe_ends_a_command_quietly():
    script = "from torchrl_marl_offline.core.errors import plain_errors\nwith plain_errors():\n    print('x' * 1000000)"
    with processes.start("-c", script) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 1


@pytest.mark.fault("5.5")
def test_a_terminal_that_knows_ascii_alone_shows_what_it_can():
    script = "from torchrl_marl_offline.core.errors import plain_errors\nwith plain_errors():\n    print('1 ± 2')"
    script += "\n    raise ValueError('± too much')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, text=True)
    assert (done.returncode, done.stdout) == (1, "1 ? 2\n")
    assert done.stderr.strip().endswith("? too much")


@pytest.mark.fault("5.5")
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.h5"), "x.h5: No such file or directory."),
        (PermissionError(13, "Permission denied", "runs"), "runs: Permission denied."),
        (ModuleNotFoundError("No module named 'onnx'"), "No module named 'onnx'"),
        (MemoryError(), "There is not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "There is not enough"),
        (ValueError("two\nlines"), "two lines"),
        (KeyError("no such key"), "no such key"),
    ],
)
def test_what_the_machine_says_is_told_in_one_line(error, sentence):
    assert sentence_of(error).startswith(sentence) and "\n" not in sentence_of(error)
