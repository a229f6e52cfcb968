"""Which goals runs give their samples in hindsight, known without importing torch."""

from __future__ import annotations

from typing import Literal

from torchrl_marl_offline.core.relevance import ReadWith

HindsightKind = Literal["off", "future", "final", "random"]
"""See :class:`~torchrl_marl_offline.data.HindsightGoals`."""

WITH_HINDSIGHT = ReadWith("hindsight", "future", "final", "random")
"""Beside which a run's other settings of hindsight are read."""
