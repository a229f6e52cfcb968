"""Exported policies act by ONNX Runtime and NumPy alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from export_toys import CONTINUOUS, MASKED, Case, act
from processes import run_new

from torchrl_marl_offline.evaluation import export_agent_policies, export_policy

SCRIPT = Path(__file__).parents[1] / "examples" / "run_onnx.py"
RUN = """
import runpy, sys
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
print([name for name in ("torch", "tensordict", "torchrl", "torchrl_marl_offline") if name in sys.modules])
"""


def test_it_prints_what_the_policy_does_and_imports_no_torch(tmp_path):
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    files, expected = [], []
    for name, spec in (("moves", CONTINUOUS), ("chooses", MASKED)):
        policy = Case("make_actor", spec, {"observation_norm": ([1.0] * 4, [1.0] * 4)}).build()
        inputs = {"observation": torch.zeros(1, 3, 4)} | (
            {"action_mask": torch.ones(1, 3, 5).bool()} if spec.discrete else {}
        )
        action = act(policy, inputs)[0]
        if spec.discrete:
            files.append(export_policy(policy, tmp_path / f"{name}.onnx", format="onnx"))
            expected.append(("team", [3, 4], action))
        else:
            export_agent_policies(policy, tmp_path / name, formats=["onnx"])
            files.append(tmp_path / f"{name}_agent_2.onnx")
            expected.append(("agent 2", [4], action[2]))
    result = run_new(RUN.format(arguments=[str(SCRIPT), *map(str, files)]), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *lines, imported = result.stdout.splitlines()
    assert imported == "[]"
    for line, file, (whose, shape, action) in zip(lines, files, expected, strict=True):
        path, _, told = line.partition(": ")
        assert path == str(file) and told.startswith(f"{whose}, observation {shape}, action ")
        found = torch.tensor(ast.literal_eval(told.partition("action ")[2]))
        torch.testing.assert_close(found, action, rtol=0.0, atol=1e-4)
    assert run_new(RUN.format(arguments=[str(SCRIPT)]), cwd=tmp_path).returncode == 1


def test_it_stays_short():
    assert len(SCRIPT.read_text().splitlines()) <= 45
