"""Jobs in worker processes of this machine.

A worker is used again for the next job, so that it imports torch once. One that dies (killed, or out of memory) is
replaced, and its job goes on from its newest checkpoint; a job that kills its worker :data:`ATTEMPTS` times has failed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Protocol

from torchrl_marl_offline.study.jobs import Job, JobOutcome, TrainFunction, failure, run_job

ATTEMPTS = 3


class Backend(Protocol):
    """Something that runs jobs."""

    def run(self, jobs: Sequence[Job], train: TrainFunction, *, tick: Callable[[], bool]) -> Iterator[JobOutcome]:
        """Run jobs, at most as many at once as there are workers, and yield what became of each, as it is known.

        Args:
            jobs: in the order in which they are started.
            train: trains one.
            tick: called about once a second; when it returns false, no further job is started and those that run are
                asked to save themselves.
        """
        ...


class LocalWorkers:
    """Worker processes, each with a device.

    Args:
        devices: one for each worker, e.g. ``["cpu", "cpu"]`` or ``["cuda:0", "cuda:1"]``.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = list(devices)

    def run(self, jobs: Sequence[Job], train: TrainFunction, *, tick: Callable[[], bool]) -> Iterator[JobOutcome]:
        """See :class:`Backend`."""
        waiting, lost, going = list(jobs), Counter(), True
        workers = [_Worker(device, train) for device in self.devices[: len(jobs)]]
        try:
            while any(worker.job for worker in workers) or (waiting and going):
                for worker in workers:
                    if worker.job is None and waiting and going:
                        worker.give(waiting.pop(0))
                wait([worker.pipe for worker in workers if worker.job], timeout=1.0)
                for worker in workers:
                    if (outcome := worker.outcome()) is not None:
                        yield outcome
                    elif worker.job is not None and not worker.process.is_alive():
                        job, worker.job = worker.job, None
                        lost[job.population.name] += 1
                        if lost[job.population.name] < ATTEMPTS:
                            waiting.insert(0, job)
                        else:
                            code = worker.process.exitcode
                            yield failure(job, f"its worker died {ATTEMPTS} times (exit code {code}); is there memory?")
                if not tick():
                    going = False
                    for worker in workers:
                        worker.ask_to_stop()
        finally:
            for worker in workers:
                worker.leave()


def _context() -> multiprocessing.context.BaseContext:
    """Return how processes begin: forked from one that has imported what they need, or, where none can, anew.

    That one runs nothing and touches no GPU, so that its forks are as clean as new processes.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchrl_marl_offline.study.training"])
    return context


class _Worker:
    """A process that does one job after another; a new one, where it died."""

    def __init__(self, device: str, train: TrainFunction) -> None:
        self.device, self.train = device, train
        self.job: Job | None = None
        self._start()

    def _start(self) -> None:
        context = _context()
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_work, args=(there, self.train), name=f"study worker on {self.device}")
        self.process.start()
        there.close()  # or the death of the process would not close the pipe

    def give(self, job: Job) -> None:
        if not self.process.is_alive():
            self.pipe.close()
            self._start()
        self.job = replace(job, device=self.device)
        with suppress(BrokenPipeError, ConnectionResetError):  # it has just died, which shows
            self.pipe.send(self.job)

    def outcome(self) -> JobOutcome | None:
        """Return what became of the job, once it is known."""
        try:
            found = self.pipe.recv() if self.job is not None and self.pipe.poll() else None
        except (EOFError, ConnectionResetError):
            self.process.join()
            return None
        if found is not None:
            self.job = None
        return found

    def ask_to_stop(self) -> None:
        if self.job is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGTERM)

    def leave(self) -> None:
        if self.job is not None:
            self.process.kill()
        self.pipe.close()  # an idle one leaves by itself
        self.process.join()


def _work(pipe: Connection, train: TrainFunction) -> None:
    """Run the jobs that come through the pipe, until it is closed."""
    import torch

    stop = threading.Event()
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the runner alone, which asks its workers to stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        torch.compiler.reset()  # a process may compile a function only a few times over
        outcome = run_job(job, train, stop)
        try:
            pipe.send(outcome)
        except (BrokenPipeError, ConnectionResetError):
            return


def _stop_without_parent() -> None:
    """Ask the job to save itself when the runner is gone."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
