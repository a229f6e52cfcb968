"""Whether a policy was made for an environment of these sizes: one sentence instead of a matrix product that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from tensordict import unravel_key
from torch import nn

from torchrl_marl_offline.core.layout import DONE, IS_INIT, OBSERVATION, TaskSpec, next_key

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDictBase
    from torchrl.envs import EnvBase

Policy = Callable[["TensorDictBase"], "TensorDictBase"]
_SIZES = ("observation_size", "action_size", "discrete")
"""What has to be equal; a policy of equal agents may serve another number of them."""


class PolicyError(ValueError):
    """A policy was made for other sizes than the environment's; the message names both."""


class Carried:
    """What a policy with memory, a :class:`~torchrl_marl_offline.modules.HistoryEncoder` or TorchRL's, carries along.

    It reads ``"is_init"``, where an episode begins, and its hidden states, which it wrote under ``"next"`` in the step
    before. Of a policy without memory nothing is done.

    Args:
        network: the policy, or what of it has ``in_keys`` and ``out_keys``.

    Raises:
        PolicyError: TorchRL's memory in it would be lost from step to step, as it is not written under ``"next"``, or
            as two modules write over each other's.
    """

    def __init__(self, network: Any) -> None:
        module = getattr(network, "policy", network)  # of a policy that was loaded
        reads = [unravel_key(key) for key in getattr(module, "in_keys", ())]
        writes = {unravel_key(key) for key in getattr(module, "out_keys", ())}
        self.needs_beginnings = IS_INIT in reads
        self.states = [key for key in reads if next_key(key) in writes] if self.needs_beginnings else []
        for key in hidden_states(module) if self.needs_beginnings else ():
            if key in reads and key not in self.states:
                raise PolicyError(
                    f"The policy reads its memory at {key!r} and does not write it at {next_key(key)!r}, so that it "
                    f"would be lost; name {next_key(key)!r} among the out_keys of its GRUModule or LSTMModule."
                )

    def begin(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Say, in what ``env.reset()`` returned, that all episodes begin."""
        if self.needs_beginnings:
            tensordict.set(IS_INIT, torch.ones(*tensordict.batch_size, 1, dtype=torch.bool, device=tensordict.device))
        return tensordict

    def onward(self, step: TensorDictBase, following: TensorDictBase) -> TensorDictBase:
        """Hand on the hidden states, and where an episode ended that the next one begins.

        Args:
            step: what the environment's step returned, ``"next"`` in it.
            following: what the policy reads then, environments that were done being reset.
        """
        if self.needs_beginnings:
            following.set(IS_INIT, step.get(next_key(DONE)).reshape(*following.batch_size, -1).any(-1, keepdim=True))
        for key in self.states:
            following.set(key, step.get(next_key(key)))
        return following


def hidden_states(network: Any) -> list[NestedKey]:
    """Return where TorchRL's memory in a network stands, what its modules read beside their input and ``"is_init"``.

    Raises:
        PolicyError: two of them would write over each other's.
    """
    from torchrl.modules import GRUModule, LSTMModule

    modules = network.modules() if isinstance(network, nn.Module) else ()
    found = [module for module in modules if isinstance(module, (GRUModule, LSTMModule))]
    keys = [key for module in found for key in map(unravel_key, module.in_keys[1:]) if key != IS_INIT]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise PolicyError(
            f"Two modules with memory in one network both keep it at {twice!r}, the second in the place of the first; "
            "give each in_keys and out_keys of its own."
        )
    return keys


def fitted(policy: Policy, env: EnvBase) -> Policy:
    """Return the policy, which says it in a sentence where it was made for other sizes.

    Args:
        policy: what its builder noted of it is looked at now; of any other, why its first action fails.
        env: what it acts in.

    Raises:
        PolicyError: the policy's own sizes are others.
    """
    made_for, here = spec_of(policy), getattr(env, "task_spec", None)
    if made_for is not None and here is not None and any(getattr(made_for, n) != getattr(here, n) for n in _SIZES):
        raise PolicyError(misfit(made_for, here))
    acted = False

    def act(tensordict: TensorDictBase) -> TensorDictBase:
        nonlocal acted
        if acted:
            return policy(tensordict)
        seen = tensordict.get(OBSERVATION, None)
        try:
            result = policy(tensordict)
        except (RuntimeError, IndexError, KeyError, ValueError) as error:
            if IS_INIT in str(error) and tensordict.get(IS_INIT, None) is None:
                raise PolicyError(
                    f"The policy has memory and does not say so: what is around it must have the policy's in_keys and "
                    f"out_keys, {IS_INIT!r} and the memory among them."
                ) from error
            if isinstance(error, (KeyError, ValueError)):
                raise
            if made_for is not None and here is not None and made_for.n_agents != here.n_agents:
                raise PolicyError(misfit(made_for, here)) from error
            if "shape" not in str(error) and "size" not in str(error):
                raise
            shape = None if seen is None else list(seen.shape[1:])
            reason = " ".join(str(error).split())[:200]
            raise PolicyError(
                f"The policy does not fit the environment, whose observations are {shape} (agents, size): {reason}; "
                "give the policy that was made for this task."
            ) from error
        acted = True
        return result

    return act


def spec_of(policy: Any) -> TaskSpec | None:
    """Return the sizes that a policy of this library was built for, or ``None`` where it does not say."""
    build = getattr(policy, "build", None)
    return TaskSpec(**build["spec"]) if isinstance(build, dict) and "spec" in build else None


def misfit(made_for: TaskSpec, here: TaskSpec) -> str:
    """Say that a policy of one task does not fit another, with the sizes of both."""
    return (
        f"The policy was made for {_sizes(made_for)}, the environment has {_sizes(here)}; give the policy that was "
        "made for this task."
    )


def _sizes(spec: TaskSpec) -> str:
    of_numbers = f"actions of {spec.action_size} numbers in {spec.bounds_text}"
    actions = f"{spec.action_size} discrete actions" if spec.discrete else of_numbers
    masked = " with a mask" if spec.has_action_mask else ""
    name = f" ({spec.task})" if spec.task else ""
    return f"{spec.n_agents} agents, observations of {spec.observation_size} numbers and {actions}{masked}{name}"
