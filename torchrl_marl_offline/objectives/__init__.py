"""Losses: one flat loss module, its rules and its presets."""

from torchrl_marl_offline.objectives.extraction import AWR, BRAC, Cloning, PolicyExtraction
from torchrl_marl_offline.objectives.offline_marl import OfflineMARLLoss
from torchrl_marl_offline.objectives.presets import (
    AWRLoss,
    BehaviourCloning,
    BRACLoss,
    IQLLoss,
    SARSALoss,
    TDLoss,
)
from torchrl_marl_offline.objectives.value_learning import IQL, SARSA, TD, ValueLearning

__all__ = [
    "AWR",
    "BRAC",
    "IQL",
    "SARSA",
    "TD",
    "AWRLoss",
    "BRACLoss",
    "BehaviourCloning",
    "Cloning",
    "IQLLoss",
    "OfflineMARLLoss",
    "PolicyExtraction",
    "SARSALoss",
    "TDLoss",
    "ValueLearning",
]
