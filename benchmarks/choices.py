"""Which choice matters, quality by quality: the tables of a study of decomposition, value learning and extraction.

    python benchmarks/choices.py examples/studies/recipe_fig7_small.toml
    python benchmarks/choices.py examples/studies/default_setting.toml

Reads what the study has finished so far, and trains nothing. For each dataset: the score of every critic with each
extraction and strength, by mode, the average of the study's last ``last_k`` evaluations in its metric; the shares of
the scores' variance; how often each value is the best or the second beside the same others. Where there is a complete
design, also how often each decomposition is the best beside the same value learning and extraction at the better of its
strengths, and what training a mixer gains over a frozen one. A study's own report has the shares over all datasets
together.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from arguments import run_script, script_parser
from measuring import markdown, with_interval
from studies import as_study, digits_of, finished_results, over_seeds

from torchrl_marl_offline.study.axes import best_counts, factorial, variance_shares
from torchrl_marl_offline.study.scores import RunScore, choose_metrics, scores_of

CHOICES = ("value_learning", "extraction")
Key = tuple[str, ...]


def critic_of(score: RunScore, varied: Sequence[str] = ()) -> str:
    """Return the decomposition of a run, and what of its other settings is not as it is in every run.

    Args:
        score: of the run.
        varied: further settings in which runs differ; see :func:`varied_in`.
    """
    settings = score.run.settings
    parts = [f"frozen {settings['decomposition']}" if settings.get("frozen") else settings["decomposition"]]
    if not isinstance(settings.get("scale", "learned"), str):
        parts.append(f"deviation {settings['scale']}")
    if settings.get("advantage") == "local" and settings["decomposition"] != "independent":
        parts.append("local advantage")
    parts += [f"{name} {settings[name]}" for name in varied if name in settings and name not in score.run.grid]
    return ", ".join(parts)


def varied_in(scores: Sequence[RunScore]) -> list[str]:
    """Return the settings in which runs differ that have one decomposition, value learning, extraction and strength."""
    values: dict[Key, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for score in scores:
        alike = values[critic_of(score), *(score.run.settings[name] for name in CHOICES), score.setting]
        for name, value in score.run.settings.items():
            alike[name].add(repr(value))
    return list(dict.fromkeys(name for alike in values.values() for name in alike if len(alike[name]) > 1))


def cells_of(scores: Sequence[RunScore]) -> dict[Key, list[float]]:
    """Return the scores of all seeds by critic, value learning, extraction and setting of the grid."""
    cells: dict[Key, list[float]] = defaultdict(list)
    varied = varied_in(scores)
    for score in scores:
        choices = (score.run.settings[name] for name in CHOICES)
        cells[critic_of(score, varied), *choices, score.setting].append(score.average_of_last)
    return dict(cells)


def table(cells: Mapping[Key, Sequence[float]]) -> str:
    """Return a row for each critic and value learning, a column for each extraction and setting."""
    columns = list(dict.fromkeys(key[2:] for key in cells))
    digits = digits_of(value for values in cells.values() for value in values)
    rows = []
    for critic, learning in dict.fromkeys(key[:2] for key in cells):
        found = [cells.get((critic, learning, *column)) for column in columns]
        rows.append([f"{critic}, {learning}", *("" if each is None else _interval(each, digits) for each in found)])
    return markdown(["critic", *(", ".join(filter(None, column)) for column in columns)], rows)


def _interval(values: Sequence[float], digits: int) -> str:
    if len(values) == 2:
        return f"{sum(values) / 2:.{digits}f} ({min(values):.{digits}f}, {max(values):.{digits}f})"
    return with_interval(over_seeds(values), digits)


def best_of_strengths(cells: Mapping[Key, Sequence[float]]) -> tuple[Counter[str], Counter[str], int]:
    """Count how often each trained decomposition is the best, and the best or the second, at its better strength.

    Returns:
        Both counts, and of how many pairs of value learning and extraction.
    """
    means: dict[Key, dict[str, float]] = defaultdict(dict)
    for (critic, learning, rule, _), values in cells.items():
        if not critic.startswith("frozen "):
            of = means[learning, rule]
            of[critic] = max(of.get(critic, -float("inf")), sum(values) / len(values))
    best, first_two = Counter(), Counter()
    for of in means.values():
        order = sorted(of, key=of.__getitem__, reverse=True)
        best.update(order[:1])
        first_two.update(order[:2])
    return best, first_two, len(means)


def gains_of_training(cells: Mapping[Key, Sequence[float]]) -> list[float]:
    """Return, for each cell of a frozen mixer, by how much the mean of the trained one beside it is higher."""
    gains = []
    for (critic, *rest), values in cells.items():
        trained = cells.get((critic.removeprefix("frozen "), *rest)) if critic.startswith("frozen ") else None
        if trained is not None:
            gains.append(sum(trained) / len(trained) - sum(values) / len(values))
    return gains


def report(dataset: str, scores: Sequence[RunScore]) -> str:
    """Return all tables of one dataset."""
    cells = cells_of(scores)
    parts = [f"## {dataset}", table(cells)]
    found = factorial([score for score in scores if not score.run.settings.get("frozen")])
    if found is not None:
        shares = variance_shares(found)
        rows = [[s.source, with_interval(s.interval, 3)] for s in shares]
        parts.append(markdown(["source", "share of the variance"], rows))
        digits = digits_of(score.average_of_last for score in scores)
        ranks = [
            [r.axis, r.value, f"{r.mean:.{digits}f}", f"{r.best} of {r.of}", f"{r.first_two}"]
            for r in best_counts(found)
        ]
        parts.append(markdown(["setting", "value", "mean", "best", "best or second"], ranks))
        best, first_two, of = best_of_strengths(cells)
        counts = [[name, f"{best[name]} of {of}", first_two[name]] for name in first_two]
        parts.append(markdown(["decomposition, better strength", "best", "best or second"], counts))
    if gains := gains_of_training(cells):
        above = sum(gain > 0 for gain in gains)
        parts.append(f"Trained above frozen by {sum(gains) / len(gains):.2f} on average, in {above} of {len(gains)}.")
    return "\n\n".join(parts)


def main() -> None:
    """Print the tables of what is finished."""
    parser = script_parser(__doc__)
    parser.add_argument("study", type=as_study, help="a study file of which runs are finished")
    study = parser.parse_args().study
    plan, frame = finished_results(parser, study)
    metrics = choose_metrics(frame, study.settings.metric)
    scores = [s for s in scores_of(plan, frame, metrics) if s.evaluator == "mode"]
    if not scores:
        parser.error(f"no finished run of {study.file} was evaluated by mode; read the study's own report.")
    chosen = [s for s in scores if {"decomposition", *CHOICES} <= s.run.settings.keys()]
    others = sorted({s.run.method for s in scores} - {s.run.method for s in chosen})
    if others:
        print(
            f"Left out, as they have no choice of value learning and extraction: {', '.join(others)}.", file=sys.stderr
        )
    if not chosen:
        parser.error(f"{study.file} compares no such choices; python benchmarks/curves.py shows its scores.")
    scores = chosen
    for dataset in dict.fromkeys(source.name for source in study.datasets):
        own = [score for score in scores if score.run.dataset == dataset]
        if own:
            print(report(dataset, own), end="\n\n")


if __name__ == "__main__":
    run_script(main)
