"""The pages of the API: every public name once, on the page of its room."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from markup import inline, table
from torchrl.objectives import LossModule

import torchrl_marl_offline as package
from torchrl_marl_offline.core import ranges
from torchrl_marl_offline.objectives import BehaviourLearning, PolicyExtraction, ValueLearning

FOLDER = Path(__file__).parent / "api"
STUB = Path(package.__file__).with_suffix(".pyi")


class Room(NamedTuple):
    """A page: the names that come from one part of the package."""

    title: str
    text: str


ROOMS = {
    "objectives": Room(
        "Losses and rules", "A loss is one `LossModule` of TorchRL's with rules for value learning and extraction."
    ),
    "modules": Room("Networks", "Actors, critics, mixers and value normalization, as TensorDict modules."),
    "algorithms": Room("Algorithms", "An algorithm is a frozen dataclass of its settings; it builds its loss."),
    "data": Room("Data", "Datasets: made of arrays, recorded, read from files, inspected, given to replay buffers."),
    "envs": Room("Environments", "Batched environments in one key layout."),
    "recording": Room("Recording", "Data of mixed skill by scripted policies, of graded quality by trained ones."),
    "training": Room("Training", "A learner is one step, a trainer a run of them; populations are many runs at once."),
    "evaluation": Room("Evaluation", "In environments and on held-out episodes; tables, videos, exported policies."),
    "study": Room("Studies", "Methods × datasets × grids × seeds; see [the study file](../reference/study_file.md)."),
    "suites": Room(
        "Suites", "Benchmarks that one command makes; see [the guide](../guides/benchmark_of_coordination.md)."
    ),
}
"""Part of the package -> its page."""

LOSS_SECTIONS: dict[str, Callable[[Any], bool]] = {
    "Losses": lambda thing: issubclass(thing, LossModule),
    "Value-learning rules": lambda thing: issubclass(thing, ValueLearning),
    "Policy-extraction rules": lambda thing: issubclass(thing, PolicyExtraction),
    "Rules that fit a model of the data's actions": lambda thing: issubclass(thing, BehaviourLearning),
}

MADE = "This page is made of `torchrl_marl_offline/__init__.pyi` by `python docs/make_pages.py`."


def pages() -> dict[Path, str]:
    """Return every page by its file."""
    return {FOLDER / "index.md": index()} | {FOLDER / f"{room}.md": page(room) for room in ROOMS}


def public_names() -> dict[str, list[str]]:
    """Return the names that can be imported from the package, by the part that they come from."""
    found: dict[str, list[str]] = {room: [] for room in ROOMS}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found[node.module.split(".")[0]] += [alias.name for alias in node.names]
    return found


def further_names(room: str) -> list[str]:
    """Return what a part of the package offers beside: its own names, no other part's, nor plain values."""
    module = importlib.import_module(f"{package.__name__}.{room}")
    public = {name for names in public_names().values() for name in names}
    things = {name: getattr(module, name) for name in module.__all__ if name not in public}
    return [name for name, thing in things.items() if inspect.isclass(thing) or inspect.isfunction(thing)]


def page(room: str) -> str:
    """Return the page of one part of the package."""
    names = public_names()[room]
    parts = [f"# {ROOMS[room].title}\n\n{ROOMS[room].text}\n"]
    if names:
        parts.append(f"Imported by `from torchrl_marl_offline import *`. {MADE}\n")
        for title, own in sections(room, names):
            parts += [f"## {title}\n", overview(package, own), *entries(package.__name__, own)]
    module = importlib.import_module(f"{package.__name__}.{room}")
    if further := further_names(room):
        title = "Further names" if names else "Names"
        parts += [f"## {title}\n", f"Imported from `{module.__name__}`.\n", overview(module, further)]
        parts += entries(module.__name__, further)
    return "\n".join(parts)


def sections(room: str, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the sections of a page."""
    if room != "objectives":
        yield "Names", names
        return
    left = list(names)
    for title, belongs in LOSS_SECTIONS.items():
        own = [name for name in left if belongs(getattr(package, name))]
        left = [name for name in left if name not in own]
        yield title, own
    if left:
        raise ValueError(f"{left[0]} belongs to no section of the page on losses; add one to LOSS_SECTIONS.")


def overview(module: Any, names: Iterable[str]) -> str:
    """Return the table of names and what they are."""
    return (
        table(["name", "what it is"], [[f"`{name}`", first_sentence(getattr(module, name))] for name in names]) + "\n"
    )


def entries(module: str, names: Iterable[str]) -> list[str]:
    """Return what mkdocstrings replaces by the names' documentation."""
    return [f"::: {module}.{name}\n" for name in names]


def first_sentence(thing: Any) -> str:
    """Return the first sentence of a docstring."""
    paragraph = " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<!app)(?<!al)(?<!e\.g)\.\s+(?=[A-Z:`])|\s+\.\. math::", paragraph)[0].rstrip(".") + "."
    return inline(sentence).replace("|", "\\|")


def index() -> str:
    """Return the page that says where names are, and what the ranges in signatures mean."""
    rows = [[f"[{room.title}]({name}.md)", f"`torchrl_marl_offline.{name}`", room.text] for name, room in ROOMS.items()]
    legal = {name: found for name, found in vars(ranges).items() if isinstance(found, ranges.Range)}
    meanings = [[f"`{name}`", str(found)] for name, found in legal.items()]
    return f"""# API

Every public name can be imported from `torchrl_marl_offline`; the parts of the package have further names of their own.

{table(["page", "part", "what is there"], rows)}

Names without a page are internal: they may change without notice.

## Ranges in signatures

A parameter's annotation says which numbers it takes: `episodes: Annotated[int, SIZE]` is a whole number in the range
`SIZE`. Other numbers are refused before anything is done. Beside these bounds each range has a largest number that a
machine could mean.

{table(["range", "numbers"], meanings)}
"""
