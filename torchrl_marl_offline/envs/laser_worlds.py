"""Worlds of lasers: certificates of what they need, by exhaustive search, and small worlds of a wanted kind."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import DISCOUNT, SEED, Range
from torchrl_marl_offline.envs.laser_names import WorldKind

if TYPE_CHECKING:
    from lle import World

Plan = tuple[tuple[int, ...], ...]
LaserReward = Literal["full", "exits", "done"]

PLAN = Range(1, limit=10_000)  # steps; the solver sets memory aside for each
SIDE = Range(4, limit=12)
TEAM = Range(2, limit=4)
SOURCES = Range(1, limit=4)
GEMS = Range(0, limit=8)

_LAYOUTS, _DRAWS = 4000, 200  # tried for one candidate, and candidates looked at


class WorldOptimum(NamedTuple):
    """Proven bounds on what the best team earns in an episode; equal where it is known exactly."""

    low: float
    high: float


class WorldCertificate(NamedTuple):
    """What is proven of a world: the shortest plans of each kind, or that there is none of up to ``horizon`` steps.

    An agent helps another one where it stands in the beam of its own colour and the other one stands in that beam
    behind it, at the same time. All plans lead every agent to an exit, and none of them dies.

    Attributes:
        world: the map.
        horizon: length of the longest plans that were searched.
        agents: number of agents.
        gems: number of gems.
        shortest: steps of the shortest plan; ``None``: there is none of up to ``horizon`` steps, as below.
        shortest_without_help: ... in which nobody helps anybody.
        shortest_without_mutual: ... in which no two agents help each other.
        shortest_with_gems: ... that collects all gems.
        plan: a shortest plan, the actions of all agents in each step, one that collects all gems where there is one.
    """

    world: str
    horizon: int
    agents: int
    gems: int
    shortest: int | None
    shortest_without_help: int | None
    shortest_without_mutual: int | None
    shortest_with_gems: int | None
    plan: Plan | None

    @property
    def kind(self) -> WorldKind | None:
        """What the world needs within the horizon; ``None`` where it has no plan.

        ``"none"``: a plan without help exists. ``"one_sided"``: none without help does, but one without mutual help.
        ``"mutual"``: in every plan some two agents help each other.
        """
        if self.shortest is None:
            return None
        if self.shortest_without_help is not None:
            return "none"
        return "mutual" if self.shortest_without_mutual is None else "one_sided"

    @checked
    def optimum(
        self,
        *,
        reward: LaserReward = "full",
        max_steps: Annotated[int | None, PLAN] = None,
        gamma: Annotated[float, DISCOUNT] = 1.0,
    ) -> WorldOptimum:
        """Return proven bounds on the best return of an episode.

        With ``"done"`` the best return is ``gamma ** (shortest - 1)``, exactly, and 0 where there is no plan. Without
        discount the other two are known exactly where the shortest plan (for ``"full"``, the shortest that collects all
        gems) fits into the time limit: nothing pays more than once, and the plan earns all of it. With a discount the
        plan's own return is the lower bound; for the upper one the last exit comes no earlier than the shortest plan's
        last step, any other exit no earlier than that agent alone could walk to an exit if there were no lasers and no
        other agents, and each gem no earlier than the nearest agent could walk to it so.

        Args:
            reward: of :class:`~torchrl_marl_offline.envs.laser_grid.LaserGrid`.
            max_steps: time limit, at most the horizon, which is the default.
            gamma: discount.

        Raises:
            ValueError: the time limit lies beyond the horizon.
        """
        limit = self.horizon if max_steps is None else max_steps
        if limit > self.horizon:
            raise ValueError(f"The certificate is of up to {self.horizon} steps; certify the world for {limit}.")
        return optimum_of(self.world, limit, reward, gamma)

    def __str__(self) -> str:
        found = {
            "plan": self.shortest,
            "plan without help": self.shortest_without_help,
            "plan without mutual help": self.shortest_without_mutual,
            "plan with all gems": self.shortest_with_gems,
        }
        told = ", ".join(f"{name} {'none' if steps is None else steps}" for name, steps in found.items())
        return f"{self.kind or 'no plan'}; shortest {told} (of up to {self.horizon} steps)"

    def to_dict(self) -> dict[str, Any]:
        """Return everything that is proven, JSON-ready."""
        plan = None if self.plan is None else list(map(list, self.plan))
        return {"kind": self.kind, "words": str(self)} | self._asdict() | {"plan": plan}


@checked
def certify_world(world: str, *, horizon: Annotated[int, PLAN]) -> WorldCertificate:
    r"""Search all plans of a world of up to ``horizon`` steps by the package's SAT solver.

    Args:
        world: its map, as the package ``lle`` writes it.
        horizon: of the longest plans. Proofs that there is none take longer with it.

    Raises:
        ValueError: the map is none.

    Examples:
        >>> from torchrl_marl_offline.envs import certify_world
        >>> found = certify_world("S0 . . X\n. . . L0W\nS1 . . X", horizon=12)
        >>> found.kind, found.shortest, found.optimum()
        ('none', 3, WorldOptimum(low=3.0, high=3.0))
    """
    return _certificate(world, horizon)


@lru_cache(maxsize=256)
def _certificate(world: str, horizon: int) -> WorldCertificate:
    made = parsed(world)
    plain = shortest_plan(world, horizon)
    with_gems = shortest_plan(world, horizon, gems=True) if plain else None
    without_help = shortest_plan(world, horizon, mode="no-cooperation") if plain else None
    # who needs no help needs no mutual help, and a plan as short as the shortest ends the search
    without_mutual = shortest_plan(world, horizon, mode="no-mutual") if plain else None
    return WorldCertificate(
        world,
        horizon,
        made.n_agents,
        made.n_gems,
        *(None if plan is None else len(plan) for plan in (plain, without_help, without_mutual, with_gems)),
        plan=with_gems or plain,
    )


@lru_cache(maxsize=1024)
def shortest_plan(world: str, horizon: int, *, mode: str = "standard", gems: bool = False) -> Plan | None:
    """Return a shortest plan of up to ``horizon`` steps, the actions of all agents in each, or ``None``: there is none.

    Args:
        world: its map.
        horizon: of the longest plans.
        mode: of the package's solver.
        gems: whether all of them have to be collected.
    """
    from lle.solver import Solver

    solver = Solver(parsed(world), horizon)
    plan = solver.find_shortest(mode, collect_gems=gems) if solver.solution_lower_bound <= horizon else None
    return None if plan is None else tuple(tuple(action.value for action in joint) for joint in plan)


def optimum_of(world: str, max_steps: int, reward: LaserReward, gamma: float = 1.0) -> WorldOptimum:
    """Return what :meth:`WorldCertificate.optimum` does, without the searches that it does not need."""
    made = parsed(world)
    gems = made.n_gems if reward == "full" else 0
    shortest = shortest_plan(world, max_steps)
    if reward == "done":
        best = 0.0 if shortest is None else float(gamma ** (len(shortest) - 1))
        return WorldOptimum(best, best)
    if shortest is None:  # all but one may have come to an exit
        return WorldOptimum(0.0, float(gems + made.n_agents - 1))
    plans = [shortest, best_plan(world, max_steps, reward)]
    low = max(_earned(made, plan, gamma, counts_gems=gems > 0) for plan in plans)
    walks = _walks(made)
    exits = sorted(min(found.get(place, max_steps) for place in made.exit_pos) for found in walks)
    steps = exits[:-1] + [len(shortest)] * 2
    if gems:
        steps += [max(1, min(found.get(gem.pos, max_steps) for found in walks)) for gem in made.gems]
    high = float(sum(gamma ** (step - 1) for step in steps))
    return WorldOptimum(low, max(low, high))


def _walks(world: World) -> list[dict[tuple[int, int], int]]:
    """Return how many steps away each cell is from each agent's start, without lasers and other agents."""
    blocked = set(world.wall_pos) | set(world.void_pos) | {source.pos for source in world.laser_sources}
    found = []
    for start in world.start_pos:
        steps, waiting = {start: 0}, deque([start])
        while waiting:
            row, column = here = waiting.popleft()
            for there in ((row - 1, column), (row + 1, column), (row, column + 1), (row, column - 1)):
                inside = 0 <= there[0] < world.height and 0 <= there[1] < world.width
                if inside and there not in blocked and there not in steps:
                    steps[there] = steps[here] + 1
                    waiting.append(there)
        found.append(steps)
    return found


def best_plan(world: str, max_steps: int, reward: LaserReward) -> Plan | None:
    """Return a shortest plan, one that collects all gems where they are paid and there is one."""
    plan = shortest_plan(world, max_steps, gems=True) if reward == "full" else None
    return plan or shortest_plan(world, max_steps)


def _earned(world: World, plan: Plan, gamma: float, *, counts_gems: bool) -> float:
    """Return what a plan earns by gems, exits and the last of these."""
    from lle import Action, EventType

    world.reset()
    counted = {EventType.AGENT_EXIT} | ({EventType.GEM_COLLECTED} if counts_gems else set())
    steps = [world.step([Action(each) for each in joint]) for joint in plan]
    paid = [sum(event.event_type in counted for event in events) for events in steps]
    paid[-1] += 1
    return float(sum(pay * gamma**step for step, pay in enumerate(paid) if pay))


def parsed(world: str) -> World:
    """Return a map as the package's world, at its start.

    Raises:
        ValueError: it is no map, or draws starts by chance.
    """
    from lle import World

    if not isinstance(world, str):
        raise ValueError(f"A world is given by its map, lines of tiles as 'S0 . X', got {world!r:.60}.")
    try:
        made = World(world)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The map of the world cannot be read: {error}; its tiles are those of the package lle."
        ) from error
    if any(len(starts) > 1 for starts in made.random_start_pos):
        raise ValueError("The world draws its agents' starts by chance; give each agent one start, as S0.")
    made.reset()
    return made


@lru_cache(maxsize=256)
@checked
def generate_world(
    kind: WorldKind,
    seed: Annotated[int, SEED] = 0,
    *,
    size: Annotated[int, SIDE] = 5,
    agents: Annotated[int, TEAM] = 2,
    lasers: Annotated[int, SOURCES] = 2,
    gems: Annotated[int, GEMS] = 0,
) -> WorldCertificate:
    """Draw square worlds until one is certified to be of a kind, for plans of up to ``size * size`` steps.

    Agents start at one edge and leave at the opposite one; lasers, of the colours of different agents, and a tenth of
    the cells as walls lie anywhere. The shortest plan has at least ``size`` steps and is of the kind itself: a world of
    ``"none"`` has a shortest plan without help, one of ``"one_sided"`` a shortest plan without mutual help, so that
    more help than needed saves no step.

    Args:
        kind: what the world has to need.
        seed: of the drawing.
        size: cells along each side.
        agents: number of agents.
        lasers: number of lasers, at most that of the agents.
        gems: number of gems.

    Raises:
        ValueError: there are more lasers than agents, too little room, too few lasers for the kind, or none was found.

    Examples:
        >>> from torchrl_marl_offline.envs import generate_world
        >>> found = generate_world("mutual", 0)
        >>> found.kind, found.shortest_without_help is None, found.shortest_without_mutual is None
        ('mutual', True, True)
    """
    from lle.generator import Cooperative, Independent, Interdependent, generate

    if lasers > agents:
        raise ValueError(f"A world has at most one laser of each agent's colour: lasers={lasers}, agents={agents}.")
    if kind == "mutual" and lasers < 2:
        raise ValueError("In a world of the kind mutual two agents block their lasers for each other; take lasers=2.")
    wanted = {"none": Independent(), "one_sided": Cooperative() & ~Interdependent(2), "mutual": Interdependent(2)}
    horizon = size * size
    layouts = generate(width=size, height=size, n_agents=agents).lanes().lasers(lasers).gems(gems)
    layouts = layouts.require(wanted[kind]).cap(horizon).at_least(size)
    for draw in range(_DRAWS):
        try:
            world = layouts.build(seed=seed * _DRAWS + draw, max_attempts=_LAYOUTS)
        except ValueError:  # more things than cells
            world = None
        if world is None:
            break
        found = _certificate(world.world_string, horizon)
        least = {"none": found.shortest_without_help, "one_sided": found.shortest_without_mutual}
        solved = found.shortest_with_gems is not None
        if solved and found.kind == kind and least.get(kind, found.shortest) == found.shortest:
            return found
    raise ValueError(
        f"No world of the kind {kind} was found with size={size}, agents={agents}, lasers={lasers}, gems={gems}; take "
        "a larger size, fewer agents, or another seed."
    )
