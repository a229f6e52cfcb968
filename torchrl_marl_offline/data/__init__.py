"""Datasets: the key layout, readers, recording, storage and replay buffers."""

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.data.arrays import from_arrays
from torchrl_marl_offline.data.caching import load_published
from torchrl_marl_offline.data.card import Card, describe
from torchrl_marl_offline.data.collection import collect
from torchrl_marl_offline.data.d4rl import read_d4rl
from torchrl_marl_offline.data.dataset import OfflineDataset, concatenate
from torchrl_marl_offline.data.findings import Finding, Inspection
from torchrl_marl_offline.data.fingerprints import joint_saco
from torchrl_marl_offline.data.inspection import compare, inspect, inspect_source
from torchrl_marl_offline.data.minari import read_minari
from torchrl_marl_offline.data.omar_npy import read_omar_npy
from torchrl_marl_offline.data.omiga_h5 import read_omiga_h5
from torchrl_marl_offline.data.published import DatasetCard, list_datasets
from torchrl_marl_offline.data.pymarl import read_pymarl
from torchrl_marl_offline.data.recording import make_simulator, record_mixed_skill
from torchrl_marl_offline.data.registry import convert_dataset, load_dataset
from torchrl_marl_offline.data.repairs import repair
from torchrl_marl_offline.data.subsets import hold_out, mixture, select_by_return, subsample
from torchrl_marl_offline.data.validation import DatasetError, DatasetWarning, validate
from torchrl_marl_offline.data.vault import read_vault

__all__ = [
    "Card",
    "DatasetCard",
    "DatasetError",
    "DatasetWarning",
    "Finding",
    "Inspection",
    "OfflineDataset",
    "TaskSpec",
    "collect",
    "compare",
    "concatenate",
    "convert_dataset",
    "describe",
    "from_arrays",
    "hold_out",
    "inspect",
    "inspect_source",
    "joint_saco",
    "list_datasets",
    "load_dataset",
    "load_published",
    "make_simulator",
    "mixture",
    "read_d4rl",
    "read_minari",
    "read_omar_npy",
    "read_omiga_h5",
    "read_pymarl",
    "read_vault",
    "record_mixed_skill",
    "repair",
    "select_by_return",
    "subsample",
    "validate",
]
