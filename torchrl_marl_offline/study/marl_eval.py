"""Results in the JSON form of marl-eval, which its tools and those of others read.

The form is documented with `marl-eval <https://github.com/instadeepai/marl-eval>`_ (Gorsane et al. 2022)::

    {environment: {task: {algorithm: {run: {"step_1": {"step_count": int, metric: [value]}, ...,
                                            "absolute_metrics": {metric: [value]}}}}}}

Within an environment all tasks have the same algorithms, all algorithms the same runs, all runs the same number of
steps and all steps the same metrics; names of algorithms have no comma. So what not all have is left out here, and
named. A value is the mean over the episodes of an evaluation, which makes lists of one element.

``absolute_metrics`` are there those of the best policy of a run, in ten times as many episodes. A study does not
measure that; here they are the average of the last evaluations, as in the report's tables, which chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.data.published.cards import SOURCES, card_of
from torchrl_marl_offline.study.scores import METRICS, Choice
from torchrl_marl_offline.study.sources import DatasetSource

if TYPE_CHECKING:
    import pandas

ABSOLUTE = "absolute_metrics"
UNNAMED = "recorded"
"""The environment of data that do not say which task they are of."""

Run = dict[str, dict[str, Any]]


def marl_eval_form(
    frame: pandas.DataFrame,
    choices: Mapping[tuple[str, str, str], Choice],
    sources: Mapping[str, DatasetSource],
    *,
    evaluator: str,
    last_k: int,
) -> tuple[dict[str, Any], list[str]]:
    """Return the results of one evaluator in marl-eval's form, JSON-ready.

    Args:
        frame: the study's table.
        choices: (dataset, evaluator, method) -> what is shown of it.
        sources: the study's datasets, by name.
        evaluator: such as ``"mode"``.
        last_k: how many evaluations at the end are averaged for ``absolute_metrics``.

    Returns:
        The nested mapping, and what was left out, in sentences.
    """
    environments: dict[str, dict[str, dict[str, Choice]]] = {}
    for (dataset, by, method), choice in choices.items():
        if by == evaluator:
            tasks = environments.setdefault(environment_of(sources[dataset]), {})
            tasks.setdefault(dataset, {})[method] = choice
    rows = {str(name): part for name, part in frame[frame["evaluator"] == evaluator].groupby("run", sort=False)}
    form, left_out = {}, []
    for environment, tasks in environments.items():
        found, missing = _environment(tasks, rows, last_k)
        left_out += [f"{environment}: {what}" for what in missing]
        if found:
            form[environment] = found
    return form, left_out


def environment_of(source: DatasetSource) -> str:
    """Return the family of a dataset's task, in lower case: ``"mpe"``."""
    task = source.task
    if task is None and source.source is not None and source.source.partition(":")[0] in SOURCES:
        task = card_of(source.source).task
    return task.partition("/")[0].lower() if task else UNNAMED


def _environment(
    tasks: Mapping[str, Mapping[str, Choice]], rows: Mapping[str, pandas.DataFrame], last_k: int
) -> tuple[dict[str, Any], list[str]]:
    """Return task -> algorithm -> run -> steps of what all have, and what was left out."""
    methods = _common(tasks.values())
    chosen = [choice for task in tasks.values() for method, choice in task.items() if method in methods]
    seeds = _common({score.run.seed: 0 for score in choice.scores} for choice in chosen)
    parts = [
        rows[score.run.name].set_index("step")
        for choice in chosen
        for score in choice.scores
        if score.run.seed in seeds
    ]
    metrics = [name for name in METRICS if parts and all(name in p and p[name].notna().all() for p in parts)]
    steps = sorted(_common({int(step): 0 for step in part.index} for part in parts))
    named = {
        "methods": sorted({method for task in tasks.values() for method in task} - set(methods)),
        "seeds": sorted({score.run.seed for choice in chosen for score in choice.scores} - set(seeds)),
        "evaluations at": sorted({int(step) for part in parts for step in part.index} - set(steps)),
    }
    left_out = [f"{what} {', '.join(map(str, names))}" for what, names in named.items() if names]
    if not (metrics and steps):
        return {}, left_out or ["nothing that all runs have"]
    form = {
        task.lower(): {
            _algorithm(method): {
                f"seed_{score.run.seed}": _run(rows[score.run.name], steps, metrics, last_k)
                for score in of_task[method].scores
                if score.run.seed in seeds
            }
            for method in methods
        }
        for task, of_task in tasks.items()
    }
    return form, left_out


def _run(rows: pandas.DataFrame, steps: Sequence[int], metrics: Sequence[str], last_k: int) -> Run:
    by_step = rows.set_index("step")
    run: Run = {
        f"step_{number}": {"step_count": step} | {name: [float(by_step.loc[step, name])] for name in metrics}
        for number, step in enumerate(steps, 1)
    }
    last = list(run.values())[-last_k:]
    return run | {ABSOLUTE: {name: [sum(step[name][0] for step in last) / len(last)] for name in metrics}}


def _algorithm(method: str) -> str:
    return method.replace(",", "")


def _common(groups: Iterable[Mapping[Any, Any]]) -> list[Any]:
    """Return the keys that all groups have, in the order of the first."""
    groups = list(groups)
    return [key for key in groups[0] if all(key in group for group in groups)] if groups else []
