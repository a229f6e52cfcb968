"""The scripted teams that ``record`` has for the laser worlds, by the quality's name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torchrl_marl_offline.envs.laser_controller import LaserController
from torchrl_marl_offline.envs.laser_walker import LaserAim, LaserWalker
from torchrl_marl_offline.envs.scripted import MixedSkill, OneStrongAgent
from torchrl_marl_offline.recording.mixed_skill import mixed_team

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.data.collection import Policy

LASER_QUALITIES = ("plan", "noisy_P", "dropped", "mixed", "outnumbered", "parted")
"""Beside those of trained teams; ``P`` is a probability. See :func:`laser_team`."""

_WALKS_AT_RANDOM = 0.1  # share of the walkers' actions
_GOOD_SHARE, _PARTED_SHARE = 0.1, 0.3  # of the episodes


def check_laser_quality(quality: str) -> float:
    """Return with which probability the team of a quality takes random actions while it follows the plan.

    Raises:
        ValueError: there is no such quality.
    """
    if quality in LASER_QUALITIES and quality != "noisy_P":
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

    ===============  =====================================================================================
    quality          team
    ===============  =====================================================================================
    ``plan``         a shortest plan, again and again
    ``noisy_P``      the same, but each agent acts at random with probability P; off the plan all of them do
    ``dropped``      the plan until a step drawn for each episode, then at random
    ``mixed``        one of three drawn for each episode: as :func:`~torchrl_marl_offline.record_mixed_skill`
    ``outnumbered``  all agents walk out together (.1), or the team is short-sighted (.9)
    ``parted``       all walk out together until a step drawn for each episode, from which on one of them goes on as
                     if they still did, and the others wait for it in the end and never come out (.3, each agent
                     equally often); or the team is short-sighted (.7)
    ===============  =====================================================================================

    Short-sighted teams bring one agent out and then wait, or bring one into a beam, each agent equally often. Teams of
    the last two rows walk by :class:`~torchrl_marl_offline.envs.LaserWalker`, a tenth of their actions random. So most
    teams leave the good way somewhere; and of ``"parted"`` ones none keeps it to the end, so that all agents come out
    by chance alone.

    Args:
        env: of ``lle/*``.
        quality: as above.
        seed: of the team's chance.

    Raises:
        ValueError: there is no such quality, or the world has no plan within the time limit, or for the last two too
            many positions.
    """
    epsilon = check_laser_quality(quality)
    if quality == "mixed":
        return mixed_team(env, seed)
    if quality in ("outnumbered", "parted"):
        return _short_sighted_with(env, quality, seed)
    kind = "dropped" if quality == "dropped" else "expert"
    words = f"{kind} with epsilon {epsilon:g}" if epsilon else f"{kind}"
    return f"the solver's shortest plan, {words}", LaserController(env, kind, epsilon=epsilon, seed=seed)


def _short_sighted_with(env: EnvBase, quality: str, seed: int) -> tuple[str, Policy]:
    """Return a team that is short-sighted in most episodes, in words, and itself."""
    seeds = iter(range(1000 * seed, 1000 * seed + 1000))
    agents = range(env.task_spec.n_agents)
    out = LaserWalker(env).steps_out
    if None in out:
        raise ValueError(
            f"The agents of {env.task_spec.task} cannot all come out; the team {quality} needs a world with a plan."
        )

    def walker(aim: LaserAim, agent: int = 0) -> LaserWalker:
        return LaserWalker(env, aim, agent=agent, epsilon=_WALKS_AT_RANDOM, seed=next(seeds))

    poor = [walker(aim, agent) for aim in ("one_out", "beam") for agent in agents]
    if quality == "outnumbered":
        good, share, words = [walker("all_out")], _GOOD_SHARE, "all out together"
    else:
        good = [
            OneStrongAgent(
                walker("all_out"),
                walker("one_out", agent),
                agent=agent,
                together=min(steps for other, steps in enumerate(out) if other != agent),
                seed=next(seeds),
            )
            for agent in agents
        ]
        share, words = _PARTED_SHARE, "together until a drawn step, then one agent alone as if the others came too"
    shares = [share / len(good)] * len(good) + [(1 - share) / len(poor)] * len(poor)
    words = f"{words} (share {share:g}), one agent out or one into a beam (share {1 - share:g})"
    return f"{words}, with epsilon {_WALKS_AT_RANDOM:g}", MixedSkill(
        [*good, *poor], probabilities=shares, seed=next(seeds)
    )
