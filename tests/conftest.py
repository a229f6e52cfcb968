"""Settings and fixtures of all tests."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import processes
import pytest
import torch

if TYPE_CHECKING:
    from hub_server import HubServer

torch.set_num_threads(1)

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


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


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of ``benchmarks/`` by name, and forgets it and what it imported beside it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    known = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


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
