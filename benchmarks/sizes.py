"""The two sizes that speed and memory are measured at, and random data of a task's shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
DISCRETE_ACTIONS = 9
"""Those of StarCraft's 3m."""


def with_discrete_actions(size: Size) -> Size:
    """Return the same with nine discrete actions, of which some are not legal, in place of the continuous one."""
    chosen = {"discrete": True, "action_size": DISCRETE_ACTIONS, "has_action_mask": True}
    return replace(size, spec=replace(size.spec, **chosen))


def random_transitions(spec: TaskSpec, transitions: int) -> OfflineDataset:
    """Return episodes of 25 random transitions of a task; the state is of its size, too.

    Of discrete actions, about half are legal, the chosen one among them.
    """
    generator = torch.Generator().manual_seed(0)
    agents = (transitions, spec.n_agents)
    observation = torch.rand(*agents, spec.observation_size, generator=generator)
    state = torch.rand(transitions, spec.state_size, generator=generator)
    return from_arrays(
        observations=observation,
        next_observations=observation.roll(-1, 0),
        state=state,
        next_state=state.roll(-1, 0),
        **_random_actions(spec, agents, generator),
        rewards=torch.rand(*agents, generator=generator),
        terminals=torch.zeros(transitions),
        truncations=torch.arange(1, transitions + 1) % EPISODE == 0,
    )


def _random_actions(spec: TaskSpec, agents: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
    if not spec.discrete:
        return {"actions": 2 * torch.rand(*agents, spec.action_size, generator=generator) - 1}
    action = torch.randint(spec.action_size, agents, generator=generator)
    legal = torch.rand(*agents, spec.action_size, generator=generator) < 0.5
    legal.scatter_(-1, action.unsqueeze(-1), True)
    return {"actions": action, "action_mask": legal, "next_action_mask": legal.roll(-1, 0)}
