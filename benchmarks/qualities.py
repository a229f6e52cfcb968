"""All systems on data of every quality: a study's scores beside the data, cloning and what was published.

    python benchmarks/qualities.py examples/studies/systems_mpe.toml

Reads what the study has finished so far, and trains nothing. For each task of particles a table of all systems, by
mode, the average of the study's last ``last_k`` evaluations, with the mean of each dataset above and the best published
score below; then each system's own published score, and for each dataset the three best, with the distance of the best
from the best published.

A verdict compares the published figure with the 95 % t interval over training seeds: *within* it, *above* it (ours is
better) or *below* it by so much. Published figures are of the published datasets and of other numbers of seeds; these
are recordings of the same qualities.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arguments import run_script, script_parser
from measuring import markdown, with_interval
from studies import as_study, finished_results, over_seeds

from torchrl_marl_offline import make_env
from torchrl_marl_offline.evaluation import Interval
from torchrl_marl_offline.study import Study
from torchrl_marl_offline.study.scores import RunScore, scores_of
from torchrl_marl_offline.study.table import DATA

FIGURES = Path(__file__).resolve().parent.parent / "docs/figures.json"
QUALITIES = ("random", "medium-replay", "medium", "expert")

BEST_PUBLISHED = {
    "spread": {"random": 69.8, "medium-replay": 47.6, "medium": 70.1, "expert": 119.4},
    "tag": {"random": 133.9, "medium-replay": 98.8, "medium": 137.1, "expert": 168.8},
    "world": {"random": 141.1, "medium-replay": 83.0, "medium": 160.3, "expert": 174.0},
}
"""The best published score of any system. Of spread's expert data it is a return of 586.2 among normalized scores."""

Cells = dict[str, dict[str, list[float]]]
"""System -> dataset -> the scores of its seeds."""


def cells_of(scores: Sequence[RunScore]) -> Cells:
    """Return the scores of all seeds by system and dataset; a setting of a grid makes a system of its own."""
    cells: Cells = defaultdict(lambda: defaultdict(list))
    for score in scores:
        name = f"{score.run.method}, {score.setting}" if score.setting else score.run.method
        cells[name][score.run.dataset].append(score.average_of_last)
    return {system: dict(of) for system, of in cells.items()}


def verdict(found: Interval, published: float) -> str:
    """Return where a measured interval lies beside a published figure."""
    if math.isnan(found.low):
        return f"one seed, {found.mean - published:+.1f}"
    if found.low > published:
        return f"above, by {found.mean - published:.1f}"
    return f"below, by {published - found.mean:.1f}" if found.high < published else "within"


def systems_table(task: str, cells: Cells, data: Mapping[str, float]) -> str:
    """Return a row for each system, the best mean of each column in bold; of a task's datasets alone."""
    columns = [f"{task}-{quality}" for quality in QUALITIES]
    found = {
        system: {name: over_seeds(values) for name, values in of.items() if name in columns}
        for system, of in cells.items()
    }
    best = {name: max((of[name].mean for of in found.values() if name in of), default=None) for name in columns}
    rows = [["*the data*", *(f"{data[name]:.1f}" if name in data else "" for name in columns)]]
    for system, of in found.items():
        if of:
            texts = [with_interval(of[name]) if name in of else "" for name in columns]
            texts = [
                f"**{t}**" if n in of and of[n].mean == best[n] else t for n, t in zip(columns, texts, strict=True)
            ]
            rows.append([system, *texts])
    rows.append(["*best published*", *(f"{BEST_PUBLISHED[task][quality]:.1f}" for quality in QUALITIES)])
    return markdown([task, *QUALITIES], rows)


def published_table(task: str, cells: Cells, figures: Mapping[str, Any]) -> str:
    """Return, for each system with published scores of its own, those beside the measured ones."""
    rows = []
    for system, of in cells.items():
        known = {
            name: cell["published"][0]
            for name, cell in figures.get(system.partition(", ")[0], {}).items()
            if "published" in cell
        }
        texts = []
        for quality in QUALITIES:
            name = f"{task}-{quality}"
            if name in known and name in of:
                texts.append(f"{known[name]:.1f}: {verdict(over_seeds(of[name]), known[name])}")
            else:
                texts.append("")
        if any(texts):
            rows.append([system, *texts])
    return markdown([f"{task}, published: measured", *QUALITIES], rows)


def best_table(task: str, cells: Cells) -> str:
    """Return, for each dataset, the three best systems, and the verdict on the best beside the best published."""
    rows = []
    for quality in QUALITIES:
        means = {
            system: over_seeds(of[f"{task}-{quality}"]) for system, of in cells.items() if f"{task}-{quality}" in of
        }
        order = sorted(means, key=lambda system: means[system].mean, reverse=True)
        if order:
            published = BEST_PUBLISHED[task][quality]
            three = ", ".join(f"{system} {means[system].mean:.1f}" for system in order[:3])
            rows.append([quality, three, f"{published:.1f}", verdict(means[order[0]], published)])
    return markdown([task, "the three best", "best published", "the best beside it"], rows)


def means_of_data(study: Study) -> dict[str, float]:
    """Return the normalized mean return of each recorded dataset that is there."""
    means = {}
    for source in study.datasets:
        dataset = source.already_made(study.settings.output / DATA)
        if dataset is not None:
            references = make_env(source.task, **source.options.get("task_options", {})).reference_returns
            if references is not None:
                low, high = references
                means[source.name] = 100 * (dataset.episode_returns().mean().item() - low) / (high - low)
    return means


def fewer_seeds(study: Study, cells: Cells) -> str:
    """Say which cells have fewer training seeds than the study asks for; empty where none has."""
    wanted = len(study.settings.seeds)
    few = [f"{system} on {name} {len(v)}" for system, of in cells.items() for name, v in of.items() if len(v) < wanted]
    return f"Of {wanted} seeds there are fewer of: {', '.join(few)}." if few else ""


def main() -> None:
    """Print the tables of what is finished."""
    parser = script_parser(__doc__)
    parser.add_argument("study", type=as_study, help="a study file of which runs are finished")
    study = parser.parse_args().study
    known = {f"{task}-{quality}" for task in BEST_PUBLISHED for quality in QUALITIES}
    if not known & {source.name for source in study.datasets}:
        parser.error(f"{study.file} has no dataset named TASK-QUALITY, such as {min(known)}; name another study.")
    plan, frame = finished_results(parser, study)
    metrics = {source.name: "normalized" for source in study.datasets}
    if "normalized" not in frame:
        frame["normalized"] = float("nan")
    scores = [s for s in scores_of(plan, frame, metrics) if s.evaluator == "mode" and s.run.dataset in known]
    if not scores:
        parser.error(
            f"no finished run of {study.file} has normalized scores by mode (tag and world have them against the "
            "published prey alone, and the study's modes say what is evaluated); read the study's own report."
        )
    cells, data = cells_of(scores), means_of_data(study)
    figures = json.loads(FIGURES.read_text())["algorithms"]
    for task in BEST_PUBLISHED:
        own = {system: of for system, of in cells.items() if any(name.startswith(f"{task}-") for name in of)}
        if own:
            parts = [systems_table(task, own, data), published_table(task, own, figures), best_table(task, own)]
            print(f"## {task}", *parts, sep="\n\n", end="\n\n")
    if few := fewer_seeds(study, cells):
        print(few)


if __name__ == "__main__":
    run_script(main)
