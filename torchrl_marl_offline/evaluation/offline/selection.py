"""The best of several policies by the logged data alone, or by a simulator where there is one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.exploration import Mode
from torchrl_marl_offline.core.layout import REWARD, next_key
from torchrl_marl_offline.core.ranges import DISCOUNT, SEED, SIZE
from torchrl_marl_offline.data.collection import collect
from torchrl_marl_offline.evaluation.held_out import discounted_returns
from torchrl_marl_offline.evaluation.offline.answers import Candidate, as_policies
from torchrl_marl_offline.evaluation.offline.comparison import OfflineComparison, compare_offline
from torchrl_marl_offline.evaluation.offline.estimates import OfflineEstimate
from torchrl_marl_offline.evaluation.run_report import format_table
from torchrl_marl_offline.objectives.functional import team_reward as team_reward_of
from torchrl_marl_offline.training.run.saved_policies import bare

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.data import OfflineDataset
    from torchrl_marl_offline.evaluation.in_environments import Policy


@dataclass(frozen=True)
class OfflineSelection:
    """What :func:`select_offline` chose.

    Attributes:
        best: name of the candidate with the highest estimate.
        ranking: all names, best first.
        estimates: name -> estimate.
        is_clear: whether the best one's interval lies above the second's mean; true of a single candidate.
        comparison: with the logged team; ``None`` by ``"return"``.
        warnings: sentences, each a reason not to trust the choice.
    """

    best: str
    ranking: tuple[str, ...]
    estimates: Mapping[str, OfflineEstimate]
    is_clear: bool
    comparison: OfflineComparison | None
    warnings: tuple[str, ...]

    def table(self) -> str:
        """Return the ranking, in lines of a terminal's width."""
        rows = [
            [name, (found := self.estimates[name]).mean, "[{:.4g}, {:.4g}]".format(*found.interval)]
            for name in self.ranking
        ]
        lines = [format_table(rows, header=["policy", "discounted return", "95 % interval"])]
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])


@checked
def select_offline(
    candidates: Mapping[str, Candidate],
    dataset: OfflineDataset,
    *,
    by: Literal["fqe", "wis", "dr", "model", "return"] = "fqe",
    env: EnvBase | None = None,
    episodes: Annotated[int, SIZE] = 100,
    **options: Any,
) -> OfflineSelection:
    """Rank candidates by their estimated value, on held-out episodes; never by how often they agree with the data.

    Args:
        candidates: name -> policy, loss, or path; see :func:`compare_offline`.
        dataset: whole logged episodes, better not those that the candidates learned from.
        by: the estimate; ``"return"`` plays the policies in ``env``.
        env: a simulator, for ``"return"`` alone.
        episodes: that each candidate plays in it.
        **options: of :func:`compare_offline`; by ``"return"`` its ``gamma``, ``mode``, ``team_reward`` and ``seed``.

    Raises:
        ValueError: ``env`` is missing or not used, or as :func:`compare_offline`.
    """
    if (by == "return") != (env is not None):
        remedy = "give env=" if env is None else "leave env= out"
        raise ValueError(f"A simulator is what by='return' needs, and no other; {remedy}, or change by=.")
    comparison = None
    if by == "return":
        estimates, told = _played(candidates, dataset, env, episodes, **options), []
    else:
        comparison = compare_offline(candidates, dataset, by=by, **options)
        estimates, told = comparison.estimates[by], list(comparison.warnings)
    ranking = tuple(sorted(estimates, key=lambda name: _worst_last(estimates[name].mean)))
    is_clear = len(ranking) == 1 or estimates[ranking[0]].interval[0] > _at_best(estimates[ranking[1]])
    if not is_clear:
        told.append(f"{ranking[0]} and {ranking[1]} cannot be told apart by {by!r}: their intervals overlap.")
    return OfflineSelection(ranking[0], ranking, estimates, is_clear, comparison, tuple(told))


def _at_best(estimate: OfflineEstimate) -> float:
    """Return an estimate, with the best for what the data leaves open."""
    return estimate.mean if estimate.ceilings is None else estimate.ceilings.mean().item()


def _worst_last(mean: float) -> tuple[bool, float]:
    """Return a key by which what is no number comes last."""
    return math.isnan(mean), -mean


def _played(
    candidates: Mapping[str, Candidate],
    dataset: OfflineDataset,
    env: EnvBase,
    episodes: int,
    *,
    gamma: float = 0.99,
    mode: Mode = "mode",
    team_reward: Literal["mean", "sum"] = "mean",
    seed: int = 0,
) -> dict[str, OfflineEstimate]:
    policies = as_policies(candidates, dataset, mode)
    options = {"episodes": episodes, "gamma": gamma, "mode": mode, "team_reward": team_reward, "seed": seed}
    return {name: simulated_value(policy, env, **options) for name, policy in policies.items()}


@checked
def simulated_value(
    policy: Policy,
    env: EnvBase,
    *,
    episodes: Annotated[int, SIZE],
    gamma: Annotated[float, DISCOUNT] = 0.99,
    mode: Mode = "mode",
    team_reward: Literal["mean", "sum"] = "mean",
    seed: Annotated[int, SEED] = 0,
) -> OfflineEstimate:
    """Measure by simulation what offline evaluation estimates: the mean discounted return, with ``method="return"``.

    Args:
        policy: what plays.
        env: an environment of :func:`~torchrl_marl_offline.make_env`.
        episodes: whole ones, two or more.
        gamma: discount.
        mode: deterministic actions, or draws.
        team_reward: mean or sum over agents.
        seed: of the environment, the draws and the resamples.
    """
    played = collect(env, bare(policy), episodes=episodes, seed=seed, exploration=mode)
    reward = team_reward_of(played.data.get(next_key(REWARD)).double(), team_reward).reshape(-1)
    earned = discounted_returns(reward, played.episode_lengths, gamma)[played.episode_starts]
    g = torch.Generator().manual_seed(seed)
    values = earned[torch.randint(len(earned), (1000, len(earned)), generator=g)].mean(1)
    facts = {"episodes": float(len(earned)), "deviation": earned.std(correction=0).item()}
    return OfflineEstimate("return", earned.mean().item(), values, gamma, "percentiles", facts)
