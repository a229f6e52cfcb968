"""The two sizes that speed and memory are measured at, and random data of a task's shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchrl_marl_offline import OfflineDataset, TaskSpec, from_arrays

EPISODE = 25


@dataclass(frozen=True)
class Size:
    """A task, the networks trained on it and the rows of an update.

    Attributes:
        spec: the task's sizes.
        hidden: widths of the hidden layers of all networks.
        batch_size: rows of an update.
    """

    spec: TaskSpec
    hidden: tuple[int, ...]
    batch_size: int


SMALL = Size(TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2), (64, 64), 256)
"""``mpe/simple_spread``'s shapes."""
PAPER = Size(TaskSpec(n_agents=2, observation_size=113, state_size=226, action_size=4), (512,) * 4, 608)
"""The networks and the batch of Lee et al. 2026, for two agents that see 113 numbers and do 4."""
SIZES = {"small": SMALL, "paper": PAPER}


def random_transitions(spec: TaskSpec, transitions: int) -> OfflineDataset:
    """Return episodes of 25 random transitions of a task with continuous actions; the state is of its size, too."""
    generator = torch.Generator().manual_seed(0)
    agents = (transitions, spec.n_agents)
    observation = torch.rand(*agents, spec.observation_size, generator=generator)
    state = torch.rand(transitions, spec.state_size, generator=generator)
    return from_arrays(
        observations=observation,
        next_observations=observation.roll(-1, 0),
        state=state,
        next_state=state.roll(-1, 0),
        actions=2 * torch.rand(*agents, spec.action_size, generator=generator) - 1,
        rewards=torch.rand(*agents, generator=generator),
        terminals=torch.zeros(transitions),
        truncations=torch.arange(1, transitions + 1) % EPISODE == 0,
    )
