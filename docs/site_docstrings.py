"""Docstrings for the site: the marks of reStructuredText become Markdown before mkdocstrings reads them."""

from __future__ import annotations

import re
from typing import Any

import griffe
from markup import simple_table, table


class Markdown(griffe.Extension):
    """Convert every docstring of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Convert the docstrings of a package."""
        convert(pkg)


def convert(thing: griffe.Object) -> None:
    """Convert the docstrings of an object and of all that is in it."""
    if thing.docstring is not None:
        thing.docstring.value = to_markdown(thing.docstring.value)
    for member in thing.members.values():
        if not member.is_alias:
            convert(member)


def to_markdown(docstring: str) -> str:
    """Return a docstring, its sections where they were, in Markdown."""
    text = re.sub(r":math:`([^`]*)`", r"\\(\1\\)", docstring)
    text = re.sub(r":(?:py:)?\w+:`~[^`]*?([^.`]+)`", r"`\1`", text)
    text = re.sub(r":(?:py:)?\w+:`([^`<]+?)(?: <[^`]*>)?`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"(?<![\[/])arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)  # the section that griffe knows
    return _tables("\n".join(_directives(text.split("\n"))))


def _directives(lines: list[str]) -> list[str]:
    """Return lines with formulas and code in the place of ``.. math::`` and ``.. code-block::``."""
    found: list[str] = []
    index = 0
    while index < len(lines):
        match = re.match(r"( *)\.\. (math|code-block)::\s*(.*)", lines[index])
        index += 1
        if match is None:
            found.append(lines[index - 1])
            continue
        indent, kind, rest = match.groups()
        block = []
        while index < len(lines) and (not lines[index].strip() or lines[index].startswith(f"{indent} ")):
            block.append(lines[index][len(indent) :].removeprefix("    "))
            index += 1
        text = "\n".join(block).strip("\n")
        if kind == "math":
            formula = " ".join(f"{rest} {text}".split())
            found += ["", f"{indent}$$", f"{indent}{formula}", f"{indent}$$", ""]
        else:
            found += ["", f"{indent}```{rest}", *(f"{indent}{line}".rstrip() for line in text.split("\n"))]
            found += [f"{indent}```", ""]
    return found


def _tables(text: str) -> str:
    """Return a text with Markdown tables in the place of simple tables."""
    rule = r"^ *=+(?: +=+)+ *$"
    pattern = re.compile(rf"{rule}\n(?:.*\n)+?{rule}\n(?:.*\n)*?{rule}", re.MULTILINE)

    def replaced(match: re.Match[str]) -> str:
        indent = re.match(" *", match[0])[0]
        header, *rows = simple_table([line.removeprefix(indent) for line in match[0].split("\n")])
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        return "\n".join(indent + line for line in table(header, cells).split("\n"))

    return pattern.sub(replaced, text)
