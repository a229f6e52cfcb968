"""Observations and states as index gathers, found by asking gymnasium-robotics with numbers that can be told apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchrl_marl_offline.envs.base import Game, View
from torchrl_marl_offline.envs.mamujoco.scenarios import Scenario

if TYPE_CHECKING:
    from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
    from gymnasium_robotics.envs.multiagent_mujoco.mujoco_multi import MultiAgentMujocoEnv

OBSERVABLE = (
    *("qpos", "qvel", "cinert", "cvel", "cfrc_ext", "qfrc_actuator", "qfrc_constraint"),
    *("xpos", "site_xpos", "ten_J", "ten_length", "ten_velocity"),
)
"""Fields of ``MjData`` that can be observed."""

_EXTRAS = "extras"
_PROBES = ((0.05, 0.45), (20.0, 60.0))  # inside all ranges of clipping, and outside
_DIGITS = 9

Transform = Callable[[Tensor], Tensor]
Source = tuple[int, int]
"""A transform's number and the entry that it is applied to."""


class ObservationMap:
    """What agents and mixer see, from the fields of ``MjData``.

    Every number that an agent of MA-MuJoCo sees is one entry of a field (or of the scenario's extras) as it is,
    clipped, its sine or its cosine. Which one it is follows from gymnasium-robotics' answers to two made-up ``MjData``
    whose entries all differ. So its partitions, ``agent_obsk`` and categories need no second description here, and
    a step is a few gathers.

    Args:
        reference: gymnasium-robotics' environment; its ``MjData`` is overwritten.
        scenario: the rules.

    Raises:
        ValueError: if an agent sees something else, as it may by an ``agent_factorization`` of one's own.
    """

    def __init__(self, reference: MultiAgentMujocoEnv, scenario: Scenario) -> None:
        self._scenario = scenario
        transforms: list[Transform] = [_as_it_is, *_clips(scenario.env), torch.sin, torch.cos]
        made_up = [_made_up_game(scenario, *bounds) for bounds in _PROBES]
        seen = [_ask(reference, scenario.env, game) for game in made_up]
        known = self._known_answers(made_up, transforms)
        try:
            *agents, state = [[known[key] for key in _keys(*answers)] for answers in zip(*seen)]
        except KeyError:
            raise ValueError(
                "An agent sees something that is no entry of MjData as it is, clipped, its sine or its cosine; change "
                "the extra_obs of agent_factorization."
            ) from None
        self.observation_sizes = tuple(len(each) for each in agents)
        self.state_size = len(state)
        self._compile(agents, state, transforms, {name: value.shape[-1] for name, value in made_up[0].items()})

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the fields of ``MjData`` that are seen."""
        return tuple(name for name in self._seen if name != _EXTRAS)

    def __call__(self, game: Game) -> View:
        """Return observations ``[B, n, o]``, padded with zeros, and states ``[B, s]``."""
        parts = [self._scenario.extras(game) if name == _EXTRAS else game[name] for name in self._seen]
        raw = torch.cat(parts, -1)
        blocks = [transform(raw.index_select(-1, entries)) for transform, entries in self._blocks]
        table = torch.cat([*blocks, raw.new_zeros(len(raw), 1)], -1)
        observation = table.index_select(-1, self._observation_index).unflatten(-1, (len(self.observation_sizes), -1))
        return View(observation, table.index_select(-1, self._state_index))

    @staticmethod
    def _known_answers(made_up: list[Game], transforms: list[Transform]) -> dict[tuple[float, ...], Source]:
        raws = [torch.cat(list(game.values()), -1)[0] for game in made_up]
        known: dict[tuple[float, ...], Source] = {}
        for number, transform in enumerate(transforms):
            for entry, key in enumerate(_keys(*(transform(raw) for raw in raws))):
                known.setdefault(key, (number, entry))
        return known

    def _compile(
        self, agents: list[list[Source]], state: list[Source], transforms: list[Transform], sizes: dict[str, int]
    ) -> None:
        """Turn the findings into index tensors over those fields and transforms that are seen."""
        device = self._scenario.at["device"]
        used = sorted(set(state).union(*agents))
        entries = {entry for _, entry in used}
        self._seen, moved = [], {}
        first = 0
        for name, size in sizes.items():
            if not entries.isdisjoint(range(first, first + size)):
                self._seen.append(name)
                moved |= {first + i: len(moved) + i for i in range(size)}
            first += size
        self._blocks = []
        for number, transform in enumerate(transforms):
            wanted = [moved[entry] for which, entry in used if which == number]
            if wanted:
                self._blocks.append((transform, torch.tensor(wanted, device=device)))
        column = {source: i for i, source in enumerate(used)}
        zero, width = len(used), max(self.observation_sizes)
        padded = [[column[each] for each in agent] + [zero] * (width - len(agent)) for agent in agents]
        self._observation_index = torch.tensor(padded, device=device).flatten()
        self._state_index = torch.tensor([column[each] for each in state], device=device)


def _made_up_game(scenario: Scenario, low: float, high: float) -> Game:
    """Return fields of ``MjData``, ``[1, k]`` each, whose entries all differ, and their differences too."""
    sizes = {name: getattr(scenario.env.data, name).size for name in OBSERVABLE}
    uneven = torch.linspace(0, 1, sum(sizes.values()), dtype=torch.float64) ** 1.5
    values = low + (high - low) * uneven.unsqueeze(0)
    game = dict(zip(sizes, values.split(list(sizes.values()), dim=-1)))
    return game | {_EXTRAS: scenario.extras(game)}


def _ask(reference: MultiAgentMujocoEnv, env: MujocoEnv, game: Game) -> list[Tensor]:
    """Return what gymnasium-robotics shows of the game to each agent and to the mixer."""
    for name in OBSERVABLE:
        getattr(env.data, name).reshape(-1)[:] = game[name][0].numpy()
    seen = [*reference._get_obs().values(), reference.state()]
    return [torch.as_tensor(each, dtype=torch.float64) for each in seen]


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _clips(env: MujocoEnv) -> list[Transform]:
    ranges = {(-1.0, 1.0), (-10.0, 10.0), tuple(getattr(env, "_contact_force_range", (-1.0, 1.0)))}
    return [partial(torch.clamp, min=low, max=high) for low, high in sorted(ranges)]


def _keys(*answers: Tensor) -> list[tuple[float, ...]]:
    return list(zip(*(torch.round(each, decimals=_DIGITS).tolist() for each in answers)))
