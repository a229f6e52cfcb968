"""One agent's networks and batches, under TorchRL's keys and under the library's."""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor, TanhNormal

OBSERVATION, ACTION = 4, 2


class PlainCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(OBSERVATION + ACTION, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([observation, action], -1))


def plain_networks() -> tuple[nn.Module, list[nn.Module], nn.Module]:
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(OBSERVATION, 8), nn.Tanh(), nn.Linear(8, 2 * ACTION), NormalParamExtractor())
    value = nn.Sequential(nn.Linear(OBSERVATION, 8), nn.Tanh(), nn.Linear(8, 1))
    return actor, [PlainCritic(), PlainCritic()], value


def wrap(networks, prefix: tuple[str, ...]):
    """Give the networks keys under ``prefix``: ``()`` for TorchRL, ``("agents",)`` for the library's layout."""

    def key(name: str):
        return (*prefix, name) if prefix else name

    actor, critics, value = copy.deepcopy(networks)
    policy = ProbabilisticActor(
        TensorDictModule(actor, in_keys=[key("observation")], out_keys=[key("loc"), key("scale")]),
        in_keys={"loc": key("loc"), "scale": key("scale")},
        out_keys=[key("action")],
        distribution_class=TanhNormal,
    )
    keys = [key("observation"), key("action")]
    critics = [TensorDictModule(c, in_keys=keys, out_keys=[key("state_action_value")]) for c in critics]
    return policy, critics, TensorDictModule(value, in_keys=[key("observation")], out_keys=[key("state_value")])


def single_agent_batches() -> tuple[TensorDict, TensorDict]:
    """The same rows in TorchRL's flat layout and in the library's, for one agent."""
    torch.manual_seed(1)
    flat = TensorDict(
        {
            "observation": torch.randn(32, OBSERVATION),
            "action": torch.rand(32, ACTION) * 1.8 - 0.9,
            "next": {
                "observation": torch.randn(32, OBSERVATION),
                "reward": torch.randn(32, 1),
                "done": torch.rand(32, 1) < 0.3,
                "terminated": torch.rand(32, 1) < 0.3,
            },
        },
        [32],
    )
    agents = TensorDict(
        {
            "agents": {k: flat[k].unsqueeze(-2) for k in ("observation", "action")},
            "next": {
                "agents": {k: flat["next", k].unsqueeze(-2) for k in ("observation", "reward")},
                "done": flat["next", "done"],
                "terminated": flat["next", "terminated"],
            },
        },
        [32],
    )
    return flat, agents
