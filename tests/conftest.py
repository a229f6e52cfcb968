"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests: at the end, one of them would keep a process busy while the others have nothing."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's cache folder as it is, and what it holds out of the tests."""
    os.environ.setdefault("TORCHRL_MARL_OFFLINE_CACHE", str(tmp_path_factory.mktemp("cache")))


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
