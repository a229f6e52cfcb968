"""A page of headings, text, tables and pictures, as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

_MARKUP = re.compile(
    r"[\\`*~$]|<(?=[A-Za-z/!?])|&(?=[#\w]+;)|(?<=\])[(\[:]|!(?=\[)|(?<!\w)_|_(?!\w)|(?<=:)/(?=/)|(?<=www)\."
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid #ddd; text-align: right; overflow-wrap: anywhere; }
td.number { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
div.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; }
p.warning { background: #fff3cd; border-left: 4px solid #e69f00; padding: .5rem .8rem; }
@page { size: landscape; margin: 12mm; }
@media print {
  body { font-size: 9pt; max-width: none; margin: 0; padding: 0; }
  div.wide { overflow-x: visible; }
  th, td { padding: .1rem .25rem; }
  tr, img { break-inside: avoid; }
}
footer { color: #666; font-size: 13px; margin-top: 2rem; }
"""


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
class Table:
    """Rows under a header; with a ``summary`` it is folded away."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG file and what it shows."""

    path: Path
    caption: str


Block = Heading | Text | Table | Picture


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Return Markdown for a file in ``folder``; pictures are linked."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Return one HTML page; pictures are in it."""
    body = "\n".join(map(_html, blocks))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(_one_line(title))}</title>\n"
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
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
        case Table():
            lines = [block.header, ["---", *["---:"] * (len(block.header) - 1)], *block.rows]
            table = "\n".join(
                "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
            )
            if block.summary:
                return f"<details><summary>{escape(_one_line(block.summary))}</summary>\n\n{table}\n\n</details>"
            return table


def _html_cell(cell: str) -> str:
    """Put an interval below its mean, so that a table of six of them fits a page."""
    number, bracket, interval = cell.partition(" [")
    if not re.fullmatch(r"-?[\d.,]+(e[+-]?\d+)?|-?inf|nan|", number):
        return f"<td>{escape(cell)}</td>"
    below = f"<br>[{escape(interval)}" if bracket else ""
    return f'<td class="number">{escape(number)}{below}</td>'


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
            return f'<p><img src="data:image/png;base64,{data}" alt="{caption}"><br><small>{caption}</small></p>'
        case Table():
            head = "".join(f"<th>{escape(_one_line(cell))}</th>" for cell in block.header)
            rows = "\n".join("<tr>" + "".join(map(_html_cell, map(_one_line, row))) + "</tr>" for row in block.rows)
            table = f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'
            if block.summary:
                return f"<details><summary>{escape(_one_line(block.summary))}</summary>{table}</details>"
            return table
