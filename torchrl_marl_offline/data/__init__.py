"""Datasets: the key layout, readers, recording, storage and replay buffers."""

from torchrl_marl_offline.data.arrays import from_arrays
from torchrl_marl_offline.data.collection import collect
from torchrl_marl_offline.data.dataset import OfflineDataset, concatenate
from torchrl_marl_offline.data.layout import TaskSpec
from torchrl_marl_offline.data.pymarl import read_pymarl
from torchrl_marl_offline.data.recording import make_simulator, record_mixed_skill
from torchrl_marl_offline.data.registry import load_dataset
from torchrl_marl_offline.data.validation import DatasetError, validate

__all__ = [
    "DatasetError",
    "OfflineDataset",
    "TaskSpec",
    "collect",
    "concatenate",
    "from_arrays",
    "load_dataset",
    "make_simulator",
    "read_pymarl",
    "record_mixed_skill",
    "validate",
]
