"""What the critic regresses on: rewards and next values, by TorchRL's value estimators."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.objectives.value import TD0Estimator, ValueEstimatorBase

from torchrl_marl_offline.objectives.batch import Batch, Following
from torchrl_marl_offline.objectives.fitting import check_tensor
from torchrl_marl_offline.objectives.functional import team_reward
from torchrl_marl_offline.objectives.prepared import of_batch
from torchrl_marl_offline.objectives.series import SEEN, check_series, needs_series, step_by_step
from torchrl_marl_offline.objectives.value_learning import ValueLearning

ESTIMATOR_KEYS: dict[str, NestedKey] = {name: name for name in ("reward", "done", "terminated")}
"""Keys of an estimator: it gets a tensordict of the loss's own, whose signals already have one shape [*B, k, 1]."""
ESTIMATOR_KEYS["value"] = "state_value"


@torch.no_grad()
def value_target(
    batch: Batch,
    rule: ValueLearning,
    estimator: ValueEstimatorBase,
    *,
    how: Literal["mean", "sum"] = "mean",
    max_next_value: Tensor | None = None,
    has_target: Tensor | None = None,
) -> Tensor:
    """Return the detached regression target ``[*B, k, 1]``.

    Args:
        batch: the rows.
        rule: what the next state is worth.
        estimator: how rewards and next values become targets.
        how: the team's reward of the agents'.
        max_next_value: upper bound of the next value, or None.
        has_target: where the rule can form a target, ``[*B]``, or None for everywhere.
    """
    tensordict = batch.tensordict
    next_td = of_batch(tensordict.get("next"), tensordict.batch_size)
    next_value = rule.next_value(Following(batch.networks, next_td))
    _check_shape(next_value, batch, rule)
    if max_next_value is not None:
        next_value = next_value.minimum(max_next_value)
    next_value = rule.reweighted(batch, next_value)
    _check_shape(next_value, batch, rule, "reweighted")
    like = next_value.squeeze(-1)
    terminated = done = batch.terminated(like)
    if not isinstance(estimator, TD0Estimator):  # which reads no ends of series
        done = _series_ends(batch, terminated, estimator, has_target)
    signals = {"reward": _reward(batch, next_td, next_value, how), "state_value": next_value}
    signals |= {"terminated": terminated.unsqueeze(-1), "done": done.unsqueeze(-1)}  # [*B, k] -> [*B, k, 1]
    given = TensorDict({"next": TensorDict(signals, tensordict.batch_size)}, tensordict.batch_size)
    steps = tensordict.get("steps_to_next_obs", None)
    if steps is not None:
        given.set("steps_to_next_obs", steps.reshape(*tensordict.batch_size, 1, 1).expand_as(next_value))
    if tensordict.ndim > 1:
        given.names = [*[None] * (tensordict.ndim - 1), "time"]
    with step_by_step(estimator, next_value):
        return estimator.value_estimate(given, next_value=next_value)


def _check_shape(next_value: Tensor, batch: Batch, rule: ValueLearning, method: str = "next_value") -> None:
    check_tensor(rule, method, next_value)
    signals = 1 if batch.is_team else batch.action.shape[batch.tensordict.ndim]
    expected = (*batch.tensordict.batch_size, signals, 1)
    if next_value.shape != expected:
        raise ValueError(
            f"{method} of {type(rule).__name__} must return {list(expected)}, [*B, k, 1] with k = {signals}, "
            f"{'one value of the team' if batch.is_team else 'one value of each agent'}; got {list(next_value.shape)}."
        )


def _reward(batch: Batch, next_td: TensorDictBase, like: Tensor, how: Literal["mean", "sum"]) -> Tensor:
    reward = next_td.get(batch.networks.loss.tensor_keys.reward)
    if reward.ndim == like.ndim - 1:  # the team's reward, [*B, 1]
        return reward.unsqueeze(-2).expand_as(like)
    return team_reward(reward, how) if batch.is_team else reward


def _series_ends(batch: Batch, terminated: Tensor, estimator: ValueEstimatorBase, has_target: Tensor | None) -> Tensor:
    """Return after which rows returns do not run on, ``[*B, k]``; the first batch's rows are held to be series."""
    cut = cut_series(batch, terminated, has_target)
    if needs_series(estimator) and SEEN.is_due(batch.networks, cut):
        loss, rows, ended = batch.networks.loss, batch.rows, cut.all(-1)
        ended = ended if rows is None else ended | ~rows
        keys = [key for key in loss.in_keys if key != unravel_key(loss.tensor_keys.action)]
        check_series(batch.tensordict, ended, keys, carrier=f"{type(estimator).__name__} carries returns")
        SEEN.passed(batch.networks)
    return cut


def cut_series(batch: Batch, terminated: Tensor, has_target: Tensor | None) -> Tensor:
    """Return after which rows the series along the last dimension of the batch is cut, bool ``[*B, k]``.

    Where the episode ends, where nothing is bootstrapped, and before a row that does not count or has no target: a
    return must not run on through that row's reward and value.
    """
    ended = batch.get(("next", batch.networks.loss.tensor_keys.done)).expand_as(terminated) | terminated
    has_target = None if has_target is None else has_target.unsqueeze(-1).expand_as(terminated)
    for mask in (batch.counts(terminated), has_target):
        if mask is not None:
            ahead = torch.cat([mask[..., 1:, :], torch.ones_like(mask[..., :1, :])], -2)
            ended = ended | ~ahead
    return ended
