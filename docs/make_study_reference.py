"""The reference of the study file, every key of a study file, of the schema that study files are checked by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl_marl_offline.study import study_schema

PAGE = Path(__file__).parent / "reference" / "study_file.md"

OPENING = """# The study file

A study is a TOML file: methods × datasets × grids × seeds. `marl-offline study run FILE` trains it;
[quick.toml](../../examples/studies/quick.toml) is one of several. A file needs one method and one
dataset, all else has a default:

```toml
[methods.mix]
decomposition = "mixer"

[datasets.spread]
task = "mpe/simple_spread"
```

A key that is not known, a value of another kind and a number outside its range are refused before anything is done, in
a sentence that names the table, the key and the remedy.

`marl-offline study schema --output study.schema.json` writes what this page says as a JSON schema (draft 2020-12), also
`torchrl_marl_offline.study.study_schema()`. Editors with Taplo, such as Visual Studio Code with Even Better TOML,
complete and check a study file whose first line is `#:schema ./study.schema.json`.

This page is made of the dataclasses' docstrings, ranges and defaults by `python docs/make_pages.py`: change
those.
"""

RUN_SETTINGS = "[settings of runs](#settings-of-runs)"
LISTS = "Every key is one of the {runs}, and its value a list of values for it, none of them twice."
RANGES = (
    "Every key is one of the {runs}; its value is what a search draws from: a list of values, or of a number "
    "a [range](#ranges-of-values)."
)
OWN = ("RunSettings", "OfflineTable", "FittingTable", "CloningTable")
TABLES = (
    ("[study]", "StudyTable", f"Beside these it takes the {RUN_SETTINGS}: all methods that read them share them."),
    ("[evaluation]", "EvaluationTable", ""),
    ("[methods.NAME]", "Method", f"Beside these it takes the {RUN_SETTINGS} of its algorithm."),
    ("[methods.NAME.variants]", "", LISTS + " Every combination is a method of its own."),
    ("[methods.NAME.grid]", "", LISTS + " Every combination is tried, and the best is reported."),
    ("[methods.NAME.on.DATASET]", "", "The {runs} of this method on one dataset."),
    (
        "[datasets.NAME]",
        "Dataset",
        "It has either a `source` or a `task`. `[[datasets]]` and lists of sources do, too.",
    ),
    ("[grid]", "", LISTS + " It is for every method that reads the setting."),
    ("[search]", "SearchTable", "See [searching ranges](../guides/studies.md#searching-ranges)."),
    ("[ranges]", "", RANGES + " It is for every method that reads the setting."),
    ("[methods.NAME.ranges]", "", RANGES),
    ("Ranges of values", "RangeOfValues", ""),
    (
        "[offline]",
        "OfflineTable",
        "See [choosing without a simulator](../guides/studies.md#choosing-without-a-simulator).",
    ),
    ("[offline.fitting]", "FittingTable", ""),
    ("[offline.cloning]", "CloningTable", ""),
    ("[offline.modelling]", "ModellingTable", ""),
    ("Settings of runs", "RunSettings", "Names before a text are those of the algorithms that have the setting."),
)


def page() -> str:
    """Return the page, in Markdown: one table of keys for each table of a study file."""
    tables = study_schema()["$defs"]
    of_runs = tables["RunSettings"]["properties"]
    sections = []
    for title, name, text in TABLES:
        keys = tables[name]["properties"] if name else {}
        own = {key: said for key, said in keys.items() if name in OWN or key not in of_runs}
        heading = f"`{title}`" if title.startswith("[") else title
        parts = [f"## {heading}", text.replace("{runs}", RUN_SETTINGS), *([_table(own)] if own else [])]
        sections.append("\n\n".join(filter(None, parts)))
    return "\n\n".join([OPENING.rstrip(), *sections]) + "\n"


def _table(keys: Mapping[str, Any]) -> str:
    rows = [["key", "type", "range", "default", "meaning"], ["---"] * 5]
    for key, said in keys.items():
        text, _, defaults = said["description"].partition(" Default: ")
        text, _, ranges = text.partition(" Range: ")
        default = defaults.rstrip(".") or (f"`{json.dumps(said['default'])}`" if "default" in said else "")
        rows.append([f"`{key}`", kind_of(said), range_in(said) or ranges.rstrip("."), _cell(default), _cell(text)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(text: str) -> str:
    text = re.sub(r"\\[A-Za-z]+", r"$`\g<0>`$", text)  # what was a formula in the docstring
    return text.replace("|", r"\|").replace("<", "&lt;")


def kind_of(said: Mapping[str, Any]) -> str:
    """Return the type of a key in words."""
    if "anyOf" in said:
        return " or ".join(map(kind_of, said["anyOf"]))
    if said.get("type") == "array":
        return f"list, each {kind_of(said['items'])}"
    if said.get("format") == "path":
        return "path"
    words = {"integer": "whole number", "boolean": "true or false", "object": "table", None: "table"}
    return words.get(said.get("type"), said.get("type"))


def range_in(said: Mapping[str, Any]) -> str:
    """Return the numbers or the words that a key may have."""
    if "enum" in said:
        return ", ".join(f"`{word}`" for word in said["enum"])
    if "anyOf" in said or "items" in said:
        return "; ".join(filter(None, map(range_in, said.get("anyOf") or [said["items"]])))
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join(f"{text} {_number(said[word])}" for word, text in words.items() if word in said)


def _number(number: float) -> str:
    return f"{number:.0e}".replace("+", "") if abs(number) >= 1e10 else f"{number:,}"
