"""When not to trust an estimate: what can be found out from the logged data itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.layout import ACTION, MASK, OBSERVATION
from torchrl_marl_offline.evaluation.distances import nearest
from torchrl_marl_offline.evaluation.offline.horizon import EvaluationRows, joint_codes
from torchrl_marl_offline.evaluation.statistics import student_t_quantile
from torchrl_marl_offline.training.run.value_alarm import RewardFacts, limit_of

FEW_EPISODES = 10.0
"""Below that many effective episodes, importance weights say next to nothing."""
BIASED = 0.25
"""Largest bias of the logged team's values that is not warned of, in deviations of the earned returns."""
CONSTANT = 0.05
"""The same, as a share of the mean absolute return: where all returns are equal, no bias is below their deviation."""
CLIPPED = 0.5
"""Largest share of clipped weights that is not warned of."""
UNSUPPORTED = 0.3
"""Largest share of actions outside the data that is not warned of; of the logged team's own it is about 0.05."""
RARE = 0.02
"""Chance under the clone below which an agent's discrete action is unlikely."""
_COMPARED, _KNOWN = 1000, 4000


@dataclass(frozen=True)
class LoggedCalibration:
    """How the values of the logged team's own policy agree with what it earned, over held-out episodes' first steps.

    The logged team is evaluated as any other, without knowing the held-out returns; what it earned is known. Where this
    fails, values of other policies are not to be trusted either; where it holds they may still be wrong, since other
    policies take other actions.

    Attributes:
        predicted: mean value at the first steps, in the unit of the discounted return.
        earned: mean discounted return.
        bias: predicted minus earned.
        half_width: of the 95 % interval of the bias, over episodes: of the errors, or of the returns, if that is
            smaller: values that differ wildly between episodes do not excuse their bias.
        deviation: of the earned returns, over episodes.
        correlation: of both over episodes; NaN where either is constant, and about 0 where first steps tell nothing of
            the return.
        episodes: how many were compared.
        passed: whether the bias is within its interval, or below a quarter of the deviation, or below a twentieth of
            the mean absolute return (of returns that are all 0: of 1), which do not deviate where all episodes earn the
            same.
    """

    predicted: float
    earned: float
    bias: float
    half_width: float
    deviation: float
    correlation: float
    episodes: int
    passed: bool

    @classmethod
    def of(cls, predicted: Tensor, earned: Tensor) -> LoggedCalibration:
        """Compare values with discounted returns, both ``[E]`` of the same episodes, two or more."""
        predicted, earned = predicted.double(), earned.double()
        errors, count = predicted - earned, len(earned)
        bias, deviation = errors.mean().item(), earned.std(correction=0).item()
        spread = min(errors.std().item(), earned.std().item())
        half = student_t_quantile(0.95, count - 1) * spread / count**0.5
        centred = predicted - predicted.mean(), earned - earned.mean()
        joint = centred[0].square().sum() * centred[1].square().sum()
        correlation = (centred[0] * centred[1]).sum() / joint.sqrt()
        passed = abs(bias) <= max(half, BIASED * deviation, CONSTANT * (earned.abs().mean().item() or 1.0))
        means = predicted.mean().item(), earned.mean().item()
        return cls(*means, bias, half, deviation, correlation.item(), count, passed)

    def verdict(self, judged: str = "Calibration", of: str = "the logged team's value is estimated as") -> str:
        """Say in a sentence whether the estimator works on this dataset.

        Args:
            judged: what passed or failed.
            of: what was predicted.
        """
        facts = (
            f"{of} {self.predicted:.4g}, it earned {self.earned:.4g} (bias {self.bias:+.3g} ± {self.half_width:.2g}, "
            f"returns deviate by {self.deviation:.3g}, {self.episodes} held-out episodes)"
        )
        if self.passed:
            return f"{judged}: passed, {facts}."
        return f"{judged}: FAILED, {facts}; do not trust values of this dataset: train longer, or log more episodes."


def impossible_values(name: str, values: Tensor, rows: EvaluationRows, gamma: float) -> str | None:
    """Return what is to be said where a policy's mean ``|V|`` is beyond what the rewards allow, or ``None``.

    Args:
        name: of the policy.
        values: in the data's unit.
        rows: whose rewards bound them.
        gamma: discount.
    """
    ends = bool(rows.data.get(("next", "terminated"))[rows.starts + rows.lengths - 1].all())
    facts = RewardFacts(rows.reward.abs().max().item(), float(rows.lengths.max()), ends)
    found, bound = values.abs().mean().item(), facts.bound(gamma)
    if found <= rows.scale * limit_of(bound / rows.scale, 0.0):  # as of training, in whose unit returns are about 1
        return None
    return (
        f"{name}: mean |V| is {found:.3g}, where the rewards of the data allow {bound:.3g}: its critics diverge; take "
        "more episodes, a smaller gamma, or another decomposition."
    )


def unsupported_share(rows: EvaluationRows, known: Tensor, asked: Tensor, actions: Tensor, *, seed: int) -> float:
    """Return which share of a policy's joint actions lie farther from the data than 95 % of the logged team's do.

    Distance is that of a state and joint action to the nearest of the data's: the root of the mean square over the
    components of all observations, with deviation 1, plus the same of actions (of discrete tasks, one-hot). It is
    measured on at most 1000 held-out rows against 4000 others.

    Args:
        rows: all rows.
        known: ``[T]`` bool, the rows that the critics learn from.
        asked: ``[k]`` the held-out rows in whose states the policy was asked.
        actions: what it does there, ``[k, n, a]``, of a discrete task ``[k, n]``.
        seed: chooses the rows.
    """
    g = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(asked), generator=g)[:_COMPARED]
    index, actions = asked[some], actions[some]
    data = known.nonzero()[:, 0]
    data = data[torch.randperm(len(data), generator=g)[:_KNOWN]]
    logged = rows.data.get(ACTION)
    observation = rows.data.get(OBSERVATION).flatten(1)
    observation = observation / observation.shape[1] ** 0.5
    codes = [joint_codes(each, rows.spec) for each in (logged[data], logged[index], actions)]
    deviation = codes[0].std(0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, 1.0) * codes[0].shape[1] ** 0.5
    data_points = torch.cat([observation[data], codes[0] / deviation], 1)
    own, policy = (nearest(torch.cat([observation[index], code / deviation], 1), data_points) for code in codes[1:])
    return (policy > own.quantile(0.95) + 1e-4).double().mean().item()


def unlikely_share(logged: Tensor, policy: Tensor, *, discrete: bool) -> float:
    """Return which share of a policy's joint actions the logged team's clone finds unlikely.

    The nearest recorded state and action of :func:`unsupported_share` may be near by its state alone, where states have
    many numbers; this asks for the action in the very state. Continuous joint actions are unlikely where their density
    is below that of 95 % of the logged ones; discrete ones where an agent's own action has a chance below .02.

    Args:
        logged: log-probabilities of the logged actions in held-out rows, ``[T, n]``.
        policy: those of the policy's actions in the same rows.
        discrete: whether actions are.
    """
    if discrete:
        return (policy < math.log(RARE)).any(-1).double().mean().item()
    own, found = logged.sum(-1), policy.sum(-1)
    return (found < own.quantile(0.05) - 1e-6).double().mean().item()


def of_likelihood(name: str, share: float) -> str | None:
    """Return what is to be said of joint actions that the logged team's clone finds unlikely, or ``None``."""
    if share <= UNSUPPORTED:
        return None
    return (
        f"{name}: {share:.0%} of its joint actions are such as the logged team, by its clone, hardly ever takes "
        "there: the critics have not seen the like, and mostly overrate it."
    )


def of_support(name: str, share: float) -> str | None:
    """Return what is to be said of joint actions outside the data's support, or ``None``."""
    if share <= UNSUPPORTED:
        return None
    return (
        f"{name}: {share:.0%} of its joint actions are farther from the data than the logged team's are (5% of whose "
        "own are): nothing in the data says what they earn, so that its value is a guess."
    )


def of_imagination(name: str, share: float, low: float, high: float) -> str | None:
    """Return what is to be said of play that leaves what learned models know, or ``None``."""
    if share <= UNSUPPORTED:
        return None
    return (
        f"{name}: {share:.0%} of its episodes in the learned models leave what the data tells: it earns {low:.4g} if "
        f"there the worst happens, which is the estimate, and {high:.4g} if the best does."
    )


def of_sample_size(name: str, effective: float, episodes: int) -> str | None:
    """Return what is to be said of importance weights of which few count, or ``None``."""
    if effective >= FEW_EPISODES:
        return None
    return (
        f"{name}: the importance weights of {episodes} episodes are worth {effective:.1f} episodes: too few for 'is', "
        "'wis' and 'dr'; take more episodes, or 'fqe'."
    )


def of_clipped(name: str, share: float) -> str | None:
    """Return what is to be said of weights that are mostly clipped, or ``None``."""
    if share <= CLIPPED:
        return None
    return (
        f"{name}: {share:.0%} of its importance weights were clipped, which draws the estimate to what the logged team "
        "earned; take a larger clip=, or none."
    )


def of_masked_rows(data: TensorDictBase, lengths: Tensor) -> str | None:
    """Return what is to be said of rows within episodes that do not count, or ``None``.

    Args:
        data: whole episodes, end to end.
        lengths: ``[E]`` of them.
    """
    inside = torch.ones(len(data), dtype=torch.bool)
    inside[lengths.cumsum(0) - 1] = False  # a last row does not count where nothing is known of what follows
    masked = inside & ~data.get(MASK)
    if not masked.any():
        return None
    episodes = torch.arange(len(lengths)).repeat_interleave(lengths)[masked].unique()
    return (
        f"{int(masked.sum())} rows of {len(episodes)} episodes do not count, since they were damaged: their rewards "
        "are part of what episodes earned as they stand there; leave these episodes out by select_episodes()."
    )


def of_other_task(name: str, task: str | None, recorded: str | None) -> str | None:
    """Return what is to be said of a policy that was made for a task of another name, or ``None``."""
    if task is None or recorded is None or task == recorded:
        return None
    return f"{name} was made for {task!r}, and the data is of {recorded!r}: what it would earn there says little."
