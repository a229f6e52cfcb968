"""The hand-written policies that VMAS ships for some of its scenarios, as policies of this library."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION

if TYPE_CHECKING:
    from torchrl_marl_offline.envs.vmas_scenarios import VmasScenario

SCENARIOS = ("balance", "discovery", "flocking", "transport", "wheel")
"""Scenarios with a heuristic that needs nothing but VMAS."""

_SOLVING = "navigation"


class VmasHeuristic(TensorDictModuleBase):
    """VMAS's own heuristic for the scenario of ``env``, with Gaussian noise, clipped to the bounds.

    Args:
        env: an environment ``vmas/<scenario>`` with one of :data:`SCENARIOS`, or ``vmas/navigation``, whose heuristic
            solves convex programs with the library ``cvxpylayers`` and is slow.
        noise: standard deviation of the noise on the action, in its unit; from torch's global generator.

    Raises:
        ValueError: if VMAS has no heuristic for the scenario.
        ModuleNotFoundError: if it needs a library that is missing.
    """

    def __init__(self, env: VmasScenario, *, noise: float = 0.0) -> None:
        self.in_keys, self.out_keys = [OBSERVATION], [ACTION]
        super().__init__()
        scenario = env.task_spec.task.removeprefix("vmas/")
        if scenario not in (*SCENARIOS, _SOLVING):
            raise ValueError(f"VMAS has no heuristic for {scenario!r}, only for {', '.join((*SCENARIOS, _SOLVING))}.")
        if scenario == _SOLVING and find_spec("cvxpylayers") is None:
            raise ModuleNotFoundError(
                f"The heuristic of vmas/{scenario} needs the library 'cvxpylayers', which is missing: pip install "
                f"cvxpylayers."
            )
        # `vmas.scenarios`, the attribute, is a list of names that hides the module
        policy = import_module("vmas.scenarios").load(f"{scenario}.py").HeuristicPolicy
        self.policies = [policy(continuous_action=True) for _ in env.observation_sizes]
        self.sizes, self.spec, self.noise = env.observation_sizes, env.task_spec, noise

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        observation = tensordict.get(OBSERVATION)  # [B, n, o]
        ranges = [max(row) for row in self.spec.highs]
        chosen = [
            policy.compute_action(observation[:, i, :size], u_range=ranges[i])
            for i, (policy, size) in enumerate(zip(self.policies, self.sizes))
        ]
        action = torch.stack(chosen, 1)
        if self.noise:
            action = action + self.noise * torch.randn_like(action)
        return tensordict.set(ACTION, action.clamp(*self.spec.bounds_like(action)))
