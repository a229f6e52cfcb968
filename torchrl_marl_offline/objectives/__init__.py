"""Losses: one flat loss module, its rules and its presets."""

from torchrl_marl_offline.core.extensions import import_room
from torchrl_marl_offline.objectives.ascent import TD3BC, PolicyGradient
from torchrl_marl_offline.objectives.batch_constrained import BCQ, BCQDistillation, VAELearning
from torchrl_marl_offline.objectives.behaviour_learning import BehaviourLearning
from torchrl_marl_offline.objectives.cloned_behaviour import ClonedBehaviour
from torchrl_marl_offline.objectives.conservative import CQL
from torchrl_marl_offline.objectives.counterfactual import CFCQL
from torchrl_marl_offline.objectives.extraction import AWR, BRAC, Cloning, PolicyExtraction, WeightedBRAC
from torchrl_marl_offline.objectives.flow_matching import FlowDistillation, FlowMatching
from torchrl_marl_offline.objectives.in_sample import ICQ, GlobalToLocal, LocalIQL
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.objectives.presets import (
    AWRLoss,
    BehaviourCloning,
    BRACLoss,
    IQLLoss,
    SARSALoss,
    TDLoss,
)
from torchrl_marl_offline.objectives.rectified import RectifiedGradient
from torchrl_marl_offline.objectives.samplers import ActionSampler, CEMSampler, RandomSampler, SoftmaxSampler
from torchrl_marl_offline.objectives.score import ScoreMatching, ScoreRegularized, SequentialCloning
from torchrl_marl_offline.objectives.value_learning import IQL, SARSA, TD, ValueLearning

import_room(__name__)

__all__ = [
    "AWR",
    "BCQ",
    "BRAC",
    "CFCQL",
    "CQL",
    "ICQ",
    "IQL",
    "SARSA",
    "TD",
    "TD3BC",
    "AWRLoss",
    "ActionSampler",
    "BCQDistillation",
    "BRACLoss",
    "BehaviourCloning",
    "BehaviourLearning",
    "CEMSampler",
    "ClonedBehaviour",
    "Cloning",
    "FlowDistillation",
    "FlowMatching",
    "GlobalToLocal",
    "IQLLoss",
    "LocalIQL",
    "OfflineMARLLoss",
    "PolicyExtraction",
    "PolicyGradient",
    "RandomSampler",
    "RectifiedGradient",
    "SARSALoss",
    "ScoreMatching",
    "ScoreRegularized",
    "SequentialCloning",
    "SoftmaxSampler",
    "TDLoss",
    "VAELearning",
    "ValueLearning",
    "WeightedBRAC",
]
