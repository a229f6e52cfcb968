"""``marl-offline diagnose`` as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from diagnosis_toys import data_for, train_run

from torchrl_marl_offline.commands import main
from torchrl_marl_offline.commands.diagnose import NOT_SANE
from torchrl_marl_offline.commands.diagnose_work import names_of
from torchrl_marl_offline.training import RunLogger


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("diagnosed")
    train_run(place / "run", place / "recorded", steps=6)
    return place


@pytest.fixture
def pages(monkeypatch) -> list[tuple[list[str], Path]]:
    """The runs and the folder of every page that would be drawn, which takes seconds."""
    found: list[tuple[list[str], Path]] = []

    def save(diagnoses, folder, *, formats):
        found.append(([each.name for each in diagnoses], folder))
        return folder / "diagnosis.html"

    monkeypatch.setattr("torchrl_marl_offline.commands.diagnose_work.save_diagnoses", save)
    return found


def test_a_run_has_its_page_in_its_folder(trained, capsys):
    assert main(["diagnose", str(trained / "run"), "--rows", "20", "--figures", "pdf", "--strict"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("run: sane\n") and "qvalue_bound" in said
    assert said.endswith(f"page: {trained / 'run' / 'diagnosis.html'}\n")
    assert {each.suffix for each in (trained / "run").glob("diagnosis.*")} == {".html", ".png", ".json", ".pdf"}


def test_several_runs_and_a_population(trained, tmp_path, capsys, pages):
    for name in ("td", "many/members/seed=0", "many/members/seed=1"):
        shutil.copytree(trained / "run", tmp_path / name)
    assert main(["diagnose", str(tmp_path / "td"), str(tmp_path / "many"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["runs"]] == ["td", "seed=0", "seed=1"]
    assert [each["step"] for each in found["runs"]] == [6, 6, 6]
    assert pages == [(["td", "seed=0", "seed=1"], tmp_path)]
    assert main(["diagnose", str(tmp_path / "many"), "--output", str(tmp_path / "page")]) == 0
    assert pages[1] == (["seed=0", "seed=1"], tmp_path / "page")
    assert "seed=0: sane\nseed=1: sane\n" in capsys.readouterr().out


def test_the_status_tells_a_run_that_is_not_sane_where_it_is_asked(trained, tmp_path, capsys, pages):
    folder = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    RunLogger(folder).log_train(1000, {"qvalue_abs": 1e9})
    assert main(["diagnose", str(folder)]) == 0
    assert main(["diagnose", str(folder), "--strict"]) == NOT_SANE == 3
    assert capsys.readouterr().out.count("run: diverged") == 2


def test_other_data_is_used_where_it_is_given(trained, tmp_path, capsys, pages):
    folder = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dataset": str(tmp_path / "nowhere")}))
    assert main(["diagnose", str(folder)]) == 0
    assert "left out: all but the curves" in capsys.readouterr().out
    assert main(["diagnose", str(folder), "--dataset", str(trained / "recorded")]) == 0
    assert "left out" not in capsys.readouterr().out


def test_what_cannot_be_done_is_one_sentence_before_any_work(trained, tmp_path, capsys, pages):
    run = str(trained / "run")
    (tmp_path / "file").write_text("")
    data_for(discrete=False).save(tmp_path / "other")
    for arguments, status, words in (
        ([str(tmp_path / "nowhere")], 1, "There is no folder"),
        ([str(tmp_path / "file")], 1, "is a file"),
        ([str(tmp_path)], 1, "holds no train.csv"),
        ([run, run], 1, "is named twice"),
        ([run, "--output", str(tmp_path / "file")], 1, "is a file"),
        ([run, "--output", str(tmp_path / "other")], 1, "holds a dataset"),
        ([run, "--dataset", str(tmp_path / "other")], 1, "name the data that it was trained on"),
        ([run, "--dataset", str(tmp_path / "gone")], 1, "does not exist"),
        ([run, "--rows", "0"], 2, "--rows must be at least 1"),
        ([run, "--device", "tpu"], 1, "--device must be cpu or cuda"),
        ([], 2, "RUN"),
    ):
        try:
            found = main(["diagnose", *arguments])
        except SystemExit as leaving:
            found = leaving.code
        said = capsys.readouterr()
        assert (found, said.out) == (status, "") and words in said.err, (arguments, said.err)
        assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert pages == []


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert names_of(folders) == ["a/run", "b/run"] and names_of(folders[:1]) == ["run"]
