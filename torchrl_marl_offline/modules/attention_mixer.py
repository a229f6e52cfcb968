"""Qatten: local values weighted by attention of the state to the agents."""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor, nn

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import FEW, SIZE, WIDTHS
from torchrl_marl_offline.modules.mixers import StateConditionedMixer


class AttentionMixer(StateConditionedMixer):
    r"""Mix local values by multi-head attention (Qatten; Yang et al. 2020, arXiv:2002.03939).

    .. math::
        Q_{tot} = c(s) + \sum_h |w_h(s)| \sum_a \alpha_{h,a}(s, o)\, Q_a, \qquad
        \alpha_{h,\cdot} = \mathrm{softmax}_a\big(q_h(s)^\top k_h(o_a) / \sqrt{e}\big)

    The state asks, the agents' observations answer. The weights do not depend on the actions: at a state, this is a
    linear mixer whose weights follow the agents' observations.

    What differs from the paper: its keys are of each agent's part of the state, which most tasks do not tell apart; the
    hypernetworks normalize their hidden layer, as the recipe's mixer does; and there is no penalty on the attention's
    logits, which the released code adds to the loss.

    Args:
        n_agents: number of agents ``n``.
        state_size: width ``s`` of the state.
        observation_size: width ``o`` of an observation.
        attention_heads: heads ``h`` of the attention (the paper: 4).
        embed_size: width ``e`` of queries and keys (the paper: 32).
        hidden_size: width of the hypernetworks' hidden layer.
        monotonic: take absolute values of the heads' weights.
        layer_norm: layer normalization in the hypernetworks, before the ReLU.

    Shape:
        values ``[*B, n, H]``, state ``[*B, s]`` and observations ``[*B, n, o]`` to ``[*B, H]``.

    Examples:
        >>> mixer = AttentionMixer(n_agents=3, state_size=10, observation_size=4)
        >>> mixer(torch.zeros(5, 3, 2), torch.zeros(5, 10), torch.zeros(5, 3, 4)).shape
        torch.Size([5, 2])
    """

    @checked
    def __init__(
        self,
        n_agents: Annotated[int, SIZE],
        state_size: Annotated[int, SIZE],
        observation_size: Annotated[int, SIZE],
        *,
        attention_heads: Annotated[int, FEW] = 4,
        embed_size: Annotated[int, WIDTHS] = 32,
        hidden_size: Annotated[int, WIDTHS] = 128,
        monotonic: bool = True,
        layer_norm: bool = True,
    ) -> None:
        sizes = (attention_heads * embed_size, attention_heads, 1)
        super().__init__(n_agents, state_size, sizes, hidden_size=hidden_size, layer_norm=layer_norm)
        self.attention_heads, self.embed_size, self.monotonic = attention_heads, embed_size, monotonic
        self.keys = nn.Linear(observation_size, attention_heads * embed_size, bias=False)

    def weights(self, state: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Generate the agents' weights ``[*B, n, 1]``, summed over the heads, and ``c [*B, 1]``."""
        query, w, c = self.generate(state)
        w = w.abs() if self.monotonic else w
        shape = (self.attention_heads, self.embed_size)
        query = query.unflatten(-1, shape)  # [*B, h, e]
        key = self.keys(observation).unflatten(-1, shape)  # [*B, n, h, e]
        logits = (key * query.unsqueeze(-3)).sum(-1) / math.sqrt(self.embed_size)  # [*B, n, h]
        return (logits.softmax(-2) * w.unsqueeze(-2)).sum(-1, keepdim=True), c

    def mix(self, values: Tensor, state: Tensor, observation: Tensor) -> Tensor:
        """Mix without the shape checks of :meth:`forward`."""
        w, c = self.weights(state, observation)
        return (w * values).sum(-2) + c

    def credit(self, values: Tensor, state: Tensor, observation: Tensor) -> Tensor:
        r"""Return :math:`\partial Q_{tot} / \partial Q_a = \sum_h |w_h| \alpha_{h,a}` in the shape of ``values``."""
        return self.weights(state, observation)[0].expand_as(values)
