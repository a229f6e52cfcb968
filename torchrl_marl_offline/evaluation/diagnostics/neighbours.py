"""How far a policy's joint actions are from the recorded ones, in a unit that the data itself gives."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_marl_offline.core.layout import OBSERVATION, STATE, TRAJ_IDS
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.evaluation.diagnostics.sampled_rows import sampled
from torchrl_marl_offline.evaluation.distances import deviation, nearest
from torchrl_marl_offline.objectives.diagnosis import chosen_and_recorded
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss

QUERIES, REFERENCES = 1024, 16384
"""Rows whose neighbours are looked for, and among which: an exact search of these takes less than a second."""
HELD_OUT = 0.2
"""Share of the episodes whose rows are looked for among those of the others."""


def situations(dataset: OfflineDataset, index: Tensor) -> Tensor:
    """Return the state, or the joint observation where there is none, of some rows: ``[R, s]`` on the CPU."""
    state = dataset.data.get(STATE, None)
    return (
        (dataset.data.get(OBSERVATION) if state is None else state)[index.to(dataset.device)].flatten(1).cpu().float()
    )


def neighbour_distances(
    loss: OfflineMARLLoss, dataset: OfflineDataset, counted: Tensor, generator: torch.Generator
) -> dict[str, float]:
    r"""Return how near policy and data are to the data of other episodes, in the space of situation and joint action.

    The square of a distance is the mean over the components of the state, each in units of its deviation in the data,
    plus the same over the components of the joint action; of discrete actions the share that differs.

    Args:
        loss: with an actor.
        dataset: of two episodes or more.
        counted: the rows that count, ``[T]``.
        generator: that draws the episodes and rows.

    Returns:
        ``neighbour_distance`` of the policy, ``neighbour_distance_data`` of the actions recorded in the same states,
        both means over rows, and ``neighbour_ratio``, the first over the second.

    Raises:
        ValueError: there are too few episodes.
    """
    ids = dataset.data.get(TRAJ_IDS).cpu()
    episodes = ids[counted].unique()
    if len(episodes) < 2:
        raise ValueError("the data has one episode, and neighbours are looked for in others")
    order = episodes[torch.randperm(len(episodes), generator=generator)]
    held_out = torch.isin(ids, order[: max(1, round(HELD_OUT * len(order)))])
    queries = sampled(loss, dataset, counted & held_out, QUERIES, generator)
    references = (counted & ~held_out).nonzero()[:, 0]
    references = references[torch.randperm(len(references), generator=generator)[:REFERENCES]]
    batch = loss.batch(_on_device(loss, dataset, queries))
    pair = chosen_and_recorded(batch)
    known = loss.batch(_on_device(loss, dataset, references)).action_like(pair[0]).flatten(1).cpu().float()
    chosen, recorded = (each.flatten(1).cpu().float() for each in pair)
    if batch.alive is not None:  # a dead agent has no action of its own
        alive = batch.alive.cpu().repeat_interleave(chosen.shape[-1] // batch.alive.shape[-1], -1)
        chosen = chosen.where(alive, recorded)
    kept = counted[queries]  # of whole episodes, some rows may not count
    agents, discrete = dataset.spec.n_agents, not batch.action.is_floating_point()
    scale = torch.full_like(known[0], (2.0 * agents) ** 0.5) if discrete else deviation(known) * known.shape[-1] ** 0.5
    there = situations(dataset, references)
    of_state = deviation(there) * there.shape[-1] ** 0.5
    space = torch.cat([there / of_state, known / scale], -1)
    here = (situations(dataset, queries) / of_state)[kept]
    own, of_data = (
        nearest(torch.cat([here, each[kept] / scale], -1), space).double().mean().item() for each in (chosen, recorded)
    )
    found = {"neighbour_distance": own, "neighbour_distance_data": of_data}
    return found | ({"neighbour_ratio": own / of_data} if of_data > 0 else {})


def _on_device(loss: OfflineMARLLoss, dataset: OfflineDataset, index: Tensor):
    device = next((p.device for p in loss.parameters()), torch.device("cpu"))
    return dataset.data[index.to(dataset.device)].to(device)
