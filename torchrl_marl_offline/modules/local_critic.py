"""Each agent's own value network."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import FEW
from torchrl_marl_offline.modules.action_range import ActionRange, component_range
from torchrl_marl_offline.modules.batch_norm import BatchNorm
from torchrl_marl_offline.modules.networks import AgentNetwork, one_hot


def encode_action(action: Tensor, spec: TaskSpec, dtype: torch.dtype, shown: ActionRange | None = None) -> Tensor:
    """Return the action as critics read it: one-hot for indices, unchanged or in halves of its range otherwise.

    Args:
        action: ``[*B, n]`` integer indices, or ``[*B, n, a]`` floating point (continuous, or already one-hot).
        spec: the task's sizes.
        dtype: dtype of the one-hot code.
        shown: the range in whose halves continuous actions are shown, see :func:`~.action_range.component_range`.
    """
    if action.is_floating_point():
        return action if shown is None else shown.scaled(action)
    return one_hot(action, spec.action_size, dtype)


class LocalCritic(nn.Module):
    """Per-agent values Q_a(o_a, u_a), or V_a(o_a) with ``with_action=False``.

    Args:
        spec: the task's sizes.
        with_action: of actions, or of observations alone.
        num_heads: heads ``H``.
        batch_norm: normalize every agent's inputs by the batch.
        **network: options of :class:`AgentNetwork`.

    Shape:
        observation ``[*B, n, o]`` and action (see :func:`encode_action`) to ``[*B, n, H]``.
    """

    @checked
    def __init__(
        self,
        spec: TaskSpec,
        *,
        with_action: bool = True,
        num_heads: Annotated[int, FEW] = 2,
        batch_norm: bool = False,
        **network,
    ) -> None:
        super().__init__()
        self.spec, self.with_action, self.shown = spec, with_action, component_range(spec)
        self.width = spec.observation_size + (spec.action_size if with_action else 0)
        values = AgentNetwork(self.width, 1, spec.n_agents, num_heads=num_heads, **network)
        self.network = BatchNorm.before(values, spec.n_agents, self.width, wanted=batch_norm)

    def inputs(self, observation: Tensor, action: Tensor | None) -> Tensor:
        """Return what the network reads, ``[*B, n, width]``."""
        if not self.with_action:
            return observation
        return torch.cat([observation, encode_action(action, self.spec, observation.dtype, self.shown)], -1)

    def forward(self, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Return ``[*B, n, H]``."""
        values = self.network(self.inputs(observation, action))
        return values.squeeze(-1).movedim(0, -1)  # [H, *B, n, 1] -> [*B, n, H]
