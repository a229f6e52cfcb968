"""Which networks move at which update, how many steps they have taken by then, and at what share of their rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import Tensor

Count = TypeVar("Count", int, Tensor)


@dataclass(frozen=True)
class Rhythm:
    """When the actor moves, and when all other networks do.

    Attributes:
        actor_every: the actor and the targets move at every so many updates alone.
        critic_first: so many updates train all networks but the actor; after them the actor alone is trained.
        anneal_over: the learning rates fall to 0 by a cosine over so many updates, those of ``critic_first`` not
            counted; None leaves them as they are.
    """

    actor_every: int = 1
    critic_first: int = 0
    anneal_over: int | None = None

    @property
    def is_even(self) -> bool:
        """Whether one update is like all others."""
        return self == Rhythm()

    def settings(self) -> dict[str, int | None]:
        """Return what the numbers of a run depend on."""
        return asdict(self)

    def check(self, networks: set[str]) -> None:
        """Refuse a rhythm of networks that a loss does not train.

        Raises:
            ValueError: so.
        """
        if self.actor_every > 1 and "actor" not in networks:
            raise ValueError("actor_every is for a loss that trains an actor_network; leave it out.")
        if self.critic_first and not {"actor"} < networks:
            raise ValueError(
                "critic_first is for a loss that trains an actor_network and others; leave it out, or train both in "
                "one OfflineMARLLoss."
            )
        if self.anneal_over is not None and self.anneal_over <= self.critic_first:
            raise ValueError(
                f"anneal_over counts all updates and must be above critic_first ({self.critic_first}), got "
                f"{self.anneal_over}."
            )

    def check_steps(self, steps: int) -> None:
        """Refuse a rhythm in whose so many updates the actor never moves.

        Raises:
            ValueError: so.
        """
        if self.actor_every > steps:
            raise ValueError(f"actor_every must be at most steps ({steps}), got {self.actor_every}.")
        if self.critic_first >= steps:
            raise ValueError(
                f"critic_first must be below steps ({steps}), which count those of the actor too; got "
                f"{self.critic_first}."
            )
        if not self.actor_steps(steps):
            raise ValueError(
                f"actor_every must have a multiple above critic_first ({self.critic_first}) and at most steps "
                f"({steps}), got {self.actor_every}."
            )

    def moves_actor(self, update: int) -> bool:
        """Say whether the actor moves at an update, the first of which is 1."""
        return update > self.critic_first and update % self.actor_every == 0

    def moves_others(self, update: int) -> bool:
        """Say whether the other networks move."""
        return not self.critic_first or update <= self.critic_first

    def moves_targets(self, update: int) -> bool:
        """Say whether the target networks move: with the actor, and before its time at every update."""
        return self.moves_others(update) and (update <= self.critic_first or self.moves_actor(update))

    def actor_steps(self, updates: Count) -> Count:
        """Return how many steps the actor has taken in so many updates, numbers of members in a tensor."""
        waited = self._least(updates, self.critic_first)
        return updates // self.actor_every - waited // self.actor_every

    def other_steps(self, updates: Count) -> Count:
        """Return how many steps the other networks have taken."""
        return self._least(updates, self.critic_first) if self.critic_first else updates

    def rate_factor(self, update: int) -> float:
        """Return the share of the learning rates at an update."""
        if self.anneal_over is None or update <= self.critic_first:
            return 1.0
        share = min(1.0, (update - 1 - self.critic_first) / (self.anneal_over - self.critic_first))
        return (1 + math.cos(math.pi * share)) / 2

    @staticmethod
    def _least(updates: Count, bound: int) -> Count:
        return updates.clamp(max=bound) if isinstance(updates, torch.Tensor) else min(updates, bound)
