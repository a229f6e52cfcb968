"""Parts and mixtures of datasets, by whole episodes, reproducible and told in the metadata.

Each function appends what it did to ``metadata["provenance"]``, as :meth:`OfflineDataset.select_episodes` does; done
again on the same data it gives the same rows. None repeats an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import COUNT, OPEN_UNIT, POSITIVE, RATE, SEED, UNIT
from torchrl_marl_offline.data.transitions.dataset import concatenate

if TYPE_CHECKING:
    from torchrl_marl_offline.data.transitions.dataset import OfflineDataset


@checked
def hold_out(
    dataset: OfflineDataset, *, fraction: Annotated[float, OPEN_UNIT], seed: Annotated[int, SEED]
) -> tuple[OfflineDataset, OfflineDataset]:
    """Split by episode into ``(train, held_out)``: :meth:`OfflineDataset.split` as a function.

    Args:
        dataset: two episodes or more.
        fraction: share of the episodes that is held out, in (0, 1).
        seed: chooses them.
    """
    return dataset.split(fraction=fraction, seed=seed)


@checked
def select_by_return(
    dataset: OfflineDataset,
    *,
    low: Annotated[float, UNIT] = 0.0,
    high: Annotated[float, UNIT] = 1.0,
    reduce: Literal["mean", "sum"] = "mean",
) -> OfflineDataset:
    """Keep the episodes whose return lies between two quantiles, in their order.

    Episodes are ranked by return, equal ones in their order; ranks from ``round(low * E)`` up to, not including,
    ``round(high * E)`` are kept. So ``low=0.9`` is the best tenth, and ``high=0.5`` with ``low=0.5`` share no episode.

    Args:
        dataset: what to choose from.
        low: lower quantile, in [0, 1).
        high: upper quantile, in (low, 1].
        reduce: the team's reward is the ``"mean"`` or ``"sum"`` of the agents'.

    Raises:
        ValueError: the quantiles are out of order, or no episode lies between them.
    """
    if not low < high:
        raise ValueError(f"select_by_return needs low below high, got {low} and {high}.")
    ranked = torch.argsort(dataset.episode_returns(reduce), stable=True)
    kept = ranked[round(low * len(ranked)) : round(high * len(ranked))]
    if len(kept) == 0:
        raise ValueError(f"No episode of {len(ranked)} lies between the quantiles {low} and {high}; widen them.")
    return _part(dataset, kept, "select_by_return", low=low, high=high, reduce=reduce)


@checked
def subsample(
    dataset: OfflineDataset, *, fraction: Annotated[float, RATE], seed: Annotated[int, SEED]
) -> OfflineDataset:
    """Keep a random share of the episodes, in their order; with one seed a smaller share lies within a larger one.

    Args:
        dataset: what to choose from.
        fraction: in (0, 1]; at least one episode is kept.
        seed: chooses them.
    """
    kept = _permutation(dataset.n_episodes, seed)[: max(1, round(fraction * dataset.n_episodes))]
    return _part(dataset, kept, "subsample", fraction=fraction, seed=seed)


@checked
def mixture(
    datasets: Sequence[OfflineDataset],
    weights: Annotated[Sequence[float], POSITIVE],
    *,
    seed: Annotated[int, SEED],
    episodes: Annotated[int | None, COUNT] = None,
) -> OfflineDataset:
    """Mix datasets of one task: each gives its weight's share of the episodes, chosen at random, none twice.

    Args:
        datasets: with equal sizes and leaves.
        weights: of the episodes, above 0; they need not sum to 1.
        seed: chooses the episodes of all of them.
        episodes: of the mixture; by default as many as the weights allow.

    Raises:
        ValueError: weights and datasets do not fit together, or a dataset has too few episodes.
        DatasetError: the datasets' sizes or leaves differ.
    """
    if len(weights) != len(datasets) or not datasets:
        raise ValueError(f"mixture needs one weight for each dataset, got {list(weights)}.")
    shares = [weight / sum(weights) for weight in weights]
    most = min(dataset.n_episodes / share for dataset, share in zip(datasets, shares))
    if episodes is None:
        episodes = int(most + 1e-6)
    counts = _apportion(shares, episodes)
    for number, (dataset, count) in enumerate(zip(datasets, counts)):
        if not 1 <= count <= dataset.n_episodes:
            raise ValueError(
                f"Dataset {number} should give {count} of its {dataset.n_episodes} episodes; at most {int(most)} "
                "episodes can be mixed with these weights, and each dataset has to give one."
            )
    parts = [
        dataset.select_episodes(_permutation(dataset.n_episodes, seed, number)[:count].sort().values)
        for number, (dataset, count) in enumerate(zip(datasets, counts))
    ]
    step = {"step": "mixture", "weights": list(weights), "seed": seed, "episodes": counts}
    step["parents"] = [part.metadata["provenance"][-1]["parent"] for part in parts]
    metadata = {"source": "mixture", "provenance": [step], "parts": [dict(dataset.metadata) for dataset in datasets]}
    for name in ("task", "task_options", "time_limit", "team_reward", "state"):
        values = [dataset.metadata.get(name) for dataset in datasets]
        if values[0] is not None and all(value == values[0] for value in values):
            metadata[name] = values[0]
    return concatenate(parts, metadata=metadata)


def _permutation(n: int, seed: int, stream: int = 0) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1_000_003 * stream))


def _apportion(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to ``total``: rounded down, then the largest remainders up."""
    exact = [share * total for share in shares]
    counts = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _part(dataset: OfflineDataset, episodes: torch.Tensor, step: str, **how: Any) -> OfflineDataset:
    return dataset.select_episodes(episodes.sort().values, step={"step": step, **how})
