"""Every code block of every page runs, from the first to the last, as a reader would run it."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from pathlib import Path

import pytest
from page_toys import PAGES, REASONS, ROOT, Block, PageError, blocks_of, lines_of, run_page

from torchrl_marl_offline.commands import COMMANDS
from torchrl_marl_offline.commands import _split_imports as split_imports

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCKS = [block for name, page in zip(NAMES, PAGES) for block in blocks_of(page.read_text(), name)]
RUN = [block for block in BLOCKS if block.reason is None and block.language in ("python", "bash")]


def code_of(name: str) -> list[str]:
    return [block.code for block in BLOCKS if block.page == name and block.reason is None]


def begins_another(name: str) -> bool:
    """Say whether a page's blocks are the first ones of another page, which then runs them."""
    own, others = code_of(name), sorted({block.page for block in RUN} - {name})
    return any(code_of(other)[: len(own)] == own for other in others)


@pytest.mark.parametrize("name", sorted(name for name in {block.page for block in RUN} if not begins_another(name)))
def test_a_pages_blocks_run(name, tmp_path):
    folder = tmp_path / "reader"
    folder.mkdir()
    wanted = [block for block in BLOCKS if block.page == name and block.reason is None]
    assert run_page((ROOT / name).read_text(), name, folder) >= len([b for b in wanted if b in RUN])


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.reason], ids=str)
def test_a_block_that_is_not_run_says_why(block):
    reason = REASONS.fullmatch(block.reason)
    assert reason, f"{block} is not run: {block.reason!r} is none of the reasons"
    if reason[1]:
        assert (ROOT / reason[1]).is_file(), f"{block} names a test that is not there"
        assert not reason[2] or f"def {reason[2]}(" in (ROOT / reason[1]).read_text(), f"{block} names no test"
    if block.language == "bash":
        for words in lines_of(block):
            assert words[0] in ("marl-offline", "python", "pip", "torchrun", "mkdocs"), f"{block}: {words}"
            if words[0] == "marl-offline":
                check_command(words[1:])
            for word in words[1:]:
                assert not word.startswith("examples/") or (ROOT / word).is_file(), f"{block}: {word} is not there"


def check_command(words: list[str]) -> None:
    """Parse a command, which exits where it is none."""
    _, (name, *rest) = split_imports(words)
    import_module(f"torchrl_marl_offline.commands.{name}").make_parser().parse_args(rest)


def test_every_option_that_a_page_names_is_there():
    known = {"--import", "--version", "--help", "--nproc-per-node"}
    for name in COMMANDS:
        parser = import_module(f"torchrl_marl_offline.commands.{name}").make_parser()
        known |= {option for own in [parser, *below(parser)] for option in own._option_string_actions}
    for name, page in zip(NAMES, PAGES):
        for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text()):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code):
                assert option in known, f"{name} speaks of {option}, which no command knows"


def below(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [own for action in found for own in action.choices.values()]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("python", "bash")], ids=str)
def test_a_block_is_small(block):
    assert len(block.code.splitlines()) <= 45 and max(map(len, block.code.splitlines())) <= 120


def test_every_fence_of_a_page_is_seen():
    for name, page in zip(NAMES, PAGES):
        fences = re.findall(r"^[ \t]*```", page.read_text(), flags=re.MULTILINE)
        assert len(fences) == 2 * len([block for block in BLOCKS if block.page == name]), name


# ------------------------------------------------------------------------- the runner itself

PAGE = """
```python
import pathlib
a = 2
```

    ```text
    nothing
    ```

```toml title="below/study.toml"
[study]
```

<!-- not run: needs a GPU -->
```python
raise SystemExit
```

```bash
marl-offline --version  # says it
```

```python
assert pathlib.Path("below/study.toml").read_text() == "[study]\\n"
LAST
```
"""


def test_blocks_by_hand():
    blocks = blocks_of(PAGE, "p.md")
    assert [(b.language, b.title, b.reason) for b in blocks] == [
        ("python", None, None),
        ("text", None, None),
        ("toml", "below/study.toml", None),
        ("python", None, "needs a GPU"),
        ("bash", None, None),
        ("python", None, None),
    ]
    assert blocks[0] == Block("p.md", 3, "python", None, "import pathlib\na = 2\n", None)
    assert lines_of(blocks[4]) == [["marl-offline", "--version"]]
    assert lines_of(Block("p", 1, "bash", None, "a b \\\n  c\n\n# d\n", None)) == [["a", "b", "c"]]


def test_blocks_share_a_folder_and_a_namespace(tmp_path):
    folder = tmp_path / "reader"
    folder.mkdir()
    assert run_page(PAGE.replace("LAST", "pathlib.Path('a').write_text(str(a))"), "p.md", folder) == 4
    assert (folder / "a").read_text() == "2"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\na = 1\nassert a == 3\n```", r'(?s)p.md:2 failed.*File "p.md", line 3'),
        ("```python\nraise SystemExit(0)\n```", "p.md:2 failed"),
        ("```python\nimport os; os._exit(0)\n```", "p.md:2 failed"),
        (
            "```bash\nmarl-offline evaluate nowhere\n```",
            r"(?s)p.md:2: marl-offline evaluate nowhere ended with 1.*nowhere",
        ),
        ("```bash\nrm -r x\n```", "p.md:2: 'rm -r x' is no command"),
    ],
)
def test_a_block_that_fails_is_named(tmp_path, text, error):
    folder = tmp_path / "reader"
    folder.mkdir()
    with pytest.raises(PageError, match=error):
        run_page(text, "p.md", folder)


def test_the_readme_shows_five_lines_and_is_short():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 100
    (block,) = [block for block in BLOCKS if block.page == "README.md" and block.language == "python"]
    assert len([line for line in block.code.splitlines() if line and "import" not in line]) == 5


@pytest.mark.parametrize("name", NAMES)
def test_a_page_links_to_files_that_are_there(name):
    """Where the repository itself is read, without the site."""
    for path in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", without_code((ROOT / name).read_text())):
        assert (ROOT / name).parent.joinpath(path).is_file(), f"{name} links to {path}"


def without_code(text: str) -> str:
    return re.sub(r"^[ \t]*(```+).*?^[ \t]*\1|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)


def test_the_test_command_is_one_line_of_the_readme():
    lines = re.findall(r"^pip install .* && python -m pytest.*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(lines) == 1 and Path(ROOT / "constraints.txt").is_file()
