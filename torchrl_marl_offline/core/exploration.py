"""How policies choose actions when they are played: deterministically, or by a draw."""

from typing import Literal

from torchrl.envs.utils import ExplorationType

Mode = Literal["mode", "sample"]
EXPLORATION = {"mode": ExplorationType.DETERMINISTIC, "sample": ExplorationType.RANDOM}
