"""Multi-layer perceptrons whose weights carry leading stack dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, repeat
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import FEW, NON_NEGATIVE, POSITIVE, SIZE, WIDTHS

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "elu": F.elu, "tanh": torch.tanh, "silu": F.silu}


def one_hot(index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Encode ``[*B]`` indices as ``[*B, size]``.

    :func:`torch.nn.functional.one_hot` looks at the values, which a traced function has none of.
    """
    return (index.unsqueeze(-1) == torch.arange(size, device=index.device)).to(dtype)


def mask_logits(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return logits ``[*B, A]`` that are lowest, but finite, where the mask is false."""
    return logits if mask is None else logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


class StackedLinear(nn.Module):
    """A stack of independent linear layers as one batched matrix product.

    Args:
        in_features: input width.
        out_features: output width.
        stack: leading dimensions of the weights, for instance ``(2,)`` for two critic heads or
            ``(2, n)`` for two heads and unshared agents. Empty: one ordinary linear layer.

    Shape:
        input ``[*stack, rows, in]`` or broadcastable to it, output ``[*stack, rows, out]``; the weight is
        ``[*stack, in, out]`` and the bias ``[*stack, 1, out]``.
    """

    @checked
    def __init__(
        self,
        in_features: Annotated[int, SIZE],
        out_features: Annotated[int, SIZE],
        stack: Annotated[Sequence[int], SIZE] = (),
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.stack = in_features, out_features, tuple(stack)
        self.weight = nn.Parameter(torch.empty(*self.stack, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(*self.stack, 1, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases from U(-1/sqrt(in), 1/sqrt(in)), as :class:`torch.nn.Linear` does."""
        bound = 1.0 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*stack, rows, in]`` (or broadcastable) to ``[*stack, rows, out]``."""
        if not self.stack:
            if x.ndim == 2:
                return torch.addmm(self.bias, x, self.weight)
            return torch.matmul(x, self.weight) + self.bias.squeeze(-2)
        if x.shape[:-2] != self.stack:
            x = x.expand(*self.stack, *x.shape[-2:])
        if len(self.stack) == 1:
            return torch.baddbmm(self.bias, x, self.weight)
        return torch.matmul(x, self.weight) + self.bias

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        return f"stack={self.stack}, in={self.in_features}, out={self.out_features}"


class StackedMLP(nn.Module):
    """A stack of independent multi-layer perceptrons, evaluated together.

    Every hidden layer is linear, activation, layer normalization, in this order (the recipe's network,
    Lee et al. 2026, appendix D: four hidden layers of 512, layer normalization on all critic layers).

    Args:
        in_features: input width.
        out_features: output width.
        hidden: widths of the hidden layers.
        stack: leading dimensions of every weight; see :class:`StackedLinear`.
        activation: one of ``gelu``, ``relu``, ``elu``, ``tanh``, ``silu``.
        layer_norm: normalize after each activation, with a scale and a shift of their own per stack entry.
        final_scale: the last layer's weights and biases are multiplied by it at initialization.

    Shape:
        ``[*stack, rows, in]`` or broadcastable, to ``[*stack, rows, out]``.
    """

    @checked
    def __init__(
        self,
        in_features: Annotated[int, SIZE],
        out_features: Annotated[int, SIZE],
        hidden: Annotated[Sequence[int], WIDTHS] = (512, 512, 512, 512),
        *,
        stack: Annotated[Sequence[int], SIZE] = (),
        activation: str = "gelu",
        layer_norm: bool = True,
        final_scale: Annotated[float, NON_NEGATIVE] = 1.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}.")
        self.stack, self.final_scale = tuple(stack), final_scale
        self.activation = ACTIVATIONS[activation]
        widths = [in_features, *hidden, out_features]
        self.layers = nn.ModuleList(StackedLinear(i, o, self.stack) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(StackedLayerNorm(h, self.stack) for h in hidden) if layer_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every layer anew and apply ``final_scale`` to the last."""
        for layer in self.layers:
            layer.reset_parameters()
        for norm in self.norms or ():
            norm.reset_parameters()
        with torch.no_grad():
            self.layers[-1].weight.mul_(self.final_scale)
            self.layers[-1].bias.mul_(self.final_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the stack on ``[*stack, rows, in]`` (or broadcastable)."""
        return self.after_first_layer(self.layers[0](x))

    def after_first_layer(self, x: Tensor) -> Tensor:
        """Evaluate what follows the first layer's product, ``[*stack, rows, hidden]``."""
        _, *layers = self.layers  # a slice of a ModuleList is a new module
        for layer, norm in zip(layers, self.norms or repeat(None)):
            x = self.activation(x)
            x = layer(x if norm is None else norm(x))
        return x


class StackedLayerNorm(nn.Module):
    """Layer normalization over the last dimension with parameters ``[*stack, 1, width]``."""

    @checked
    def __init__(
        self,
        width: Annotated[int, SIZE],
        stack: Annotated[Sequence[int], SIZE] = (),
        eps: Annotated[float, POSITIVE] = 1e-6,
    ) -> None:
        super().__init__()
        self.width, self.eps, self.stack = width, eps, tuple(stack)
        self.weight = nn.Parameter(torch.empty(*self.stack, 1, width) if self.stack else torch.empty(width))
        self.bias = nn.Parameter(torch.empty_like(self.weight))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to one and the shift to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[*stack, rows, width]``."""
        if math.prod(self.stack) == 1:
            return F.layer_norm(x, (self.width,), self.weight.flatten(), self.bias.flatten(), self.eps)
        return torch.addcmul(self.bias, F.layer_norm(x, (self.width,), eps=self.eps), self.weight)


def legal_or_all(mask: Tensor) -> Tensor:
    """Return a mask of legal actions ``[*B, A]`` in which an agent that has none, dead or padding, has all."""
    return mask | ~mask.any(-1, keepdim=True)


def project_agents(x: Tensor, weight: Tensor, of_agent: Tensor) -> Tensor:
    """Multiply every agent's row of ``x`` by a weight, and add a bias of the agent's own.

    Args:
        x: ``[*B, n, in]``.
        weight: ``[*stack, in, out]``.
        of_agent: ``[*stack, n, out]``.

    Returns:
        ``[*stack, B, n, out]``, all batch dimensions as one.
    """
    rows = x.reshape(-1, x.shape[-1])
    if weight.ndim == 2:
        product = torch.mm(rows, weight)
    elif weight.ndim == 3:
        product = torch.bmm(rows.expand(len(weight), -1, -1), weight)  # matmul adds four views, here and backward
    else:
        product = torch.matmul(rows, weight)
    # view: unflatten and split are functions in Python, each ten times as long
    return product.view(*weight.shape[:-2], -1, *of_agent.shape[-2:]) + of_agent.unsqueeze(-3)


class AgentNetwork(nn.Module):
    """One network per agent, parameters shared (with a one-hot agent id) or separate, with any number of heads.

    Args:
        in_features: width of one agent's input.
        out_features: width of one agent's output.
        n_agents: number of agents ``n``.
        num_heads: independent heads ``H`` on the same input, for instance two for a double critic.
        share_params: share parameters over agents and append a one-hot agent id to the input; otherwise each
            agent has its own parameters and no id.
        **mlp: options of :class:`StackedMLP` (``hidden``, ``activation``, ``layer_norm``, ``final_scale``).

    Shape:
        ``[*B, n, in]`` to ``[H, *B, n, out]`` (the leading ``H`` only if ``num_heads`` is given).
    """

    @checked
    def __init__(
        self,
        in_features: Annotated[int, SIZE],
        out_features: Annotated[int, SIZE],
        n_agents: Annotated[int, SIZE],
        *,
        num_heads: Annotated[int | None, FEW] = None,
        share_params: bool = True,
        **mlp,
    ) -> None:
        super().__init__()
        self.n_agents, self.num_heads, self.share_params = n_agents, num_heads, share_params
        heads = () if num_heads is None else (num_heads,)
        if share_params:
            self.mlp = StackedMLP(in_features + n_agents, out_features, stack=heads, **mlp)
        else:
            self.mlp = StackedMLP(in_features, out_features, stack=(*heads, n_agents), **mlp)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate every agent's network on its row of ``x`` ``[*B, n, in]``."""
        batch = x.shape[:-2]
        if self.share_params:
            rows = self._shared(x)
            return rows.view(*rows.shape[:-2], *batch, self.n_agents, rows.shape[-1])
        x = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)  # [B, n, in] -> [n, B, in]
        x = self.mlp(x).transpose(-3, -2)  # [(H,) n, B, out] -> [(H,) B, n, out]
        return x.unflatten(-3, batch) if batch else x.squeeze(-3)

    def _shared(self, x: Tensor) -> Tensor:
        """Map ``[*B, n, in]`` to ``[(H,) B * n, out]``.

        A one-hot id times its rows of the first weight is one of these rows: a bias for each agent, no wider input.
        """
        first = self.mlp.layers[0]
        sizes = [first.in_features - self.n_agents, self.n_agents]
        weight, of_agent = torch.split_with_sizes(first.weight, sizes, -2)
        hidden = project_agents(x, weight, first.bias + of_agent)
        return self.mlp.after_first_layer(hidden.flatten(-3, -2))
