"""Which packages have wheels for which Python and system: what stands in the way of a newer Python.

    python benchmarks/pythons.py                                  # Linux, Python 3.12 to 3.14
    python benchmarks/pythons.py --systems linux macos windows --csv benchmarks/results/pythons.csv

Looked at is everything that the package and its extras install here, at the version that is installed, and what
``constraints-smax.txt`` pins besides. Of packages without compiled code only the Python versions that they state count.
Of the others, and of what is not installed here, the list of files is read at the index that pip is set up with;
nothing is downloaded and no other interpreter is needed. A version in the table is the newest one that has a wheel,
where the one that is looked at has none; "source" means that only its source can be had.
"""

from __future__ import annotations

import argparse
import csv
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from itertools import product
from pathlib import Path
from typing import Any

from arguments import as_file, run_script, script_parser
from measuring import markdown
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parents[1]
PROJECT = "torchrl-marl-offline"
TOOLS = "test"
"""The extra that no user installs."""

SYSTEMS = {
    "linux": [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]
    + [f"{name}_x86_64" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")],
    "macos": [*mac_platforms((14, 0), "arm64")],
    "windows": ["win_amd64"],
}
"""Platforms of a system: glibc 2.28, macOS 14."""
MARKERS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"},
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64", "os_name": "nt"},
}
THERE, SOURCE, MISSING, NOT_NEEDED = "there", "source", "missing", ""


@dataclass(frozen=True)
class Target:
    """A Python on a system."""

    python: str
    system: str

    @cached_property
    def tags(self) -> frozenset[Tag]:
        """Those of the wheels that can be installed there."""
        version, platforms = tuple(map(int, self.python.split("."))), SYSTEMS[self.system]
        interpreter = f"cp{version[0]}{version[1]}"
        compiled = cpython_tags(version, abis=[interpreter], platforms=platforms)
        return frozenset((*compiled, *compatible_tags(version, interpreter, platforms)))

    @property
    def environment(self) -> dict[str, str]:
        """What the markers of requirements see there."""
        versions = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        return default_environment() | MARKERS[self.system] | versions


@dataclass
class Package:
    """One package: its version (``""``: any), and the extras (``""``: the project itself) and targets that need it."""

    name: str
    version: str
    needed: dict[Target, set[str]] = field(default_factory=dict)

    @property
    def extras(self) -> list[str]:
        """All of them, the package itself as "core"."""
        return sorted({extra or "core" for extras in self.needed.values() for extra in extras})


def installed(name: str) -> Distribution | None:
    """Return what is installed under a name."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def version_of(name: str) -> str:
    """Return the version that is installed, without its build, or ``""``."""
    facts = installed(name)
    return "" if facts is None else facts.version.partition("+")[0]


def requirements(name: str) -> list[str]:
    """Return what a package requires: the project's as ``pyproject.toml`` has them, others' as they are installed."""
    if name != PROJECT:
        facts = installed(name)
        return [] if facts is None else facts.requires or []
    extras = project()["optional-dependencies"].items()
    return [*project()["dependencies"], *(of_extra(text, extra) for extra, texts in extras for text in texts)]


def of_extra(text: str, extra: str) -> str:
    """Return a requirement as one of an extra alone, whatever condition it has of its own."""
    what, _, condition = text.partition(";")
    return f'{what}; extra == "{extra}"' + (f" and ({condition.strip()})" if condition else "")


@cache
def project() -> dict[str, Any]:
    """Return the project's table of ``pyproject.toml``."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def needed(targets: Sequence[Target]) -> dict[str, Package]:
    """Return every package that the project or one of its extras needs on a target, by name."""
    found: dict[str, Package] = {}
    extras = [extra for extra in project()["optional-dependencies"] if extra != TOOLS]
    for target, extra in product(targets, ("", *extras)):
        for name, version in closure(PROJECT, {extra} - {""}, target.environment).items():
            found.setdefault(name, Package(name, version)).needed.setdefault(target, set()).add(extra)
    for package in found.values():  # what the project itself needs is needed with every extra
        for by in package.needed.values():
            if "" in by:
                by.intersection_update({""})
    pins = pinned(ROOT / "constraints.txt")
    for name, version in pinned(ROOT / "constraints-smax.txt").items():
        if name not in pins:
            found.setdefault(name, Package(name, version, {target: {"smax"} for target in targets})).version = version
    for package in found.values():
        package.version = package.version or pins.get(package.name, "")
    return found


def pinned(file: Path) -> dict[str, str]:
    """Return a file's constraints: name -> version."""
    lines = [line.partition("==") for line in file.read_text(encoding="utf-8").splitlines()]
    return {canonicalize_name(name): version.strip() for name, equals, version in lines if equals}


def closure(name: str, extras: set[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a package needs, directly or not: name -> the version that is installed, or ``""``."""
    found: dict[str, str] = {}
    left = [(canonicalize_name(name), frozenset(extras))]
    seen = set(left)
    while left:
        current, wanted = left.pop()
        if current != PROJECT:
            found[current] = version_of(current)
        for text in requirements(current):
            requirement = Requirement(text)
            marker = requirement.marker
            applies = marker is None or any(marker.evaluate({**environment, "extra": e}) for e in (wanted or {""}))
            step = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if applies and step not in seen:
                seen.add(step)
                left.append(step)
    return found


def is_pure(facts: Distribution | None) -> bool:
    """Say whether an installed wheel has no compiled code, and so runs wherever its Python does."""
    text = facts.read_text("WHEEL") or "" if facts is not None else ""
    return bool(re.search(r"^Tag: py[\d.py]*-none-any$", text, flags=re.MULTILINE))


def state(package: Package, target: Target) -> str:
    """Say whether a package can be had on a target: there, source, missing, or the newest version that is there."""
    if target not in package.needed:
        return NOT_NEEDED
    facts = installed(package.name)
    if facts is not None and is_pure(facts) and _allows(facts.metadata.get("Requires-Python"), target):
        return THERE
    wheels, sources = set(), set()
    for file, requires in index_of(package.name):
        if not _allows(requires, target):
            continue
        with suppress(InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
            if not file.endswith(".whl"):
                sources.add(parse_sdist_filename(file)[1].public)
            elif not target.tags.isdisjoint(parse_wheel_filename(file)[3]):
                wheels.add(parse_wheel_filename(file)[1].public)
    if package.version in wheels or (wheels and not package.version):
        return THERE
    return SOURCE if package.version in sources else max(wheels, key=Version, default=MISSING)


def _allows(requires: str | None, target: Target) -> bool:
    return SpecifierSet(requires or "").contains(f"{target.python}.0")


@cache
def index_of(name: str) -> tuple[tuple[str, str | None], ...]:
    """Return the files of a package, each with the Pythons that it is for, as the index that pip is set up with says.

    Pip has no public function for it.
    """
    from pip._internal.commands import create_command
    from pip._internal.index.collector import LinkCollector, parse_links
    from pip._internal.models.link import Link

    command = create_command("index")
    options, _ = command.parse_args(["versions", name, "--disable-pip-version-check"])
    with command.main_context(), command._build_session(options) as session:
        collector = LinkCollector.create(session, options=options)
        found = []
        for place in collector.search_scope.get_index_urls_locations(name):
            page = collector.fetch_response(Link(place))
            found += [] if page is None else [link for link in parse_links(page) if not link.is_yanked]
    if not found:
        raise RuntimeError(f"pip's index has no {name}.")
    return tuple((link.filename, link.requires_python) for link in found)


def rows_of(packages: Mapping[str, Package], targets: Sequence[Target]) -> list[dict[str, str]]:
    """Return one row for each package: name, version, what needs it, and its state on every target."""
    return [
        {"package": package.name, "version": package.version, "for": " ".join(package.extras)}
        | {f"{target.python} {target.system}": state(package, target) for target in targets}
        for package in sorted(packages.values(), key=lambda each: each.name)
    ]


def summary(rows: Sequence[Mapping[str, str]], targets: Sequence[Target]) -> Iterator[str]:
    """Yield a sentence for each target: what stands in the way, for the package itself and for its extras."""
    for target in targets:
        column = f"{target.python} {target.system}"
        ways = [row for row in rows if row[column] not in (THERE, NOT_NEEDED)]
        named = [f"{row['package']} {row['version']} ({row['for']}): {row[column]}" for row in ways]
        yield f"{column}: {'; '.join(named) or 'everything is there'}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, and print what is not there as a table and one sentence for each Python and system."""
    parser = script_parser(__doc__)
    parser.add_argument("--pythons", nargs="+", default=["3.12", "3.13", "3.14"], metavar="VERSION")
    parser.add_argument("--systems", nargs="+", default=["linux"], choices=list(SYSTEMS))
    parser.add_argument("--packages", nargs="+", type=canonicalize_name, metavar="NAME", help="only these")
    parser.add_argument("--csv", type=as_file, help="file to write the whole table to")
    parsed = parser.parse_args(arguments)
    targets = [Target(python, system) for system, python in product(parsed.systems, parsed.pythons)]
    packages = needed(targets)
    _check(parser, parsed.packages, packages)
    chosen = {name: each for name, each in packages.items() if parsed.packages is None or name in parsed.packages}
    rows = rows_of(chosen, targets)
    if parsed.csv is not None:
        parsed.csv.parent.mkdir(parents=True, exist_ok=True)
        with parsed.csv.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    told = [list(row.values()) for row in rows]
    print(markdown(list(rows[0]), [row for row in told if not {*row[3:]} <= {THERE, NOT_NEEDED}]))
    print(f"\n{len(rows)} packages; those that are not in the table are there everywhere.")
    print("\n".join(summary(rows, targets)))


def _check(parser: argparse.ArgumentParser, names: Sequence[str] | None, packages: Mapping[str, Package]) -> None:
    unknown = [name for name in names or [] if name not in packages]
    if unknown:
        parser.error(f"nothing needs {', '.join(unknown)}")


if __name__ == "__main__":
    run_script(main)
