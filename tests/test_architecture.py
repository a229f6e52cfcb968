"""The building: layers that import only what stands below them, no circles, imports at the top of files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import grimp
import pytest

import torchrl_marl_offline

PACKAGE = "torchrl_marl_offline"
ROOT = Path(torchrl_marl_offline.__file__).parent
REPOSITORY = Path(__file__).parents[1]

LATE = {
    "data/torchrl_hook.py": "TorchRL's base class cannot be imported while the hook runs",
    "envs/base.py": "matplotlib is slow to import",
    "envs/factory.py": "the names of tasks are known without the libraries that play them",
    "envs/mamujoco/environment.py": "the renderer needs a graphics library",
}
"""Files that import the library's own, or what it always needs, where they use it, and why."""


OPTIONAL = {
    "PIL",
    "av",
    "fcntl",
    "hydra",
    "huggingface_hub",
    "jax",
    "jaxmarl",
    "lle",
    "minari",
    "mujoco",
    "mujoco_warp",
    "ogbench",
    "onnxruntime",
    "onnxscript",
    "overcooked",
}
OPTIONAL |= {"pandas", "pyarrow", "ray", "rliable", "tensorstore", "warp"}
"""Packages that need not be there: of extras, or of an operating system."""

SLOW = {
    "gymnasium": "slow to import, and known here by its spaces alone",
    "h5py": "slow to import, and most data is no HDF5",
    "matplotlib": "slow to import, and nothing is drawn by most programs",
    "numpy": "beside jax, in the functions that jax compiles",
    "pettingzoo": "slow to import, and needed for its own environments alone",
    "tensorboard": "slow to import, and most runs are not logged to it",
    "pydantic": "slow to import, and only a study file is read by it",
    "torch": "help, studies' plans and their workers' parents do without it; its compiler and its parts are slow",
    "torchrl": "its collectors and loggers are slow to import",
    "wandb": "slow to import, and most runs are not logged to it",
    "vmas": "slow to import, and needed for its own environments alone",
}
"""Packages that are always there and are imported where they are used, and why."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(PACKAGE, cache_dir=None)


def test_each_layer_imports_only_what_stands_below_it():
    # in a process of its own: it takes the standard streams for itself
    script = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports('pyproject.toml', no_cache=True))"
    )
    linter = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert linter.returncode == 0 and "3 kept, 0 broken" in linter.stdout, linter.stdout + linter.stderr


def in_circles(graph: grimp.ImportGraph) -> set[str]:
    """Return the files that import each other round about, or lie between such."""
    left = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    while True:
        imported = set().union(*left.values())
        kept = {module for module, imports in left.items() if imports & left.keys() and module in imported}
        if kept == left.keys():
            return kept
        left = {module: left[module] & kept for module in kept}


def test_no_files_import_each_other(graph):
    assert in_circles(graph) == set()


def test_circles_are_found():
    graph = grimp.ImportGraph()
    for module in ("a", "b", "c", "d", "e"):
        graph.add_module(module)
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a"), ("c", "e")):
        graph.add_import(importer=importer, imported=imported)
    assert in_circles(graph) == {"a", "b", "c"}


def imports_inside_functions(source: str) -> list[str]:
    """Return the modules that a file imports inside its functions."""
    inside = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            inside += [getattr(node, "module", None) or node.names[0].name for node in nodes]
    return inside


def test_the_library_imports_its_own_files_at_their_top():
    late = {str(file.relative_to(ROOT)): imports_inside_functions(file.read_text()) for file in ROOT.rglob("*.py")}
    own = {name for name, modules in late.items() if any(module.startswith(PACKAGE) for module in modules)}
    assert own == LATE.keys()
    packages = {module.partition(".")[0] for modules in late.values() for module in modules} - {PACKAGE}
    assert packages == OPTIONAL | SLOW.keys()
    assert imports_inside_functions("def f():\n    from torchrl_marl_offline.data import a") == [f"{PACKAGE}.data"]


SAME_NAME = {"__init__", "__main__", "evaluate", "export"}  # the last two also stand for commands' earlier names


def names_twice(names: Iterable[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def test_one_word_for_each_thing():
    """No two files, and no two classes, have one name."""
    files = list(ROOT.rglob("*.py"))
    assert names_twice(file.stem for file in files) <= SAME_NAME
    classes = [
        node.name for file in files for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)
    ]
    assert names_twice(name for name in classes if not name.startswith("_")) == set()
    assert names_twice(["a", "b", "a"]) == {"a"}
