"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of recorded datasets, from ``TORCHRL_MARL_OFFLINE_DATA``."""
    folder = os.environ.get("TORCHRL_MARL_OFFLINE_DATA")
    if not folder:
        pytest.skip("set TORCHRL_MARL_OFFLINE_DATA to the folder of recorded datasets")
    return Path(folder)
