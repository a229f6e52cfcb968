from __future__ import annotations

import json

import processes
import pytest
from data_toys import episodes, pymarl_episode_arrays, write_h5
from inspection_toys import clean, put

from torchrl_marl_offline.commands.data import main
from torchrl_marl_offline.data import OfflineDataset
from torchrl_marl_offline.data.quality.inspection import inspect

pytest.importorskip("h5py")


@pytest.fixture
def good(tmp_path) -> str:
    clean().save(tmp_path / "good")
    return str(tmp_path / "good")


@pytest.fixture
def bad(tmp_path) -> str:
    arrays = pymarl_episode_arrays([3, 2, 4], longest=4)
    arrays["avail_actions"][0, 1, 0] = [1, 0, 1]
    return f"pymarl:{write_h5(tmp_path / 'bad.h5', arrays)}"


def test_inspect_prints_a_card(good, capsys):
    assert main(["inspect", good]) == 0
    text = capsys.readouterr().out
    assert "22 in 4 episodes of" in text and "joint SACo   1.0000" in text


def test_inspect_prints_json_and_finds_errors(bad, capsys):
    assert main(["inspect", bad, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    codes = [(finding["code"], finding["rows"]) for finding in report["findings"]]
    assert codes == [("illegal_action", 1), ("illegal_next_action", 1), ("team_reward", 9)]


def test_inspect_says_what_cannot_be_read(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nowhere")]) == 1
    assert "unreadable: " in capsys.readouterr().out


def test_strict_counts_warnings(tmp_path):
    clean([12, 12, 12]).save(tmp_path / "limits")
    assert main(["inspect", str(tmp_path / "limits")]) == 0
    assert main(["inspect", str(tmp_path / "limits"), "--strict"]) == 1


def test_inspect_compares(good, capsys):
    assert main(["inspect", good, good]) == 0
    assert "same_content" in capsys.readouterr().out
    assert main(["inspect", good, good, "--strict", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[2]["compared"] == [good, good]


def test_inspect_draws(good, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "card.png"
    assert main(["inspect", good, "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["inspect", good, good, "--picture", str(picture)]) == 1
    assert capsys.readouterr().err.startswith("error: --picture draws one SOURCE")
    assert main(["inspect", good, "--picture", str(tmp_path / "two.png"), "--figures", "pdf"]) == 0
    assert (tmp_path / "two.png").exists() and (tmp_path / "two.pdf").read_bytes().startswith(b"%PDF")
    assert main(["inspect", good, "--figures", "pdf"]) == 1
    assert capsys.readouterr().err.startswith("error: --figures is for the page of --picture")


def test_convert(bad, tmp_path, capsys):
    target = tmp_path / "converted"
    assert main(["convert", bad, str(target)]) == 1
    assert "is illegal by" in capsys.readouterr().err and not target.exists()
    assert main(["convert", bad, str(target), "--strict"]) == 1
    assert not target.exists()
    assert main(["convert", bad, str(target), "--repair"]) == 0
    output = capsys.readouterr().out
    assert "repaired: illegal_action: masked 1 rows" in output and "wrote 9 transitions in 3 episodes" in output
    converted = OfflineDataset.load(target)
    assert len(converted.metadata["repairs"]) == 2
    assert [finding.code for finding in inspect(converted).findings] == ["team_reward", "masked_rows"]
    assert main(["convert", bad, str(target), "--repair"]) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert main(["convert", bad, str(target), "--repair", "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["convert", str(target), str(target / "inside")]) == 1
    assert "lies inside of its source" in capsys.readouterr().err and not (target / "inside").exists()


def test_convert_passes_warnings_on(tmp_path, capsys):
    clean([12, 12, 12]).save(tmp_path / "limits")
    assert main(["convert", str(tmp_path / "limits"), str(tmp_path / "out")]) == 0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("warning: ") and "repair truncates them" in errors[0]


def test_options_reach_the_reader(tmp_path, capsys):
    path = write_h5(tmp_path / "limit.h5", pymarl_episode_arrays([12, 12, 12, 5], longest=12))
    assert main(["inspect", f"pymarl:{path}", "--json", "--option", "time_limit=12", "--option", "task=toys/x"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["time_limit"] == 12 and report["task"] == "toys/x"
    assert main(["inspect", f"pymarl:{path}", "--option", "time_limit"]) == 1
    assert capsys.readouterr().err == "error: --option needs NAME=VALUE, got 'time_limit'.\n"
    assert main(["inspect", f"pymarl:{path}", "--option", "time_limit=3", "--option", "time_limit=4"]) == 1
    assert capsys.readouterr().err == "error: --option time_limit is given twice; leave one out.\n"
    assert main(["inspect", f"pymarl:{path}", "--option", "task_options={'max_steps': 20}"]) == 1
    assert """is no JSON (Expecting property name""" in (said := capsys.readouterr().err)
    assert """give it as 'task_options={"max_steps": 20}'.""" in said
    assert main(["inspect", f"pymarl:{path}", "--option", "colour=3"]) == 1
    assert "colour" in capsys.readouterr().err


def test_verify(good, bad, tmp_path, capsys):
    assert main(["verify", good]) == 0
    assert "every check passed" in capsys.readouterr().out
    assert main(["verify", bad]) == 1
    assert "is illegal by" in capsys.readouterr().err
    spoiled = put(("agents", "action"), 0, 7.0)(clean())
    spoiled.save(tmp_path / "spoiled")
    assert main(["verify", str(tmp_path / "spoiled")]) == 1
    assert "outside its bounds" in capsys.readouterr().err
    file = next(file for file in (tmp_path / "good" / "data").rglob("*.memmap"))
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    assert main(["verify", good]) == 1
    assert "was changed after it was written" in capsys.readouterr().err


def test_list(capsys):
    assert main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 93
    assert main(["list", "og_marl", "smac_v1/3m"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [f"og_marl:smac_v1/3m/{q}" for q in ("Poor", "Medium", "Good")]
    assert lines[2].split()[1:6] == ["995,313", "41,619", "3", "9.96", "0.85"]
    assert lines[2].split()[6:] == ["Apache-2.0", "arXiv:2302.00521", "smac/3m"]
    assert main(["list", "omar", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)["omar:mpe/simple_spread/Expert"]
    assert card["joint_saco"] == 1.0 and card["license"] == "Apache-2.0" and "arXiv:2111.11188" in card["citation"]
    assert main(["list", "nobody"]) == 1
    assert capsys.readouterr().err.startswith("error: There is no source 'nobody'")


def test_wrong_arguments():
    for arguments in ([], ["fetch"], ["inspect"], ["convert", "a"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_as_a_process(tmp_path):
    episodes([2, 3]).save(tmp_path / "toy")
    result = processes.run("-W", "ignore", "-m", "torchrl_marl_offline", "data", "verify", tmp_path / "none")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


@pytest.mark.thorough
def test_record_writes_the_qualities_and_says_how_good_they_are(tmp_path, capsys):
    options = [f"--option={text}" for text in ("updates=20", "eval_every=10", "num_envs=4", "compile=false")]
    arguments = ["record", "games/xor", str(tmp_path), "--transitions", "300", "--qualities", "random", "expert"]
    assert main([*arguments, *options]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "transitions in" in line and "return" in line]
    assert [line.split()[0] for line in lines] == ["random", "expert"]
    assert OfflineDataset.load(tmp_path / "expert").metadata["quality"] == "expert"
    assert main([*arguments, *options, "--seed", "1"]) == 1
    assert "recording with another seed" in capsys.readouterr().err
    assert main([*arguments, "--option=colour=red"]) == 1


@pytest.mark.parametrize("name", ["transitions", "seed", "qualities", "task", "folder"])
def test_options_of_a_recording_that_are_arguments_are_refused_as_options(tmp_path, capsys, name):
    assert main(["record", "games/xor", str(tmp_path / "out"), "--option", f"{name}=5"]) == 1
    assert f"--option {name}=... is an argument of its own; give it as such" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
