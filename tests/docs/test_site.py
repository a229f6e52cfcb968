"""The site: built without a warning, without a broken link, and with nothing from a network."""

from __future__ import annotations

import os
import re
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import processes
import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the built site, which the processes of a test run share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "site"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            # Not --quiet: with it MkDocs counts no warning, and --strict would pass over all of them.
            command = ("-W", "error", "-m", "mkdocs", "build", "--strict", "--site-dir", folder)
            done = processes.run(*command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
            said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("INFO ")]
            if done.returncode or said:
                pytest.fail(f"mkdocs build --strict ended with {done.returncode}:\n" + "\n".join(said))
    return folder


class Html(HTMLParser):
    """What a page links to, what can be linked to in it, its pictures and what a browser would fetch for it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links, self.anchors, self.pictures, self.fetched, self.text = [], {""}, [], [], []
        self._open, self.prose = [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append(given)
            self.links.append(given["src"])
        if tag in ("img", "script", "iframe", "source", "video") and given.get("src"):
            self.fetched.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "modulepreload"):
            self.fetched.append(given["href"])
        if tag in ("script", "style", "math", "code"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and tag == self._open[-1]:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style", "math"} & set(self._open):
            self.text.append(data)
            self.prose += [] if "code" in self._open else [data]

    @cached_property
    def words(self) -> str:
        return "".join(self.text)


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Html]:
    return read(site)


def read(site: Path) -> dict[Path, Html]:
    return {file: Html(file) for file in site.rglob("*.html") if file.name != "404.html"}


def broken_links(pages: dict[Path, Html]) -> list[str]:
    """Return what is wrong with the links of pages, a line each."""
    found = []
    for file, html in pages.items():
        for link in html.links:
            parts = urlparse(link)
            if parts.scheme in ("http", "https"):
                if not re.fullmatch(r"[\w.-]+\.[a-z]+(:\d+)?", parts.netloc) or re.search(r"\s", link):
                    found.append(f"{file.name}: {link} is no address")
                continue
            path, fragment = urldefrag(link)
            target = (file.parent / unquote(path)).resolve() if path else file
            if parts.scheme or path.startswith("/") or not target.is_file():
                found.append(f"{file.name}: {link} leads nowhere")
            elif fragment and (target not in pages or unquote(fragment) not in pages[target].anchors):
                found.append(f"{file.name}: {link} leads to no place in the page")
    return found


def test_no_link_of_the_site_is_broken(pages):
    assert len(pages) >= 20
    assert broken_links(pages) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="there">x</h1>')
    links = [
        "b.html",
        "b.html#there",
        "#own",
        "https://a.org/x",
        "c.html",
        "b.html#no",
        "/b.html",
        "https:/a",
        "mailto:a",
    ]
    text = '<p id="own">' + "".join(f'<a href="{link}">x</a>' for link in links) + '<img src="no.png">'
    (tmp_path / "a.html").write_text(text)
    found = broken_links(read(tmp_path))
    assert [line.split()[1] for line in found] == ["c.html", "b.html#no", "/b.html", "https:/a", "mailto:a", "no.png"]


def test_every_picture_says_what_it_shows(pages):
    pictures = [(file.name, given) for file, html in pages.items() for given in html.pictures]
    assert pictures
    for name, given in pictures:
        assert len((given.get("alt") or "").split()) >= 1, f"{name}: {given['src']} has no text in its place"


def test_a_browser_fetches_nothing_from_elsewhere(site, pages):
    for file, html in pages.items():
        assert [address for address in html.fetched if urlparse(address).netloc] == [], file.name
    for sheet in [*site.rglob("*.css"), *(ROOT / "docs").rglob("*.css")]:
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet.name


def test_no_page_shows_markup(pages):
    for file, html in pages.items():
        found = re.findall(
            r":(?:class|func|meth|mod|data|attr|math):`|\.\. \w[\w-]*::|\\\(|\\\[|\$\$|^::: ", html.words
        )
        assert not found, f"{file.name} shows {found[0]}"
        assert ">>>" not in "".join(html.prose), f"{file.name} shows an example as text"


def test_formulas_are_mathml(site):
    text = (site / "algorithms.html").read_text(encoding="utf-8")
    assert text.count("<math ") > 50 and 'class="arithmatex"' not in text


def test_names_of_the_api_are_links(site):
    assert 'href="api/objectives.html#torchrl_marl_offline.OfflineMARLLoss"' in (site / "index.html").read_text()


class _Loader(yaml.SafeLoader):
    """A reader of mkdocs.yml that makes nothing of its tags."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def nav_pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in nav_pages(value)]


def test_every_page_is_in_the_navigation_once():
    nav = nav_pages(yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)["nav"])
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(page for page in nav if not page.startswith("repository/")) == sorted(pages)


def test_what_a_page_names_of_the_repository_is_in_the_site(site):
    assert "torchrl_marl_offline" in Html(site / "repository/examples/compose_losses.py.html").words
    assert (site / "repository/benchmarks/results/spread.png").is_file()
    assert Html(site / "repository/benchmarks/RESULTS.html").anchors >= {"claims-and-verdicts"}
    assert Html(site / "repository/benchmarks/results/coordination.html").anchors >= {"the-two-step-game"}
