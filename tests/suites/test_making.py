"""A suite is made whole or not at all, equal for equal seeds, and goes on after a kill."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from suite_toys import small_suite

from torchrl_marl_offline.data import OfflineDataset, load_dataset
from torchrl_marl_offline.suites import SUITES, Suite, SuiteError, make_suite, suite_of
from torchrl_marl_offline.suites.entries import BestReturn
from torchrl_marl_offline.suites.making import read_index

NAMES = ["stitch-additive-two_teams", "motives-chicken"]


def silently(folder, suite=None, **options):
    return make_suite(suite or small_suite(), folder, say=lambda _: None, **options)


def content(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.parent != folder]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    assert silently(folder).made == NAMES
    return folder


def test_equal_seeds_give_equal_files_and_other_seeds_others(made, tmp_path):
    silently(tmp_path / "again")
    assert content(tmp_path / "again") == content(made) and len(content(made)) > 20
    silently(tmp_path / "other", seed=1, only=NAMES[:1])
    one, other = (OfflineDataset.load(folder / NAMES[0]) for folder in (made, tmp_path / "other"))
    assert not torch.equal(one.data["agents", "action"], other.data["agents", "action"])


def test_what_is_whole_stays_and_what_is_not_is_made_again(made, tmp_path):
    folder, said = tmp_path / "suite", []
    first = silently(folder, only=NAMES[1:])
    assert (first.made, first.found) == (NAMES[1:], [])
    seconds = read_index(folder)[NAMES[1]]["seconds"]
    second = silently(folder)
    assert (second.made, second.found) == (NAMES[:1], NAMES[1:])
    assert read_index(folder)[NAMES[1]]["seconds"] == seconds > 0
    file = folder / NAMES[0] / "data/agents/action.memmap"
    file.write_bytes(file.read_bytes()[:-8])
    third = make_suite(small_suite(), folder, say=said.append)
    assert (third.made, third.found) == (NAMES[:1], NAMES[1:])
    assert re.match(rf"damaged {NAMES[0]}: .*action.memmap has \d+ bytes instead of \d+", said[0])
    assert content(folder) == content(made)


KILLED = """
import sys
from suite_toys import small_suite
from torchrl_marl_offline.data.transitions import storage
from torchrl_marl_offline.suites import make_suite
def seal(*args):
    print("half", flush=True)
    input()
if sys.argv[2] == "half":
    storage.seal = seal
make_suite(small_suite(), sys.argv[1], say=lambda text: print(text, flush=True))
"""


def test_a_killed_process_leaves_no_part_of_a_dataset_and_the_next_goes_on(made, tmp_path):
    toys = str(Path(__file__).parents[1] / "toys")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {toys!r})\n{KILLED}", str(tmp_path), "half"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    left = [entry.name for entry in tmp_path.iterdir()]
    assert NAMES[0] not in left and any(name.startswith(f".{NAMES[0]}.tmp-") for name in left)
    assert silently(tmp_path).made == NAMES
    assert content(tmp_path) == content(made)
    assert not [entry for entry in tmp_path.iterdir() if ".tmp-" in entry.name]


def test_what_cannot_be_made_does_not_stop_the_others(tmp_path):
    outcome = silently(tmp_path, small_suite(broken=True))
    assert outcome.made == NAMES
    assert outcome.failed == {"broken": "There are no recordings of this one; give a folder."}


def test_another_suite_of_the_same_names_is_not_touched(made):
    for suite, options, words in (
        (small_suite(), {"seed": 3}, "holds another dataset, of seed 0 and not 3; choose another folder"),
        (small_suite(version=2), {}, "holds another dataset, of version 1 and not 2"),
    ):
        with pytest.raises(SuiteError, match=words):
            silently(made, suite, **options)
    with FileLock(made / ".lock"), pytest.raises(SuiteError, match="Another process is making the suite"):
        silently(made)


def test_unknown_names_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(SuiteError, match="unknown dataset 'motives-chickn'; did you mean 'motives-chicken'"):
        silently(tmp_path, only=["motives-chickn"])
    with pytest.raises(SuiteError, match="There is no suite 'coord'; known are coordination"):
        suite_of("coord")
    with pytest.raises(SuiteError, match="is no folder of recordings"):
        silently(tmp_path, recordings=tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_the_cards(made):
    card = read_index(made)[NAMES[0]]
    assert (card["suite"], card["version"], card["seed"], card["agents"]) == ("small", 1, 0, 2)
    assert card["optimum"] == {
        "value": 1.0,
        "kind": "enumeration",
        "how": "the largest of the 25 payoffs of each of 8 contexts",
    }
    assert card["random"]["how"] == "computed" and 0 < card["random"]["value"] < card["best_recorded"]["value"] < 1
    assert card["best_recorded"]["how"] == "mean of the best recorded episode of each of 8 starts"
    assert card["stitchable"]["share"] == 0.0 and "shares" not in card
    assert card["transitions"] == 2000 and card["bytes"] > 1e5 and re.fullmatch("[0-9a-f]{32}", card["checksum"])
    gap = card["optimum"]["value"] - card["random"]["value"]
    told = (card["best_recorded"]["value"] - card["random"]["value"]) / gap
    assert card["normalized"]["best_recorded"] == pytest.approx(told, abs=1e-5)
    motives = read_index(made)["motives-chicken"]
    assert (motives["optimum"]["value"], motives["random"]["value"]) == (
        60.0,
        40.0,
    )  # 20 steps of 3, and of a mean of 2
    assert motives["shares"]["gini"] > 0 and motives["best_recorded"]["how"] == "the best recorded episode"
    page = (made / "README.md").read_text()
    assert page.count("## ") == 2 and "enumeration: the largest of the 25 payoffs" in page
    assert json.loads(json.dumps(card)) == card


@pytest.mark.filterwarnings("error")
def test_the_datasets_load_without_warning_and_have_their_simulator(made):
    for name in NAMES:
        dataset = load_dataset(made / name)
        assert dataset.metadata["suite"]["name"] == name
        assert not dataset.inspection.problems


def test_the_core_has_five_payoffs_in_six_coverages_six_laser_worlds_and_four_games_of_mixed_motives():
    suite = SUITES["coordination"]
    core = suite.chosen()
    assert len({entry.name for entry in suite.entries}) == len(suite.entries)
    assert sum(entry.group.startswith("stitch-") for entry in core) == 30
    assert sum(entry.group == "motives" for entry in core) == 4
    worlds = {entry.name: entry.about for entry in core if entry.group == "lle"}
    assert len(worlds) == 6 and len(core) == 40
    assert {name for name, about in worlds.items() if "no recorded team is good to the end" in about} == {
        "lle-none-0",
        "lle-one_sided-1",
        "lle-mutual-1",
    }
    assert len(suite.chosen(more=True)) > len(core) and all(entry.about for entry in suite.entries)
    assert [entry.name for entry in suite.chosen(only=["hanabi-2p"])] == ["hanabi-2p"]


def test_a_laser_world_s_optimum_is_proven(tmp_path, monkeypatch):
    pytest.importorskip("lle")
    monkeypatch.setattr("torchrl_marl_offline.suites.entries.REFERENCE_EPISODES", 50)
    monkeypatch.setattr("torchrl_marl_offline.suites.reference_scores.REFERENCE_EPISODES", 50)
    make_suite(suite_of("coordination"), tmp_path, only=["lle-none-1"], say=lambda _: None)
    card = read_index(tmp_path)["lle-none-1"]
    assert card["optimum"]["value"] == 3.0 and card["optimum"]["kind"] == "proof"
    assert card["optimum"]["how"].startswith("by a SAT solver: none; shortest plan ")
    assert card["best_recorded"] == {"value": 3.0, "how": "the best recorded episode"}
    assert card["recorded_return"] < 1.0 and card["behaviour"].startswith("all out together (share 0.1), one agent out")


def cards_of(folder):
    return json.loads((folder / "index.json").read_text())


FACTS = [
    *("name", "group", "task", "task_options", "seed", "about", "agents", "discrete", "transitions", "episodes"),
    *("behaviour", "optimum", "random", "best_recorded", "recorded_return", "stitchable", "normalized"),
    *("bytes", "seconds"),
]


@pytest.mark.parametrize("fact", FACTS)
@pytest.mark.parametrize("value", [None, "x", {"x": 1}, [1], float("nan"), -1.5], ids=str)
def test_a_card_that_is_none_is_refused(made, tmp_path, fact, value):
    index = cards_of(made)
    if fact in ("behaviour", "seconds") and value in (None, "x", -1.5):
        return
    if isinstance(value, (int, float)) and value == value and fact == "recorded_return":
        return
    if isinstance(value, str) and isinstance(index["datasets"][0][fact], str):
        return
    if fact == "task_options" and isinstance(value, dict):
        return  # which running compares with the table
    index["datasets"][0][fact] = value
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(SuiteError, match=r"index.json is damaged \(.*; delete it, and make the suite again"):
        read_index(tmp_path)


def test_an_index_that_is_none_is_refused(made, tmp_path):
    cards = cards_of(made)["datasets"]
    no_scale = cards[0] | {"optimum": cards[0]["optimum"] | {"value": cards[0]["random"]["value"]}}
    less = {name: value for name, value in cards[0].items() if name != "optimum"}
    for wrong in ([], {}, {"datasets": None}, {"datasets": "ab"}, {"datasets": ["a"]}, {"datasets": [less]}, 3):
        (tmp_path / "index.json").write_text(json.dumps(wrong))
        with pytest.raises(SuiteError, match=r"index.json is damaged"):
            read_index(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"datasets": [no_scale]}))
    with pytest.raises(SuiteError, match=r"optimum.value: it is not above that of a random team"):
        read_index(tmp_path)


def test_a_dataset_of_which_the_card_is_none_is_left_out_of_the_page(made, tmp_path):
    folder = tmp_path / "suite"
    silently(folder)
    header = folder / NAMES[0] / "metadata.json"
    content = json.loads(header.read_text())
    del content["metadata"]["suite"]["optimum"]
    header.write_text(json.dumps(content))
    silently(folder, only=NAMES[1:])
    assert list(read_index(folder)) == NAMES[1:] and NAMES[0] not in (folder / "README.md").read_text()


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SuiteError, match=r"is a file, or lies below one, and a suite is a folder; name another"):
            silently(folder)


def test_an_optimum_that_is_not_above_a_random_team_fails_before_anything_is_written(tmp_path):
    entry = replace(small_suite().entries[1], optimum=lambda *_: BestReturn(-5.0, "best known", "a guess"))
    outcome = make_suite(Suite("small", 1, (entry,), "Small."), tmp_path, say=lambda _: None)
    assert list(outcome.failed) == ["motives-chicken"] and not outcome.made
    assert "is not above a random team's return" in outcome.failed["motives-chicken"]
    assert not (tmp_path / "motives-chicken").exists()
