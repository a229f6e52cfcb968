"""A suite is run as a study of its datasets, and its report says what the runs came to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from study_toys import Inline
from suite_toys import small_suite

from torchrl_marl_offline.data.collection import random_policy
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation.policy_strategies import policy_regret
from torchrl_marl_offline.study import Machine, StudyError, read_results
from torchrl_marl_offline.suites import Suite, SuiteEntry, SuiteError, make_suite, run_suite, write_suite_report
from torchrl_marl_offline.suites.entries import BestReturn, Recorded, Reference
from torchrl_marl_offline.suites.running import datasets_of
from torchrl_marl_offline.suites.suite_scores import Cell, cells_of, mean_over, policy_of, verdict_of
from torchrl_marl_offline.training import load_policy

SYSTEMS = ["cloning", "brac-vdn", "brac-independent"]


def run(folder, suite=None, **options):
    options = {"algorithms": SYSTEMS, "seeds": 2, "updates": 20, "episodes": 16} | options
    machine = Machine(workers=1, threads=1)
    return run_suite(
        suite or small_suite(), folder, machine=machine, backend=Inline(), progress=False, say=lambda _: None, **options
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    make_suite(small_suite(), folder, say=lambda _: None)
    assert (run(folder).finished, run(folder).remaining) == (6, 0)
    return folder


def test_runs_are_those_of_a_study_and_are_not_done_again(done):
    frame = read_results(done / "runs")
    assert len(frame) == 2 * 3 * 2 and set(frame["step"]) == {20} and set(frame["evaluator"]) == {"mode"}
    times = {file: file.stat().st_mtime_ns for file in done.glob("runs/jobs/*/result.json")}
    assert len(times) == 6 and run(done).finished == 6
    assert {file: file.stat().st_mtime_ns for file in times} == times
    of_motives = frame[frame["dataset"] == "motives-chicken"]
    assert (of_motives["return_sum"] == 2 * of_motives["return"]).all()
    assert frame[frame["dataset"] != "motives-chicken"]["return_sum"].isna().all()


def test_the_report(done):
    files = write_suite_report(small_suite(), done, figures=["svg"])
    text = files.markdown.read_text()
    assert text.startswith("# small, version 1") and "12 finished runs of 2 seeds, 20 updates each" in text
    assert "On the scale of scores 0 is a uniformly random team and 1 the optimum" in text
    assert "Need coordination" in text and "Nothing solves" in text and "Beyond the data" in text
    assert all(f"| {system} |" in text for system in SYSTEMS)
    assert files.picture.stat().st_size > 10_000 and files.picture.with_suffix(".svg").exists()
    assert "data:image/png" in files.html.read_text()
    line = next(line for line in text.splitlines() if line.startswith("| motives-chicken | cloning |"))
    env = make_env("games/chicken")
    policies = sorted(done.glob("runs/jobs/motives-chicken--cloning--00/members/*/policy.pt"))
    mean = sum(policy_regret(load_policy(file), env).regret for file in policies) / len(policies)
    assert len(policies) == 2 and line.endswith(f"| {mean[0]:.4g}, {mean[1]:.4g} |")


def test_what_cannot_be_run_is_refused(done, tmp_path):
    for options, words in (
        ({"algorithms": ["cqlx"]}, "unknown name 'cqlx'; did you mean 'cql'"),
        ({"only": ["motives-chickn"]}, "unknown dataset"),
        ({"runs": "../runs"}, "--runs becomes the name of a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            run(done, **options)
    with pytest.raises(StudyError, match=r"with steps = 20, .* says 30; give the study another output"):
        run(done, updates=30)
    with pytest.raises(SuiteError, match="holds no datasets of the suite small; make them first: marl-offline"):
        run(tmp_path)
    with pytest.raises(SuiteError, match=r"There are no runs in .*; run them first"):
        write_suite_report(small_suite(), tmp_path)
    make_suite(small_suite(), tmp_path, only=["motives-chicken"], say=lambda _: None)
    with pytest.raises(SuiteError, match=r"make it first: marl-offline .* --only stitch-additive-two_teams"):
        run(tmp_path, only=["stitch-additive"])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Suite, Path]:
    """A suite of which one dataset has continuous actions."""

    def record(entry, making):
        env = entry.make_env(8, making.seed)
        return Recorded(entry.collect(env, random_policy(env), "random", making, episodes=8), Reference(0.0, "none"))

    spread = SuiteEntry(
        "spread",
        "vmas",
        "mpe/simple_spread",
        record=record,
        optimum=lambda *_: BestReturn(500.0, "best known", "a guess"),
    )
    suite = Suite("mixed", 1, (*small_suite().entries, spread), "Both kinds of actions.")
    folder = tmp_path_factory.mktemp("mixed")
    make_suite(suite, folder, only=["spread", "motives"], say=lambda _: None)
    return suite, folder


def test_datasets_with_continuous_actions_are_run_too(mixed):
    suite, folder = mixed
    outcome = run(folder, suite, algorithms=["cloning", "bcq"], seeds=1, episodes=4)
    frame = read_results(folder / "runs")
    assert outcome.finished == 4
    assert set(zip(frame["dataset"], frame["method"], strict=True)) == {
        ("motives-chicken", "cloning"),
        ("motives-chicken", "bcq"),
        ("spread", "cloning"),
        ("spread", "bcq"),
    }
    text = write_suite_report(suite, folder).markdown.read_text()
    assert "| spread | bcq |" in text and "| motives-chicken | bcq |" in text


CARD = {
    "random": {"value": 2.0},
    "optimum": {"value": 4.0},
    "normalized": {"best_recorded": 0.5},
    "stitchable": {"share": 0.0},
}


def cell(method, *scores, independent=False) -> Cell:
    return Cell("one", method, dict(enumerate(scores)), independent)


def test_scores_by_hand():
    rows = [
        {"dataset": "one", "method": "a", "run": f"a{seed}", "seed": seed, "step": step, "return": value}
        for seed, values in enumerate([(2.0, 3.0), (2.0, 4.0)])
        for step, value in enumerate(values)
    ]
    rows.append({"dataset": "one", "method": "b", "run": "b0", "seed": 0, "step": 1, "return": float("nan")})
    frame = pandas.DataFrame(rows).assign(finished=True, decomposition="independent", steps=1)
    found = cells_of(frame, {"one": CARD})
    assert found["one", "a"].scores == {0: 0.5, 1: 1.0} and found["one", "a"].independent
    assert found["one", "b"].scores == {0: 0.0}
    both = [cell("a", 0.0, 1.0, 5.0), cell("a", 1.0, 1.0)]  # of the seeds that both have
    assert mean_over(both).mean == 0.75 and mean_over(both[1:]).half_width == 0.0


def test_verdicts_by_hand():
    team, alone = cell("team", 0.96, 0.97, 0.98), cell("alone", 0.3, 0.31, 0.32, independent=True)
    found = verdict_of([alone, team], CARD)
    assert (found.best, found.independent) == (team, alone)
    assert found.solved and found.beats_data and found.needs_coordination
    wide = verdict_of([cell("team", 0.2, 0.6, 1.0), alone], CARD)
    assert not wide.solved and not wide.beats_data and not wide.needs_coordination
    reverse = verdict_of([cell("team", 0.3, 0.3), cell("alone", 0.9, 0.9, independent=True)], CARD)
    assert reverse.best.method == "alone" and not reverse.needs_coordination
    assert verdict_of([team], CARD).independent is None and not verdict_of([team], CARD).needs_coordination


def test_one_seed_and_a_system_without_a_critic_say_nothing_of_critics(done):
    alone = cell("alone", 0.5, 0.5, independent=True)
    for cells in (
        [cell("team", 0.9), alone],
        [cell("team", 0.9, 0.9), cell("alone", 0.5, independent=True)],
        [replace(cell("cloning", 0.9, 0.9), has_critic=False), cell("team", 0.5, 0.5), alone],
    ):
        assert not verdict_of(cells, CARD).needs_coordination
    assert not verdict_of([cell("team", 0.9)], CARD).beats_data
    assert verdict_of([cell("team", 0.9, 0.9), cell("cloning", 0.1), alone], CARD).needs_coordination
    found = cells_of(read_results(done / "runs"), datasets_of(small_suite(), done))
    assert {method: each.has_critic for (_, method), each in found.items()} == {
        "cloning": False,
        "brac-vdn": True,
        "brac-independent": True,
    }


@pytest.mark.parametrize(
    "change", [{"group": "other"}, {"task": "games/chicken"}, {"task_options": {"num_envs": 10**9}}], ids=str
)
def test_an_index_that_says_another_task_is_refused(done, tmp_path, change):
    index = json.loads((done / "index.json").read_text())
    index["datasets"][0] |= change
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(SuiteError, match=f"another {next(iter(change))} than the suite small"):
        datasets_of(small_suite(), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda frame, name=name: frame.drop(columns=name) for name in ("return", "finished", "run", "seed", "steps")),
        lambda frame: frame.assign(**{"return": "x"}),
        lambda frame: frame.assign(seed="x"),
    ],
)
def test_a_table_of_results_that_is_none_is_refused(done, change):
    frame, cards = read_results(done / "runs"), datasets_of(small_suite(), done)
    assert len(cells_of(frame, cards)) == 6
    with pytest.raises(SuiteError, match="The results of the runs"):
        cells_of(change(frame), cards)


@pytest.mark.parametrize("run", ["..", "../..", "*", "**", "a/b", ""])
def test_a_run_s_policy_lies_in_the_folder_of_its_study(done, run):
    assert policy_of(done / "runs", {"run": run}) is None
