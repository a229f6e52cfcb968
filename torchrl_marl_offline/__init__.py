"""Offline multi-agent reinforcement learning as TorchRL components."""

from torchrl_marl_offline.data import (
    OfflineDataset,
    TaskSpec,
    collect,
    convert_dataset,
    from_arrays,
    list_datasets,
    load_dataset,
)
from torchrl_marl_offline.envs import list_tasks, make_env
from torchrl_marl_offline.modules import (
    HyperNetworkMixer,
    ScaleInvariantValueNorm,
    SumMixer,
    make_actor,
    make_critic,
    make_value,
)
from torchrl_marl_offline.objectives import (
    AWR,
    BRAC,
    IQL,
    SARSA,
    TD,
    AWRLoss,
    BehaviourCloning,
    BRACLoss,
    Cloning,
    IQLLoss,
    OfflineMARLLoss,
    SARSALoss,
    TDLoss,
)
from torchrl_marl_offline.training import Trainer, evaluate

__version__ = "0.1.0"

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
    "HyperNetworkMixer",
    "IQLLoss",
    "OfflineDataset",
    "OfflineMARLLoss",
    "SARSALoss",
    "ScaleInvariantValueNorm",
    "SumMixer",
    "TDLoss",
    "TaskSpec",
    "Trainer",
    "collect",
    "convert_dataset",
    "evaluate",
    "from_arrays",
    "list_datasets",
    "list_tasks",
    "load_dataset",
    "make_actor",
    "make_critic",
    "make_env",
    "make_value",
]
