"""The section of a report about a search: its rungs, its trials, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torchrl_marl_offline.core.document import Block, Heading, Table, Text
from torchrl_marl_offline.study.choosing import ESTIMATES
from torchrl_marl_offline.study.jobs import MEMBERS
from torchrl_marl_offline.study.plan import Plan, job_folder
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.study.trial_scores import return_of, trial_scores
from torchrl_marl_offline.training.run.logging import read_csv


def search_section(plan: Plan, output: Path, dataset: str) -> list[Block]:
    """Return what became of the trials of a dataset's searches.

    Args:
        plan: the whole plan, trials included.
        output: the study's folder.
        dataset: its name.
    """
    if plan.search is None:
        return []
    searched: dict[str, list[Run]] = {}
    for run in plan.runs:
        if run.dataset == dataset and run.trial is not None:
            searched.setdefault(run.method, []).append(run)
    blocks: list[Block] = []
    for method, runs in searched.items():
        blocks += _of_method(plan, output, method, runs)
    return blocks


def _of_method(plan: Plan, output: Path, method: str, runs: Sequence[Run]) -> list[Block]:
    search, score = plan.search, trial_scores(plan, output)
    rungs: dict[int, dict[int, list[Run]]] = {}
    for run in runs:
        if run.rung is not None:
            rungs.setdefault(run.rung, {}).setdefault(run.trial, []).append(run)
    chosen = next((run for run in runs if run.rung is None), None)
    found = {rung: score([run for own in trials.values() for run in own]) for rung, trials in rungs.items()}
    by = {"return": "simulated return"}.get(search.by, f"estimate by {search.by}")
    sizes = ", ".join(f"{len(t)} for {next(iter(t.values()))[0].settings['steps']:,} updates" for t in rungs.values())
    asked = ", ".join(map(str, search.sizes()))
    text = (
        f"{search.trials} trials, drawn by seed {search.seed}, ranked by {by}; one of {search.eta} goes on. Rungs of "
        f"{asked} trials; so far {sizes}, each trained from the start"
    )
    end = f"trial {chosen.trial} ({chosen.setting})." if chosen else "nothing yet: the search is not at its end."
    blocks: list[Block] = [Heading(f"Search of {method}", 3), Text(f"{text}. Chosen: {end}", warning=chosen is None)]
    if chosen is not None:
        told = "It is trained to the end by the study's seeds"
        new = not set(search.seeds) & {run.seed for run in runs if run.rung is None}
        blocks.append(Text(f"{told}, none of which took part in the search." if new else f"{told}."))
    simulated = _simulated(plan, output, runs) if search.by in ESTIMATES else {}
    header = ["trial", "setting", *(f"rung {rung}" for rung in rungs), *(["simulated, last rung"] if simulated else [])]
    rows = []
    for trial, own in next(iter(rungs.values()), {}).items():
        values = [_cell(trials.get(trial), found[rung]) for rung, trials in rungs.items()]
        last = max(rung for rung, trials in rungs.items() if trial in trials)
        values += [_cell(rungs[last][trial], simulated)] if simulated else []
        rows.append([str(trial), own[0].setting, *values])
    rows.sort(key=lambda row: -sum(cell not in ("", "none") for cell in row[2 : 2 + len(rungs)]))
    blocks.append(Table(header, rows, summary="Every trial: what it was ranked by at the end of each rung"))
    if chosen is not None and simulated:
        blocks += _regret(rungs[max(rungs)], chosen, simulated, by)
    return blocks


def _mean(runs: Sequence[Run], values: dict[str, float]) -> float:
    return sum(values.get(run.name, math.nan) for run in runs) / len(runs)


def _cell(runs: Sequence[Run] | None, values: dict[str, float] | None) -> str:
    if runs is None or values is None:
        return "" if runs is None else "not finished"
    mean = _mean(runs, values)
    return f"{mean:.4g}" if math.isfinite(mean) else "none"


def _simulated(plan: Plan, output: Path, runs: Sequence[Run]) -> dict[str, float]:
    """Return what the trials earned where there is a simulator; nothing where there is none."""
    place = {run.name: job_folder(output, population) for population in plan.populations for run in population.runs}
    files = {run.name: place[run.name] / MEMBERS / run.name / "eval.csv" for run in runs if run.rung is not None}
    values = {name: return_of(read_csv(file), plan) for name, file in files.items() if file.exists()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _regret(last: dict[int, list[Run]], chosen: Run, simulated: dict[str, float], by: str) -> list[Text]:
    means = {trial: _mean(runs, simulated) for trial, runs in last.items()}
    means = {trial: mean for trial, mean in means.items() if math.isfinite(mean)}
    if chosen.trial not in means:
        return []
    best = max(means, key=means.get)
    return [
        Text(
            f"Of the {len(means)} trials of the last rung, trial {best} is the best in the simulator; choosing by {by} "
            f"costs {means[best] - means[chosen.trial]:.4g} there, by the runs of the search."
        )
    ]
