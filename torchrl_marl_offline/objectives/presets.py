"""Named presets of :class:`OfflineMARLLoss`, so that each part of the recipe can be used alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import OPEN_UNIT
from torchrl_marl_offline.objectives.extraction import AWR, BRAC, Cloning
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.objectives.value_learning import IQL, SARSA, TD

Critic = TensorDictModuleBase | Sequence[TensorDictModuleBase]


class TDLoss(OfflineMARLLoss):
    """The critic term alone, bootstrapping at the policy's action (:class:`TD`).

    The actor is asked, not trained. Options: those of :class:`OfflineMARLLoss`.
    """

    @checked
    def __init__(self, actor: TensorDictModuleBase, critic: Critic, **options) -> None:
        super().__init__(actor, critic, value_learning=TD(), extraction=None, **options)


class SARSALoss(OfflineMARLLoss):
    """The critic term alone, bootstrapping at the dataset's next action (:class:`SARSA`).

    Options: those of :class:`OfflineMARLLoss`.
    """

    @checked
    def __init__(self, critic: Critic, **options) -> None:
        super().__init__(None, critic, value_learning=SARSA(), extraction=None, **options)


class IQLLoss(OfflineMARLLoss):
    """The critic and state-value terms of implicit Q-learning (:class:`IQL`), without an actor.

    Options: those of :class:`OfflineMARLLoss`, and the rule's ``expectile``.
    """

    @checked
    def __init__(
        self,
        critic: Critic,
        value: TensorDictModuleBase,
        *,
        expectile: Annotated[float, OPEN_UNIT] = IQL.expectile,
        **options,
    ) -> None:
        super().__init__(None, critic, value, value_learning=IQL(expectile), extraction=None, **options)


class AWRLoss(OfflineMARLLoss):
    """The actor term alone by advantage-weighted regression (:class:`AWR`), over a critic that others train.

    The critic and, if given, the state-value network are held by reference and get no gradient. A critic with
    mixer is passed as the same sequence as to the loss that trains it.

    ``rule`` gives the settings of :class:`AWR`; further options: those of :class:`OfflineMARLLoss`.
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        value: TensorDictModuleBase | None = None,
        *,
        rule: AWR = AWR(),  # noqa: B008
        **options,
    ) -> None:
        super().__init__(actor, critic, value, value_learning=None, extraction=rule, **options)


class BRACLoss(OfflineMARLLoss):
    """The actor term alone by behaviour-regularized actor-critic (:class:`BRAC`), over a critic that others train.

    As :class:`AWRLoss`; no state-value network is asked.
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        *,
        rule: BRAC = BRAC(),  # noqa: B008
        **options,
    ) -> None:
        super().__init__(actor, critic, value_learning=None, extraction=rule, **options)


class BehaviourCloning(OfflineMARLLoss):
    """Maximum likelihood of the dataset's actions: the baseline that every run is compared with (:class:`Cloning`)."""

    def __init__(self, actor: TensorDictModuleBase, **options) -> None:
        super().__init__(actor, None, value_learning=None, extraction=Cloning(), **options)
