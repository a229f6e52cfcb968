"""Evaluation on recorded episodes that were not trained on, for tasks without a simulator.

It cannot say what the policy earns. It says how often the policy would have done what the recorded one did, that it
proposes nothing illegal, and whether Q agrees with the returns that were earned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    MASK,
    REWARD,
    TERMINATED,
    next_key,
)
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.core.ranges import DISCOUNT, SIZE
from torchrl_marl_offline.data.policy_fit import Carried
from torchrl_marl_offline.evaluation.along_episodes import with_memory
from torchrl_marl_offline.evaluation.in_environments import (
    Policy,
    raise_on_illegal_action,
    raise_on_non_finite_action,
)
from torchrl_marl_offline.training.run.saved_policies import bare

if TYPE_CHECKING:
    from torchrl_marl_offline.data import OfflineDataset


@dataclass(frozen=True)
class Calibration:
    """How values agree with the discounted returns that followed, over the rows (and agents) that count.

    Attributes:
        correlation: Pearson's, NaN where either is constant.
        slope: of the least-squares line return = slope · Q + intercept; 1 is calibrated, below 1 exaggerates
            differences.
        bias: mean of Q minus mean of the return; positive overestimates.
        table: ``[bins, 3]``: mean Q, mean return and number of rows, for rows sorted by Q into bins of equal size.
        truncated: share of rows whose episode was cut off by a time limit. Their return lacks what would have followed.
    """

    correlation: float
    slope: float
    bias: float
    table: Tensor
    truncated: float


@dataclass(frozen=True)
class HeldOutEvaluation:
    """What :func:`evaluate_held_out` measured.

    Attributes:
        rows: number of transitions counted.
        agreement: share of recorded actions that equal the policy's mode; ``None`` for continuous actions.
        agreement_per_agent: ``[n]``, the same for each agent, over the rows in which it is alive.
        agreement_choice: the same where more than one action was legal; ``None`` without an action mask. A dead
            StarCraft unit has one legal action, which everybody agrees on.
        error: mean absolute difference of a continuous action; ``None`` for discrete ones.
        checked_actions: number of proposals, by mode and by sampling, that were held against the mask.
        illegal_actions: how many of those were illegal; anything but 0 raises.
        calibration: of Q, or ``None`` without ``qvalue``.
    """

    rows: int
    agreement: float | None
    agreement_per_agent: Tensor | None
    agreement_choice: float | None
    error: float | None
    checked_actions: int
    illegal_actions: int
    calibration: Calibration | None

    def summary(self) -> dict[str, float]:
        """Return the scalars of an ``eval.csv`` row."""
        row = {"agreement": self.agreement, "agreement_choice": self.agreement_choice, "action_error": self.error}
        if self.calibration is not None:
            calibration = self.calibration
            row |= {"q_correlation": calibration.correlation, "q_slope": calibration.slope, "q_bias": calibration.bias}
        row |= {"illegal_actions": float(self.illegal_actions), "rows": float(self.rows)}
        return {name: value for name, value in row.items() if value is not None}


@torch.no_grad()
@checked
def evaluate_held_out(
    policy: Policy | LossModule,
    dataset: OfflineDataset,
    *,
    qvalue: Callable[[TensorDictBase], Tensor] | None = None,
    gamma: Annotated[float, DISCOUNT] = 0.99,
    team_reward: Literal["mean", "sum"] = "mean",
    bins: Annotated[int, SIZE] = 10,
    batch_size: Annotated[int, SIZE] = 4096,
    device: torch.device | str | None = None,
) -> HeldOutEvaluation:
    """Hold a policy, and its values, against recorded episodes.

    Args:
        policy: an actor that writes ``("agents", "action")``, or a loss that has an ``actor_network``.
        dataset: whole episodes; rows with ``("collector", "mask")`` false and agents with ``("agents", "mask")`` false
            do not count.
        qvalue: from a batch of transitions to Q at the recorded actions: ``[b]`` or ``[b, 1]`` of the team, which is
            held against the team's return, or ``[b, n]`` or ``[b, n, 1]`` of each agent against its own.
        gamma: discount of the returns.
        team_reward: whether the team's reward is the mean or the sum over agents, as in the loss.
        bins: number of rows of the calibration table.
        batch_size: transitions a pass; with ``qvalue``, or of a policy with memory, whole episodes of about as many.
        device: where the policy and ``qvalue`` live; by default the dataset's.

    Raises:
        IllegalActionError: if the policy, by mode or sampled, proposes an action that the recorded mask forbids.
    """
    policy = bare(policy)
    if isinstance(policy, LossModule):
        with policy.actor_network_params.to_module(policy.actor_network):
            return evaluate_held_out(
                policy.actor_network,
                dataset,
                qvalue=qvalue,
                gamma=gamma,
                team_reward=team_reward,
                bins=bins,
                batch_size=batch_size,
                device=device,
            )
    data = dataset.data
    counted = (
        data.get(MASK).cpu() if MASK in data.keys(include_nested=True) else torch.ones(len(data), dtype=torch.bool)
    )
    modes, values, checked = [], [], 0
    with preserved_rng(), evaluation_mode(policy):
        torch.manual_seed(0)
        carried = Carried(policy)
        # values may be of critics that remember, where the policy does not
        for rows in _blocks(dataset, batch_size, whole_episodes=carried.needs_beginnings or qvalue is not None):
            batch = data[rows].to(device or data.device or "cpu")
            seen = with_memory(policy, carried.states, batch) if carried.needs_beginnings else batch
            mode, legal = _propose(policy, seen)
            modes.append(mode.cpu())
            checked += legal
            if qvalue is not None:
                values.append(qvalue(batch).detach().cpu())
    matches = _compare(torch.cat(modes), data, counted, discrete=dataset.spec.discrete)
    calibration = None
    if qvalue is not None:
        calibration = _calibrate(torch.cat(values), dataset, counted, gamma=gamma, team_reward=team_reward, bins=bins)
    return HeldOutEvaluation(
        int(counted.sum()), **matches, checked_actions=checked, illegal_actions=0, calibration=calibration
    )


def _blocks(dataset: OfflineDataset, batch_size: int, *, whole_episodes: bool) -> Iterator[slice]:
    """Cut the rows into blocks; of whole episodes as many as have so many rows together, or one."""
    if not whole_episodes:
        yield from (slice(start, start + batch_size) for start in range(0, len(dataset.data), batch_size))
        return
    start = end = 0
    for length in dataset.episode_lengths.tolist():
        if end > start and end + length - start > batch_size:
            yield slice(start, end)
            start = end
        end += length
    yield slice(start, end)


def _propose(policy: Policy, batch: TensorDictBase) -> tuple[Tensor, int]:
    """Return the policy's mode ``[b, n]`` or ``[b, n, a]`` and how many proposals were held against the mask."""
    checked, inputs = 0, batch.exclude(ACTION, "next")
    for exploration in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
        with set_exploration_type(exploration):
            proposal = policy(inputs.copy())
        raise_on_non_finite_action(proposal)
        checked += raise_on_illegal_action(proposal)
    return proposal.get(ACTION), checked


def _compare(mode: Tensor, data: TensorDictBase, counted: Tensor, *, discrete: bool) -> dict[str, object]:
    """Compare modes with recorded actions where row and agent count."""
    recorded = data.get(ACTION).cpu()
    alive = data.get(AGENT_MASK, None)
    alive = torch.ones(mode.shape[:2], dtype=torch.bool) if alive is None else alive.cpu()
    alive = alive & counted.unsqueeze(-1)  # [T, n]
    none = {"agreement": None, "agreement_per_agent": None, "agreement_choice": None, "error": None}
    if not discrete:
        return none | {"error": (mode - recorded).abs().mean(-1)[alive].mean().item()}
    equal = mode == recorded
    result = {
        "agreement": equal[alive].double().mean().item(),
        "agreement_per_agent": (equal & alive).sum(0).double() / alive.sum(0),
    }
    mask = data.get(ACTION_MASK, None)
    if mask is not None:
        choice = alive & (mask.cpu().sum(-1) > 1)
        result["agreement_choice"] = equal[choice].double().mean().item()
    return none | result


def discounted_returns(reward: Tensor, lengths: Tensor, gamma: float) -> Tensor:
    """Return ``G_t = r_t + γ G_{t+1}`` within each episode.

    Args:
        reward: ``[T, *k]``, episodes end to end.
        lengths: ``[E]`` their lengths, which sum to ``T``.
        gamma: discount.

    Returns:
        ``[T, *k]`` in the precision of ``reward``.
    """
    result = reward.clone()
    ends = lengths.cumsum(0)
    for back in range(2, int(lengths.max()) + 1):  # all episodes at once, from their ends backwards
        rows = (ends - back)[lengths >= back]
        result[rows] += gamma * result[rows + 1]
    return result


def _calibrate(
    values: Tensor, dataset: OfflineDataset, counted: Tensor, *, gamma: float, team_reward: str, bins: int
) -> Calibration:
    data, lengths = dataset.data, dataset.episode_lengths.cpu()
    reward = data.get(next_key(REWARD)).cpu().double().squeeze(-1)  # [T, n]
    values = values.double().reshape(len(values), -1)  # [T, 1] of the team or [T, n]
    if values.shape[-1] not in (1, reward.shape[-1]):
        raise ValueError(f"qvalue must give 1 or {reward.shape[-1]} values a row, got {values.shape[-1]}.")
    if values.shape[-1] == 1:
        reward = reward.mean(-1, keepdim=True) if team_reward == "mean" else reward.sum(-1, keepdim=True)
    returns = discounted_returns(reward, lengths, gamma)
    terminated = data.get(next_key(TERMINATED)).cpu().flatten()[lengths.cumsum(0) - 1]
    cut = (~terminated).repeat_interleave(lengths)[counted]
    q, g = values[counted].flatten(), returns[counted].flatten()
    covariance = torch.cov(torch.stack([q, g]), correction=0)
    variance_q, variance_g, joint = covariance[0, 0], covariance[1, 1], covariance[0, 1]
    order = q.argsort(stable=True)
    table = [
        torch.stack([q[part].mean(), g[part].mean(), torch.tensor(float(len(part)))]) for part in order.chunk(bins)
    ]
    return Calibration(
        correlation=(joint / (variance_q * variance_g).sqrt()).item(),
        slope=(joint / variance_q).item(),
        bias=(q.mean() - g.mean()).item(),
        table=torch.stack(table),
        truncated=cut.double().mean().item(),
    )
