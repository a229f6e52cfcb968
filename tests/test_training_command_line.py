"""Settings: presets, config.json, resuming, and what contradicts it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from torchrl_marl_offline.training import (
    SettingsError,
    expand_settings,
    parse_settings,
    plain_errors,
    write_config,
)


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


def test_a_grid_over_a_setting_that_has_no_value_by_default():
    @dataclass(frozen=True)
    class Open:
        seed: int = 0
        temperature: float | None = None
        batch_size: int = 8

    members = expand_settings(
        Open(), seeds=1, grid=["temperature=1,3", "batch_size=4,8"], may_differ=["temperature", "batch_size"]
    )
    assert list(members) == [f"temperature={t}-batch_size={b}-seed=0" for t in (1, 3) for b in (4, 8)]
    last = members["temperature=3-batch_size=8-seed=0"]
    assert last == Open(0, 3.0, 8) and isinstance(last.temperature, float) and isinstance(last.batch_size, int)
    with pytest.raises(SettingsError, match="wants numbers between its commas"):
        expand_settings(Open(), seeds=1, grid=["temperature=a"], may_differ=["temperature"])
