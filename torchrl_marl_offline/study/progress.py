"""One line that says how far a study is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from torchrl_marl_offline.study.jobs import Job, job_state, job_step

_REFRESH_SECONDS = 2.0


class StudyProgress:
    """How many runs and updates are done, how fast it goes, and how long the rest will take.

    The rate counts the updates of all members since the first of them that this invocation saw; what workers need to
    start and to load data counts, as the rest will need it, too.

    Args:
        jobs: all that is to be done; what their folders hold already counts as done before.
        show: draw a bar, where standard error is a terminal.
    """

    def __init__(self, jobs: Sequence[Job], *, show: bool = True) -> None:
        self.jobs = {job.population.name: job for job in jobs}
        self.total = sum(job.population.updates for job in jobs)
        self.runs = sum(len(job.population.runs) for job in jobs)
        self._steps = dict.fromkeys(self.jobs, 0)
        self._open = set(self.jobs)
        self._read()
        self.start, self._began, self._looked = self.updates, time.monotonic(), 0.0
        self.bar: Any = tqdm(
            total=self.total,
            initial=self.start,
            disable=None if show else True,
            bar_format="{percentage:3.0f}% |{bar:20}| {desc}",
            mininterval=0,
        )

    @property
    def updates(self) -> int:
        """Updates of all members."""
        return sum(self._steps[name] * len(job.population.runs) for name, job in self.jobs.items())

    @property
    def finished_runs(self) -> int:
        """Runs of finished populations."""
        return sum(len(job.population.runs) for name, job in self.jobs.items() if name not in self._open)

    @property
    def rate(self) -> float:
        """Updates a second in this invocation, over all workers; 0 until there are any."""
        seconds = time.monotonic() - self._began
        return (self.updates - self.start) / seconds if seconds > 0 else 0.0

    def look(self, *, now: bool = False) -> None:
        """Read how far the jobs are, every two seconds at most."""
        if not now and time.monotonic() - self._looked < _REFRESH_SECONDS:
            return
        self._looked = time.monotonic()
        self._read()
        self.bar.set_description_str(self.line(), refresh=False)
        self.bar.n = self.updates
        self.bar.refresh()

    def _read(self) -> None:
        for name in list(self._open):
            job = self.jobs[name]
            if job_state(job.folder) == "finished":
                self._open.discard(name)
                self._steps[name] = job.population.steps  # also where all members were frozen before
            else:
                self._steps[name] = job_step(job.folder)

    def line(self) -> str:
        """Return the state in one line."""
        parts = [f"{self.finished_runs} of {self.runs} runs", f"{self.updates:,} of {self.total:,} updates"]
        if self.rate > 0:
            parts += [f"{self.rate:,.0f} updates/s", f"about {duration((self.total - self.updates) / self.rate)} left"]
        return ", ".join(parts)

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.write(text)

    def close(self) -> None:
        """Take the bar away."""
        self.bar.leave = False
        self.bar.close()


def duration(seconds: float) -> str:
    """Return a time as ``"3 h 20 min"``, ``"12 min"`` or ``"40 s"``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
