"""The diagnosis that every run logs: of the newest batch, at some of the logging points."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Protocol

from torchrl_marl_offline.core.functional_parameters import tensors_in
from torchrl_marl_offline.core.put_back import preserved_rng
from torchrl_marl_offline.objectives.diagnosis import batch_diagnosis, numbers_of_batch
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tensordict import TensorDictBase
    from torch import Tensor
    from torchrl.objectives import LossModule

EVERY = 100
"""Updates between two diagnoses at least, so that they cost little beside the steps between."""


class Learns(Protocol):
    """What is asked of a learner: its loss or population, and a loss of the members' form."""

    loss: Any
    template: LossModule
    is_population: bool


class LoggedDiagnosis:
    """Look at the newest batch with the newest networks, one member after another.

    Args:
        learner: whose loss is looked at; of losses other than :class:`OfflineMARLLoss` nothing is known.
        log_every: steps between logging points.
    """

    def __init__(self, learner: Learns, log_every: int) -> None:
        self._learner = learner
        self._is_off = not isinstance(learner.template, OfflineMARLLoss)
        self.every = log_every * math.ceil(EVERY / log_every)

    def check(self, step: int, batch: TensorDictBase | None) -> dict[str, Any]:
        """Return numbers by name at every ``every`` th step, of a population lists; else, and where it fails, none."""
        if self._is_off or batch is None or step % self.every:
            return {}
        try:
            if self._learner.is_population:
                return self._members(batch)
            return _floats(batch_diagnosis(self._learner.loss, batch))
        except Exception as error:  # of networks and rules of a user's own, of any kind
            self._is_off = True
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            warnings.warn(f"These networks cannot be diagnosed ({reason}); the run goes on without.", stacklevel=2)
            return {}

    def _members(self, batch: TensorDictBase) -> dict[str, list[float]]:
        population = self._learner.loss
        rows = []
        for index, member in enumerate(population.members):
            own = {name: value.clone() for name, value in population.member_tensors(member).items()}
            with preserved_rng(), tensors_in(population.template, own):  # copies, whose running statistics may move
                rows.append(_floats(numbers_of_batch(population.template, batch[index])))
        return {name: [row[name] for row in rows] for name in rows[0]}


def _floats(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items()}
