"""The code blocks of a Markdown page, and a run of them as a reader would do it: one after the other, in one folder.

- ``python`` blocks run in one namespace, in the process of the page.
- A block with ``title="FILE"`` is written to that file.
- ``bash`` blocks run line by line: ``marl-offline ...``, ``python -m torchrl_marl_offline...`` and
  ``python examples/...``.
- Blocks of other languages are left alone, and so is a block below ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

import processes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REASONS = re.compile(
    r"needs a network(?:; tests/[\w/]+\.py runs it against a local server)?|needs a GPU"
    r"|needs (?:BenchMARL|og-marl|d3rlpy|PyMARL|OGBench)|takes minutes; (tests/[\w/]+\.py)(?:::(\w+))?"
)
"""Why a block may be left out; one that takes minutes names the test that runs what it shows."""

_BLOCK = re.compile(
    r"^(?:[ \t]*<!-- not run: (?P<reason>.*?) -->\n(?:[ \t]*\n)?)?"
    r"(?P<indent>[ \t]*)(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code: where it stands, what it is, and why it is not run."""

    page: str
    line: int
    language: str
    title: str | None
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class PageError(AssertionError):
    """A block of a page failed; the message names its place."""


def blocks_of(text: str, page: str) -> list[Block]:
    """Return the blocks of a page."""
    found = []
    for match in _BLOCK.finditer(text):
        info = match["info"].strip()
        title = re.search(r'title="([^"]+)"', info)
        line = text.count("\n", 0, match.start("code")) + 1
        language = re.match(r"[\w+-]*", info.strip("{ .}"))[0]
        code = textwrap.dedent(match["code"])
        found.append(Block(page, line, language, title and title[1], code, match["reason"]))
    return found


def lines_of(block: Block) -> list[list[str]]:
    """Return the commands of a bash block as words."""
    text = block.code.replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def run_page(text: str, page: str, folder: Path) -> int:
    """Run the blocks of a page in a folder, and return how many there were.

    Raises:
        PageError: one failed, or cannot be run.
    """
    run = [block for block in blocks_of(text, page) if block.reason is None]
    interpreter = None
    count = 0
    try:
        for block in run:
            if block.title is not None:
                target = folder / block.title
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.code)
            elif block.language == "python":
                interpreter = interpreter or Interpreter(folder)
                interpreter.run(block)
            elif block.language in ("bash", "sh", "shell", "console"):
                for words in lines_of(block):
                    _run_command(words, block, folder)
            else:
                continue
            count += 1
    finally:
        if interpreter is not None:
            interpreter.close()
    return count


def _run_command(words: list[str], block: Block, folder: Path) -> None:
    match words:
        case ["marl-offline", *rest]:
            arguments = ["-m", "torchrl_marl_offline", *rest]
        case ["python", "-m", module, *rest] if module.partition(".")[0] == "torchrl_marl_offline":
            arguments = ["-m", module, *rest]
        case ["python", script, *rest] if script.startswith("examples/") and (ROOT / script).is_file():
            arguments = [ROOT / script, *rest]
        case _:
            raise PageError(f"{block}: {shlex.join(words)!r} is no command that a page may run.")
    done = processes.run(*arguments, cwd=folder, timeout=300)
    if done.returncode:
        raise PageError(f"{block}: {shlex.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")


_INTERPRETER = """
import os, sys, traceback
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
asked, answers = open(sys.argv[1]), open(sys.argv[2], "w")
names = globals()
for name in ("asked", "answers"):
    names["_" + name] = names.pop(name)
for _line in _asked:
    _file, _, _place = _line.strip().partition(" ")
    try:
        exec(compile(open(_file).read(), _place, "exec"), names)
        sys.stdout.flush()
        _answer = "done"
    except BaseException:
        traceback.print_exc()
        _answer = "failed"
    _answers.write(_answer + "\\n")
    _answers.flush()
"""


class Interpreter:
    """A process in which blocks run in one namespace, one when it is asked."""

    def __init__(self, folder: Path) -> None:
        self._scratch = folder.with_name(f"{folder.name}-interpreter")
        self._scratch.mkdir()
        pipes = [self._scratch / name for name in ("asked", "answers")]
        for pipe in pipes:
            os.mkfifo(pipe)
        # What it prints goes to a file: a pipe that nobody reads would stop it.
        code = (
            f"import os; os.dup2(os.open({str(self._scratch / 'said')!r}, os.O_CREAT | os.O_WRONLY), 1); os.dup2(1, 2)"
        )
        self._process = processes.start("-c", code + _INTERPRETER, *pipes, cwd=folder)
        self._asked, self._answers = pipes[0].open("w"), pipes[1].open()
        self._count = 0

    def run(self, block: Block) -> None:
        """Run a block, whose lines are numbered as in the page."""
        file = self._scratch / f"{self._count}.py"
        self._count += 1
        file.write_text("\n" * (block.line - 1) + block.code)
        self._asked.write(f"{file} {block.page}\n")
        self._asked.flush()
        if self._answers.readline().strip() != "done":
            raise PageError(f"{block} failed:\n{self.said()}")

    def said(self) -> str:
        """Return what it printed."""
        return (self._scratch / "said").read_text()

    def close(self) -> None:
        """End it."""
        self._asked.close()
        self._process.communicate(60)
        self._answers.close()
