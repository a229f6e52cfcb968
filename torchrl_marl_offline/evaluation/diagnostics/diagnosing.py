"""Diagnoses: of a loss in memory, of a run's folder."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.figure_style import FigureFormat
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import SEED, SIZE
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.evaluation.diagnostics.diagnosed import Diagnosed
from torchrl_marl_offline.evaluation.diagnostics.diagnosis_page import write_page
from torchrl_marl_offline.evaluation.diagnostics.measuring import NUMBERS, measure
from torchrl_marl_offline.evaluation.diagnostics.recorded_runs import CURVES, RecordedRun, alarmed, numbers_of, restored
from torchrl_marl_offline.evaluation.diagnostics.verdicts import Impossible, judged
from torchrl_marl_offline.evaluation.run_report import WIDTH, format_table
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.training.run.fit import check_rows
from torchrl_marl_offline.training.run.value_alarm import WATCHED, ValueAlarm, reward_facts

ROWS = 4096
"""Rows that are looked at by default."""
_SIDE_BY_SIDE, _COLUMN = 4, 12
_CERTAIN = 1e3
"""Mean |Q| that networks do not have as they are drawn."""


@dataclass(frozen=True)
class Diagnosis(Diagnosed):
    """What :func:`diagnose` and :func:`diagnose_run` found: verdict, numbers, curves, and what the figures show."""

    def text(self) -> str:
        """Return verdict, reasons and numbers, in lines of at most 80 characters."""
        return diagnoses_text([self])

    def save(self, folder: str | Path, *, formats: Sequence[FigureFormat] = ()) -> Path:
        """Write ``diagnosis.json``, ``diagnosis.html``, ``diagnosis.png``, and return the page; see
        :func:`save_diagnoses`.
        """
        return save_diagnoses([self], folder, formats=formats)


@checked
def diagnose(
    loss: OfflineMARLLoss,
    dataset: OfflineDataset,
    *,
    rows: Annotated[int, SIZE] = ROWS,
    seed: Annotated[int, SEED] = 0,
    name: str = "loss",
    curves: Sequence[Mapping[str, Any]] = (),
) -> Diagnosis:
    """Look at the networks of a loss, as they are, on recorded data.

    Args:
        loss: of any rules and networks; what it does not have is left out, and ``missing`` says so. Of a population one
            member at a time, as ``learner.member_losses()`` yields them.
        dataset: what it was trained on.
        rows: how many rows, drawn from the dataset, are looked at.
        seed: of the draw.
        name: by which it is shown.
        curves: rows of ``train.csv``, as ``read_csv`` returns them.

    Raises:
        ValueError: the dataset has no row that counts, or a row of the curves has no step.
    """
    options = {"rows": rows, "seed": seed, "name": name, "start": None, "step": None}
    return _diagnosed(loss, dataset, curves=numbers_of(curves), **options)


def _diagnosed(
    loss: OfflineMARLLoss,
    dataset: OfflineDataset,
    *,
    rows: int,
    seed: int,
    name: str,
    curves: Sequence[Mapping[str, Any]],
    start: float | None,
    step: int | None,
) -> Diagnosis:
    found = measure(loss, dataset, rows=rows, seed=seed)
    impossible = _impossible(loss, dataset, found.numbers, curves, start)
    verdict = judged(found.numbers, curves, agents=dataset.spec.n_agents, impossible=impossible, rows=found.rows)
    return Diagnosis(
        name, verdict, found.numbers, found.by_agent, curves, found.missing, found.rows, step, found.material
    )


def _impossible(
    loss: OfflineMARLLoss,
    dataset: OfflineDataset,
    numbers: Mapping[str, float],
    curves: Sequence[Mapping[str, Any]],
    start: float | None,
) -> Impossible | None:
    """Ask the alarm of a run about each of its logging points, and about the networks as they are."""
    if WATCHED not in numbers:
        return None
    buffer = dataset.replay_buffer(batch_size=1)
    alarm = ValueAlarm(loss, buffer, "warn")
    points = [(row["step"], row[WATCHED]) for row in curves if WATCHED in row]
    begin = start if start is not None else points[0][1] if points else 0.0
    for step, value in [*points, (None, numbers[WATCHED])]:
        if alarm.check(step or 0, {WATCHED: value}, lambda: {WATCHED: begin}) is not None:
            facts = reward_facts(loss, buffer)
            known = start is not None or bool(points) or value > _CERTAIN
            return Impossible(step, value, facts.bound(float(loss._value_estimator.gamma)), start_is_known=known)
    return None


@checked
def diagnose_run(
    folder: str | Path,
    dataset: OfflineDataset | None = None,
    *,
    loss: OfflineMARLLoss | None = None,
    rows: Annotated[int, SIZE] = ROWS,
    seed: Annotated[int, SEED] = 0,
    device: str = "cpu",
    name: str | None = None,
) -> Diagnosis:
    """Look at a run: the networks of its newest whole checkpoint on its data, and its curves.

    What the folder does not tell is taken from the arguments; where settings, checkpoint or data are missing all the
    same, the diagnosis is of the curves alone, and ``missing`` says why.

    Args:
        folder: of a run of ``marl-offline train`` or of a :class:`Trainer`; of a population that of a member,
            ``members/NAME``, which has a checkpoint once the population has ended.
        dataset: what it was trained on; by default what the run remembers.
        loss: a loss of the run's form, whose networks are filled from the checkpoint; by default that of the settings.
        rows: how many rows of the data are looked at.
        seed: of their draw.
        device: where the networks are evaluated.
        name: by which the run is shown; by default the folder's.

    Raises:
        FileNotFoundError: there is no such folder, it is no run's, or all of its checkpoints are damaged.
        ValueError: the folder is a whole population's; its settings or curves are damaged; the data is of other sizes;
            there is nothing to look at.
        CheckpointError: the checkpoint is of other networks.
    """
    run = RecordedRun.at(user_path(folder))
    name, curves = name or run.name, run.curves()
    missing = _missing(run, loss)
    if missing is None and dataset is None:
        found = run.dataset()
        dataset, missing = (None, found) if isinstance(found, str) else (found, None)
    if missing is not None:
        return _of_curves(run, name, curves, missing)
    loss = run.loss(dataset) if loss is None else loss
    try:
        check_rows(loss, dataset.replay_buffer(batch_size=1))
    except ValueError as error:
        raise ValueError(f"The data does not fit the run in {run.folder}: {error}") from error
    step, start = restored(run, loss)
    options = {"rows": rows, "seed": seed, "name": name, "curves": curves, "start": start, "step": step}
    found = _diagnosed(loss.to(device), dataset, **options)
    if curves:
        return found
    return replace(found, missing=[*found.missing, f"curves: {CURVES} is not there, or has no rows"])


def _missing(run: RecordedRun, loss: OfflineMARLLoss | None) -> str | None:
    if run.checkpoints is None:
        return "the run has no checkpoint, so that its networks cannot be looked at"
    if loss is None and run.root is None:
        return "the folder does not tell the run's settings, of which its networks are made; give a loss (loss=)"
    if loss is None and "settings" not in run.settings:
        return "the settings are of an earlier version; give a loss of the run's form (loss=)"
    return None


def _of_curves(run: RecordedRun, name: str, curves: Sequence[Mapping[str, Any]], missing: str) -> Diagnosis:
    """Return a diagnosis of a run's curves alone; its numbers are the last of each column."""
    if not curves:
        raise ValueError(f"There is nothing to look at in {run.folder}: there are no curves, and {missing}.")
    numbers = {}
    for key in NUMBERS:
        values = [row[key] for row in curves if isinstance(row.get(key), float)]
        numbers |= {key: values[-1]} if values else {}
    step = alarmed(run)
    value = next((row[WATCHED] for row in curves if row["step"] == step and WATCHED in row), None)
    impossible = None if value is None else Impossible(step, value, None)
    verdict = judged(numbers, curves, agents=None, impossible=impossible)
    return Diagnosis(name, verdict, numbers, curves=curves, missing=[f"all but the curves: {missing}"])


def diagnoses_text(diagnoses: Sequence[Diagnosis]) -> str:
    """Return verdicts, reasons and the numbers of several runs side by side, in lines of at most 80 characters."""
    lines: list[str] = []
    for each in diagnoses:
        lines += textwrap.wrap(f"{each.name}: {each.verdict.word}", WIDTH, subsequent_indent="  ")
        for reason in each.verdict.reasons:
            lines += textwrap.wrap(f"- {reason.text}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    for first in range(0, len(diagnoses), _SIDE_BY_SIDE):
        some = diagnoses[first : first + _SIDE_BY_SIDE]
        names = [name for name in NUMBERS if any(name in each.numbers for each in some)]
        if names:
            rows = [[name, *(each.numbers.get(name) for each in some)] for name in names]
            header = ["", *(" ".join(textwrap.wrap(each.name, _COLUMN)) for each in some)]
            lines += ["", *format_table(rows, header=header, width=WIDTH).splitlines()]
    for each in diagnoses:
        for missing in each.missing:
            lines += textwrap.wrap(f"{each.name}, left out: {missing}.", WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


@checked
def save_diagnoses(diagnoses: Sequence[Diagnosis], folder: str | Path, *, formats: Sequence[FigureFormat] = ()) -> Path:
    """Write one page of one run or of several side by side.

    - ``diagnosis.html``, a page that needs no other file and no network: verdicts, numbers with meanings, figures;
    - ``diagnosis.png``, its figures as one picture;
    - ``diagnosis.json``, verdicts and numbers.

    Args:
        diagnoses: of runs with names that differ.
        folder: where they are written; it is made.
        formats: further formats of the picture.

    Returns:
        The path of the page.

    Raises:
        ValueError: there is none, or two have one name.
        WriteError: a file cannot be written.
    """
    names = [each.name for each in diagnoses]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"A page needs runs whose names differ, got {', '.join(names) or 'none'}; give name=.")
    return write_page(diagnoses, user_path(folder), formats)
