"""The one thing that a rule sees: the rows of a step, what the networks say of them, and the rule's coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.distributions import Distribution

from torchrl_marl_offline.core.layout import EPISODE_ENDS
from torchrl_marl_offline.core.masked_mean import masked_mean
from torchrl_marl_offline.modules.networks import legal_or_all, one_hot
from torchrl_marl_offline.objectives.action_distributions import is_discrete, mode_of
from torchrl_marl_offline.objectives.candidates import every_action, repeated
from torchrl_marl_offline.objectives.team import TeamNetworks, Values


class Batch:
    """The rows of a step, what the loss's networks say of them (each at most once), and the rule's coefficients.

    ``[*B]`` is the batch size, ``n`` the number of agents, ``k`` is 1 where the critic has a team value and ``n`` where
    every agent is on its own, ``H`` the number of critic heads.

    Args:
        networks: of the loss.
        tensordict: the rows, ``[*B]``.

    Attributes:
        action: what the data has: ``[*B, n, a]``, of a discrete task ``[*B, n]``.
        live: the critic at that action.
        target: the target critic at that action, without gradient.
        state: the state-value network; local values go through the target mixer.
        policy: the agents' action distribution.
        credit: what each agent's value counts for the team's, ``[*B, n, 1]``, without gradient.
    """

    def __init__(self, networks: TeamNetworks, tensordict: TensorDictBase) -> None:
        self.networks, self.tensordict = networks, tensordict
        # what is kept serves all terms, also where a rule first asks for it within torch.no_grad()
        self._is_differentiated = torch.is_grad_enabled()
        # functools.cached_property holds a lock, which torch.compile cannot trace
        self._live: Values | None = None
        self._target: Values | None = None
        self._state: Values | None = None
        self._policy: Distribution | None = None
        self._credit: Tensor | None = None
        self._rows: Tensor | Literal[False] | None = False

    # ----------------------------------------------------------------- what the data has

    def get(self, key: NestedKey) -> Tensor | None:
        """Return an entry of the rows, or None."""
        return self.tensordict.get(key, None)

    @property
    def action(self) -> Tensor:
        """What the data has: ``[*B, n, a]``, of a discrete task ``[*B, n]``."""
        action = self.tensordict.get(self.networks.loss.tensor_keys.action, None)
        if action is None:
            raise ValueError(
                "The rows have no action; a rule that asks the next one declares needs_next_action = True."
            )
        return action

    def action_like(self, like: Tensor) -> Tensor:
        """Return the recorded joint action ``[*B, n, a]``; of a discrete task one-hot, in the dtype of ``like``."""
        recorded = self.action
        return recorded if recorded.is_floating_point() else one_hot(recorded, like.shape[-1], like.dtype)

    @property
    def alive(self) -> Tensor | None:
        """Which agents are there, ``[*B, n]``; None for all."""
        return self.tensordict.get(self.networks.loss.tensor_keys.agent_mask, None)

    def of_living(self, action: Tensor, samples: int = 0) -> Tensor:
        """Return a joint action in which agents that are not there do nothing, as in the rows: their action is 0.

        A policy does not act for them, so nothing that is asked at its action, a target or an ascent, is of their
        part of it.

        Args:
            action: ``[*B, n, a]``; of a discrete task indices ``[*B, n]`` or codes ``[*B, n, A]``.
            samples: dimensions of samples between the batch's and the agents'.
        """
        alive = self.alive
        if alive is None:
            return action
        idle = torch.zeros_like(action)
        if action.is_floating_point() and self._has_codes:
            idle[..., 0] = 1  # the code of the action 0
        ones = (1,) * (action.ndim - len(self.tensordict.batch_size) - samples - 1)
        batch = self.tensordict.batch_size
        return torch.where(alive.reshape(*batch, *(1,) * samples, alive.shape[-1], *ones), action, idle)

    @property
    def _has_codes(self) -> bool:
        """Say whether floating point actions are codes of discrete ones: by the rows' action, else by the policy."""
        recorded = self.tensordict.get(self.networks.loss.tensor_keys.action, None)
        if recorded is not None:
            return not recorded.is_floating_point()
        return self._policy is not None and is_discrete(self._policy)

    @property
    def has_next_action(self) -> Tensor | None:
        """Whether the next action was recorded, ``[*B]``; None for everywhere."""
        known = self.tensordict.get(self.networks.loss.tensor_keys.has_next_action, None)
        return None if known is None else known.reshape(self.tensordict.batch_size)

    @property
    def action_mask(self) -> Tensor | None:
        """Which actions of a discrete task are legal, ``[*B, n, A]``; None for all."""
        return self.tensordict.get(self.networks.loss.tensor_keys.action_mask, None)

    def legal(self, like: Tensor) -> Tensor:
        """Return which of every action's values ``[*B, A, n, ...]`` are of legal actions, broadcastable to them.

        An agent without any legal action, which is a dead or a padding one, is taken to have all.
        """
        mask = self.action_mask
        if mask is None:
            return torch.ones((), dtype=torch.bool, device=like.device)
        mask = legal_or_all(mask).transpose(-1, -2)  # [*B, n, A] -> [*B, A, n]
        return mask.reshape(*mask.shape, *(1,) * (like.ndim - mask.ndim))

    def terminated(self, like: Tensor | None = None) -> Tensor:
        """Return where nothing is bootstrapped, bool of the shape of ``like``, ``[*B, k]``.

        The task has terminated, or, where each agent has a value of its own, the agent is dead or gone in the next
        state: its rows from there on do not count, so nothing trains the value that would stand there. A team's value
        goes on until its episode ends, whoever died. Without ``like``: where the task has terminated, ``[*B]``.

        In a loss that takes every end of an episode for that (``set_keys(terminated="done")``), the last row of a slice
        is none, though it is done.
        """
        keys = self.networks.loss.tensor_keys
        ended = self.tensordict.get(("next", keys.terminated))
        if unravel_key(keys.terminated) == unravel_key(keys.done):
            ends = self.tensordict.get(EPISODE_ENDS, None)
            ended = ended if ends is None else ends.reshape(ended.shape)
        if like is None:
            return ended.squeeze(-1)
        ended = ended.expand_as(like)  # [*B, 1] -> [*B, k]
        living = self.tensordict.get(("next", keys.agent_mask), None)
        return ended if living is None or not _has_agents(like, living) else ended | ~living

    # ------------------------------------------------------------------------ what counts

    @property
    def rows(self) -> Tensor | None:
        """Which rows count, ``[*B]``; None for all."""
        if self._rows is False:
            mask = None
            for key in self.networks.loss._loss_mask_keys():
                entry = self.tensordict.get(key, None)
                if entry is not None:
                    entry = entry.reshape(self.tensordict.batch_size)
                    mask = entry if mask is None else mask & entry
            self._rows = mask
        return self._rows

    def counts(self, like: Tensor) -> Tensor | None:
        """Return what counts of ``like`` ``[*B, k]``: rows that count, and in them, agents that do (None: all).

        For a team signal (``k = 1``) agents do not matter.
        """
        rows, agents = self.rows, self.alive
        mask = None if rows is None else rows.unsqueeze(-1).expand_as(like)
        if agents is not None and _has_agents(like, agents):
            mask = agents if mask is None else mask & agents
        return mask

    def counts_of_values(self, like: Tensor) -> Tensor | None:
        """Return what counts of a term ``[*B, n]`` for local state values (None: all).

        Where these are mixed into a team's value, a dead agent's has its share in it, so it is trained too.
        """
        if not self.is_team:
            return self.counts(like)
        return None if self.rows is None else self.rows.unsqueeze(-1).expand_as(like)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of ``x`` ``[*B, k]`` over what counts, without gradient: a metric."""
        return masked_mean(x.detach(), self.counts(x))

    def averaged(self, elements: Tensor) -> Tensor:
        """Average ``[*B, k]`` over the agents that are there."""
        agents = self.alive
        if agents is None or elements.shape[-1] != agents.shape[-1]:
            return elements.mean(-1)
        return torch.where(agents, elements, torch.zeros_like(elements)).sum(-1) / agents.sum(-1).clamp_min(1)

    def coefficient(self, name: str) -> Tensor:
        """Return a rule's coefficient, as it is scheduled, or differs between members of a population."""
        found = self.networks.loss._buffers.get(name)
        if found is None:
            known = ", ".join(sorted(self.networks.loss._coefficients)) or "none"
            raise ValueError(f"There is no coefficient {name!r}; the rules' coefficients() name {known}.")
        return found

    # ----------------------------------------------------------------- what the networks say

    @property
    def is_team(self) -> bool:
        """Whether the critic has a team value; otherwise every agent learns for itself."""
        return self.networks.is_team

    @property
    def is_central(self) -> bool:
        """Whether the critic has nothing but a team value."""
        return self.networks.is_central

    @property
    def has_critic(self) -> bool:
        """Whether the loss has a critic."""
        return self.networks.critic is not None

    @property
    def behaviour_model(self) -> TensorDictModuleBase | None:
        """The model of the data's actions."""
        return self.networks.behaviour_model

    @property
    def policy(self) -> Distribution:
        """The agents' action distribution."""
        if self._policy is None:
            with torch.set_grad_enabled(self._is_differentiated):
                self._policy = self.networks.policy(self.tensordict)
        return self._policy

    @property
    def live(self) -> Values:
        """The critic at the data's action."""
        if self._live is None:
            with self._graph_if_trained():
                self._live = self.networks.action_value(self.tensordict, self.action)
        return self._live

    @property
    def target(self) -> Values:
        """The target critic at the data's action, without gradient."""
        if self._target is None:
            self._evaluate_target_and_state()
        return self._target

    @property
    def state(self) -> Values:
        """The state-value network; local values go through the target mixer."""
        if self._state is None:
            self._evaluate_target_and_state()
        return self._state

    def _evaluate_target_and_state(self) -> None:
        with self._graph_if_trained():
            self._target, self._state = self.networks.target_and_state_value(self.tensordict, self.action)

    def _graph_if_trained(self) -> torch.set_grad_enabled:
        """Build no graph for values that no term trains, as in a loss with an actor term alone."""
        return torch.set_grad_enabled(self._is_differentiated and self.networks.loss.value_learning is not None)

    def q(self, action: Tensor, *, target: bool = False, detach: bool = False) -> Values:
        """Evaluate the critic and the mixer at ``action``, of agents that are there; see :meth:`of_living`.

        Args:
            action: as in the layout, or one-hot ``[*B, n, A]`` for a discrete task.
            target: use the target networks.
            detach: keep the gradient from the critic's parameters (not from the action).
        """
        return self.networks.action_value(self.tensordict, self.of_living(action), target=target, detach=detach)

    def candidates(self, actions: Tensor, *, team: bool = False, target: bool = False, detach: bool = False) -> Tensor:
        """Evaluate the critic at ``K`` actions of every agent.

        Each agent's own value where the critic has local ones. A centralized critic, and with ``team`` any critic of a
        team, values the team with one agent's action replaced and the other agents' as recorded.

        Args:
            actions: ``[*B, K, n, a]``; one-hot for a discrete task.
            team: ask for the team's value also where there are local ones.
            target: use the target networks.
            detach: keep the gradient from the critic's parameters (not from the actions).

        Returns:
            ``[*B, K, n, H]``.
        """
        actions = self.of_living(actions, 1)
        if not (self.is_central or (team and self.is_team)):
            return self._valued(actions, 1, mixed=False, target=target, detach=detach)
        recorded = self.action_like(actions)
        own = torch.eye(actions.shape[-2], dtype=torch.bool, device=actions.device).unsqueeze(-1)
        joint = torch.where(own, actions.unsqueeze(-3), recorded.unsqueeze(-3).unsqueeze(-3))  # [*B, K, n, n, a]
        return self._valued(joint, 2, mixed=True, target=target, detach=detach).squeeze(-2)  # [*B, K, n, 1, H]

    def joint_candidates(self, actions: Tensor, *, target: bool = False) -> Tensor:
        """Evaluate the critic and the mixer at ``K`` joint actions, of agents that are there; see :meth:`of_living`.

        Args:
            actions: ``[*B, K, n, a]``; of a discrete task one-hot, or indices ``[*B, K, n]``.
            target: use the target networks.

        Returns:
            ``[*B, K, k, H]``.
        """
        return self._valued(self.of_living(actions, 1), 1, mixed=True, target=target, detach=False)

    def _valued(self, actions: Tensor, samples: int, *, mixed: bool, target: bool, detach: bool) -> Tensor:
        """Evaluate the critic, alone or with its mixer, at samples in so many dimensions behind the batch's.

        Networks with memory take the last dimension of the batch for time. Samples lie before it, unless it is known
        that every row is for itself.
        """
        networks, batch = self.networks, self.tensordict.ndim
        counts = actions.shape[batch : batch + samples]
        behind, front = tuple(range(batch, batch + samples)), tuple(range(samples))
        first = not networks.rows_are_independent
        actions = actions.movedim(behind, front) if first else actions
        keys = networks.keys_of_values(self.tensordict, target=target)
        rows = repeated(self.tensordict, keys, *counts, first=first)
        if mixed:
            values = networks.action_value(rows, actions, target=target, detach=detach).total
        else:
            values = networks.critic_outputs(rows, actions, target=target, detach=detach)[0]
        return values.movedim(front, behind) if first else values

    def behaviour(
        self, *, module: str | None = None, detach: bool = False, **given: Tensor
    ) -> Mapping[NestedKey, Tensor]:
        """Evaluate the model of the data's actions.

        Args:
            module: the one to evaluate of a :class:`~tensordict.nn.TensorDictSequential` of named modules.
            detach: keep the gradient from its parameters.
            **given: inputs in place of those of the rows, by the key's parts joined with a dot.
        """
        return self.networks.behaviour(self.tensordict, module=module, detach=detach, **given)

    @property
    def credit(self) -> Tensor:
        """What each agent's value counts for the team's, at the smaller head's local values: ``[*B, n, 1]``."""
        if self._credit is None:
            local = (self.live if self.networks.value is None else self.target).local_min.detach()
            self._credit = self.networks.credit(self.tensordict, local)
        return self._credit

    def advantage(
        self, kind: Literal["local", "joint", "weighted"], *, expected: bool = False, online: bool = False
    ) -> Tensor:
        """Return the data's action's value above that of the state, ``[*B, n]`` (or ``[*B, 1]``), without gradient.

        Args:
            kind: see :class:`AWR`.
            online: with a state-value network, of the critic that is trained, not of its target.
            expected: without a state-value network, subtract the mean over a discrete policy's actions.
        """
        if self.networks.value is not None:
            action, state = self.live if online else self.target, self.state
        else:
            action = self.live
            with torch.no_grad():
                if expected and action.local is not None and is_discrete(self.policy):
                    state = self.networks.mixed(self.tensordict, self._expected(), target=False)
                else:
                    state = self.q(mode_of(self.policy))
        if kind == "joint" or action.local is None or state.local is None:
            return (action.total_min - state.total_min).squeeze(-1).detach()
        advantage = (action.local_min - state.local_min).detach()
        return (advantage * self.credit if kind == "weighted" else advantage).squeeze(-1)

    def _expected(self) -> Tensor:
        r"""Return :math:`\sum_a \pi(a | o) Q(o, a)` of every agent, by the minimum head, ``[*B, n, 1]``."""
        chances = self.policy.probs
        values = self.candidates(every_action(chances)).amin(-1)  # [*B, A, n]
        return (chances.transpose(-1, -2) * values).sum(-2).unsqueeze(-1)

    # --------------------------------------------------------------------- batches of this one

    def with_action(self, action: Tensor) -> Batch:
        """Return these rows with another joint action in the place of the recorded one."""
        return type(self)(self.networks, self.tensordict.copy().set(self.networks.action_key, action))

    def repeated(self, keys: Sequence[NestedKey], count: int) -> Batch:
        """Return some entries of each row ``count`` times, ``[*B, count]``."""
        return Batch(self.networks, repeated(self.tensordict, keys, count))


class Following(Batch):
    """The next states of a batch's rows; its action is the data's next one.

    Attributes:
        state: the state-value network, through the target mixer.
        target_state: the same of the target of the state-value network.
    """

    @property
    def state(self) -> Values:
        """The state-value network; local values go through the target mixer."""
        if self._state is None:
            self._state = self.networks.state_value(self.tensordict)
        return self._state

    @property
    def target_state(self) -> Values:
        """The target of the state-value network."""
        return self.networks.state_value(self.tensordict, target=True)


def _has_agents(like: Tensor, agents: Tensor) -> bool:
    """Whether ``like`` ``[*B, k]`` has an entry for each agent of a mask ``[*B, n]``, and not one for their team."""
    return like.shape[-1] > 1 or agents.shape[-1] == 1
