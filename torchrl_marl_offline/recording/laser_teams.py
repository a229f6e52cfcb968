"""The scripted teams that ``record`` has for the laser worlds, by the quality's name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torchrl_marl_offline.envs.laser_controller import LaserController
from torchrl_marl_offline.recording.mixed_skill import mixed_team

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.data.collection import Policy

LASER_QUALITIES = ("plan", "noisy_P", "dropped", "mixed")
"""Beside those of trained teams; ``P`` is a probability. See :func:`laser_team`."""


def check_laser_quality(quality: str) -> float:
    """Return with which probability the team of a quality takes random actions while it follows the plan.

    Raises:
        ValueError: there is no such quality.
    """
    if quality in ("plan", "dropped", "mixed"):
        return 0.0
    kind, _, text = quality.partition("_")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if kind == "noisy" and 0 < number < 1:
        return number
    raise ValueError(
        f"quality must be one of random, medium-replay, medium, expert, {', '.join(LASER_QUALITIES)}, with P between 0 "
        f"and 1, as 'noisy_0.1', or two as 'A-B', got {quality!r}."
    )


def laser_team(env: EnvBase, quality: str, seed: int) -> tuple[str, Policy]:
    """Return the team of a quality in words, and itself.

    ============  ======================================================================================
    quality       team
    ============  ======================================================================================
    ``plan``      a shortest plan, again and again
    ``noisy_P``   the same, but each agent acts at random with probability P; off the plan all of them do
    ``dropped``   the plan until a step drawn for each episode, then at random
    ``mixed``     one of three drawn for each episode: as :func:`~torchrl_marl_offline.record_mixed_skill`
    ============  ======================================================================================

    Args:
        env: of ``lle/*``.
        quality: as above.
        seed: of the team's chance.

    Raises:
        ValueError: there is no such quality, or the world has no plan within the time limit.
    """
    epsilon = check_laser_quality(quality)
    if quality == "mixed":
        return mixed_team(env, seed)
    kind = "dropped" if quality == "dropped" else "expert"
    words = f"{kind} with epsilon {epsilon:g}" if epsilon else f"{kind}"
    return f"the solver's shortest plan, {words}", LaserController(env, kind, epsilon=epsilon, seed=seed)
