"""Searches: which trials there are, how rungs follow each other, and that a kill changes nothing."""

from __future__ import annotations

import random
from collections import Counter

import pandas
import pytest
from choosing_toys import train_and_estimate
from study_toys import STUDY, Inline, quietly, train_toy, write_study

import torchrl_marl_offline.study.scores as scores_module
from torchrl_marl_offline.study import Plan, StudyError, read_results, read_study, runner
from torchrl_marl_offline.study.choosing import SearchSettings
from torchrl_marl_offline.study.jobs import Job, Progress, Trained
from torchrl_marl_offline.study.runs import Run, cases
from torchrl_marl_offline.study.search import draw_trials, ranked, runs_so_far
from torchrl_marl_offline.study.search_space import ValueRange
from torchrl_marl_offline.study.study_report import write_study_report

SEARCH = STUDY.replace(
    "[grid]\ntemperature = [1, 3.0]",
    '[search]\ntrials = 9\nby = "return"\nseeds = [7, 8]\n\n[ranges]\n'
    "temperature = {{ low = 0.1, high = 10, log = true }}",
).replace('variants.decomposition = ["mixer", "vdn"]', 'ranges.decomposition = ["mixer", "vdn"]')
BY_FQE = SEARCH.replace('by = "return"\nseeds = [7, 8]', 'by = "fqe"') + "\n[offline]\nheld_out = 0.5\n"


@pytest.mark.parametrize(
    ("given", "sizes", "steps"),
    [
        ({"trials": 32}, [32, 10, 3], [12, 34, 100]),
        ({"trials": 9}, [9, 3], [34, 100]),
        ({"trials": 9, "rungs": 1}, [9], [100]),
        ({"trials": 8, "eta": 2}, [8, 4, 2], [25, 50, 100]),
        ({"trials": 2}, [2], [100]),
        ({"trials": 9, "updates": 180}, [9, 3], [10, 30]),  # an equal share each: 9 · 10 = 3 · 30
        ({"trials": 9, "updates": 180, "seeds": (1, 2)}, [9, 3], [5, 15]),
        ({"trials": 9, "updates": 10**6}, [9, 3], [100, 100]),  # no run is longer than the study's
    ],
)
def test_sizes_and_lengths_of_rungs(given, sizes, steps):
    search = SearchSettings(**given)
    assert search.sizes() == sizes and search.steps(100) == steps
    if search.updates and search.updates < 10**6:
        assert sum(a * b for a, b in zip(sizes, steps)) * len(search.seeds) <= search.updates


def test_values_lie_within_their_ranges_and_a_further_setting_moves_none(tmp_path):
    chance = random.Random(0)
    drawn = [ValueRange(1e-4, 1e-2, True).draw(float, chance) for _ in range(400)]
    assert 1e-4 <= min(drawn) < 1.2e-4 and 0.8e-2 < max(drawn) <= 1e-2
    assert 0.4 < sum(value < 1e-3 for value in drawn) / 400 < 0.6  # the middle in the logarithm
    assert all(value == float(f"{value:.4g}") for value in drawn)
    whole = Counter(ValueRange(1, 3).draw(int, chance) for _ in range(300))
    assert set(whole) == {1, 2, 3} and min(whole.values()) > 60 and all(type(value) is int for value in whole)
    study = read_study(write_study(tmp_path, SEARCH))
    (case,) = [case for case in cases(study) if case.ranges]
    trials = draw_trials(case, study.search)
    assert len({str(trial.given) for trial in trials}) == 9 and [trial.number for trial in trials] == list(range(9))
    assert trials == draw_trials(case, study.search) != draw_trials(case, SearchSettings(trials=9, seed=1))
    more = read_study(write_study(tmp_path / "more", SEARCH + "lr = {{ low = 1e-4, high = 1e-2 }}\n"))
    (wider,) = [case for case in cases(more) if case.method == "mix"]
    found = [trial.given["temperature"] for trial in draw_trials(wider, more.search)]
    assert found == [trial.given["temperature"] for trial in trials]


def run_of(trial: int, seed: int) -> Run:
    return Run(f"{trial}/{seed}", "d", "m", seed, {}, {}, trial, 0)


def test_trials_are_ranked_by_their_mean_and_those_without_a_number_go():
    trials = {number: [run_of(number, seed) for seed in (0, 1)] for number in range(4)}
    nan, inf = float("nan"), float("inf")
    values = {"0/0": 1, "0/1": 3, "1/0": 9, "1/1": nan, "2/0": 2, "2/1": 2, "3/0": inf, "3/1": 0}
    assert ranked(trials, values) == [0, 2]  # equal means: the one drawn first


def test_rungs_follow_each_other_and_the_chosen_one_is_trained_by_the_studys_seeds(tmp_path):
    backend = Inline()
    outcome = quietly(write_study(tmp_path, SEARCH), backend=backend)
    assert (outcome.remaining, outcome.failed) == (0, {})
    plan, frame = Plan.load(tmp_path / "out"), read_results(tmp_path / "out")
    count = Counter((run.method, run.rung, run.settings["steps"]) for run in plan.runs)
    assert count == {("mix", 0, 14): 18, ("mix", 1, 40): 6, ("mix", None, 40): 3, ("cloning", None, 40): 3}
    for population in plan.populations:  # those of one structure and rung are trained side by side
        assert len({(run.rung, run.settings.get("decomposition")) for run in population.runs}) == 1
    last = frame[frame["rung"] == 1].groupby(["trial", "run"])["normalized"].mean().groupby("trial").mean()
    chosen = {run.trial for run in plan.runs if run.rung is None and run.trial is not None}
    assert chosen == {last.idxmax()}
    first = frame[frame["rung"] == 0].groupby(["trial", "run"])["normalized"].mean().groupby("trial").mean()
    assert set(last.index) == set(first.sort_values(ascending=False).index[:3])
    assert {run.seed for run in plan.runs if run.rung is not None} == {7, 8}
    assert quietly(tmp_path / "study.toml", backend=backend).remaining == 0
    assert len(set(backend.seen)) == len(backend.seen)  # nothing is done twice


def train_and_be_killed(job: Job, progress: Progress) -> Trained:
    """Kill the process once in each of the first three populations, in the middle."""
    marker = job.folder / "killed"
    if job.population.name[-2:] in ("00", "01", "02") and not marker.exists():
        marker.touch()
        raise KeyboardInterrupt
    return train_and_estimate(job, progress)


@pytest.mark.parametrize("text", [SEARCH, BY_FQE], ids=["return", "fqe"])
def test_a_search_that_is_stopped_again_and_again_ends_as_the_undisturbed_one(tmp_path, text):
    quietly(write_study(tmp_path / "whole", text), train=train_and_estimate)
    file = write_study(tmp_path / "parts", text)
    expected, calls, is_done = Plan.load(tmp_path / "whole/out").runs, 0, False
    while not is_done:
        outcome, calls = quietly(file, train=train_and_be_killed, backend=Inline(most=1)), calls + 1
        is_done = not outcome.remaining and len(Plan.load(file.parent / "out").runs) == len(expected)
        assert calls < 20
    assert calls > 4
    whole, parts = (read_results(tmp_path / name / "out") for name in ("whole", "parts"))
    pandas.testing.assert_frame_equal(whole, parts, check_exact=True)
    assert Plan.load(tmp_path / "parts/out").runs == expected


def test_what_the_plan_holds_is_not_decided_again(tmp_path):
    quietly(write_study(tmp_path, SEARCH))
    kept = Plan.load(tmp_path / "out").runs
    study = read_study(tmp_path / "study.toml")
    runs = runs_so_far(study, kept, lambda runs: pytest.fail("decided again"))
    assert {run.name for run in runs} == {run.name for run in kept}


def test_a_search_by_estimates_takes_the_best_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr(scores_module, "RESAMPLES", 20)
    monkeypatch.setattr(scores_module, "PAIR_RESAMPLES", 20)
    quietly(write_study(tmp_path, BY_FQE), train=train_and_estimate)
    plan = Plan.load(tmp_path / "out")
    temperatures = {run.trial: run.grid["temperature"] for run in plan.runs if run.rung == 0}
    nearest = min(temperatures, key=lambda trial: max(temperatures[trial], 1 / temperatures[trial]))
    (chosen,) = {run.trial for run in plan.runs if run.trial is not None and run.rung is None}
    assert chosen == nearest and len(temperatures) == 9
    text = write_study_report(tmp_path / "out")[1].read_text()
    assert "Rungs of 9, 3 trials; so far 9 for 14 updates, 3 for 40 updates, each trained from the start." in text
    assert f"Chosen: trial {chosen} (" in text
    assert "none of which took part in the search" in text and "Every trial: what it was ranked by" in text
    assert "choosing by estimate by fqe costs " in text and "### Estimated by fqe on held-out episodes" in text
    table = text[text.index("### normalized score") :].partition("<details>")[0]
    assert "trial" not in table and table.count("| mix |") == 1  # the trials' runs are in no table of scores
    frame = read_results(tmp_path / "out")
    rows = frame[(frame["evaluator"] == "fqe") & (frame["method"] == "mix")]
    assert set(rows["rung"].dropna()) == {0, 1}
    assert rows["estimate"].notna().all() and (rows["gain"] < rows["estimate"]).all()


def test_a_search_of_which_no_trial_has_a_number_says_so_and_fails(tmp_path):
    said = []
    outcome = quietly(write_study(tmp_path, SEARCH), train=train_without_numbers, say=said.append)
    assert list(outcome.failed) == ["spread--mix"] and outcome.remaining == 0
    assert any("search of mix on spread ends without a choice: no trial of rung 0 has" in line for line in said)
    text = write_study_report(tmp_path / "out")[1].read_text()
    assert "nothing yet: the search is not at its end" in text


def train_without_numbers(job: Job, progress: Progress) -> Trained:
    trained = train_toy(job, progress)
    diverged = {run.name: 3 for run in job.population.runs if run.rung is not None}
    return Trained(True, trained.step, diverged, 1.0)


def test_a_search_whose_time_is_over_between_two_rungs_is_not_done(tmp_path, monkeypatch):
    class Deaf(Inline):
        def run(self, jobs, train, *, tick):
            return super().run(jobs, train, tick=lambda: True)

    monkeypatch.setattr(runner, "_is_late", lambda jobs: True)
    said, file = [], write_study(tmp_path, SEARCH)
    outcome = quietly(file, backend=Deaf(), say=said.append)
    assert outcome.remaining > 0 and outcome.failed == {}
    assert "The time is over, everything is saved: 21 of 27 runs" in said[-2]
    monkeypatch.undo()
    assert quietly(file).remaining == 0
    assert None in {run.rung for run in Plan.load(tmp_path / "out").runs if run.trial is not None}


def test_a_search_is_another_study_with_other_settings(tmp_path):
    quietly(write_study(tmp_path, SEARCH), backend=Inline(most=1))
    with pytest.raises(StudyError, match=r"was started with \[search\] = .*trials=9.* says .*trials=8"):
        quietly(write_study(tmp_path, SEARCH.replace("trials = 9", "trials = 8")))
