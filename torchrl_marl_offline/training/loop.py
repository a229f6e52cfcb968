"""The training loop: sample, loss, backward, Adam, soft update; with logging, evaluation and checkpoints around it.

A run that is interrupted, or killed, at any moment and resumed ends with the weights of the run that was not, bit for
bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tensordict import TensorDictBase
from torchrl.checkpoint import GlobalRNGState
from torchrl.objectives import SoftUpdate, TargetNetUpdater
from tqdm import tqdm

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.parts import part
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT, LEARNING_RATE, POSITIVE, RATE, REAL, SIZE, AtMost
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.training.checkpoints import BufferState, CheckpointManager
from torchrl_marl_offline.training.compile_choice import check_compile, choose_compile
from torchrl_marl_offline.training.cuda_graph import CudaGraphStep
from torchrl_marl_offline.training.distributed import SingleProcess
from torchrl_marl_offline.training.evaluation import preserved_rng
from torchrl_marl_offline.training.fit import check_optimizer, check_rows, check_target_updater
from torchrl_marl_offline.training.gradients import CompiledGradients, Gradients, Precision, check_precision
from torchrl_marl_offline.training.held_out import DIAGNOSES
from torchrl_marl_offline.training.interruption import StopRequest, how_to_resume
from torchrl_marl_offline.training.logging import RunLogger
from torchrl_marl_offline.training.metrics import (
    GradientNorm,
    MetricWindow,
    NonFiniteLossError,
    first_non_finite_parameter,
    trained_by_network,
)
from torchrl_marl_offline.training.online import OnlineReplay
from torchrl_marl_offline.training.optimizer import can_be_captured, default_optimizer, marked_capturable
from torchrl_marl_offline.training.profiling import Profiler, make_profiler, profiled
from torchrl_marl_offline.training.run_lock import RunLock
from torchrl_marl_offline.training.run_settings import differing, run_settings
from torchrl_marl_offline.training.saved_policies import POLICY_FILE, save_policy
from torchrl_marl_offline.training.series_sampling import check_draws_series
from torchrl_marl_offline.training.target_update import ForeachSoftUpdate
from torchrl_marl_offline.training.value_alarm import ImpossibleValueError, OnImpossibleValues, ValueAlarm

if TYPE_CHECKING:
    from torchrl.data import ReplayBuffer
    from torchrl.objectives import LossModule

Evaluator = Callable[[], Any]


@dataclass(frozen=True)
class TrainingFinished:
    """All steps are done.

    Attributes:
        step: the number of updates made, over all parts of the run.
        checkpoint: the last checkpoint, or ``None`` without an output folder.
    """

    step: int
    checkpoint: Path | None = None


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


class Trainer:
    """Train one loss module on one replay buffer.

    Args:
        loss: any TorchRL loss; the outputs that start with ``"loss"`` are summed and minimized, the other scalars are
            metrics.
        buffer: a replay buffer with a batch size, on the loss's device; or an
            :class:`~torchrl_marl_offline.training.OnlineReplay`, which gathers experience as it is sampled.
        steps: number of updates of the whole run.
        lr: learning rate of the default optimizer.
        optimizer: by default Adam over the parameters that require gradients; one that is given must hold some of
            them, and a warning names those that it leaves out.
        target_updater: by default a :class:`ForeachSoftUpdate` (TorchRL's ``SoftUpdate``, faster) with ``tau``, if the
            loss has target networks.
        tau: the default target updater's rate.
        actor_every: the actor and the target networks take a step at every so many updates alone, the others at each
            (TD3's delayed policy updates; Fujimoto et al. 2018). The actor's gradient is computed, logged and counted
            in the clipping at every update, and a GPU does not replay the step as one CUDA graph.
        evaluators: name -> callable without arguments; it returns a dict of numbers, an object with ``summary()`` such
            as :class:`~torchrl_marl_offline.training.Evaluation`, or ``None``.
        eval_every: steps between evaluations, and one at the end; ``None`` for none.
        eval_at_start: evaluate before the first step, too.
        log_every: steps between logging points; a row holds the means over the steps since the one before.
        checkpoint_every: steps between checkpoints; ``None`` for one at the start and one at the end.
        keep_checkpoints: how many of the newest are kept.
        stop_when: asked after every evaluation; when it returns true, the run is finished before ``steps``.
        keep_best: ``(evaluator, metric)`` whose highest value marks the checkpoint that is kept beside the newest; not
            agreement with recorded actions, which is highest where least is learned beyond them.
        output: folder of the CSV files, of ``checkpoints/`` and of the newest policy (``policy.pt``, where the actor is
            one of :func:`~torchrl_marl_offline.make_actor`); ``None`` writes nothing.
        resume_folder: of a script that takes ``--resume FOLDER``: the folder named in the advice on how to go on.
        clip_grad_norm: largest norm of the whole gradient.
        compile: ``"off"``: the loss as it stands; ``"on"``: loss and gradients as one compiled function
            (:class:`CompiledGradients`), the same numbers up to rounding, and on a GPU the whole step as one CUDA
            graph, where the optimizer is fused or ``capturable`` (its learning rate stays as captured) and target
            updates are soft; ``"auto"``: whichever was measured to end the run sooner, its warm-up included. A mapping
            runs the loss's forward alone through :func:`torch.compile` with these options.
        precision: of the matrix products: ``"fp32"``, ``"tf32"`` or ``"bf16"``; see :func:`in_precision`.
        deadline: moment (:func:`time.time`) after which the run saves itself and stops, as on Ctrl-C: also then its
            results are not those of a finished run, and :meth:`train` raises :class:`TrainingInterrupted`.
        distributed: the processes that share the run, each with its share of every batch; see
            :func:`distributed_from_environment`. The first alone evaluates, logs and writes files.
        profile: account for where a step goes, in ``output/profile``: true, or the number of steps to time; see
            :class:`~torchrl_marl_offline.training.profiling.Profiler`.
        on_impossible_values: what happens at the first logging point at which mean ``|Q|`` exceeds what the rewards of
            the data allow: ``"warn"``, ``"stop"`` by an error, or ``"ignore"``; see
            :class:`~torchrl_marl_offline.training.value_alarm.ValueAlarm`.
        logger: by default a :class:`RunLogger` on ``output``; one that is given is not closed.
        progress: show a bar, and a line per evaluation.

    Example:
        >>> trainer = Trainer(loss, buffer, steps=10_000, output="runs/spread", eval_every=1_000,    # doctest: +SKIP
        ...                   evaluators={"recipe": lambda: evaluate(actor, env, episodes=100, seed=0)})
        >>> trainer.train()                                                                          # doctest: +SKIP
    """

    @checked
    def __init__(
        self,
        loss: LossModule,
        buffer: ReplayBuffer | OnlineReplay,
        *,
        steps: Annotated[int, COUNT],
        lr: Annotated[float, LEARNING_RATE, ReadWith("optimizer", None)] = 3e-4,
        optimizer: torch.optim.Optimizer | None = None,
        target_updater: TargetNetUpdater | None = None,
        tau: Annotated[float, RATE, ReadWith("target_updater", None)] = 0.005,
        actor_every: Annotated[int, COUNT, AtMost("steps")] = 1,
        evaluators: Mapping[str, Evaluator] | None = None,
        eval_every: Annotated[int | None, COUNT] = None,
        eval_at_start: bool = False,
        log_every: Annotated[int, COUNT] = 100,
        checkpoint_every: Annotated[int | None, COUNT, ReadWith("output", given=True)] = None,
        keep_checkpoints: Annotated[int, COUNT, ReadWith("output", given=True)] = 3,
        stop_when: Callable[[], bool] | None = None,
        keep_best: Annotated[tuple[str, str] | None, ReadWith("output", given=True)] = None,
        output: str | Path | None = None,
        resume_folder: str | Path | None = None,
        clip_grad_norm: Annotated[float | None, POSITIVE] = None,
        compile: Literal["off", "on", "auto"] | Mapping[str, Any] = "off",
        precision: Precision = "fp32",
        deadline: Annotated[float | None, REAL] = None,
        distributed: SingleProcess | None = None,
        profile: bool | Annotated[int, SIZE] = False,
        on_impossible_values: OnImpossibleValues = "warn",
        logger: RunLogger | None = None,
        progress: bool = True,
    ) -> None:
        _check_best(keep_best)
        self.processes = SingleProcess() if distributed is None else distributed
        is_main = self.processes.is_main
        check_draws_series(getattr(loss, "template", loss), buffer)
        self.loss, self.buffer, self.steps = loss, self.processes.share(buffer), steps
        self.optimizer = default_optimizer(loss, lr=lr) if optimizer is None else optimizer
        self.target_updater = _default_target_updater(loss, tau) if target_updater is None else target_updater
        check_optimizer(self.optimizer, self._named_parameters())
        check_target_updater(self.target_updater, loss)
        self.actor_every = actor_every
        self._waiting = trained_by_network(self._named_parameters()).get("actor", [])
        if actor_every > 1 and not self._waiting:
            raise ValueError("actor_every is for a loss that trains an actor_network; leave it out.")
        self.evaluators, self.eval_every = dict(evaluators or {}) if is_main else {}, eval_every
        self.eval_at_start = eval_at_start
        self.log_every, self.checkpoint_every, self.keep_best = log_every, checkpoint_every, keep_best
        self.output = None if output is None else user_path(output)
        self.resume_folder = None if resume_folder is None else user_path(resume_folder)
        self.checkpoints = self.output and CheckpointManager(self.output / "checkpoints", keep=keep_checkpoints)
        own_logger = RunLogger(self.output if is_main else None) if logger is None or not is_main else logger
        self.logger, self._owns_logger = own_logger, own_logger is not logger
        self.progress = progress and is_main
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.stop_when, self.finished = stop_when if is_main else None, False
        self.deadline = math.inf if deadline is None else deadline
        self.compile, self.precision = check_compile(compile), check_precision(precision)
        self.clip_grad_norm = clip_grad_norm
        self.alarm = self._make_alarm(buffer, on_impossible_values)
        self._gradients: Callable[[TensorDictBase], dict[str, torch.Tensor]] | None = None
        self._gradient_norm = self._make_gradient_norm()
        self._step_on = self._take_step
        self._window = MetricWindow()
        self._checkpoint: Path | None = None
        self._saved_step: int | None = None
        self.profiler = self._make_profiler(profile) if is_main else None
        self._lock = RunLock(self.output) if self.output is not None and is_main else None
        options = {"actor_every": actor_every, "clip_grad_norm": clip_grad_norm, "precision": precision}
        self._settings = run_settings(loss, self.optimizer, self.target_updater, options)

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
        check_rows(getattr(self.loss, "template", self.loss), self.buffer)
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
        with StopRequest() as stop, self._bar() as bar:
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
        device, members = next(self.loss.parameters()).device, len(getattr(self.loss, "members", [self.loss]))
        return make_profiler(profile, self.output, device=device, every=every, members=members)

    def _must_stop(self, stop: StopRequest) -> bool:
        return self.processes.any_wants_to_stop(stop.requested or time.time() >= self.deadline, self.step)

    def _update(self) -> None:
        """One step; nothing in it waits for the device."""
        began = time.perf_counter()
        with part("data"):
            batch = self.buffer.sample()
        self._window.append(self._step_on(batch))
        self.step += 1
        self.seconds += time.perf_counter() - began

    def _take_step(self, batch: TensorDictBase) -> dict[str, torch.Tensor]:
        """Loss, gradients, clipping, optimizer, targets: on tensors alone, so that a GPU can replay it."""
        metrics = self._gradients(batch)
        with part("gradient norm and clipping"):
            metrics = metrics | self._gradient_norm()
        self._move(metrics)
        return metrics

    def _move(self, metrics: dict[str, torch.Tensor]) -> None:
        """Let the optimizer and the target networks take their step."""
        waits = self._let_actor_wait()
        with part("optimizer"):
            self.optimizer.step()
        if self.target_updater is not None and not waits:
            with part("target update"):
                self.target_updater.step()

    def _let_actor_wait(self) -> bool:
        """Take the actor's gradient away where this update is not its own, and say whether it is not."""
        waits = (self.step + 1) % self.actor_every > 0
        if waits:
            for parameter in self._waiting:
                parameter.grad = None  # an optimizer passes over parameters without one
        return waits

    def _named_parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        return self.loss.named_parameters()

    def _make_gradients(self, *, compiled: bool) -> Callable[[TensorDictBase], dict[str, torch.Tensor]]:
        if isinstance(self.compile, Mapping):
            forward = torch.compile(self.loss, **self.compile)
            gradients = Gradients(self.loss, precision=self.precision, forward=forward)
        else:
            gradients = (CompiledGradients if compiled else Gradients)(self.loss, precision=self.precision)
        return self.processes.averaged(gradients, self.loss)

    def _make_gradient_norm(self) -> Callable[[], dict[str, torch.Tensor]]:
        return GradientNorm(self.loss, self.clip_grad_norm)

    def _make_alarm(self, buffer: Any, action: OnImpossibleValues) -> ValueAlarm:
        return ValueAlarm(self.loss, buffer, action)

    def _due(self, every: int | None) -> bool:
        return every is not None and (self.step % every == 0 or self.step == self.steps)

    def _log(self) -> None:
        began = time.perf_counter()
        self._check_losses()
        metrics = self._window.means()  # waits for the device, so that its time counts
        self.seconds += time.perf_counter() - began
        self.logger.log_train(self.step, metrics | {"seconds": self.seconds})
        self._check_values(metrics)
        self._window.clear()

    def _check_values(self, means: Mapping[str, Any]) -> None:
        """Warn of values that the rewards do not allow, or stop."""
        message = self.alarm.check(self.step, means, self._window.first)
        if self.alarm.action == "stop":
            message = self.processes.from_main(message)
            if message is not None:
                raise ImpossibleValueError(self.step, message)
        elif message is not None and self.processes.is_main:
            self.alarm.warn(message)

    def _evaluate(self, bar: Any) -> None:
        for name, evaluator in self.evaluators.items():
            with part(f"evaluation {name}"), preserved_rng():
                result = evaluator()
            if result is None:
                continue
            metrics = dict(result.summary() if hasattr(result, "summary") else result)
            self.logger.log_eval(self.step, name, metrics)
            if self.progress:
                bar.write(f"step {self.step:>7}  {name}: " + one_line(metrics))
            if self.keep_best is not None and self.keep_best[0] == name:
                self._keep_if_best(self._best_metric(metrics))
        self.finished = self.processes.from_main(self.stop_when is not None and self.stop_when())

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
        if not self.evaluators and (self.eval_at_start or (self.eval_every is not None and self.stop_when is None)):
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
        self._checkpoint = self.checkpoints.save(self.step, **self._components())
        self._saved_step = self.step
        return self._checkpoint

    def _save_policies(self) -> None:
        actor = getattr(self.loss, "actor_network", None)
        if hasattr(actor, "build"):
            save_policy(self.output / POLICY_FILE, actor, {"step": self.step})

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
        self.step = self._saved_step = self.checkpoints.load(path, map_location="cpu", **self._components())
        self._checkpoint = path
        self.logger.truncate(self.step)
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
        """Return the loop's own counters, the metrics that are not logged yet, and the settings."""
        return {
            "settings": self._settings,
            "seconds": self.seconds,
            "best": self.best,
            "finished": self.finished,
            "compile": "on" if isinstance(self.compile, Mapping) else self.compile,
            "window": self._window.state_dict(),
            "alarm": self.alarm.state_dict(),
        }

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings than those of the checkpoint, where they change the numbers.

        Raises:
            ValueError: one differs.
        """
        found = differing(state.get("settings", {}), self._settings)
        if found is not None:
            raise ValueError(f"{found}; go on with that of the run, or start a new run")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.seconds, self.best, self.finished = state["seconds"], state["best"], state["finished"]
        if self.compile == "auto":
            self.compile = state["compile"]  # what was chosen at the start, so that the numbers stay the same
        self._window.load_state_dict(state["window"], next(self.loss.parameters()).device)
        self.alarm.load_state_dict(state.get("alarm", self.alarm.state_dict()))  # earlier versions had none

    def _components(self) -> dict[str, Any]:
        components = {
            "loss": self.loss,
            "optimizer": self.optimizer,
            "target_updater": self.target_updater,
            "buffer": self._buffer_state(),
            "rng": GlobalRNGState(),
            "trainer": self,
        }
        return {name: component for name, component in components.items() if component is not None}

    def _buffer_state(self) -> Any:
        """Return what saves and restores the sampling."""
        return self.buffer if isinstance(self.buffer, OnlineReplay) else BufferState(self.buffer)

    def _start(self) -> bool:
        """Make sure that a new run starts in an empty folder; return whether it is a new one."""
        if self.step > 0 or self._saved_step is not None:
            self._prepare()
            return False
        if self.checkpoints is not None and self.checkpoints.checkpoints():
            raise FileExistsError(
                f"{self.checkpoints.directory} holds an earlier run's checkpoints; resume it, or name another folder."
            )
        self.logger.truncate(-1)
        self._prepare()
        self.save()
        return True

    def _prepare(self) -> None:
        """Decide once how gradients are computed."""
        self.processes.start_alike(self._components)
        if self.compile == "auto":
            choice = choose_compile(
                self._make_gradients,
                self.buffer,
                self.loss,
                state=self._buffer_state(),
                steps=self.steps - self.step,
                agreed=self.processes.from_main,
                precision=self.precision,
            )
            self.compile = "on" if choice.compiled else "off"
            if self.progress:
                print(choice.message, flush=True)
            self._gradients = choice.gradients
        if self._gradients is None:
            self._gradients = self._make_gradients(compiled=self.compile == "on")
        is_on_gpu = next(self.loss.parameters()).device.type == "cuda"
        if self.compile == "on" and is_on_gpu and self.processes.count == 1 and self._steps_are_alike():
            capturing = partial(marked_capturable, self.optimizer)
            self._step_on = CudaGraphStep(self._take_step, generators=self._noise_generators(), capturing=capturing)

    def _steps_are_alike(self) -> bool:
        """Say whether nothing in a step is counted in Python, so that a CUDA graph of one step is one of all."""
        known = self.target_updater is None or isinstance(self.target_updater, SoftUpdate)
        return known and self.actor_every == 1 and can_be_captured(self.optimizer)

    def _noise_generators(self) -> Sequence[torch.Generator]:
        """Return the generators, beside torch's own, that a step draws from."""
        return ()

    def _end(self) -> TrainingFinished | TrainingInterrupted:
        path = self.save()
        if self._owns_logger:
            self.logger.close()
        if self.step >= self.steps or self.finished:
            return TrainingFinished(self.step, path)
        advice = "nothing was saved, since there is no output folder"
        if path is not None:
            advice = f"saved {path}; go on with: {how_to_resume(self.output, self.resume_folder)}"
        message = f"Interrupted at step {self.step} of {self.steps}: {advice}"
        return TrainingInterrupted(self.step, path, message)

    def _check_losses(self) -> None:
        found = self._window.first_non_finite()
        if found is not None:
            row, term = found
            raise NonFiniteLossError(self.step - len(self._window) + 1 + row, term, self._checkpoint)

    def _check_finite(self) -> None:
        """Raise if a loss since the last logging point, or a parameter, is not finite."""
        self._check_losses()
        if (name := first_non_finite_parameter(self.loss)) is not None:
            raise NonFiniteLossError(self.step, name, self._checkpoint)

    def _bar(self) -> Any:
        # disable=None: no bar where the output is not a terminal
        return tqdm(total=self.steps, initial=self.step, unit="step", disable=None if self.progress else True)


def _default_target_updater(loss: LossModule, tau: float) -> ForeachSoftUpdate | None:
    has_targets = any(name.startswith("target_") and name.endswith("_params") for name, _ in loss.named_children())
    return ForeachSoftUpdate(loss, tau=tau) if has_targets else None


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
