"""A run of training steps: sample and step, with logging, evaluation and checkpoints around them.

A run that is interrupted, or killed, at any moment and resumed ends with the weights of the run that was not, bit for
bit.
"""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from torch import nn
from torchrl.checkpoint import GlobalRNGState
from tqdm import tqdm

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.outputs import LoggerName
from torchrl_marl_offline.core.parts import part
from torchrl_marl_offline.core.paths import folder_name, user_path
from torchrl_marl_offline.core.put_back import preserved_rng
from torchrl_marl_offline.core.ranges import COUNT, REAL, SIZE, shown
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.training.online import OnlineReplay
from torchrl_marl_offline.training.populations.population import PopulationBuffer
from torchrl_marl_offline.training.populations.population_learner import PopulationLearner
from torchrl_marl_offline.training.run.checkpoints import BufferState, CheckpointManager
from torchrl_marl_offline.training.run.distributed import SingleProcess
from torchrl_marl_offline.training.run.experiment_loggers import check_loggers
from torchrl_marl_offline.training.run.fit import check_rows
from torchrl_marl_offline.training.run.interruption import StopRequest, how_to_resume
from torchrl_marl_offline.training.run.logged_diagnosis import LoggedDiagnosis
from torchrl_marl_offline.training.run.logging import RunLogger
from torchrl_marl_offline.training.run.metrics import (
    DIAGNOSES,
    MetricWindow,
    NonFiniteLossError,
    first_non_finite_parameter,
)
from torchrl_marl_offline.training.run.profiling import Profiler, make_profiler, profiled
from torchrl_marl_offline.training.run.run_lock import RunLock
from torchrl_marl_offline.training.run.saved_policies import POLICY_FILE, save_policy
from torchrl_marl_offline.training.run.value_alarm import ImpossibleValueError, OnImpossibleValues, ValueAlarm
from torchrl_marl_offline.training.step.learner import BaseLearner, Learner

if TYPE_CHECKING:
    from torchrl.data import ReplayBuffer
    from torchrl.objectives import LossModule

MEMBERS = "members"
STOPPING = "Stopping: finishing the step or evaluation in hand, then saving."
ALONE = ""
"""The one member of a run that is no population."""
Evaluator = Callable[[], Any]


@dataclass(frozen=True)
class TrainingFinished:
    """All steps are done.

    Attributes:
        step: the number of updates made, over all parts of the run.
        checkpoint: the last checkpoint, or ``None`` without an output folder.
        values: a sentence that says whether the critic's values were possible by the data's rewards, which the run also
            shows at its end; ``None`` without a critic.
    """

    step: int
    checkpoint: Path | None = None
    values: str | None = None


class TrainingInterrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, SIGTERM, or its ``deadline``) before its last step, and has saved itself.

    A ``KeyboardInterrupt``, no ``Exception``: a loop over seeds that goes on after errors ends, and so does a script
    (with Python's status 1; the library's commands and examples end with one sentence and status 130).

    Attributes:
        step: the number of updates made, over all parts of the run.
        checkpoint: the last checkpoint, or ``None`` without an output folder.
        message: one sentence that says how to go on.
    """

    def __init__(self, step: int, checkpoint: Path | None = None, message: str = "") -> None:
        super().__init__(step, checkpoint, message)  # from which a copy is made in another process
        self.step, self.checkpoint, self.message = step, checkpoint, message

    def __str__(self) -> str:
        return self.message


def _telling_where_options_belong(init: Callable[..., None]) -> Callable[..., None]:
    """Let a Trainer that is given an option of the step say whose it is."""
    of_step = {name for kind in (Learner, PopulationLearner) for name in inspect.signature(kind).parameters}

    @functools.wraps(init)
    def call(self: Trainer, *args: Any, **options: Any) -> None:
        if strange := sorted(options.keys() & (of_step - {"loss", "losses"})):
            raise TypeError(
                f"{strange[0]}= belongs to the step: Trainer(Learner(loss, {strange[0]}=...), buffer, steps=...)."
            )
        init(self, *args, **options)

    return call


class Trainer:
    """Make a run of training steps: sample and step, with logging, evaluation and checkpoints around them.

    Args:
        learner: a :class:`Learner`, or a :class:`PopulationLearner` for many losses at once; a loss alone stands for
            ``Learner(loss)``.
        buffer: a replay buffer with a batch size, on the loss's device; an
            :class:`~torchrl_marl_offline.training.OnlineReplay`, which gathers experience as it is sampled; for a
            population a :class:`PopulationBuffer`.
        steps: number of updates of the whole run.
        evaluators: name -> callable without arguments; it returns a dict of numbers, an object with ``summary()``, such
            as an :class:`~torchrl_marl_offline.evaluation.Evaluation`, or ``None``; for a population a mapping from
            members to these. One may call :meth:`finish`.
        eval_every: steps between evaluations, and one at the end; ``None`` for none.
        eval_at_start: evaluate before the first step, too.
        log_every: steps between logging points; a row holds the means over the steps since the one before.
        checkpoint_every: steps between checkpoints; ``None`` for one at the start and one at the end.
        keep_checkpoints: how many of the newest are kept.
        keep_best: ``(evaluator, metric)`` whose highest value marks the checkpoint that is kept beside the newest; not
            agreement with recorded actions, which is highest where least is learned beyond them; not for a population.
        output: folder of the CSV files, of ``checkpoints/`` and of the newest policy (``policy.pt``, where the actor is
            one of :func:`~torchrl_marl_offline.make_actor`), of a population in ``members/NAME/`` for each; ``None``
            writes nothing.
        logger: names of ``"csv"``, ``"tensorboard"`` and ``"wandb"``, to which the run, or each member of a population,
            is logged in its folder (CSV files in any case); or a :class:`RunLogger` of one's own, which is not closed;
            not for a population.
        deadline: moment (:func:`time.time`) after which the run saves itself and stops, as on Ctrl-C: also then its
            results are not those of a finished run, and :meth:`train` raises :class:`TrainingInterrupted`.
        distributed: the processes that share the run, each with its share of every batch; see
            :func:`distributed_from_environment`. The first alone evaluates, logs and writes files.
        profile: account for where a step goes, in ``output/profile``: true, or the number of steps to time; see
            :class:`~torchrl_marl_offline.training.run.profiling.Profiler`.
        on_impossible_values: what happens at the first logging point at which mean ``|Q|`` exceeds what the rewards of
            the data allow: ``"warn"``, ``"stop"`` by an error (a population leaves the member out, and the others go
            on), or ``"ignore"``; see :class:`~torchrl_marl_offline.training.run.value_alarm.ValueAlarm`.
        progress: show a bar, and a line per evaluation.

    Example:
        >>> trainer = Trainer(loss, buffer, steps=10_000, output="runs/spread", eval_every=1_000,    # doctest: +SKIP
        ...                   evaluators={"recipe": lambda: evaluate(actor, env, episodes=100, seed=0)})
        >>> trainer.train()                                                                          # doctest: +SKIP
    """

    @_telling_where_options_belong
    @checked
    def __init__(
        self,
        learner: BaseLearner | LossModule,
        buffer: ReplayBuffer | OnlineReplay | PopulationBuffer,
        *,
        steps: Annotated[int, COUNT],
        evaluators: Mapping[str, Evaluator] | None = None,
        eval_every: Annotated[int | None, COUNT] = None,
        eval_at_start: bool = False,
        log_every: Annotated[int, COUNT] = 100,
        checkpoint_every: Annotated[int | None, COUNT, ReadWith("output", given=True)] = None,
        keep_checkpoints: Annotated[int, COUNT, ReadWith("output", given=True)] = 3,
        keep_best: Annotated[tuple[str, str] | None, ReadWith("output", given=True)] = None,
        output: str | Path | None = None,
        logger: RunLogger | Sequence[LoggerName] | None = None,
        deadline: Annotated[float | None, REAL] = None,
        distributed: SingleProcess | None = None,
        profile: bool | Annotated[int, SIZE] = False,
        on_impossible_values: OnImpossibleValues = "warn",
        progress: bool = True,
    ) -> None:
        self.learner = learner if isinstance(learner, BaseLearner) else Learner(learner)
        self.steps = steps
        _check_best(keep_best)
        logger = ("csv",) if logger is None else logger
        self._check_learner(keep_best, logger, output)
        self.learner.attach(buffer)
        self.processes = SingleProcess() if distributed is None else distributed
        is_main = self.processes.is_main
        self.buffer = self.processes.share(buffer)
        self.evaluators, self.eval_every = dict(evaluators or {}) if is_main else {}, eval_every
        self.eval_at_start = eval_at_start
        self.log_every, self.checkpoint_every, self.keep_best = log_every, checkpoint_every, keep_best
        self.output = None if output is None else user_path(output)
        self.checkpoints = self.output and CheckpointManager(self.output / "checkpoints", keep=keep_checkpoints)
        self._owns_loggers = not (isinstance(logger, RunLogger) and is_main)
        self.loggers = self._make_loggers(logger) if self._owns_loggers else {ALONE: logger}
        self.progress = progress and is_main
        self.step, self.seconds, self.best, self.finished = 0, 0.0, -math.inf, False
        self._is_to_finish = self._is_evaluating = False
        self.deadline = math.inf if deadline is None else deadline
        self.alarm = ValueAlarm(self.loss, buffer, on_impossible_values, self.learner.members)
        self._reported: set[str] = set()
        self._window = MetricWindow()
        self._diagnosis, self._newest = LoggedDiagnosis(self.learner, log_every), None
        self._checkpoint: Path | None = None
        self._saved_step: int | None = None
        self.profiler = self._make_profiler(profile) if is_main else None
        self._lock = RunLock(self.output) if self.output is not None and is_main else None

    def _check_learner(self, keep_best: Any, logger: Any, output: Any) -> None:
        """Refuse what one learner or the other cannot do."""
        self.learner.rhythm.check_steps(self.steps)
        if self.learner.is_population and keep_best is not None:
            raise ValueError("keep_best= is for one run; a population keeps the newest of all members.")
        if isinstance(logger, RunLogger):
            if self.learner.is_population:
                raise ValueError("A RunLogger is of one run; give a population the names of loggers, one each is made.")
            return
        check_loggers(logger)
        if set(logger) - {"csv"} and output is None:
            raise ValueError("TensorBoard and Weights & Biases need a folder to write to; give Trainer(output=...).")

    def _make_loggers(self, names: Any) -> dict[str, RunLogger]:
        """Return every member's logger, whose files the first process alone writes."""
        if self.output is None or not self.processes.is_main:
            return {member: RunLogger(None) for member in self.learner.members}
        group = self.output.name if self.learner.is_population else None
        return {
            member: RunLogger.named(names, self.member_folder(member), group=group) for member in self.learner.members
        }

    @property
    def loss(self) -> nn.Module:
        """The learner's loss, or its population."""
        return self.learner.loss

    @property
    def logger(self) -> RunLogger:
        """The logger of a run that is no population, which has :attr:`loggers`."""
        return self.loggers[ALONE]

    def member_folder(self, member: str = ALONE) -> Path:
        """Return the folder of a member's files; of a run that is no population, its output."""
        if self.output is None:
            raise ValueError("There are no files without an output folder; give Trainer(output=...).")
        if not self.learner.is_population:
            return self.output
        return self.output / MEMBERS / folder_name(member, "A member")

    @property
    def left_out(self) -> dict[str, int]:
        """The members of a population that are no longer finite, and the step at which each was left out."""
        return self.learner.left_out()

    @property
    def impossible(self) -> dict[str, int]:
        """The members whose values exceeded what the rewards of the data allow, and the logging point of each."""
        return dict(self.alarm.found)

    def finish(self) -> None:
        """End the run after the evaluation that calls this, as one that is done, before ``steps``.

        Raises:
            RuntimeError: no evaluator is running.
        """
        if not self._is_evaluating:
            raise RuntimeError("finish() is for evaluators; to stop otherwise, give fewer steps or a deadline.")
        self._is_to_finish = True

    def train(self, *, on_interrupt: Literal["raise", "return"] = "raise") -> TrainingFinished | TrainingInterrupted:
        """Train up to ``steps``; call :meth:`resume` before to go on with an earlier run.

        Args:
            on_interrupt: what becomes of a :class:`TrainingInterrupted`: it is raised, so that nobody takes a run that
                was stopped for a finished one; or ``"return"``: it is returned, for a caller that looks.

        Raises:
            TrainingInterrupted: the run was asked to stop, and has saved itself.
            RunInUseError: another process works in ``output``.
            ValueError: an evaluator that is never asked, or ``keep_best`` of one that is not there; a buffer that is
                empty, of other sizes than the loss's, or without a row that counts.
            WriteError: the disk is full; the checkpoints that are there stay.
        """
        if on_interrupt not in ("raise", "return"):
            raise ValueError(f'on_interrupt must be "raise" or "return", got {on_interrupt!r}.')
        self._check_evaluators()
        check_rows(self.learner.template, self.buffer)
        with self.processes.watched(), self._locked(), profiled(self.profiler):
            result = self._train()
        if isinstance(result, TrainingInterrupted):
            if on_interrupt == "raise":
                raise result
            if self.processes.is_main:
                print(result.message, flush=True)
        return result

    def _train(self) -> TrainingFinished | TrainingInterrupted:
        fresh = self._start()
        with StopRequest(STOPPING if self.progress else None) as stop, self._bar() as bar:
            if fresh and self.eval_at_start:
                self._evaluate(bar)
            while self.step < self.steps and not self.finished and not self._must_stop(stop):
                with part("step"):
                    self._update()
                if self._due(self.log_every):
                    with part("logging"):
                        self._log()
                if self._due(self.eval_every):
                    self._evaluate(bar)
                if self._due(self.checkpoint_every or self.steps):
                    with part("checkpoint"):
                        self.save()
                bar.update()
            return self._end()

    def _make_profiler(self, profile: bool | int) -> Profiler | None:
        every = {"logging": self.log_every, "evaluation": self.eval_every}
        every["checkpoint"] = self.checkpoint_every or self.steps
        members = len(self.learner.members)
        return make_profiler(profile, self.output, device=self.learner.device, every=every, members=members)

    def _must_stop(self, stop: StopRequest) -> bool:
        return self.processes.any_wants_to_stop(stop.requested or time.time() >= self.deadline, self.step)

    def _update(self) -> None:
        """One step; nothing in it waits for the device."""
        began = time.perf_counter()
        with part("data"):
            batch = self.buffer.sample()
        self._window.append(self.learner.step(batch))
        self._newest = batch
        self.step += 1
        self.seconds += time.perf_counter() - began

    def _due(self, every: int | None) -> bool:
        return every is not None and (self.step % every == 0 or self.step == self.steps)

    def _log(self) -> None:
        began = time.perf_counter()
        self._check_losses()
        means = self._window.means()  # waits for the device, so that its time counts
        means |= self._diagnosis.check(self.step, self._newest) if self.processes.is_main else {}
        self.seconds += time.perf_counter() - began
        self._report_left_out()
        for index, (member, logger) in enumerate(self.loggers.items()):
            if member not in self._reported:
                logger.log_train(self.step, _of_member(means, index) | {"seconds": self.seconds})
        self._check_values(means)
        self._window.clear()

    def _check_values(self, means: Mapping[str, Any]) -> None:
        """Warn of values that the rewards do not allow, stop, or leave their members out from now on."""
        before = set(self.alarm.found)
        message, stops = self.alarm.check(self.step, means, self._window.first), self.alarm.action == "stop"
        if stops and not self.learner.is_population:
            message = self.processes.from_main(message)
            if message is not None:
                raise ImpossibleValueError(self.step, message)
        if message is not None and self.processes.is_main:
            self.alarm.warn(message)
            if stops:
                self.learner.leave_out(self.alarm.found.keys() - before)

    def _report_left_out(self) -> None:
        for member, at in self.left_out.items():
            if member not in self._reported:
                self._reported.add(member)
                stopped = self.alarm.action == "stop" and self.alarm.found.get(member) == at
                why = "has impossible values" if stopped else "is not finite"
                if self.progress:
                    text = f"{member} {why} since step {at}: it keeps its last finite parameters, the others go on"
                    print(f"step {self.step:>7}  {text}", flush=True)

    def _evaluate(self, bar: Any) -> None:
        self._report_left_out()
        for name, evaluator in self.evaluators.items():
            self._is_evaluating = True
            try:
                with part(f"evaluation {name}"), preserved_rng():
                    result = evaluator()
            finally:
                self._is_evaluating = False
            if result is None:
                continue
            found = self._by_member(name, result) if self.learner.is_population else {ALONE: result}
            rows = {member: _row(name, each) for member, each in found.items() if each is not None}
            for member, row in rows.items():
                self.loggers[member].log_eval(self.step, name, row)
            if self.progress and rows:
                who = f", mean of {len(rows)}" if self.learner.is_population else ""
                bar.write(f"step {self.step:>7}  {name}{who}: " + one_line(_means(rows)))
            if self.keep_best is not None and self.keep_best[0] == name:
                self._keep_if_best(self._best_metric(rows[ALONE]))
        self.finished = self.processes.from_main(self._is_to_finish)

    def _by_member(self, name: str, result: Any) -> Mapping[str, Any]:
        """Return what an evaluator found of each member."""
        if not isinstance(result, Mapping) or any(member not in self.loggers for member in result):
            raise TypeError(
                f"The evaluator {name!r} of a population must return a mapping from its members' names to the numbers "
                f"of each; got {shown(result)}."
            )
        return result

    def _best_metric(self, metrics: Mapping[str, Any]) -> float:
        name, metric = self.keep_best
        if metric not in metrics:
            raise ValueError(
                f"keep_best names {metric!r}, which {name!r} does not measure; it has {', '.join(metrics)}."
            )
        return float(metrics[metric])

    def _check_evaluators(self) -> None:
        """Refuse evaluators that would never be asked, and a best one of none."""
        if not self.processes.is_main:
            return
        if self.keep_best is not None and self.keep_best[0] not in self.evaluators:
            known = ", ".join(map(repr, self.evaluators)) or "none"
            raise ValueError(f"keep_best names the evaluator {self.keep_best[0]!r}; there is {known}.")
        if self.evaluators and self.eval_every is None and not self.eval_at_start:
            raise ValueError("The evaluators would never be asked; give eval_every, or leave them out.")
        if not self.evaluators and (self.eval_at_start or self.eval_every is not None):
            raise ValueError(
                "eval_every and eval_at_start are read only with evaluators; give some, or leave them out."
            )

    def _keep_if_best(self, value: float) -> None:
        if value > self.best and self.checkpoints is not None:
            self._check_finite()
            self.checkpoints.save_best(self.step, metadata={"value": value}, loss=self.loss)
        self.best = max(self.best, value)

    def save(self) -> Path | None:
        """Write a checkpoint of everything the run needs to go on; returns its path, or ``None`` without an output
        folder.

        Raises:
            NonFiniteLossError: instead of writing a checkpoint with a parameter that is not finite.
        """
        if self.checkpoints is None or self._saved_step == self.step:
            return self._checkpoint
        self._check_finite()
        if not self.processes.is_main:
            self._saved_step = self.step
            return None
        self._save_policies()  # first: a run that is killed in between writes them again, for it has no checkpoint yet
        self._checkpoint = self.checkpoints.save(self.step, **self.components())
        self._saved_step = self.step
        return self._checkpoint

    def _save_policies(self) -> None:
        """Write the newest policy, of a population that of each member."""
        for member, loss in self.learner.member_losses():
            actor = getattr(loss, "actor_network", None)
            if hasattr(actor, "build"):
                save_policy(self.member_folder(member) / POLICY_FILE, actor, {"step": self.step})

    def resume(self, checkpoint: str | Path | None = None) -> int:
        """Go back to ``checkpoint`` (by default the newest whole one of ``output``) and return its step.

        Rows of the CSV files after that step are dropped: they will be written again. Where this raises, nothing has
        changed: neither the loss nor a file.

        Raises:
            CheckpointError: it is damaged, or of other networks, data or settings.
            FileNotFoundError: there is none.
            RunInUseError: another process works in ``output``.
        """
        if self.checkpoints is None:
            raise ValueError(
                "There is no checkpoint to resume from without an output folder; give Trainer(output=...)."
            )
        with self._locked_if_it_works():
            return self._resume(checkpoint)

    def _resume(self, checkpoint: str | Path | None) -> int:
        path = self.checkpoints.latest() if checkpoint is None else user_path(checkpoint)
        # Tensors go through the CPU, where RNG states must lie, and are copied from there to where each component
        # lives.
        self.step = self._saved_step = self.checkpoints.load(path, map_location="cpu", **self.components())
        if not self._counts_updates:  # of a version in which the steps were those of the run
            self.learner.updates = self.step
        self._checkpoint = path
        self._truncate(self.step)
        if self.processes.is_main:
            self.checkpoints.tidy()
        return self.step

    @contextmanager
    def _locked_if_it_works(self) -> Iterator[None]:
        """Take the folder's lock, and keep it until the training ends unless the block fails."""
        if self._lock is not None:
            self._lock.acquire()
        try:
            yield
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock is None:
            yield
            return
        self._lock.acquire()
        self._lock.busy = True
        try:
            yield
        finally:
            self._lock.busy = False
            self._lock.release()

    def state_dict(self) -> dict[str, Any]:
        """Return the run's own counters, the metrics that are not logged yet, and what the learner counts."""
        return self.learner.own_state() | {
            "seconds": self.seconds,
            "best": self.best,
            "finished": self.finished,
            "window": self._window.state_dict(),
            "alarm": self.alarm.state_dict(),
            "reported": sorted(self._reported),
        }

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings than those of the checkpoint, where they change the numbers.

        Raises:
            ValueError: one differs.
        """
        self.learner.check_own_state(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.seconds, self.best, self.finished = state["seconds"], state["best"], state["finished"]
        self.learner.load_own_state(state)
        self._counts_updates = "updates" in state
        self._window.load_state_dict(state["window"], self.learner.device)
        self.alarm.load_state_dict(state.get("alarm", self.alarm.state_dict()))  # earlier versions had none
        self._reported = set(state.get("reported", ()))

    def components(self) -> dict[str, Any]:
        """Return what a checkpoint holds, by name."""
        parts = {"buffer": self._buffer_state(), "rng": GlobalRNGState(), "trainer": self}
        return self.learner.parts() | parts

    def _buffer_state(self) -> Any:
        """Return what saves and restores the sampling."""
        has_state = isinstance(self.buffer, OnlineReplay | PopulationBuffer)
        return self.buffer if has_state else BufferState(self.buffer)

    def _start(self) -> bool:
        """Make sure that a new run starts in an empty folder; return whether it is a new one."""
        if self.step > 0 or self._saved_step is not None:
            self._prepare()
            return False
        if self.checkpoints is not None and self.checkpoints.checkpoints():
            raise FileExistsError(
                f"{self.checkpoints.directory} holds an earlier run's checkpoints; resume it, or name another folder."
            )
        self._truncate(-1)
        self._prepare()
        self.save()
        return True

    def _truncate(self, step: int) -> None:
        for logger in self.loggers.values():
            logger.truncate(step)

    def _prepare(self) -> None:
        self.processes.start_alike(self.components)
        left, state = self.steps - self.step, self._buffer_state()
        message = self.learner.prepare(self.buffer, state=state, steps=left, processes=self.processes, say=self._say)
        if message is not None:
            self._say(message)

    def _say(self, message: str) -> None:
        if self.progress:
            print(message, flush=True)

    def _end(self) -> TrainingFinished | TrainingInterrupted:
        path = self.save()
        if self._owns_loggers:
            for logger in self.loggers.values():
                logger.close()
        if self.step >= self.steps or self.finished:
            verdict = self.alarm.verdict()
            if verdict is not None and self.alarm.action != "ignore":
                self._say(verdict)
            return TrainingFinished(self.step, path, verdict)
        advice = "nothing was saved, since there is no output folder"
        if path is not None:
            advice = f"saved {path}; go on with: {how_to_resume(self.output)}"
        message = f"Interrupted at step {self.step} of {self.steps}: {advice}"
        return TrainingInterrupted(self.step, path, message)

    def _check_losses(self) -> None:
        """Raise if a loss since the last logging point is not finite; a population leaves such members out itself."""
        found = None if self.learner.is_population else self._window.first_non_finite()
        if found is not None:
            row, term = found
            raise NonFiniteLossError(self.step - len(self._window) + 1 + row, term, self._checkpoint)

    def _check_finite(self) -> None:
        """Raise if a loss since the last logging point, or a parameter, is not finite."""
        self._check_losses()
        if not self.learner.is_population and (name := first_non_finite_parameter(self.loss)) is not None:
            raise NonFiniteLossError(self.step, name, self._checkpoint)

    def _bar(self) -> Any:
        # disable=None: no bar where the output is not a terminal
        return tqdm(total=self.steps, initial=self.step, unit="step", disable=None if self.progress else True)


def _row(name: str, result: Any) -> dict[str, float]:
    """Return the numbers of what an evaluator returned, for a row of the table.

    Raises:
        TypeError: it holds none, or what a table cannot.
    """
    found = result.summary() if hasattr(result, "summary") else result
    if not isinstance(found, Mapping) or not all(_is_column(*pair) for pair in found.items()):
        raise TypeError(
            f"The evaluator {name!r} must return numbers by name (other than 'step' and 'evaluator'), an object with "
            f"summary(), or None; got {shown(found)}."
        )
    return {name: value.item() if hasattr(value, "item") else value for name, value in found.items()}


def _is_column(name: Any, value: Any) -> bool:
    is_number = isinstance(value, int | float | str) or (getattr(value, "ndim", None) == 0 and hasattr(value, "item"))
    return isinstance(name, str) and name not in ("step", "evaluator") and is_number


def _of_member(means: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return a member's metrics out of a window's means."""
    return {name: value[index] if isinstance(value, list) else value for name, value in means.items()}


def _means(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean over members of each number that all of them have."""
    first, *others = rows.values()
    numbers = [
        n for n, value in first.items() if isinstance(value, int | float) and all(n in other for other in others)
    ]
    return {name: sum(float(row[name]) for row in rows.values()) / len(rows) for name in numbers}


def one_line(metrics: Mapping[str, Any]) -> str:
    """Return the numbers of an evaluation in one line."""
    shown = {name: value for name, value in metrics.items() if not name.endswith(("_low", "_high", "_std"))}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items() if isinstance(value, int | float))


def _check_best(keep_best: tuple[str, str] | None) -> None:
    if keep_best is not None and keep_best[1] in DIAGNOSES:
        raise ValueError(
            f"keep_best must not be by {keep_best[1]!r}, which says how like the recorded data a policy is, not what "
            "it earns; name a metric of a simulator, or leave it out."
        )
