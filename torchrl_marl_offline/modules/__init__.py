"""Networks: actors, critics, mixers, value normalization."""

from torchrl_marl_offline.modules.actors import BoundedNormal, GaussianHead, MaskedCategorical, make_actor
from torchrl_marl_offline.modules.critics import (
    DECOMPOSITIONS,
    CentralizedCritic,
    LocalCritic,
    make_critic,
    make_value,
)
from torchrl_marl_offline.modules.mixers import HyperNetworkMixer, LinearMixer, SumMixer
from torchrl_marl_offline.modules.networks import AgentNetwork, StackedLayerNorm, StackedLinear, StackedMLP
from torchrl_marl_offline.modules.value_norm import ScaleInvariantValueNorm

__all__ = [
    "DECOMPOSITIONS",
    "AgentNetwork",
    "BoundedNormal",
    "CentralizedCritic",
    "GaussianHead",
    "HyperNetworkMixer",
    "LinearMixer",
    "LocalCritic",
    "MaskedCategorical",
    "ScaleInvariantValueNorm",
    "StackedLayerNorm",
    "StackedLinear",
    "StackedMLP",
    "SumMixer",
    "make_actor",
    "make_critic",
    "make_value",
]
