"""``make_env("family/task")``: the one way to an environment."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, NamedTuple

import torch
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.annotations import parameters_of
from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.devices import check_device_is_there
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import SEED, SIZE
from torchrl_marl_offline.envs.laser_names import world_names
from torchrl_marl_offline.envs.overcooked_names import layout_names
from torchrl_marl_offline.envs.starcraft_names import INSTALL, smac_names, smacv2_names


class Family(NamedTuple):
    """A group of tasks that need the same library.

    Args:
        tasks: task name -> ``"module:callable"`` below this package, called with ``num_envs``, ``device``, ``seed``
            and the options; or a function without arguments that returns such a mapping.
        library: module that has to be importable, or ``None``.
        install: what to do when it is not.
        name_option: keyword under which the callable wants the task's name, if it serves several.
    """

    tasks: dict[str, str] | Callable[[], dict[str, str]]
    library: str | None = None
    install: str = ""
    name_option: str | None = None


def _vmas_scenarios() -> dict[str, str]:
    from torchrl_marl_offline.envs.vmas_scenarios import scenario_names
    from torchrl_marl_offline.envs.vmas_sparse import sparse_names

    tasks = dict.fromkeys(scenario_names(), "vmas_scenarios:VmasScenario")
    return tasks | dict.fromkeys(sparse_names(), "vmas_sparse:SparseVmas")


def _mamujoco_names() -> dict[str, str]:
    from torchrl_marl_offline.envs.mamujoco.names import task_names

    return task_names()


def _smax_scenarios() -> dict[str, str]:
    from torchrl_marl_offline.envs.smax import SCENARIOS

    return dict.fromkeys(SCENARIOS, "smax:Smax")


def _jaxmarl_games() -> dict[str, str]:
    from torchrl_marl_offline.envs.jaxmarl_games import game_names

    return game_names()


def _maze_names() -> dict[str, str]:
    from torchrl_marl_offline.envs.ogbench_mazes import maze_names

    return maze_names()


_JAXMARL = "pip install -c constraints-smax.txt 'torchrl-marl-offline[smax]'"
_MPE = {
    "simple_spread": "mpe:SimpleSpread",
    "spread_goals": "goal_tasks:SpreadGoals",
    "simple_tag": "mpe_pursuit:SimpleTag",
    "simple_world": "mpe_pursuit:SimpleWorld",
}
_GAMES = {
    "two_step": "games:TwoStep",
    "xor": "games:Xor",
    "climb": "games:Climb",
    "bridge": "bridge:Bridge",
    "grid_navigation": "grid_navigation:GridNavigation",
    "grid_goals": "goal_tasks:GridGoals",
    "recall": "cue_games:Recall",
    "telephone": "cue_games:Telephone",
    "stitch": "stitch:Stitch",
    "hanabi": "hanabi:Hanabi",
    "foraging": "foraging:Foraging",
    "stag_hunt": "mixed_motives:StagHunt",
    "chicken": "mixed_motives:Chicken",
    "prisoners_dilemma": "mixed_motives:PrisonersDilemma",
    "public_goods": "mixed_motives:PublicGoods",
    "commons": "commons:Commons",
}
_WAREHOUSES = dict.fromkeys(("tiny", "small", "medium", "large"), "warehouse:Warehouse")

FAMILIES: dict[str, Family] = {
    "mpe": Family(_MPE),
    "games": Family(_GAMES),
    "rware": Family(_WAREHOUSES, name_option="layout"),
    "lle": Family(
        world_names,
        library="lle",
        install="pip install 'torchrl-marl-offline[coordination]'",
        name_option="name",
    ),
    "overcooked": Family(
        layout_names,
        library="overcooked",
        install="pip install 'torchrl-marl-offline[coordination]'",
        name_option="layout",
    ),
    "vmas": Family(_vmas_scenarios, library="vmas", install="pip install vmas", name_option="scenario"),
    "mamujoco": Family(
        _mamujoco_names,
        library="gymnasium_robotics",
        install="pip install 'torchrl-marl-offline[mamujoco]'",
        name_option="name",
    ),
    "ogbench": Family(
        _maze_names,
        library="ogbench",
        install="pip install 'torchrl-marl-offline[ogbench]'",
        name_option="name",
    ),
    "smac": Family(smac_names, library="smacv2", install=INSTALL, name_option="map_name"),
    "smacv2": Family(smacv2_names, library="smacv2", install=INSTALL, name_option="scenario"),
    "smax": Family(_smax_scenarios, library="jaxmarl", install=_JAXMARL, name_option="scenario"),
    "jaxmarl": Family(_jaxmarl_games, library="jaxmarl", install=_JAXMARL, name_option="game"),
}


_REGISTERED: dict[str, Callable[..., EnvBase]] = {}
"""Environments of the user's own, by ``"family/task"``."""


@checked
def register_environment(task: str, factory: Callable[..., EnvBase], *, replace: bool = False) -> None:
    """Name an environment of one's own: ``make_env(task)``, studies and evaluations then know it.

    Data recorded in it carries the name, so that it has a simulator wherever the same call was made before.

    Args:
        task: ``"family/task"``.
        factory: called with ``num_envs``, ``device``, ``seed`` and the options of :func:`make_env`; returns an
            environment in the library's layout, for instance of :func:`from_torchrl` or :func:`from_pettingzoo`.
        replace: take the place of an earlier one of this name; never of the library's own.

    Raises:
        ValueError: the factory cannot be called, the name is not ``"family/task"``, or is taken.

    Examples:
        >>> from torchrl.envs import VmasEnv
        >>> from torchrl_marl_offline.envs import from_torchrl, make_env, register_environment
        >>> def make(*, num_envs, device, seed, **options):
        ...     env = VmasEnv("balance", num_envs=num_envs, device=device, **options)
        ...     return from_torchrl(env, max_steps=100, seed=seed)
        >>> register_environment("example/balance", make)
        >>> make_env("example/balance", num_envs=4, seed=0).task_spec.task
        'example/balance'
    """
    family, _, name = task.partition("/")
    if not family or not name or task != task.strip():
        raise ValueError(f"An environment is named 'family/task', got {task!r}.")
    if family in FAMILIES:
        raise ValueError(f"{family!r} is a family of the library's own; name {task!r} under another.")
    if task in _REGISTERED and not replace and _REGISTERED[task] is not factory:
        raise ValueError(f"{task!r} is taken by another environment; pass replace=True to take its place.")
    _REGISTERED[task] = factory


def has_environment(task: str | None) -> bool:
    """Whether :func:`make_env` has this task, or, where its library is missing, the family."""
    return task is not None and (task in _REGISTERED or task.partition("/")[0] in FAMILIES)


def _make_registered(task: str, **options) -> EnvBase:
    env = _REGISTERED[task](**options)
    spec = getattr(env, "task_spec", None)
    if not isinstance(spec, TaskSpec) or len(env.batch_size) != 1:
        raise TypeError(
            f"The factory of {task!r} returned a {type(env).__name__} without a task_spec or a batch size [num_envs]; "
            "bring it into the layout with from_torchrl or from_pettingzoo."
        )
    env.task_spec = dataclasses.replace(spec, task=task)
    return env


def list_tasks() -> dict[str, str]:
    """Return every known task, ``"family/task"``, with ``"installed"`` or what to install for it.

    A family whose library is missing is listed as ``"family/*"``, because only the library knows its tasks.
    """
    tasks = {}
    for name, family in FAMILIES.items():
        if family.library is not None and find_spec(family.library) is None:
            tasks[f"{name}/*"] = family.install
        else:
            tasks |= {f"{name}/{task}": "installed" for task in _tasks_of(family)}
    return tasks | dict.fromkeys(_REGISTERED, "installed")


@checked
def make_env(
    task: str,
    *,
    num_envs: Annotated[int, SIZE] = 1,
    device: torch.device | str = "cpu",
    seed: Annotated[int | None, SEED] = None,
    **options,
) -> EnvBase:
    """Make a batched TorchRL environment in the library's key layout.

    The batch size is ``[num_envs]``, also for one environment. ``terminated`` and ``truncated`` are told apart, and
    partial resets work through ``"_reset"``. The result has the attributes ``task_spec``, ``max_episode_steps`` and
    ``reference_returns`` (mean return of random play and of an expert, or ``None``).

    Args:
        task: ``"family/task"``; see :func:`list_tasks`.
        num_envs: number of environments in the batch.
        device: where the environments run.
        seed: seed of the environments' chance; ``None`` draws one from torch's global generator.
        **options: the task's own, such as ``max_steps``.

    Raises:
        ValueError: if there is no such task; the message lists close names. Also for an option that the task does not
            have, and a device that is not there.
        ModuleNotFoundError: if the task's library is missing; the message says what to install.

    Examples:
        >>> env = make_env("games/grid_navigation", num_envs=4, seed=0, agents=3)
        >>> env.rollout(10, break_when_any_done=False)["next", "agents", "reward"].shape
        torch.Size([4, 10, 3, 1])
    """
    check_device_is_there(device)
    if task in _REGISTERED:
        return _make_registered(task, num_envs=num_envs, device=device, seed=seed, **options)
    family_name, _, name = task.partition("/")
    family = FAMILIES.get(family_name)
    if family is not None and family.library is not None and find_spec(family.library) is None:
        raise ModuleNotFoundError(f"{task!r} needs the library {family.library!r}, which is missing: {family.install}.")
    tasks = {} if family is None else _tasks_of(family)
    if name not in tasks:
        known = [known for known, status in list_tasks().items() if status == "installed"]
        close = get_close_matches(task, known, n=5, cutoff=0.4) or known[:5]
        raise ValueError(
            f"Unknown task {task!r}; close names are {', '.join(close)} (list_tasks() has all, and "
            "register_environment names one of your own)."
        )
    module, _, attribute = tasks[name].partition(":")
    make = getattr(import_module(f"torchrl_marl_offline.envs.{module}"), attribute)
    if family.name_option is not None:
        options = {family.name_option: name, **options}
    _check_options(task, make, options)
    return make(num_envs=num_envs, device=device, seed=seed, **options)


def _check_options(task: str, make: Callable[..., EnvBase], options: dict[str, Any]) -> None:
    """Refuse options that a task does not have; where it hands them on, its library is to say."""
    parameters = parameters_of(make)
    function = inspect.unwrap(make.__init__ if isinstance(make, type) else make)
    if any(each.kind is each.VAR_KEYWORD for each in inspect.signature(function).parameters.values()):
        return
    known = [name for name in parameters if name not in ("self", "num_envs", "device", "seed", "kwargs")]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"{task} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}.")


def _tasks_of(family: Family) -> dict[str, str]:
    return family.tasks() if callable(family.tasks) else family.tasks
