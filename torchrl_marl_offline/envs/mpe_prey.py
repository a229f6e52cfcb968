"""The prey of ``mpe/simple_tag`` and ``mpe/simple_world``: part of the environment, and an argument of it."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION
from torchrl_marl_offline.core.plain_tensors import load_plain_tensors

Opponent = str | os.PathLike | TensorDictModuleBase | Callable[[Tensor], Tensor]
Prey = Callable[[Tensor], Tensor]


class World(Protocol):
    """What a prey knows of the environment that it lives in."""

    device: torch.device | None
    prey_observation_size: int

    def evasion(self, observation: Tensor) -> Tensor:
        """Return the scripted evasion for the prey's observations."""

    def prey_chance(self) -> Tensor:
        """Return the prey's random numbers of this step, ``[B, 2]`` in [0, 1)."""


PUBLISHED = {
    "mpe/simple_tag": "b22b95f3397f41a21aa247810e385a8ecf85294f2e2ed8e523a954c633daf7a2",
    "mpe/simple_world": "ed3170cfb9c3f6872305c9c795a7aed089fde7b5e5cc2bff5f7debfed37c2115",
}
"""SHA-256 of the trained preys of OMAR, ``pretrained_adv_model.pt``, against which the reference returns were taken."""

_NORM = "in_fn."
_WALL, _OBSTACLE, _NEAREST = 0.3, 0.05, 0.05


def make_prey(opponent: Opponent, env: World) -> Prey:
    """Return a function from the prey's observations ``[B, o]`` to its actions ``[B, 2]``.

    Args:
        opponent: see :class:`~torchrl_marl_offline.envs.mpe_pursuit.SimpleTag`.
        env: the environment that the prey lives in.

    Raises:
        ValueError: it is none of the known names and no readable file of weights for this prey.
        TypeError: it is neither a name, a file nor a callable.
    """
    if opponent == "evade":
        return env.evasion
    if opponent == "random":
        return partial(_random, env)
    if opponent == "still":
        return _still
    if isinstance(opponent, str | os.PathLike):
        opponent = PreyNetwork.from_file(Path(opponent), inputs=env.prey_observation_size).to(env.device)
    if isinstance(opponent, TensorDictModuleBase):
        return partial(_team_of_one, opponent)
    if callable(opponent):
        # a function even where it is a module: as a part of the environment, a module would follow its train()
        return partial(_called, opponent)
    raise TypeError(f"opponent must be a name, a file of weights or a policy, got {type(opponent).__name__}.")


def is_published(opponent: Any, task: str) -> bool:
    """Return whether ``opponent`` is the file of the published prey of ``task``."""
    if not isinstance(opponent, str | os.PathLike) or not Path(opponent).is_file():
        return False
    return hashlib.sha256(Path(opponent).read_bytes()).hexdigest() == PUBLISHED[task]


# Functions and `partial`, not lambdas: a copy of an environment has a prey of its own, by the copy's chance.


def _random(env: World, observation: Tensor) -> Tensor:
    return env.prey_chance().to(observation.dtype) * 2 - 1


def _still(observation: Tensor) -> Tensor:
    return torch.zeros_like(observation[:, :2])


def _called(opponent: Prey, observation: Tensor) -> Tensor:
    return opponent(observation)


def _team_of_one(policy: TensorDictModuleBase, observation: Tensor) -> Tensor:
    """Call a policy in the key layout, for a team of one."""
    team = TensorDict({OBSERVATION: observation.unsqueeze(1)}, [len(observation)], device=observation.device)
    return policy(team).get(ACTION).squeeze(1)  # [B, 1, 2] -> [B, 2]


def flee(position: Tensor, to_predators: Tensor, to_obstacles: Tensor, obstacle_reach: float) -> Tensor:
    """Return a scripted evasion: full thrust away from whatever is near, ``[B, 2]`` in [-1, 1].

    The thrust points along the sum of inverse-square repulsions of the predators (weight 1), of the surfaces of the
    obstacles (0.05) and of four walls at ±1 (0.3); of obstacles and walls, distances below 0.05 count as 0.05.

    Args:
        position: of the prey, ``[B, 2]``.
        to_predators: vectors from it to each of them, ``[B, n, 2]``.
        to_obstacles: vectors to the centres of the obstacles, ``[B, m, 2]``.
        obstacle_reach: distance from such a centre at which the prey touches it.
    """
    distance = torch.linalg.vector_norm(to_predators, dim=-1, keepdim=True).clamp_min(1e-3)
    push = -(to_predators / distance**3).sum(-2)
    distance = torch.linalg.vector_norm(to_obstacles, dim=-1, keepdim=True).clamp_min(1e-3)
    gap = (distance - obstacle_reach).clamp_min(_NEAREST)
    push = push - _OBSTACLE * (to_obstacles / (distance * gap**2)).sum(-2)
    inwards = (1 + position).clamp_min(_NEAREST) ** -2 - (1 - position).clamp_min(_NEAREST) ** -2
    push = push + _WALL * inwards
    return push / push.abs().amax(-1, keepdim=True).clamp_min(1e-12)


class PreyNetwork(nn.Module):
    """A small MLP with fixed weights: ReLU between linear layers, tanh at the end, optionally a normalized input.

    Args:
        weights: a state dict. Its linear layers, ``<name>.weight`` ``[out, in]`` with ``<name>.bias``, are taken in
            order; ``in_fn.*`` are those of a batch normalization of the input, used with its running statistics.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        weights = {name: tensor.float() for name, tensor in weights.items()}
        names = [name.removesuffix(".weight") for name, each in weights.items() if each.dim() == 2]
        self.layers = nn.ModuleList()
        for name in names:
            layer = nn.Linear(*reversed(weights[f"{name}.weight"].shape))
            layer.load_state_dict({kind: weights[f"{name}.{kind}"] for kind in ("weight", "bias")})
            self.layers.append(layer)
        self.norm = nn.Identity()
        if f"{_NORM}running_mean" in weights:
            self.norm = nn.BatchNorm1d(len(weights[f"{_NORM}running_mean"]))
            self.norm.load_state_dict({k.removeprefix(_NORM): v for k, v in weights.items() if k.startswith(_NORM)})
        self.requires_grad_(False).eval()

    def forward(self, observation: Tensor) -> Tensor:
        """Return actions ``[B, 2]`` for observations ``[B, o]``."""
        hidden = self.norm(observation.to(self.layers[0].weight.dtype))
        for layer in self.layers[:-1]:
            hidden = layer(hidden).relu()
        return self.layers[-1](hidden).tanh().to(observation.dtype)

    @classmethod
    def from_file(cls, path: Path, *, inputs: int) -> PreyNetwork:
        """Read a file of weights, without executing anything that it may contain.

        It holds either a state dict, or what OMAR published (``pretrained_adv_model.pt``): a dictionary with
        ``"agent_params"``, whose last entry's ``"policy"`` is the prey.

        Args:
            path: written by :func:`torch.save`.
            inputs: size of the prey's observation.

        Raises:
            ValueError: there is no such file, or it holds something else, or weights of other sizes.
        """
        if not path.is_file():
            raise ValueError(
                f"opponent must be 'evade', 'random', 'still', a policy or a file of weights; there is no file {path}."
            )
        try:
            content = load_plain_tensors(path, older=True)
            weights = content["agent_params"][-1]["policy"] if "agent_params" in content else content
            network = cls(weights)
        except (
            pickle.UnpicklingError,
            ValueError,
            RuntimeError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            EOFError,
        ) as error:
            raise ValueError(
                f"{path} holds no weights of a prey: save the state dict of an MLP by torch.save ({error!r})."
            ) from error
        sizes = [(layer.in_features, layer.out_features) for layer in network.layers]
        chained = all(here[1] == following[0] for here, following in pairwise(sizes))
        if not sizes or not chained or (sizes[0][0], sizes[-1][1]) != (inputs, 2):
            raise ValueError(f"The prey of this task maps {inputs} numbers to 2; the layers in {path} are {sizes}.")
        return network
