"""Clean datasets of 22 rows in four episodes (5, 6, 7, 4), and ways to spoil them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from torchrl_marl_offline.data import OfflineDataset, from_arrays

LENGTHS = [5, 6, 7, 4]
STARTS = [0, 5, 11, 18]
ENDS = [4, 10, 17, 21]


def clean(lengths: list[int] | None = None, *, discrete: bool = False, truncated: bool = False) -> OfflineDataset:
    """Two agents, everything drawn at random, true successors; discrete action 0 of agent 1 is never legal."""
    lengths = LENGTHS if lengths is None else lengths
    generator = torch.Generator().manual_seed(0)
    rows, steps = sum(lengths), [length + 1 for length in lengths]

    def walk(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Values at every step of the episodes, the final one included: of the rows, and of their successors."""
        parts = [torch.rand(count, *shape, generator=generator) for count in steps]
        return torch.cat([part[:-1] for part in parts]), torch.cat([part[1:] for part in parts])

    observation, following = walk(2, 3)
    state, next_state = walk(6)
    ends = torch.zeros(rows, dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    options: dict = {"actions": torch.rand(rows, 2, 1, generator=generator)}
    if discrete:
        mask = torch.ones(rows, 2, 3, dtype=torch.bool)
        mask[:, 1, 0] = False
        options = {"action_mask": mask, "next_action_mask": mask, "actions": torch.ones(rows, 2, dtype=torch.int64)}
    return from_arrays(
        observations=observation,
        next_observations=following,
        state=state,
        next_state=next_state,
        rewards=torch.rand(rows, 2, generator=generator),
        terminals=ends & (not truncated),
        truncations=ends & truncated,
        **options,
    )


def put(key, index, value) -> Callable[[OfflineDataset], OfflineDataset]:
    """Return a function that writes ``value`` into a copy of the leaf ``key``."""

    def plant(dataset: OfflineDataset) -> OfflineDataset:
        leaf = dataset.data.get(key).clone()
        leaf[index] = value
        dataset.data.set(key, leaf)
        return dataset

    return plant
