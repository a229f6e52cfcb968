"""QPLEX: a sum of local values, corrected by advantages that the joint action weighs."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import FEW, WIDTHS
from torchrl_marl_offline.modules.action_range import component_range
from torchrl_marl_offline.modules.batch_norm import BatchNorm
from torchrl_marl_offline.modules.local_critic import LocalCritic, encode_action
from torchrl_marl_offline.modules.mixers import StateConditionedMixer
from torchrl_marl_offline.modules.networks import AgentNetwork, StackedMLP, legal_or_all

TINY = 1e-10
"""Added to weights that must be positive."""


class GreedyCritic(nn.Module):
    r"""Local values of discrete actions, and their advantages over the best: :math:`Q_a - \max_u Q_a(o_a, u)`.

    The maximum is over the legal actions; an agent that has none, which is a dead or a padding one, is taken to have
    all. One pass of the network gives the values of all actions. The advantage passes a gradient to the action, not to
    the network: as in the paper, the maximum would else hinder learning (of ten runs on 2 × 2 tables, two then stayed
    at an average of two entries, and none without).

    Shape:
        observation ``[*B, n, o]``, action (see :func:`encode_action`) and, if the task has one, the mask of legal
        actions ``[*B, n, A]``, to values and advantages ``[*B, n, H]`` each.
    """

    @checked
    def __init__(
        self, spec: TaskSpec, *, num_heads: Annotated[int, FEW] = 2, batch_norm: bool = False, **network
    ) -> None:
        super().__init__()
        self.spec = spec
        observed, n = spec.observation_size, spec.n_agents
        values = AgentNetwork(observed, spec.action_size, n, num_heads=num_heads, **network)
        self.network = BatchNorm.before(values, n, observed, wanted=batch_norm)

    def forward(self, observation: Tensor, action: Tensor, action_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return values and advantages."""
        values = self.network(observation)  # [H, *B, n, A]
        code = encode_action(action, self.spec, values.dtype)
        constant = values.detach()
        best = constant
        if action_mask is not None:
            best = best.masked_fill(~legal_or_all(action_mask), -torch.inf)
        advantage = (constant * code).sum(-1) - best.amax(-1)
        return (values * code).sum(-1).movedim(0, -1), advantage.movedim(0, -1)


class DuelingCritic(nn.Module):
    r"""Local values of continuous actions, and their advantages below an upper bound by a network of its own.

    .. math:: Q_a(o_a, u_a) = V_a(o_a) - \mathrm{softplus}(g_a(o_a, u_a))

    No maximum over continuous actions can be had. The form keeps that no advantage is positive (Wang et al. 2016's
    dueling networks let their mean vanish instead), but not that the best one is zero: that the agents' best actions
    are together the team's best is then no longer sure, and policies should follow the team's value, as :class:`BRAC`
    and :class:`AWR` with the joint advantage do.

    Shape:
        observation ``[*B, n, o]`` and action ``[*B, n, a]`` to values and advantages ``[*B, n, H]`` each.
    """

    def __init__(self, spec: TaskSpec, **network) -> None:
        super().__init__()
        self.baseline = LocalCritic(spec, with_action=False, **network)
        self.shortfall = LocalCritic(spec, **network)

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and advantages."""
        advantage = -F.softplus(self.shortfall(observation, action))
        return self.baseline(observation) + advantage, advantage


class DuplexMixer(StateConditionedMixer):
    r"""The duplex dueling mixer of QPLEX (Wang et al. 2021, arXiv:2008.01062).

    .. math::
        Q_{tot} = \sum_a \big(w_a(s) V_a + b_a(s)\big) + \sum_a \lambda_a(s, u)\, w_a(s) A_a
        = \sum_a \big(w_a(s) Q_a + b_a(s)\big) + \sum_a \big(\lambda_a(s, u) - 1\big) w_a(s) A_a

    of advantages :math:`A_a = Q_a - V_a`, with :math:`w_a > 0` and
    :math:`\lambda_a = \sum_k \sigma(f_{k,a}(s, u))\, \sigma(g_{k,a}(s))\, |\nu_k(s)| > 0`. Where
    :math:`V_a = \max_u Q_a`, the agents' best actions are together the team's best, and any such team value can be
    expressed: :math:`\lambda` tells how much one action loses beside the others' (for continuous actions see
    :class:`DuelingCritic`). With :math:`\lambda = 1` this is a sum of :math:`w_a Q_a + b_a`.

    State values have no advantage: without action and advantages the mixer returns
    :math:`V_{tot} = \sum_a w_a(s) V_a + b_a(s)` of the values given.

    What differs from the paper: the hypernetworks have the recipe's hidden layer and normalization, and
    :math:`w, b, \lambda` are the same for all critic heads. As in the authors' code, :math:`w_a A_a` of the correction
    gets no gradient where a critic learns (:class:`OfflineMARLLoss` detaches the advantages, this module
    :math:`w`): only :math:`\lambda` learns from it. A policy follows the advantages through its action.

    Args:
        spec: the task's sizes.
        attention_heads: summands ``k`` of :math:`\lambda`.
        hidden_size: width of the hypernetworks' hidden layer.
        layer_norm: layer normalization in the hypernetworks.

    Shape:
        values ``[*B, n, H]`` and state ``[*B, s]``, of action values also the joint action (see
        :func:`encode_action`) and the advantages ``[*B, n, H]``, to ``[*B, H]``.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=10, action_size=2)
        >>> mixer, v, state = DuplexMixer(spec), torch.zeros(5, 3, 2), torch.zeros(5, 10)
        >>> action, advantage = torch.zeros(5, 3, 2), -torch.ones(5, 3, 2)
        >>> bool((mixer(v + advantage, state, action, advantage) < mixer(v, state)).all())
        True
    """

    @checked
    def __init__(
        self,
        spec: TaskSpec,
        *,
        attention_heads: Annotated[int, FEW] = 4,
        hidden_size: Annotated[int, WIDTHS] = 128,
        layer_norm: bool = True,
    ) -> None:
        n = spec.n_agents
        sizes = (n, n, attention_heads, attention_heads * n)
        super().__init__(n, spec.state_size, sizes, hidden_size=hidden_size, layer_norm=layer_norm)
        self.spec, self.attention_heads, self.shown = spec, attention_heads, component_range(spec)
        self.of_action = StackedMLP(
            spec.state_size + n * spec.action_size,
            attention_heads * n,
            (hidden_size,),
            activation="relu",
            layer_norm=layer_norm,
        )

    def importance(self, state: Tensor, action: Tensor, key: Tensor, attention: Tensor) -> Tensor:
        r"""Return :math:`\lambda` ``[*B, n, 1]``.

        Args:
            state: ``[*B, s]``.
            action: the joint action.
            key: what the state gives for each summand, ``[*B, k]``.
            attention: what it gives for each summand and agent, ``[*B, k * n]``.
        """
        joint = torch.cat([state, encode_action(action, self.spec, state.dtype, self.shown).flatten(-2)], -1)
        logits = self.of_action(joint.reshape(-1, joint.shape[-1])).reshape(attention.shape)
        share = (logits.sigmoid() * attention.sigmoid()).unflatten(-1, (self.attention_heads, self.n_agents))
        return (share * (key.abs() + TINY).unsqueeze(-1)).sum(-2).unsqueeze(-1)

    def mix(
        self, values: Tensor, state: Tensor, action: Tensor | None = None, advantage: Tensor | None = None
    ) -> Tensor:
        """Mix without the shape checks of :meth:`forward`."""
        if (action is None) != (advantage is None):
            raise ValueError(
                f"{type(self).__name__} wants the joint action and the advantages of action values, or neither for "
                "state values."
            )
        w, b, key, attention = self.generate(state)
        w = w.abs().unsqueeze(-1) + TINY
        total = (w * values + b.unsqueeze(-1)).sum(-2)
        if action is None:
            return total
        importance = self.importance(state, action, key, attention)
        # the authors' ``adv_q.detach()``, of which the loss does the advantages' part: policies follow them
        return total + ((importance - 1.0) * w.detach() * advantage).sum(-2)

    def credit(self, values: Tensor, state: Tensor, action: Tensor) -> Tensor:
        r"""Return :math:`\partial Q_{tot} / \partial Q_a = \lambda_a(s, u) w_a(s)`, V fixed, as ``values`` are."""
        w, _, key, attention = self.generate(state)
        w = w.abs().unsqueeze(-1) + TINY
        return (self.importance(state, action, key, attention) * w).expand_as(values)
