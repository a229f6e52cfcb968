"""A page of headings, text, tables and pictures, as Markdown and as one HTML file that needs nothing else.

A click on a table's header sorts it, by a script within the page; without scripts the page shows the same.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from torchrl_marl_offline.core.page_style import SCRIPT, STYLE

_MARKUP = re.compile(
    r"[\\`*~$]|<(?=[A-Za-z/!?])|&(?=[#\w]+;)|(?<=\])[(\[:]|!(?=\[)|(?<!\w)_|_(?!\w)|(?<=:)/(?=/)|(?<=www)\."
)
_NUMBER = re.compile(r"-?[\d.,]+(e[+-]?\d+)?|-?inf|nan|")


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning is set off."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Link:
    """Words that lead to a file or folder, whose path is relative to the page's folder."""

    text: str
    path: str


@dataclass(frozen=True)
class Links:
    """A paragraph: words, and what they lead to."""

    text: str
    links: Sequence[Link]


@dataclass(frozen=True)
class Table:
    """Rows under a header; with a ``summary`` it is folded away. In HTML a click on a header sorts it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    summary: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG file and what it shows."""

    path: Path
    caption: str


Block = Heading | Text | Links | Table | Picture


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Return Markdown for a file in ``folder``; pictures are linked."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Return one HTML page; pictures are in it."""
    body = "\n".join(map(_html, blocks))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(_one_line(title))}</title>\n"
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_plain(block.text)}"
        case Text():
            return f"> **{_plain(block.text)}**" if block.warning else _plain(block.text)
        case Picture():
            caption = re.sub(r"\\?([\[\]])", r"\\\1", _plain(block.caption))
            return f"![{caption}]({quote(block.path.relative_to(folder).as_posix())})"
        case Links():
            return " ".join([_plain(block.text), *map(_markdown_cell, block.links)])
        case Table():
            kinds = ["---" if kind == "" else "---:" for kind in _kinds(block)]
            rows = [list(map(_markdown_cell, line)) for line in (block.header, *block.rows)]
            rows.insert(1, kinds)
            table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
            if block.summary:
                return f"<details><summary>{escape(_one_line(block.summary))}</summary>\n\n{table}\n\n</details>"
            return table


def _markdown_cell(cell: str | Link) -> str:
    if isinstance(cell, Link):
        words = re.sub(r"\\?([\[\]])", r"\\\1", _plain(cell.text))
        return f"[{words}]({quote(cell.path)})".replace("|", "\\|")
    return _plain(cell).replace("|", "\\|")


def _kinds(table: Table) -> list[str]:
    """Return the class of each column: ``"number"``, or none of words."""
    columns = zip(*table.rows) if table.rows else [()] * len(table.header)
    return ["number" if all(map(_is_number, column)) and any(column) else "" for column in columns]


def _is_number(cell: str | Link) -> bool:
    return isinstance(cell, str) and bool(_NUMBER.fullmatch(cell.partition(" [")[0]))


def _html_cell(cell: str | Link, label: str) -> str:
    """Put an interval below its mean, so that a table of six of them fits a page."""
    label = escape(label, quote=True)
    if isinstance(cell, Link):
        return f'<td data-label="{label}">{_html_link(cell)}</td>'
    cell = _one_line(cell)
    if not _is_number(cell):
        return f'<td data-label="{label}">{escape(cell)}</td>'
    number, bracket, interval = cell.partition(" [")
    below = f"<br><small>[{escape(interval)}</small>" if bracket else ""
    return f'<td class="number" data-label="{label}">{escape(number)}{below}</td>'


def _html_link(link: Link) -> str:
    return f'<a href="{escape(quote(link.path), quote=True)}">{escape(_one_line(link.text))}</a>'


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _plain(text: str) -> str:
    """Return Markdown that shows a text as it is: a name from a file may look like a tag, a link or a picture."""
    return _MARKUP.sub(lambda match: "".join(f"\\{char}" for char in match[0]), _one_line(text))


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(_one_line(block.text))}</h{block.level}>"
        case Text():
            kind = ' class="warning"' if block.warning else ""
            return f"<p{kind}>{escape(_one_line(block.text))}</p>"
        case Picture():
            data = base64.b64encode(block.path.read_bytes()).decode("ascii")
            caption = escape(_one_line(block.caption), quote=True)
            image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
            return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
        case Links():
            return f"<p>{escape(_one_line(block.text))} {', '.join(map(_html_link, block.links))}</p>"
        case Table():
            labels, kinds = [_one_line(cell) for cell in block.header], _kinds(block)
            head = "".join(
                f'<th class="{kind}">{escape(label)}</th>' if kind else f"<th>{escape(label)}</th>"
                for label, kind in zip(labels, kinds)
            )
            rows = "\n".join("<tr>" + "".join(map(_html_cell, row, labels)) + "</tr>" for row in block.rows)
            table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"
            if block.summary:
                return f"<details><summary>{escape(_one_line(block.summary))}</summary>{table}</details>"
            return table
