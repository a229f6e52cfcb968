"""What the site does beside MkDocs' own: files of the repository, formulas, and links to the API.

- A page may link to any file of the repository, as it does where the repository is read: Markdown, code and pictures
  that are linked to become part of the site, with what they link to. Nothing is copied by hand.
- Formulas are MathML, made while the site is built: a browser shows them without a script or a font from elsewhere.
- A name of the API that stands in a text as code is a link to what the API says of it.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.nav import Page

ROOT = Path(__file__).parents[1]
BELOW = "repository"
"""Where files of the repository stand in the site."""
SHOWN_AS_CODE = {".py": "python", ".toml": "toml", ".txt": "text", ".json": "json"}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^( *)(`{3,})[^\n]*\n.*?^\1\2`* *$", re.MULTILINE | re.DOTALL)
COMMON_WORDS = {"collect", "evaluate", "record", "setting"}
"""Names of the API that also are commands or words: as code they need not mean the function."""


def on_config(config: MkDocsConfig) -> None:
    """Let ``site_docstrings.py``, which mkdocstrings loads by its path, import what lies beside it."""
    if str(ROOT / "docs") not in sys.path:
        sys.path.append(str(ROOT / "docs"))


# ------------------------------------------------------------------ files of the repository


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside their folder, and what that links to."""
    left = list(files.documentation_pages())
    while left:
        file = left.pop()
        for link in LINK.finditer(_without_code(file.content_string)):
            target = _target(file.src_uri, link[1])
            if target is None or files.get_file_from_path(_place(target)) is not None:
                continue
            added = _file(target, config)
            files.append(added)
            if added.is_documentation_page():
                left.append(added)
    return files


def _target(page: str, link: str) -> str | None:
    """Return the path in the repository that a link of a page means, or None for one in the folder of pages."""
    own = page.removeprefix(f"{BELOW}/") if page.startswith(f"{BELOW}/") else f"docs/{page}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(own), link))
    inside = path.startswith("docs/") and not path.endswith(".py")
    return path if not inside and (ROOT / path).is_file() else None


def _place(path: str) -> str:
    """Return where a file of the repository stands in the site."""
    return f"{BELOW}/{path}" + (".md" if Path(path).suffix in SHOWN_AS_CODE else "")


def _file(path: str, config: MkDocsConfig) -> File:
    source = ROOT / path
    level = InclusionLevel.INCLUDED if path == "benchmarks/RESULTS.md" else InclusionLevel.NOT_IN_NAV
    if source.suffix in SHOWN_AS_CODE:
        text = source.read_text(encoding="utf-8").rstrip()
        content = f"# `{path}`\n\n````{SHOWN_AS_CODE[source.suffix]}\n{text}\n````\n"
        return File.generated(config, _place(path), content=content, inclusion=level)
    return File.generated(config, _place(path), abs_src_path=str(source), inclusion=level)


# ---------------------------------------------------------------------------- Markdown


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page with links into the site, and formulas as they are marked there."""
    own = page.file.src_uri

    def link(match: re.Match[str]) -> str:
        target = _target(own, match[1])
        if target is None and own.startswith(f"{BELOW}/"):  # a file of the repository that links to a page
            path = posixpath.normpath(posixpath.join(posixpath.dirname(own.removeprefix(f"{BELOW}/")), match[1]))
            place = path.removeprefix("docs/") if path.startswith("docs/") else None
        else:
            place = None if target is None else _place(target)
        if place is None:
            return match[0]
        return posixpath.relpath(place, posixpath.dirname(own) or ".") + (match[2] or "")

    def converted(text: str) -> str:
        return re.sub(r"\$`([^`]*)`\$", r"\\(\1\\)", LINK.sub(link, text))

    return _outside_code(markdown, converted)


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return Markdown with everything changed but its blocks of code."""
    parts, end = [], 0
    for match in FENCE.finditer(markdown):
        parts += [change(markdown[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(markdown[end:])])


def _without_code(markdown: str) -> str:
    return FENCE.sub("", markdown)


# -------------------------------------------------------------------------------- HTML


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's HTML with MathML, and with links to the API."""
    return _linked(_with_formulas(html), page, _places_of_names(files))


def _with_formulas(html: str) -> str:
    def block(match: re.Match[str]) -> str:
        parts = [mathml(part, "block") for part in _parts(unescape(match[1]))]
        return '<div class="formula">' + "".join(f"<span>{part}</span>" for part in parts) + "</div>"

    html = re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', block, html, flags=re.DOTALL)
    return re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>',
        lambda match: mathml(unescape(match[1]), "inline"),
        html,
        flags=re.DOTALL,
    )


def _parts(formula: str) -> list[str]:
    r"""Return what stands between the ``\qquad`` of a formula, where that leaves every brace with its other."""
    parts = formula.split(r"\qquad")
    return parts if all(part.count("{") == part.count("}") for part in parts) else [formula]


def mathml(formula: str, display: str) -> str:
    """Return a formula in LaTeX as MathML; its source is what a reader without MathML is told.

    Raises:
        ValueError: there is a command that is not known.
    """
    text = formula.strip()
    known = text.replace(r"\arg", r"\operatorname{arg}").replace(r"\text{\textunderscore}", "_")
    result = convert(re.sub(r"\\text\{[^{}]*\}", lambda match: match[0].replace(r"\_", "_"), known), display=display)
    if unknown := re.search(r"(\\[A-Za-z]+)", result):
        raise ValueError(f"{unknown[1]} in {text!r} is not known to latex2mathml; write it in another way.")
    return result.replace("<math ", f'<math aria-label="{escape(text)}" ', 1)


def _places_of_names(files: Files) -> dict[str, str]:
    """Return the page of every name of the API, as the pages themselves say it."""
    found = {}
    for file in files.documentation_pages():
        if file.src_uri.startswith("api/"):
            for path in re.findall(r"^::: (\S+)$", file.content_string, flags=re.MULTILINE):
                found[path.rpartition(".")[2]] = f"{file.url}#{path}"
    return found


def _linked(html: str, page: Page, places: dict[str, str]) -> str:
    """Return HTML in which names of the API are links, the first time that each stands in a page's text."""
    is_api = page.file.src_uri.startswith("api/")
    seen: set[str] = set()

    def link(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None or name not in places or (name in seen and not is_api) or name in COMMON_WORDS:
            return match[0]
        if is_api and places[name].partition("#")[0] == page.file.url:
            address = "#" + places[name].partition("#")[2]
        else:
            address = posixpath.relpath(places[name].partition("#")[0] or ".", posixpath.dirname(page.file.url) or ".")
            address += "#" + places[name].partition("#")[2]
        seen.add(name)
        return f'<a href="{address}"><code>{name}</code></a>'

    kept = r"<(?P<kept>a|h[1-6]|pre|summary|math)\b.*?</(?P=kept)>"
    return re.sub(rf"{kept}|<code>(?P<name>\w+)</code>", link, html, flags=re.DOTALL)
