"""Hand-written teams for Overcooked: cooks that share the work, that each work alone, or that act at random."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, STATE
from torchrl_marl_offline.core.ranges import SEED, UNIT
from torchrl_marl_offline.envs.base import entry_read, game_of
from torchrl_marl_offline.envs.overcooked import (
    ACTIONS,
    COOKS,
    COUNTER,
    DISH,
    DISHES,
    FLOOR,
    INTERACT,
    LAYERS,
    NOTHING,
    ONION,
    ONIONS,
    POT,
    SOUP,
    STAY,
    TOMATO,
    TOMATOES,
    WINDOW,
    Kitchen,
    Overcooked,
    cells_ahead,
)
from torchrl_marl_offline.envs.scripted import Chance

CookKind = Literal["team", "alone", "random"]

_START = SOUP + 1  # what a cook goes for that starts a pot
_FAR = 10_000.0
_SIDESTEP = 2.5  # what a cell with the other cook on it costs in steps


class _Seen(NamedTuple):
    """What a state says, for ``N`` kitchens of ``C`` cells."""

    cell: Tensor  # [N, 2]
    facing: Tensor  # [N, 2]
    held: Tensor  # [N, 2]; every soup is SOUP
    lies: Tensor  # [N, C], on counters, in the same way
    onions: Tensor  # [N, C], in pots that do not cook
    tomatoes: Tensor
    cooks: Tensor  # [N, C] bool, pots that cook or are ready


class _Needs(NamedTuple):
    """What a kitchen wants of a cook, ``[N, C]`` each."""

    reach: Tensor  # bool, cells that it can come next to
    other: Tensor  # bool, and those that the other cook can
    onions: Tensor  # how many more each pot takes
    tomatoes: Tensor
    start: Tensor  # bool, pots that may cook
    dishes: Tensor  # bool, pots for whose soup there shall be a dish


class OvercookedController(TensorDictModuleBase):
    """Plays ``overcooked/*`` by the state.

    A cook with empty hands starts a pot that holds the recipe, or else takes a soup that lies on a counter, a dish if a
    pot waits for one, or an ingredient that a pot still wants. With full hands it goes where that is wanted; where it
    cannot get there, it hands it over on a counter that both reach, and what nobody wants it lays down. With nothing to
    do it walks about. The recipe is the one of the highest value for which the kitchen has the ingredients.

    - ``"team"``: cooks count what the other holds, and the second leaves to the first what that one goes for;
    - ``"alone"``: each cook works as if the other held nothing and did nothing;
    - ``"random"``: uniform over the actions.

    Cooks that meet in a narrow place walk around each other or block each other until one of them acts at random, so
    that a team needs an ``epsilon``.

    Args:
        env: the kitchen.
        kind: one of the above.
        epsilon: probability with which a cook takes a uniformly random action instead.
        seed: of the chance; ``None`` takes torch's global generator.

    Raises:
        ValueError: the environment is another task.

    Examples:
        >>> from torchrl_marl_offline.envs import OvercookedController, make_env
        >>> from torchrl_marl_offline.evaluation import evaluate
        >>> env = make_env("overcooked/cramped_room", num_envs=10)
        >>> evaluate(OvercookedController(env, seed=0), env, episodes=10, seed=0).mean > 100
        True
    """

    @checked
    def __init__(
        self,
        env: EnvBase,
        kind: CookKind = "team",
        *,
        epsilon: Annotated[float, UNIT] = 0.1,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        game = game_of(env, Overcooked, "OvercookedController plays in environments of overcooked/*, not")
        self.in_keys, self.out_keys = [STATE], [ACTION]
        super().__init__()
        self.kind, self.epsilon = kind, epsilon
        self._chance = Chance(seed)
        kitchen, device = game.kitchen, game.device
        self.recipe, self._width = best_recipe(kitchen), game.task_spec.state_size
        tiles = torch.tensor(kitchen.tiles, device=device)
        ahead = cells_ahead(kitchen).to(device)
        for name, table in (("tiles", tiles), ("ahead", ahead), ("away", _steps_away(tiles == FLOOR, ahead))):
            self.register_buffer(name, table, persistent=False)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        state = entry_read(self, tensordict, STATE, self._width)
        batch, generator = state.shape[:-1], self._chance(state.device)
        random = torch.randint(len(ACTIONS), (*batch, COOKS), device=state.device, generator=generator)
        if self.kind == "random":
            return tensordict.set(ACTION, random)
        seen = self._read(state.reshape(-1, state.shape[-1]))
        drawn = torch.rand(len(seen.cell), COOKS, 4, device=state.device, generator=generator)
        action = self._work(seen, drawn).view(*batch, COOKS)
        return tensordict.set(ACTION, self._chance.explored(action, random, self.epsilon))

    def _read(self, state: Tensor) -> _Seen:
        layers = state[:, : LAYERS * len(self.tiles)].unflatten(-1, (LAYERS, -1))
        cell = layers[:, :2].argmax(-1)
        facing = layers[:, 2:10].sum(-1).unflatten(-1, (COOKS, 4)).argmax(-1)
        ready, dishes, onions, tomatoes = layers[:, 21:25].unbind(1)
        lies = (ONION * onions + TOMATO * tomatoes + DISH * dishes).long()
        lies = torch.where((ready > 0) & (self.tiles != POT), SOUP, lies)
        in_soups = (layers[:, 18:20].sum(1) > 0) & (self.tiles == POT)
        held = lies.gather(1, cell)
        lies = lies * (self.tiles == COUNTER)
        return _Seen(cell, facing, held, lies, layers[:, 16], layers[:, 17], in_soups)

    def _work(self, seen: _Seen, drawn: Tensor) -> Tensor:
        """Return the action of each cook, ``[N, 2]``; ``drawn`` ``[N, 2, 4]`` is uniform in [0, 1)."""
        actions, goes_for = [], torch.zeros_like(seen.held[:, :1])
        for cook in range(COOKS):
            targets, job = self._targets(seen, cook, goes_for)
            if self.kind == "team":
                goes_for = job
            actions.append(self._towards(seen, cook, targets, drawn[:, cook]))
        return torch.stack(actions, 1)

    def _targets(self, seen: _Seen, cook: int, goes_for: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cells with which a cook wants to interact, bool ``[N, C]``, and what it goes for, ``[N, 1]``.

        ``goes_for`` is the thing that the cook before it goes for, with empty hands, or 0.
        """
        needs, held = self._needs(seen, cook), seen.held[:, cook : cook + 1]
        counted = seen.held if self.kind == "team" else held
        in_play = {
            thing: sum((each == thing).sum(-1, keepdim=True) for each in (seen.lies, counted, goes_for))
            for thing in (ONION, TOMATO, DISH)
        }
        taken, job = self._to_take(seen, needs, goes_for, in_play)
        empty = held == NOTHING
        return torch.where(empty, taken, self._to_bring(seen, needs, held)), torch.where(empty, job, NOTHING)

    def _needs(self, seen: _Seen, cook: int) -> _Needs:
        reach, other = (self.away[seen.cell[:, each]] < _FAR for each in (cook, 1 - cook))
        is_pot = (self.tiles == POT) & ~seen.cooks
        lacks = [(wanted - there) * is_pot for wanted, there in zip(self.recipe, (seen.onions, seen.tomatoes))]
        spoiled = (lacks[0] < 0) | (lacks[1] < 0)
        complete = is_pot & (spoiled | (lacks[0] + lacks[1] == 0))
        return _Needs(reach, other, lacks[0] * ~spoiled, lacks[1] * ~spoiled, complete, seen.cooks | complete)

    def _to_take(
        self, seen: _Seen, needs: _Needs, goes_for: Tensor, in_play: dict[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return where a cook with empty hands goes, and for what: the first of these that is somewhere."""
        lacks = {ONION: needs.onions, TOMATO: needs.tomatoes, DISH: needs.dishes}
        served, cooked = ((needs.reach & (self.tiles == tile)).any(-1, keepdim=True) for tile in (WINDOW, POT))
        jobs = [(_START, needs.start & (goes_for != _START)), (SOUP, (seen.lies == SOUP) & served)]
        for thing, store in ((DISH, DISHES), (ONION, ONIONS), (TOMATO, TOMATOES)):
            lacking = lacks[thing].sum(-1, keepdim=True)
            # what lies on a counter is in play already: it is for whoever reaches a pot
            jobs.append((thing, (seen.lies == thing) & cooked & (lacking > 0) & (goes_for != thing)))
            jobs.append((thing, (self.tiles == store) & (lacking > in_play[thing])))
        targets, job = torch.zeros_like(needs.reach), torch.zeros_like(goes_for)
        for thing, cells in jobs:
            cells = cells & needs.reach & (job == NOTHING)
            job = torch.where(cells.any(-1, keepdim=True), thing, job)
            targets = targets | cells
        return targets, job

    def _to_bring(self, seen: _Seen, needs: _Needs, held: Tensor) -> Tensor:
        """Return where a cook with full hands goes: where that is wanted, else to a counter."""
        use = torch.where(held == ONION, needs.onions > 0, needs.tomatoes > 0)
        use = torch.where(held == SOUP, self.tiles == WINDOW, torch.where(held == DISH, needs.dishes, use))
        used = use & needs.reach
        free = (self.tiles == COUNTER) & (seen.lies == NOTHING) & needs.reach
        shared = free & needs.other & (use & needs.other).any(-1, keepdim=True)  # for the other cook to bring it there
        laid = torch.where(shared.any(-1, keepdim=True), shared, free)
        return torch.where(used.any(-1, keepdim=True), used, laid)

    def _towards(self, seen: _Seen, cook: int, targets: Tensor, drawn: Tensor) -> Tensor:
        """Return the action of one cook that leads to the nearest of its targets, ``[N]``."""
        cell, facing, other = seen.cell[:, cook], seen.facing[:, cook], seen.cell[:, 1 - cook]
        far = self.away[cell].masked_fill(~targets, 2 * _FAR)
        target = far.argmin(-1, keepdim=True)
        ahead = self.ahead[cell]  # [N, 4]
        left = self.away[ahead, target] + _SIDESTEP * (ahead == other.unsqueeze(-1)) + 0.4 * drawn
        left = left.masked_fill(self.tiles[ahead] != FLOOR, _FAR)
        beside = ahead == target
        chosen = torch.where(beside.any(-1), beside.int().argmax(-1), left.argmin(-1))
        chosen = torch.where(beside.any(-1) & (chosen == facing), INTERACT, chosen)
        about = torch.where(drawn[:, 0] < 0.5, (8 * drawn[:, 0]).long(), STAY)  # nothing to do
        return torch.where(targets.any(-1), chosen, about)


def best_recipe(kitchen: Kitchen) -> tuple[int, int]:
    """Return the numbers of onions and tomatoes of the soup that pays most, the quickest of several."""
    has = [kind in kitchen.tiles for kind in (ONIONS, TOMATOES)]
    soups = [(onions, tomatoes) for onions in range(4) for tomatoes in range(4)]
    ranks = {
        (value, -time, -sum(soup)): soup
        for soup, value, time in zip(soups, kitchen.values, kitchen.times)
        if (has[0] or not soup[0]) and (has[1] or not soup[1])
    }
    return ranks[max(ranks)]


def _steps_away(floor: Tensor, ahead: Tensor) -> Tensor:
    """Return how many steps each cell is from one next to each target, ``[C cells, C targets]``."""
    count = len(floor)
    away = torch.full((count, count), _FAR, device=floor.device)
    cells = torch.arange(count, device=floor.device)
    beside = (ahead.unsqueeze(-1) == cells).any(1) & floor.unsqueeze(-1)
    away[beside] = 0.0
    while True:
        nearer = torch.minimum(away, 1 + away[ahead].amin(1)).masked_fill(~floor.unsqueeze(-1), _FAR)
        if torch.equal(nearer, away):
            return away
        away = nearer
