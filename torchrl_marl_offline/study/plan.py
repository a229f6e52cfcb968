"""From a study to its runs, and from runs to populations that are trained together.

The plan is kept in the study's folder: a study that goes on keeps its populations, whatever memory it finds then, so
that its results do not depend on interruptions. Runs that the file names later get populations of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.core.tables import check_keys
from torchrl_marl_offline.study.checking import StudyError, study_errors
from torchrl_marl_offline.study.choosing import OfflineSettings, SearchSettings, with_tuples
from torchrl_marl_offline.study.runs import Run, is_read, sampling_of, slug, with_defaults
from torchrl_marl_offline.study.search import TrialScores, runs_so_far
from torchrl_marl_offline.study.settings import EvaluationSettings, Study
from torchrl_marl_offline.study.sources import DatasetSource

PLAN_FILE, JOBS = "plan.json", "jobs"


@dataclass(frozen=True)
class PlannedPopulation:
    """Runs of one method that differ in settings of their members alone, trained as one.

    They are on one dataset, or on several of the same sizes, where a study joins these.

    Attributes:
        name: unique in the study, and the name of its folder.
        runs: its members.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets."""
        return tuple(dict.fromkeys(run.dataset for run in self.runs))

    @property
    def dataset(self) -> str:
        """Name of the dataset, of several that of the first."""
        return self.runs[0].dataset

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.runs[0].method

    @property
    def settings(self) -> dict[str, Any]:
        """What all members share."""
        return self.runs[0].shared_settings

    @property
    def steps(self) -> int:
        """Updates of each member."""
        return self.runs[0].settings["steps"]

    @property
    def updates(self) -> int:
        """Updates of all members together."""
        return self.steps * len(self.runs)


@dataclass(frozen=True)
class Plan:
    """Everything that is to be trained.

    Attributes:
        name: of the study.
        evaluation: how runs are judged.
        datasets: by name.
        populations: in the order in which they are started.
        last_k: how many evaluations at the end are averaged.
        metric: what is compared.
        estimated_by: the word by which all runs are estimated from held-out episodes, and settings are chosen;
            ``None`` where settings are chosen in the simulator.
        offline: how they are estimated.
        search: the settings of a search, or ``None``.
    """

    name: str
    evaluation: EvaluationSettings
    datasets: Mapping[str, DatasetSource]
    populations: tuple[PlannedPopulation, ...]
    last_k: int = 5
    metric: str = "auto"
    estimated_by: str | None = None
    offline: OfflineSettings = OfflineSettings()  # noqa: RUF009
    search: SearchSettings | None = None

    @property
    def runs(self) -> list[Run]:
        """All runs, in order."""
        return [run for population in self.populations for run in population.runs]

    def save(self, folder: Path) -> Path:
        """Write ``folder/plan.json``."""
        write_json_atomic(folder / PLAN_FILE, self)
        return folder / PLAN_FILE

    @classmethod
    def load(cls, folder: Path) -> Plan | None:
        """Read ``folder/plan.json``, or return ``None`` where there is none.

        Raises:
            StudyError: it is damaged or of another version.
        """
        file = folder / PLAN_FILE
        if not file.exists():
            return None
        try:
            content = read_json(file)
            content["evaluation"]["modes"] = tuple(content["evaluation"]["modes"])
            content["evaluation"] = EvaluationSettings(**content["evaluation"])
            content["datasets"] = {name: DatasetSource(**source) for name, source in content["datasets"].items()}
            content["populations"] = tuple(
                PlannedPopulation(population["name"], tuple(Run(**run) for run in population["runs"]))
                for population in content["populations"]
            )
            content["offline"] = OfflineSettings.of(content.get("offline", {}))
            if content.get("search") is not None:
                content["search"] = SearchSettings(**with_tuples(content["search"]))
            plan = cls(**content)
            if not isinstance(plan.name, str) or not plan.runs:
                raise ValueError("it has no name, or no run")
            names = [population.name for population in plan.populations] + [run.name for run in plan.runs]
            if any(name != slug([name]) or not name.strip(".") for name in names):
                raise ValueError("names folders that are none")  # somebody else's plan could name any folder
            return plan
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(f"{file} is damaged or of another version; give the study another output.") from error


def job_folder(output: Path, population: PlannedPopulation) -> Path:
    """Return the folder of a population's job."""
    return output / JOBS / population.name


@checked
def plan_study(
    study: Study,
    *,
    capacity: Callable[[Sequence[Run]], int] | None = None,
    score: Callable[[Plan | None, Path], TrialScores] | None = None,
) -> Plan:
    """Return the plan of a study: the one in its folder, with what the file names beside it.

    Args:
        study: what :func:`read_study` read.
        capacity: how many members a population of such runs may have, by memory; ``None`` asks for no limit but the
            study's ``members``.
        score: of the folder's plan, what its search's trials have come to; ``None`` asks for no more of a search than
            the plan has, or its first rung.

    Raises:
        StudyError: the folder holds the same runs with other settings, or runs that the file does not name.
    """
    kept = Plan.load(study.settings.output)
    if kept is not None:
        _check_choosing(kept, study)
    scores = score(kept, study.settings.output) if score is not None else lambda _: None
    runs = runs_so_far(study, [] if kept is None else kept.runs, scores)
    if kept is not None:
        _check_agreement(kept, study, runs)
        known = {run.name for run in kept.runs}
        runs = [run for run in runs if run.name not in known]
    populations = pack(
        runs,
        members=study.settings.members,
        capacity=capacity,
        before=() if kept is None else kept.populations,
        sizes=_sizes(study) if study.settings.join_datasets else None,
    )
    return Plan(
        study.settings.name,
        study.evaluation,
        {source.name: source for source in study.datasets},
        populations,
        study.settings.last_k,
        study.settings.metric,
        study.estimated_by,
        study.offline,
        study.search,
    )


def pack(
    runs: Sequence[Run],
    *,
    members: int,
    capacity: Callable[[Sequence[Run]], int] | None = None,
    before: Sequence[PlannedPopulation] = (),
    sizes: Callable[[Run], str] | None = None,
) -> tuple[PlannedPopulation, ...]:
    """Group runs into populations of nearly equal size, after those of ``before``.

    Args:
        runs: in order.
        members: most runs of one population.
        capacity: how many of such runs fit the memory.
        before: populations that are there already.
        sizes: what stands for the dataset of a run where several may be joined; by default its name.
    """
    sizes = sizes or (lambda run: run.dataset)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([sizes(run), run.method, run.shared_settings]), []).append(run)
    populations = list(before)
    for group in groups.values():
        most = max(1, min([members] if capacity is None else [members, capacity(group)]))
        parts = -(-len(group) // most)
        for part in range(parts):
            low, high = (len(group) * end // parts for end in (part, part + 1))
            chosen = PlannedPopulation("", tuple(group[low:high]))
            words = _words(chosen)
            number = sum((_words(p), p.method) == (words, chosen.method) for p in populations)
            populations.append(replace(chosen, name=slug([words, chosen.method, f"{number:02d}"])))
    return tuple(populations)


def _words(population: PlannedPopulation) -> str:
    """Return what stands for the datasets in a population's name."""
    return population.dataset if len(population.datasets) == 1 else f"{len(population.datasets)}-datasets"


def _sizes(study: Study) -> Callable[[Run], str]:
    """Return what tells the sizes of a run's task, or its dataset, where that is not to be joined with others."""
    sources = {source.name: source for source in study.datasets}
    known: dict[str, str] = {}

    def sizes(run: Run) -> str:
        settings = run.settings
        if sampling_of(settings) or settings["normalize_inputs"] != "off" or settings["hindsight"] != "off":
            return run.dataset
        if run.dataset not in known:
            source = sources[run.dataset]
            joins = source.has_simulator() and "bounds" not in source.options  # which are each dataset's own
            known[run.dataset] = json.dumps(source.facts()[0].to_dict()) if joins else run.dataset
        return known[run.dataset]

    return sizes


def _check_choosing(kept: Plan, study: Study) -> None:
    """Raise where another choice would ask for other runs, or for runs on other episodes."""
    pairs = {"[search]": (kept.search, study.search), "select": (kept.estimated_by, study.estimated_by)}
    if study.estimated_by is not None:
        pairs["[offline]"] = (kept.offline, study.offline)
    for name, (before, now) in pairs.items():
        if before != now:
            raise StudyError(
                f"{study.settings.output} was started with {name} = {before}, {study.file} says {now}: that is another "
                "choice, by other runs or other held-out episodes; give the study another output, or undo the change."
            )


def _check_agreement(kept: Plan, study: Study, runs: Sequence[Run]) -> None:
    """Raise where a study's folder does not belong to its file any more."""
    where, remedy = study.settings.output, "give the study another output, or undo the change"
    named = {run.name: run for run in runs}
    for run in kept.runs:
        if run.name not in named:
            raise StudyError(f"{where} holds the run {run.name}, which {study.file} does not name; {remedy}.")
        now, before = json.loads(json.dumps(dict(named[run.name].settings))), with_defaults(run.settings)
        for key in {**before, **now}:
            if before.get(key) != now.get(key) and is_read(key, before):
                raise StudyError(
                    f"{where} holds {run.name} with {key} = {before.get(key)!r}, {study.file} says "
                    f"{now.get(key)!r}; {remedy}."
                )
    if kept.evaluation != study.evaluation:
        raise StudyError(f"{where} was started with {kept.evaluation}, {study.file} says {study.evaluation}; {remedy}.")
    for source in study.datasets:
        check = kept.datasets.get(source.name, source)
        if asdict(check) | {"settings": 0} != asdict(source) | {"settings": 0}:
            raise StudyError(f"{where} was started with {check}, {study.file} says {source}; {remedy}.")


def searches_without_choice(populations: Sequence[PlannedPopulation]) -> dict[str, str]:
    """Return the searches among finished populations of which no trial could go on, and a sentence for each."""
    last: dict[tuple[str, str], int | None] = {}
    for population in populations:
        run = population.runs[0]
        if run.trial is not None and last.get((run.dataset, run.method), 0) is not None:
            last[run.dataset, run.method] = run.rung
    return {
        f"{dataset}--{method}": f"The search of {method} on {dataset} ends without a choice: no trial of rung {rung} "
        "has a value that is a number; change its ranges, and give the study another output."
        for (dataset, method), rung in last.items()
        if rung is not None
    }


@study_errors()
def select(plan: Plan, only: Sequence[str]) -> tuple[PlannedPopulation, ...]:
    """Return the populations with a dataset or method that is named, or all where ``only`` is empty.

    Raises:
        StudyError: a name that is neither, or methods none of which is trained on the datasets.
    """
    known = [name for population in plan.populations for name in (*population.datasets, population.method)]
    check_keys(dict.fromkeys(only), known, "--only")
    methods = {p.method for p in plan.populations} & set(only)
    datasets = {name for p in plan.populations for name in p.datasets} & set(only)
    of_methods = [p for p in plan.populations if not methods or p.method in methods]
    found = tuple(p for p in of_methods if not datasets or datasets & set(p.datasets))
    if not found:
        there = ", ".join(sorted({name for p in of_methods for name in p.datasets}))
        raise StudyError(
            f"--only {' '.join(only)}: {', '.join(sorted(methods))} is not trained on {', '.join(sorted(datasets))}; "
            f"it is on {there}."
        )
    return found
