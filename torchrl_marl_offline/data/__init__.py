"""Datasets: the key layout, readers, storage and replay buffers."""

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.moved import moved
from torchrl_marl_offline.data.collection import collect
from torchrl_marl_offline.data.formats.arrays import from_arrays
from torchrl_marl_offline.data.formats.d4rl import read_d4rl
from torchrl_marl_offline.data.formats.minari import read_minari
from torchrl_marl_offline.data.formats.omar_npy import read_omar_npy
from torchrl_marl_offline.data.formats.omiga_h5 import read_omiga_h5
from torchrl_marl_offline.data.formats.pymarl import read_pymarl
from torchrl_marl_offline.data.formats.readers import register_reader
from torchrl_marl_offline.data.formats.table_reader import read_table
from torchrl_marl_offline.data.formats.vault import read_vault
from torchrl_marl_offline.data.hindsight import HindsightGoals, hindsight_buffer
from torchrl_marl_offline.data.hub import pull_dataset, push_dataset
from torchrl_marl_offline.data.published.caching import load_published
from torchrl_marl_offline.data.published.cards import DatasetCard, list_datasets
from torchrl_marl_offline.data.quality.card import Card, describe
from torchrl_marl_offline.data.quality.inspection import compare, inspect
from torchrl_marl_offline.data.quality.repairs import repair
from torchrl_marl_offline.data.quality.stitchable import StitchableShare, stitchable_share
from torchrl_marl_offline.data.registry import convert_dataset, export_dataset, inspect_source, load_dataset
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset, concatenate
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, DatasetWarning
from torchrl_marl_offline.data.transitions.findings import Finding, Inspection
from torchrl_marl_offline.data.transitions.fingerprints import joint_saco
from torchrl_marl_offline.data.transitions.subsets import hold_out, mixture, select_by_return, subsample
from torchrl_marl_offline.data.transitions.validation import validate

__all__ = [
    "Card",
    "DatasetCard",
    "DatasetError",
    "DatasetWarning",
    "Finding",
    "HindsightGoals",
    "Inspection",
    "OfflineDataset",
    "StitchableShare",
    "TaskSpec",
    "collect",
    "compare",
    "concatenate",
    "convert_dataset",
    "describe",
    "export_dataset",
    "from_arrays",
    "hindsight_buffer",
    "hold_out",
    "inspect",
    "inspect_source",
    "joint_saco",
    "list_datasets",
    "load_dataset",
    "load_published",
    "mixture",
    "pull_dataset",
    "push_dataset",
    "read_d4rl",
    "read_minari",
    "read_omar_npy",
    "read_omiga_h5",
    "read_pymarl",
    "read_table",
    "read_vault",
    "register_reader",
    "repair",
    "select_by_return",
    "stitchable_share",
    "subsample",
    "validate",
]

__getattr__ = moved(
    __name__,
    {
        "make_simulator": "torchrl_marl_offline.evaluation",
        "record_mixed_skill": "torchrl_marl_offline.recording",
    },
)
