"""Ends of episodes told from flags of each agent: who has ended stays so until the episode has ended for all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class TeamEnds(NamedTuple):
    """What the flags of some rows say.

    Attributes:
        terminated: ``[R]`` bool, the task ended.
        truncated: ``[R]`` bool, the recording stopped.
        dead: ``[R, n]`` bool, the agent ended at an earlier row of the episode.
    """

    terminated: np.ndarray
    truncated: np.ndarray
    dead: np.ndarray


class AgentEnds:
    """Combines the flags of agents that end at different rows; a recording may come in blocks.

    An agent has ended where either of its flags is set, and from then on it is dead: what its flags say later does not
    matter. The episode ends where the last agent ends, and is terminated if all agents that end there terminated. With
    a mask of the living, nobody waits for an agent that is not there, and an agent that comes back lives again.

    Args:
        n_agents: ``n``.
    """

    def __init__(self, n_agents: int) -> None:
        self._held = np.zeros(n_agents, dtype=bool)
        self._lived = np.ones((1, n_agents), dtype=bool)

    def add(self, terminal: np.ndarray, truncation: np.ndarray, living: np.ndarray | None = None) -> TeamEnds:
        """Return the team's ends in the next rows of the recording.

        Args:
            terminal: ``[R, n]`` bool.
            truncation: ``[R, n]`` bool.
            living: ``[R, n]`` bool, where it is known.
        """
        flags = terminal | truncation
        living = np.ones_like(flags) if living is None else living
        back = living & ~np.concatenate([self._lived, living])[:-1]  # after rows in which the agent was not there
        self._lived = living[-1:]
        ended = flags.all(-1)
        if not self._held.any() and (ended == flags.any(-1)).all():  # nobody ends before the others
            return TeamEnds(*_kinds(ended, flags, terminal, truncation, living), np.zeros_like(flags))
        ended, fresh, dead = self._one_by_one(flags, living, back)
        return TeamEnds(*_kinds(ended, fresh, terminal, truncation, living), dead)

    def _one_by_one(
        self, flags: np.ndarray, living: np.ndarray, back: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Go through the rows at which something happens; return ends of the team, of agents, and who is dead."""
        ended, fresh, dead, seen = np.zeros(len(flags), dtype=bool), flags.copy(), np.zeros_like(flags), 0
        for row in (flags | back).any(-1).nonzero()[0]:
            dead[seen:row] = self._held
            self._held &= ~back[row]
            dead[row] = self._held
            fresh[row] &= ~self._held
            self._held |= flags[row]
            ended[row] = fresh[row].any() and (self._held | ~living[row]).all()
            if ended[row]:
                self._held[:] = False
            seen = row + 1
        dead[seen:] = self._held
        return ended, fresh, dead


def _kinds(
    ended: np.ndarray, fresh: np.ndarray, terminal: np.ndarray, truncation: np.ndarray, living: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return which ends are terminations and which truncations, by the agents that end there, if any, alive."""
    counted = fresh & living
    others = ~np.where(counted.any(-1, keepdims=True), counted, fresh)
    terminated = ended & (terminal | others).all(-1)
    return terminated, ended & (~terminated | (truncation | others).all(-1))


def dead_agents_finding(count: int) -> str:
    """Say what became of the rows of agents that end before their team does."""
    return f"{count} rows of agents whose own episode had ended earlier than their team's do not count"
