"""Overcooked: two cooks share a kitchen, and the soups that they deliver."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, NON_NEGATIVE, SEED, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, Shape, board, discs, on_board

ACTIONS = NORTH, SOUTH, EAST, WEST, STAY, INTERACT = range(6)
COOKS = 2

TILES = FLOOR, COUNTER, ONIONS, TOMATOES, DISHES, POT, WINDOW = range(7)
"""Kinds of cells; the windows are where soups are delivered."""
_SIGNS = " XOTDPS"  # of the package, in the order of the kinds
_GIVES = (0, 0, 1, 2, 3, 0, 0)  # what is taken from a cell of each kind

NOTHING, ONION, TOMATO, DISH, SOUP = range(5)
"""Things; a soup of o onions and t tomatoes is ``SOUP + 4 o + t``."""
_FULL = 3
_THINGS = SOUP + (_FULL + 1) ** 2

LAYERS = 25
STEPS, URGENT = 400, 40
"""The package's time limit, and when the layer of urgency is on, whatever the time limit is."""


class Kitchen(NamedTuple):
    """A layout as the package reads it. Cell ``x * height + y`` is column ``x`` of row ``y``."""

    width: int
    height: int
    tiles: list[int]  # kind of each cell
    cells: list[int]  # where the cooks start
    facing: list[int]
    held: list[int]
    things: list[int]  # on each cell
    ticks: list[int]  # how long each pot has cooked, -1 before
    values: list[float]  # of the soup 4 o + t
    times: list[int]  # that it cooks
    placing: float  # shaped rewards: an ingredient into a pot, a useful dish taken, a soup taken
    fetching: float
    ladling: float


def read_kitchen(layout: str) -> Kitchen:
    """Return a layout of the package ``overcooked``."""
    from overcooked.mdp.actions import Direction
    from overcooked.mdp.overcooked_mdp import OvercookedGridworld, Recipe

    game = OvercookedGridworld.from_layout_name(layout)  # sets what soups are worth in Recipe, for all kitchens
    start = game.get_standard_start_state()
    width, height = game.shape
    values, times = [0.0] * (_FULL + 1) ** 2, [0] * (_FULL + 1) ** 2
    for recipe in Recipe.ALL_RECIPES():
        kind = _soup(recipe.ingredients) - SOUP
        values[kind], times[kind] = float(game.get_recipe_value(start, recipe)), int(recipe.time)
    things, ticks = [NOTHING] * (width * height), [-1] * (width * height)
    for (x, y), thing in start.objects.items():
        things[x * height + y] = _thing(thing)
        ticks[x * height + y] = getattr(thing, "_cooking_tick", -1)
    pays = game.reward_shaping_params
    return Kitchen(
        width,
        height,
        [_SIGNS.index(game.terrain_mtx[y][x]) for x in range(width) for y in range(height)],
        [x * height + y for x, y in start.player_positions],
        [Direction.DIRECTION_TO_INDEX[each] for each in start.player_orientations],
        [_thing(cook.held_object) for cook in start.players],
        things,
        ticks,
        values,
        times,
        float(pays["PLACEMENT_IN_POT_REW"]),
        float(pays["DISH_PICKUP_REWARD"]),
        float(pays["SOUP_PICKUP_REWARD"]),
    )


def _soup(ingredients: list[str]) -> int:
    return SOUP + (_FULL + 1) * ingredients.count("onion") + ingredients.count("tomato")


def _thing(thing: object | None) -> int:
    if thing is None:
        return NOTHING
    name = thing.name
    return _soup(thing.ingredients) if name == "soup" else {"onion": ONION, "tomato": TOMATO, "dish": DISH}[name]


class Overcooked(TeamEnv):
    """Two cooks prepare and deliver soups in a narrow kitchen: ``overcooked/<layout>`` (Carroll et al., 2019).

    Layouts, orders, values and cooking times are those of the package ``overcooked`` 0.2, a maintained fork of
    ``overcooked_ai``; the rules are played here for all environments at once, equal to the package's. Its other five
    layouts are no tasks: four have one or four cooks, whose states the package does not encode, and ``tutorial_3`` pays
    an infinite reward.

    Actions: north, south, east, west, stay, interact. A cook that moves turns in that direction, and goes there if the
    cell is free floor; where both aim at one cell, or at each other's, neither goes. To interact with the cell ahead is
    to take an onion, a tomato or a dish from where they lie in store, with empty hands; to lay down on a free counter
    what is held, or to take what lies there; to put an ingredient into a pot that is not cooking, up to three of them;
    to start cooking it, with empty hands; to take a soup that is ready, with a dish; to deliver a soup at a window. The
    first cook interacts before the second. Every action is legal.

    A delivered soup pays both cooks its value: 20 in most layouts, 0 if nobody ordered it, and twice as much where the
    layout has a bonus for it. ``shaping`` times 3 is added for an ingredient that is put into a pot, times 3 for a dish
    that is taken while a pot waits for one, times 5 for a soup that is taken from a pot. (The package's own environment
    adds all of this by default, and has ``shaping`` 1.) Truncation after ``max_steps``; nothing terminates.

    A game has one start and no chance, but for ``random_positions``.

    Observation of a cook, 25 width * height + 2: the package's lossless encoding, layer by layer, each of them column
    by column: where the cook is; where the other is; its directions and those of the other (four layers each); pots,
    counters, onions, tomatoes and dishes in store, windows; onions and tomatoes in pots that do not cook; onions and
    tomatoes in soups; how long these still cook; which are ready; dishes, onions and tomatoes that lie or are held;
    then the step divided by ``max_steps``, and whether the step is above 360 (the package's urgency). State: the
    observation of the first cook.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: seed of the starts, where they are random.
        layout: which kitchen.
        max_steps: time limit.
        shaping: factor of the shaped rewards.
        random_positions: whether cooks start on distinct free cells, drawn anew for each episode; in a kitchen of two
            rooms they may then be in one of them.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        layout: str = "cramped_room",
        max_steps: Annotated[int, COUNT] = STEPS,
        shaping: Annotated[float, NON_NEGATIVE] = 0.0,
        random_positions: bool = False,
    ) -> None:
        self.kitchen, self.shaping, self.random_positions = read_kitchen(layout), shaping, random_positions
        size = LAYERS * len(self.kitchen.tiles) + 2
        spec = TaskSpec(
            n_agents=COOKS,
            observation_size=size,
            state_size=size,
            action_size=len(ACTIONS),
            discrete=True,
            task=f"overcooked/{layout}",
        )
        super().__init__(spec=spec, num_envs=num_envs, device=device, seed=seed, max_episode_steps=max_steps)
        self._make_floor()

    def _make_floor(self) -> None:
        """Lay out what never changes."""
        kitchen, at = self.kitchen, {"device": self.device}
        real = at | {"dtype": self.float_dtype}
        self._tiles = torch.tensor(kitchen.tiles, **at)
        self._ahead = cells_ahead(kitchen).to(self.device)
        self._floor = self._tiles == FLOOR
        self._free_cells = self._floor.nonzero().flatten()
        self._counters = (self._tiles == COUNTER).nonzero().flatten()
        self._pots = (self._tiles == POT).nonzero().flatten()
        self._gives = torch.tensor(_GIVES, **at)[self._tiles]
        soups = [(onions, tomatoes) for onions in range(_FULL + 1) for tomatoes in range(_FULL + 1)]
        inside = torch.tensor([*[(0, 0)] * SOUP, *soups], **at)  # [things, 2]
        self._inside, self._filled = inside, inside.sum(-1)
        self._values = torch.tensor([*[0.0] * SOUP, *kitchen.values], **real)
        self._times = torch.tensor([*[0] * SOUP, *kitchen.times], **at)
        fixed = (POT, COUNTER, ONIONS, TOMATOES, DISHES, WINDOW)  # in the order of the layers
        self._static = torch.stack([self._tiles == kind for kind in fixed]).to(self.float_dtype)  # [6, C]
        self._is_pot = self._tiles == POT

    def _start(self, rows: Tensor | None) -> Game:
        kitchen, count = self.kitchen, self.num_envs if rows is None else len(rows)
        parts = {"cell": kitchen.cells, "facing": kitchen.facing, "held": kitchen.held, "time": [0]}
        parts |= {"things": kitchen.things, "ticks": kitchen.ticks}
        game = {key: torch.tensor(value, device=self.device).repeat(count, 1) for key, value in parts.items()}
        if self.random_positions:
            drawn = self.random.uniform(len(self._free_cells), rows=rows)
            game["cell"] = self._free_cells[drawn.topk(COOKS).indices]
        return game

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        held, things, ticks = (game[key].clone() for key in ("held", "things", "ticks"))
        faced = self._ahead[game["cell"], game["facing"]]  # [B, 2]
        waiting = self._pots_that_want_a_dish(things, ticks)
        paid = torch.zeros(self.num_envs, dtype=self.float_dtype, device=self.device)
        for cook in range(COOKS):
            acts = action[:, cook] == INTERACT
            paid = paid + self._interact(acts, cook, faced[:, cook : cook + 1], waiting, held, things, ticks)
        cell, facing = self._moved(game["cell"], game["facing"], action)
        cooks = (ticks >= 0) & (ticks < self._times[things])
        following = {"cell": cell, "facing": facing, "held": held, "things": things, "ticks": ticks + cooks}
        over = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        reward = paid.unsqueeze(-1).repeat(1, COOKS)
        return Outcome(following | {"time": game["time"] + 1}, reward, over)

    def _pots_that_want_a_dish(self, things: Tensor, ticks: Tensor) -> Tensor:
        """Return how many pots cook, are ready, or are begun and not full, int64 ``[B]``."""
        filled, tick = self._filled[things[:, self._pots]], ticks[:, self._pots]
        return ((tick >= 0) | ((filled > 0) & (filled < _FULL))).sum(-1)

    def _interact(
        self, acts: Tensor, cook: int, faced: Tensor, waiting: Tensor, held: Tensor, things: Tensor, ticks: Tensor
    ) -> Tensor:
        """Let one cook interact with the cell ``[B, 1]`` ahead where it ``acts``; change what is where, return its pay.

        ``held`` ``[B, 2]``, ``things`` and ``ticks`` ``[B, C]`` are written in place.
        """
        place = faced.squeeze(-1)
        tile, own = self._tiles[place], held[:, cook]
        lies, tick = things.gather(1, faced).squeeze(-1), ticks.gather(1, faced).squeeze(-1)
        empty, is_pot = own == NOTHING, acts & (tile == POT)
        is_soup = lies >= SOUP
        exchanged = acts & (tile == COUNTER) & (empty | (lies == NOTHING))
        taken = acts & empty & (self._gives[place] != NOTHING)
        started = is_pot & empty & is_soup & (tick < 0)
        ladled = is_pot & (own == DISH) & is_soup & (tick >= 0) & (tick >= self._times[lies])
        ingredient = (own == ONION) | (own == TOMATO)
        added = is_pot & ingredient & (tick < 0) & (self._filled[lies] < _FULL)
        delivered = acts & (tile == WINDOW) & (own >= SOUP)
        value = self._values[own] * delivered
        if self.shaping:
            dishes = (things[:, self._counters] == DISH).any(-1)
            useful = taken & (tile == DISHES) & ~dishes & ((held == DISH).sum(-1) < waiting)
            kitchen = self.kitchen
            shaped = kitchen.placing * added + kitchen.fetching * useful + kitchen.ladling * ladled
            value = value + self.shaping * shaped
        more = lies.clamp_min(SOUP) + torch.where(own == ONION, _FULL + 1, 1)
        gets = torch.where(exchanged | ladled, lies, torch.where(taken, self._gives[place], own))
        leaves = torch.where(exchanged, own, torch.where(ladled, NOTHING, torch.where(added, more, lies)))
        held[:, cook] = torch.where(added | delivered, NOTHING, gets)
        things.scatter_(1, faced, leaves.unsqueeze(-1))
        tick = torch.where(started, 0, torch.where(ladled, -1, tick))
        ticks.scatter_(1, faced, tick.unsqueeze(-1))
        return value

    def _moved(self, cell: Tensor, facing: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return cells and directions after moves, ``[B, 2]`` each."""
        moves = action < STAY
        turned = torch.where(moves, action, facing)
        aim = self._ahead[cell, turned]
        aim = torch.where(moves & self._floor[aim], aim, cell)
        blocked = (aim[:, :1] == aim[:, 1:]) | ((aim == cell.flip(-1)).all(-1, keepdim=True))
        return torch.where(blocked, cell, aim), turned

    def _view(self, game: Game) -> View:
        count, cells = len(game["cell"]), len(self._tiles)
        place = F.one_hot(game["cell"], cells).to(self.float_dtype)  # [B, 2, C]
        towards = F.one_hot(game["facing"] * cells + game["cell"], 4 * cells).to(self.float_dtype)
        fixed = self._static.flatten().expand(count, -1)
        things = game["things"].scatter(1, game["cell"], game["held"])  # no thing lies where a cook stands
        inside = self._inside[things].to(self.float_dtype)  # [B, C, 2]
        waits = (self._is_pot & (game["ticks"] < 0)).unsqueeze(-1)
        in_pots, in_soups = inside * waits, inside * ~waits
        cooking = self._is_pot & (game["ticks"] >= 0)
        left = (self._times[things] - game["ticks"]) * cooking
        ready = (things >= SOUP) & ~waits.squeeze(-1) & (left <= 0)
        kinds = [things == kind for kind in (DISH, ONION, TOMATO)]
        layers = [*in_pots.unbind(-1), *in_soups.unbind(-1), left, ready, *kinds]
        now = torch.cat([layer.to(self.float_dtype) for layer in layers], -1)  # [B, 9 C]
        time = game["time"]
        extras = torch.cat([time / self.max_episode_steps, (time > STEPS - URGENT).to(self.float_dtype)], -1)
        seen = [torch.cat([*each, fixed, now, extras], -1) for each in _in_turn(place, towards)]
        observation = torch.stack(seen, 1)
        return View(observation, observation[:, 0].clone())

    def _scene(self, index: int) -> Scene:
        kitchen, game = self.kitchen, {key: value[index].cpu() for key, value in self._game.items()}
        colours = {COUNTER: "#bb9966", ONIONS: "#ddbb44", TOMATOES: "#cc4433", DISHES: "#dddddd", POT: "#333333"}
        shapes = []
        for cell, kind in enumerate(kitchen.tiles):
            x, y = divmod(cell, kitchen.height)
            corners = [(x + dx, -y + dy) for dx, dy in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
            if kind != FLOOR:
                shapes.append(Shape(corners, colour=colours.get(kind, "#77aa77"), label=_SIGNS[kind].strip("X")))
            if thing := int(game["things"][cell]):
                shapes.append(_drawn(thing, (x, -y)))
        places = torch.stack([game["cell"] % kitchen.height, game["cell"] // kitchen.height], -1)
        cooks = on_board(places)
        shapes += discs(cooks, 0.4, AGENT_COLOURS, alpha=0.8)
        steps = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=cooks.dtype)
        shapes += discs(cooks + 0.4 * steps[game["facing"]], 0.1, "#222222")
        held = zip(game["held"].tolist(), cooks.tolist())
        return board(kitchen.height, kitchen.width, shapes + [_drawn(thing, tuple(at)) for thing, at in held if thing])


def _in_turn(place: Tensor, towards: Tensor) -> list[list[Tensor]]:
    """Return what each cook sees of both, itself first: ``[B, 2, C]`` and ``[B, 2, 4 C]``."""
    (one, other), (its, others) = place.unbind(1), towards.unbind(1)
    return [[one, other, its, others], [other, one, others, its]]


def _drawn(thing: int, at: tuple[float, float]) -> Shape:
    """Return an onion, a tomato, a dish, or a soup with its numbers of onions and tomatoes."""
    colour = {ONION: "#eecc55", TOMATO: "#dd5544", DISH: "#ffffff"}.get(thing, "#ee8833")
    label = "{}{}".format(*divmod(thing - SOUP, _FULL + 1)) if thing >= SOUP else ""
    return Shape([at], radius=0.2, colour=colour, label=label)


def cells_ahead(kitchen: Kitchen) -> Tensor:
    """Return the cell next to each in the directions of the actions, int64 ``[C, 4]``; its own beyond the edge."""
    x, y = torch.cartesian_prod(torch.arange(kitchen.width), torch.arange(kitchen.height)).unbind(-1)
    steps = ((0, -1), (0, 1), (1, 0), (-1, 0))
    ahead = [
        (x + dx).clamp(0, kitchen.width - 1) * kitchen.height + (y + dy).clamp(0, kitchen.height - 1)
        for dx, dy in steps
    ]
    return torch.stack(ahead, -1)
