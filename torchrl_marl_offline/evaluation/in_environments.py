"""Evaluation by whole episodes in a batched environment, with fixed seeds and without a trace on training.

Every environment slot contributes its *first* episodes, a number fixed beforehand: taking the first ``E`` episodes that
end, whichever slot they come from, would favour short ones. Random numbers are drawn under a seed of the evaluation's
own and the global generators are put back afterwards, so that training is the same bit for bit however often it is
evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import set_exploration_type

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.exploration import EXPLORATION, Mode
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, AGENT_MASK, DONE, GROUP, REWARD, SUCCESS, next_key
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.core.ranges import OPEN_UNIT, SEED, SIZE
from torchrl_marl_offline.data.policy_fit import Carried, fitted
from torchrl_marl_offline.evaluation.agent_shares import shares_of
from torchrl_marl_offline.evaluation.statistics import Interval, mean_confidence_interval
from torchrl_marl_offline.training.run.saved_policies import bare

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.training.populations.population import Population

Policy = Callable[[TensorDictBase], TensorDictBase]
EpisodeRow = tuple[list[float], int, bool]
LOGITS = (GROUP, "logits")


class IllegalActionError(RuntimeError):
    """A policy chose an action that ``("agents", "action_mask")`` forbids."""


class NonFiniteActionError(RuntimeError):
    """A policy proposed an action that is not a number."""


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` measured over ``E`` episodes.

    Attributes:
        returns: ``[E]`` undiscounted return, the sum over steps of the mean over agents of the reward.
        lengths: ``[E]`` number of steps.
        success: ``[E]`` bool, whether the task's goal was reached within the episode; ``None`` where it has no such
            signal.
        reference_returns: the task's (random, expert) returns, or ``None``.
        mode: how actions were chosen, ``"mode"`` or ``"sample"``.
        seed: seed of the environments and of the sampling.
        best_return: mean return of the best team, where the task knows it exactly (``env.best_return``), or ``None``.
        agent_returns: ``[E, n]``, each agent's own; ``None`` where all have the same rewards.
    """

    returns: Tensor
    lengths: Tensor
    success: Tensor | None = None
    reference_returns: tuple[float, float] | None = None
    mode: Mode = "mode"
    seed: int = 0
    best_return: float | None = None
    agent_returns: Tensor | None = None

    @classmethod
    def of(cls, rows: Sequence[EpisodeRow], has_success: bool, env: EnvBase, mode: Mode, seed: int) -> Evaluation:
        """Put together the episodes that :func:`run_episodes` found in ``env``."""
        earned, lengths, success = zip(*rows, strict=True)
        own = torch.tensor(earned, dtype=torch.float64)  # [E, n]
        differ = getattr(env, "own_rewards", False) or bool(((own - own[:, :1]).abs() > 0).any())  # of numbers alone
        return cls(
            own.mean(1).float(),
            torch.tensor(lengths),
            torch.tensor(success) if has_success else None,
            getattr(env, "reference_returns", None),
            mode,
            seed,
            getattr(env, "best_return", None),
            own.float() if differ else None,
        )

    @property
    def mean(self) -> float:
        """Mean return."""
        return self.returns.double().mean().item()

    @property
    def std(self) -> float:
        """Standard deviation of the return over episodes (0 for one episode)."""
        return self.returns.double().std(correction=min(1, len(self.returns) - 1)).item()

    @property
    def success_rate(self) -> float | None:
        """Share of the episodes that reached the goal."""
        return None if self.success is None else self.success.double().mean().item()

    @property
    def normalized(self) -> float | None:
        """``100 · (mean − random) / (expert − random)``, or ``None`` where the task has no reference returns."""
        if self.reference_returns is None:
            return None
        random, expert = self.reference_returns
        return 100 * (self.mean - random) / (expert - random)

    @property
    def gap(self) -> float | None:
        """How much less the mean return is than the best team's, or ``None`` where that is not known."""
        return None if self.best_return is None else self.best_return - self.mean

    @checked
    def confidence_interval(self, level: Annotated[float, OPEN_UNIT] = 0.95) -> Interval:
        """Student's t interval of the mean return across episodes; needs two episodes."""
        return mean_confidence_interval(self.returns, level)

    def summary(self) -> dict[str, float]:
        """Return the scalars of an ``eval.csv`` row; entries that the task or one episode cannot give are left out.

        Where agents have rewards of their own, ``return_sum``, ``return_least`` and ``gini`` say how they share them
        (:func:`~.agent_shares.shares_of`).
        """
        row = {"return": self.mean, "return_std": self.std}
        if len(self.returns) > 1 and self.returns.isfinite().all():  # a policy that diverged has no interval
            _, row["return_low"], row["return_high"] = self.confidence_interval()
        if self.normalized is not None:
            row["normalized"] = self.normalized
        if self.gap is not None:
            row["gap"] = self.gap
        if self.success is not None:
            row["success"] = self.success_rate
            if len(self.success) > 1:
                _, row["success_low"], row["success_high"] = mean_confidence_interval(self.success)
        if self.agent_returns is not None:
            row["return_sum"], row["return_least"], gini = shares_of(self.agent_returns)
            row |= {} if gini is None else {"gini": gini}
        return row | {"length": self.lengths.double().mean().item(), "episodes": float(len(self.returns))}


@torch.no_grad()
@checked
def evaluate(
    policy: Policy, env: EnvBase, *, episodes: Annotated[int, SIZE], seed: Annotated[int, SEED], mode: Mode = "mode"
) -> Evaluation:
    """Run ``policy`` for ``episodes`` whole episodes in a batched environment.

    Args:
        policy: a TensorDictModule, or any callable from tensordict to tensordict, that writes ``("agents", "action")``.
        env: an environment of batch size ``[num_envs]`` in the library's layout, as ``make_env`` returns it.
        episodes: number of episodes ``E``; slot ``i`` contributes its first ``E // num_envs`` (one more for ``i < E %
            num_envs``).
        seed: seeds the environment and the sampling, so that two calls give the same result.
        mode: ``"mode"`` executes the policy's deterministic action, ``"sample"`` draws from it.

    Returns:
        :class:`Evaluation`, episodes ordered by slot, then by time.

    Raises:
        IllegalActionError: if the environment has an action mask and the policy breaks it.
        NonFiniteActionError: if an action is not a number.
        PolicyError: if the policy was made for other sizes than the environment's.
        RuntimeError: if an episode outlasts ``env.max_episode_steps``.
    """
    check_arguments(env, episodes, mode)
    policy = bare(policy)
    with explored(env, mode, seed), evaluation_mode(policy):
        finished, has_success = run_episodes(policy, env, spread_over_slots(episodes, env.batch_size[0]))
    return Evaluation.of([row for slot in finished for row in slot], has_success, env, mode, seed)


@torch.no_grad()
@checked
def evaluate_population(
    population: Population,
    env: EnvBase,
    *,
    episodes: Annotated[int, SIZE],
    seed: Annotated[int, SEED],
    mode: Mode = "mode",
) -> dict[str, Evaluation]:
    """Run every member of a population for ``episodes`` whole episodes, all in one batched environment.

    Args:
        population: ``[P]`` members, for instance ``learner.population``.
        env: of batch size ``[P * k]``; member ``i`` plays in slots ``i k`` to ``(i + 1) k - 1``.
        episodes: of each member.
        seed: of the environment and of the sampling.
        mode: see :func:`evaluate`.

    Returns:
        Member name -> its evaluation; one that diverged may have a return that is not finite.

    Raises:
        ValueError: the environment's slots cannot be shared equally, or an argument is out of range.
    """
    check_arguments(env, episodes, mode)
    count, slots = len(population), env.batch_size[0]
    if slots % count:
        raise ValueError(
            f"An environment of {slots} slots cannot be shared by {count} members; make one of a multiple."
        )
    quota = spread_over_slots(episodes, slots // count).repeat(count)
    with explored(env, mode, seed), evaluation_mode(population.template.actor_network):
        # a member that diverged is left out by itself: it does not end the others
        carried = Carried(population.template.actor_network)
        finished, has_success = run_episodes(population.act, env, quota, carried=carried, must_be_finite=False)
    found, per_member = {}, slots // count
    for index, name in enumerate(population.members):
        rows = [row for slot in finished[index * per_member : (index + 1) * per_member] for row in slot]
        found[name] = Evaluation.of(rows, has_success, env, mode, seed)
    return found


@contextmanager
def explored(env: EnvBase, mode: Mode, seed: int) -> Iterator[None]:
    """Seed an environment and the sampling, and choose how policies act; generators are put back on leaving."""
    with preserved_rng(), set_exploration_type(EXPLORATION[mode]):
        torch.manual_seed(seed)
        env.set_seed(seed)
        yield


def spread_over_slots(episodes: int, slots: int) -> Tensor:
    """Return how many episodes each slot runs, ``[slots]``."""
    return torch.tensor([episodes // slots + (slot < episodes % slots) for slot in range(slots)])


def run_episodes(
    policy: Policy, env: EnvBase, quota: Tensor, *, carried: Carried | None = None, must_be_finite: bool = True
) -> tuple[list[list[EpisodeRow]], bool]:
    """Step until each slot has run its quota of episodes; slots that are through keep stepping and are not read.

    Args:
        policy: writes actions.
        env: of batch size ``[slots]``.
        quota: episodes of each slot, ``[slots]``.
        carried: what the policy carries from step to step; by default what it says itself.
        must_be_finite: refuse actions that are not.

    Returns:
        For each slot its episodes as (each agent's return, length, success), and whether the task has a signal of
        success.
    """
    slots, wanted = env.batch_size[0], quota.tolist()
    longest = getattr(env, "max_episode_steps", None)
    finished: list[list[EpisodeRow]] = [[] for _ in range(slots)]
    missing, time, began = sum(wanted), 0, [0] * slots
    act, carried = fitted(policy, env), Carried(policy) if carried is None else carried
    tensordict = carried.begin(env.reset())
    total: Tensor | float = 0.0  # then [slots, n]
    succeeded = torch.zeros(slots, dtype=torch.bool, device=env.device)
    has_success = False
    while missing:
        tensordict = act(tensordict)
        if must_be_finite:
            raise_on_non_finite_action(tensordict, time + 1)
        raise_on_illegal_action(tensordict)
        tensordict, following = env.step_and_maybe_reset(tensordict)
        time += 1
        if longest is not None and time - min(began) > longest:
            raise RuntimeError(
                f"An episode has run for more than env.max_episode_steps = {longest} steps without done."
            )
        total = total + tensordict.get(next_key(REWARD)).double().squeeze(-1)  # [slots, n, 1] -> [slots, n]
        success = tensordict.get(next_key(SUCCESS), None)
        if success is not None:
            has_success = True
            succeeded |= success.flatten(1).any(-1)
        done = tensordict.get(next_key(DONE)).flatten(1).any(-1)
        ended = done.nonzero().flatten()
        if len(ended):  # the numbers of all of them at once, since a GPU is waited for each time
            for slot, earned, won in zip(ended.tolist(), total[ended].tolist(), succeeded[ended].tolist()):
                if len(finished[slot]) < wanted[slot]:
                    finished[slot].append((earned, time - began[slot], won))
                    missing -= 1
                began[slot] = time
            total.masked_fill_(done.unsqueeze(-1), 0)
            succeeded.masked_fill_(done, False)
        tensordict = carried.onward(tensordict, following)
    return finished, has_success


def raise_on_non_finite_action(tensordict: TensorDictBase, step: int | None = None) -> None:
    """Check that actions ``[*B, n, a]``, or the scores ``("agents", "logits")`` of discrete ones, are numbers.

    Raises:
        NonFiniteActionError: with the first agent that has none, and the step, where it is known.
    """
    action = tensordict.get(ACTION)
    scores = action if action.is_floating_point() else tensordict.get(LOGITS, None)
    if scores is None:
        return
    bad = ~scores.isfinite() if scores is action else scores.isnan()  # an illegal action's score may be infinite
    if bad.any():
        *row, agent = bad.flatten(action.ndim - 1 if scores is action else action.ndim).any(-1).nonzero()[0].tolist()
        where = "" if step is None else f" at step {step}"
        raise NonFiniteActionError(
            f"The policy's action of agent {agent} in row {', '.join(map(str, row))} is not a number{where}: its "
            "parameters, or what it reads, are no longer finite. Evaluate an earlier checkpoint."
        )


def raise_on_illegal_action(tensordict: TensorDictBase) -> int:
    """Check discrete actions ``[*B, n]`` against ``("agents", "action_mask")`` ``[*B, n, A]`` where there is one.

    Returns:
        The number of actions checked: 0 without a mask.

    Raises:
        IllegalActionError: with the number of illegal actions and the first of them.
    """
    mask = tensordict.get(ACTION_MASK, None)
    if mask is None:
        return 0
    action = tensordict.get(ACTION)
    illegal = ~mask.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    if (alive := tensordict.get(AGENT_MASK, None)) is not None:
        illegal &= alive | mask.any(-1)  # whatever an agent does that is dead and allowed nothing
    if illegal.any():
        *row, agent = illegal.nonzero()[0].tolist()
        raise IllegalActionError(
            f"The policy proposed {int(illegal.sum())} illegal actions out of {action.numel()}; the first is action "
            f"{action[(*row, agent)].item()} of agent {agent} in row {row}. Make the policy read {ACTION_MASK}."
        )
    return action.numel()


def check_arguments(env: EnvBase, episodes: int, mode: str) -> None:
    """Raise where an evaluation could not be run as asked."""
    if mode not in EXPLORATION:
        raise ValueError(f'mode must be "mode" or "sample", got {mode!r}.')
    if len(env.batch_size) != 1:
        raise ValueError(
            f"evaluate needs an environment of batch size [num_envs], got {list(env.batch_size)}; use make_env."
        )
    if REWARD not in env.reward_keys:
        raise KeyError(f"The environment has no reward {REWARD}, only {env.reward_keys}; make it with make_env.")
