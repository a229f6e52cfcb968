"""Reference scores of a recording: a random team, the best of what was recorded, the mean of it."""

from __future__ import annotations

import torch

from torchrl_marl_offline.core.layout import OBSERVATION, STATE
from torchrl_marl_offline.data.collection import random_policy
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.suites.entries import REFERENCE_EPISODES, Making, Reference, SuiteEntry, measured

EPISODES_A_START = 10
"""On average, so that the best episode from a start says something about more than luck."""


def random_team(entry: SuiteEntry, making: Making) -> Reference:
    """Return what a team earns that draws uniformly from its legal actions."""
    if entry.random is not None:
        return Reference(entry.random(entry.make_env(1)), "computed")
    env = entry.make_env(REFERENCE_EPISODES)
    return Reference(measured(env, random_policy(env), making.seed), f"{REFERENCE_EPISODES} episodes")


def best_recorded(dataset: OfflineDataset) -> Reference:
    """Return what is earned by repeating, from each start, the best episode that was recorded from it.

    It is the mean over the starts, each alike, where starts repeat (ten episodes a start on average); where they do
    not, the best episode from a start is luck, and it is the mean of all episodes.

    Returns:
        The score, and which of the two it is.
    """
    returns = dataset.episode_returns().double()
    first = dataset.data[dataset.episode_starts]
    seen = torch.cat([first.get(STATE).flatten(1), first.get(OBSERVATION).flatten(1)], 1)
    starts = torch.unique(seen, dim=0, return_inverse=True)[1]
    count = int(starts.max()) + 1
    if len(returns) < EPISODES_A_START * count:
        return Reference(round(returns.mean().item(), 6), "mean of all recorded episodes: starts do not repeat")
    best = torch.full((count,), -torch.inf, dtype=torch.float64).scatter_reduce(0, starts, returns, "amax")
    words = (
        "the best recorded episode" if count == 1 else f"mean of the best recorded episode of each of {count} starts"
    )
    return Reference(round(best.mean().item(), 6), words)
