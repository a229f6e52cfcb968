"""The same jobs as tasks of a Ray cluster.

A worker that is lost, with its machine or alone, is replaced by Ray, and the job goes on from its newest checkpoint on
whatever machine it is then: the study's output folder must lie on storage that all machines share under one path, and
the package must be installed on each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torchrl_marl_offline.study.checking import StudyError
from torchrl_marl_offline.study.jobs import Job, JobOutcome, TrainFunction, failure, run_job
from torchrl_marl_offline.study.workers import ATTEMPTS

LOCAL = "local"


class RayWorkers:
    """Tasks on a Ray cluster.

    Args:
        address: of the cluster (``"auto"`` for the one this machine belongs to), or ``"local"`` to start one here.
        workers: most tasks at once; on a cluster Ray holds back what does not fit. ``None`` leaves it to Ray.
        threads: CPU cores that a task asks for.
        gpus: GPUs that a task asks for.
        options: further arguments of :func:`ray.init`.

    Raises:
        StudyError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        address: str,
        *,
        workers: int | None,
        threads: int,
        gpus: float = 0.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise StudyError("Ray is not installed; pip install 'torchrl-marl-offline[ray]'.") from error
        self.ray, self.workers, self.threads, self.gpus = ray, workers, max(1, threads), gpus
        settings: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
        if address == LOCAL:
            settings |= {"include_dashboard": False, "num_cpus": self.threads * (workers or 1)}
            # what this process can import, its workers can
            settings["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
        self._owned = not ray.is_initialized()
        if self._owned:
            try:
                ray.init(**settings | (options or {}))
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise StudyError(f"There is no Ray cluster at {address!r} ({error}); start one.") from error

    def run(self, jobs: Sequence[Job], train: TrainFunction, *, tick: Callable[[], bool]) -> Iterator[JobOutcome]:
        """See :class:`~.workers.Backend`."""
        ray = self.ray
        task = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=ATTEMPTS - 1)(_run)
        waiting, running, cancelled = list(jobs), {}, False
        try:
            while running or (waiting and not cancelled):
                while waiting and not cancelled and (self.workers is None or len(running) < self.workers):
                    job = waiting.pop(0)
                    job = replace(job, device="cuda:0" if self.gpus else job.device)
                    running[task.remote(job, train)] = job
                done, _ = ray.wait(list(running), timeout=1.0)
                for reference in done:
                    yield self._outcome(reference, running.pop(reference))
                if not tick() and not cancelled:
                    cancelled = True
                    for reference in running:
                        ray.cancel(reference, force=False)  # as Ctrl-C: the population saves itself
        finally:
            if self._owned:
                ray.shutdown()

    def _outcome(self, reference: Any, job: Job) -> JobOutcome:
        try:
            return self.ray.get(reference)
        except (self.ray.exceptions.TaskCancelledError, KeyboardInterrupt):
            return JobOutcome(job.population.name, "begun")
        except self.ray.exceptions.RayError as error:
            return failure(job, f"{type(error).__name__}: {error}")


def _run(job: Job, train: TrainFunction) -> JobOutcome:
    import torch

    torch.compiler.reset()  # a process may compile a function only a few times over
    return run_job(job, train)
