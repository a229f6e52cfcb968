"""Settings that estimates choose: by hand, and in a game whose best setting is known."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import pytest
from choosing_toys import LOGGED, SIMULATED, estimate_of, train_and_estimate, write_climb
from study_toys import STUDY, Inline, quietly, train_toy, write_study

import torchrl_marl_offline.study.scores as scores_module
import torchrl_marl_offline.study.training as training_module
from torchrl_marl_offline.study import Plan, StudyError, read_results
from torchrl_marl_offline.study.jobs import job_state
from torchrl_marl_offline.study.report_estimates import StudyEstimates, regret_of
from torchrl_marl_offline.study.run_estimates import (
    JobEstimates,
    choose_by_estimates,
    read_estimates,
    save_estimates,
)
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.study.scores import RunScore, choose
from torchrl_marl_offline.study.study_report import make_report, write_study_report
from torchrl_marl_offline.study.training import train_population

pytestmark = pytest.mark.filterwarnings("ignore:.*repeat an earlier one exactly")
GRID = "grid.temperature = [0.001, 5.0]"


def run_of(lr: float, seed: int = 0) -> Run:
    return Run(f"{lr}/{seed}", "d", "m", seed, {"lr": lr}, {})


# ------------------------------------------------------------------------ by hand


def test_the_highest_mean_over_seeds_is_chosen_of_what_may_compete():
    runs = [run_of(lr, seed) for lr in (1, 2, 3, 4) for seed in (0, 1)]
    means = {"1/0": 1.0, "1/1": 3.0, "2/0": 3.0, "2/1": 2.0, "3/0": 99.0, "3/1": 0.0, "4/0": 50.0, "4/1": math.nan}
    estimates = {name: estimate_of(mean, is_possible=name != "3/0") for name, mean in means.items()}
    choice = choose_by_estimates(runs, estimates)["d", "m"]
    assert [each.setting for each in choice.ranking] == ["lr 2", "lr 1"] and choice.excluded == ("lr 3", "lr 4")
    assert choice.best.mean == 2.5 and choice.best.over_seeds().mean == 2.5
    del estimates["2/1"]  # its run has stopped being finite
    assert choose_by_estimates(runs, estimates)["d", "m"].best.setting == "lr 1"
    assert choose_by_estimates(runs, {}) == {}


def test_intervals_are_of_the_mean_of_the_runs_resample_by_resample():
    one, other = estimate_of(1.0), replace(estimate_of(3.0), values=[4.0, 2.0])
    interval, better = one.pooled([other])
    assert interval.mean == 2.0  # resamples: (0.5 + 4) / 2 and (1.5 + 2) / 2
    half = 12.7062047364 * math.sqrt(2) * 0.25  # Student's t of one degree, deviation of 2.25 and 1.75
    assert interval.high - interval.mean == pytest.approx(half, rel=1e-6)
    assert better.mean == 1.0 and 0.5 < better.probability < 1.0


def test_the_regret_is_what_the_best_setting_earns_more():
    scores = [
        RunScore(run_of(lr, seed), "mode", value, 0.0, 0.0, False)
        for lr, values in ((1, (1.0, 2.0)), (2, (4.0, 3.0)), (3, (9.0,)))
        for seed, value in enumerate(values)
    ]
    found = regret_of("lr 1", scores)
    assert (found.best, found.best_score, found.chosen_score) == ("lr 2", 3.5, 1.5)
    assert found.regret.mean == 2.0 and found.regret.half_width == pytest.approx(12.7062, rel=1e-4)
    assert regret_of("lr 2", scores).regret == (0.0, 0.0, 0.0)
    assert regret_of("lr 3", scores) is None and regret_of("lr 4", scores) is None
    metrics = {"d": "return"}
    assert choose(scores, metrics, {("d", "m"): "lr 1"})["d", "mode", "m"].setting == "lr 1"
    assert choose(scores, metrics, {}) == {}  # what has no estimate is not chosen by its score instead


def test_a_damaged_file_of_estimates_is_named(tmp_path):
    found = JobEstimates("fqe", 0.9, [1.0, 0.0, 2.0], 3.0, "passed", True, ("a",), {"r": estimate_of(2.0)})
    save_estimates(tmp_path, found)
    assert read_estimates(tmp_path).runs["r"].mean == 2.0 and read_estimates(tmp_path / "none") is None
    for text in ("{}", "[", '{"runs": {"r": {}}}', "3"):
        (tmp_path / "estimates.json").write_text(text)
        with pytest.raises(StudyError, match=r"estimates\.json is damaged; delete its folder, and run the study again"):
            read_estimates(tmp_path)


def test_a_calibration_that_failed_stands_for_the_dataset():
    good = JobEstimates("fqe", 0.9, [1, 0, 2], 3, "good", True, ("a",), {})
    bad = replace(good, verdict="bad", is_calibrated=False, warnings=("b",))
    found = StudyEstimates("fqe", {"d": [good, bad]})
    assert found.judged("d").verdict == "bad" and found.warnings("d") == ["a", "b"]


# ------------------------------------------------------------------------ a game whose best setting is known


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A study of the same logs with and without a simulator, and what each job was trained and estimated on."""
    folder, seen = tmp_path_factory.mktemp("climb"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores_module, "RESAMPLES", 20)
        patch.setattr(scores_module, "PAIR_RESAMPLES", 20)
        original = training_module.split_for
        patch.setattr(training_module, "split_for", lambda *args: seen.append(original(*args)) or seen[-1])
        file = write_climb(folder, mix=GRID, datasets=f"{SIMULATED}\n{LOGGED}")
        assert quietly(file, train=train_population).failed == {}
        write_study_report(folder / "out")
    return folder / "out", seen


def test_fitted_q_evaluation_chooses_the_setting_that_the_simulator_would(climbed):
    report = make_report(Plan.load(climbed[0]), climbed[0])
    assert report.estimates.settings() == {("known", "mix"): "temperature 5.0", ("logged", "mix"): "temperature 5.0"}
    for dataset in ("known", "logged"):
        best, worse = report.estimates.choices[dataset, "mix"].ranking
        assert best.mean > 8 and worse.mean < 3  # (0, 0) pays 10, (1, 1) pays 0
    shown = {key: choice.setting for key, choice in report.choices.items()}
    assert shown == {("known", "mode", "mix"): "temperature 5.0"}


def test_no_run_is_trained_on_an_episode_that_it_is_estimated_on(climbed):
    assert len(climbed[1]) == 2
    for train, held_out in climbed[1]:
        assert (train.n_episodes, held_out.n_episodes) == (40, 40)
        steps = [part.metadata["provenance"][-1] for part in (train, held_out)]
        assert [step.pop("part") for step in steps] == ["train", "held_out"] and steps[0] == steps[1]


def test_a_report_without_a_simulator_has_estimates_in_the_place_of_scores(climbed):
    text = (climbed[0] / "report.md").read_text()
    known, logged = (part for part in text.split("\n## ") if part.startswith(("known\n", "logged\n")))
    for part in (known, logged):
        assert "### Estimated by fqe on held-out episodes" in part and "Calibration: passed, the logged" in part
        assert "| method | setting | seeds | estimate | over seeds | better than logged by | P(better) |" in part
        assert "Every setting: estimates, best first" in part and part.count("| mix | temperature 0.001 |") > 0
    assert (
        "Regret: the score of its best setting" in known
        and "| mix | mode | temperature 5.0 | temperature 5.0 |" in known
    )
    assert known.count("| 0 |") >= 1 and "Regret" not in logged
    assert "is a diagnosis" in logged and "With [study] select" not in logged
    assert "Of a grid, the setting is shown whose estimate by fqe is highest" in text and "is optimistic" not in text
    html = (climbed[0] / "report.html").read_text()
    assert html.count("Estimated by fqe on held-out episodes") == 2 and html.count("Calibration: passed") == 2


def test_estimates_as_files(climbed):
    with (climbed[0] / "estimates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["dataset"], row["setting"], row["seeds"]) for row in rows] == [
        ("known", "temperature 5.0", "2"),
        ("logged", "temperature 5.0", "2"),
    ]
    assert float(rows[1]["estimate_low"]) <= float(rows[1]["estimate"]) <= float(rows[1]["estimate_high"])
    assert rows[1]["calibrated"] == "True" and 0.9 < float(rows[1]["improvement"]) <= 1
    form = json.loads((climbed[0] / "estimates.json").read_text())
    regret = form["datasets"]["known"]["methods"]["mix"]["regret"]["mode"]
    assert form["by"] == "fqe" and regret["regret"]["mean"] == 0 and regret["best"] == "temperature 5.0"
    logged = form["datasets"]["logged"]
    assert logged["is_calibrated"] is True and "regret" not in logged["methods"]["mix"]
    assert [each["setting"] for each in logged["methods"]["mix"]["settings"]] == [
        "temperature 5.0",
        "temperature 0.001",
    ]
    latex = (climbed[0] / "estimates.tex").read_text()
    assert latex.count(r"\multicolumn{6}") == 2 and latex.count(r"\textbf{") == 2 and "{llrrrr}" in latex
    assert "logged" not in (climbed[0] / "table.csv").read_text()
    frame = read_results(climbed[0])
    rows = frame[frame["evaluator"] == "fqe"]
    assert len(rows) == 2 * 2 * 2 and rows["estimate"].notna().all() and set(rows["step"]) == {120}


@pytest.mark.parametrize("by", [pytest.param("wis", marks=pytest.mark.thorough), "dr"])
def test_weights_choose_it_too(tmp_path, by):
    file = write_climb(tmp_path, study=f'select = "{by}"\n', mix=GRID, datasets=LOGGED, more="cloning.steps = 100")
    lines = file.read_text().replace("seeds = 2", "seeds = 1").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if by == "dr" or not line.startswith("fitting")))  # of critics
    assert quietly(file, train=train_population).remaining == 0
    found = make_report(Plan.load(tmp_path / "out"), tmp_path / "out").estimates
    assert found.settings() == {("logged", "mix"): "temperature 5.0"} and found.by == by


def test_runs_with_memory_are_estimated_too(tmp_path):
    """Runs, critics and the clone with memory, by the critics and by weights."""
    remembers = 'memory = "gru"\nmemory_size = 4\nslice_len = 4\nburn_in = 1\n'
    more = 'cloning = { steps = 3, memory = "window:2" }'
    file = write_climb(tmp_path, study='select = "dr"\n', mix=remembers, datasets=LOGGED, more=more)
    short = {"seeds = 2": "seeds = 1", "steps = 120": "steps = 2", "every = 60": "every = 1"}
    short |= {"steps = 150": 'steps = 2, memory = "gru", memory_size = 4'}
    text = file.read_text()
    for old, new in short.items():
        assert old in text
        text = text.replace(old, new, 1)
    file.write_text(text)
    backend = Inline()
    assert quietly(file, train=train_population, backend=backend).failed == {}
    (found,) = read_estimates(tmp_path / "out/jobs" / backend.seen[0]).runs.values()
    assert found.is_usable


def test_a_job_that_is_stopped_before_its_estimate_makes_it_later(tmp_path, monkeypatch):
    file = write_climb(tmp_path, mix="", datasets=LOGGED)
    file.write_text(file.read_text().replace("steps = 120", "steps = 2").replace("every = 60", "every = 1"))
    original = training_module.estimate_members

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_module, "estimate_members", stop)
    backend = Inline()
    quietly(file, train=train_population, backend=backend)
    folder = tmp_path / "out/jobs" / backend.seen[0]
    assert job_state(folder) == "begun" and read_estimates(folder) is None
    monkeypatch.setattr(training_module, "estimate_members", original)
    assert quietly(file, train=train_population).remaining == 0
    assert len(read_estimates(folder).runs) == 2


def test_too_few_episodes_are_said_before_a_job_trains(tmp_path):
    file = write_climb(tmp_path, mix="", datasets=f"{LOGGED}\nfraction = 0.2")
    with pytest.raises(StudyError, match=r"an estimate needs 8 or more") as raised:
        file.write_text(file.read_text().replace("held_out = 0.5", "held_out = 0.1"))
        quietly(file, train=train_toy)
    assert "[offline] held_out = 0.1 holds 2 episodes of logged out" in str(raised.value)


def test_a_grid_that_is_chosen_by_estimates_is_shown_by_them(tmp_path, monkeypatch):
    monkeypatch.setattr(scores_module, "RESAMPLES", 20)
    monkeypatch.setattr(scores_module, "PAIR_RESAMPLES", 20)
    text = STUDY.replace("steps = 40", 'steps = 40\nselect = "fqe"').replace("[1, 3.0]", "[0.01, 1, 3.0]")
    quietly(write_study(tmp_path, text + "\n[offline]\nheld_out = 0.5\n"), train=train_and_estimate)
    report = make_report(Plan.load(tmp_path / "out"), tmp_path / "out")
    assert {choice.setting for key, choice in report.choices.items() if key[2] != "cloning"} == {"temperature 1.0"}
