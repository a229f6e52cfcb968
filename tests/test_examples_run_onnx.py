"""Exported policies act by ONNX Runtime and NumPy alone."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest
import torch
from export_toys import CONTINUOUS, MASKED, Case, act
from processes import run_new

from torchrl_marl_offline.evaluation import export_agent_policies, export_policy
from torchrl_marl_offline.evaluation.policy_export import RememberingAction

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
    remembers = Case("make_actor", CONTINUOUS, {"memory": "gru", "memory_size": 6}).build()
    files.append(export_policy(remembers, tmp_path / "remembers.onnx", format="onnx"))
    begins = torch.zeros(1, 3, 4), torch.full((1, 3, 6), 7.0), torch.ones(1, 1, dtype=torch.bool)
    with torch.no_grad():
        expected.append(("team", [3, 4], RememberingAction(remembers)(*begins)[0][0]))
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
    missing = run_new(RUN.format(arguments=[str(SCRIPT), "none.onnx"]), cwd=tmp_path)
    assert missing.returncode == 1 and missing.stderr.strip().startswith("There is no file none.onnx")


def test_a_memory_is_given_back(tmp_path, monkeypatch):
    """Three steps of one episode, then another begins."""
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    policy = Case("make_actor", CONTINUOUS, {"memory": "gru", "memory_size": 6}).build()
    file = str(export_policy(policy, tmp_path / "p.onnx", format="onnx"))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), file])
    example = runpy.run_path(str(SCRIPT))
    session, _ = example["load"](file)
    team, own, memory = RememberingAction(policy), torch.zeros(1, 3, 6), None
    for step, observation in enumerate(torch.randn(4, 1, 3, 4)):
        memory = None if step == 3 else memory
        with torch.no_grad():
            wanted, own = team(observation, own, torch.tensor([[memory is None]]))
        action, memory = example["decide"](session, observation[0].numpy(), memory=memory)
        torch.testing.assert_close(torch.from_numpy(action), wanted[0], rtol=0.0, atol=1e-5)


def test_it_stays_short():
    assert len(SCRIPT.read_text().splitlines()) <= 55
