"""Models of the data's joint action, one agent after another: each sees the actions of those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.core.ranges import WIDTHS
from torchrl_marl_offline.modules.build import remembers_build
from torchrl_marl_offline.modules.critics import encode_action
from torchrl_marl_offline.modules.networks import AgentNetwork, mask_logits

BEHAVIOUR_LOGITS = ("agents", "behaviour_logits")


def previous_actions(action: Tensor) -> Tensor:
    """Return what every agent sees of the joint action: those of agents of a lower index, zeros for all others.

    Args:
        action: ``[*B, n, a]``.

    Returns:
        ``[*B, n, (n - 1) * a]``.
    """
    n = action.shape[-2]
    before = torch.ones(n, n - 1, dtype=action.dtype, device=action.device).tril(-1)  # [i, j]: j < i
    return (before.unsqueeze(-1) * action[..., :-1, :].unsqueeze(-3)).flatten(-2)


class SequentialNetwork(nn.Module):
    """One network for each agent that reads the state, the previous agents' actions, and what is the agent's own.

    Args:
        spec: the task's sizes.
        own_size: width of the agent's own input.
        out_size: width of its output.
        joint_observation: read all observations instead of the state.
        **network: options of :class:`~torchrl_marl_offline.modules.AgentNetwork`.
    """

    def __init__(
        self, spec: TaskSpec, own_size: int, out_size: int, *, joint_observation: bool = False, **network
    ) -> None:
        super().__init__()
        self.spec, self.joint_observation = spec, joint_observation
        width = spec.n_agents * spec.observation_size if joint_observation else spec.state_size
        width += (spec.n_agents - 1) * spec.action_size + own_size
        self.network = AgentNetwork(width, out_size, spec.n_agents, **network)

    def evaluate(self, state: Tensor, action: Tensor, *own: Tensor) -> Tensor:
        """Return every agent's output.

        Args:
            state: ``[*B, s]``, or observations ``[*B, n, o]``.
            action: of all agents, ``[*B, n, a]``.
            *own: inputs of each agent, ``[*B, n, ...]``.
        """
        seen = state.flatten(-2) if self.joint_observation else state
        seen = seen.unsqueeze(-2).expand(*action.shape[:-1], seen.shape[-1])
        return self.network(torch.cat([seen, previous_actions(action), *own], -1))


class SequentialPolicy(SequentialNetwork):
    r"""Logits of :math:`\mu_a(u_a | s, u_{<a})`, so that :math:`\mu(u | s) = \prod_a \mu_a(u_a | s, u_{<a})`.

    Shape:
        state ``[*B, s]`` (or observations ``[*B, n, o]``), the joint action (see :func:`encode_action`) and optionally
        the mask of legal actions ``[*B, n, A]``, to ``[*B, n, A]``.
    """

    def __init__(self, spec: TaskSpec, **network) -> None:
        super().__init__(spec, 0, spec.action_size, **network)

    def forward(self, state: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``[*B, n, A]``; of an agent without any legal action, all alike."""
        return mask_logits(self.evaluate(state, encode_action(action, self.spec, state.dtype)), mask)


@remembers_build
@checked
def make_sequential_policy(
    spec: TaskSpec,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (256, 256, 256),
    share_params: bool = True,
    joint_observation: bool = False,
    activation: str = "silu",
    layer_norm: bool = True,
) -> TensorDictModule:
    r"""Build a sequential model of a discrete task's joint actions.

    It reads the state, the recorded joint action (and the mask of legal actions where the task has one) and writes
    logits ``[*B, n, A]`` of :math:`\mu_a(\cdot | s, u_{<a})` at ``("agents", "behaviour_logits")``. Agents act in the
    order of their indices.

    Args:
        spec: the task's sizes.
        hidden: widths of the hidden layers.
        share_params: agents share parameters and are told apart by a one-hot id.
        joint_observation: read all observations instead of the state.
        activation: activation of the hidden layers.
        layer_norm: layer normalization after each activation.

    Raises:
        ValueError: for continuous actions.
    """
    if not spec.discrete:
        raise ValueError("make_sequential_policy is for discrete actions; for a continuous task use make_score.")
    network = {"hidden": hidden, "share_params": share_params, "activation": activation, "layer_norm": layer_norm}
    policy = SequentialPolicy(spec, joint_observation=joint_observation, **network)
    in_keys = [OBSERVATION if joint_observation else STATE, ACTION]
    in_keys += [ACTION_MASK] if spec.has_action_mask else []
    return TensorDictModule(policy, in_keys=in_keys, out_keys=[BEHAVIOUR_LOGITS])
