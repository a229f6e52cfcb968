"""What a report writes for other programs, and how its page sorts, links and compares."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy
import pandas
import pytest
from study_toys import STUDY, Inline, quietly, write_study

import torchrl_marl_offline.study.scores as scores_module
from torchrl_marl_offline.commands.study import main
from torchrl_marl_offline.core.document import Link, Links, Table, to_html, to_markdown
from torchrl_marl_offline.core.page_style import SCRIPT
from torchrl_marl_offline.study import StudyError, read_results
from torchrl_marl_offline.study.marl_eval import ABSOLUTE, environment_of, marl_eval_form
from torchrl_marl_offline.study.report_tables import latex_text, to_csv, to_latex
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.study.scores import Choice, RunScore, improvement, improvement_probabilities
from torchrl_marl_offline.study.sources import DatasetSource
from torchrl_marl_offline.study.study_report import write_study_report

TWO = STUDY.replace("[grid]", '[datasets.other]\ntask = "mpe/simple_spread"\nepisodes = 30\n\n[grid]')


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    """A finished study of two datasets and three methods, with its report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores_module, "RESAMPLES", 20)
        patch.setattr(scores_module, "PAIR_RESAMPLES", 20)
        folder = tmp_path_factory.mktemp("study")
        quietly(write_study(folder, TWO, seeds=2))
        write_study_report(folder / "out", figures=("svg",))
    return folder / "out"


# ------------------------------------------------------------------- marl-eval


def check_marl_eval(form: dict) -> None:
    """Check the rules that marl-eval documents for raw experiment data."""
    for environment, tasks in form.items():
        assert environment == environment.lower()
        assert len({tuple(algorithms) for algorithms in tasks.values()}) == 1  # the same on every task
        runs = [run for algorithms in tasks.values() for run in algorithms.values()]
        assert len({tuple(run) for run in runs}) == 1  # found by name in every algorithm
        counts, metrics = set(), set()
        for task, algorithms in tasks.items():
            assert task == task.lower()
            for algorithm, of_algorithm in algorithms.items():
                assert "," not in algorithm
                for steps in of_algorithm.values():
                    *names, last = steps
                    assert last == "absolute_metrics"  # the last entry
                    assert names == [f"step_{number}" for number in range(1, len(names) + 1)]
                    counts.add(tuple(steps[name]["step_count"] for name in names))
                    for name, values in steps.items():
                        own = {key: value for key, value in values.items() if key != "step_count"}
                        assert ("step_count" in values) == (name != last)
                        metrics.add(tuple(own))
                        assert all(len(value) == 1 and math.isfinite(value[0]) for value in own.values())
        assert len(counts) == len(metrics) == 1 and all(name == name.lower() for name in next(iter(metrics)))
        (steps,) = counts
        assert steps and all(type(step) is int for step in steps) and list(steps) == sorted(set(steps))


def test_results_in_marl_evals_form(reported):
    form = json.loads((reported / "marl_eval-mode.json").read_text())
    check_marl_eval(form)
    assert list(form) == ["mpe"] and list(form["mpe"]) == ["spread", "other"]
    assert list(form["mpe"]["spread"]) == ["mix-mixer", "mix-vdn", "cloning"]
    run = form["mpe"]["spread"]["cloning"]["seed_1"]
    frame = read_results(reported)
    own = frame[frame["run"] == "spread--cloning--seed=1"].set_index("step")
    assert [run[name]["step_count"] for name in run if name != ABSOLUTE] == [10, 20, 30, 40]
    assert run["step_2"]["return"] == [own.loc[20, "return"]] and set(run[ABSOLUTE]) == {"return", "normalized"}
    assert run[ABSOLUTE]["return"][0] == pytest.approx(own["return"].mean())


@pytest.mark.parametrize("broken", ["runs", "steps", "metrics", "order"])
def test_the_check_of_the_form_finds_what_is_wrong(reported, broken):
    form = json.loads((reported / "marl_eval-mode.json").read_text())
    of_algorithm = form["mpe"]["other"]["cloning"]
    run = of_algorithm["seed_1"]
    if broken == "runs":
        del of_algorithm["seed_1"]
    elif broken == "steps":
        del run["step_4"]
    elif broken == "metrics":
        del run["step_4"]["return"]
    else:
        run["step_5"] = {"step_count": 50, "return": [1.0], "normalized": [1.0]}
    with pytest.raises(AssertionError):
        check_marl_eval(form)


def choice(dataset: str, method: str, seeds: tuple[int, ...]) -> Choice:
    runs = [Run(f"{dataset}--{method}--{seed}", dataset, method, seed, {}, {}) for seed in seeds]
    return Choice(tuple(RunScore(run, "mode", 1.0, 1.0, 1.0, False) for run in runs), 1)


def test_what_not_all_runs_have_is_left_out_and_named():
    choices = {
        ("a", "mode", "m, n"): choice("a", "m, n", (0, 1, 2)),
        ("b", "mode", "m, n"): choice("b", "m, n", (1, 2)),
        ("a", "mode", "alone"): choice("a", "alone", (0,)),
        ("other", "mode", "alone"): choice("other", "alone", (0,)),
    }
    rows = []
    for (dataset, _, method), one in choices.items():
        for score in one.scores:
            for step in (10, 20, 30) if dataset != "b" else (10, 30):
                facts = {"run": score.run.name, "evaluator": "mode", "step": step}
                rows.append(facts | {"return": float(step), "success": 0.5 if method == "m, n" else None})
    sources = {name: DatasetSource(name, task="mpe/simple_spread") for name in ("a", "b")}
    sources["other"] = DatasetSource("other", source="/data/Recorded")
    form, left_out = marl_eval_form(pandas.DataFrame(rows), choices, sources, evaluator="mode", last_k=2)
    check_marl_eval(form)
    assert left_out == ["mpe: methods alone", "mpe: seeds 0", "mpe: evaluations at 20"]
    assert list(form) == ["mpe", "recorded"] and list(form["mpe"]["b"]) == ["m n"]
    assert form["mpe"]["a"]["m n"]["seed_2"][ABSOLUTE] == {"return": [20.0], "success": [0.5]}
    assert marl_eval_form(pandas.DataFrame(rows), choices, sources, evaluator="other", last_k=2) == ({}, [])


def test_the_environment_is_the_family_of_the_task():
    assert environment_of(DatasetSource("x", task="MPE/simple_spread")) == "mpe"
    assert environment_of(DatasetSource("x", source="og_marl:smac_v1/3m/Good")) == "smac_v1"


# ------------------------------------------------------------------- tables


def test_scores_as_csv_and_latex(reported):
    rows = list(csv.DictReader((reported / "table.csv").read_text().splitlines()))
    assert [(row["dataset"], row["method"]) for row in rows[:3]] == [
        ("spread", "mix-mixer"),
        ("spread", "mix-vdn"),
        ("spread", "cloning"),
    ]
    own = read_results(reported)
    own = own[(own["dataset"] == "other") & (own["method"] == "cloning")]
    (row,) = [row for row in rows if (row["dataset"], row["method"]) == ("other", "cloning")]
    assert float(row["average_of_last_mean"]) == pytest.approx(own["normalized"].mean())
    assert float(row["average_of_last_mean_low"]) < float(row["average_of_last_mean"])
    assert (row["seeds"], row["averaged"], row["metric"], row["evaluator"]) == ("2", "4", "normalized", "mode")
    text = (reported / "table.tex").read_text()
    assert [text.count(rule) for rule in ("\\toprule", "\\bottomrule", "\\midrule", "\\textbf{")] == [1, 1, 4, 2]
    body = [line for line in text.splitlines() if line.startswith(("mix", "cloning"))]
    assert len(body) == 6 and all(line.count("&") == 4 and line.endswith("\\\\") for line in body)
    assert f"cloning &  & 2 & {float(row['average_of_last_mean']):.4g} [" in text.replace("$-$", "-")


def test_latex_shows_names_as_they_are():
    assert latex_text("a_b & 5% {x} #1 ~ ^ $ \\") == (
        "a\\_b \\& 5\\% \\{x\\} \\#1 \\textasciitilde{} \\textasciicircum{} \\$ \\textbackslash{}"
    )
    row = {"dataset": "d", "metric": "return", "evaluator": "mode", "averaged": "5", "method": "m", "setting": ""}
    numbers = {f"average_of_last_{name}{end}": -1.0 for name in ("mean", "iqm") for end in ("", "_low", "_high")}
    assert "m &  & 1 & \\textbf{$-$1} & $-$1 \\\\" in to_latex([row | numbers | {"seeds": 1}])


# ------------------------------------------------------------------- probability of improvement


def test_improvement_is_rliables():
    metrics = pytest.importorskip("rliable.metrics")
    generator = numpy.random.default_rng(0)
    for shape in ((2, 1), (3, 2), (5, 4)):
        x, y = (generator.integers(0, 4, shape).astype(float) for _ in range(2))  # with ties
        assert improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y))
    assert improvement(numpy.ones((2, 1)), numpy.ones((2, 1))) == 0.5


def test_probabilities_of_improvement_have_intervals():
    low, high = numpy.array([[1.0], [2.0], [4.0]]), numpy.array([[3.0], [5.0], [6.0]])
    found = improvement_probabilities({"high": high, "low": low, "same": low})
    assert list(found) == [("high", "low"), ("high", "same"), ("low", "same")]
    assert found["high", "low"].mean == pytest.approx(8 / 9)
    assert found["high", "low"].low < 8 / 9 <= found["high", "low"].high <= 1
    assert found["low", "same"].mean == 0.5
    assert found == improvement_probabilities({"high": high, "low": low, "same": low})  # seeded


def test_the_report_compares_pairs_or_says_why_not(reported, tmp_path, monkeypatch):
    text = (reported / "report.md").read_text()
    own = text[text.index("## Probability of improvement") :].partition("\n## ")[0]
    assert (
        re.search(r"\n\| mix-mixer \| mix-vdn \| [\d.]+( \[[\d.]+, [\d.]+\])? \|\n", own)
        and own.count("\n| mix-vdn |") == 1
    )
    assert "Datasets: spread, other." in own and (reported / "report" / "improvement-mode.png").exists()
    monkeypatch.setattr(scores_module, "RESAMPLES", 20)
    quietly(write_study(tmp_path, seeds=1))
    text = write_study_report(tmp_path / "out")[1].read_text()
    assert "It is left out: it compares two methods that have two finished seeds each" in text
    assert not (tmp_path / "out" / "report" / "improvement-mode.png").exists()


# ------------------------------------------------------------------- the page


def test_every_run_has_a_link_to_its_folder(reported):
    html = (reported / "report.html").read_text()
    links = [unquote(link) for link in re.findall(r'href="(.*?)"', html)]
    assert all((reported / link).exists() and not link.startswith(("/", "..")) for link in links)
    folders = {link for link in links if (reported / link).is_dir()}
    runs = set(read_results(reported)["run"])
    assert {Path(folder).name for folder in folders} == runs and len(runs) == 20
    assert {"table.csv", "table.tex", "marl_eval-mode.json"} <= set(links)


def test_runs_that_have_not_begun_have_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr(scores_module, "RESAMPLES", 20)
    quietly(write_study(tmp_path, seeds=1), backend=Inline(most=1))
    text = write_study_report(tmp_path / "out")[1].read_text()
    assert re.search(r"\| \[spread--mix-mixer--\S*seed=0\]\(jobs/\S+\) \| mix-mixer \| .* \| finished \|", text)
    assert re.search(r"\| spread--cloning--seed=0 \| cloning \|  \| 0 \| new \|", text)


def test_links_are_escaped(tmp_path):
    blocks = [Links("Files:", [Link("a<b", 'x "y".csv')]), Table(["run"], [[Link("[r](s)|", "jobs/a b/r)")]])]
    html, markdown = to_html(blocks, "t"), to_markdown(blocks, tmp_path)
    assert '<a href="x%20%22y%22.csv">a&lt;b</a>' in html and '<a href="jobs/a%20b/r%29">' in html
    assert "[a\\<b](x%20%22y%22.csv)" in markdown and "](jobs/a%20b/r%29) |" in markdown
    assert "(s)" not in markdown.replace("\\(s", "")


def test_the_figures_can_have_further_formats(reported, tmp_path, capsys):
    names = {path.name for path in (reported / "report").iterdir()}
    assert {Path(name).stem for name in names if name.endswith(".svg")} == {
        Path(name).stem for name in names if name.endswith(".png")
    }
    with pytest.raises(ValueError, match="figures must be 'png', 'pdf' or 'svg', got 'gif'"):
        write_study_report(reported, figures=["gif"])
    with pytest.raises(SystemExit):
        main(["report", str(reported), "--figures", "gif"])
    assert "--figures" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_click_sorts_a_table():
    """The script in a page of the least that it asks for: numbers by size, words in their order, empty cells last."""
    page = """
    const make = (text, name) => ({ textContent: text, className: name });
    const rows = [["b", "10[9, 11]"], ["a", "-2"], ["c", ""]].map(([word, number]) =>
      ({ cells: [make(word, ""), make(number, "number")] }));
    const head = name => ({ className: name, attributes: {}, on: {},
      getAttribute(key) { return this.attributes[key]; }, setAttribute(key, value) { this.attributes[key] = value; },
      addEventListener(kind, what) { this.on[kind] = what; } });
    const heads = [head(""), head("number")];
    const body = { rows, append(...sorted) { this.rows = sorted; } };
    const document = { querySelectorAll: () => [{ tHead: { rows: [{ cells: heads }] }, tBodies: [body] }] };
    """
    clicks = """
    const seen = [];
    for (const column of [0, 0, 1, 1]) {
      heads[column].on.click();
      seen.push(body.rows.map(row => row.cells[0].textContent).join(""));
    }
    console.log(seen.join(" "));
    """
    said = subprocess.run(["node", "-e", page + SCRIPT + clicks], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["abc", "cba", "bac", "abc"]


def test_choices_of_another_evaluator_have_a_file_of_their_own(tmp_path):
    both = {("a", way, "m"): choice("a", "m", (0,)) for way in ("mode", "sample")}
    both["a", "sample", "m"] = Choice(tuple(replace(s, evaluator="sample") for s in both["a", "sample", "m"].scores), 1)
    rows = [{"run": "a--m--0", "evaluator": way, "step": 1, "return": v} for way, v in (("mode", 1.0), ("sample", 2.0))]
    sources = {"a": DatasetSource("a", task="mpe/simple_spread")}
    for way, value in (("mode", 1.0), ("sample", 2.0)):
        form, _ = marl_eval_form(pandas.DataFrame(rows), both, sources, evaluator=way, last_k=1)
        assert form["mpe"]["a"]["m"]["seed_0"][ABSOLUTE] == {"return": [value]}


def test_a_name_is_no_formula_and_no_line_break():
    rows = [{"dataset": name, "mean": -1.5} for name in ("=1+1", "@x", " +cmd", "-y", "plain")]
    cells = [line.rsplit(",", 1) for line in to_csv(rows).splitlines()[1:]]
    assert cells == [["'=1+1", "-1.5"], ["'@x", "-1.5"], ["' +cmd", "-1.5"], ["'-y", "-1.5"], ["plain", "-1.5"]]
    assert latex_text("a\n\nb") == "a b"


@pytest.mark.parametrize(
    "content", ['{"steps": 40, "div', "[]", "{}", '{"diverged": [], "impossible": {}}', '{"diverged": {"a": "b"}}']
)
def test_a_damaged_result_is_named_with_the_remedy(tmp_path, content):
    quietly(write_study(tmp_path, seeds=2))
    file = sorted((tmp_path / "out").rglob("result.json"))[0]
    file.write_text(content)
    wanted = (
        rf"{re.escape(str(file))} is damaged.*restore it, or delete {re.escape(str(file.parent))} and run the study"
    )
    for ask in (lambda: quietly(write_study(tmp_path, seeds=2)), lambda: write_study_report(tmp_path / "out")):
        with pytest.raises(StudyError, match=wanted):
            ask()


def test_a_damaged_curve_of_a_finished_job_is_named_with_the_remedy(tmp_path):
    quietly(write_study(tmp_path, seeds=2))
    file = sorted((tmp_path / "out").rglob("eval.csv"))[0]
    job = file.parents[2]
    lines = file.read_text().splitlines()
    cells = lines[2].split(",")
    column = lines[0].split(",").index("return")
    cells[column] = "abc"
    file.write_text("\n".join([*lines[:2], ",".join(cells), *lines[3:]]) + "\n")
    wanted = rf"{re.escape(str(file))} is damaged \('abc' stands among the numbers of return\); restore it, or delete"
    with pytest.raises(StudyError, match=wanted + rf" {re.escape(str(job))} and run the study again"):
        quietly(write_study(tmp_path, seeds=2))
    shutil.rmtree(job)
    quietly(write_study(tmp_path, seeds=2))
    assert "> **" not in write_study_report(tmp_path / "out")[1].read_text().replace("> **The values of", "")


@pytest.mark.parametrize("how", ["cut", "nan"])
def test_a_run_that_is_shown_by_an_earlier_evaluation_is_named(tmp_path, how):
    quietly(write_study(tmp_path, seeds=2))
    file = sorted((tmp_path / "out").rglob("eval.csv"))[0]
    assert "lack their evaluation" not in write_study_report(tmp_path / "out")[1].read_text()
    lines = file.read_text().splitlines()
    if how == "cut":
        file.write_text("\n".join(lines)[:-3])
    else:
        cells = dict(zip(lines[0].split(","), lines[-1].split(",")))
        cells |= {"return": "nan", "normalized": "nan"} if "normalized" in cells else {"return": "nan"}
        file.write_text("\n".join([*lines[:-1], ",".join(cells.values())]) + "\n")
    quietly(write_study(tmp_path, seeds=2))
    text = write_study_report(tmp_path / "out")[1].read_text().replace("\\", "")
    assert "1 finished runs lack their evaluation after the last update, as if their eval.csv had been cut, " in text
    assert f"by an earlier one, if by any: {file.parent.name.replace('%3D', '=')}." in text
