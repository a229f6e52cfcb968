"""The command reference, made of the commands' own parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from markup import table

from torchrl_marl_offline.commands import COMMANDS, PROGRAM

PAGE = Path(__file__).parent / "reference/commands.md"

OPENING = """# Commands

`marl-offline COMMAND ...`, or `python -m torchrl_marl_offline COMMAND ...`. `marl-offline COMMAND --help` prints what
stands here. The exit status is 0 where all went well, 1 where something is wrong with the data or the run, 2 where the
arguments are wrong, 130 after Ctrl-C, and 3 where a command has done its work and says no: `diagnose --strict` of a run
that is not sane, `export --verify` of a file that does not act as the policy, `study` when its `--hours` are over.

| command | what it does |
| --- | --- |
{commands}

Before the command, `--import FILE.py` (or a module's name; several times) imports what registers algorithms, rules,
mixers, readers or environments of your own. `marl-offline --version` prints the version.

This page is made of the parsers by `python docs/make_pages.py`.
"""

OF_TRAIN = """In the output folder lie `config.json`, `train.csv` and `eval.csv` (the algorithm's; those of cloning
lie in `cloning/`), `checkpoints/`, `learning_curves.png`, `methods.png`, `summary.json` and the newest `policy.pt`.
Recorded data lies beside it, in `data/`, and is used again. Ctrl-C saves and says how to go on; in Python `train()`
raises `TrainingInterrupted`. `torchrun --nproc-per-node 2 -m torchrl_marl_offline train ...` trains one run in two
processes.
"""


def page() -> str:
    """Return the whole page."""
    commands = "\n".join(f"| [`{name}`](#{name}) | {text} |" for name, text in COMMANDS.items())
    return "\n".join([OPENING.format(commands=commands), *(section(name) for name in COMMANDS)])


def section(name: str) -> str:
    """Return the section of one command."""
    parser = import_module(f"torchrl_marl_offline.commands.{name}").make_parser()
    parts = [f"## {name}\n", *described(parser)]
    if name == "train":
        return "\n".join([*parts, OF_TRAIN, *algorithms(parser)])
    for part, own in subparsers(parser):
        parts += [f"### {name} {part}\n", *described(own)]
    return "\n".join(parts)


def algorithms(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield what every algorithm shares, and then the settings of each."""
    own_parsers = dict(subparsers(parser))
    yield "### train ALGORITHM\n"
    yield "Options that every algorithm has:\n"
    yield from (text for group, text in groups(own_parsers["recipe"]) if not group.startswith("settings of"))
    for name, own in own_parsers.items():
        yield f"### train {name}\n"
        yield f"What it is: [algorithms](../algorithms.md#{name}).\n"
        yield from (text for group, text in groups(own) if group.startswith("settings of"))


def subparsers(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    """Return the parsers below a parser by name."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [pair for action in found for pair in action.choices.items()]


def described(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield a parser's text, its usage and its options."""
    yield from (paragraph(text) for text in (parser.description or "").split("\n\n") if text.strip())
    if not subparsers(parser):
        yield f"```text\n{usage(parser)}\n```\n"
        yield from (text for _, text in groups(parser, together=True))


def paragraph(text: str) -> str:
    """Return a paragraph of a description; indented lines and command lines are shown as they are."""
    lines = text.strip("\n").splitlines()
    if all(line.startswith((" ", PROGRAM)) for line in lines):
        return "```text\n" + "\n".join(line.strip() for line in lines) + "\n```\n"
    return plain("\n".join(lines)) + "\n"


def plain(text: str) -> str:
    """Return a text that shows its stars and brackets as they are."""
    return text.replace("*", "\\*").replace("<", "&lt;")


def usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage in one line for every few options, whatever the terminal's width."""
    words = [parser.prog, *(invocation(action) for action in parser._actions if not action.option_strings)]
    if any(action.option_strings and action.dest != "help" for action in parser._actions):
        words.insert(1, "[OPTIONS]")
    return " ".join(words)


def groups(parser: argparse.ArgumentParser, *, together: bool = False) -> Iterator[tuple[str, str]]:
    """Yield each group's title and the table of its arguments; or one table of all groups."""
    found = {
        group.title: [
            cells(parser, action)
            for action in group._group_actions
            if action.dest != "help" and not isinstance(action, argparse._SubParsersAction)
        ]
        for group in parser._action_groups
    }
    if together:
        found = {"": [row for rows in found.values() for row in rows]}
    for title, rows in found.items():
        if rows:
            yield title, table(["argument", "meaning"], rows) + "\n"


def cells(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    """Return an argument as it is typed, and what its help says."""
    text = " ".join(parser._get_formatter()._expand_help(action).split()) if action.help else ""
    if action.default not in (None, False, [], argparse.SUPPRESS) and "default:" not in text:
        text = f"{text} (default: {action.default})".strip()
    if action.choices and action.metavar is not None:
        text = f"{text} one of {', '.join(map(str, action.choices))}".strip()
    return [f"`{invocation(action)}`", plain(text).replace("|", "\\|")]


def invocation(action: argparse.Action) -> str:
    """Return an argument as it is typed, with its value."""
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        value = ""
    elif action.nargs in ("+", "*"):
        value = f"{value} ..."
    elif action.nargs == "?":
        value = f"[{value}]"
    return " ".join(filter(None, [", ".join(action.option_strings), value])).replace("|", "\\|")
