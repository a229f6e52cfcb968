"""Rules that fit a generative model of the data's actions, which other rules then ask.

A rule owns no parameters; the loss that it is given to does, as ``behaviour_network_params``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_marl_offline.core.named_settings import NamedSettings
from torchrl_marl_offline.objectives.batch import Batch


class BehaviourLearning(NamedSettings, ABC):
    """Base class of the rules.

    Attributes:
        given_keys: inputs of the network that the rules give it, which a batch need not have: noise, times.
        metrics: names of the metrics that :meth:`element_loss` returns.
    """

    given_keys: ClassVar[tuple[NestedKey, ...]] = ()
    metrics: ClassVar[tuple[str, ...]] = ()

    def coefficients(self) -> dict[str, float]:
        """Return the scalars that the loss registers as schedulable buffers, by the names of the rule's attributes.

        Read them as ``batch.coefficient(name)``: the attribute stays what it was, and is the first member's in a
        population.
        """
        return {}

    def check_behaviour(self, model: TensorDictModuleBase) -> None:
        """Refuse a model of the data's actions of another kind than the rule asks, when the loss is made."""
        return

    @abstractmethod
    def element_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each agent's action ``[*B, n]``, or of joint actions ``[*B, 1]``, and detached metrics."""
