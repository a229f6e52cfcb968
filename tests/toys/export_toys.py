"""Policies of every builder, and exported files run by torch or by ONNX Runtime alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, TaskSpec
from torchrl_marl_offline.evaluation.policy_export import METADATA
from torchrl_marl_offline.training.run.saved_policies import BUILDERS

CONTINUOUS = TaskSpec(
    n_agents=3, observation_size=4, state_size=5, action_size=2, action_low=-0.5, action_high=2.0, task="toy/reach"
)
DISCRETE = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=5, discrete=True)
MASKED = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=5, discrete=True, has_action_mask=True)
NORM = ([1.0, -2.0, 0.0, 10.0], [0.5, 3.0, 1.0, 20.0])
FORMATS = ["torch", "onnx"]


@dataclass(frozen=True)
class Case:
    """A policy, and how it is built."""

    builder: str
    spec: TaskSpec
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        kind = "masked" if self.spec.has_action_mask else "discrete" if self.spec.discrete else "continuous"
        names = [f"{k}={'given' if k == 'observation_norm' else v}" for k, v in self.options.items()]
        return "-".join([self.builder, kind, *names])

    def build(self):
        torch.manual_seed(0)
        policy = BUILDERS[self.builder](self.spec, hidden=(32, 16), **self.options)
        if self.options.get("batch_norm"):
            policy(TensorDict({OBSERVATION: 1 + 0.3 * torch.randn(100, 3, 4)}, [100]))
        policy.eval()
        with torch.no_grad():  # as spread as after training: actions of all kinds, also beyond the bounds
            for name, parameter in policy.named_parameters():
                if name.endswith("weight") and "norms" not in name:
                    parameter.mul_(0.8 / (parameter.std() * parameter.shape[-2] ** 0.5))
        return policy


CASES = [
    Case("make_actor", CONTINUOUS, {"scale": "learned"}),
    Case("make_actor", CONTINUOUS, {"scale": "state_dependent"}),
    Case("make_actor", CONTINUOUS, {"distribution": "tanh_gaussian"}),
    Case("make_actor", CONTINUOUS, {"share_params": False}),
    Case("make_actor", CONTINUOUS, {"observation_norm": NORM}),
    Case("make_actor", CONTINUOUS, {"batch_norm": True}),
    Case("make_actor", DISCRETE, {}),
    Case("make_actor", MASKED, {}),
    Case("make_actor", MASKED, {"observation_norm": NORM, "activation": "relu", "layer_norm": True}),
    Case("make_actor", CONTINUOUS, {"distribution": "one_step"}),
    Case("make_actor", MASKED, {"distribution": "one_step", "observation_norm": NORM}),
    Case("make_deterministic_actor", CONTINUOUS),
    Case("make_greedy_actor", DISCRETE),
    Case("make_greedy_actor", MASKED),
]


class Exported:
    """An exported file as a function of named tensors, by the runtime of its format alone."""

    def __init__(self, path: Path) -> None:
        if path.suffix == ".pt2":
            files = {METADATA: ""}
            self.module = torch.export.load(path, extra_files=files).module()
            self.metadata = json.loads(files[METADATA])
        else:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(path, options)
            self.metadata = json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA])

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if hasattr(self, "module"):
            return self.module(*inputs.values())
        (action,) = self.session.run(["action"], {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(action)

    def all_outputs(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        if hasattr(self, "module"):
            return list(self.module(*inputs.values()))
        found = self.session.run(self.metadata["outputs"], {name: value.numpy() for name, value in inputs.items()})
        return [torch.from_numpy(each) for each in found]


def act(policy, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the policy executes, by the library's keys."""
    keys = {"observation": OBSERVATION, "action_mask": ACTION_MASK}
    td = TensorDict({keys[name]: value for name, value in inputs.items()}, inputs["observation"].shape[:1])
    with torch.no_grad():
        return policy(td)[ACTION]
