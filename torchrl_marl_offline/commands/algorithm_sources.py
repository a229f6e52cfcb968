"""What the sources of the algorithms say of their settings, read without importing them: names, defaults, words.

The dataclasses need torch; help and completion must not wait for it. What is read here is shown and never computed
with: values are checked by the dataclass itself.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchrl_marl_offline.core import ranges
from torchrl_marl_offline.core.docstrings import told_in

FOLDER = Path(__file__).parents[1] / "algorithms"
REGISTRY = "torchrl_marl_offline.algorithms.algorithm"


@dataclass(frozen=True)
class DeclaredSetting:
    """A field of an algorithm's dataclass.

    Attributes:
        name: of the field.
        annotation: as it stands in the source.
        default: as it stands in the source.
        text: what the docstring says of it, with its range.
    """

    name: str
    annotation: str
    default: str
    text: str

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        return re.match(r"(Annotated\[)?bool\b", self.annotation) is not None

    @property
    def is_series(self) -> bool:
        """Whether it is a list."""
        return re.match(r"(Annotated\[)?(Sequence|tuple|list)\[", self.annotation) is not None


@dataclass(frozen=True)
class DeclaredAlgorithm:
    """A class with ``name=``.

    Attributes:
        name: by which it is known.
        text: the first sentence of its docstring.
        settings: its own and those of its bases.
    """

    name: str
    text: str
    settings: Mapping[str, DeclaredSetting] = field(default_factory=dict)


def declared_algorithms() -> dict[str, DeclaredAlgorithm]:
    """Return the package's algorithms, and those that a user's imported files have registered, by name."""
    loaded = getattr(sys.modules.get(REGISTRY), "ALGORITHMS", {})
    files = [getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in loaded.values()]
    return _read_all(tuple(dict.fromkeys([*sorted(FOLDER.glob("*.py")), *(Path(file) for file in files if file)])))


@functools.cache
def _read_all(files: tuple[Path, ...]) -> dict[str, DeclaredAlgorithm]:
    classes: dict[str, ast.ClassDef] = {}
    for file in files:
        body = ast.parse(file.read_text(encoding="utf-8")).body
        classes |= {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    found = {}
    for node in classes.values():
        names = [each.value.value for each in node.keywords if each.arg == "name" and _is_word(each.value)]
        if names and (settings := _settings(node, classes)):
            text = (ast.get_docstring(node) or "").split("\n\n")[0]
            found[names[0]] = DeclaredAlgorithm(names[0], " ".join(text.split()), settings)
    return dict(sorted(found.items()))


def _is_word(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _settings(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, DeclaredSetting]:
    """Return a class's fields, after those of its bases; a field that is declared again keeps what was said of it."""
    found: dict[str, DeclaredSetting] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found |= _settings(classes[base.id], classes)
    said = told_in(ast.get_docstring(node))
    for entry in node.body:
        if isinstance(entry, ast.AnnAssign) and entry.value is not None and isinstance(entry.target, ast.Name):
            name, annotation = entry.target.id, ast.unparse(entry.annotation)
            if not annotation.startswith("ClassVar"):
                before = found[name].text if name in found else ""
                text = said.get(name, before)
                found[name] = DeclaredSetting(name, annotation, _default(entry.value), text)
    return found


def _default(value: ast.expr) -> str:
    """Return a default as it stands, out of ``setting(default, ...)`` where it is in one."""
    if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "setting" and value.args:
        value = value.args[0]
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    if isinstance(value, ast.Tuple):
        return " ".join(ast.unparse(each) for each in value.elts)
    text = ast.unparse(value)
    return f"of {text.rpartition('.')[0]}" if isinstance(value, ast.Attribute) else text


def range_in(annotation: str) -> Any:
    """Return the range that an annotation names, or None."""
    for name in re.findall(r"\b[A-Z_]{3,}\b", annotation):
        if isinstance(found := getattr(ranges, name, None), ranges.Range):
            return found
    return None
