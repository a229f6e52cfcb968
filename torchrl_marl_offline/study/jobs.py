"""A population as a job: a folder in which it is trained, from wherever it was left, by whatever process.

What a job has come to is told by its files alone: ``result.json`` when it has finished, ``failure.txt`` with a
traceback when it failed, ``checkpoints/`` when it can go on. A lock keeps two processes from working on one job.
"""

from __future__ import annotations

import os
import platform
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from torchrl_marl_offline.core.extensions import import_extensions
from torchrl_marl_offline.core.files import write_json_atomic, write_text_atomic
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.study.checking import StudyError
from torchrl_marl_offline.study.choosing import OfflineSettings
from torchrl_marl_offline.study.plan import PlannedPopulation
from torchrl_marl_offline.study.settings import EvaluationSettings, StudySettings
from torchrl_marl_offline.study.sources import DatasetSource
from torchrl_marl_offline.training.run.logging import CsvError, Row, read_csv

State = Literal["new", "begun", "failed", "finished"]
RESULT, FAILURE, PROGRESS, MEMBERS = "result.json", "failure.txt", "progress.json", "members"
BEAT_SECONDS = 2.0
_AGAIN = "restore it, or delete {} and run the study again, which then trains these runs anew"


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to know.

    Attributes:
        folder: of the job; on a cluster it lies on storage that all machines share.
        data: folder of data that is made.
        population: what to train.
        source: on which dataset.
        others: further datasets of the same sizes, where some of the runs are on these.
        evaluation: how to judge it.
        study: the study's settings, of which a job reads ``compile``, ``log_every``, ``logger``,
            ``checkpoint_every``, ``keep_checkpoints``.
        device: where.
        threads: of torch; 0 leaves the choice to torch.
        deadline: :func:`time.time` after which the job saves itself and stops.
        extensions: files and modules of the user's own that the worker imports.
        estimated_by: the word by which its runs are estimated, on episodes that no run of the study is trained on;
            ``None`` where nothing is held out for that.
        offline: how they are estimated.
        estimates: whether the runs of this job are, too.
    """

    folder: Path
    data: Path
    population: PlannedPopulation
    source: DatasetSource
    evaluation: EvaluationSettings
    study: StudySettings
    device: str = "cpu"
    threads: int = 1
    deadline: float | None = None
    extensions: tuple[str, ...] = ()
    estimated_by: str | None = None
    offline: OfflineSettings = OfflineSettings()  # noqa: RUF009
    estimates: bool = True
    others: tuple[DatasetSource, ...] = ()


@dataclass
class Progress:
    """What a training function tells of itself while it works.

    Attributes:
        step: updates made.
        stop: set when the job should save itself and stop, also before the training begins.
    """

    step: Callable[[], int] = lambda: 0
    stop: threading.Event | None = None

    def stop_requested(self, job: Job) -> bool:
        """Say whether the job should stop now."""
        late = job.deadline is not None and time.time() >= job.deadline
        return late or (self.stop is not None and self.stop.is_set())


@dataclass(frozen=True)
class Trained:
    """What a training function returns.

    Attributes:
        finished: whether all steps are done; otherwise the population has saved itself.
        step: updates made.
        diverged: name of a run -> the step at which it stopped being finite.
        seconds: spent on updates, over all parts of the job.
        impossible: name of a run -> the step at which its values exceeded what the rewards of the data allow.
    """

    finished: bool
    step: int
    diverged: dict[str, int]
    seconds: float
    impossible: dict[str, int] = field(default_factory=dict)


TrainFunction = Callable[[Job, Progress], Trained]


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job.

    Attributes:
        population: its name.
        state: ``"begun"`` when it was interrupted.
        message: of a failure, in one line.
    """

    population: str
    state: State
    message: str = ""


def run_job(job: Job, train: TrainFunction, stop: threading.Event | None = None) -> JobOutcome:
    """Train a population to its end, or until it is asked to stop; whatever happens is told by the job's files.

    Args:
        job: what to do.
        train: does it, in ``job.folder``, going on with what it finds there.
        stop: set to ask the job to stop.
    """
    name, progress = job.population.name, Progress(stop=stop)
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(job.folder / ".lock"):  # a worker whose runner was killed may still be saving
            if job_state(job.folder) == "finished":
                return JobOutcome(name, "finished")
            (job.folder / FAILURE).unlink(missing_ok=True)
            import_extensions(job.extensions)
            with _heartbeat(job, progress):
                trained = train(job, progress)
            if not trained.finished:
                return JobOutcome(name, "begun")
            write_json_atomic(
                job.folder / RESULT,
                {
                    "steps": trained.step,
                    "members": len(job.population.runs),
                    "diverged": trained.diverged,
                    "impossible": trained.impossible,
                    "seconds": trained.seconds,
                    "device": job.device,
                    "threads": job.threads,
                },
            )
            if not job.study.keep_checkpoints:
                shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
            return JobOutcome(name, "finished")
    except KeyboardInterrupt:
        return JobOutcome(name, "begun")
    except Exception as error:
        return failure(job, f"{type(error).__name__}: {error}", details=traceback.format_exc())


def failure(job: Job, message: str, *, details: str = "") -> JobOutcome:
    """Write down that a job failed, and return it."""
    write_text_atomic(job.folder / FAILURE, details or message + "\n")
    return JobOutcome(job.population.name, "failed", " ".join(message.split()))


def job_state(folder: Path) -> State:
    """Say what the files of a job tell."""
    if (folder / RESULT).exists():
        return "finished"
    if (folder / FAILURE).exists():
        return "failed"
    return "begun" if any((folder / "checkpoints").glob("checkpoint-*")) else "new"


def job_result(folder: Path) -> dict[str, Any] | None:
    """Read what a finished job has written, or return ``None``.

    Raises:
        StudyError: it is damaged.
    """
    file = folder / RESULT
    if not file.exists():
        return None
    try:
        result = read_json(file)
    except ValueError as error:
        raise StudyError(f"{file} is damaged ({error}); {_AGAIN.format(folder)}.") from error
    steps = [result.get(key) for key in ("diverged", "impossible")] if isinstance(result, dict) else [None]
    if not all(isinstance(at, dict) and all(isinstance(step, int) for step in at.values()) for at in steps):
        raise StudyError(f"{file} is damaged: it does not say which runs diverged; {_AGAIN.format(folder)}.")
    return result


def job_step(folder: Path) -> int:
    """Return how many updates the members of a job have made, as far as its heartbeat tells."""
    try:
        return int(read_json(folder / PROGRESS)["step"])
    except (OSError, ValueError, KeyError):
        return 0


def evaluations_of(folder: Path, run: str) -> list[Row]:
    """Read the evaluations of a run, as far as there are any.

    Raises:
        StudyError: its file is damaged, and the job has finished, so that nothing writes it anew.
    """
    file = folder / MEMBERS / run / "eval.csv"
    try:
        return read_csv(file) if file.exists() else []
    except CsvError as error:
        if job_state(folder) == "finished":
            raise StudyError(f"{error.what}; {_AGAIN.format(folder)}.") from error
        raise


@contextmanager
def _heartbeat(job: Job, progress: Progress) -> Iterator[None]:
    """Write the step to ``progress.json`` while the job works, for whoever watches, on this machine or another."""
    ended, before = threading.Event(), job_step(job.folder)
    progress.step = lambda: before  # until the training knows better

    def write() -> None:
        facts = {"step": progress.step(), "host": platform.node(), "process": os.getpid()}
        write_json_atomic(job.folder / PROGRESS, facts)

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            write()

    write()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write()
