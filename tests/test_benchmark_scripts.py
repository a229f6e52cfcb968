"""What the scripts of ``benchmarks/`` share: results that go on, arguments, errors of one sentence."""

from __future__ import annotations

import json
import sys

import pandas
import pytest
from filelock import FileLock
from study_toys import STUDY, quietly, write_study

from torchrl_marl_offline import evaluate, make_env
from torchrl_marl_offline.study import plan_study, read_results, read_study
from torchrl_marl_offline.study.training import train_population
from torchrl_marl_offline.training import load_policy

JOBS = [{"seed": seed, "sizes": (1, 2)} for seed in (0, 1, 2)]


def double(seed: int, sizes: list[int]) -> dict[str, int]:
    return {"twice": 2 * seed}


def line(seed: int, twice: int) -> str:
    return json.dumps({"job": {"seed": seed, "sizes": [1, 2]}, "result": {"twice": twice}}) + "\n"


@pytest.mark.parametrize(
    "before", ["", line(1, 20), line(1, 0) + line(1, 20), line(1, 20) + line(7, 3), line(1, 20) + line(2, 9)[:-9]]
)
def test_jobs_have_a_row_each_whatever_lines_were_there(script, tmp_path, before):
    common, file = script("common"), tmp_path / "results.jsonl"
    if before:
        file.write_text(before)
    rows = common.run_jobs(double, JOBS, workers=1, results=file)
    assert [row["twice"] for row in rows] == [0, 20 if before else 2, 4] and [r["seed"] for r in rows] == [0, 1, 2]
    assert all(json.loads(text) for text in file.read_text().splitlines())
    again = file.read_text()
    assert common.run_jobs(double, JOBS[::-1], workers=1, results=file) == rows[::-1] and file.read_text() == again


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "[]\n", '{"job": 3, "result": {}}\n', '{"job": {}}\n'])
def test_a_file_of_something_else_is_not_gone_on_with(script, tmp_path, text):
    common, file = script("common"), tmp_path / "results.jsonl"
    file.write_text(text)
    with pytest.raises(script("arguments").ScriptError, match=r"results.jsonl, line 1: no result of such a script"):
        common.run_jobs(double, JOBS, workers=1, results=file)
    assert file.read_text() == text


def test_two_processes_do_not_write_one_file(script, tmp_path):
    common, file = script("common"), tmp_path / "results.jsonl"
    refused = pytest.raises(script("arguments").ScriptError, match=r"Another process writes .*wait until it has ended")
    with FileLock(tmp_path / ".results.jsonl.lock"), refused:
        common.run_jobs(double, JOBS, workers=1, results=file)


def test_paths_to_write_are_looked_at_first(script, tmp_path):
    arguments = script("arguments")
    (tmp_path / "file").write_text("")
    parser = arguments.script_parser("A script.")
    parser.add_argument("--json", type=arguments.as_file)
    parser.add_argument("--output", type=arguments.as_folder)
    assert parser.parse_args(["--json", str(tmp_path / "new/a.json")]).json == tmp_path / "new/a.json"
    assert parser.parse_args(["--output", str(tmp_path / "new/b")]).output == tmp_path / "new/b"
    for wrong in (
        ["--json", str(tmp_path)],
        ["--json", str(tmp_path / "file/a")],
        ["--output", str(tmp_path / "file")],
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)


def test_what_a_user_can_mend_ends_a_script_in_a_sentence(script, capsys):
    arguments = script("arguments")

    def fail(error: Exception):
        raise error

    for error in (arguments.ScriptError("No such\nthing."), FileNotFoundError(2, "No such file", "x")):
        with pytest.raises(SystemExit) as ended:
            arguments.run_script(lambda error=error: fail(error))
        said = capsys.readouterr().err
        assert ended.value.code == 1 and said.startswith("error: ") and said.count("\n") == 1
    with pytest.raises(ValueError, match="a fault of the script"):
        arguments.run_script(lambda: fail(ValueError("a fault of the script")))


def test_a_script_that_reads_makes_no_data(script, tmp_path, monkeypatch, capsys):
    text = STUDY.replace("[datasets.spread]", "[datasets.spread-random]")
    text += '[datasets.tag-medium]\ntask = "mpe/simple_tag"\nquality = "medium"\n'
    quietly(write_study(tmp_path, text), only=["spread-random"])
    (tmp_path / "out/data").mkdir(exist_ok=True)
    qualities = script("qualities")
    assert qualities.means_of_data(read_study(tmp_path / "study.toml")) == {}
    monkeypatch.setattr(sys, "argv", ["qualities", str(tmp_path / "study.toml")])
    qualities.main()
    assert "| cloning | " in capsys.readouterr().out
    assert not list((tmp_path / "out/data").iterdir())


def test_curves_have_a_column_for_each_evaluation(script, tmp_path, monkeypatch, capsys):
    quietly(write_study(tmp_path))
    curves = script("curves")
    for more, columns in (([], "10 | 20 | 30 | 40 |"), (["--at", "20", "40"], "20 | 40 |")):
        monkeypatch.setattr(sys, "argv", ["curves", str(tmp_path / "study.toml"), *more])
        curves.main()
        out = capsys.readouterr().out
        assert f"| spread | {columns}\n" in out, out
        assert "| mix-vdn, temperature 3" in out and "| cloning | " in out
    monkeypatch.setattr(sys, "argv", ["curves", str(tmp_path / "study.toml"), "--at", "10", "7", "12"])
    with pytest.raises(SystemExit):
        curves.main()
    assert "nothing was evaluated at 7, 12; there are [10, 20, 30, 40]" in capsys.readouterr().err


def test_a_curve_goes_on_with_the_last_evaluation_that_was_finite(script, tmp_path):
    plan = plan_study(read_study(write_study(tmp_path)))
    run, never = plan.runs[0], plan.runs[1]
    nan, rows = float("nan"), []
    for name, scores in ((run.name, [nan, 3.0, nan, 5.0, nan]), (never.name, [nan] * 5)):
        rows += [
            {"run": name, "finished": True, "evaluator": "mode", "step": 10 * (4 - k), "score": scores[4 - k]}
            for k in range(5)
        ]
    found = script("curves").curves_of(plan, pandas.DataFrame(rows), run.dataset, "score")
    assert next(iter(found.values())) == {10: [3.0], 20: [3.0], 30: [5.0], 40: [5.0]}
    frame = pandas.DataFrame(rows).assign(finished=False)
    assert script("curves").curves_of(plan, frame, run.dataset, "score") == {}
    assert script("curves").curves_of(plan, frame, run.dataset, "score", unfinished=True) == found


AGAIN = """
[study]
output = "{output}"
seeds = 2
steps = 6
batch_size = 8
hidden = [8]
normalize_inputs = "off"
join_datasets = true
compile = "off"
device = "cpu"
metric = "return"
last_k = 1

[evaluation]
every = 3
episodes = 4

[methods.cloning]
algorithm = "cloning"

[datasets.one]
task = "games/recall"
episodes = 8

[datasets.other]
task = "games/recall"
episodes = 8
seed = 1
"""


def test_last_policies_are_played_again(script, tmp_path, monkeypatch, capsys):
    """In episodes of their own seeds; what was there is kept, and a second call finds nothing to do."""
    file = write_study(tmp_path, AGAIN)
    play_again = script("play_again")
    monkeypatch.setattr(sys, "argv", ["play_again", str(file), "--episodes", "40"])
    with pytest.raises(SystemExit):
        play_again.main()
    assert "there is no finished run in" in capsys.readouterr().err
    quietly(file, train=train_population)
    tables = sorted(tmp_path.glob("out/jobs/*/members/*/eval.csv"))
    before = [pandas.read_csv(table) for table in tables]
    assert len(tables) == 4
    play_again.main()
    assert "4 of 4 finished runs were played anew, 40 episodes each" in capsys.readouterr().out
    study = read_study(file)
    for table, first in zip(tables, before):
        after = pandas.read_csv(table)
        pandas.testing.assert_frame_equal(pandas.read_csv(table.with_name("eval.first.csv")), first)
        pandas.testing.assert_frame_equal(after[after["step"] == 3], first[first["step"] == 3])
        (last,) = after[after["step"] == 6].to_dict("records")
        env = make_env("games/recall", num_envs=40)
        seed = 1000 + 1_000_003 * int(table.parent.name[-1])
        policy = load_policy(table.with_name("policy.pt")).policy
        expected = evaluate(policy, env, episodes=40, seed=seed, mode=last["evaluator"])
        assert last["return"] == pytest.approx(expected.mean) and last["episodes"] == 40
    play_again.main()
    assert "0 of 4 finished runs" in capsys.readouterr().out
    shown = read_results(file.parent / "out")
    assert set(shown[shown["step"] == 6]["episodes"]) == {40} and set(shown[shown["step"] == 3]["episodes"]) == {4}
    assert study.evaluation.seed == 1000


def test_last_policies_alone_cannot_stand_for_averages(script, tmp_path, monkeypatch):
    file = write_study(tmp_path, AGAIN.replace("last_k = 1", "last_k = 2").replace("seeds = 2", "seeds = 1"))
    quietly(file, train=train_population)
    monkeypatch.setattr(sys, "argv", ["play_again", str(file)])
    with pytest.raises(ValueError, match="averages the last 2 evaluations"):
        script("play_again").main()
    assert not list(tmp_path.glob("out/jobs/*/members/*/eval.first.csv"))


def test_choices_of_systems_without_any_are_told(script, tmp_path, monkeypatch, capsys):
    quietly(write_study(tmp_path), only=["cloning"])
    monkeypatch.setattr(sys, "argv", ["choices", str(tmp_path / "study.toml")])
    with pytest.raises(SystemExit):
        script("choices").main()
    assert "compares no such choices; python benchmarks/curves.py shows its scores" in capsys.readouterr().err
    quietly(write_study(tmp_path))
    script("choices").main()
    said = capsys.readouterr()
    assert "Left out, as they have no choice of value learning and extraction: cloning." in said.err
    assert "| mixer, iql | " in said.out


def test_a_damaged_cell_of_a_table_is_named(script):
    redraw = script("redraw")
    with pytest.raises(script("arguments").ScriptError, match=r"holds '12.0' where a mean and its interval should be"):
        redraw.interval("12.0")
