"""Value-learning rules: what is the next state worth?

A rule owns no parameters; the loss that it is given to does. Its coefficients become buffers of the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tensordict import TensorDictBase
from torch import Tensor

from torchrl_marl_offline.objectives.functional import expectile_weighted_square

if TYPE_CHECKING:
    from torchrl_marl_offline.objectives.offline_marl import OfflineMARLLoss


class ValueLearning(ABC):
    """Base class of the rules.

    Attributes:
        needs_actor: whether :meth:`next_value` asks the policy.
        needs_value: whether the loss must own a state-value network.
        needs_next_action: whether the dataset's next action is read.
    """

    needs_actor: ClassVar[bool] = False
    needs_value: ClassVar[bool] = False
    needs_next_action: ClassVar[bool] = False

    def coefficients(self) -> dict[str, float]:
        """Return the scalars that the loss registers as schedulable buffers."""
        return {}

    @abstractmethod
    def next_value(self, loss: OfflineMARLLoss, next_tensordict: TensorDictBase) -> Tensor:
        """Return the value ``[*B, k, 1]`` of the next state; ``k`` is 1 for a team, ``n`` for independent agents."""

    def row_mask(self, loss: OfflineMARLLoss, tensordict: TensorDictBase) -> Tensor | None:
        """Return ``[*B]``, false where the rule cannot form a target, or None."""
        return None


@dataclass(frozen=True)
class TD(ValueLearning):
    r"""Bootstrap at the policy's action: :math:`\min_k \bar Q^k_{tot}(s', \pi(o'))` (eq. 2)."""

    needs_actor: ClassVar[bool] = True

    def next_value(self, loss: OfflineMARLLoss, next_tensordict: TensorDictBase) -> Tensor:
        """Evaluate the target critic at the mode of the policy."""
        return loss.action_value(next_tensordict, loss.policy_action(next_tensordict), target=True).total_min


@dataclass(frozen=True)
class SARSA(ValueLearning):
    r"""Bootstrap at the dataset's next action: :math:`\min_k \bar Q^k_{tot}(s', u')` (eq. 8).

    A row whose next action was never recorded (``("collector", "has_next_action")`` false) counts only if it
    terminated.
    """

    needs_next_action: ClassVar[bool] = True

    def next_value(self, loss: OfflineMARLLoss, next_tensordict: TensorDictBase) -> Tensor:
        """Evaluate the target critic at the recorded next action."""
        return loss.action_value(next_tensordict, next_tensordict.get(loss.tensor_keys.action), target=True).total_min

    def row_mask(self, loss: OfflineMARLLoss, tensordict: TensorDictBase) -> Tensor | None:
        """Leave out rows without a successor's action."""
        known = tensordict.get(loss.tensor_keys.has_next_action, None)
        if known is None:
            return None
        terminated = tensordict.get(("next", loss.tensor_keys.terminated)).squeeze(-1)
        return known | terminated


@dataclass(frozen=True)
class IQL(ValueLearning):
    r"""Implicit Q-learning: bootstrap at :math:`V_{tot}(s')` (eq. 9), an expectile of :math:`Q_{tot}(s, u)` (eq. 10).

    :math:`V_{tot} = f(V_1, \ldots, V_n; s)` goes through the target mixer, through which its regression target
    :math:`\min_k \bar Q^k_{tot}(s, u)` came; the mixer gets no gradient from it.

    Args:
        expectile: :math:`\tau` in (0, 1); above 0.5 it leans to the better actions of the data.
    """

    expectile: float = 0.9
    needs_value: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.expectile < 1.0:
            raise ValueError(f"expectile must lie between 0 and 1, got {self.expectile}.")

    def coefficients(self) -> dict[str, float]:
        """Return the expectile."""
        return {"expectile": self.expectile}

    def next_value(self, loss: OfflineMARLLoss, next_tensordict: TensorDictBase) -> Tensor:
        """Evaluate the state-value network and mix it."""
        return loss.state_value(next_tensordict).total

    def element_loss(self, loss: OfflineMARLLoss, value: Tensor, target: Tensor) -> Tensor:
        """Return the expectile regression of ``value`` to ``target``, element by element."""
        return expectile_weighted_square(target - value, loss.expectile)
