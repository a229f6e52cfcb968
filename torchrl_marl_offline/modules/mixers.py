"""Mixers: from the agents' local values and the global state to one team value."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules.models.multiagent import Mixer

from torchrl_marl_offline.modules.networks import StackedLayerNorm, StackedLinear


class HyperNetworkMixer(Mixer):
    r"""Mix local values through a network whose weights are functions of the state (Rashid et al. 2020).

    .. math:: Q_{tot} = |W_2(s)|^\top \mathrm{ELU}(|W_1(s)|^\top Q + b_1(s)) + b_2(s)

    With ``monotonic=True`` the absolute values make :math:`\partial Q_{tot} / \partial Q_a \ge 0`, so that the joint
    greedy action is found agent by agent; ``monotonic=False`` drops them. Interchangeable with TorchRL's
    :class:`~torchrl.modules.QMixer`, and, unlike it, accepts several critic heads at once, generating the weights
    only once for all of them.

    Args:
        n_agents: number of agents ``n``.
        state_size: width ``s`` of the state.
        embed_size: width of the mixing layer (the recipe: 32).
        hidden_size: width of the hypernetworks' hidden layer (the recipe: 128, then ReLU).
        monotonic: take absolute values of the generated weights.
        layer_norm: layer normalization in the hypernetworks, before the ReLU.

    Shape:
        values ``[*B, n, H]`` and state ``[*B, s]`` to ``[*B, H]``.

    Examples:
        >>> mixer = HyperNetworkMixer(n_agents=3, state_size=10)
        >>> mixer(torch.zeros(5, 3, 2), torch.zeros(5, 10)).shape
        torch.Size([5, 2])
    """

    accepts_heads = True

    def __init__(
        self,
        n_agents: int,
        state_size: int,
        *,
        embed_size: int = 32,
        hidden_size: int = 128,
        monotonic: bool = True,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(needs_state=True, state_shape=(state_size,), n_agents=n_agents, device=None)
        self.embed_size, self.monotonic = embed_size, monotonic
        # The four hypernetworks read the same state, so they are the slices of one two-layer network.
        self.sizes = (n_agents * embed_size, embed_size, embed_size, 1)
        self.first = StackedLinear(state_size, 4 * hidden_size)
        self.norm = StackedLayerNorm(hidden_size, (4,)) if layer_norm else None
        self.last = nn.ModuleList(nn.Linear(hidden_size, size) for size in self.sizes)

    def forward(self, values: Tensor, state: Tensor) -> Tensor:
        """Return the team values ``[*B, H]`` of local values ``[*B, n, H]`` at states ``[*B, s]``."""
        fits = values.shape[-2] == self.n_agents and state.shape[-1:] == self.state_shape
        if not fits or values.shape[:-2] != state.shape[:-1]:
            raise ValueError(
                f"HyperNetworkMixer wants values [*B, {self.n_agents}, heads] and state [*B, {self.state_shape[0]}] "
                f"of one batch shape, got {tuple(values.shape)} and {tuple(state.shape)}."
            )
        return self.mix(values, state)

    def weights(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Generate ``W1 [*B, n, e]``, ``b1 [*B, 1, e]``, ``W2 [*B, e, 1]`` and ``b2 [*B, 1, 1]`` from the state."""
        batch = state.shape[:-1]
        hidden = self.first(state.reshape(-1, state.shape[-1])).unflatten(-1, (4, 1, -1))  # [B, 4, 1, hidden]
        if self.norm is not None:
            hidden = self.norm(hidden)
        hidden = F.relu(hidden)
        w1, b1, w2, b2 = (layer(h) for layer, h in zip(self.last, hidden.squeeze(-2).unbind(-2)))
        if self.monotonic:
            w1, w2 = w1.abs(), w2.abs()
        w1 = w1.view(*batch, self.n_agents, self.embed_size)
        return w1, b1.view(*batch, 1, self.embed_size), w2.view(*batch, self.embed_size, 1), b2.view(*batch, 1, 1)

    def mix(self, values: Tensor, state: Tensor) -> Tensor:
        """Mix without the shape checks of :meth:`forward`."""
        w1, b1, w2, b2 = self.weights(state)
        hidden = F.elu(torch.matmul(values.transpose(-1, -2), w1) + b1)  # [*B, H, e]
        return (torch.matmul(hidden, w2) + b2).squeeze(-1)


class SumMixer(Mixer):
    r"""Value decomposition network: :math:`Q_{tot} = \sum_a Q_a` (Sunehag et al. 2017).

    TorchRL's :class:`~torchrl.modules.VDNMixer`, for any number of critic heads.

    Shape:
        values ``[*B, n, H]`` to ``[*B, H]``.
    """

    accepts_heads = True

    def __init__(self, n_agents: int) -> None:
        super().__init__(needs_state=False, state_shape=(), n_agents=n_agents, device=None)

    def forward(self, values: Tensor) -> Tensor:
        """Sum ``[*B, n, H]`` over the agents."""
        return self.mix(values, None)

    def mix(self, values: Tensor, state: Tensor | None) -> Tensor:
        """Sum over the agents; the state is not looked at."""
        return values.sum(-2)
