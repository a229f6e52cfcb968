"""Actions in halves of their range, as generative models read and write them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torchrl_marl_offline.core.component_bounds import ComponentBound, following, like
from torchrl_marl_offline.core.layout import TaskSpec

Kept = float | ComponentBound
"""A number for all components, or a number for each of them."""


@dataclass(frozen=True)
class ActionRange:
    """The range of every component of a continuous action.

    Attributes:
        low: lower bounds.
        high: upper bounds.
        middle: of the range.
        half: half of its length.
        divisor: the same, but 1 for a component that is a constant: its place in [-1, 1] is 0.
    """

    low: Kept
    high: Kept
    middle: Kept
    half: Kept
    divisor: Kept

    @classmethod
    def of(cls, spec: TaskSpec) -> ActionRange:
        """Return a task's."""
        low, high = spec.action_low, spec.action_high
        if not spec.has_component_bounds:
            return cls(low, high, (high + low) / 2, (high - low) / 2, (high - low) / 2)
        pairs = [list(zip(*rows)) for rows in zip(*(spec.lows, spec.highs))]
        middle, half, divisor = (
            following(tuple(tuple(number(*pair) for pair in row) for row in pairs))
            for number in (
                lambda low, high: (high + low) / 2,
                lambda low, high: (high - low) / 2,
                lambda low, high: (high - low) / 2 or 1.0,
            )
        )
        return cls(following(low), following(high), middle, half, divisor)

    def scaled(self, action: Tensor) -> Tensor:
        """Map the range to [-1, 1]."""
        return (action - like(self.middle, action)) / like(self.divisor, action)

    def unscaled(self, x: Tensor) -> Tensor:
        """Map [-1, 1] to the range."""
        return like(self.middle, x) + like(self.half, x) * x

    def spread(self, scale: Tensor) -> Tensor:
        """Return a deviation, given in halves of the range."""
        return like(self.divisor, scale) * scale

    def clipped(self, action: Tensor) -> Tensor:
        """Clip to the range, which the rounding of :meth:`unscaled` can leave."""
        return action.clamp(like(self.low, action), like(self.high, action))


def component_range(spec: TaskSpec) -> ActionRange | None:
    """Return the range of actions that networks are shown in halves of it; None where they see actions as they are.

    They do where one number bounds all components.
    """
    return ActionRange.of(spec) if not spec.discrete and spec.has_component_bounds else None
