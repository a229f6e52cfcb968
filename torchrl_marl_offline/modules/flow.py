"""A flow from noise to the data's joint actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.core.ranges import WIDTHS
from torchrl_marl_offline.modules.action_range import ActionRange
from torchrl_marl_offline.modules.build import remembers_build
from torchrl_marl_offline.modules.local_critic import encode_action
from torchrl_marl_offline.modules.networks import StackedMLP

PATH, TIME, VELOCITY = ("agents", "path"), "flow_time", ("agents", "velocity")


@checked
class JointVelocity(nn.Module):
    r"""The velocity :math:`v(x, t | o)` of joint actions on their way from noise to the data (Lipman et al. 2023).

    Continuous actions are in halves of their range; discrete ones are one-hot codes.

    Args:
        spec: the task's sizes and bounds.
        joint_observation: read all observations; otherwise the state.
        **network: options of :class:`~torchrl_marl_offline.modules.StackedMLP`.

    Shape:
        observations ``[*B, n, o]`` (or state ``[*B, s]``), a place ``[*B, n, a]`` and times ``[*B, 1, 1]``, to
        ``[*B, n, a]``.
    """

    def __init__(self, spec: TaskSpec, *, joint_observation: bool = True, **network) -> None:
        super().__init__()
        self.spec, self.joint_observation = spec, joint_observation
        self.range = None if spec.discrete else ActionRange.of(spec)
        seen = spec.n_agents * spec.observation_size if joint_observation else spec.state_size
        size = spec.n_agents * spec.action_size
        self.mlp = StackedMLP(seen + size + 1, size, **network)

    def encode(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        """Return where an action of the data lies, ``[*B, n, a]``."""
        return encode_action(action, self.spec, dtype) if self.range is None else self.range.scaled(action)

    def forward(self, seen: Tensor, place: Tensor, time: Tensor) -> Tensor:
        """Return the velocity of all agents."""
        seen = seen.flatten(-2) if self.joint_observation else seen
        inputs = torch.cat([seen, place.flatten(-2), time.squeeze(-1)], -1)
        return self.mlp(inputs).unflatten(-1, place.shape[-2:])


@remembers_build
@checked
def make_flow(
    spec: TaskSpec,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (512, 512, 512, 512),
    joint_observation: bool = True,
    activation: str = "gelu",
    layer_norm: bool = False,
) -> TensorDictModule:
    """Build the velocity of a flow from noise to the data's joint actions, for :class:`FlowMatching`.

    It reads ``("agents", "observation")`` or ``"state"``, places and times that the rules give it, and writes
    ``("agents", "velocity")``.

    Args:
        spec: the task's sizes and bounds.
        hidden: widths of the hidden layers.
        joint_observation: read all observations (the paper of MAC-Flow); otherwise the state.
        activation: activation of the hidden layers.
        layer_norm: layer normalization after each activation.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> make_flow(spec, hidden=(64, 64)).in_keys
        [('agents', 'observation'), ('agents', 'path'), 'flow_time']
    """
    network = {"hidden": hidden, "activation": activation, "layer_norm": layer_norm}
    velocity = JointVelocity(spec, joint_observation=joint_observation, **network)
    return TensorDictModule(velocity, [OBSERVATION if joint_observation else STATE, PATH, TIME], [VELOCITY])
