from __future__ import annotations

import re
from dataclasses import replace

import matplotlib.image
import numpy
import pandas
import pytest
from study_toys import STUDY, Inline, quietly, train_toy, write_study

import torchrl_marl_offline.study.scores as scores_module
from torchrl_marl_offline.commands.study import main
from torchrl_marl_offline.core.document import Heading, Picture, Table, Text, to_html, to_markdown
from torchrl_marl_offline.study import Plan, StudyError, read_results, read_study
from torchrl_marl_offline.study.figures import plot_curves
from torchrl_marl_offline.study.jobs import Job, Progress, Trained
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.study.scores import (
    RunScore,
    averaged_in_words,
    choose,
    choose_metrics,
    mean_and_iqm,
    performance_profile,
    score_matrix,
    scores_of,
)
from torchrl_marl_offline.study.study_report import write_study_report
from torchrl_marl_offline.training import CsvTable, read_csv
from torchrl_marl_offline.training.run.metrics import DIAGNOSES

TWO = STUDY.replace("[grid]", '[datasets.other]\ntask = "mpe/simple_spread"\nepisodes = 30\n\n[grid]')


def score(dataset="d", method="m", seed=0, grid=None, average=0.0, last=0.0, best=0.0) -> RunScore:
    grid = grid or {}
    run = Run(f"{dataset}{method}{seed}{grid}", dataset, method, seed, grid, grid)
    return RunScore(run, "mode", average, last, best, False)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(scores_module, "RESAMPLES", 20)
    monkeypatch.setattr(scores_module, "PAIR_RESAMPLES", 20)


def test_the_readings_of_a_curve(tmp_path):
    quietly(write_study(tmp_path), only=["cloning"])
    plan, frame = Plan.load(tmp_path / "out"), read_results(tmp_path / "out")
    values = frame[frame["run"] == "spread--cloning--seed=1"]["return"].tolist()
    assert len(values) == 4
    found = scores_of(plan, frame, {"spread": "return"})
    (one,) = [s for s in found if s.run.seed == 1]
    assert (one.last, one.best) == (values[-1], max(values))
    assert one.average_of_last == pytest.approx(sum(values) / 4)  # of the last five there are four
    frame.loc[frame["run"] == "spread--cloning--seed=1", "finished"] = False
    assert {s.run.seed for s in scores_of(plan, frame, {"spread": "return"})} == {0, 2}


def test_the_best_setting_has_the_best_mean_over_all_seeds():
    scores = [score(seed=s, grid={"lr": 1}, average=a) for s, a in ((1, 4.0), (0, 6.0))]
    scores += [score(seed=s, grid={"lr": 2}, average=a) for s, a in ((0, 9.0), (1, 0.0))]
    scores += [score(seed=0, grid={"lr": 3}, average=100.0)]  # one seed does not compete with two
    choice = choose(scores, {"d": "return"})["d", "mode", "m"]
    assert choice.setting == "lr 1" and choice.candidates == 2
    assert choice.values("average_of_last") == [6.0, 4.0]  # by seed
    assert choose(scores, {"d": "agreement"}) == choose(scores, {"d": "action_error"}) == {}


def test_datasets_are_put_together_by_the_seeds_that_all_have():
    scores = [score("a", seed=s, average=10.0 + s) for s in (0, 1, 2)]
    scores += [score("b", seed=s, average=s) for s in (1, 2, 3)]
    choices = choose(scores, {"a": "return", "b": "return"})
    matrix = score_matrix([choices["a", "mode", "m"], choices["b", "mode", "m"]], "average_of_last")
    assert matrix.tolist() == [[11.0, 1.0], [12.0, 2.0]]


def test_intervals_are_rliables():
    mean, iqm = mean_and_iqm(numpy.array([[1.0], [2.0], [3.0], [100.0]]))
    assert mean.mean == 26.5 and iqm.mean == 2.5  # the lowest and the highest quarter are left out
    assert 1 <= mean.low < 26.5 < mean.high <= 100 and 1 <= iqm.low < iqm.high <= 100
    assert mean_and_iqm(numpy.array([[1.0], [2.0], [3.0], [100.0]])) == (mean, iqm)  # seeded
    same = mean_and_iqm(numpy.full((3, 2), 7.0))
    assert [tuple(interval) for interval in same] == [(7.0, 7.0, 7.0)] * 2
    alone = mean_and_iqm(numpy.array([[1.0, 3.0]]))
    assert tuple(alone[0]) == (2.0, 2.0, 2.0)
    # runs are resampled within each dataset: its mean stays between the datasets' own
    strata, _ = mean_and_iqm(numpy.array([[0.0, 10.0], [1.0, 11.0]]))
    assert 5.0 <= strata.low <= strata.mean == 5.5 <= strata.high <= 6.0


def test_a_performance_profile_counts_runs_above():
    profile = performance_profile({"m": numpy.array([[1.0], [2.0], [3.0], [4.0]])}, numpy.array([0.0, 2.5, 5.0]))
    assert [interval.mean for interval in profile["m"]] == [1.0, 0.5, 0.0]
    assert profile["m"][0] == (1.0, 1.0, 1.0) and profile["m"][1].low < 0.5 < profile["m"][1].high


def test_the_metric_is_the_first_that_a_dataset_has():
    frame = pandas.DataFrame({"dataset": ["a", "a", "b"], "normalized": [1.0, 2.0, None], "return": [3.0, 4.0, 5.0]})
    frame["length"] = 1.0
    assert choose_metrics(frame, "auto") == {"a": "normalized", "b": "return"}
    assert choose_metrics(frame, "length") == {"a": "length", "b": "length"}
    with pytest.raises(StudyError, match=r"b was not evaluated for 'normalized'; set \[study\] metric to one"):
        choose_metrics(frame, "normalized")
    with pytest.raises(StudyError, match="No run of this study has been evaluated yet; run it first"):
        choose_metrics(frame[:0], "auto")


def test_the_report_of_a_study(tmp_path, capsys, few_resamples):
    quietly(write_study(tmp_path, TWO))
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "report.html" in capsys.readouterr().out
    html, markdown = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    # self-contained: whatever it shows is in it, and its script asks for nothing
    assert not re.search(r"https?://|<link|src=(?!\"data:image/png;base64,)|fetch|XMLHttp|import\b", html)
    assert re.findall(r"<script.*?>", html) == ["<script>"]
    pictures = re.findall(r"!\[.*?\]\((report/.*?\.png)\)", markdown)
    assert (
        len(pictures) == html.count("data:image/png;base64,") == 2 + 2 * 2
    )  # profile, improvement; bars and curves a dataset
    assert all((tmp_path / "out" / picture).exists() for picture in pictures)
    assert "Of a grid, the setting is shown whose average of the last 5 evaluations (of all, where " in markdown
    assert "incomplete" not in markdown
    assert "## 2 datasets, normalized score (0 random, 100 expert), by the deterministic policy" in markdown
    assert markdown.count("<details><summary>Every setting of the grid: means over seeds</summary>") == 2
    row = next(line for line in markdown.splitlines() if line.startswith("| mix-mixer | temperature"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:4] == ["3", "0"] and all(re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", cell) for cell in cells[4:])
    frame = read_results(tmp_path / "out")
    chosen = frame[(frame["dataset"] == "spread") & (frame["method"] == "mix-mixer") & (frame["temperature"] == 1)]
    assert cells[4].startswith(f"{chosen['normalized'].mean():.4g} [")


# ------------------------------------------------------------------- without a simulator


def without_simulator(names=("spread",)):
    """Make the toys' evaluations of some datasets those of held-out episodes."""

    def train(job: Job, progress: Progress) -> Trained:
        trained = train_toy(job, progress)
        if job.population.dataset in names:
            for file in job.folder.glob("members/*/eval.csv"):
                table = CsvTable(file.with_name("new.csv"))
                for row in read_csv(file):
                    table.append({"step": row["step"], "evaluator": "held-out episodes", "agreement": row["return"]})
                file.with_name("new.csv").rename(file)
        return trained

    return train


@pytest.mark.fault("3.12")
def test_agreement_with_the_data_is_a_diagnosis_that_nothing_is_ranked_or_chosen_by(tmp_path, few_resamples):
    """One dataset has a simulator, one has none: of the second every setting is shown, in the plan's order."""
    quietly(write_study(tmp_path, TWO, seeds=2), train=without_simulator(("spread",)))
    plan, frame = Plan.load(tmp_path / "out"), read_results(tmp_path / "out")
    metrics = choose_metrics(frame, "auto")
    assert metrics == {"spread": "agreement", "other": "normalized"}
    assert {dataset for dataset, _, _ in choose(scores_of(plan, frame, metrics), metrics)} == {"other"}
    text = write_study_report(tmp_path / "out")[1].read_text()
    own = text[text.index("\n## spread") : text.index("\n## other")]
    assert "share of recorded actions that the policy takes" in own and "is a diagnosis: cloning is best at it" in own
    shown = own.partition("<details>")[0]  # without the folded list of runs
    rows = [line.split(" | ") for line in shown.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert [row[:2] for row in rows] == [
        ["| mix-mixer", "temperature 1.0"],
        ["| mix-mixer", "temperature 3.0"],
        ["| mix-vdn", "temperature 1.0"],
        ["| mix-vdn", "temperature 3.0"],
        ["| cloning", ""],
    ]
    for word in ("best:", "IQM", "average of last", "methods-spread", "profile", "Every setting of the grid"):
        assert word not in own, word
    assert "## 2 datasets" not in text  # one alone is compared
    assert "methods-other" in text and "best: mean" in text
    pictures = {file.name for file in (tmp_path / "out" / "report").iterdir()}
    assert not {name for name in pictures if "agreement" in name or name.startswith("methods-spread")}


@pytest.mark.fault("3.12")
def test_a_study_without_any_simulator_is_reported_too(tmp_path, few_resamples):
    quietly(write_study(tmp_path, seeds=1), train=without_simulator(), only=["cloning"])
    text = write_study_report(tmp_path / "out")[1].read_text()
    assert "| cloning |  | 1 | 0 | " in text and "is a diagnosis" in text and "profile" not in text
    assert "Of a grid" not in text


@pytest.mark.fault("3.12")
@pytest.mark.parametrize("metric", DIAGNOSES)
def test_a_study_may_not_compare_by_a_diagnosis(tmp_path, metric):
    file = write_study(tmp_path, STUDY.replace("steps = 40", f'steps = 40\nmetric = "{metric}"'))
    with pytest.raises(StudyError, match=rf"metric '{metric}' says how like the recorded data .*leave metric out"):
        read_study(file)
    with pytest.raises(StudyError, match=rf"metric '{metric}' says how like"):
        choose_metrics(pandas.DataFrame({"dataset": ["a"], metric: [1.0]}), metric)


@pytest.mark.fault("3.12")
def test_datasets_without_a_simulator_keep_their_diagnosis_beside_a_metric_that_is_named():
    frame = pandas.DataFrame({"dataset": ["a", "b", "c"], "return": [1.0, None, None]})
    frame["agreement"], frame["action_error"] = [None, 0.5, None], [None, None, 0.1]
    expected = {"a": "return", "b": "agreement", "c": "action_error"}
    assert choose_metrics(frame, "return") == choose_metrics(frame, "auto") == expected


# ------------------------------------------------------------------- what a page says


@pytest.mark.fault("6.3")
def test_averages_say_over_how_many_evaluations_they_go(tmp_path, few_resamples):
    quietly(write_study(tmp_path, STUDY.replace("every = 10", "every = 20"), seeds=1), only=["cloning"])
    text = write_study_report(tmp_path / "out")[1].read_text()
    assert "| average of last 2: mean | average of last 2: IQM |" in text
    assert "average of last 5" not in text
    mixed = [replace(score(), averaged=count) for count in (2, 5, 3)]
    assert averaged_in_words(mixed) == "average of last 2 to 5"


@pytest.mark.fault("6.3")
def test_settings_that_all_runs_share_are_those_of_all_methods(tmp_path, few_resamples):
    quietly(write_study(tmp_path, seeds=1))
    text = write_study_report(tmp_path / "out")[1].read_text()
    shared = text[text.index("Settings that all runs share") :].partition("</details>")[0]
    own = text[text.index("<summary>Settings of mix-vdn") :].partition("</details>")[0]
    cloning = text[text.index("<summary>Settings of cloning") :].partition("</details>")[0]
    assert "| batch_size | 32 |" in shared
    for name in ("expectile", "svn", "decomposition", "algorithm", "temperature"):
        assert f"| {name} |" not in shared
    assert "| decomposition | vdn |" in own and "| expectile | 0.9 |" in own and "temperature" not in own
    assert "| algorithm | cloning |" in cloning and "batch_size" not in cloning


@pytest.mark.fault("6.3")
def test_a_table_of_six_intervals_fits_a_page():
    cells = ["mix-vdn", "temperature 1", "5", "0", *["1234.5 [1200.1, 1300.9]"] * 6]
    html = to_html([Table([f"average of last {i}: mean" for i in range(10)], [cells])], "t")
    assert len(re.findall(r'<td class="number" [^>]*>1234.5<br><small>\[1200.1, 1300.9\]</small></td>', html)) == 6
    assert re.search(r"<td data-[^>]*>temperature 1</td>", html) and re.search(r'<td class="number" [^>]*>5</td>', html)
    style = html[html.index("th, td {") :].partition("}")[0]
    assert "overflow-wrap" in style and "nowrap" not in style  # headers wrap
    assert "overflow-x" not in html and "size: A4 landscape" in html  # nothing is scrolled out of sight


@pytest.mark.fault("6.3")
def test_a_curve_of_one_point_can_be_seen(tmp_path):
    seen = []
    for curve in ({10: [1.0, 2.0]}, {10: [1.0, 2.0], 20: [2.0, 3.0]}):
        path = plot_curves({"m": curve}, tmp_path / f"{len(curve)}.png", label="y", title="t")
        pixels = matplotlib.image.imread(path)[..., :3]
        blue = numpy.array([0x00, 0x72, 0xB2]) / 255
        inside = pixels[:, : int(0.7 * pixels.shape[1])]  # without the legend
        seen.append(int((abs(inside - blue).max(-1) < 0.1).sum()))
    assert seen[0] > 30 and seen[1] > 30


@pytest.mark.fault("3.16")
def test_runs_with_impossible_values_are_named(tmp_path, few_resamples):
    quietly(write_study(tmp_path, seeds=2), only=["mix-vdn"])
    text = write_study_report(tmp_path / "out")[1].read_text()
    assert "> **The values of 2 runs exceeded what the rewards of their data allow" in text
    assert "spread--mix-vdn--temperature=1--seed=1, spread--mix-vdn--temperature=3--seed=1." in text
    frame = read_results(tmp_path / "out")
    assert set(frame[frame["impossible_step"].notna()]["run"].str[-6:]) == {"seed=1"}
    table = next((tmp_path / "out").rglob("members/*temperature=1--seed=0/eval.csv"))
    table.write_text(table.read_text().splitlines()[0] + "\n")  # its rows are lost: it does not vanish without a word
    text = write_study_report(tmp_path / "out")[1].read_text()
    told = "1 finished runs have no evaluation in their files, and are in no table: "
    told += "spread--mix-vdn--temperature=1--seed=0."
    assert told in text.replace("\\", "")


def test_a_study_without_a_grid_says_nothing_of_one(tmp_path, few_resamples):
    quietly(write_study(tmp_path, STUDY.replace("temperature = [1, 3.0]", "")))
    assert "Of a grid" not in write_study_report(tmp_path / "out")[1].read_text()


def test_an_incomplete_study_can_be_reported_and_says_so(tmp_path, few_resamples):
    quietly(write_study(tmp_path), backend=Inline(most=2))
    text = write_study_report(tmp_path / "out")[1].read_text()
    assert "This study is incomplete: 6 of 15 runs are finished (9 new)." in text
    assert "\n| mix-mixer |" in text and "\n| cloning |" not in text


def test_a_method_that_is_not_on_all_datasets_is_reported_on_its_own(tmp_path, few_resamples):
    text = TWO.replace("[methods.cloning]", '[methods.cloning]\ndatasets = ["other"]')
    assert text != TWO
    quietly(write_study(tmp_path, text))
    text = write_study_report(tmp_path / "out")[1].read_text()
    assert "incomplete" not in text
    assert "Datasets: spread, other. Without runs on all of them, and so left out: cloning." in text
    spread, _, other = text.partition("## other")
    spread = spread[spread.index("## spread") :]
    assert "\n| cloning |" in other and "\n| cloning |" not in spread


def test_a_study_of_one_seed_can_be_reported(tmp_path, few_resamples):
    quietly(write_study(tmp_path, seeds=1))
    text = write_study_report(tmp_path / "out")[1].read_text()
    assert re.search(r"\| mix-mixer \| temperature \S+ \| 1 \| 0 \| [\d.]+ \| ", text)  # no interval


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(StudyError, match=r"has no plan.json; name the output folder of a study that was run"):
        write_study_report(tmp_path)
    with pytest.raises(StudyError, match=r"There is no table .*; run the study"):
        read_results(tmp_path)


def test_a_page_escapes_what_it_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    blocks = [
        Heading("a < b", 1),
        Text("careful & slow", warning=True),
        Table(["x", "y|z"], [["<1>", "2"]]),
        Table(["x"], [["3"]], summary="more"),
        Picture(tmp_path / "a.png", 'a "picture"'),
    ]
    html, markdown = to_html(blocks, "t < u"), to_markdown(blocks, tmp_path)
    assert "<title>t &lt; u</title>" in html and "<h1>a &lt; b</h1>" in html
    assert '<p class="warning">careful &amp; slow</p>' in html and '<td data-label="x">&lt;1&gt;</td>' in html
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in html and "a &quot;picture&quot;" in html
    assert "<details><summary>more</summary>" in html
    assert "# a < b" in markdown and "> **careful & slow**" in markdown and "| x | y\\|z |\n| --- | ---: |" in markdown
    assert '![a "picture"](a.png)' in markdown


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 1), (5, 4), (7, 3), (10, 2)])
def test_the_interquartile_mean_is_rliables(shape):
    metrics = pytest.importorskip("rliable.metrics")
    generator = numpy.random.default_rng(0)
    for _ in range(20):
        values = generator.normal(size=shape) * 10.0 ** generator.integers(-3, 4)
        assert scores_module.interquartile_mean(values) == metrics.aggregate_iqm(values)
