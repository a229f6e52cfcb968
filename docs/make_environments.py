"""The page of the environments, made of the families of ``make_env`` and of the docstrings of their classes."""

from __future__ import annotations

import ast
from pathlib import Path

from markup import table, to_markdown

from torchrl_marl_offline import envs
from torchrl_marl_offline.envs.factory import FAMILIES, Family
from torchrl_marl_offline.envs.vmas_heuristics import SCENARIOS as WITH_HEURISTIC
from torchrl_marl_offline.envs.vmas_steering import STEERING

PAGE = Path(__file__).parent / "environments.md"
FOLDER = Path(envs.__file__).parent
OF_MAKE_ENV = ("self", "num_envs", "device", "seed")
REMARKS = {
    "games": "`games/recall` and `games/telephone` are [games of memory](guides/games_of_memory.md); `games/stitch`, "
    "`games/hanabi`, `games/foraging`, `games/commons` and the four of mixed motives are "
    "[games of coordination](guides/games_of_coordination.md); `games/grid_goals` and `mpe/spread_goals` have "
    "[goals](guides/goals.md).",
    "rware": "A [game of coordination](guides/games_of_coordination.md), of which the registry has recordings.",
    "lle": "[Certified worlds](guides/games_of_coordination.md#certified-worlds); `none-N`, `one_sided-N` and "
    "`mutual-N` with any number as the seed.",
    "overcooked": "[Kitchens](guides/games_of_coordination.md#kitchens) of two cooks, and `OvercookedController`, "
    "which plays in all of them; `jaxmarl/overcooked_v2` is another Overcooked.",
    "jaxmarl": "Five games by one adapter; `smax/*` are JaxMARL's battles.",
    "vmas": f"VMAS has a scripted policy for {', '.join(f'`{name}`' for name in WITH_HEURISTIC)}, and "
    f"`SteeringController` plays {', '.join(f'`{name}`' for name in STEERING)}.",
    "ogbench": "[Goals](guides/goals.md#ant-mazes) in mazes, for two or four agents.",
    "mamujoco": "Further tasks are `ManySegmentAnt-NxM` and `ManySegmentSwimmer-NxM` with numbers of your own.",
}

OPENING = """# Environments

`make_env("FAMILY/TASK", num_envs=N, seed=S)` makes a batched TorchRL environment in the one key layout of this
library; further keyword arguments are the task's options, listed below with their defaults. `list_tasks()` returns all
names, with what to install where a library is missing.

An environment of your own gets a name by `register_environment`; `from_pettingzoo` and `from_torchrl` bring it into the
layout. Recorded data whose game is not installed can be trained on without it.

This page is made of the families and of their docstrings by `python docs/make_pages.py`.
"""


def page() -> str:
    """Return the whole page."""
    rows = []
    for name, family in FAMILIES.items():
        tasks = tasks_of(family)
        rows.append([f"[`{name}`](#{name})", str(len(tasks)), family.library or "", f"`{family.install}`".strip("`")])
        rows[-1][2:] = [f"`{cell}`" if cell else "nothing else" for cell in rows[-1][2:]]
    families = table(["family", "tasks", "needs", "installed by"], rows)
    return "\n".join([OPENING, families, "", *(section(name) for name in FAMILIES)])


def tasks_of(family: Family) -> dict[str, str]:
    """Return the tasks of a family."""
    return family.tasks() if callable(family.tasks) else family.tasks


def section(name: str) -> str:
    """Return the section of one family: its tasks, and what each class of them is."""
    family = FAMILIES[name]
    tasks: dict[str, list[str]] = {}
    for task, place in tasks_of(family).items():
        tasks.setdefault(place, []).append(f"`{name}/{task}`")
    parts = [f"## {name}\n"]
    if name in REMARKS:
        parts.append(f"{REMARKS[name]}\n")
    for place, names in tasks.items():
        node = definition(place)
        text = to_markdown(ast.get_docstring(node))
        parts.append(f"### {', '.join(names) if len(names) == 1 else f'The tasks of {name}'}\n")
        if len(names) > 1:
            parts.append(f"{len(names)}: {', '.join(names)}.\n")
        parts.append(text)
        if options := options_of(place, family):
            rows = [[f"`{option}`", f"`{default}`"] for option, default in options.items()]
            parts.append(f"{table(['option', 'default'], rows)}\n")
    return "\n".join(parts)


def definition(place: str) -> ast.ClassDef | ast.FunctionDef:
    """Return the class or function ``"module:name"`` as it is written, without importing what it needs."""
    module, _, name = place.partition(":")
    file = FOLDER / (module.replace(".", "/") + ".py")
    return next(node for node in ast.parse(file.read_text()).body if getattr(node, "name", None) == name)


def options_of(place: str, family: Family) -> dict[str, str]:
    """Return the keyword arguments of a task beside those of ``make_env``, with their defaults as they are written."""
    node = definition(place)
    if isinstance(node, ast.ClassDef):
        node = next((part for part in node.body if getattr(part, "name", "") == "__init__"), None)
    if node is None:
        return {}
    left_out = {*OF_MAKE_ENV, family.name_option}
    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults)
    return {arg.arg: ast.unparse(default) for arg, default in pairs if default is not None and arg.arg not in left_out}
