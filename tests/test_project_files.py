"""What stands around the package: the distributions that are built of it, metadata, citation, templates, tables."""

from __future__ import annotations

import re
import shutil
import tarfile
import tomllib
import zipfile
from pathlib import Path

import processes
import pytest

import torchrl_marl_offline

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE = Path(torchrl_marl_offline.__file__).parent
FOLDERS = (".ci", ".github", "benchmarks", "docs", "examples", "tests", PACKAGE.name)
BUILD = """
import sys, warnings
from setuptools import build_meta
warnings.filterwarnings("error", module="setuptools")
(folder,) = sys.argv[1:]  # which setuptools replaces
build_meta.build_wheel(folder)
build_meta.build_sdist(folder)
"""


def files_below(folder: Path) -> set[str]:
    """Return the paths of a folder's files, but for what Python and pytest leave there."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(folder.parent).as_posix() for path in found if "__pycache__" not in path.parts}


# Distributions


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the source distribution of a copy of the repository."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source)
    done = processes.run("-c", BUILD, folder, cwd=source)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        (metadata,) = (file.read(name).decode() for name in file.namelist() if name.endswith(".dist-info/METADATA"))
    assert names == files_below(PACKAGE)
    assert {f"{PACKAGE.name}/{name}" for name in ("py.typed", "__init__.pyi")} < names
    assert len([name for name in names if name.endswith(".csv")]) == 3
    assert f"Version: {torchrl_marl_offline.__version__}\n" in metadata and "Requires-Python: >=3.11\n" in metadata


def test_the_source_distribution_holds_what_the_tests_and_the_documentation_need(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    assert set().union(*(files_below(ROOT / folder) for folder in FOLDERS)) - names == set()
    assert {"pyproject.toml", "constraints.txt", "constraints-smax.txt", "CITATION.cff", "LICENSE"} < names
    assert {path.name for path in ROOT.glob("*.md")} < names
    assert not any(name.endswith((".pyc", ".whl")) for name in names)


# Metadata


def test_there_is_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert torchrl_marl_offline.__version__ == PROJECT["version"] == str(citation["version"])


def test_the_citation_has_what_its_schema_requires():
    """Of the Citation File Format 1.2.0: the keys that are required, and no others than are known."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    known = {"abstract", "authors", "cff-version", "keywords", "license", "message", "references", "title", "type"}
    assert citation.keys() <= known | {"version", "url", "repository-code", "date-released", "identifiers"}
    assert citation["authors"] == PROJECT["authors"] and citation["license"] == PROJECT["license"]
    assert all(isinstance(word, str) for word in citation["keywords"])
    (paper,) = citation["references"]
    assert {"type", "title", "authors", "year", "url", "identifiers"} == paper.keys()
    assert all(author.keys() == {"family-names", "given-names"} for author in paper["authors"])
    (identifier,) = paper["identifiers"]
    assert identifier["type"] in ("doi", "url", "swh", "other") and identifier["value"] == "arXiv:2603.08399"
    assert PROJECT["urls"]["Paper"] == paper["url"] and paper["url"] in (ROOT / "README.md").read_text()


def test_classifiers_name_what_is_tested():
    pythons = [each for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    named = [each.rpartition(" ")[2] for each in pythons]
    assert PROJECT["requires-python"] == f">={named[0]}"
    for python in named:  # continuous integration runs each
        assert f"works python{python}" in (ROOT / ".ci/run").read_text()


# Templates


@pytest.mark.parametrize("file", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda file: file.stem)
def test_templates_of_issues_are_forms(file):
    form = yaml.safe_load(file.read_text())
    if file.stem == "config":
        assert form.keys() <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "body", "labels", "title"}
    assert form["body"] and len({part["id"] for part in form["body"]}) == len(form["body"])
    for part in form["body"]:
        assert part["type"] in ("input", "textarea", "checkboxes", "dropdown") and part["attributes"]["label"]
        assert part.keys() <= {"type", "id", "attributes", "validations"}


# Tables


def test_the_page_on_installation_names_every_extra_and_its_packages():
    page = (ROOT / "docs/installation.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| ?(.*) \|$", page, flags=re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    assert rows.keys() == extras.keys()
    for name, packages in rows.items():
        if name != "test":
            assert packages.split(", ") == [re.match(r"[\w-]+", text)[0] for text in extras[name]], name
    everything = {text for name, texts in extras.items() if name not in ("smax", "test") for text in texts}
    tested = [text.partition("; python_version < ") for text in extras["test"]]
    assert everything <= {what for what, _, _ in tested}
    # what older Pythons alone have wheels of (benchmarks/pythons.py); the tests run with 3.11 and 3.12
    assert {(re.match(r"[\w-]+", what)[0], newest) for what, _, newest in tested if newest} == {
        ("ogbench", "'3.13'"),
        ("dm_control", "'3.13'"),
        ("overcooked", "'3.14'"),
    }


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", "docs/installation.md"])
def test_what_a_page_names_is_there(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
    roots = (ROOT, PACKAGE, PACKAGE / "training", ROOT / "tests/algorithms")
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:toml|md|txt|cff))`", text))
    assert named
    for name in named:
        if "NAME" not in name and "*" not in name and not re.match(r"(smax|smac|smacv2|mamujoco)/", name):
            assert any((root / name).exists() for root in roots), name


def test_the_contracts_are_the_layers_that_are_described():
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    rows = re.findall(r"^\| (`.*?`) \| ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    described = [re.findall(r"`(\w+)`", row) for row in rows][: len(layers)]
    assert [sorted(row) for row in described] == [sorted(layer.split(" | ")) for layer in layers]
