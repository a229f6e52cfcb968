"""A batch of three rows of two agents and networks of one number each, for arithmetic by hand."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor
from torchrl.modules.models.multiagent import Mixer
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.modules import BoundedNormal, MaskedCategorical
from torchrl_marl_offline.objectives import OfflineMARLLoss

OBSERVATION, ACTION, MASK = ("agents", "observation"), ("agents", "action"), ("agents", "action_mask")
LOCAL, TEAM = ("agents", "state_action_value"), "state_action_value"
SCALE = 0.25
"""Of the policy."""


class Sum(nn.Module):
    """Q(o, u) = g (o + u), with g = 1; of discrete actions u = 0, ln 2, 2 ln 2."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor(1.0))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        if not action.is_floating_point():
            action = action.unsqueeze(-1) * math.log(2)
        elif action.shape[-1] == 3:  # one-hot
            action = (action * torch.arange(3)).sum(-1, keepdim=True) * math.log(2)
        return self.g * (observation + action)


class Scaled(nn.Module):
    """k o."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k))

    def forward(self, observation: Tensor) -> Tensor:
        return self.k * observation


class Policy(Scaled):
    """A Gaussian around 0.4 o."""

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc = super().forward(observation)
        return loc, torch.full_like(loc, SCALE)


class Weighted(Mixer):
    """Q_tot = s (Q_1 + 2 Q_2) + s."""

    accepts_heads = True

    def __init__(self) -> None:
        super().__init__(needs_state=True, state_shape=(1,), n_agents=2, device=None)
        self.m = nn.Parameter(torch.tensor([[1.0], [2.0]]))

    def mix(self, values: Tensor, state: Tensor) -> Tensor:
        return (self.m * state.unsqueeze(-1) * values).sum(-2) + state

    def forward(self, values: Tensor, state: Tensor) -> Tensor:
        return self.mix(values, state)

    def credit(self, values: Tensor, state: Tensor) -> Tensor:
        return (self.m * state.unsqueeze(-1)).expand_as(values)


def actor(**bounds: float) -> ProbabilisticActor:
    loc, scale = ("agents", "loc"), ("agents", "scale")
    return ProbabilisticActor(
        TensorDictModule(Policy(0.4), in_keys=[OBSERVATION], out_keys=[loc, scale]),
        in_keys={"loc": loc, "scale": scale},
        out_keys=[ACTION],
        distribution_class=BoundedNormal,
        distribution_kwargs=bounds,
    )


def discrete_actor() -> ProbabilisticActor:
    logits = ("agents", "logits")
    return ProbabilisticActor(
        TensorDictModule(nn.Linear(1, 3), in_keys=[OBSERVATION], out_keys=[logits]),
        in_keys={"logits": logits, "mask": MASK},
        out_keys=[ACTION],
        distribution_class=MaskedCategorical,
    )


def critic(*, team: bool) -> TensorDictModule:
    local = TensorDictModule(Sum(), in_keys=[OBSERVATION, ACTION], out_keys=[LOCAL])
    if not team:
        return local
    return TensorDictSequential(local, TensorDictModule(Weighted(), in_keys=[LOCAL, "state"], out_keys=[TEAM]))


def value() -> TensorDictModule:
    return TensorDictModule(Scaled(0.5), in_keys=[OBSERVATION], out_keys=[("agents", "state_value")])


def updated(loss: OfflineMARLLoss, *, gamma: float = 0.9) -> OfflineMARLLoss:
    loss.make_value_estimator(gamma=gamma)
    SoftUpdate(loss, tau=0.1)
    return loss


def ready(loss: OfflineMARLLoss) -> OfflineMARLLoss:
    return updated(loss, gamma=0.5)


def one_hot(spec: TaskSpec, index: Tensor) -> Tensor:
    return nn.functional.one_hot(index, spec.action_size).float()


def column(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows).unsqueeze(-1)


def batch() -> TensorDict:
    """The last row terminates. The local values of the recorded actions: (1.5, 2), (0, 2), (-1.5, 1)."""
    agents = {
        "observation": column((1.0, 2.0), (0.0, 1.0), (-1.0, 0.5)),
        "action": column((0.5, 0.0), (0.0, 1.0), (-0.5, 0.5)),
    }
    ahead = {
        "observation": column((1.0, 1.0), (2.0, 0.0), (9.0, 9.0)),
        "action": column((1.0, -1.0), (0.5, 0.5), (9.0, 9.0)),
        "reward": column((1.0, 3.0), (0.0, 2.0), (2.0, 4.0)),
    }
    over = torch.tensor([[False], [False], [True]])
    successor = {"agents": ahead, "state": torch.tensor([[1.0], [2.0], [1.0]]), "terminated": over, "done": over}
    return TensorDict({"agents": agents, "state": torch.tensor([[1.0], [0.5], [2.0]]), "next": successor}, [3])


def discrete_batch() -> TensorDict:
    """The same with three actions, of which some are not legal."""
    rows = batch()
    mask = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[0, 1, 0], [1, 0, 1]], [[1, 1, 1], [0, 1, 1]]], dtype=torch.bool)
    for half in (rows, rows["next"]):
        half[MASK] = mask
        half[ACTION] = torch.tensor([[2, 0], [1, 2], [0, 1]])
    return rows


def log_density(distance: float) -> float:
    """Of the policy, at a distance from its mean."""
    return -0.5 * (distance / SCALE) ** 2 - math.log(SCALE) - 0.5 * math.log(2 * math.pi)
