"""What a policy does in the logged states, and how likely it is to do what was logged."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.utils import set_exploration_type
from torchrl.objectives import LossModule

from torchrl_marl_offline.core.exploration import EXPLORATION, Mode
from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    IS_INIT,
    OBSERVATION,
    STATE,
    TRAJ_IDS,
    joined,
    next_key,
)
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.data.policy_fit import Carried, PolicyError, misfit, spec_of
from torchrl_marl_offline.evaluation.along_episodes import with_memory
from torchrl_marl_offline.evaluation.in_environments import (
    IllegalActionError,
    NonFiniteActionError,
    Policy,
    raise_on_illegal_action,
    raise_on_non_finite_action,
)
from torchrl_marl_offline.evaluation.offline.horizon import of_living
from torchrl_marl_offline.objectives.action_distributions import is_deterministic, is_discrete, log_prob_of, per_agent
from torchrl_marl_offline.training.run.saved_policies import SavedPolicy, load_policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchrl_marl_offline.core.layout import TaskSpec
    from torchrl_marl_offline.data import OfflineDataset

Candidate: TypeAlias = Policy | LossModule | SavedPolicy | str | Path
READ = (OBSERVATION, STATE, ACTION_MASK, AGENT_MASK)
BLOCK = 8192
DRAWN = 64
"""How often a policy with memory is asked in one state, to see that what it draws leaves no trace in its memory."""
_SIZES = ("observation_size", "action_size", "discrete", "n_agents")


class EvaluatedPolicy:
    """A policy under evaluation: loaded where a path was given, asked in evaluation mode, never changed.

    A policy with memory is asked with what it remembers of the logged observations, which :meth:`seen` puts into the
    rows of whole episodes once; a row is then a question for itself, whether the policy has memory or not.

    Args:
        name: in messages and tables.
        candidate: a module or callable that writes ``("agents", "action")``, a loss that has an ``actor_network``, what
            ``load_policy`` returned, or the path of a policy's file or of a run's folder.
        dataset: whose states it will be asked about.
        mode: ``"mode"``, its deterministic action, or ``"sample"``, draws from it.

    Attributes:
        read: the keys that it is asked with.

    Raises:
        PolicyError: it was made for other sizes than the data's, or for bounds beyond the task's (those of a policy of
            ``bounds="data"`` lie within), its answer is no action of the task, or it remembers what it draws, which is
            not what was logged.
        TypeError: it is no policy.
    """

    def __init__(self, name: str, candidate: Candidate, dataset: OfflineDataset, mode: Mode) -> None:
        self.name, self.mode, self.spec = name, mode, dataset.spec
        loaded = load_policy(candidate) if isinstance(candidate, str | Path) else candidate
        made_for: TaskSpec | None = loaded.spec if isinstance(loaded, SavedPolicy) else spec_of(loaded)
        self._loss = loaded if isinstance(loaded, LossModule) else None
        self.task = None if made_for is None else made_for.task
        self.module: Any = loaded.policy if isinstance(loaded, SavedPolicy) else loaded
        if self._loss is not None:
            self.module = getattr(loaded, "actor_network", None)
            made_for = spec_of(self.module)
            self.task = None if made_for is None else made_for.task
            if self.module is None:
                raise TypeError(f"{name} is a {type(loaded).__name__} without an actor; give the policy itself.")
        if not callable(self.module):
            raise TypeError(f"{name} is a {type(loaded).__name__}, no policy; give a module, a file or a run's folder.")
        if made_for is not None and not _can_act_in(made_for, dataset.task_spec):
            raise PolicyError(misfit(made_for, dataset.task_spec).replace("the environment has", "the data has"))
        self._own_spec = self.spec if made_for is None else made_for
        self._carried = Carried(self.module)
        self.read = (*READ, IS_INIT, *self._carried.states) if self.has_memory else READ
        self._try(dataset.data[:1])

    def _try(self, row: TensorDictBase) -> None:
        """Ask about one row, so that what does not fit is said before anything is trained."""
        try:
            first = self.seen(row)
            action = self.actions(first, samples=1)
            if self.has_memory:
                self._check_memory(first)
        except (PolicyError, NonFiniteActionError, IllegalActionError):
            raise
        except (RuntimeError, IndexError, KeyError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PolicyError(
                f"{self.name} does not fit the data, whose observations are {list(row.get(OBSERVATION).shape[1:])} "
                f"(agents, size): {reason}; give a policy that was made for this task."
            ) from error
        wanted = row.get(ACTION)
        if action.shape[2:] != wanted.shape[1:] or action.dtype.is_floating_point != wanted.dtype.is_floating_point:
            raise PolicyError(
                f"{self.name} writes actions {list(action.shape[2:])} of {action.dtype}, the data has "
                f"{list(wanted.shape[1:])} of {wanted.dtype}; give a policy that was made for this task."
            )

    def _check_memory(self, first: TensorDictBase) -> None:
        """Refuse memory of what was drawn: the policy would remember other actions than those that were logged.

        Raises:
            PolicyError: many draws in the same state leave different memories.
        """
        with self.ready(), set_exploration_type(EXPLORATION["sample"]):
            torch.manual_seed(0)
            answer = self.module(_plain(first.select(*self.read, strict=False).expand(DRAWN).contiguous()))
        for key in self._carried.states:
            memory = answer.get(next_key(key))
            if not torch.allclose(memory, memory[:1].expand_as(memory), rtol=1e-4, atol=1e-4):
                raise PolicyError(
                    f"{self.name} remembers what it draws, at {joined(key)}, and the logged team did something else; "
                    "give a policy that remembers observations alone."
                )

    @property
    def has_memory(self) -> bool:
        """Whether it reads ``"is_init"``, where episodes begin, and what it remembers of them."""
        return self._carried.needs_beginnings

    def seen(self, rows: TensorDictBase) -> TensorDictBase:
        """Return what it reads in rows ``[T]``, and, under ``"next"``, in what follows each of them.

        Args:
            rows: of a policy with memory whole episodes, one after another; of any other as they come.
        """
        states = rows.select(*READ, TRAJ_IDS, *map(next_key, READ), strict=False)
        if not self.has_memory:
            return states
        with self.ready():
            torch.manual_seed(0)
            found = with_memory(self.module, self._carried.states, _plain(states))
        following = found.get("next", None)
        if following is not None:
            following.set(IS_INIT, torch.zeros_like(found.get(IS_INIT)))
        return found

    @property
    def is_random(self) -> bool:
        """Whether its answer is a draw; of a policy that draws nothing all are the same."""
        return self.mode == "sample"

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within the block ``module`` may be asked: in evaluation, by its mode, without gradients or a trace."""
        with (
            preserved_rng(),
            torch.no_grad(),
            set_exploration_type(EXPLORATION[self.mode]),
            evaluation_mode(self.module),
        ):
            if self._loss is None:
                yield
            else:
                with self._loss.actor_network_params.to_module(self.module):
                    yield

    def actions(self, states: TensorDictBase, *, samples: int, seed: int = 0) -> Tensor:
        """Return what it does in states ``[T]`` of :meth:`seen`: ``[T, K, n, a]``, of a discrete task ``[T, K, n]``.

        Actions of dead agents are 0, as in :class:`~.horizon.EvaluationRows`.

        ``K`` is ``samples`` of a policy that draws, and otherwise one action, ``samples`` times without new memory.

        Raises:
            IllegalActionError: an action that the mask forbids.
            NonFiniteActionError: an action that is no number.
        """
        states = states.select(*self.read, strict=False)
        draws = samples if self.is_random else 1
        with self.ready():
            torch.manual_seed(seed)
            found = torch.stack([self._once(states) for _ in range(draws)], 1)
        if draws > 1 and (found == found[:, :1]).all():
            found = found[:, :1]
        return found.expand(-1, samples, *found.shape[2:])

    def _once(self, states: TensorDictBase) -> Tensor:
        found = []
        for start in range(0, len(states), BLOCK):
            answer = self.checked_answer(_plain(states[start : start + BLOCK]))
            found.append(of_living(answer.get(ACTION), answer.get(AGENT_MASK, None)))
        return torch.cat(found)

    def checked_answer(self, states: TensorDictBase) -> TensorDictBase:
        """Return what it writes into states ``[k]``, within :meth:`ready`; errors as of :meth:`actions`."""
        answer = self.module(states)
        self._check_answer(answer)
        try:
            raise_on_non_finite_action(answer)
            raise_on_illegal_action(answer)
        except (NonFiniteActionError, IllegalActionError) as error:
            raise type(error)(f"{self.name}: {error}") from None
        return answer

    def _check_answer(self, answer: Any) -> None:
        """Refuse what is no action of the task at all.

        Raises:
            PolicyError: there is no action, or a discrete one is no index.
        """
        action = answer.get(ACTION, None) if isinstance(answer, TensorDictBase) else None
        if action is None:
            what = "writes no ('agents', 'action')" if isinstance(answer, TensorDictBase) else "returns no tensordict"
            raise PolicyError(f"{self.name} {what}; give a function that writes the action and returns the tensordict.")
        if self.spec.discrete and not action.is_floating_point():
            bad = (action < 0) | (action >= self.spec.action_size)
            if bad.any():
                raise PolicyError(
                    f"{self.name} takes action {action[bad][0].item()}, and the data has 0 to "
                    f"{self.spec.action_size - 1}; give a policy that was made for this task."
                )

    def answer(self, states: TensorDictBase) -> TensorDictBase:
        """Return all that it writes in states ``[T]``, scores and locations too, with what it was given."""
        with self.ready():
            return self.module(_plain(states.select(*self.read, strict=False)))

    @property
    def in_keys(self) -> list[NestedKey]:
        """What it says that it reads, and nothing where it does not say."""
        return list(getattr(self.module, "in_keys", ()))

    @property
    def out_keys(self) -> list[NestedKey]:
        """What it says that it writes."""
        return list(getattr(self.module, "out_keys", ()))

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act as a policy does in an environment, by the exploration type in force."""
        with evaluation_mode(self.module):
            if self._loss is None:
                return self.module(tensordict)
            with self._loss.actor_network_params.to_module(self.module):
                return self.module(tensordict)

    def log_probs(self, rows: TensorDictBase) -> Tensor:
        """Return how likely each agent was to do what was logged, ``[T, n]`` logarithms; a single action: 0 or -inf.

        Of a policy with memory, the rows are whole episodes, whose observations it remembers. What lies outside the
        policy's own bounds it never does: -inf.

        Raises:
            ValueError: a continuous policy that is deterministic, or has no density.
        """
        logged, rows = rows.get(ACTION), self.seen(rows)
        if self.spec.discrete and not self.is_random:
            chosen = self.actions(rows, samples=1).squeeze(1)
            return torch.where(chosen == logged, 0.0, -torch.inf).double()
        if not self.is_random:
            raise ValueError(
                f"{self.name} takes one continuous action, which has no density: importance weights need mode='sample' "
                "and a stochastic policy; evaluate it by 'fqe'."
            )
        log_prob = self.densities(rows, logged)
        if self.spec.discrete:
            return log_prob
        low, high = self._own_spec.bounds_with_slack(logged)
        return log_prob.masked_fill(((logged < low) | (logged > high)).any(-1), -torch.inf)

    def densities(self, states: TensorDictBase, actions: Tensor) -> Tensor:
        """Return the logarithms ``[T, n]``, float64, of its density at actions in states of :meth:`seen`.

        Raises:
            ValueError: it is deterministic, or has no density.
        """
        get_dist = getattr(self.module, "get_dist", None)
        if get_dist is None:
            raise ValueError(f"{self.name} gives no log-probabilities (it has no get_dist); evaluate it by 'fqe'.")
        found = []
        with self.ready():
            for start in range(0, len(states), BLOCK):
                part = slice(start, start + BLOCK)
                policy = per_agent(get_dist(_plain(states[part].select(*self.read, strict=False))))
                if is_deterministic(policy) and not is_discrete(policy):
                    raise ValueError(f"{self.name} is deterministic, which has no density; evaluate it by 'fqe'.")
                try:
                    found.append(log_prob_of(policy, actions[part], rule=self.name))
                except NotImplementedError as error:
                    raise ValueError(f"{self.name} has samples but no density; evaluate it by 'fqe'.") from error
        return torch.cat(found).double()


def _can_act_in(made_for: TaskSpec, task: TaskSpec) -> bool:
    """Say whether a policy's sizes are a task's, and its bounds lie within the task's, as those of data do."""
    same = all(getattr(made_for, size) == getattr(task, size) for size in _SIZES)
    return same and (task.discrete or made_for.keeps_within(task))


def _plain(states: TensorDictBase) -> TensorDict:
    """Return states as tensors of their own: a policy may write into what it is given."""
    return TensorDict({key: states.get(key) for key in states.keys(True, True)}, states.batch_size)


def as_policies(
    candidates: Mapping[str, Candidate] | Candidate, dataset: OfflineDataset, mode: Mode
) -> dict[str, EvaluatedPolicy]:
    """Return the candidates by name, each held against the data's sizes; a single one is named ``"policy"``.

    Raises:
        ValueError: there is none, or one is named ``"logged"``, as the data's own team.
    """
    given = dict(candidates) if isinstance(candidates, Mapping) else {"policy": candidates}
    if not given:
        raise ValueError("Give at least one policy to evaluate, as {'name': policy}.")
    if LOGGED in given:
        raise ValueError(f"{LOGGED!r} is the name of the data's own team; give the policy another.")
    return {name: EvaluatedPolicy(name, candidate, dataset, mode) for name, candidate in given.items()}


LOGGED = "logged"
"""Name of the team that recorded the data."""
