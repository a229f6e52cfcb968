"""One training step of many losses at once: all members move, each by numbers of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.functional_parameters import copy_with_networks
from torchrl_marl_offline.core.parts import part
from torchrl_marl_offline.core.ranges import COUNT, COUNT_OR_NONE, LEARNING_RATE, POSITIVE, RATE, SIZE
from torchrl_marl_offline.training.populations.population import Population, PopulationBuffer, PopulationGradients
from torchrl_marl_offline.training.populations.population_optimizer import (
    PopulationAdam,
    PopulationGradientNorm,
    PopulationSoftUpdate,
)
from torchrl_marl_offline.training.run.checkpoints import restore_generator
from torchrl_marl_offline.training.step.gradients import Precision
from torchrl_marl_offline.training.step.learner import BaseLearner
from torchrl_marl_offline.training.step.rhythm import Rhythm

if TYPE_CHECKING:
    from torchrl.objectives import LossModule


class PopulationLearner(BaseLearner):
    """One training step of many losses of one structure at once; see :class:`Population`.

    Each member has its own minibatches, coefficients, learning rate, SVN statistics, gradient clipping and noise; none
    reads another's numbers. A member whose loss or gradient is no longer finite keeps its last finite parameters and is
    left out from then on; the others go on.

    Args:
        losses: member name -> loss; the first serves as the form of all.
        lr: Adam's learning rate, one for all or one for each member.
        tau: rate of the target networks.
        actor_every: as in :class:`Learner`.
        critic_first: as in :class:`Learner`.
        anneal_over: as in :class:`Learner`.
        clip_grad_norm: largest norm of each member's whole gradient; see :class:`Learner`.
        precision: as in :class:`Learner`.
        compile: ``"off"``, ``"on"`` or ``"auto"``, as in :class:`Learner`.
        members_at_once: how many members are one computation; see :class:`PopulationGradients`.

    Attributes:
        population: the members' stacked tensors.
        active: ``[P]`` bool, which members still take part.

    Example:
        >>> seeds = range(8)                                                                         # doctest: +SKIP
        >>> learner = PopulationLearner({f"seed-{s}": build(seed=s) for s in seeds}, lr=1e-3)        # doctest: +SKIP
        >>> buffer = PopulationBuffer(data.data, batch_size=256, seeds=seeds)                        # doctest: +SKIP
        >>> trainer = Trainer(learner, buffer, steps=10_000, output="runs/eight")                    # doctest: +SKIP
        >>> trainer.train()                                                                          # doctest: +SKIP
    """

    is_population = True

    @checked
    def __init__(
        self,
        losses: Mapping[str, LossModule],
        *,
        lr: Annotated[float | Sequence[float], LEARNING_RATE] = 3e-4,
        tau: Annotated[float, RATE] = 0.005,
        actor_every: Annotated[int, COUNT] = 1,
        critic_first: Annotated[int, COUNT_OR_NONE] = 0,
        anneal_over: Annotated[int | None, COUNT] = None,
        clip_grad_norm: Annotated[float | None, POSITIVE] = None,
        precision: Precision = "fp32",
        compile: str = "off",
        members_at_once: Annotated[int | None, SIZE] = None,
    ) -> None:
        if isinstance(compile, Mapping):
            raise ValueError('compile must be "off", "on" or "auto" for a population.')
        self.population = population = Population(losses)
        self.members = population.members
        rhythm = Rhythm(actor_every, critic_first, anneal_over)
        optimizer = PopulationAdam(population, lr=lr, rhythm=rhythm)
        super().__init__(
            population,
            optimizer=optimizer,
            target_updater=PopulationSoftUpdate(population, tau=tau),
            rhythm=rhythm,
            clip_grad_norm=clip_grad_norm,
            precision=precision,
            compile=compile,
            gradient_norm=PopulationGradientNorm(population, clip_grad_norm),
        )
        self._members_at_once = members_at_once
        device = optimizer.lr.device
        self.active = torch.ones(len(population), dtype=torch.bool, device=device)
        self._left_at = torch.full((len(population),), -1, dtype=torch.int64, device=device)
        # Those of the buffer, once it is attached: a checkpoint keeps them with the minibatches'.
        self._generators: Sequence[torch.Generator] = [
            torch.Generator(device=device).manual_seed(index) for index in range(len(population))
        ]

    @property
    def template(self) -> LossModule:
        """The first member's loss, into which members' tensors are put."""
        return self.population.template

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Return the stacked tensors ``[P, ...]`` by their names in a member's loss."""
        return self.population.tensors().items()

    def attach(self, buffer: Any) -> None:
        """Take the noise from the buffer's generators.

        Raises:
            ValueError: it is no :class:`PopulationBuffer`, or of another number of members.
        """
        if not isinstance(buffer, PopulationBuffer):
            raise ValueError(
                "A population draws from a PopulationBuffer(data, batch_size=256, seeds=[...]) with one seed for each "
                f"member, got a {type(buffer).__name__}."
            )
        if len(buffer.generators) != len(self.members):
            raise ValueError(
                f"The buffer has {len(buffer.generators)} seeds for {len(self.members)} losses; give one for each "
                "member."
            )
        super().attach(buffer)
        self._generators = buffer.noise_generators

    def _make_gradients(self, *, compiled: bool) -> PopulationGradients:
        """Return what differentiates all members' losses."""
        return PopulationGradients(
            self.population,
            precision=self.precision,
            compiled=compiled,
            generators=self._generators,
            members_at_once=self._members_at_once,
        )

    def noise_generators(self) -> Sequence[torch.Generator]:
        """Return the members' generators."""
        return self._generators

    def _anneal(self, factor: float) -> None:
        """Let the next step have this share of the learning rates."""
        self.optimizer.rate_factor = factor

    def _move(self, metrics: Mapping[str, Tensor], *, with_targets: bool) -> None:
        """Move the members that are finite, and leave the others out from now on."""
        watched = [value for name, value in metrics.items() if name.startswith(("loss", "grad_norm"))]
        finite = torch.stack(watched).isfinite().all(0)
        fell = self.active & ~finite
        # in place, and counted on the device: a GPU replays this without Python
        self._left_at.copy_(torch.where(fell, self.optimizer.step_count.long() + 1, self._left_at))
        self.active.logical_and_(finite)
        with part("optimizer"):
            self.optimizer.step(self.active)
        if with_targets:
            with part("target update"):
                self.target_updater.step(self.active)

    def left_out(self) -> dict[str, int]:
        """Return the members that no longer take part, and the step at which each was left out."""
        return {name: at for name, at in zip(self.members, self._left_at.tolist()) if at >= 0}

    def leave_out(self, members: Collection[str]) -> None:
        """Let members keep their parameters from now on."""
        for index, name in enumerate(self.members):
            if name in members and self.active[index]:
                self.active[index] = False  # in place: a GPU replays the step that reads it
                self._left_at[index] = self.updates

    def member_losses(self) -> Iterable[tuple[str, LossModule]]:
        """Yield each member's name with an ordinary loss that holds its tensors, the same object for all."""
        loss = copy_with_networks(self.template)
        return ((name, self.population.write_member(name, loss)) for name in self.members)

    def parts(self) -> dict[str, Any]:
        """Return population and optimizer; soft updates have no state."""
        return {"population": self.population, "optimizer": self.optimizer}

    def state_dict(self) -> dict[str, Any]:
        """Return all that further steps depend on, the members' noise among it."""
        return super().state_dict() | {"noise_generators": [each.get_state() for each in self._generators]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        for generator, saved in zip(self._generators, state["noise_generators"], strict=True):
            restore_generator(generator, saved)

    def own_state(self) -> dict[str, Any]:
        """Return settings, the members' names and which of them take part."""
        own = {"active": self.active, "frozen_at": self._left_at, "members": list(self.members)}
        return super().own_state() | own

    def check_own_state(self, state: Mapping[str, Any]) -> None:
        """Refuse other members, or other settings.

        Raises:
            ValueError: they differ.
        """
        super().check_own_state(state)
        if state["members"] != self.members:
            raise ValueError(f"the checkpoint's members are {state['members']}, this population's {self.members}")

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        super().load_own_state(state)
        self.active.copy_(state["active"])
        self._left_at.copy_(state["frozen_at"])
