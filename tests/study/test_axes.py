"""Which choice matters: designs found among runs, shares of variance by contrasts, counts of the best by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy
import pytest

from torchrl_marl_offline.core.document import to_markdown
from torchrl_marl_offline.study.axes import DATASET, REST, Factorial, best_counts, factorial, variance_shares
from torchrl_marl_offline.study.report_axes import axes_section
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.study.scores import RunScore


def score(value: float, *, dataset: str = "spread", seed: int = 0, method: str = "m", **settings) -> RunScore:
    settings = {"algorithm": "recipe", "gamma": 0.9} | settings
    run = Run(f"{dataset}-{method}-{seed}", dataset, method, seed, {}, settings)
    return RunScore(run, "mode", value, value, value, False)


def recipe_runs() -> list[RunScore]:
    """Two decompositions and two extractions, each with two strengths of its own, two datasets, two seeds, cloning."""
    found = []
    for dataset, seed in itertools.product(("spread", "tag"), (0, 1)):
        for (i, critic), (j, rule) in itertools.product(enumerate(("vdn", "mixer")), enumerate(("awr", "brac"))):
            for k, strength in enumerate((1.0, 3.0) if rule == "awr" else (0.1, 0.5)):
                own = {"temperature" if rule == "awr" else "alpha": strength}
                value = 100 * i + 10 * j + k + 1000 * (dataset == "tag")
                method = f"{critic}-{rule}-{strength}"
                settings = {"decomposition": critic, "extraction": rule, **own}
                found.append(score(value, dataset=dataset, seed=seed, method=method, **settings))
        found.append(score(7.0, dataset=dataset, seed=seed, method="cloning", algorithm="cloning"))
    return found


def test_the_design_of_a_study_is_found() -> None:
    found = factorial(recipe_runs())
    assert dict(found.axes) == {
        DATASET: ("spread", "tag"),
        "decomposition": ("vdn", "mixer"),
        "extraction": ("awr", "brac"),
        REST: (1, 2),
    }
    assert found.scores.shape == (2, 2, 2, 2, 2)
    for d, i, j, k, s in itertools.product(range(2), repeat=5):
        assert found.scores[d, i, j, k, s] == 1000 * d + 100 * i + 10 * j + k


def test_what_is_no_complete_design_is_none() -> None:
    runs = recipe_runs()
    assert factorial([]) is None
    assert factorial(runs[:-3]) is None  # a run of the last seed is not finished
    one_axis = [each for each in runs if each.run.settings.get("temperature") == 1.0]
    assert factorial(one_axis) is None  # decompositions alone
    uneven = [each for each in runs if not (each.run.settings.get("alpha") == 0.5 and each.run.dataset == "tag")]
    assert factorial(uneven) is None  # one strength of BRAC and two of AWR, on one of two datasets


def figure_7_runs(value) -> list[RunScore]:
    """Normalization for one decomposition alone, an ablation of it, an expectile of one rule, a strength of each other.

    ``value`` is the score by decomposition, rule of value learning, extraction and number of the strength.
    """
    found = []
    critics = [("mixer", False), ("mixer", True), ("vdn", None)]
    rules = [("td", None), ("iql", 0.7), ("iql", 0.9)]
    for (critic, frozen), (rule, expectile), extraction, k in itertools.product(
        critics, rules, ("awr", "brac"), (0, 1)
    ):
        own = {"decomposition": critic, "svn": critic == "mixer", "value_learning": rule, "extraction": extraction}
        own |= {} if frozen is None else {"frozen": frozen}
        own |= {} if expectile is None else {"expectile": expectile}
        own |= {"temperature": (1, 3)[k], "weights": "bounded"} if extraction == "awr" else {"alpha": (0.1, 0.5)[k]}
        method = f"{critic}-{frozen}-{rule}-{expectile}-{extraction}-{k}"
        found += [score(value(critic, frozen, rule, k), seed=seed, method=method, **own) for seed in (0, 1)]
    return found


def test_settings_that_another_one_decides_or_reads_are_no_axes_beside_it(tmp_path) -> None:
    runs = figure_7_runs(lambda critic, frozen, rule, k: {None: 1.0, False: 3.0, True: 5.0}[frozen])
    found = factorial(runs)
    assert dict(found.axes) == {
        "decomposition": ("mixer, frozen = False", "mixer, frozen = True", "vdn"),
        "value_learning": ("td", "iql, expectile = 0.7", "iql, expectile = 0.9"),
        "extraction": ("awr", "brac"),
        REST: (1, 2),
    }
    assert found.along == {"svn": "decomposition"}
    shares = {share.source: share.interval.mean for share in variance_shares(found, resamples=10)}
    assert shares.pop("decomposition") == pytest.approx(1.0) and max(shares.values()) < 1e-12
    best = {rank.value: (rank.best, rank.of) for rank in best_counts(found) if rank.axis == "decomposition"}
    assert best == {"mixer, frozen = False": (0, 12), "mixer, frozen = True": (12, 12), "vdn": (0, 12)}
    report = SimpleNamespace(evaluators=["mode"], metrics={"spread": "return"}, scores=runs)
    assert "svn has one value beside each of decomposition" in to_markdown(axes_section(report), tmp_path)


def test_interactions_and_strengths_of_such_a_design_by_hand() -> None:
    def value(critic, frozen, rule, k) -> float:
        return float((critic == "vdn") == (rule == "td")) + 10.0 * k

    shares = {share.source: share.interval.mean for share in variance_shares(factorial(figure_7_runs(value)))}
    cells = numpy.array([[(c == "vdn") == (r == "td") for r in ("td", "iql", "iql")] for c in ("m", "m", "vdn")], float)
    means = cells.mean(1, keepdims=True), cells.mean(0, keepdims=True)
    total = cells.var() + 25.0
    assert shares["decomposition"] == pytest.approx(means[0].var() / total)
    assert shares["value_learning"] == pytest.approx(means[1].var() / total)
    both = cells - means[0] - means[1] + cells.mean()
    assert shares["decomposition × value_learning"] == pytest.approx(both.var() / total)
    assert shares[REST] == pytest.approx(25.0 / total)


def test_settings_that_go_with_the_dataset_leave_the_design_complete() -> None:
    runs = recipe_runs()
    steps = {"spread": 10, "tag": 20}
    runs = [
        replace(each, run=replace(each.run, settings={**each.run.settings, "steps": steps[each.run.dataset]}))
        for each in runs
    ]
    found = factorial(runs)
    assert found.along == {"steps": DATASET} and found.axes == factorial(recipe_runs()).axes


def test_two_settings_that_vary_together_are_one_axis() -> None:
    pairs = itertools.product((("vdn", 64), ("mixer", 32)), ("awr", "brac"), (0, 1))
    runs = [
        score(float(size), seed=seed, method=f"{critic}-{rule}", decomposition=critic, batch_size=size, extraction=rule)
        for (critic, size), rule, seed in pairs
    ]
    found = factorial(runs)
    assert list(found.axes) == ["decomposition", "extraction"] and found.along == {"batch_size": "decomposition"}


def test_unequally_many_strengths_are_values_of_their_own() -> None:
    found = factorial([each for each in recipe_runs() if each.run.settings.get("alpha") != 0.5])
    assert (
        found.axes["extraction"] == ("awr, temperature = 1.0", "awr, temperature = 3.0", "brac")
        and REST not in found.axes
    )


@pytest.mark.parametrize("size", [1e300, 1e-300, 1e-200, 5e-324])
def test_shares_have_no_unit(size: float) -> None:
    scores = numpy.zeros((2, 2, 2))
    scores[1] = size
    shares = {
        share.source: share.interval.mean for share in variance_shares(Factorial({"a": (0, 1), "b": (0, 1)}, scores))
    }
    assert shares == pytest.approx({"a": 1.0, "b": 0.0, "a × b": 0.0, "seeds": 0.0})


def test_shares_are_those_of_orthogonal_contrasts() -> None:
    generator = numpy.random.default_rng(0)
    scores = generator.normal(size=(2, 2, 2, 5))
    found = {
        share.source: share for share in variance_shares(Factorial({"a": (0, 1), "b": (0, 1), "c": (0, 1)}, scores))
    }
    sign = numpy.array([-1.0, 1.0])
    a, b, c = sign[:, None, None, None], sign[None, :, None, None], sign[None, None, :, None]
    total = ((scores - scores.mean()) ** 2).sum()

    def contrast(x: numpy.ndarray) -> float:
        return float((scores * x).sum() ** 2 / scores.size / total)

    by_hand = {"a": contrast(a), "b": contrast(b), "c": contrast(c)}
    by_hand |= {"a × b": contrast(a * b), "a × c": contrast(a * c), "b × c": contrast(b * c)}
    by_hand["higher interactions"] = contrast(a * b * c)
    by_hand["seeds"] = 1 - sum(by_hand.values())
    assert by_hand.keys() == found.keys()
    for name, value in by_hand.items():
        assert found[name].interval.mean == pytest.approx(value, abs=1e-12), name
        assert found[name].interval.low <= found[name].interval.high
    assert sum(share.interval.mean for share in found.values()) == pytest.approx(1.0)


def test_one_setting_that_explains_everything_and_intervals_that_know_it() -> None:
    scores = numpy.zeros((3, 2, 4)) + numpy.array([0.0, 5.0, 9.0])[:, None, None]
    scores += 0.1 * numpy.random.default_rng(1).normal(size=scores.shape)
    first, *rest = variance_shares(Factorial({"big": (1, 2, 3), "none": (1, 2)}, scores), resamples=200)
    assert first.source == "big" and first.interval.low > 0.99
    assert all(share.interval.high < 0.01 for share in rest)
    assert [share.source for share in rest][-1] == "seeds"  # two axes have no higher interactions


def test_how_often_a_value_is_best_by_hand() -> None:
    means = numpy.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])  # three values in two configurations
    found = {
        (rank.axis, rank.value): rank
        for rank in best_counts(Factorial({"x": ("p", "q", "r"), "y": ("s", "t")}, means[..., None]))
    }
    assert [(found["x", v].best, found["x", v].first_two, found["x", v].of) for v in "pqr"] == [
        (1, 1, 2),
        (0, 2, 2),
        (1, 1, 2),
    ]
    assert [(found["y", v].best, found["y", v].of) for v in "st"] == [(2, 3), (2, 3)]  # q ties
    assert found["x", "p"].mean == 2.0


def test_the_report_of_a_factorial_study_says_it(tmp_path) -> None:
    report = SimpleNamespace(
        evaluators=["mode"], metrics={"spread": "normalized", "tag": "normalized"}, scores=recipe_runs()
    )
    text = to_markdown(axes_section(report), tmp_path)
    assert "Which choice matters" in text
    assert "2 dataset × 2 decomposition × 2 extraction × 2 strength × 2 seeds" in text
    assert "| decomposition | mixer | 605.5 | 8 of 8 | 8 of 8 |" in text
    report.metrics = {"spread": "return", "tag": "return"}  # which do not mean the same
    assert axes_section(report) == []


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e9])
def test_scores_that_are_all_alike_leave_nothing_to_explain(tmp_path, value) -> None:
    """As where no run earns a sparse reward: the seeds do not explain all of it."""
    alike = [replace(each, average_of_last=value) for each in recipe_runs()]
    assert variance_shares(factorial(alike), resamples=10) == []
    report = SimpleNamespace(evaluators=["mode"], metrics={"spread": "normalized", "tag": "normalized"}, scores=alike)
    text = to_markdown(axes_section(report), tmp_path)
    assert "All scores are alike, so that there is no variance to explain." in text
    assert "| seeds |" not in text


def test_a_resample_without_variance_is_none_of_the_seeds() -> None:
    scores = numpy.zeros((2, 2, 2))
    scores[..., 1] = numpy.arange(4.0).reshape(2, 2)  # the first seed's runs are alike
    shares = {share.source: share.interval for share in variance_shares(Factorial({"a": (0, 1), "b": (0, 1)}, scores))}
    assert shares["seeds"].low == 0.0 and shares["seeds"].high < 1.0
    assert sum(interval.mean for interval in shares.values()) == pytest.approx(1)


def test_settings_that_are_tables_or_lists_of_lists_are_axes_too() -> None:
    def runs(values):
        pairs = itertools.product(values, ("vdn", "mixer"), (0, 1))
        return [
            score(float(seed), seed=seed, method=f"{i}", extra=extra, decomposition=critic)
            for i, (extra, critic, seed) in enumerate(pairs)
        ]

    for values in ([{"a": 1, "b": [1]}, {"a": 2, "b": [1]}], [[[1, 2], [3]], [[1], [3]]], [[64], [64, 64]]):
        assert factorial(runs(values)).scores.shape == (2, 2, 2)
