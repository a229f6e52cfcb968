"""Networks: actors, critics, mixers, value normalization."""

from torchrl_marl_offline.core.extensions import import_room
from torchrl_marl_offline.modules.actors import GaussianHead, make_actor
from torchrl_marl_offline.modules.attention_mixer import AttentionMixer
from torchrl_marl_offline.modules.batch_norm import BatchNorm
from torchrl_marl_offline.modules.behaviour import make_behaviour_policy, make_vae
from torchrl_marl_offline.modules.critics import (
    DECOMPOSITIONS,
    CentralizedCritic,
    LocalCritic,
    make_critic,
    make_value,
    register_mixer,
)
from torchrl_marl_offline.modules.diffusion import NoisePredictor, make_score
from torchrl_marl_offline.modules.distributions import (
    BoundedNormal,
    MaskedCategorical,
    OneStep,
    OneStepCategorical,
    TanhNormal,
)
from torchrl_marl_offline.modules.duplex import DuelingCritic, DuplexMixer, GreedyCritic
from torchrl_marl_offline.modules.flow import JointVelocity, make_flow
from torchrl_marl_offline.modules.graph import GraphCritic
from torchrl_marl_offline.modules.history import HistoryEncoder
from torchrl_marl_offline.modules.mixers import HyperNetworkMixer, LinearMixer, SumMixer
from torchrl_marl_offline.modules.networks import AgentNetwork, StackedLayerNorm, StackedLinear, StackedMLP
from torchrl_marl_offline.modules.sequential import SequentialPolicy, make_sequential_policy
from torchrl_marl_offline.modules.value_norm import ScaleInvariantValueNorm

import_room(__name__)

__all__ = [
    "DECOMPOSITIONS",
    "AgentNetwork",
    "AttentionMixer",
    "BatchNorm",
    "BoundedNormal",
    "CentralizedCritic",
    "DuelingCritic",
    "DuplexMixer",
    "GaussianHead",
    "GraphCritic",
    "GreedyCritic",
    "HistoryEncoder",
    "HyperNetworkMixer",
    "JointVelocity",
    "LinearMixer",
    "LocalCritic",
    "MaskedCategorical",
    "NoisePredictor",
    "OneStep",
    "OneStepCategorical",
    "ScaleInvariantValueNorm",
    "SequentialPolicy",
    "StackedLayerNorm",
    "StackedLinear",
    "StackedMLP",
    "SumMixer",
    "TanhNormal",
    "make_actor",
    "make_behaviour_policy",
    "make_critic",
    "make_flow",
    "make_score",
    "make_sequential_policy",
    "make_vae",
    "make_value",
    "register_mixer",
]
