"""The package as a whole: what importing it costs, what it promises by name, and the examples in its documentation."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

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


def run(code: str, cwd: Path = ROOT) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_importing_the_package_is_cheap():
    code = """
import sys, torchrl
before = set(sys.modules)
import torchrl_marl_offline
new = {name for name in set(sys.modules) - before if name.partition(".")[0] not in ("wrapt", "lazy_loader")}
print(sorted(new))
"""
    # A registration with TorchRL must not import its dataset modules, and a name is imported where it is used.
    assert set(ast.literal_eval(run(code))) <= {"torchrl_marl_offline", "pkgutil", "ast", "_ast"}


def test_importing_every_name_is_cheap():
    code = """
import sys, torchrl, torchrl.envs, torchrl.data, torchrl.modules, torchrl.objectives, torchrl.checkpoint
before = set(sys.modules)
from torchrl_marl_offline import *
assert OfflineMARLLoss and Trainer and collect and make_env and make_critic
new = {name for name in set(sys.modules) - before if not name.startswith("torchrl_marl_offline")}
print(len(new), sorted(name for name in sys.modules if name in OPTIONAL), sorted(new)[:40])
""".replace("OPTIONAL", repr(OPTIONAL))
    count, loaded, new = re.fullmatch(r"(\d+) (\[.*?\]) (.*)", run(code)).groups()
    assert loaded == "[]"
    assert int(count) < 60, f"importing the package brings {count} further modules: {new}"


def test_the_packages_submodules_are_its_attributes():
    code = "import torchrl_marl_offline as marl\nprint(marl.data.collect is marl.collect, 'data' in marl.__all__)"
    assert run(code) == "True False"


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


def test_the_readme_names_nothing_that_does_not_exist():
    readme = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\((?!http)([^)]+)\)", readme):
        assert (ROOT / path).exists(), path
    help_text = subprocess.run(
        [sys.executable, "-m", "torchrl_marl_offline", "train", "recipe", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    for argument in set(
        re.findall(r"(--[a-z][a-z-]+)", readme.partition("## Training from the command line")[2].partition("\n## ")[0])
    ) - {"--help", "--resume"}:
        assert argument in help_text, f"the README speaks of {argument}, the command does not know it"


def test_the_readmes_composition_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [len([line for line in block.splitlines() if line and "import" not in line]) for block in blocks]
    assert lines[0] == 5 and lines[1] <= 15 and len(lines) == 2
    start = "import torch\ntorch.set_num_threads(1)\ntorch.manual_seed(0)\n"
    for block in blocks:
        done = processes.run("-c", start + block, cwd=tmp_path)
        assert re.fullmatch(r"Interval\(mean=.*, low=.*, high=.*\)", done.stdout.strip().splitlines()[-1]), done.stderr


@pytest.mark.parametrize("page", ["own_algorithm", "own_data", "training"])
def test_the_python_blocks_of_a_guide_run(page, tmp_path):
    text = (ROOT / f"docs/guides/{page}.md").read_text()
    for title, block in re.findall(r'```python title="(.*?)"\n(.*?)```', text, flags=re.DOTALL):
        (tmp_path / title).write_text(block)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    start = "import torch\ntorch.set_num_threads(1)\n"
    done = processes.run("-c", start + "\n".join(blocks), cwd=tmp_path)
    assert blocks and done.returncode == 0, done.stderr


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
