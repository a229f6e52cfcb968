"""Critics for the five value decompositions, by one builder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from torchrl_marl_offline.data.layout import ACTION, OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.modules.mixers import HyperNetworkMixer, LinearMixer, SumMixer
from torchrl_marl_offline.modules.networks import AgentNetwork, StackedMLP, one_hot

Decomposition = Literal["centralized", "mixer", "vdn", "independent", "linear"]
DECOMPOSITIONS: tuple[Decomposition, ...] = ("centralized", "mixer", "vdn", "independent", "linear")

LOCAL_ACTION_VALUE = ("agents", "state_action_value")
ACTION_VALUE = "state_action_value"
LOCAL_VALUE = ("agents", "state_value")
VALUE = "state_value"


def encode_action(action: Tensor, spec: TaskSpec, dtype: torch.dtype) -> Tensor:
    """Return the action as critics read it: one-hot for indices, unchanged otherwise.

    Args:
        action: ``[*B, n]`` integer indices, or ``[*B, n, a]`` floating point (continuous, or already one-hot).
        spec: the task's sizes.
        dtype: dtype of the one-hot code.
    """
    if action.is_floating_point():
        return action
    return one_hot(action, spec.action_size, dtype)


class LocalCritic(nn.Module):
    """Per-agent values Q_a(o_a, u_a), or V_a(o_a) with ``with_action=False``.

    Shape:
        observation ``[*B, n, o]`` and action (see :func:`encode_action`) to ``[*B, n, H]``.
    """

    def __init__(self, spec: TaskSpec, *, with_action: bool = True, num_heads: int = 2, **network) -> None:
        super().__init__()
        self.spec, self.with_action = spec, with_action
        width = spec.observation_size + (spec.action_size if with_action else 0)
        self.network = AgentNetwork(width, 1, spec.n_agents, num_heads=num_heads, **network)

    def forward(self, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Return ``[*B, n, H]``."""
        if self.with_action:
            observation = torch.cat([observation, encode_action(action, self.spec, observation.dtype)], -1)
        return self.network(observation).squeeze(-1).movedim(0, -1)  # [H, *B, n, 1] -> [*B, n, H]


class CentralizedCritic(nn.Module):
    """One joint value Q(s, u), or V(s) with ``with_action=False``.

    Shape:
        state ``[*B, s]`` (or observations ``[*B, n, o]``, flattened) and the joint action to ``[*B, H]``.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        with_action: bool = True,
        num_heads: int = 2,
        joint_observation: bool = False,
        **network,
    ) -> None:
        super().__init__()
        self.spec, self.with_action, self.joint_observation = spec, with_action, joint_observation
        width = spec.n_agents * spec.observation_size if joint_observation else spec.state_size
        width += spec.n_agents * spec.action_size if with_action else 0
        self.network = StackedMLP(width, 1, stack=(num_heads,), **network)

    def forward(self, state: Tensor, action: Tensor | None = None) -> Tensor:
        """Return ``[*B, H]``."""
        x = state.flatten(-2) if self.joint_observation else state
        if self.with_action:
            x = torch.cat([x, encode_action(action, self.spec, x.dtype).flatten(-2)], -1)
        out = self.network(x.reshape(-1, x.shape[-1])).squeeze(-1)  # [H, rows]
        return out.movedim(0, -1).reshape(*x.shape[:-1], -1)


def make_critic(
    spec: TaskSpec,
    *,
    decomposition: Decomposition = "mixer",
    num_heads: int = 2,
    hidden: Sequence[int] = (512, 512, 512, 512),
    share_params: bool = True,
    joint_observation: bool = False,
    mixer: nn.Module | None = None,
    monotonic: bool = True,
    frozen: bool = False,
    embed_size: int = 32,
    mixer_hidden_size: int = 128,
    activation: str = "gelu",
    layer_norm: bool = True,
) -> TensorDictModuleBase:
    r"""Build the action-value module of a value decomposition.

    ================  ============================================  =========================================
    decomposition     value                                         writes
    ================  ============================================  =========================================
    ``mixer``         :math:`f(Q_1, \ldots, Q_n; s)`                local ``[*B, n, H]`` and team ``[*B, H]``
    ``vdn``           :math:`\sum_a Q_a`                            local and team
    ``linear``        :math:`\sum_a |w_a(s)| Q_a + b(s)`            local and team
    ``centralized``   :math:`Q(s, u)`                               team
    ``independent``   each :math:`Q_a(o_a, u_a)` for itself         local
    ================  ============================================  =========================================

    Local values stand at ``("agents", "state_action_value")``, the team's at ``"state_action_value"``; ``H`` heads lie
    in the last dimension.

    Args:
        spec: the task's sizes.
        decomposition: one of the five above.
        num_heads: critic heads ``H``; targets use the minimum over them.
        hidden: widths of the critic's hidden layers (the recipe: four of 512).
        share_params: agents share parameters and are told apart by a one-hot id; otherwise separate parameters.
        joint_observation: the centralized critic reads all observations instead of the state.
        mixer: a mixer in place of the library's own, for instance ``torchrl.modules.QMixer``; only with ``"mixer"``.
        monotonic: see :class:`~torchrl_marl_offline.HyperNetworkMixer`; also of ``"linear"``.
        frozen: the mixer keeps its random initial parameters. An ablation: the recipe's released code never
            trained its mixer.
        embed_size: width of the mixing layer.
        mixer_hidden_size: width of the hypernetworks' hidden layer.
        activation: activation of the critic's layers.
        layer_norm: layer normalization in the critic and in the hypernetworks.

    Raises:
        ValueError: for an unknown decomposition, or mixer options where there is no mixer.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> critic = make_critic(spec, decomposition="mixer", hidden=(64, 64))
        >>> critic.out_keys
        [('agents', 'state_action_value'), 'state_action_value']
    """
    if decomposition not in DECOMPOSITIONS:
        raise ValueError(f"decomposition must be one of {', '.join(DECOMPOSITIONS)}; got {decomposition!r}.")
    of_mixer = mixer is not None or ((frozen or not monotonic) and decomposition != "linear")
    if decomposition != "mixer" and of_mixer:
        raise ValueError(f"mixer=, frozen= and monotonic= go with decomposition='mixer', not {decomposition!r}.")
    network = {"hidden": hidden, "activation": activation, "layer_norm": layer_norm}
    if decomposition == "centralized":
        central = CentralizedCritic(spec, num_heads=num_heads, joint_observation=joint_observation, **network)
        source = OBSERVATION if joint_observation else STATE
        return TensorDictModule(central, in_keys=[source, ACTION], out_keys=[ACTION_VALUE])
    local = TensorDictModule(
        LocalCritic(spec, num_heads=num_heads, share_params=share_params, **network),
        in_keys=[OBSERVATION, ACTION],
        out_keys=[LOCAL_ACTION_VALUE],
    )
    if decomposition == "independent":
        return local
    if decomposition == "vdn":
        mixer = SumMixer(spec.n_agents)
    elif mixer is None:
        hyper = {"hidden_size": mixer_hidden_size, "monotonic": monotonic, "layer_norm": layer_norm}
        if decomposition == "linear":
            mixer = LinearMixer(spec.n_agents, spec.state_size, **hyper)
        else:
            mixer = HyperNetworkMixer(spec.n_agents, spec.state_size, embed_size=embed_size, **hyper)
    if frozen:
        mixer.requires_grad_(False)
    needs_state = getattr(mixer, "needs_state", True)
    in_keys = [LOCAL_ACTION_VALUE, STATE] if needs_state else [LOCAL_ACTION_VALUE]
    return TensorDictSequential(local, TensorDictModule(mixer, in_keys=in_keys, out_keys=[ACTION_VALUE]))


def make_value(
    spec: TaskSpec,
    *,
    decomposition: Decomposition = "mixer",
    hidden: Sequence[int] = (512, 512, 512, 512),
    share_params: bool = True,
    joint_observation: bool = False,
    activation: str = "gelu",
    layer_norm: bool = True,
) -> TensorDictModule:
    """Build the state-value module that goes with :func:`make_critic`, for implicit Q-learning.

    With ``centralized`` it writes the team's value at ``"state_value"`` ``[*B, 1]``; with all others, local values
    at ``("agents", "state_value")`` ``[*B, n, 1]``, which the loss sends through the critic's mixer. Arguments
    as there.
    """
    if decomposition not in DECOMPOSITIONS:
        raise ValueError(f"decomposition must be one of {', '.join(DECOMPOSITIONS)}; got {decomposition!r}.")
    network = {"hidden": hidden, "activation": activation, "layer_norm": layer_norm, "num_heads": 1}
    if decomposition == "centralized":
        central = CentralizedCritic(spec, with_action=False, joint_observation=joint_observation, **network)
        return TensorDictModule(central, in_keys=[OBSERVATION if joint_observation else STATE], out_keys=[VALUE])
    local = LocalCritic(spec, with_action=False, share_params=share_params, **network)
    return TensorDictModule(local, in_keys=[OBSERVATION], out_keys=[LOCAL_VALUE])
