"""Actions in halves of their range, as generative models read and write them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torchrl_marl_offline.core.layout import TaskSpec


@dataclass(frozen=True)
class ActionRange:
    """The range of every component of a continuous action.

    Attributes:
        middle: of the range.
        half: half of its length.
    """

    middle: float
    half: float

    @classmethod
    def of(cls, spec: TaskSpec) -> ActionRange:
        """Return a task's."""
        return cls((spec.action_high + spec.action_low) / 2, (spec.action_high - spec.action_low) / 2)

    def scaled(self, action: Tensor) -> Tensor:
        """Map the range to [-1, 1]."""
        return (action - self.middle) / self.half

    def unscaled(self, x: Tensor) -> Tensor:
        """Map [-1, 1] to the range."""
        return self.middle + self.half * x
