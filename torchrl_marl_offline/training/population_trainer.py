"""The training loop over a population: one step moves every member, and each is logged as a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor
from torchrl.checkpoint import GlobalRNGState

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.functional_parameters import copy_with_networks
from torchrl_marl_offline.core.parts import part
from torchrl_marl_offline.core.paths import folder_name
from torchrl_marl_offline.core.ranges import COUNT, LEARNING_RATE, RATE, SEED, SIZE, AtMost
from torchrl_marl_offline.training.checkpoints import CheckpointManager
from torchrl_marl_offline.training.evaluation import (
    Evaluation,
    Mode,
    check_arguments,
    evaluation_mode,
    explored,
    preserved_rng,
    run_episodes,
    spread_over_slots,
)
from torchrl_marl_offline.training.logging import RunLogger
from torchrl_marl_offline.training.loop import Trainer, one_line
from torchrl_marl_offline.training.optimizer import default_optimizer
from torchrl_marl_offline.training.population import Population, PopulationBuffer, PopulationGradients
from torchrl_marl_offline.training.population_optimizer import (
    PopulationAdam,
    PopulationGradientNorm,
    PopulationSoftUpdate,
)
from torchrl_marl_offline.training.saved_policies import POLICY_FILE, save_policy
from torchrl_marl_offline.training.value_alarm import OnImpossibleValues, ValueAlarm

if TYPE_CHECKING:
    from torchrl.envs import EnvBase
    from torchrl.objectives import LossModule

PopulationEvaluator = Callable[[], Mapping[str, Any]]
MEMBERS = "members"


class PopulationTrainer(Trainer):
    """Train many losses of one structure at once; see :class:`Population`.

    Each member has its own minibatches, coefficients, learning rate, SVN statistics, gradient clipping and noise; none
    reads another's numbers. A member whose loss or gradient is no longer finite keeps its last finite parameters and is
    left out from then on; the others go on.

    Args:
        losses: member name -> loss; the first serves as the form of all.
        buffer: the members' minibatches, in the order of ``losses``.
        steps: number of updates of the whole run.
        lr: Adam's learning rate, one for all or one for each member.
        tau: rate of the target networks.
        actor_every: as in :class:`Trainer`.
        evaluators: name -> function that returns, for each member, what an evaluator of :class:`Trainer` returns;
            :meth:`evaluate` is one.
        output: folder of ``checkpoints/`` and of ``members/NAME/`` with ``train.csv``, ``eval.csv`` and ``policy.pt``
            for each.
        compile: as in :class:`Trainer`.
        members_at_once: how many members are one computation; see :class:`PopulationGradients`.
        **options: ``on_impossible_values`` (``"stop"`` leaves the member out, as one that is not finite; the others go
            on), ``eval_every``, ``eval_at_start``, ``log_every``, ``checkpoint_every``, ``keep_checkpoints``,
            ``clip_grad_norm``, ``precision``, ``deadline``, ``resume_folder``, ``progress`` of :class:`Trainer`.

    Example:
        >>> seeds = range(8)                                                                         # doctest: +SKIP
        >>> losses = {f"seed-{s}": build(seed=s) for s in seeds}                                     # doctest: +SKIP
        >>> buffer = PopulationBuffer(data.data, batch_size=256, seeds=seeds)                        # doctest: +SKIP
        >>> trainer = PopulationTrainer(losses, buffer, steps=10_000, output="runs/eight")           # doctest: +SKIP
        >>> trainer.evaluators["mode"] = lambda: trainer.evaluate(env, episodes=100, seed=0)         # doctest: +SKIP
        >>> trainer.train()                                                                          # doctest: +SKIP
    """

    @checked
    def __init__(
        self,
        losses: Mapping[str, LossModule],
        buffer: PopulationBuffer,
        *,
        steps: Annotated[int, COUNT],
        lr: Annotated[float | Sequence[float], LEARNING_RATE] = 3e-4,
        tau: Annotated[float, RATE] = 0.005,
        actor_every: Annotated[int, COUNT, AtMost("steps")] = 1,
        evaluators: Mapping[str, PopulationEvaluator] | None = None,
        output: str | Path | None = None,
        compile: str = "off",
        members_at_once: Annotated[int | None, SIZE] = None,
        **options: Any,
    ) -> None:
        if len(buffer.generators) != len(losses):
            raise ValueError(
                f"The buffer has {len(buffer.generators)} seeds for {len(losses)} losses; give one for each member."
            )
        if output is not None:
            for name in losses:
                folder_name(name, "A member")
        if options.get("keep_best") is not None:
            raise ValueError("keep_best= is for one run; a population keeps the newest of all members.")
        if isinstance(compile, Mapping):
            raise ValueError('compile must be "off", "on" or "auto" for a population.')
        population = Population(losses)
        self.population = population
        optimizer = PopulationAdam(population, lr=lr, actor_every=actor_every)
        targets = PopulationSoftUpdate(population, tau=tau)
        device = optimizer.lr.device
        self.active = torch.ones(len(population), dtype=torch.bool, device=device)
        self._frozen_at = torch.full((len(population),), -1, dtype=torch.int64, device=device)
        self._reported: set[str] = set()
        self._members_at_once = members_at_once
        super().__init__(
            population,
            buffer,
            steps=steps,
            optimizer=optimizer,
            target_updater=targets,
            actor_every=actor_every,
            evaluators=evaluators,
            output=output,
            compile=compile,
            logger=RunLogger(None),
            **options,
        )
        folder = None if self.output is None else self.output / MEMBERS
        self.loggers = {name: RunLogger(folder and folder / name) for name in population.members}

    @property
    def members(self) -> list[str]:
        """The members' names, in their order."""
        return self.population.members

    @property
    def frozen(self) -> dict[str, int]:
        """The members that are no longer finite, and the step at which each was left out."""
        return {name: at for name, at in zip(self.members, self._frozen_at.tolist()) if at >= 0}

    def member_folder(self, member: str) -> Path:
        """Return the folder of a member's files."""
        if self.output is None:
            raise ValueError("There are no members' folders without an output folder; give PopulationTrainer(output=).")
        return self.output / MEMBERS / member

    # ------------------------------------------------------------ one step

    def _make_gradients(self, *, compiled: bool) -> PopulationGradients:
        return PopulationGradients(
            self.population,
            precision=self.precision,
            compiled=compiled,
            generators=self.buffer.noise_generators,
            members_at_once=self._members_at_once,
        )

    def _named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self.population.tensors().items()

    def _noise_generators(self) -> Sequence[torch.Generator]:
        return self.buffer.noise_generators

    def _steps_are_alike(self) -> bool:
        return self.actor_every == 1

    def _make_gradient_norm(self) -> PopulationGradientNorm:
        return PopulationGradientNorm(self.population, self.clip_grad_norm)

    def _move(self, metrics: dict[str, Tensor]) -> None:
        watched = [value for name, value in metrics.items() if name.startswith(("loss", "grad_norm"))]
        finite = torch.stack(watched).isfinite().all(0)
        fell = self.active & ~finite
        # in place, and counted on the device: a GPU replays this without Python
        self._frozen_at.copy_(torch.where(fell, self.optimizer.step_count.long() + 1, self._frozen_at))
        self.active.logical_and_(finite)
        waits = self._let_actor_wait()
        with part("optimizer"):
            self.optimizer.step(self.active)
        if not waits:
            with part("target update"):
                self.target_updater.step(self.active)

    # ------------------------------------------------- logging and evaluation

    def _make_alarm(self, buffer: Any, action: OnImpossibleValues) -> ValueAlarm:
        return ValueAlarm(self.population, buffer, action, self.members)

    @property
    def impossible(self) -> dict[str, int]:
        """The members whose values exceeded what the rewards of the data allow, and the logging point of each."""
        return dict(self.alarm.found)

    def _check_values(self, means: Mapping[str, Any]) -> None:
        """Warn of members whose values the rewards do not allow, or leave them out from now on."""
        before = set(self.alarm.found)
        message = self.alarm.check(self.step, means, self._window.first)
        if message is None:
            return
        self.alarm.warn(message)
        for index, name in enumerate(self.members):
            if self.alarm.action == "stop" and name in self.alarm.found.keys() - before and self.active[index]:
                self.active[index] = False  # in place: a GPU replays the step that reads it
                self._frozen_at[index] = self.step

    def _log(self) -> None:
        means = self._window.means()
        self._report_frozen()
        self._check_values(means)
        for index, (name, logger) in enumerate(self.loggers.items()):
            if name not in self._reported:
                row = {metric: values[index] for metric, values in means.items()}
                logger.log_train(self.step, row | {"seconds": self.seconds})
        self._window.clear()

    def _report_frozen(self) -> None:
        for name, at in self.frozen.items():
            if name not in self._reported:
                self._reported.add(name)
                if self.progress:
                    why = self._why_frozen(name)
                    text = f"{name} {why} since step {at}: it keeps its last finite parameters, the others go on"
                    print(f"step {self.step:>7}  {text}", flush=True)

    def _why_frozen(self, name: str) -> str:
        stopped = self.alarm.action == "stop" and self.alarm.found.get(name) == self.frozen[name]
        return "has impossible values" if stopped else "is not finite"

    def _evaluate(self, bar: Any) -> None:
        self._report_frozen()
        for evaluator_name, evaluator in self.evaluators.items():
            with part(f"evaluation {evaluator_name}"), preserved_rng():
                results = evaluator() or {}
            rows = {}
            for member, result in results.items():
                rows[member] = dict(result.summary() if hasattr(result, "summary") else result)
                self.loggers[member].log_eval(self.step, evaluator_name, rows[member])
            if self.progress and rows:
                bar.write(f"step {self.step:>7}  {evaluator_name}, mean of {len(rows)}: " + one_line(_means(rows)))
        self.finished = self.stop_when is not None and self.stop_when()

    @torch.no_grad()
    @checked
    def evaluate(
        self, env: EnvBase, *, episodes: Annotated[int, SIZE], seed: Annotated[int, SEED], mode: Mode = "mode"
    ) -> dict[str, Evaluation]:
        """Run every member for ``episodes`` whole episodes, all in one batched environment.

        Args:
            env: of batch size ``[P * k]``; member ``i`` plays in slots ``i k`` to ``(i + 1) k - 1``.
            episodes: of each member.
            seed: of the environment and of the sampling.
            mode: see :func:`evaluate`.

        Returns:
            Member name -> its evaluation.

        Raises:
            ValueError: the environment's slots cannot be shared equally, or an argument is out of range.
        """
        check_arguments(env, episodes, mode)
        count, slots = len(self.members), env.batch_size[0]
        if slots % count:
            raise ValueError(
                f"An environment of {slots} slots cannot be shared by {count} members; make one of a multiple."
            )
        quota = spread_over_slots(episodes, slots // count).repeat(count)
        with explored(env, mode, seed), evaluation_mode(self.population.template.actor_network):
            # a member that diverged is left out by itself: it does not end the others
            finished, has_success = run_episodes(self.population.act, env, quota, must_be_finite=False)
        found, per_member = {}, slots // count
        for index, name in enumerate(self.members):
            rows = [row for slot in finished[index * per_member : (index + 1) * per_member] for row in slot]
            found[name] = Evaluation.of(rows, has_success, env, mode, seed)
        return found

    # ------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the loop's counters, the members' names and which of them are active."""
        own = {"active": self.active, "frozen_at": self._frozen_at, "reported": sorted(self._reported)}
        return super().state_dict() | own | {"members": self.members}

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse other members, or other settings; see :meth:`Trainer.check_state_dict`."""
        super().check_state_dict(state)
        if state["members"] != self.members:
            raise ValueError(f"the checkpoint's members are {state['members']}, this population's {self.members}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.active.copy_(state["active"])
        self._frozen_at.copy_(state["frozen_at"])
        self._reported = set(state["reported"])

    def resume(self, checkpoint: str | Path | None = None) -> int:
        """Go back to a checkpoint of the population; see :meth:`Trainer.resume`."""
        step = super().resume(checkpoint)
        for logger in self.loggers.values():
            logger.truncate(step)
        return step

    def _start(self) -> bool:
        fresh = super()._start()
        if fresh:
            for logger in self.loggers.values():
                logger.truncate(-1)
        return fresh

    def _components(self) -> dict[str, Any]:
        return {
            "population": self.population,
            "optimizer": self.optimizer,
            "buffer": self._buffer_state(),
            "rng": GlobalRNGState(),
            "trainer": self,
        }

    def _buffer_state(self) -> PopulationBuffer:
        return self.buffer

    def _check_finite(self) -> None:
        """Raise nothing: members that are not finite are left out, and their parameters stay finite."""

    def _check_losses(self) -> None:
        """Raise nothing, for the same reason."""

    def _save_policies(self) -> None:
        """Write the newest policy of each member."""
        for name, loss in self.member_losses():
            actor = getattr(loss, "actor_network", None)
            if hasattr(actor, "build"):
                save_policy(self.member_folder(name) / POLICY_FILE, actor, {"step": self.step})

    def member_losses(self) -> list[tuple[str, LossModule]]:
        """Yield each member's name with an ordinary loss that holds its tensors, the same object for all."""
        loss = copy_with_networks(self.population.template)
        return ((name, self.population.write_member(name, loss)) for name in self.members)

    def split(self) -> dict[str, Path]:
        """Write an ordinary checkpoint of each member, from which :class:`Trainer` goes on alone.

        Returns:
            Member name -> the file, in ``members/NAME/checkpoints/``.
        """
        return {name: self._save_alone(index, name, loss) for index, (name, loss) in enumerate(self.member_losses())}

    def _save_alone(self, index: int, name: str, loss: LossModule) -> Path:
        alone = Trainer(
            loss,
            self.buffer.member(index),
            steps=self.steps,
            optimizer=self.optimizer.member_optimizer(index, default_optimizer(loss)),
            tau=self.target_updater.tau,
            actor_every=self.actor_every,
            output=self.member_folder(name),
            logger=RunLogger(None),
            progress=False,
        )
        self.population.write_member(name, loss)  # again: a new target updater starts from targets equal to sources
        alone.step, alone.seconds, alone.finished, alone.compile = self.step, self.seconds, self.finished, self.compile
        alone._window = self._window.column(index)
        alone.alarm.load_state_dict(self.alarm.member_state(index))
        alone._settings = {}  # the rules' words are the first member's, whose form serves for all
        manager = CheckpointManager(self.member_folder(name) / "checkpoints", keep=1)
        with preserved_rng():
            noise = self.buffer.noise_generators[index]  # alone, it is drawn from the device's own generator
            if noise.device.type == "cuda":
                torch.cuda.set_rng_state(noise.get_state(), noise.device)
            else:
                torch.set_rng_state(noise.get_state())
            return manager.save(self.step, **alone._components())


def _means(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    first = next(iter(rows.values()))
    numbers = [name for name, value in first.items() if isinstance(value, int | float)]
    return {name: sum(float(row[name]) for row in rows.values()) / len(rows) for name in numbers}
