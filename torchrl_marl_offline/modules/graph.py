"""Coordination graphs: the team's value as a sum of payoffs of agents and of pairs."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import FEW
from torchrl_marl_offline.modules.local_critic import LocalCritic
from torchrl_marl_offline.modules.networks import StackedMLP, project_agents


class PairNetwork(nn.Module):
    """The mean over all pairs of agents of one network's output, the same for both orders of a pair.

    Args:
        in_features: width of one agent's input.
        n_agents: number of agents ``n``, at least 2; a one-hot agent id is appended to each input.
        num_heads: independent heads ``H``.
        **mlp: options of :class:`~torchrl_marl_offline.modules.StackedMLP`.

    Shape:
        ``[*B, n, in]`` to ``[H, B]``, all batch dimensions as one.
    """

    def __init__(self, in_features: int, n_agents: int, *, num_heads: int, **mlp) -> None:
        super().__init__()
        self.n_agents, self.in_features = n_agents, in_features
        self.mlp = StackedMLP(2 * (in_features + n_agents), 1, stack=(num_heads,), **mlp)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the network on both orders of every pair."""
        n, first = self.n_agents, self.mlp.layers[0]
        one, id_of_one, other, id_of_other = first.weight.split([self.in_features, n] * 2, -2)
        ones = project_agents(x, one, first.bias + id_of_one)  # [H, B, n, hidden]
        others = project_agents(x, other, id_of_other)
        # agent a meets a + 1, then a + 2, ...: every ordered pair once
        partners = torch.stack([others.roll(-shift, -2) for shift in range(1, n)], -3)  # [H, B, n - 1, n, hidden]
        payoffs = self.mlp.after_first_layer((ones.unsqueeze(-3) + partners).flatten(-4, -2))
        return payoffs.squeeze(-1).unflatten(-1, (-1, n * (n - 1))).mean(-1)


class GraphCritic(LocalCritic):
    r"""A deep coordination graph over all pairs of agents (DCG; Böhmer et al. 2020, arXiv:1910.00091).

    .. math::
        Q_{tot} = \frac{1}{n} \sum_a f_a(o_a, u_a) + \frac{1}{|E|} \sum_{a < b} f_{ab}(o_a, u_a, o_b, u_b), \qquad
        f_{ab} = \tfrac{1}{2} \big(g(a, b) + g(b, a)\big)

    or, with ``with_action=False``, the same of the observations alone. :math:`g` is one network for all pairs, which
    knows the agents by their ids. It is evaluated at given joint actions, so that no messages have to be passed: an
    actor proposes the actions, and no maximum over joint ones is asked for.

    What differs from the paper: payoffs take actions as inputs, continuous ones too, instead of giving a table of all
    pairs of actions; all pairs are edges; no low-rank approximation, and no term of the state.

    Shape:
        observation ``[*B, n, o]`` and action ``[*B, n]`` or ``[*B, n, a]`` to the team's ``[*B, H]``.
    """

    @checked
    def __init__(
        self,
        spec: TaskSpec,
        *,
        with_action: bool = True,
        num_heads: Annotated[int, FEW] = 2,
        share_params: bool = True,
        **network,
    ) -> None:
        super().__init__(spec, with_action=with_action, num_heads=num_heads, share_params=share_params, **network)
        several = spec.n_agents > 1
        self.pairs = PairNetwork(self.width, spec.n_agents, num_heads=num_heads, **network) if several else None

    def forward(self, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Return ``[*B, H]``."""
        x = self.inputs(observation, action)
        total = self.network(x).squeeze(-1).mean(-1)  # [H, *B, n, 1] -> [H, *B]
        if self.pairs is not None:
            total = total + self.pairs(x).reshape(total.shape)
        return total.movedim(0, -1)
