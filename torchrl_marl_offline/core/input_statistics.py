"""Mean and deviation of what networks read, by which their inputs are normalized."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.core.regular_files import read_json

Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Means, and deviations above 0, of each component."""

BADLY_SCALED = 30.0
"""Root mean square from which an input counts as badly scaled."""


@dataclass(frozen=True)
class InputStatistics:
    """Mean and deviation of each component of observations and states; see :meth:`OfflineDataset.input_statistics`.

    Attributes:
        observation: of all agents' observations, two times ``o`` numbers.
        state: of states, two times ``s`` numbers.

    Raises:
        ValueError: not as many finite means as finite deviations above 0.
    """

    observation: Moments
    state: Moments

    def __post_init__(self) -> None:
        for name in ("observation", "state"):
            mean, deviation = (tuple(map(float, numbers)) for numbers in getattr(self, name))
            whole = len(mean) == len(deviation) and all(map(math.isfinite, (*mean, *deviation)))
            if not whole or min(deviation, default=0.0) <= 0:
                raise ValueError(
                    f"InputStatistics.{name} needs as many finite means as finite deviations above 0; take "
                    "OfflineDataset.input_statistics()."
                )
            object.__setattr__(self, name, (mean, deviation))

    @property
    def largest(self) -> float:
        """The largest root mean square of a component."""
        return max(math.hypot(*pair) for moments in (self.observation, self.state) for pair in zip(*moments))

    @property
    def are_badly_scaled(self) -> bool:
        """Whether a component's root mean square reaches :data:`BADLY_SCALED`."""
        return self.largest >= BADLY_SCALED

    def save(self, path: Path) -> None:
        """Write a JSON file, in one step."""
        write_json_atomic(path, self)

    @classmethod
    def load(cls, path: Path) -> InputStatistics:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return cls(**dict(read_json(path)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged; restore it, or start a new run.") from error
