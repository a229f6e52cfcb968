"""Docstrings, which are reStructuredText, as Markdown; Markdown tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

DASH = "–"
LABELS = ("Published", "What differs", "Settings")
LEFT_OUT = ("Options:", "Args:", "Attributes:", "Raises:", "Example:", "Examples:", "Metrics:", "``alpha`` sets")
# In $$ a Markdown reader may take the backslash before punctuation, or a tag, for its own: words stand in their place.
WORDS = {r"\,": r"\thinspace ", r"\;": r"\thickspace ", r"\|": r"\Vert ", r"\{": r"\lbrace ", r"\}": r"\rbrace "}
WORDS |= {r"\!": r"\negthinspace ", r"\_": r"\text{\textunderscore}", r"\:": r"\medspace ", "<": r"\lt ", ">": r"\gt "}


def to_markdown(docstring: str) -> str:
    """Return a docstring as Markdown that GitHub renders, without its sections of arguments."""
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if block.startswith((*LEFT_OUT, " ")) and blocks:
            continue
        before, math, rest = _split_math(block)
        if before:
            blocks.append(_paragraph(before))
        if math:
            blocks.append(f"$$\n{safe_math(math)}\n$$")
        if rest:
            blocks.append(_paragraph(rest))
    return "\n\n".join(blocks) + "\n"


def _split_math(block: str) -> tuple[str, str, str]:
    """Return what stands before a ``.. math::``, the formula, and what follows it."""
    before, directive, after = block.partition(".. math::")
    if not directive:
        return block, "", ""
    lines = after.splitlines() or [""]
    count = next((i for i, line in enumerate(lines) if i and not line.startswith(" ")), len(lines))
    formula = " ".join(line.strip() for line in lines[:count]).strip()
    return before.strip(), formula, "\n".join(lines[count:])


def _paragraph(text: str) -> str:
    for label in LABELS:
        text = re.sub(rf"^{label}( \([^)]*\))?:", rf"**{label}**\1:", text)
    return inline(text)


def inline(text: str) -> str:
    """Return a paragraph's roles, literals and references as Markdown."""
    text = re.sub(r":math:`([^`]*)`", r"$`\1`$", text)
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def safe_math(formula: str) -> str:
    """Return a formula without a backslash before punctuation, and without tags.

    Raises:
        ValueError: one that is not known; add its word.
    """
    for short, word in WORDS.items():
        formula = formula.replace(short, word)
    left = re.search(r"\\[^A-Za-z]", formula)
    if left:
        raise ValueError(f"{left[0]} in {formula!r} has no word; add it to WORDS.")
    return formula


def simple_table(lines: Sequence[str]) -> list[list[str]]:
    """Return the cells of the first simple table of reStructuredText, header first."""
    rules = [index for index, line in enumerate(lines) if re.fullmatch(r"=+(\s+=+)+", line.strip())]
    first, second, last = rules[:3]
    starts = [match.start() for match in re.finditer(r"=+", lines[first])]
    rows: list[list[str]] = []
    for line in [*lines[first + 1 : second], *lines[second + 1 : last]]:
        ends = [*starts[1:], None]
        cells = [line[low:high].strip() for low, high in zip(starts, ends)]
        if cells[0]:
            rows.append(cells)
        else:  # goes on in the next line
            rows[-1] = [" ".join(filter(None, both)) for both in zip(rows[-1], cells)]
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
