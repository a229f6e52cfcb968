"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import processes
import pytest
import torch

if TYPE_CHECKING:
    from hub_server import HubServer

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests: at the end, one of them would keep a process busy while the others have nothing."""
    items.sort(key=lambda item: "slow" not in item.keywords)


def pytest_collection_finish() -> None:
    """Leave what was imported out of the search for garbage, which would look at all of it again and again."""
    processes.look_for_garbage_seldom()


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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub on this machine that the library uses alone, as somebody who is logged in."""
    from hub_server import served

    with served(monkeypatch, tmp_path) as server:
        yield server
