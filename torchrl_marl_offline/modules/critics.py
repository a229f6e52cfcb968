"""Critics for every value decomposition, by one builder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.core.ranges import FEW, WIDTHS, OneOf
from torchrl_marl_offline.modules.action_range import component_range
from torchrl_marl_offline.modules.attention_mixer import AttentionMixer
from torchrl_marl_offline.modules.batch_norm import BatchNorm
from torchrl_marl_offline.modules.build import remembers_build
from torchrl_marl_offline.modules.duplex import DuelingCritic, DuplexMixer, GreedyCritic
from torchrl_marl_offline.modules.graph import GraphCritic
from torchrl_marl_offline.modules.history import HistoryEncoder, Memory, MemorySize, behind, remembering
from torchrl_marl_offline.modules.local_critic import LocalCritic, encode_action
from torchrl_marl_offline.modules.mixers import HyperNetworkMixer, LinearMixer, SumMixer
from torchrl_marl_offline.modules.networks import StackedMLP

DECOMPOSITIONS = ["centralized", "mixer", "vdn", "independent", "linear", "nonmonotonic", "qatten", "qplex", "graph"]
"""Names of the decompositions; :func:`register_mixer` adds one."""

Decomposition = Annotated[str, OneOf(DECOMPOSITIONS)]

TEAM = [name for name in DECOMPOSITIONS if name not in ("independent", "graph")]
"""Those with a value of the team; the others' agents learn each for itself."""
READ_BY: dict[str, list[str]] = {
    "mixer": ["mixer"],
    "frozen": ["mixer", "nonmonotonic", "linear", "qatten", "qplex"],
    "monotonic": ["mixer", "nonmonotonic", "linear", "qatten"],
}
"""Decompositions that an option of :func:`make_critic` changes."""

_MIXERS: dict[str, Callable[[TaskSpec], nn.Module]] = {}

LOCAL_ACTION_VALUE = ("agents", "state_action_value")
ACTION_VALUE = "state_action_value"
LOCAL_VALUE = ("agents", "state_value")
VALUE = "state_value"
LOCAL_ADVANTAGE = ("agents", "advantage")


@checked
def register_mixer(name: str, build: Callable[[TaskSpec], nn.Module]) -> None:
    """Let ``decomposition="NAME"`` mix local values by a mixer of one's own.

    Args:
        name: an identifier.
        build: given the task's sizes, returns a :class:`torchrl.modules.models.multiagent.Mixer`: local values
            ``[*B, n, 1]`` (``[*B, n, H]`` where it says ``accepts_heads``), and the state unless ``needs_state`` is
            false, to ``[*B, 1]``.

    Raises:
        ValueError: the name is no identifier, or that of another decomposition.
    """
    if not name.isidentifier():
        raise ValueError(f"A mixer's name must be an identifier, got {name!r}.")
    if name in DECOMPOSITIONS and getattr(_MIXERS.get(name), "__qualname__", None) != build.__qualname__:
        raise ValueError(f"There is a decomposition {name!r} already; choose another name.")
    if name not in DECOMPOSITIONS:
        for names in (DECOMPOSITIONS, TEAM, READ_BY["frozen"]):
            names.append(name)
    _MIXERS[name] = build


class CentralizedCritic(nn.Module):
    """One joint value Q(s, u), or V(s) with ``with_action=False``.

    Shape:
        state ``[*B, s]`` (or observations ``[*B, n, o]``, flattened) and the joint action to ``[*B, H]``.
    """

    @checked
    def __init__(
        self,
        spec: TaskSpec,
        *,
        with_action: bool = True,
        num_heads: Annotated[int, FEW] = 2,
        joint_observation: bool = False,
        batch_norm: bool = False,
        **network,
    ) -> None:
        super().__init__()
        self.spec, self.with_action, self.joint_observation = spec, with_action, joint_observation
        self.shown = component_range(spec)
        width = spec.n_agents * spec.observation_size if joint_observation else spec.state_size
        width += spec.n_agents * spec.action_size if with_action else 0
        self.network = BatchNorm.before(StackedMLP(width, 1, stack=(num_heads,), **network), width, wanted=batch_norm)

    def forward(self, state: Tensor, action: Tensor | None = None) -> Tensor:
        """Return ``[*B, H]``."""
        x = state.flatten(-2) if self.joint_observation else state
        if self.with_action:
            x = torch.cat([x, encode_action(action, self.spec, x.dtype, self.shown).flatten(-2)], -1)
        out = self.network(x.reshape(-1, x.shape[-1])).squeeze(-1)  # [H, rows]
        return out.movedim(0, -1).reshape(*x.shape[:-1], -1)


@remembers_build
@checked
def make_critic(
    spec: TaskSpec,
    *,
    decomposition: Decomposition = "mixer",
    num_heads: Annotated[int, FEW] = 2,
    hidden: Annotated[Sequence[int], WIDTHS] = (512, 512, 512, 512),
    share_params: bool = True,
    joint_observation: bool = False,
    mixer: nn.Module | None = None,
    monotonic: bool = True,
    frozen: bool = False,
    embed_size: Annotated[int, WIDTHS] = 32,
    mixer_hidden_size: Annotated[int, WIDTHS] = 128,
    attention_heads: Annotated[int, FEW] = 4,
    activation: str = "gelu",
    layer_norm: bool = True,
    batch_norm: bool = False,
    memory: Memory = None,
    memory_size: MemorySize = 64,
) -> TensorDictModuleBase:
    r"""Build the action-value module of a value decomposition.

    ================  ======================================================  =========================================
    decomposition     value                                                   writes
    ================  ======================================================  =========================================
    ``mixer``         :math:`f(Q_1, \ldots, Q_n; s)`, monotonic (QMIX)        local ``[*B, n, H]`` and team ``[*B, H]``
    ``nonmonotonic``  the same, weights of any sign                           local and team
    ``vdn``           :math:`\sum_a Q_a`                                      local and team
    ``linear``        :math:`\sum_a |w_a(s)| Q_a + b(s)`                      local and team
    ``qatten``        :math:`\sum_{h,a} |w_h(s)| \alpha_{h,a}(s,o) Q_a+c(s)`  local and team
    ``qplex``         :math:`V_{tot}(s) + \sum_a \lambda_a(s,u) (Q_a - V_a)`  local, their advantages and team
    ``graph``         :math:`\sum_a f_a / n + \sum_{a<b} f_{ab} / |E|`        team
    ``centralized``   :math:`Q(s, u)`                                         team
    ``independent``   each :math:`Q_a(o_a, u_a)` for itself                   local
    ================  ======================================================  =========================================

    Local values stand at ``("agents", "state_action_value")``, the team's at ``"state_action_value"``; ``H`` heads lie
    in the last dimension. See :class:`~torchrl_marl_offline.HyperNetworkMixer`,
    :class:`~torchrl_marl_offline.LinearMixer`, :class:`~torchrl_marl_offline.AttentionMixer` (Qatten),
    :class:`~torchrl_marl_offline.DuplexMixer` (QPLEX; its local critics:
    :class:`~torchrl_marl_offline.modules.GreedyCritic`, :class:`~torchrl_marl_offline.modules.DuelingCritic`) and
    :class:`~torchrl_marl_offline.modules.GraphCritic`.

    A coordination graph has no agent's own value: its payoffs belong to pairs. Rules treat it as they do a centralized
    critic, and those that need local values refuse both.

    Args:
        spec: the task's sizes.
        decomposition: one of the above.
        num_heads: critic heads ``H``; targets use the minimum over them.
        hidden: widths of the critic's hidden layers (the recipe: four of 512).
        share_params: agents share parameters and are told apart by a one-hot id; otherwise separate parameters. The
            payoffs of a graph's pairs always share them.
        joint_observation: the centralized critic reads all observations instead of the state.
        mixer: a mixer in place of the library's own, for instance ``torchrl.modules.QMixer``; only with ``"mixer"``.
        monotonic: take absolute values of the mixer's weights: of ``"mixer"``, ``"linear"`` and ``"qatten"``.
        frozen: the mixer keeps its random initial parameters. An ablation: the recipe's released code never
            trained its mixer.
        embed_size: width of the mixing layer, or of the attention's queries and keys.
        mixer_hidden_size: width of the hypernetworks' hidden layer.
        attention_heads: of ``"qatten"`` and ``"qplex"``.
        activation: activation of the critic's layers.
        layer_norm: layer normalization in the critic and in the hypernetworks.
        batch_norm: normalize the critic's inputs by the batch, see :class:`~torchrl_marl_offline.modules.BatchNorm`;
            not a graph's.
        memory: what local critics remember of an episode, see :func:`make_actor`; a centralized one remembers the joint
            observation, and reads it beside the state, or, with ``joint_observation``, in its place. Mixers have none.
        memory_size: width of the recurrent memory.

    Raises:
        ValueError: for an unknown decomposition, or mixer options where there is no mixer that they change.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> critic = make_critic(spec, decomposition="mixer", hidden=(64, 64))
        >>> critic.out_keys
        [('agents', 'state_action_value'), 'state_action_value']
    """
    _check_decomposition(decomposition)
    for option, given in (("mixer", mixer is not None), ("frozen", frozen), ("monotonic", not monotonic)):
        if given and decomposition not in READ_BY[option]:
            known = " or ".join(map(repr, READ_BY[option]))
            raise ValueError(f"{option}= goes with decomposition={known}, not {decomposition!r}.")
    network = {"num_heads": num_heads, "hidden": hidden, "activation": activation, "layer_norm": layer_norm}
    network |= _normalized(decomposition, batch_norm)
    remembered = {"memory": memory, "memory_size": memory_size}
    if decomposition == "centralized":
        return _centralized(spec, joint_observation=joint_observation, **remembered, **network)
    encoder, local = _local(spec, decomposition, share_params=share_params, **remembered, **network)
    if decomposition in ("graph", "independent"):
        return behind(encoder, local)
    if mixer is None:
        options = {"hidden_size": mixer_hidden_size, "layer_norm": layer_norm}
        sizes = {"embed_size": embed_size, "attention_heads": attention_heads}
        mixer = _make_mixer(spec, decomposition, monotonic=monotonic, **sizes, **options)
    if frozen:
        mixer.requires_grad_(False)
    in_keys = [LOCAL_ACTION_VALUE, STATE] if getattr(mixer, "needs_state", True) else [LOCAL_ACTION_VALUE]
    in_keys += {"qatten": [OBSERVATION], "qplex": [ACTION, LOCAL_ADVANTAGE]}.get(decomposition, [])
    return behind(encoder, local, TensorDictModule(mixer, in_keys=in_keys, out_keys=[ACTION_VALUE]))


@remembers_build
@checked
def make_value(
    spec: TaskSpec,
    *,
    decomposition: Decomposition = "mixer",
    hidden: Annotated[Sequence[int], WIDTHS] = (512, 512, 512, 512),
    share_params: bool = True,
    joint_observation: bool = False,
    activation: str = "gelu",
    layer_norm: bool = True,
    batch_norm: bool = False,
    memory: Memory = None,
    memory_size: MemorySize = 64,
) -> TensorDictModuleBase:
    """Build the state-value module that goes with :func:`make_critic`, for implicit Q-learning.

    With ``centralized`` and ``graph`` it writes the team's value at ``"state_value"`` ``[*B, 1]``; with all others,
    local values at ``("agents", "state_value")`` ``[*B, n, 1]``, which the loss sends through the critic's mixer.
    Arguments as there.
    """
    _check_decomposition(decomposition)
    network = {"hidden": hidden, "activation": activation, "layer_norm": layer_norm, "num_heads": 1}
    network |= _normalized(decomposition, batch_norm)
    remembered = {"memory": memory, "memory_size": memory_size}
    if decomposition == "centralized":
        return _centralized(spec, with_action=False, joint_observation=joint_observation, **remembered, **network)
    network["share_params"] = share_params
    encoder, read, sizes = remembering(spec, memory, memory_size, role="value", share_params=share_params)
    if decomposition == "graph":
        value = TensorDictModule(GraphCritic(sizes, with_action=False, **network), [read], [VALUE])
    else:
        value = TensorDictModule(LocalCritic(sizes, with_action=False, **network), [read], [LOCAL_VALUE])
    return behind(encoder, value)


def _check_decomposition(decomposition: str) -> None:
    if decomposition not in DECOMPOSITIONS:
        raise ValueError(f"decomposition must be one of {', '.join(DECOMPOSITIONS)}; got {decomposition!r}.")


def _normalized(decomposition: str, batch_norm: bool) -> dict[str, bool]:
    if batch_norm and decomposition == "graph":
        raise ValueError("batch_norm=True does not go with decomposition='graph', whose payoffs read pairs of agents.")
    return {"batch_norm": True} if batch_norm else {}


def _centralized(
    spec: TaskSpec,
    *,
    with_action: bool = True,
    joint_observation: bool,
    memory: str | None,
    memory_size: int,
    **network,
) -> TensorDictModuleBase:
    source = OBSERVATION if joint_observation else STATE
    encoder, sizes = None, spec
    if memory is not None:
        role = "critic" if with_action else "value"
        encoder, history, _ = remembering(spec, memory, memory_size, role=role, joint=True)
        beside = 0 if joint_observation else spec.state_size
        sizes = dataclasses.replace(spec, state_size=encoder.feature_size + beside)
        joint_observation = False
    critic = CentralizedCritic(sizes, with_action=with_action, joint_observation=joint_observation, **network)
    in_keys = [source, ACTION] if with_action else [source]
    if encoder is not None:
        critic = critic if source == OBSERVATION else BesideState(critic)
        in_keys = [history, *in_keys[source == OBSERVATION :]]
    module = TensorDictModule(critic, in_keys=in_keys, out_keys=[ACTION_VALUE if with_action else VALUE])
    return behind(encoder, module)


class BesideState(nn.Module):
    """A centralized critic of what the team remembers and of the state.

    Shape:
        history ``[*B, F]``, state ``[*B, s]`` and what the critic reads behind its state.
    """

    def __init__(self, critic: CentralizedCritic) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, history: Tensor, state: Tensor, *action: Tensor) -> Tensor:
        """Return ``[*B, H]``."""
        return self.critic(torch.cat([history, state], -1), *action)


def _local(
    spec: TaskSpec, decomposition: Decomposition, *, memory: str | None, memory_size: int, share_params: bool, **network
) -> tuple[HistoryEncoder | None, TensorDictModule]:
    """Return what stands before the mixer, or the whole critic of a decomposition without one; and what remembers."""
    network["share_params"] = share_params
    encoder, read, sizes = remembering(spec, memory, memory_size, role="critic", share_params=share_params)
    in_keys = [read, ACTION]
    if decomposition == "graph":
        return encoder, TensorDictModule(GraphCritic(sizes, **network), in_keys=in_keys, out_keys=[ACTION_VALUE])
    if decomposition != "qplex":
        return encoder, TensorDictModule(LocalCritic(sizes, **network), in_keys=in_keys, out_keys=[LOCAL_ACTION_VALUE])
    in_keys += [ACTION_MASK] if spec.has_action_mask else []
    critic = GreedyCritic(sizes, **network) if spec.discrete else DuelingCritic(sizes, **network)
    return encoder, TensorDictModule(critic, in_keys=in_keys, out_keys=[LOCAL_ACTION_VALUE, LOCAL_ADVANTAGE])


def _make_mixer(
    spec: TaskSpec,
    decomposition: Decomposition,
    *,
    monotonic: bool,
    embed_size: int,
    attention_heads: int,
    **hyper,
) -> nn.Module:
    n, state = spec.n_agents, spec.state_size
    if decomposition in _MIXERS:
        return _MIXERS[decomposition](spec)
    if decomposition == "vdn":
        return SumMixer(n)
    if decomposition == "linear":
        return LinearMixer(n, state, monotonic=monotonic, **hyper)
    if decomposition == "qatten":
        sizes = {"attention_heads": attention_heads, "embed_size": embed_size}
        return AttentionMixer(n, state, spec.observation_size, monotonic=monotonic, **sizes, **hyper)
    if decomposition == "qplex":
        return DuplexMixer(spec, attention_heads=attention_heads, **hyper)
    monotonic = monotonic and decomposition != "nonmonotonic"
    return HyperNetworkMixer(n, state, embed_size=embed_size, monotonic=monotonic, **hyper)
