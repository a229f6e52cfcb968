"""A suite as a study: its datasets × the systems × seeds, with the machinery of studies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.files import write_text_atomic
from torchrl_marl_offline.core.paths import folder_name, user_path
from torchrl_marl_offline.core.ranges import COUNT, FEW, SIZE
from torchrl_marl_offline.core.tables import check_keys
from torchrl_marl_offline.study.runner import Machine, StudyOutcome, run_study
from torchrl_marl_offline.study.settings import Study, read_study
from torchrl_marl_offline.study.workers import Backend
from torchrl_marl_offline.suites.entries import Suite, SuiteError
from torchrl_marl_offline.suites.making import read_index
from torchrl_marl_offline.suites.suite_methods import METHODS, SHARED

MEMBERS = 128
"""Most runs that are trained as one population; datasets of the same sizes are joined."""
RUNS = "runs"
"""Folder of the runs within that of the suite, where no other is named."""


@checked
def run_suite(
    suite: Suite,
    folder: str | Path,
    *,
    algorithms: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: Annotated[int, FEW] = 3,
    updates: Annotated[int, COUNT] = 3000,
    episodes: Annotated[int, SIZE] = 512,
    runs: str = RUNS,
    machine: Machine | None = None,
    backend: Backend | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> StudyOutcome:
    """Train the systems on the datasets of a suite that was made; call it again to go on.

    The seeds of a system on all datasets of one task and the same sizes are one population, each run on its own data.

    It is a study (``FOLDER/RUNS.toml``, results in ``FOLDER/RUNS``) of all systems on all datasets that are there, of
    which ``algorithms`` and ``only`` say the part that is trained now. Every run is evaluated after its last update,
    by the mode of its policy.

    Args:
        suite: the table.
        folder: where :func:`~.making.make_suite` made it.
        algorithms: names of systems (:data:`~.suite_methods.METHODS`); by default all.
        only: names of datasets or groups; by default all that are there.
        seeds: of each system on each dataset.
        updates: of each run.
        episodes: by which each run is evaluated.
        runs: name of the folder of the results within ``folder``; runs with other seeds or updates need another.
        machine: what may be used; by default all cores, or GPUs.
        backend: runs the jobs; by default worker processes.
        progress: show a bar, where standard error is a terminal.
        say: called with each line that tells how it goes.

    Raises:
        SuiteError: an unknown name, or a dataset that is not there.
        StudyError: ``runs`` holds runs with other settings.
    """
    folder = user_path(folder)
    _check_names(suite, algorithms, only)
    there = datasets_of(suite, folder)
    wanted = [entry.name for entry in suite.chosen(more=True, only=only) if entry.name in there or only]
    if missing := [name for name in wanted if name not in there]:
        raise SuiteError(
            f"{missing[0]} is not among the datasets in {folder}; make it first: marl-offline benchmark make "
            f"{suite.name} --output {folder} --only {missing[0]}."
        )
    study = write_study(suite, folder, list(there), seeds=seeds, updates=updates, episodes=episodes, runs=runs)
    chosen = [*algorithms, *(wanted if only else ())]
    return run_study(study, machine=machine or Machine(), only=chosen, backend=backend, progress=progress, say=say)


def _check_names(suite: Suite, algorithms: Sequence[str], only: Sequence[str]) -> None:
    suite.chosen(only=only)
    try:
        check_keys(dict.fromkeys(algorithms), METHODS, "--algorithms")
    except ValueError as error:
        raise SuiteError(str(error).replace("unknown key", "unknown name")) from None


def datasets_of(suite: Suite, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the cards of the datasets of a suite in its folder.

    Raises:
        SuiteError: there are none.
    """
    entries = {entry.name: entry for entry in suite.entries}
    cards = {name: card for name, card in read_index(folder).items() if name in entries}
    for name, card in cards.items():
        entry = entries[name]
        told = {"group": entry.group, "task": entry.task, "task_options": json.loads(json.dumps(dict(entry.options)))}
        if other := [fact for fact, value in told.items() if card[fact] != value]:
            raise SuiteError(
                f"The index in {folder} says of {name} another {other[0]} than the suite {suite.name}; make it anew in "
                "another folder."
            )
    if not cards:
        raise SuiteError(
            f"{folder} holds no datasets of the suite {suite.name}; make them first: marl-offline benchmark make "
            f"{suite.name} --output {folder}."
        )
    return cards


def write_study(
    suite: Suite, folder: Path, datasets: Sequence[str], *, seeds: int, updates: int, episodes: int, runs: str
) -> Study:
    """Write the study file of a suite, and return it as it is read."""
    name = folder_name(runs, "--runs")
    study = {"name": f"{suite.name}, version {suite.version}", "output": name, "seeds": seeds, "steps": updates}
    study |= SHARED | {"compile": "auto", "metric": "return", "last_k": 1}
    study |= {"join_datasets": True, "members": MEMBERS}
    study |= {"log_every": updates, "checkpoint_every": updates}
    lines = ["# Written by `marl-offline benchmark run`.", *_table("study", study)]
    lines += _table("evaluation", {"every": updates, "episodes": episodes})
    for method, settings in METHODS.items():
        lines += _table(f"methods.{json.dumps(method)}", settings)
    for dataset in datasets:
        lines += _table(f"datasets.{json.dumps(dataset)}", {"source": dataset})
    file = folder / f"{name}.toml"
    write_text_atomic(file, "\n".join(lines) + "\n")
    return read_study(file)


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    """Return a table of TOML; strings, numbers and lists of them are written as in JSON."""
    return ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
