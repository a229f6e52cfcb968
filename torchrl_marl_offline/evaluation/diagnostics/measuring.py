"""The numbers of a diagnosis, part by part; a part that a loss does not have says why."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_marl_offline.core.masked_mean import masked_mean
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_buffers, preserved_rng
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.evaluation.diagnostics.neighbours import neighbour_distances
from torchrl_marl_offline.evaluation.diagnostics.sampled_rows import (
    rank_correlation,
    returns_to_go,
    rows_that_count,
    sampled,
)
from torchrl_marl_offline.modules.batch_norm import BatchNorm
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.diagnosis import (
    MEANINGS,
    agreement,
    chosen_and_recorded,
    climbing,
    credit_shares,
    discount_of,
    distance_of,
    mixer_jacobian,
)
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.training.run.value_alarm import reward_facts

NUMBERS = {
    "qvalue_abs": "mean |Q| of the recorded joint actions, in units of discounted return",
    "qvalue_largest": MEANINGS["qvalue_largest"],
    "qvalue_bound": "the largest |Q| that the rewards of the data allow: max |r| / (1 - discount)",
    "return_mean": "mean of the data's discounted returns from each row on; an episode that was cut off goes on alike",
    "return_largest": "the largest of their absolute values",
    "qvalue_rank_correlation": "rank correlation of Q with the return that followed: 1 where Q orders the rows rightly",
    "qvalue_bias": "mean of Q minus mean of the returns that followed: positive overestimates",
    "mixer_gain": MEANINGS["mixer_gain"],
    "discounted_gain": MEANINGS["discounted_gain"],
    "discounted_gain_low": "its 5th percentile over the rows",
    "discounted_gain_high": "its 95th percentile over the rows",
    "policy_slope": MEANINGS["policy_slope"],
    "closed_loop_gain": MEANINGS["closed_loop_gain"],
    "effective_sample_size": "share of the batch that counts after AWR's weights",
    "capped_weights": "share of the rows that have the largest of AWR's clipped weights",
    "policy_distance": MEANINGS["policy_distance"],
    "neighbour_distance": "mean distance of (state, policy's joint action) to the nearest recorded of other episodes",
    "neighbour_distance_data": "the same of the joint action that was recorded there",
    "neighbour_ratio": "the first over the second: 1 is as near to the data as the data itself",
    "advantage_agreement": MEANINGS["advantage_agreement"],
    "advantage_one_sign": "share of the rows in which the advantages of all agents have one sign",
    "credit_low": MEANINGS["credit_low"],
    "credit_high": MEANINGS["credit_high"],
}
"""Every number of a diagnosis, and what it means, in the order in which they are shown."""

POINTS = 2000
"""Rows that are drawn."""
CRITICS = {"qvalue_network", "value_network", "mixer_network"}
"""Networks of a loss whose values belong to a batch."""


class Material(NamedTuple):
    """What the figures of a diagnosis are drawn of; all on the CPU.

    Attributes:
        recorded: joint actions ``[R, n, a]``, of discrete tasks one-hot.
        chosen: the policies' in the same rows, or ``None``.
        values: Q of the recorded joint action, ``[R, n]``, or ``None``.
        alive: which agents count in each row, ``[R, n]``.
        discrete: whether actions are.
    """

    recorded: Tensor
    chosen: Tensor | None
    values: Tensor | None
    alive: Tensor
    discrete: bool


class LossMeasurements(NamedTuple):
    """What was measured of a loss on a dataset.

    Attributes:
        numbers: by the names of :data:`NUMBERS`.
        by_agent: lists with an entry for each agent.
        missing: what does not exist, or could not be measured, and why.
        material: of the figures.
        rows: that were looked at.
    """

    numbers: dict[str, float]
    by_agent: dict[str, list]
    missing: list[str]
    material: Material
    rows: int


def measure(loss: OfflineMARLLoss, dataset: OfflineDataset, *, rows: int, seed: int) -> LossMeasurements:
    """Measure everything on rows drawn from a dataset; networks, buffers and random generators stay as they were.

    Raises:
        ValueError: no row counts.
    """
    with preserved_rng(), preserved_buffers(loss), _evaluated(loss), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No target network updater")  # nothing is trained here
        torch.manual_seed(seed)
        return _Measuring(loss, dataset, rows, seed).measured()


@contextmanager
def _evaluated(loss: OfflineMARLLoss) -> Iterator[None]:
    """Put a loss's networks, which are not its submodules, into evaluation for the block.

    Batch normalization of critics stays as in training: what they say belongs to a batch, and their running statistics
    mix those of recorded, random and policies' actions.
    """
    networks = {name: module for name, module in vars(loss).items() if isinstance(module, nn.Module)}
    with ExitStack() as modes:
        for module in (loss, *networks.values()):
            modes.enter_context(evaluation_mode(module))
        for name in CRITICS & networks.keys():
            for module in networks[name].modules():
                module.training = isinstance(module, BatchNorm | nn.modules.batchnorm._BatchNorm)
        yield


class _Measuring:
    def __init__(self, loss: OfflineMARLLoss, dataset: OfflineDataset, rows: int, seed: int) -> None:
        self.loss, self.dataset = loss, dataset
        self.generator = torch.Generator().manual_seed(seed)
        self.counted = rows_that_count(loss, dataset.data)
        if not self.counted.any():
            raise ValueError("No row of the data counts, so that there is nothing to look at; look at its masks.")
        self.index = sampled(loss, dataset, self.counted, rows, self.generator)
        device = next((p.device for p in loss.parameters()), torch.device("cpu"))
        self.data: TensorDictBase = dataset.data[self.index.to(dataset.device)].to(device)
        self.batch: Batch = loss.batch(self.data)
        self.numbers: dict[str, float] = {}
        self.by_agent: dict[str, list] = {}
        self.missing: list[str] = []
        self.chosen: Tensor | None = None
        self.values: Tensor | None = None

    def measured(self) -> LossMeasurements:
        """Measure part after part."""
        if self.batch.has_critic:
            self._part("values", self._values)
            self._part("returns", self._returns)
            self._part("gains and credit", self._mixer)
            self._part("slopes and the closed loop", self._loop)
            self._part("advantages", self._advantages)
        else:
            self.missing.append("values, gains, advantages, credit: the loss has no critic")
        self._part("weights", self._weights)
        if self.loss.team.actor is None:
            self.missing.append("distances from the data: the loss has no actor")
        else:
            self._part("the policy's actions", self._policy)
            self._part("nearest neighbours", self._neighbours)
        numbers = {name: self.numbers[name] for name in NUMBERS if name in self.numbers}
        return LossMeasurements(numbers, self.by_agent, self.missing, self._material(), len(self.index))

    def _part(self, name: str, measure_part: Callable[[], Any]) -> None:
        try:
            reason = measure_part()
        except Exception as error:  # of networks and rules of a user's own, of any kind
            reason = " ".join(str(error).split()).removesuffix(".")[:200] or type(error).__name__
        if reason is not None:
            self.missing.append(f"{name}: {reason}")

    @property
    def _gamma(self) -> float:
        """Return the discount; NaN where there is none."""
        loss = self.loss
        has_none = loss.value_learning is None and loss._value_estimator is None
        return math.nan if has_none else float(discount_of(loss))

    @torch.no_grad()
    def _values(self) -> None:
        values = self.batch.q(self.batch.action).total_min.squeeze(-1)  # [R, k]
        self.values, mask = values, self.batch.counts(values)
        counted = values.flatten() if mask is None else values[mask]
        self.numbers |= {"qvalue_abs": float(counted.abs().mean()), "qvalue_largest": float(counted.abs().max())}

    def _returns(self) -> str | None:
        gamma = self._gamma
        if math.isnan(gamma) or self.values is None:
            return "the loss has no discount"
        facts = reward_facts(self.loss, self.dataset.replay_buffer(batch_size=1))
        if facts is not None and math.isfinite(bound := facts.bound(gamma)):
            self.numbers["qvalue_bound"] = bound
        found = returns_to_go(self.loss, self.dataset, gamma)
        everywhere = found[self.counted]
        self.numbers |= {
            "return_mean": float(everywhere.mean()),
            "return_largest": float(everywhere.abs().max()),
        }
        returns, values = found[self.index], self.values.double().cpu()
        mask = self.batch.counts(self.values)
        mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.cpu()
        values, returns = values[mask], returns[mask]
        self.numbers["qvalue_bias"] = float(values.mean() - returns.mean())
        rank = rank_correlation(values, returns)
        if math.isnan(rank):
            return None if not values.isfinite().all() else "Q or the returns are equal everywhere, and have no order"
        self.numbers["qvalue_rank_correlation"] = rank
        return None

    def _mixer(self) -> str | None:
        total, jacobian = mixer_jacobian(self.loss, self.batch)
        if jacobian is None:
            whose = "the team's value is learned as a whole" if self.batch.is_team else "each agent learns for itself"
            return f"there is no mixer, {whose}"
        gains = jacobian.norm(dim=-2).mean(-1)  # [R]
        mask = self.batch.counts(total[..., 0, :1])
        gains = gains if mask is None else gains[mask.squeeze(-1)]
        self.numbers["mixer_gain"] = float(gains.mean())
        if not math.isnan(gamma := self._gamma):
            low, high = (gamma * gains.double()).quantile(gains.new_tensor([0.05, 0.95]).double()).tolist()
            self.numbers |= {"discounted_gain": gamma * float(gains.mean())}
            self.numbers |= {"discounted_gain_low": low, "discounted_gain_high": high}
        shares = credit_shares(jacobian, self.batch)
        self.by_agent["credit"] = shares.tolist()
        self.numbers |= {"credit_low": float(shares.amin()), "credit_high": float(shares.amax())}
        return None

    def _loop(self) -> str | None:
        if self.loss.value_learning is None:
            return "the loss trains no critic"
        if math.isnan(self._gamma):
            return "the loss has no discount"
        if self.loss.team.actor is None:
            return None  # which is said of the policy's actions
        chosen = chosen_and_recorded(self.batch)[0]
        found = climbing(self.loss, self.batch, chosen, self.numbers.get("discounted_gain"))
        self.numbers |= {name: float(value) for name, value in found.items()}
        return None

    @torch.no_grad()
    def _advantages(self) -> str | None:
        if self.batch.networks.actor is None and self.batch.networks.value is None:
            return "there are neither policies nor state values to compare with"
        advantage = self.batch.advantage("local")  # [R, n], or the team's [R, 1]
        if advantage.shape[-1] < 2:
            return "there is one value for the team, or one agent"
        mask = self.batch.counts(advantage)
        self.numbers["advantage_agreement"] = float(agreement(advantage, mask))
        centred = advantage - masked_mean(advantage, mask, tuple(range(advantage.ndim - 1)))
        centred = centred if mask is None else centred.where(mask, torch.zeros_like(centred))
        covariance = (centred.mT @ centred).double()
        deviation = covariance.diagonal().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        self.by_agent["advantage_correlation"] = (covariance / deviation / deviation.unsqueeze(-1)).tolist()
        present = torch.ones_like(advantage, dtype=torch.bool) if mask is None else mask
        one_sign = ((advantage > 0) | ~present).all(-1) | ((advantage < 0) | ~present).all(-1)
        several = present.sum(-1) > 1
        if several.any():
            self.numbers["advantage_one_sign"] = float(one_sign[several].float().mean())
        return None

    @torch.no_grad()
    def _weights(self) -> str | None:
        rule, names = self.loss.extraction, ("effective_sample_size", "capped_weights")
        if not set(names) & set(getattr(rule, "metrics", ())):
            return "no rule extracts a policy" if rule is None else f"{type(rule).__name__} gives the rows no weights"
        _, metrics = rule.element_loss(self.batch)
        self.numbers |= {name: float(metrics[name]) for name in names if name in metrics}
        return None

    def _policy(self) -> None:
        chosen, recorded = chosen_and_recorded(self.batch)
        self.chosen = chosen
        self.numbers["policy_distance"] = float(distance_of(chosen, recorded, self.batch))

    def _neighbours(self) -> None:
        self.numbers |= neighbour_distances(self.loss, self.dataset, self.counted, self.generator)

    def _material(self) -> Material:
        agents, discrete = self.dataset.spec.n_agents, not self.batch.action.is_floating_point()
        kept = self.counted[self.index].nonzero()[:, 0]
        kept = kept[torch.randperm(len(kept), generator=self.generator)[:POINTS]].sort().values
        like = torch.zeros(1, agents, self.dataset.spec.action_size)
        recorded = self.batch.action_like(like.to(self.batch.action.device)).detach().cpu().float()
        alive, values = self.batch.alive, self.values
        alive = torch.ones(recorded.shape[:2], dtype=torch.bool) if alive is None else alive.cpu()
        values = None if values is None else values.detach().cpu().float().expand(-1, agents)[kept]
        chosen = None if self.chosen is None else self.chosen.cpu().float()[kept]
        return Material(recorded[kept], chosen, values, alive[kept], discrete)
