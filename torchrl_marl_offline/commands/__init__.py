"""The commands: ``python -m torchrl_marl_offline COMMAND``, or ``marl-offline COMMAND``.

Each is a module of this package with two functions, ``main(arguments)``, which returns the exit status, and
``make_parser()``; it is imported when it is called.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

COMMANDS = {
    "data": "inspect, convert, list and verify datasets",
    "train": "train an algorithm beside cloning: a table and pictures",
    "record": "train a behaviour policy and record datasets of graded quality",
    "evaluate": "play a saved policy, or judge policies by logged data",
    "diagnose": "look at runs: values, gains, policies against the data; a verdict",
    "export": "write a saved policy as a program of its own",
    "policy": "push policies to the Hugging Face Hub, and pull them",
    "study": "methods × datasets × grids × seeds: run, plan, list, report",
    "benchmark": "make a suite of datasets with known optima, and run systems on it",
    "completion": "print what lets a shell complete commands and options",
}
"""The commands and what they do."""

PROGRAM = "marl-offline"
REPORTED = ("torch", "torchrl", "tensordict", "numpy", "vmas", "gymnasium")
"""Packages whose versions a report of a fault needs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 where there is no such command.

    Args:
        arguments: by default those of the process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    extensions, given = _split_imports(given)
    name, *rest = given or ["--help"]
    if extensions and name in COMMANDS:
        try:
            import_module("torchrl_marl_offline.core.extensions").import_extensions(extensions)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if name in COMMANDS:
        return import_module(f"{__name__}.{name}").main(rest)
    if name == "--version":
        print(_versions())
        return 0
    if name in ("-h", "--help"):
        print(_help())
        return 0
    print(f"error: There is no command {name!r}; known are {', '.join(COMMANDS)}. See --help.", file=sys.stderr)
    return 2


def _split_imports(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split off the options ``--import NAME`` before the command."""
    found, left = [], list(arguments)
    while left and left[0].partition("=")[0] == "--import":
        _, equals, name = left.pop(0).partition("=")
        if not equals and not left:
            return [], ["--import"]  # which is no command
        found.append(name if equals else left.pop(0))
    return found, left


def _versions() -> str:
    """Return what a report of a fault needs: the library's version, Python's, the system, what it stands on."""
    own = f"{PROGRAM} {import_module('torchrl_marl_offline').__version__}"
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    lines = [own, f"{platform.python_implementation()} {platform.python_version()}", system]
    for name in REPORTED:
        with suppress(PackageNotFoundError):
            lines.append(f"{name} {version(name)}")
    return "\n".join(lines)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return f"""usage: {PROGRAM} [--version] [--import FILE.py] COMMAND ...

Offline multi-agent reinforcement learning.

{lines}

--import FILE.py (or a module's name; several times) imports what registers
algorithms, rules, mixers, readers or environments of your own.
{PROGRAM} COMMAND --help says more."""


def earlier(name: str) -> int:
    """Run a command that was called by its earlier name, ``python -m torchrl_marl_offline.NAME``, with a hint."""
    print(f"hint: this command is now called {PROGRAM} {name}", file=sys.stderr)
    return main([name, *sys.argv[1:]])
