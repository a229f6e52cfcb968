"""One training step: from a batch to metrics, by loss, gradients, clipping, optimizer and target networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule, SoftUpdate, TargetNetUpdater

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.parts import part
from torchrl_marl_offline.core.ranges import COUNT, COUNT_OR_NONE, LEARNING_RATE, POSITIVE, RATE
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.training.run.distributed import SingleProcess
from torchrl_marl_offline.training.run.fit import check_optimizer, check_target_updater
from torchrl_marl_offline.training.run.metrics import GradientNorm, trained_by_network
from torchrl_marl_offline.training.run.restoring import restore
from torchrl_marl_offline.training.run.run_settings import differing, run_settings
from torchrl_marl_offline.training.run.series_sampling import check_draws_series
from torchrl_marl_offline.training.step.compile_choice import check_compile, choose_compile
from torchrl_marl_offline.training.step.cuda_graph import CudaGraphStep
from torchrl_marl_offline.training.step.gradients import CompiledGradients, Gradients, Precision, check_precision
from torchrl_marl_offline.training.step.optimizer import can_be_captured, default_optimizer, marked_capturable
from torchrl_marl_offline.training.step.rhythm import Rhythm
from torchrl_marl_offline.training.step.target_update import ForeachSoftUpdate

Compile = Literal["off", "on", "auto"] | Mapping[str, Any]
Differentiate = Callable[[TensorDictBase], dict[str, Tensor]]


class BaseLearner(ABC):
    """What :class:`Learner` and :class:`PopulationLearner` share, and what a :class:`Trainer` asks of either.

    Attributes:
        loss: the loss, or the population.
        template: a loss of the form of all members.
        members: their names; ``[""]`` where there is one loss alone.
        is_population: whether members are many, and one that is no longer finite is left out while the others go on.
        updates: steps taken so far.
        settings: name -> what the numbers depend on beside the state.
    """

    members: Sequence[str] = ("",)
    is_population = False

    def __init__(
        self,
        loss: nn.Module,
        *,
        optimizer: Any,
        target_updater: Any,
        rhythm: Rhythm,
        clip_grad_norm: float | None,
        precision: Precision,
        compile: Compile,
        gradient_norm: Callable[[Collection[str]], dict[str, Tensor]],
    ) -> None:
        self.loss, self.optimizer, self.target_updater = loss, optimizer, target_updater
        self._gradient_norm = gradient_norm
        self.rhythm, self.clip_grad_norm = rhythm, clip_grad_norm
        self.compile, self.precision = check_compile(compile, loss), check_precision(precision)
        self._trained = trained_by_network(self.named_parameters())
        rhythm.check(set(self._trained))
        self.updates = 0
        self.gradients: Differentiate | None = None
        self._processes = SingleProcess()
        self._step_on = self.take_step
        options = rhythm.settings() | {"clip_grad_norm": clip_grad_norm, "precision": precision}
        self.settings = run_settings(loss, optimizer, target_updater, options)

    # -------------------------------------------------------------- one step

    def step(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Move the parameters by one batch; nothing in it waits for the device.

        Args:
            batch: ``[B]`` transitions, of a population ``[P, B]``.

        Returns:
            The loss terms, metrics and gradient norms before clipping, each ``[]``, of a population ``[P]``.
        """
        if self.gradients is None:
            self.gradients = self._make_gradients(compiled=self.compile == "on")
        metrics = self._step_on(batch)
        self.updates += 1
        return metrics

    def take_step(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Loss, gradients, clipping, optimizer, targets: on tensors alone, so that a GPU can replay it."""
        metrics = self.gradients(batch)
        update, rhythm = self.updates + 1, self.rhythm
        moves = {True: rhythm.moves_actor(update), False: rhythm.moves_others(update)}
        resting = [name for name in self._trained if not moves[name == "actor"]]
        with part("gradient norm and clipping"):
            metrics = metrics | self._gradient_norm(resting)
        for parameter in (each for name in resting for each in self._trained[name]):
            parameter.grad = None  # an optimizer passes over parameters without one
        if rhythm.anneal_over is not None:
            self._anneal(rhythm.rate_factor(update))
        self._move(metrics, with_targets=rhythm.moves_targets(update))
        return metrics

    @abstractmethod
    def _anneal(self, factor: float) -> None:
        """Let the next step have this share of the learning rates."""

    @abstractmethod
    def _move(self, metrics: Mapping[str, Tensor], *, with_targets: bool) -> None:
        """Let the optimizer and the target networks take their step."""

    @abstractmethod
    def _make_gradients(self, *, compiled: bool) -> Differentiate:
        """Return what sets the gradients of a batch and returns its metrics."""

    @abstractmethod
    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Return the tensors by their names in a loss."""

    # --------------------------------------------------------- within a run

    @property
    @abstractmethod
    def template(self) -> LossModule:
        """A loss of the form of all members."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.loss.parameters()).device

    def attach(self, buffer: Any) -> None:
        """Refuse a buffer whose batches cannot be learned from.

        Raises:
            ValueError: it is for a population and this is none, or the other way round; the loss reads series and
                the buffer draws none; or the loss takes every end of an episode for the task's, and the buffer
                gathers experience in rounds that cut episodes.
        """
        if not callable(getattr(buffer, "sample", None)):
            wanted = "a replay buffer, such as dataset.replay_buffer(batch_size=256)"
            raise TypeError(f"The batches come from {wanted}; got {_named(buffer)}.")
        check_draws_series(self.template, buffer)
        keys = getattr(self.template, "tensor_keys", None)
        if getattr(buffer, "cuts_episodes", False) and keys is not None and keys.terminated == keys.done:
            raise ValueError(
                "time_limits='terminal' would take the end of every round of experience for the end of its episodes; "
                "build the loss without it, or train on recorded data alone."
            )

    def prepare(
        self, buffer: Any, *, state: Any, steps: int, processes: SingleProcess, say: Callable[[str], None] = print
    ) -> str | None:
        """Decide once how gradients are computed, before the first step.

        Args:
            buffer: on whose batches ``compile="auto"`` measures; it is as before afterwards.
            state: saves and restores the buffer's sampling.
            steps: that are to be taken.
            processes: that share the run.
            say: told of what takes long before it begins.

        Returns:
            What ``compile="auto"`` chose, and why.
        """
        self._processes, message = processes, None
        if self.compile == "auto":
            choice = choose_compile(
                self._make_gradients,
                buffer,
                self.loss,
                state=state,
                steps=steps,
                agreed=processes.from_main,
                precision=self.precision,
                say=say,
            )
            self.compile, self.gradients, message = "on" if choice.compiled else "off", choice.gradients, choice.message
        elif self.compile != "off" and self.gradients is None:
            say("compile: on, the first step compiles the loss and its gradients, which takes up to minutes")
        if self.gradients is None:
            self.gradients = self._make_gradients(compiled=self.compile == "on")
        if self.compile == "on" and self.device.type == "cuda" and processes.count == 1 and self.steps_are_alike():
            capturing = partial(marked_capturable, self.optimizer)
            self._step_on = CudaGraphStep(self.take_step, generators=self.noise_generators(), capturing=capturing)
        return message

    def steps_are_alike(self) -> bool:
        """Say whether nothing in a step is counted in Python, so that a CUDA graph of one step is one of all."""
        return self.rhythm.is_even

    def noise_generators(self) -> Sequence[torch.Generator]:
        """Return the generators, beside torch's own, that a step draws from."""
        return ()

    def left_out(self) -> dict[str, int]:
        """Return the members that no longer take part, and the step at which each was left out."""
        return {}

    def leave_out(self, members: Collection[str]) -> None:
        """Let members of a population keep their parameters from now on."""
        raise NotImplementedError("There is one loss alone; end the run.")

    @abstractmethod
    def member_losses(self) -> Iterable[tuple[str, LossModule]]:
        """Yield each member's name with an ordinary loss that holds its tensors."""

    # ----------------------------------------------------------------- state

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Return what has a state of its own, by the names of a checkpoint's components."""

    def own_state(self) -> dict[str, Any]:
        """Return the state beside that of :meth:`parts`."""
        compile = "on" if isinstance(self.compile, Mapping) else self.compile
        return {"settings": self.settings, "compile": compile, "updates": self.updates}

    def check_own_state(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings, where they change the numbers.

        Raises:
            ValueError: one differs.
        """
        found = differing(state.get("settings", {}), self.settings)
        if found is not None:
            raise ValueError(f"{found}; go on with that of the run, or start a new run")

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        if self.compile == "auto":
            self.compile = state["compile"]  # what was chosen at the start, so that the numbers stay the same
        self.updates = state.get("updates", self.updates)

    def state_dict(self) -> dict[str, Any]:
        """Return all that further steps depend on, beside torch's random generators."""
        states = {name: each.state_dict() for name, each in self.parts().items()}
        return states | {"learner": self.own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; where that does not fit, nothing has changed.

        Raises:
            ValueError: it is of other networks or settings.
        """
        missing = sorted({"learner", *self.parts()} - set(state)) if isinstance(state, Mapping) else ["learner"]
        if missing:
            raise ValueError(f"This is not the state of such a learner: it lacks {missing[0]!r}.")
        self.check_own_state(state["learner"])
        restore(self.parts(), state)
        self.load_own_state(state["learner"])


class Learner(BaseLearner):
    """One training step of a loss: ``step(batch)`` moves its parameters and returns the metrics.

    A :class:`Trainer` makes a run of it; a loop of one's own may, too.

    Args:
        loss: any TorchRL loss; the outputs that start with ``"loss"`` are summed and minimized, the other scalars are
            metrics.
        lr: learning rate of the default optimizer.
        optimizer: by default Adam over the parameters that require gradients; one that is given must hold some of
            them, and a warning names those that it leaves out.
        target_updater: by default a :class:`ForeachSoftUpdate` (TorchRL's ``SoftUpdate``, faster) with ``tau``, if the
            loss has target networks.
        tau: the default target updater's rate.
        actor_every: the actor and the target networks take a step at every so many updates alone, the others at each
            (TD3's delayed policy updates; Fujimoto et al. 2018). The actor's gradient is computed and logged at
            every update, and a GPU does not replay the step as one CUDA graph.
        critic_first: so many updates train all networks but the actor; after them they stay as they are, targets too,
            and the actor alone is trained (OMSD; Qiao et al. 2025). Both gradients are computed and logged throughout.
        anneal_over: the learning rates fall to 0 by a cosine over so many updates, without those of ``critic_first``,
            and stay there. Each update sets them, so that a schedule of torch's beside it would do nothing.
        clip_grad_norm: largest norm of the whole gradient, of the networks that take the step.
        precision: of the matrix products: ``"fp32"``, ``"tf32"`` or ``"bf16"``; see :func:`in_precision`.
        compile: ``"off"``: the loss as it stands; ``"on"``: loss and gradients as one compiled function
            (:class:`CompiledGradients`), the same numbers up to rounding, and in a Trainer on a GPU the whole step as
            one CUDA graph, where the optimizer is fused or ``capturable`` (its learning rate stays as captured) and
            target updates are soft; ``"auto"``: whichever a Trainer measures to end its run sooner, its warm-up
            included, and off in a loop of one's own. A mapping runs the loss's forward alone through
            :func:`torch.compile` with these options.

    Raises:
        ValueError: an option outside its range; an optimizer or a target updater of another loss.

    Example:
        >>> learner = Learner(loss, lr=1e-3)                    # doctest: +SKIP
        >>> for batch in buffer:                                # doctest: +SKIP
        ...     metrics = learner.step(batch)
    """

    @checked
    def __init__(
        self,
        loss: LossModule,
        *,
        lr: Annotated[float, LEARNING_RATE, ReadWith("optimizer", None)] = 3e-4,
        optimizer: torch.optim.Optimizer | None = None,
        target_updater: TargetNetUpdater | None = None,
        tau: Annotated[float, RATE, ReadWith("target_updater", None)] = 0.005,
        actor_every: Annotated[int, COUNT] = 1,
        critic_first: Annotated[int, COUNT_OR_NONE] = 0,
        anneal_over: Annotated[int | None, COUNT] = None,
        clip_grad_norm: Annotated[float | None, POSITIVE] = None,
        precision: Precision = "fp32",
        compile: Compile = "off",
    ) -> None:
        _check_kinds(loss, optimizer, target_updater)
        optimizer = default_optimizer(loss, lr=lr) if optimizer is None else optimizer
        target_updater = _default_target_updater(loss, tau) if target_updater is None else target_updater
        check_optimizer(optimizer, loss.named_parameters())
        check_target_updater(target_updater, loss)
        super().__init__(
            loss,
            optimizer=optimizer,
            target_updater=target_updater,
            rhythm=Rhythm(actor_every, critic_first, anneal_over),
            clip_grad_norm=clip_grad_norm,
            precision=precision,
            compile=compile,
            gradient_norm=GradientNorm(loss, clip_grad_norm),
        )
        self._rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def template(self) -> LossModule:
        """The loss."""
        return self.loss

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Return the loss's parameters."""
        return self.loss.named_parameters()

    def _make_gradients(self, *, compiled: bool) -> Differentiate:
        """Return what differentiates the loss, by all processes that share the run."""
        if isinstance(self.compile, Mapping):
            forward = torch.compile(self.loss, **self.compile)
            gradients = Gradients(self.loss, precision=self.precision, forward=forward)
        else:
            gradients = (CompiledGradients if compiled else Gradients)(self.loss, precision=self.precision)
        return self._processes.averaged(gradients, self.loss)

    def _anneal(self, factor: float) -> None:
        """Let the next step have this share of the learning rates."""
        for group, rate in zip(self.optimizer.param_groups, self._rates):
            group["lr"] = rate * factor

    def _move(self, metrics: Mapping[str, Tensor], *, with_targets: bool) -> None:
        """Let the optimizer and the target networks take their step."""
        with part("optimizer"):
            self.optimizer.step()
        if self.target_updater is not None and with_targets:
            with part("target update"):
                self.target_updater.step()

    def steps_are_alike(self) -> bool:
        """Say whether a CUDA graph can hold the step."""
        known = self.target_updater is None or isinstance(self.target_updater, SoftUpdate)
        return known and super().steps_are_alike() and can_be_captured(self.optimizer)

    def attach(self, buffer: Any) -> None:
        """Refuse a population's buffer, and one that draws no series for a loss that reads them."""
        if getattr(buffer, "is_of_population", False):
            raise ValueError(
                "A PopulationBuffer is for a PopulationLearner; give a replay buffer, for instance "
                "dataset.replay_buffer(batch_size=256)."
            )
        super().attach(buffer)

    def member_losses(self) -> Iterable[tuple[str, LossModule]]:
        """Yield the loss."""
        yield "", self.loss

    def parts(self) -> dict[str, Any]:
        """Return loss, optimizer and target updater."""
        found = {"loss": self.loss, "optimizer": self.optimizer, "target_updater": self.target_updater}
        return {name: each for name, each in found.items() if each is not None}


def _check_kinds(loss: Any, optimizer: Any, target_updater: Any) -> None:
    """Refuse what is no loss, no optimizer or no target updater.

    Raises:
        TypeError: one of them is none.
    """
    if isinstance(loss, Mapping):
        raise TypeError("Many losses by name are for a PopulationLearner(losses); Learner takes one.")
    if not isinstance(loss, LossModule):
        raise TypeError(
            f"Learner needs a loss of TorchRL's kind, a LossModule, such as make_loss returns; got {_named(loss)}."
        )
    if optimizer is not None and (isinstance(optimizer, type) or not callable(getattr(optimizer, "step", None))):
        raise TypeError(f"optimizer must be one of torch's, made of loss.parameters(); got {_named(optimizer)}.")
    if target_updater is not None and not isinstance(target_updater, TargetNetUpdater):
        raise TypeError(
            f"target_updater must be one of TorchRL's, such as SoftUpdate(loss, tau=); got {_named(target_updater)}."
        )


def _named(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__


def _default_target_updater(loss: LossModule, tau: float) -> ForeachSoftUpdate | None:
    has_targets = any(name.startswith("target_") and name.endswith("_params") for name, _ in loss.named_children())
    return ForeachSoftUpdate(loss, tau=tau) if has_targets else None
