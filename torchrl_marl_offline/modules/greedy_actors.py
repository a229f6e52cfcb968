"""Policies without a density: MATD3's, a tanh of a network, and QMIX's, the legal action of the largest local value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.modules import QValueModule, TanhModule

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, GROUP, TaskSpec
from torchrl_marl_offline.core.ranges import WIDTHS
from torchrl_marl_offline.modules.action_range import ActionRange
from torchrl_marl_offline.modules.build import remembers_build
from torchrl_marl_offline.modules.history import Memory, MemorySize, remembering
from torchrl_marl_offline.modules.networks import AgentNetwork

PROPOSAL = (GROUP, "proposal")
ACTION_VALUE, CHOSEN_ACTION_VALUE = (GROUP, "action_value"), (GROUP, "chosen_action_value")


@remembers_build
@checked
def make_deterministic_actor(
    spec: TaskSpec,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (128, 128),
    memory: Memory = None,
    memory_size: MemorySize = 64,
) -> TensorDictSequential:
    """Build MATD3's policies: a tanh within the action bounds; agents share parameters.

    Args:
        spec: the task, with continuous actions.
        hidden: widths of the hidden layers.
        memory: what the policies remember of an episode, see :func:`make_actor`.
        memory_size: width of the recurrent memory.
    """
    encoder, read, sizes = remembering(spec, memory, memory_size)
    network = AgentNetwork(
        sizes.observation_size, spec.action_size, spec.n_agents, hidden=hidden, layer_norm=False, final_scale=0.1
    )
    proposal = TensorDictModule(network, in_keys=[read], out_keys=[PROPOSAL])
    before = [proposal] if encoder is None else [encoder, proposal]
    if not spec.has_component_bounds:
        return TensorDictSequential(
            *before, TanhModule(in_keys=[PROPOSAL], out_keys=[ACTION], low=spec.action_low, high=spec.action_high)
        )
    low, high = (torch.tensor(bound) for bound in (spec.action_low, spec.action_high))
    return TensorDictSequential(
        *before,
        TanhModule(in_keys=[PROPOSAL], out_keys=[ACTION], low=low, high=high),
        TensorDictModule(ActionRange.of(spec).clipped, in_keys=[ACTION], out_keys=[ACTION]),  # what rounding added
    )


@remembers_build
@checked
def make_greedy_actor(
    spec: TaskSpec,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (128, 128),
    memory: Memory = None,
    memory_size: MemorySize = 64,
) -> TensorDictSequential:
    """Build QMIX's policies: the legal action of the largest local value; agents share parameters.

    Args:
        spec: the task, with discrete actions.
        hidden: widths of the hidden layers.
        memory: what the local values remember of an episode, see :func:`make_actor`.
        memory_size: width of the recurrent memory.
    """
    encoder, read, sizes = remembering(spec, memory, memory_size)
    network = AgentNetwork(sizes.observation_size, spec.action_size, spec.n_agents, hidden=hidden, layer_norm=True)
    choice = QValueModule(
        action_space="categorical",
        action_value_key=ACTION_VALUE,
        action_mask_key=ACTION_MASK if spec.has_action_mask else None,
        out_keys=[ACTION, ACTION_VALUE, CHOSEN_ACTION_VALUE],
    )
    values = TensorDictModule(network, in_keys=[read], out_keys=[ACTION_VALUE])
    return TensorDictSequential(*([] if encoder is None else [encoder]), values, choice)
