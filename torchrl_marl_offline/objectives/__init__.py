"""Losses: one flat loss module, its rules and its presets."""

from torchrl_marl_offline.objectives.ascent import TD3BC, PolicyGradient
from torchrl_marl_offline.objectives.conservative import CQL
from torchrl_marl_offline.objectives.extraction import AWR, BRAC, Cloning, PolicyExtraction
from torchrl_marl_offline.objectives.in_sample import ICQ, OMAC, OMIGA
from torchrl_marl_offline.objectives.offline_marl import OfflineMARLLoss
from torchrl_marl_offline.objectives.omar import OMAR
from torchrl_marl_offline.objectives.presets import (
    AWRLoss,
    BehaviourCloning,
    BRACLoss,
    IQLLoss,
    SARSALoss,
    TDLoss,
)
from torchrl_marl_offline.objectives.samplers import ActionSampler, CEMSampler, RandomSampler, SoftmaxSampler
from torchrl_marl_offline.objectives.systems import (
    MACQLLoss,
    MAICQLoss,
    MATD3BCLoss,
    OMACLoss,
    OMARLoss,
    OMIGALoss,
)
from torchrl_marl_offline.objectives.value_learning import IQL, SARSA, TD, ValueLearning

__all__ = [
    "AWR",
    "BRAC",
    "CQL",
    "ICQ",
    "IQL",
    "OMAC",
    "OMAR",
    "OMIGA",
    "SARSA",
    "TD",
    "TD3BC",
    "AWRLoss",
    "ActionSampler",
    "BRACLoss",
    "BehaviourCloning",
    "CEMSampler",
    "Cloning",
    "IQLLoss",
    "MACQLLoss",
    "MAICQLoss",
    "MATD3BCLoss",
    "OMACLoss",
    "OMARLoss",
    "OMIGALoss",
    "OfflineMARLLoss",
    "PolicyExtraction",
    "PolicyGradient",
    "RandomSampler",
    "SARSALoss",
    "SoftmaxSampler",
    "TDLoss",
    "ValueLearning",
]
