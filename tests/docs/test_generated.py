"""The pages that are made of the code: not stale, complete, and each name of the API once."""

from __future__ import annotations

import re
from collections import Counter

import make_api
import make_commands
import make_datasets
import make_environments
import make_pages
import make_study_reference
import pytest

import torchrl_marl_offline as package
from torchrl_marl_offline import list_datasets, list_tasks
from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.commands import COMMANDS
from torchrl_marl_offline.data.published.cards import SOURCES
from torchrl_marl_offline.envs.factory import FAMILIES


def test_no_page_is_stale(capsys):
    assert make_pages.main(["--check"]) == 0, capsys.readouterr().err


def test_stale_pages_are_found_and_made_anew(tmp_path, capsys, monkeypatch):
    made = {tmp_path / "a/b.md": "one\n", tmp_path / "api/index.md": "two\n"}
    monkeypatch.setattr(make_pages, "pages", lambda: made)
    monkeypatch.setattr(make_api, "FOLDER", tmp_path / "api")
    assert make_pages.main(["--check"]) == 1
    assert f"{tmp_path / 'a/b.md'} is stale; run python docs/make_pages.py" in capsys.readouterr().err
    assert make_pages.main([]) == make_pages.main(["--check"]) == 0
    (tmp_path / "api/gone.md").write_text("")
    assert make_pages.main(["--check"]) == 1
    assert "gone.md is stale" in capsys.readouterr().err


def test_every_public_name_has_one_place():
    text = "\n".join(make_api.pages().values())
    places = Counter(re.findall(r"^::: torchrl_marl_offline\.(\w+)$", text, flags=re.MULTILINE))
    assert places == Counter(package.__all__)
    entries = re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE)
    assert len(entries) == len(set(entries)) > len(package.__all__)


@pytest.mark.parametrize("module", [make_commands, make_datasets, make_environments, make_study_reference, make_api])
def test_no_page_shows_markup(module):
    texts = module.pages().values() if module is make_api else [module.page()]
    for text in texts:
        assert not re.findall(r":\w+:`|(?<!`)``\w|\.\. \w+::|<class '", text)
        for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1, block  # a bar within a cell would be taken for a cell's end


def test_every_published_set_is_on_its_page():
    page = make_datasets.page()
    assert re.findall(r"^\| `([^`]+)`(?: \(|.*\|$)", page.partition("## Reference")[0], flags=re.MULTILINE) == [
        card.id for source in SOURCES for card in list_datasets(source).values()
    ]
    assert set(make_datasets.PUBLISHERS) == set(SOURCES)
    assert "| `duplicated_episodes` | warning | drops the copies, if asked by name; " in page


def test_every_environment_is_on_its_page():
    page = make_environments.page()
    for name in list_tasks():
        if not name.endswith("/*") and name.partition("/")[0] in FAMILIES:
            assert f"`{name}`" in page, name
    assert "| `agents` | `3` |" in page.replace("| `agents` | `2` |", "| `agents` | `3` |")


def test_every_command_is_on_its_page():
    page = make_commands.page()
    for name in COMMANDS:
        assert f"\n## {name}\n" in page
    for name in ALGORITHMS:
        assert f"\n### train {name}\n" in page
    assert "| `--rectification VALUE` |" in page and "| `--hours " in page and "| `--repair` |" in page
    assert page.count("`--batch-size") == 1  # what all algorithms share stands once
