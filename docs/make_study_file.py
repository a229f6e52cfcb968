"""The reference of the study file, made of the classes that check it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from markup import inline, table

from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.core.annotations import fields_of
from torchrl_marl_offline.core.ranges import AtMost, OneOf, range_of
from torchrl_marl_offline.study.settings import (
    EvaluationSettings,
    MethodTable,
    StudySettings,
    TrainingSettings,
)
from torchrl_marl_offline.study.sources import DatasetSource

PAGE = Path(__file__).parent / "reference/study_file.md"
WORDS = {int: "whole number", float: "number", str: "string", bool: "true or false", Path: "path", NoneType: "none"}

OPENING = """# The study file

A study is a TOML file: methods × datasets × grids × seeds. `marl-offline study run FILE` trains it, `marl-offline study
plan FILE` says what would be trained. Unknown keys, values of another kind and numbers outside their range are refused
before anything is trained. Relative paths are relative to the file.

```toml title="study.toml"
[study]
name = "temperatures"
seeds = 3
steps = 20_000

[evaluation]
every = 5_000

[methods.mix]
decomposition = "mixer"

[datasets.spread]
task = "mpe/simple_spread"
episodes = 2000

[grid]
temperature = [1, 3, 10]
```

```bash
marl-offline study plan study.toml
```

The studies of the papers are in [examples/studies](../../examples/studies/quick.toml). This page is made of the code by
`python docs/make_pages.py`.
"""

TABLES = {
    "[study]": (
        StudySettings,
        "The study as a whole. The table takes the [settings of a run](#settings-of-a-run) too: they hold for all "
        "runs.",
        {"name": "the file's name", "output": "`runs/NAME`"},
    ),
    "[evaluation]": (EvaluationSettings, "How every run is evaluated.", {}),
    "[methods.NAME]": (
        MethodTable,
        "A method, of which a study has at least one. Beside the keys below the table takes the [settings of a "
        "run](#settings-of-a-run), which win over those of `[study]`.",
        {"name": None, "settings": None},
    ),
    "[datasets.NAME]": (
        DatasetSource,
        "A dataset, of which a study has at least one: it has a `source` that is loaded, or a `task` that is recorded.",
        {"name": None},
    ),
}
"""Table -> the class that checks it, what it is, and defaults that are made elsewhere: None for what is no key."""

GRID = """## `[grid]`

Setting of a run -> list of values, such as `temperature = [1, 3, 10]`. Every combination is trained by every method
that reads the setting, and the best is reported. `[methods.NAME.grid]` does the same for one method.
"""


class Key(NamedTuple):
    """One key of a table."""

    name: str
    value: str
    default: str
    text: str


def page() -> str:
    """Return the whole page."""
    parts = [OPENING]
    for title, (kind, text, made) in TABLES.items():
        keys = [key._replace(default=made.get(key.name, key.default)) for key in keys_of(kind)]
        keys = [key for key in keys if key.default is not None]
        parts.append(f"## `{title}`\n\n{text}\n\n{rows(keys)}\n")
    return "\n".join([*parts, GRID, run_settings()])


def rows(keys: Iterable[Key]) -> str:
    """Return the table of some keys."""
    cells = [[f"`{key.name}`", key.value, key.default, key.text.replace("|", "\\|")] for key in keys]
    return table(["key", "value", "default", "meaning"], cells)


def run_settings() -> str:
    """Return the section of the settings that a run may have: those of training, and every algorithm's own."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for algorithm, kind in ALGORITHMS.items():
        for name, (hint, _) in fields_of(kind).items():
            found.setdefault(name, (hint, []))[1].append(algorithm)
    own = []
    for name, (hint, algorithms) in found.items():
        every = len(algorithms) == len(ALGORITHMS)
        by = "all" if every else ", ".join(f"[`{each}`](../algorithms.md#{each})" for each in algorithms)
        own.append([f"`{name}`", value_of(hint), by])
    names = ", ".join(f"`{name}`" for name in ALGORITHMS)
    return f"""## Settings of a run

They stand in `[study]` for all runs, in `[datasets.NAME.settings]` for one dataset, in `[methods.NAME]` for one method
and in `[methods.NAME.on.DATASET]` for one method on one dataset. The later ones win.

`algorithm` names what is trained, `"recipe"` by default: {names}.

### Training

{rows(keys_of(TrainingSettings))}

### Of the algorithms

Defaults and meanings are on the page of the [algorithms](../algorithms.md).

{table(["setting", "value", "read by"], own)}
"""


# ------------------------------------------------- what the classes say; the only part that knows how a key is declared


def keys_of(kind: type) -> list[Key]:
    """Return the keys that a class checks, in their order."""
    told = attributes_in(kind.__doc__)
    defaults = {field.name: default_of(field) for field in dataclasses.fields(kind)}
    return [Key(name, value_of(hint), defaults[name], told[name]) for name, (hint, _) in fields_of(kind).items()]


def default_of(field: dataclasses.Field) -> str:
    """Return a field's default as TOML has it."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{shown(field.default_factory())}`".replace("`empty`", "empty")
    return "" if field.default is dataclasses.MISSING else f"`{shown(field.default)}`".replace("`none`", "none")


def attributes_in(docstring: str) -> dict[str, str]:
    """Return the texts below ``Attributes:`` by name."""
    section = docstring.partition("Attributes:\n")[2].split("\n\n")[0]
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {9,}.*)*)", section, flags=re.MULTILINE)
    return {name: inline(" ".join(text.split())) for name, text in entries}


def value_of(hint: Any) -> str:
    """Return in words what an annotation takes, and which numbers."""
    return ", ".join(filter(None, [kind_of(hint), legal_of(hint)]))


def kind_of(hint: Any) -> str:
    """Return in words what an annotation takes."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        names = next((extra.names for extra in hint.__metadata__ if isinstance(extra, OneOf)), None)
        return kind_of(parts[0]) if names is None else " or ".join(f'`"{name}"`' for name in names)
    if origin is Literal:
        return " or ".join(f"`{shown(part)}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(kind_of(part) for part in parts if part is not NoneType))
    if origin in (Mapping, dict):
        return "table"
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return f"list of: {kind_of(parts[0])}"
    return WORDS.get(hint, "any")


def legal_of(hint: Any) -> str:
    """Return in words which numbers an annotation takes."""
    found = range_of(hint)
    words = [] if found is None or str(found) == "finite" else [str(found)]
    words += [f"at most `{extra.other}`" for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, AtMost)]
    return ", ".join(words)


def shown(value: Any) -> str:
    """Return a value as TOML has it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, Mapping):
        return "empty"
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else f"{value:g}"
