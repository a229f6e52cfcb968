"""Where published sets, and what was measured on this machine, are kept."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "TORCHRL_MARL_OFFLINE_CACHE"


def cache_folder(cache: str | Path | None = None) -> Path:
    """Return the cache folder: the argument, else ``$TORCHRL_MARL_OFFLINE_CACHE``, else one under ``~/.cache``."""
    chosen = cache or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "torchrl_marl_offline"
    return Path(chosen).expanduser().absolute()
