"""The suite ``coordination``: datasets whose best joint action is known, and mostly not recorded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torchrl_marl_offline.data.collection import Policy
from torchrl_marl_offline.envs.foraging import foraging_options
from torchrl_marl_offline.envs.foraging_controller import ForagingController
from torchrl_marl_offline.envs.hanabi_controller import HanabiController
from torchrl_marl_offline.envs.laser_grid import LaserGrid
from torchrl_marl_offline.envs.laser_names import CORE_WORLDS, split_world_name
from torchrl_marl_offline.envs.mixed_motives import RepeatedGame, StrategyController
from torchrl_marl_offline.envs.scripted import GridController, MixedSkill, OneStrongAgent
from torchrl_marl_offline.envs.stitch import Stitch, StitchController
from torchrl_marl_offline.envs.vmas_heuristics import VmasHeuristic
from torchrl_marl_offline.envs.warehouse_controller import WarehouseController
from torchrl_marl_offline.recording.graded import check_all_are_held
from torchrl_marl_offline.recording.hanabi_games import read_hanabi_games
from torchrl_marl_offline.recording.laser_teams import laser_team
from torchrl_marl_offline.suites.entries import (
    BestReturn,
    Making,
    Recorded,
    Suite,
    SuiteEntry,
    SuiteError,
    best_known,
    played,
    played_by_teams,
)

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

PAYOFFS = {
    "additive": "a sum of each agent's own values",
    "monotonic": "a product, which rises with each agent's value",
    "weakest_link": "the smallest of the agents' values",
    "matching": "nothing unless both choose the same convention",
    "climbing": "a loss where only one plays the best action",
}
COVERAGES = {
    "full": "all joint actions are recorded",
    "best_left_out": "all joint actions but the best one are recorded",
    "two_teams": "two teams that share no action are recorded",
    "bridged_1": "two teams and one joint action between them are recorded",
    "star": "one joint action, and all in which one agent leaves it, are recorded",
    "share_0.5": "half of the joint actions are recorded",
}
STITCH_SIZES = {"agents": 2, "actions": 5, "contexts": 8}
STITCH_TRANSITIONS = 2_000

_NEVER = "one agent plays at random and the other defects, so that they never cooperate together"
MOTIVES = {
    "stag_hunt": "all joint actions are recorded, and the best one is worse for who has a partner that plays at random",
    "chicken": f"{_NEVER}, and what comes after it is not recorded either",
    "prisoners_dilemma": f"{_NEVER}, and what comes after it is not recorded either",
    "public_goods": "one agent plays at random and the others keep, so that they never give together",
}
MOTIVES_EPISODES = 250

HANABI_GAMES = 150
"""A game of two takes 70 turns and more than a megabyte."""

HANABI_FILE = Path("hanabi") / "hanabi_2p_5000_games.npz"
"""Where recorded games lie in a folder of recordings."""


# ------------------------------------------------------------------------------ stitch


def _record_coverage(entry: SuiteEntry, making: Making, *, coverage: str) -> Recorded:
    env = entry.make_env(250, making.seed)
    policy = StitchController(env, coverage, seed=making.seed)
    words = f"all joint actions of the coverage {coverage} in turn"
    dataset = entry.collect(env, policy, words, making, steps=STITCH_TRANSITIONS)
    check_all_are_held(dataset, policy)
    return Recorded(dataset)


def _best_of_tables(entry: SuiteEntry, _: Making) -> BestReturn:
    env: Stitch = entry.make_env(1)
    cells = env.task_spec.action_size**env.task_spec.n_agents
    words = f"the largest of the {cells} payoffs of each of {len(env.payoffs)} contexts"
    return BestReturn(env.best_return, "enumeration", words)


def _stitch() -> list[SuiteEntry]:
    return [
        SuiteEntry(
            name=f"stitch-{payoff}-{coverage}",
            group=f"stitch-{payoff}",
            task="games/stitch",
            options=STITCH_SIZES | {"payoff": payoff},
            record=partial(_record_coverage, coverage=coverage),
            optimum=_best_of_tables,
            random=lambda env: env.reference_returns[0],
            about=f"The payoff is {pays}; {recorded}.",
        )
        for payoff, pays in PAYOFFS.items()
        for coverage, recorded in COVERAGES.items()
    ]


# ----------------------------------------------------------------------- mixed motives


def _strategies(env: RepeatedGame, seed: int, *, name: str) -> Policy:
    agents = env.task_spec.n_agents
    if name == "stag_hunt":
        return StrategyController(env, ["random"] * agents, seed=seed)
    teams = [["random" if agent == one else "defect" for agent in range(agents)] for one in range(agents)]
    return MixedSkill([StrategyController(env, team, seed=seed) for team in teams], seed=seed)


def _behaviour(name: str) -> str:
    if name == "stag_hunt":
        return "random"
    return "one agent, drawn for each episode, plays at random, and the others defect"


def _best_step_repeated(entry: SuiteEntry, _: Making) -> BestReturn:
    env: RepeatedGame = entry.make_env(1)
    words = f"the largest mean over agents of the {2**env.task_spec.n_agents} joint actions of a step, in each step"
    return BestReturn(env.reference_returns[1], "enumeration", words)


def _mixed_motives() -> list[SuiteEntry]:
    return [
        SuiteEntry(
            name=f"motives-{name}",
            group="motives",
            task=f"games/{name}",
            record=played(partial(_strategies, name=name), episodes=MOTIVES_EPISODES, behaviour=_behaviour(name)),
            optimum=_best_step_repeated,
            random=lambda env: env.reference_returns[0],
            about=f"Each agent has its own reward; {recorded}.",
        )
        for name, recorded in MOTIVES.items()
    ]


# -------------------------------------------------------------------------- laser worlds

HELP = {"none": "nobody's help", "one_sided": "one agent's help of another", "mutual": "two agents' help of each other"}
LASER_EPISODES = 1000
LASER_TEAMS = {
    "outnumbered": "nine of ten recorded teams are short-sighted",
    "parted": "no recorded team is good to the end, and most are short-sighted",
}
"""Qualities of :func:`~torchrl_marl_offline.recording.laser_teams.laser_team`, and what they make hard."""

PARTED_WORLDS = ("none-0", "one_sided-1", "mutual-1")
"""One of each kind; the others are of ``outnumbered`` teams."""


def _record_laser_world(entry: SuiteEntry, making: Making, *, quality: str) -> Recorded:
    env = entry.make_env(100, making.seed)
    words, team = laser_team(env, quality, making.seed)
    return Recorded(entry.collect(env, team, words, making, episodes=LASER_EPISODES))


def _certified(entry: SuiteEntry, _: Making) -> BestReturn:
    env: LaserGrid = entry.make_env(1)
    return BestReturn(env.best_return, "proof", f"by a SAT solver: {env.certificate}")


def _laser_world(world: str) -> SuiteEntry:
    name = world.removeprefix("lle/")
    quality = "parted" if name in PARTED_WORLDS else "outnumbered"
    needed = HELP[split_world_name(name)[0]]
    return SuiteEntry(
        name=f"lle-{name}",
        group="lle",
        task=world,
        record=partial(_record_laser_world, quality=quality),
        optimum=_certified,
        about=f"Agents stop laser beams for each other; this world needs {needed}; {LASER_TEAMS[quality]}.",
    )


def _laser_worlds() -> list[SuiteEntry]:
    return [_laser_world(world) for world in CORE_WORLDS]


# ------------------------------------------------------------------------------- more


def _roles(
    words: str, strong: Callable[[EnvBase, int], Policy], weak: Callable[[EnvBase, int], Policy]
) -> Callable[[EnvBase, int], dict[str, Policy]]:
    """Return what makes the teams of an entry: each agent in its turn acts well, the others do not.

    Args:
        words: of a team, with the agent's number in place of ``{}``.
        strong: environment and seed -> the policy of the one.
        weak: likewise, of the others.
    """

    def teams(env: EnvBase, seed: int) -> dict[str, Policy]:
        return {
            words.format(agent): OneStrongAgent(
                strong(env, 10 * seed + agent), weak(env, 10 * seed + 5 + agent), agent=agent
            )
            for agent in range(env.task_spec.n_agents)
        }

    return teams


_grid_roles = _roles(
    "the team whose agent {} walks well",
    lambda _, seed: GridController("optimal", seed=seed),
    lambda _, seed: GridController("random", seed=seed),
)
_foraging_roles = _roles(
    "the team whose agent {} goes where all should",
    lambda _, seed: ForagingController("team", seed=seed),
    lambda _, seed: ForagingController("random", seed=seed),
)
_warehouse_roles = _roles(
    "the team whose robot {} delivers",
    lambda env, seed: WarehouseController(env, epsilon=0.05, seed=seed),
    lambda env, seed: WarehouseController(env, epsilon=1.0, seed=seed),
)


def _vmas_mixture(env: EnvBase, _: int) -> dict[str, Policy]:
    return {f"VMAS's heuristic with noise {noise}": VmasHeuristic(env, noise=noise) for noise in (0.3, 1.0)}


def _trained_balance(entry: SuiteEntry, _: Making) -> BestReturn:
    return BestReturn(
        25.4, "best known", "a team that `record` trained by 8,000 updates of MATD3 (benchmarks/RESULTS.md)"
    )


def _everything_collected(entry: SuiteEntry, _: Making) -> BestReturn:
    return BestReturn(1.0, "bound", "the return is 1 where all food is collected, and no more")


def _all_cards(entry: SuiteEntry, _: Making) -> BestReturn:
    return BestReturn(25.0, "bound", "all 25 cards are played; not every deck allows it")


def _hanabi_teams(env: EnvBase, seed: int) -> dict[str, Policy]:
    return {
        f"the scripted team with a share {epsilon} of random actions": HanabiController(env, epsilon=epsilon, seed=seed)
        for epsilon in (0.0, 0.1, 0.3)
    }


def _record_hanabi(entry: SuiteEntry, making: Making) -> Recorded:
    if making.recordings is None:
        return _play_hanabi(entry, making)
    file = making.recordings / HANABI_FILE
    if not file.is_file():
        raise SuiteError(f"There are no recorded games of Hanabi at {file}; give another folder, or none.")
    dataset = read_hanabi_games(file, games=HANABI_GAMES)
    dataset.metadata |= {"quality": entry.name, "behaviour": "recorded games"}
    return Recorded(dataset)


_play_hanabi = played_by_teams(
    _hanabi_teams,
    episodes=HANABI_GAMES,
    behaviour="a scripted team that hints what can be played, with a share 0, .1 or .3 of random actions",
)


def _more() -> list[SuiteEntry]:
    return [
        SuiteEntry(
            name="hanabi-2p",
            group="hanabi",
            task="games/hanabi",
            record=_record_hanabi,
            optimum=_all_cards,
            core=False,
            about="Agents see all cards but their own, and speak by hints alone.",
        ),
        SuiteEntry(
            name="foraging-roles",
            group="roles",
            task="games/foraging",
            options=foraging_options("Foraging-8x8-2p-2f-coop-v3") | {"reward": "team"},
            record=played_by_teams(
                _foraging_roles, episodes=1000, behaviour="one agent goes where all should, the others act at random"
            ),
            optimum=_everything_collected,
            core=False,
            about="Each food needs all agents; no recorded team has more than one agent that goes there on purpose.",
        ),
        SuiteEntry(
            name="grid-roles",
            group="roles",
            task="games/grid_navigation",
            options={"agents": 3, "max_steps": 20},
            record=played_by_teams(
                _grid_roles, episodes=1000, behaviour="one agent walks to its landmark, the others at random"
            ),
            optimum=best_known(
                lambda _, seed: GridController("optimal", seed=seed), "all agents walk to the cheapest assignment"
            ),
            core=False,
            about="All landmarks have to be reached; no recorded team has more than one agent that walks well.",
        ),
        SuiteEntry(
            name="warehouse-roles",
            group="roles",
            task="rware/tiny",
            options={"agents": 2, "reward": "team"},
            record=played_by_teams(
                _warehouse_roles, episodes=60, num_envs=60, behaviour="one robot delivers, the others act at random"
            ),
            optimum=best_known(
                lambda env, seed: WarehouseController(env, epsilon=0.05, seed=seed),
                "the scripted team, of which all robots deliver and a share .05 of actions is random",
            ),
            core=False,
            about="Robots deliver shelves and must not block each other; no recorded team has two that deliver.",
        ),
        SuiteEntry(
            name="vmas-balance",
            group="vmas",
            task="vmas/balance",
            record=played_by_teams(
                _vmas_mixture, episodes=300, num_envs=100, behaviour="VMAS's heuristic, noise .3 or 1"
            ),
            optimum=_trained_balance,
            core=False,
            about="Continuous actions: a package is balanced to its goal by all agents together.",
        ),
    ]


COORDINATION = Suite(
    name="coordination",
    version=2,
    entries=(*_stitch(), *_laser_worlds(), *_mixed_motives(), *_more()),
    about="The best joint action is known, and mostly not recorded.",
)
