"""The package as a whole: what importing it costs, what it promises by name, and the examples in its docstrings."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import pkgutil
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from objective_toys import make_batch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

import torchrl_marl_offline as package

ROOT = Path(__file__).parents[1]
STUB = Path(package.__file__).with_suffix(".pyi")
MODULES = sorted(
    name for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.") if ".__" not in name
)
OPTIONAL = (
    "wandb",
    "matplotlib",
    "h5py",
    "tensorboard",
    "vmas",
    "pettingzoo",
    "mpe2",
    "pandas",
    "jax",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pyarrow",
    "rliable",
)


IMPORTS = f"""
import json, os, sys, torchrl
known = set(sys.modules)
import torchrl_marl_offline as marl
alone = set(sys.modules) - known
if os.fork() == 0:  # so that what is asked here is not imported there
    os._exit(0 if marl.data.collect is marl.collect and "data" not in marl.__all__ else 1)
attributes = os.waitstatus_to_exitcode(os.wait()[1]) == 0
import torchrl.envs, torchrl.data, torchrl.modules, torchrl.objectives, torchrl.checkpoint
known = set(sys.modules)
from torchrl_marl_offline import *
assert OfflineMARLLoss and Trainer and collect and make_env and make_critic
new = [name for name in set(sys.modules) - known if not name.startswith("torchrl_marl_offline")]
optional = [name for name in sys.modules if name in {OPTIONAL}]
print(json.dumps([sorted(alone), attributes, sorted(new), optional]))
"""


@pytest.fixture(scope="module")
def imported() -> SimpleNamespace:
    """What a new interpreter imports with the package, and with every name of it."""
    done = processes.run_new(IMPORTS, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    names = ("alone", "attributes", "with_every_name", "optional")
    return SimpleNamespace(**dict(zip(names, json.loads(done.stdout.splitlines()[-1]))))


def test_importing_the_package_is_cheap(imported):
    # A registration with TorchRL must not import its dataset modules, and a name is imported where it is used.
    found = {name for name in imported.alone if name.partition(".")[0] not in ("wrapt", "lazy_loader")}
    assert found <= {"torchrl_marl_offline", "pkgutil", "ast", "_ast"}


def test_importing_every_name_is_cheap(imported):
    new = imported.with_every_name
    assert imported.optional == []
    assert len(new) < 60, f"importing the package brings {len(new)} further modules: {new[:40]}"


def test_the_packages_submodules_are_its_attributes(imported):
    assert imported.attributes


def test_the_stub_is_the_list_of_names():
    imports = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
    names = [alias for node in imports for alias in node.names]
    assert all(alias.asname == alias.name for alias in names)  # or a type checker takes them for the stub's own
    assert sorted(alias.name for node in imports if node.module for alias in node.names) == package.__all__
    assert {module.partition(".")[2] for module in MODULES if module.count(".") == 1} >= {
        alias.name for node in imports if not node.module for alias in node.names
    }


@pytest.mark.parametrize("module", ["", ".data", ".envs", ".modules", ".objectives", ".training"])
def test_everything_in_all_can_be_imported(module):
    module = importlib.import_module(package.__name__ + module)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        assert thing.__doc__, f"{name} has no docstring"


def namespace() -> dict[str, object]:
    """What the examples in the docstrings may use without importing it."""
    from torchrl_marl_offline.core import layout

    spec = package.TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
    names = {name: getattr(package, name) for name in package.__all__}
    keys = {name: value for name, value in vars(layout).items() if name.isupper()}
    return (
        names
        | keys
        | {"torch": torch, "TensorDict": TensorDict, "SoftUpdate": SoftUpdate, "batch": make_batch(spec, 8)}
    )


FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = [
    test
    for module in MODULES
    for test in FINDER.find(importlib.import_module(module), module)
    if any(not example.options.get(doctest.SKIP) for example in test.examples)
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.removeprefix(f"{package.__name__}."))
def test_the_examples_in_the_docstrings_run(example):
    example.globs = {**example.globs, **namespace()}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report: list[str] = []
    runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_there_are_examples():
    assert len(EXAMPLES) >= 10
