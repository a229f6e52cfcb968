"""A study from its file to its table: plan, jobs on workers, what remains."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from filelock import FileLock, Timeout

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.extensions import imported_extensions
from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.ranges import HOURS, MEMORY, THREADS_OR_AUTO
from torchrl_marl_offline.study.checking import StudyError, check_installed, study_errors
from torchrl_marl_offline.study.choosing_checks import check_choosing
from torchrl_marl_offline.study.classes_of_main import check_workers_know_classes
from torchrl_marl_offline.study.jobs import FAILURE, Job, TrainFunction, job_state
from torchrl_marl_offline.study.memory import SHARE, Capacity, free_memory
from torchrl_marl_offline.study.plan import Plan, job_folder, plan_study, searches_without_choice, select
from torchrl_marl_offline.study.progress import StudyProgress
from torchrl_marl_offline.study.ray_backend import RayWorkers
from torchrl_marl_offline.study.settings import Study, read_study
from torchrl_marl_offline.study.table import DATA, write_results
from torchrl_marl_offline.study.training import train_population
from torchrl_marl_offline.study.trial_scores import trial_scores
from torchrl_marl_offline.study.workers import Backend, LocalWorkers
from torchrl_marl_offline.training.run.interruption import StopRequest


@dataclass(frozen=True)
@checked
class Machine:
    """What a study may use.

    Attributes:
        workers: populations that are trained at once; 0 for one a GPU, or one a CPU core where there is no GPU.
        threads: of each worker; 0 for an equal share of the CPU cores, though no more than torch has in this process
            (``OMP_NUM_THREADS``, :func:`torch.set_num_threads`).
        memory: bytes for all workers of a device together; 0 for four fifths of what is free there.
        hours: after which the runs save themselves and stop; 0 for no limit.
        ray: address of a Ray cluster, ``"local"``, or ``None`` for worker processes of this machine.
        ray_options: further arguments of :func:`ray.init`.
    """

    workers: Annotated[int, THREADS_OR_AUTO] = 0
    threads: Annotated[int, THREADS_OR_AUTO] = 0
    memory: Annotated[float, MEMORY] = 0.0
    hours: Annotated[float, HOURS] = 0.0
    ray: str | None = None
    ray_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyOutcome:
    """What :func:`run_study` has come to.

    Attributes:
        finished: populations that have all their results.
        remaining: those that have not.
        failed: name of a population, or of a search without a choice -> what went wrong, in one line.
        interrupted: whether it was stopped by Ctrl-C or SIGTERM.
        table: path of the results.
    """

    finished: int
    remaining: int
    failed: dict[str, str]
    interrupted: bool
    table: Path


@checked
def run_study(
    study: Study | str | Path,
    *,
    machine: Machine = Machine(),
    only: Sequence[str] = (),
    train: TrainFunction = train_population,
    backend: Backend | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> StudyOutcome:
    """Run what is left of a study, and write its table.

    Args:
        study: what :func:`read_study` read, or the file.
        machine: what it may use.
        only: names of methods and datasets, to run a part.
        train: trains the population of one job; it must be importable by the workers.
        backend: runs the jobs; by default worker processes, or the tasks of ``machine.ray``.
        progress: show a bar, where standard error is a terminal.
        say: called with each line that tells how it goes.

    Raises:
        StudyError: the study's folder belongs to another study, or another process is running it.
        ImportError: a library of the extra ``study`` is missing.
    """
    check_installed()
    study = study if isinstance(study, Study) else read_study(study)
    output = study.settings.output
    seen = Plan.load(output)
    plan = make_plan(study, machine)
    jobs = make_jobs(study, plan, machine, only)  # all that can be refused is, before anything is written
    if backend is None:
        check_workers_know_classes(jobs, import_main=machine.ray is None)
    with _only_runner(output):
        if Plan.load(output) != seen:  # another runner was here in between
            plan = make_plan(study, machine)
            jobs = make_jobs(study, plan, machine, only)
        plan.save(output)
        with replacing_file(output / "study.toml") as temporary:
            shutil.copyfile(study.file, temporary)
        failed: dict[str, str] = {}
        while True:
            bar = StudyProgress(jobs, show=progress)
            say(f"{plan.name}: {bar.line()}, in {output}")
            try:
                interrupted = _train(jobs, train, backend or _backend(study, machine), bar, failed)
            finally:
                bar.close()
                table = write_results(plan, output)
            known, deadline = plan.populations, jobs[0].deadline
            plan = plan if plan.search is None else make_plan(study, machine)  # with the rungs that can be decided now
            if plan.populations == known:
                break
            plan.save(output)
            jobs = [replace(job, deadline=deadline) for job in make_jobs(study, plan, machine, only)]
            if interrupted or _is_late(jobs):
                bar = StudyProgress(jobs, show=False)
                bar.close()
                break
        states = [job_state(job.folder) for job in jobs]
        remaining = len(states) - states.count("finished")
        lines = _closing_lines(study, bar, failed, remaining, interrupted, table)
        ended = {} if interrupted or remaining else searches_without_choice([job.population for job in jobs])
        for line in (*ended.values(), *lines):
            say(line)
        failed |= ended
        return StudyOutcome(states.count("finished"), remaining, failed, interrupted, table)


@contextmanager
def _only_runner(output: Path) -> Iterator[None]:
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(output / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise StudyError(f"Another process is running the study in {output}; wait for it, or end it.") from error
    with lock:
        yield


def _is_late(jobs: Sequence[Job]) -> bool:
    return any(job.deadline is not None and time.time() >= job.deadline for job in jobs)


def _train(
    jobs: Sequence[Job], train: TrainFunction, backend: Backend, bar: StudyProgress, failed: dict[str, str]
) -> bool:
    """Run the jobs that are neither finished nor in ``failed``, where it notes what fails and why.

    Returns:
        Whether it was interrupted.
    """
    left = [job for job in jobs if job_state(job.folder) != "finished" and job.population.name not in failed]
    if not left:
        return False
    with StopRequest("Stopping: the runs in hand save themselves.") as stop:

        def tick() -> bool:
            bar.look()
            return not (stop.requested or _is_late(left))

        with closing(backend.run(left, train, tick=tick)) as outcomes:
            for outcome in outcomes:
                bar.look(now=True)
                if outcome.state == "failed":
                    failed[outcome.population] = outcome.message
                    folder = next(job.folder for job in left if job.population.name == outcome.population)
                    bar.write(f"failed: {outcome.population}: {outcome.message} (traceback: {folder / FAILURE})")
                else:
                    bar.write(f"{outcome.state}: {outcome.population} ({bar.line()})")
        bar.look(now=True)
        return stop.requested


def make_plan(study: Study, machine: Machine) -> Plan:
    """Return the plan of a study on a machine: as many runs together as its memory allows."""
    devices = _devices(study, machine)
    if not machine.memory and devices[0].startswith("cuda") and not torch.cuda.is_available():
        raise StudyError("There is no GPU here to ask how much memory those of the cluster have; say so by --memory.")
    memory = machine.memory or SHARE * free_memory(devices[0])
    budget = memory / devices.count(devices[0])
    capacity = Capacity(budget, {source.name: source for source in study.datasets})
    plan = plan_study(study, capacity=capacity, score=trial_scores)
    check_choosing(study, plan.runs, capacity)
    _check_goals(plan)
    for source in study.datasets:
        source.check_metric(study.settings.metric)
    return plan


def _check_goals(plan: Plan) -> None:
    """Refuse runs with hindsight on data without goals.

    Raises:
        StudyError: there are some.
    """
    names = dict.fromkeys(run.dataset for run in plan.runs if run.settings.get("hindsight", "off") != "off")
    with study_errors():
        for name in names:
            plan.datasets[name].check_goals()


def make_jobs(study: Study, plan: Plan, machine: Machine, only: Sequence[str] = ()) -> list[Job]:
    """Return the jobs of a plan, or of the part of it that ``only`` names."""
    output = study.settings.output.absolute()
    deadline = time.time() + 3600 * machine.hours if machine.hours else None
    return [
        Job(
            job_folder(output, population),
            output / DATA,
            population,
            plan.datasets[population.dataset],
            plan.evaluation,
            study.settings,
            _devices(study, machine)[0],
            _threads(study, machine),
            deadline,
            imported_extensions(),
            plan.estimated_by,
            plan.offline,
            estimates=population.runs[0].rung is None or plan.search.by == plan.estimated_by,
            others=tuple(plan.datasets[name] for name in population.datasets[1:]),
        )
        for population in select(plan, only)
    ]


def _backend(study: Study, machine: Machine) -> Backend:
    devices = _devices(study, machine)
    if machine.ray is None:
        return LocalWorkers(devices)
    gpus = 1.0 if devices[0].startswith("cuda") else 0.0
    workers = machine.workers or (len(devices) if machine.ray == "local" else None)
    return RayWorkers(
        machine.ray, workers=workers, threads=_threads(study, machine), gpus=gpus, options=machine.ray_options
    )


def _devices(study: Study, machine: Machine) -> list[str]:
    """Return the device of each worker.

    Raises:
        StudyError: CUDA is wanted and there is none.
    """
    gpus = torch.cuda.device_count()
    if study.settings.device not in ("auto", "cpu", "cuda"):
        raise StudyError(f"[study] device must be auto, cpu or cuda, got {study.settings.device!r}.")
    if study.settings.device == "cuda" and machine.ray not in (None, "local"):
        return ["cuda:0"]  # a task's own; this machine may have none
    if study.settings.device == "cuda" and not gpus:
        raise StudyError('[study] device = "cuda" needs an NVIDIA GPU and a CUDA build of torch; use "cpu".')
    if study.settings.device == "cpu" or not gpus:
        return ["cpu"] * (machine.workers or _cores())
    return [f"cuda:{index % gpus}" for index in range(machine.workers or gpus)]


def _threads(study: Study, machine: Machine) -> int:
    return machine.threads or max(1, min(_cores() // len(_devices(study, machine)), torch.get_num_threads()))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _closing_lines(
    study: Study, bar: StudyProgress, failed: dict[str, str], remaining: int, interrupted: bool, table: Path
) -> list[str]:
    lines = [f"{len(failed)} populations failed: {', '.join(failed)}"] if failed else []
    if remaining > len(failed):
        why = "Interrupted" if interrupted else "The time is over"
        lines.append(f"{why}, everything is saved: {bar.line()}; go on with the same command.")
    elif remaining:
        lines.append(f"{bar.line()}; the same command tries the failed ones again.")
    else:
        lines.append(f"All {bar.runs} runs are done.")
    folder = study.settings.output
    return [*lines, f"results: {table}; report: python -m torchrl_marl_offline study report {folder}"]
