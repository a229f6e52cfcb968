"""Laser worlds: agents cross a grid to its exits, and block the lasers of their colours for each other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import SEED, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, Shape, board, discs, on_board
from torchrl_marl_offline.envs.laser_names import split_world_name
from torchrl_marl_offline.envs.laser_worlds import (
    GEMS,
    PLAN,
    SIDE,
    SOURCES,
    TEAM,
    LaserReward,
    Plan,
    WorldCertificate,
    best_plan,
    certify_world,
    generate_world,
    optimum_of,
    parsed,
)

if TYPE_CHECKING:
    from lle import World

ACTIONS = NORTH, SOUTH, EAST, WEST, STAY = range(5)

Level = Literal["level1", "level2", "level3", "level4", "level5", "level6"]
Sight = Literal[3, 5, 7]

_REMEMBERED = 500_000  # steps; a hundred bytes or two each
_EXPLORED = 400_000  # steps that :meth:`LaserGrid.positions` asks the package for, some 20 microseconds each
_PAYS = {"full": (1.0, 1.0, 1.0, -1.0), "exits": (0.0, 1.0, 1.0, -1.0), "done": (0.0, 0.0, 1.0, 0.0)}


class Positions(NamedTuple):
    """All positions that a world comes to from its start, the start first, and what joint actions lead to.

    A joint action's code is the sum of the agents' actions times ``5 ** agent``.

    Attributes:
        state: ``[P, s]``, as the environment's.
        out: which agents are at an exit, alive, bool ``[P, n]``.
        alive: which agents live, bool ``[P, n]``.
        legal: joint actions of legal actions, bool ``[P, 5 ** n]``; none where the game is over.
        following: the position that a joint action leads to, int64 ``[P, 5 ** n]``; itself where it is not legal.
    """

    state: Tensor
    out: Tensor
    alive: Tensor
    legal: Tensor
    following: Tensor


class LaserGrid(TeamEnv):
    """A world of the package ``lle``, stepped by the package, many copies at once; see :func:`laser_level`.

    Worlds have no chance: what a joint action leads to is asked of the package once, and remembered for all copies.

    Args:
        world: its map.
        task: name of the task.
        num_envs: number of environments.
        device: where tensors go; the world stays on the host.
        seed: of nothing: worlds have one start and no chance.
        max_steps: time limit.
        reward: what is paid.
        sight: side of the square that an agent sees; ``None``: everything.
        certified: number of steps that :attr:`certificate` covers, at least the time limit.

    Attributes:
        world: the map.
        reward_kind: what is paid.
        horizon: number of steps that the certificate covers.
    """

    def __init__(
        self,
        world: str,
        *,
        task: str,
        num_envs: int,
        device: torch.device | str,
        seed: int | None,
        max_steps: int,
        reward: LaserReward,
        sight: Sight | None,
        certified: int,
    ) -> None:
        from lle import Action

        self._joint = [Action(number) for number in ACTIONS]
        self._world = one = parsed(world)
        self.world, self.reward_kind, self.sight, self.horizon = world, reward, sight, max(certified, max_steps)
        self._exits = set(one.exit_pos)
        self.rows, self.columns, self.gems = one.height, one.width, one.n_gems
        self.colours = one.n_colours
        n = one.n_agents
        size = (2 * self.colours + 3) * sight**2 if sight else (2 * self.colours + 4) * self.rows * self.columns
        spec = TaskSpec(
            n_agents=n,
            observation_size=size,
            state_size=3 * n + self.gems,
            action_size=len(ACTIONS),
            discrete=True,
            has_action_mask=True,
            task=task,
        )
        super().__init__(
            spec=spec, num_envs=num_envs, device=device, seed=seed, max_episode_steps=max_steps, has_success=True
        )
        self._pays = _PAYS[reward]
        self._strides = torch.tensor([len(ACTIONS) ** i for i in (n, *range(n))], device=self.device)
        self._make_floor()
        self._forget()

    @property
    def certificate(self) -> WorldCertificate:
        """What is proven of the world, of plans of up to :attr:`horizon` steps; searched when it is first asked for."""
        return certify_world(self.world, horizon=self.horizon)

    @property
    def plan(self) -> Plan | None:
        """A shortest plan within the time limit, one that collects all gems where they pay and there is one."""
        return best_plan(self.world, self.max_episode_steps, self.reward_kind)

    @cached_property
    def best_return(self) -> float | None:
        """The best return of an episode, without discount; ``None`` where it is not known exactly."""
        low, high = optimum_of(self.world, self.max_episode_steps, self.reward_kind)
        return low if low == high else None

    def facts(self) -> dict[str, Any]:
        """Return what recordings carry of the game: its certificate, and the best return where it is known."""
        return super().facts() | {"certificate": self.certificate.to_dict()}

    def states_along(self, plan: Plan) -> Tensor:
        """Return the states from which a plan acts, step by step, ``[steps, s]``."""
        self._world.reset()
        numbers = []
        for joint in plan:
            numbers.append(self._number())
            self._world.step([self._joint[each] for each in joint])
        return self._view(self._rows(numbers)).state

    @cached_property
    def positions(self) -> Positions:
        """All positions of the world, by trying every legal joint action in each of them.

        Raises:
            ValueError: there are too many.
        """
        n = self.task_spec.n_agents
        joint = torch.cartesian_prod(*[torch.arange(len(ACTIONS))] * n).view(-1, n).flip(-1)  # [5^n, n], by code
        self._forget()
        legal, following = [], []
        number = 0
        while number < len(self._numbers):  # which grows
            if number * len(joint) > _EXPLORED:
                raise ValueError(
                    f"The world of {self.task_spec.task} has more positions than the {_EXPLORED // len(joint):,} that "
                    "are tried; take a smaller one, or fewer agents or gems."
                )
            own = torch.from_numpy(self._known["legal"][number])  # [n, A]
            game = self._rows([number])
            over = self._arrived(game).all() | ~game["alive"].all()
            allowed = own[torch.arange(n), joint].all(-1) & ~over.cpu()
            codes = number * len(joint) + torch.arange(len(joint))
            following.append([self._explore(code) if may else number for code, may in zip(codes.tolist(), allowed)])
            legal.append(allowed)
            number += 1
        game = self._rows(list(range(number)))
        out, legal = self._arrived(game), torch.stack(legal).to(self.device)
        return Positions(self._view(game).state, out, game["alive"], legal, torch.tensor(following, device=self.device))

    def set_state(self, cells: Tensor, gems: Tensor) -> TensorDict:
        """Put agents, alive, where they shall be, and return the first observation.

        Args:
            cells: int64 ``[B, n, 2]``, (row, column).
            gems: bool ``[B, gems]``, which are collected, in the order of the state.

        Raises:
            ValueError: agents cannot be there together.
        """
        from lle import WorldState

        cells = self._given("cells", cells, (self.task_spec.n_agents, 2), high=(self.rows - 1, self.columns - 1))
        gems = self._given("gems", gems, (self.gems,), high=1).bool()
        numbers = []
        for places, collected in zip(cells.tolist(), gems.tolist()):
            self._world.reset()  # else the package may kill agents on their way from where they were
            try:
                self._world.set_state(WorldState([tuple(place) for place in places], collected))
            except ValueError as error:
                raise ValueError(f"Agents cannot be on the cells {places} together; place them apart.") from error
            numbers.append(self._number())
        return self._set_game(**self._rows(numbers))

    def _make_floor(self) -> None:
        """Lay out what never changes, and where each thing is in an observation: cell ``row * columns + column``."""
        one, cells, at = self._world, self.rows * self.columns, {"device": self.device}

        def places(found: list[tuple[int, int]]) -> Tensor:
            return torch.tensor([row * self.columns + column for row, column in found], dtype=torch.int64, **at)

        layers = torch.zeros(2 * self.colours + 4, cells, dtype=self.float_dtype, **at)
        walls, voids, gems, exits = range(2 * self.colours, 2 * self.colours + 4)
        layers[walls, places(one.wall_pos)] = 1
        layers[voids, places(one.void_pos)] = 1
        layers[exits, places(one.exit_pos)] = 1
        for source in one.laser_sources:
            layers[self.colours + source.colour, places([source.pos])] = -1
        self._static = layers.flatten()
        self._is_exit = layers[exits] == 1
        self._agent_layer = torch.tensor(one.agent_colours, **at) * cells
        self._gem_place = gems * cells + places(_gems_in_order(one))
        self._make_beams(cells)
        self._scale = torch.tensor([self.rows, self.columns], dtype=self.float_dtype, **at)
        if self.sight:  # without the layer of voids, in the package's order
            order = [*range(self.colours), walls, *range(self.colours, 2 * self.colours), gems, exits]
            self._seen_layers = torch.tensor(order, **at)
            steps = torch.arange(self.sight, **at)
            self._window = (steps.unsqueeze(-1) * (self.columns + self.sight - 1) + steps).flatten()  # [sight^2]

    def _make_beams(self, cells: int) -> None:
        """Number the cells of the beams; the package has them in another order each time."""
        beams = sorted((beam.laser_id, beam.pos, beam.colour) for beam in self._world.lasers)
        self._beams = {(number, place): index for index, (number, place, _) in enumerate(beams)}
        layers = [(self.colours + colour) * cells + row * self.columns + column for _, (row, column), colour in beams]
        self._beam_place = torch.tensor(layers, dtype=torch.int64, device=self.device)

    def _forget(self) -> None:
        """Remember no position but the start."""
        n = self.task_spec.n_agents
        self._known: dict[str, np.ndarray] = {
            "cells": np.zeros((64, n, 2), np.int64),
            "gems": np.zeros((64, self.gems), bool),
            "alive": np.zeros((64, n), bool),
            "legal": np.zeros((64, n, len(ACTIONS)), bool),
            "lit": np.zeros((64, len(self._beams)), bool),
        }
        self._numbers: dict[bytes, int] = {}
        self._following: dict[int, int] = {}  # by number * 5^n + code of the joint action
        self._world.reset()
        self._number()

    def _number(self) -> int:
        """Return the number of the position that the world is in."""
        n, world = self.task_spec.n_agents, self._world
        cells, gems, alive = np.split(world.get_state().as_array(), [2 * n, 2 * n + self.gems])
        legal = np.zeros((n, len(ACTIONS)), bool)
        for agent, actions in enumerate(world.available_actions()):
            legal[agent, [action.value for action in actions]] = True
        lit = np.zeros(len(self._beams), bool)
        for beam in world.lasers:
            lit[self._beams[beam.laser_id, beam.pos]] = beam.is_on
        found = {"cells": cells.astype(np.int64).reshape(n, 2), "gems": gems > 0, "alive": alive > 0}
        return self._remembered(found | {"legal": legal, "lit": lit})

    def _remembered(self, position: Mapping[str, np.ndarray]) -> int:
        """Return the number of a position, a new one if it has none."""
        key = b"".join(position[name].tobytes() for name in ("cells", "gems", "alive", "lit"))
        number = self._numbers.setdefault(key, len(self._numbers))
        if number == len(self._known["cells"]):
            self._known = {name: np.concatenate([rows, rows]) for name, rows in self._known.items()}
        for name, rows in self._known.items():
            rows[number] = position[name]
        return number

    def _rows(self, numbers: list[int]) -> Game:
        """Return the game at remembered positions."""
        found = {name: torch.from_numpy(rows[numbers]) for name, rows in self._known.items()}
        return {name: rows.to(self.device) for name, rows in (found | {"number": torch.tensor(numbers)}).items()}

    def _explore(self, code: int) -> int:
        """Return the number of the position that a joint action leads to."""
        from lle import WorldState

        n = self.task_spec.n_agents
        number, rest = divmod(code, len(ACTIONS) ** n)
        cells, gems, alive, legal = (self._known[name][number] for name in ("cells", "gems", "alive", "legal"))
        if not alive.all() or all(tuple(cell) in self._exits for cell in cells.tolist()):
            return number  # it is over
        joint = [rest // len(ACTIONS) ** i % len(ACTIONS) for i in range(n)]
        self._world.reset()
        self._world.set_state(WorldState([tuple(cell) for cell in cells.tolist()], gems.tolist()))
        self._world.step([self._joint[each if own[each] else STAY] for each, own in zip(joint, legal)])
        return self._number()

    def _start(self, rows: Tensor | None) -> Game:
        return self._rows([0] * (self.num_envs if rows is None else len(rows)))

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        codes = (torch.cat([game["number"].unsqueeze(-1), action], -1) * self._strides).sum(-1)
        numbers = []
        for code in codes.tolist():
            number = self._following.get(code)
            if number is None:
                number = self._following[code] = self._explore(code)
            numbers.append(number)
        following = self._rows(numbers)
        if len(self._following) > _REMEMBERED:
            self._forget()
            following["number"] = self._renumbered(following)
        before, after = self._arrived(game), self._arrived(following)
        done, died = after.all(-1) & ~before.all(-1), game["alive"] & ~following["alive"]
        counts = ((following["gems"] & ~game["gems"]).sum(-1), (after & ~before).sum(-1), done, died.sum(-1))
        reward = sum(pay * count for pay, count in zip(self._pays, counts))
        success = after.all(-1)
        terminated = success | ~following["alive"].all(-1)
        reward = reward.to(self.float_dtype).unsqueeze(-1).repeat(1, self.task_spec.n_agents)
        return Outcome(following, reward, terminated, success=success)

    def _arrived(self, game: Game) -> Tensor:
        return self._is_exit[self._cell(game)] & game["alive"]

    def _cell(self, game: Game) -> Tensor:
        row, column = game["cells"].unbind(-1)
        return row * self.columns + column  # [B, n]

    def _view(self, game: Game) -> View:
        cell, n = self._cell(game), self.task_spec.n_agents
        layers = self._static.repeat(len(cell), 1)
        layers.scatter_(1, self._agent_layer + cell, 1.0)
        layers.scatter_reduce_(1, self._beam_place.expand(len(cell), -1), game["lit"].to(self.float_dtype), "amax")
        layers.scatter_(1, self._gem_place.expand(len(cell), -1), (~game["gems"]).to(self.float_dtype))
        seen = self._around(layers, game["cells"]) if self.sight else layers.unsqueeze(1).repeat(1, n, 1)
        own = (game["cells"] / self._scale).flatten(1)
        state = torch.cat([own, game["gems"].to(own.dtype), game["alive"].to(own.dtype)], -1)
        return View(seen, state, game["legal"].clone())

    def _around(self, layers: Tensor, cells: Tensor) -> Tensor:
        """Return the square around each agent, ``[B, n, layers * sight^2]``; beyond the edges is nothing."""
        count, n = cells.shape[:2]
        layers = layers.view(count, -1, self.rows, self.columns)[:, self._seen_layers]
        floor = F.pad(layers, [self.sight // 2] * 4).flatten(2)  # [B, layers, padded cells]
        corner = cells[..., 0] * (self.columns + self.sight - 1) + cells[..., 1]
        window = (corner.unsqueeze(-1) + self._window).view(count, 1, -1)  # [B, 1, n * sight^2]
        seen = floor.gather(-1, window.expand(-1, floor.shape[1], -1))
        return seen.unflatten(-1, (n, -1)).transpose(1, 2).flatten(2)

    def _renumbered(self, game: Game) -> Tensor:
        """Return the numbers of positions that may have been forgotten, int64 ``[B]``."""
        rows = {name: game[name].cpu().numpy() for name in self._known}
        numbers = [self._remembered({name: each[row] for name, each in rows.items()}) for row in range(self.num_envs)]
        return torch.tensor(numbers, device=self.device)

    def _load_simulator_state(self, state: Mapping[str, Any]) -> None:
        if self._game:
            self._game["number"] = self._renumbered(self._game)

    def _scene(self, index: int) -> Scene:
        game, one = {key: value[index].cpu() for key, value in self._game.items()}, self._world

        def at(found: list[tuple[int, int]]) -> Tensor:
            return on_board(torch.tensor(found, dtype=torch.int64).view(-1, 2))

        shapes: list[Shape] = []
        for row, column in one.wall_pos:
            corners = [(column + x, -row + y) for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
            shapes.append(Shape(corners, colour="#777777"))
        shapes += discs(at(one.void_pos), 0.45, "#222222") + discs(at(one.exit_pos), 0.45, "#bbddbb")
        for place, on in zip(self._beam_place.tolist(), game["lit"].tolist()):
            layer, cell = divmod(place, len(self._is_exit))
            colour = AGENT_COLOURS[(layer - self.colours) % len(AGENT_COLOURS)]
            centre = torch.tensor([divmod(cell, self.columns)])
            shapes += discs(on_board(centre), 0.15, colour, alpha=0.9 if on else 0.15)
        for source in one.laser_sources:
            shapes += discs(at([source.pos]), 0.4, AGENT_COLOURS[source.colour % len(AGENT_COLOURS)])
        left = self._gem_place.cpu()[~game["gems"]] % len(self._is_exit)
        shapes += discs(on_board(torch.stack([left // self.columns, left % self.columns], -1)), 0.2, "#cc7711")
        colours = [AGENT_COLOURS[colour % len(AGENT_COLOURS)] for colour in one.agent_colours]
        agents = discs(on_board(game["cells"]), 0.32, colours, alpha=0.8, labels=map(str, range(len(colours))))
        return board(self.rows, self.columns, shapes + agents)


def _gems_in_order(world: World) -> list[tuple[int, int]]:
    """Return the gems' places in the order of the state, which that of ``world.gems`` need not be."""
    from lle import WorldState

    start, found = world.get_state(), []
    for number in range(world.n_gems):
        only = [each == number for each in range(world.n_gems)]
        world.set_state(WorldState(start.agents_positions, only, start.agents_alive))
        found += [gem.pos for gem in world.gems if gem.is_collected]
    world.reset()
    return found


@checked
def laser_level(
    *,
    num_envs: Annotated[int, SIZE] = 1,
    device: torch.device | str = "cpu",
    seed: Annotated[int | None, SEED] = None,
    name: Level = "level1",
    max_steps: Annotated[int | None, PLAN] = None,
    reward: LaserReward = "full",
    sight: Sight | None = None,
) -> LaserGrid:
    """Return one of the six levels of the Laser Learning Environment: ``lle/level1`` to ``lle/level6``.

    Agents walk through a grid to its exits and collect gems on their way (Molinghen et al., 2023). A laser kills an
    agent of another colour that is in its beam, which ends the episode; an agent of its colour is safe there, and
    blocks the beam for those behind it. So a team may have to help each other across. The package ``lle`` plays the
    game. Levels 1 and 2 need no help, 3 and 5 one-sided, 4 and 6 mutual help, as the
    package's solver proves (``env.certificate``); level 1 has one agent, levels 2 to 4 two, 5 and 6 four.

    Actions: north, south, east, west, stay. Illegal are those into walls, lasers' sources and cells of others; who has
    come to an exit stays. Who leaves its cell cannot be followed in the same step, and of those who aim at one cell
    none moves. An illegal action, if forced, is to stay.

    Observation of an agent: the package's layers, flattened, the same for all: where the agents of each colour are;
    the beam of each colour (1 where it is lit, -1 at the source); walls, voids, gems that are left, and exits, each of
    them ``rows * columns``. With ``sight``: the square around the agent in these layers, but for the voids.

    State, 3 n + gems: row and column of each agent divided by the numbers of rows and columns, which gems are
    collected, which agents live.

    A game has one start and no chance: what differs between episodes is what the policy draws. ``success``: all agents
    have come to exits. The episode terminates then, and when an agent dies; truncation after ``max_steps``.

    Args:
        num_envs: number of environments.
        device: where tensors go; the world stays on the host.
        seed: of nothing.
        name: which level.
        max_steps: time limit; by default half the number of cells, 78, as in the publication.
        reward: of all agents alike. ``"full"``, the package's: 1 for a gem, 1 for each agent that comes to an exit, 1
            when the last one does, -1 for each that dies; ``"exits"``: the same without gems; ``"done"``: 1 when the
            last one comes to an exit, and nothing else.
        sight: side of the square that an agent sees; by default everything.
    """
    from lle import World

    world = World.level(int(name.removeprefix("level")))
    limit = world.height * world.width // 2
    return _grid(world.world_string, f"lle/{name}", num_envs, device, seed, max_steps or limit, reward, sight, limit)


@checked
def certified_world(
    *,
    num_envs: Annotated[int, SIZE] = 1,
    device: torch.device | str = "cpu",
    seed: Annotated[int | None, SEED] = None,
    name: str = "none-0",
    size: Annotated[int, SIDE] = 5,
    agents: Annotated[int, TEAM] = 2,
    lasers: Annotated[int, SOURCES] = 2,
    gems: Annotated[int, GEMS] = 0,
    max_steps: Annotated[int | None, PLAN] = None,
    reward: LaserReward = "full",
    sight: Sight | None = None,
) -> LaserGrid:
    """Return a small world that is certified to need a kind of help: ``lle/none-N``, ``one_sided-N``, ``mutual-N``.

    The rules, actions, observations and rewards are those of ``lle/level1``. ``N`` is the seed of the world, which is
    drawn by :func:`~torchrl_marl_offline.envs.generate_world` and always the same. ``env.certificate`` says what is
    proven, ``env.plan`` is a shortest plan, ``env.best_return`` the best return.

    Args:
        num_envs: number of environments.
        device: where tensors go; the world stays on the host.
        seed: of nothing: the world's is in its name.
        name: kind and seed.
        size: cells along each side.
        agents: number of agents.
        lasers: number of lasers, at most that of the agents.
        gems: number of gems.
        max_steps: time limit; by default the number of cells, for which the kind is proven.
        reward: ``"full"``, ``"exits"`` or ``"done"``, as above.
        sight: side of the square that an agent sees; by default everything.

    Raises:
        ValueError: there is no such world, or with a longer time limit it is of another kind.
    """
    kind, number = split_world_name(name)
    found = generate_world(kind, number, size=size, agents=agents, lasers=lasers, gems=gems)
    limit = max_steps or found.horizon
    if limit > found.horizon and (other := certify_world(found.world, horizon=limit).kind) != kind:
        raise ValueError(
            f"lle/{name} is of the kind {other} where plans may have {limit} steps; take max_steps={found.horizon} or "
            "less."
        )
    return _grid(found.world, f"lle/{name}", num_envs, device, seed, limit, reward, sight, found.horizon)


@checked
def custom_world(
    *,
    num_envs: Annotated[int, SIZE] = 1,
    device: torch.device | str = "cpu",
    seed: Annotated[int | None, SEED] = None,
    name: Literal["custom"] = "custom",
    map: str = "S0 . X\nS1 . X",
    max_steps: Annotated[int | None, PLAN] = None,
    reward: LaserReward = "full",
    sight: Sight | None = None,
) -> LaserGrid:
    """Return a world of lasers of one's own: ``lle/custom``.

    The rules, actions, observations and rewards are those of ``lle/level1``.

    Args:
        num_envs: number of environments.
        device: where tensors go; the world stays on the host.
        seed: of nothing.
        name: of the task.
        map: lines of tiles, as the package reads them: ``.`` floor, ``@`` wall, ``S0`` the start of agent 0, ``X``
            exit, ``G`` gem, ``V`` void, ``L0E`` a laser of the colour of agent 0 that shines east.
        max_steps: time limit; by default the number of cells.
        reward: ``"full"``, ``"exits"`` or ``"done"``, as above.
        sight: side of the square that an agent sees; by default everything.

    Raises:
        ValueError: the map cannot be read.
    """
    world = parsed(map)
    limit = max_steps or world.height * world.width
    return _grid(map, f"lle/{name}", num_envs, device, seed, limit, reward, sight, limit)


def _grid(
    world: str,
    task: str,
    num_envs: int,
    device: torch.device | str,
    seed: int | None,
    max_steps: int,
    reward: LaserReward,
    sight: Sight | None,
    certified: int,
) -> LaserGrid:
    return LaserGrid(
        world,
        task=task,
        num_envs=num_envs,
        device=device,
        seed=seed,
        max_steps=max_steps,
        reward=reward,
        sight=sight,
        certified=certified,
    )
