"""Which packages have wheels for which Python and system: what stands in the way of a newer Python.

    python benchmarks/pythons.py                                  # Linux, Python 3.12 to 3.14
    python benchmarks/pythons.py --systems linux macos windows --csv benchmarks/results/pythons.csv

Looked at is everything that the package and its extras install here, at the version that is installed, and what
``constraints-smax.txt`` pins besides. Of packages without compiled code only the Python versions that they state count.
Of the others, and of what is not installed here, pip's index is asked (``pip index versions``, by pip's own
configuration); nothing is downloaded and no other interpreter is needed. A version in the table is the newest one that
has a wheel where the installed version has none; "source" means that only its source can be had.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from itertools import product
from pathlib import Path

from arguments import as_few, script_parser
from measuring import markdown
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = "torchrl-marl-offline"
TOOLS = "test"
"""The extra that no user installs."""

SYSTEMS = {
    "linux": ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_26_x86_64", "manylinux2014_x86_64"),
    "macos": ("macosx_14_0_arm64",),
    "windows": ("win_amd64",),
}
"""Platforms of a system, the newest first; pip knows those that are below ``manylinux2014`` and ``macosx_14_0``."""
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

    @property
    def environment(self) -> dict[str, str]:
        """What the markers of requirements see there."""
        versions = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        return default_environment() | MARKERS[self.system] | versions


@dataclass
class Package:
    """One package: its version, and the extras (``""``: the package itself) and targets that need it."""

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


def needed(targets: Sequence[Target]) -> dict[str, Package]:
    """Return every package that the project or one of its extras needs on a target, by name."""
    found: dict[str, Package] = {}
    extras = [extra for extra in distribution(PROJECT).metadata.get_all("Provides-Extra", []) if extra != TOOLS]
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
        facts = installed(current)
        if current != PROJECT:
            found[current] = "" if facts is None else facts.version.partition("+")[0]
        for text in (facts.requires if facts is not None else None) or []:
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
    if facts is not None and is_pure(facts):
        stated = facts.metadata.get("Requires-Python") or ""
        if SpecifierSet(stated).contains(f"{target.python}.0"):
            return THERE
    wheels = versions(package.name, target, ("--only-binary", ":all:"))
    if package.version in wheels:
        return THERE
    if package.version in versions(package.name, target, ("--no-binary", ":all:")):
        return SOURCE
    return max(wheels, key=Version, default=MISSING)


def versions(name: str, target: Target, kind: Sequence[str]) -> list[str]:
    """Return the versions that pip's index has for a target, wheels or sources."""
    tag = target.python.replace(".", "")
    options = ["--python-version", target.python, "--implementation", "cp"]
    options += [word for abi in (f"cp{tag}", "abi3", "none") for word in ("--abi", abi)]
    options += [word for platform in SYSTEMS[target.system] for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "index", "versions", name, *kind, *options]
    done = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True, check=False)
    listed = re.search(r"^Available versions: (.*)$", done.stdout, flags=re.MULTILINE)
    if listed is None and "No matching distribution" not in done.stderr:
        raise RuntimeError(f"pip cannot say which versions of {name} there are: {done.stderr.strip()[-300:]}")
    return [] if listed is None else listed[1].split(", ")


def rows_of(packages: Mapping[str, Package], targets: Sequence[Target], workers: int) -> list[dict[str, str]]:
    """Return one row for each package: name, version, what needs it, and its state on every target."""
    pairs = list(product(packages.values(), targets))
    with ThreadPoolExecutor(workers) as pool:
        states = dict(zip(((p.name, t) for p, t in pairs), pool.map(lambda pair: state(*pair), pairs)))
    return [
        {"package": package.name, "version": package.version, "for": " ".join(package.extras)}
        | {f"{target.python} {target.system}": states[package.name, target] for target in targets}
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
    parser.add_argument("--workers", type=as_few, default=2, help="questions at the same time")
    parser.add_argument("--csv", type=Path, help="file to write the whole table to")
    parsed = parser.parse_args(arguments)
    targets = [Target(python, system) for system, python in product(parsed.systems, parsed.pythons)]
    packages = needed(targets)
    _check(parser, parsed.packages, packages)
    chosen = {name: each for name, each in packages.items() if parsed.packages is None or name in parsed.packages}
    rows = rows_of(chosen, targets, parsed.workers)
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
    main()
