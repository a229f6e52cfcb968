"""Mixers: from the agents' local values and the global state to one team value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules.models.multiagent import Mixer

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import SIZE, WIDTHS
from torchrl_marl_offline.modules.networks import StackedLayerNorm, StackedLinear


class StateConditionedMixer(Mixer):
    """Base class of mixers whose weights are functions of the state: one two-layer network for each kind of weight.

    Args:
        n_agents: number of agents ``n``.
        state_size: width ``s`` of the state.
        sizes: how many numbers of each kind of weight the state gives.
        hidden_size: width of the hypernetworks' hidden layer.
        layer_norm: layer normalization in the hypernetworks, before the ReLU.
    """

    accepts_heads = True

    def __init__(
        self, n_agents: int, state_size: int, sizes: Sequence[int], *, hidden_size: int, layer_norm: bool
    ) -> None:
        super().__init__(needs_state=True, state_shape=(state_size,), n_agents=n_agents, device=None)
        # The hypernetworks read the same state, so they are the slices of one two-layer network.
        self.sizes, self.hidden_size = tuple(sizes), hidden_size
        self.first = StackedLinear(state_size, len(sizes) * hidden_size)
        self.norm = StackedLayerNorm(hidden_size, (len(sizes),)) if layer_norm else None
        self.last = nn.ModuleList(nn.Linear(hidden_size, size) for size in self.sizes)

    def forward(self, values: Tensor, state: Tensor, *more: Tensor) -> Tensor:
        """Return the team values ``[*B, H]`` of local values ``[*B, n, H]`` at states ``[*B, s]``.

        Args:
            values: local values.
            state: the global state.
            *more: what else the mixer reads.
        """
        fits = values.shape[-2] == self.n_agents and state.shape[-1:] == self.state_shape
        if not fits or values.shape[:-2] != state.shape[:-1]:
            raise ValueError(
                f"{type(self).__name__} wants values [*B, {self.n_agents}, heads] and state "
                f"[*B, {self.state_shape[0]}] of one batch shape, got {tuple(values.shape)} and {tuple(state.shape)}."
            )
        return self.mix(values, state, *more)

    def generate(self, state: Tensor) -> tuple[Tensor, ...]:
        """Return ``[*B, size]`` for each of the sizes."""
        batch = state.shape[:-1]
        hidden = self.first(state.reshape(-1, state.shape[-1])).view(-1, len(self.sizes), 1, self.hidden_size)
        if self.norm is not None:
            hidden = self.norm(hidden)  # [B, kinds, 1, hidden]
        hidden = F.relu(hidden)
        found = tuple(layer(h) for layer, h in zip(self.last, hidden.squeeze(-2).unbind(-2)))
        return found if len(batch) == 1 else tuple(each.view(*batch, -1) for each in found)


class HyperNetworkMixer(StateConditionedMixer):
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

    @checked
    def __init__(
        self,
        n_agents: Annotated[int, SIZE],
        state_size: Annotated[int, SIZE],
        *,
        embed_size: Annotated[int, WIDTHS] = 32,
        hidden_size: Annotated[int, WIDTHS] = 128,
        monotonic: bool = True,
        layer_norm: bool = True,
    ) -> None:
        sizes = (n_agents * embed_size, embed_size, embed_size, 1)
        super().__init__(n_agents, state_size, sizes, hidden_size=hidden_size, layer_norm=layer_norm)
        self.embed_size, self.monotonic = embed_size, monotonic

    def weights(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Generate ``W1 [*B, n, e]``, ``b1 [*B, 1, e]``, ``W2 [*B, e, 1]`` and ``b2 [*B, 1, 1]`` from the state."""
        w1, b1, w2, b2 = self.generate(state)
        if self.monotonic:
            w1, w2 = w1.abs(), w2.abs()
        return (
            w1.view(*w1.shape[:-1], self.n_agents, self.embed_size),
            b1.unsqueeze(-2),
            w2.unsqueeze(-1),
            b2.unsqueeze(-2),
        )

    def mix(self, values: Tensor, state: Tensor) -> Tensor:
        """Mix without the shape checks of :meth:`forward`."""
        w1, b1, w2, b2 = self.weights(state)
        product = torch.bmm if values.ndim == 3 else torch.matmul  # which adds views, here and backward
        hidden = F.elu(product(values.transpose(-1, -2), w1) + b1)  # [*B, H, e]
        return (product(hidden, w2) + b2).squeeze(-1)

    def credit(self, values: Tensor, state: Tensor) -> Tensor:
        r"""Return :math:`\partial Q_{tot} / \partial Q_a` at local values ``[*B, n, H]``, of their shape."""
        w1, b1, w2, _ = self.weights(state)
        inner = torch.matmul(values.transpose(-1, -2), w1) + b1
        slope = inner.clamp_max(0.0).exp()  # of ELU, [*B, H, e]
        return torch.matmul(w1, (slope * w2.transpose(-1, -2)).transpose(-1, -2))


class LinearMixer(StateConditionedMixer):
    r"""Mix local values linearly, with weights that are functions of the state.

    .. math:: Q_{tot} = \sum_a |w_a(s)|\, Q_a + b(s)

    The decomposition of ICQ (Yang et al. 2021), OMAC (Wang and Zhan 2023) and OMIGA (Wang et al. 2023). Mixing state
    values by the same module couples the two: :math:`Q_{tot} - V_{tot} = \sum_a |w_a(s)| (Q_a - V_a)`.

    Args:
        n_agents: number of agents ``n``.
        state_size: width ``s`` of the state.
        hidden_size: width of the hypernetworks' hidden layer.
        monotonic: take absolute values of the generated weights.
        layer_norm: layer normalization in the hypernetworks, before the ReLU.

    Shape:
        values ``[*B, n, H]`` and state ``[*B, s]`` to ``[*B, H]``.

    Examples:
        >>> mixer = LinearMixer(n_agents=3, state_size=10)
        >>> mixer(torch.zeros(5, 3, 2), torch.zeros(5, 10)).shape
        torch.Size([5, 2])
    """

    @checked
    def __init__(
        self,
        n_agents: Annotated[int, SIZE],
        state_size: Annotated[int, SIZE],
        *,
        hidden_size: Annotated[int, WIDTHS] = 128,
        monotonic: bool = True,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(n_agents, state_size, (n_agents, 1), hidden_size=hidden_size, layer_norm=layer_norm)
        self.monotonic = monotonic

    def weights(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Generate ``w [*B, n, 1]`` and ``b [*B, 1]`` from the state."""
        w, b = self.generate(state)
        return (w.abs() if self.monotonic else w).unsqueeze(-1), b

    def mix(self, values: Tensor, state: Tensor) -> Tensor:
        """Mix without the shape checks of :meth:`forward`."""
        w, b = self.weights(state)
        return (w * values).sum(-2) + b

    def credit(self, values: Tensor, state: Tensor) -> Tensor:
        r"""Return :math:`\partial Q_{tot} / \partial Q_a = |w_a(s)|` in the shape of ``values`` ``[*B, n, H]``."""
        return self.weights(state)[0].expand_as(values)


class SumMixer(Mixer):
    r"""Value decomposition network: :math:`Q_{tot} = \sum_a Q_a` (Sunehag et al. 2017).

    TorchRL's :class:`~torchrl.modules.VDNMixer`, for any number of critic heads.

    Shape:
        values ``[*B, n, H]`` to ``[*B, H]``.
    """

    accepts_heads = True

    @checked
    def __init__(self, n_agents: Annotated[int, SIZE]) -> None:
        super().__init__(needs_state=False, state_shape=(), n_agents=n_agents, device=None)

    def forward(self, values: Tensor) -> Tensor:
        """Sum ``[*B, n, H]`` over the agents."""
        return self.mix(values, None)

    def mix(self, values: Tensor, state: Tensor | None) -> Tensor:
        """Sum over the agents; the state is not looked at."""
        return values.sum(-2)

    def credit(self, values: Tensor) -> Tensor:
        r"""Return :math:`\partial Q_{tot} / \partial Q_a = 1` in the shape of ``values``."""
        return torch.ones_like(values)
