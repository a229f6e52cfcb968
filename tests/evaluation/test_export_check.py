"""Exported files beside their policy on logged rows: equal ones pass, others are found, and what is timed is sane."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_toys import recording
from export_toys import CONTINUOUS, MASKED, NORM, Case
from selection import some_of, thorough

from torchrl_marl_offline import export_policy, from_arrays, load_dataset, make_actor, save_policy
from torchrl_marl_offline.commands.export import DIFFERS, main
from torchrl_marl_offline.data.policy_fit import PolicyError
from torchrl_marl_offline.evaluation.agent_export import export_agent_policies
from torchrl_marl_offline.evaluation.export_check import ExportedFile, verify_export
from torchrl_marl_offline.evaluation.offline.answers import EvaluatedPolicy


def logged(spec=CONTINUOUS, rows: int = 60):
    """Logs of random play."""
    rng = np.random.default_rng(0)
    ends = np.isin(np.arange(1, rows + 1), (10, 25, 37, rows))
    given = {"observations": rng.normal(size=(rows, 3, 4)), "rewards": rng.normal(size=rows), "terminals": ends}
    if spec.discrete:
        mask = rng.random((rows, 3, 5)) < 0.6
        mask[..., 2] = True
        return from_arrays(**given, actions=np.full((rows, 3), 2), action_mask=mask)
    actions = rng.uniform(spec.action_low, spec.action_high, size=(rows, 3, 2))
    return from_arrays(**given, actions=actions, action_bounds=(spec.action_low, spec.action_high))


def exported(policy, folder, formats=("torch",)):
    """The team's file and each agent's."""
    team = [
        export_policy(policy, folder / f"p{'.pt2' if each == 'torch' else '.onnx'}", format=each) for each in formats
    ]
    export_agent_policies(policy, folder / "p", formats=formats)
    return team + sorted(folder.glob("p_agent_*.[po]*"))


@pytest.mark.parametrize("spec", [CONTINUOUS, MASKED], ids=["continuous", "masked"])
def test_equal_files_pass_and_are_timed(tmp_path, spec):
    policy, data = Case("make_actor", spec).build(), logged(spec)
    found = verify_export(policy, exported(policy, tmp_path), data, decisions=30)
    assert found.passed and found.rows == 60
    assert [file.agent for file in found.files] == [None, 0, 1, 2]
    assert [file.decisions for file in found.files] == [180, 60, 60, 60]
    for file in found.files:
        assert file.equal == 1.0 if spec.discrete else file.difference <= 1e-6
        assert 0 < file.latency.median <= file.latency.p95 < 1000
    table = found.table()
    assert ("ties" if spec.discrete else "largest difference") in table and table.count("ok") == 4
    assert found.to_dict()["passed"] is True


@pytest.mark.parametrize(
    "spec", some_of([MASKED, CONTINUOUS], every=2), ids=lambda spec: "masked" if spec.discrete else ""
)
def test_onnx_equals_torch_too(tmp_path, spec):
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    policy = Case("make_actor", spec, {"share_params": False}).build()
    found = verify_export(policy, exported(policy, tmp_path, ["onnx"]), logged(spec), decisions=5)
    assert found.passed and len(found.files) == 4


@pytest.mark.parametrize(
    ("spec", "memory", "format"),
    [
        (CONTINUOUS, "gru", "torch"),
        thorough((MASKED, "lstm", "torch")),
        thorough((MASKED, "window:3", "onnx")),
        thorough((MASKED, "gru", "onnx")),
    ],
)
def test_files_with_memory_are_run_along_the_logged_episodes(tmp_path, spec, memory, format):
    """Episodes of unequal lengths, to 60 rows; each file carries its own memory."""
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
        pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    options = {"memory": memory} | ({} if memory.startswith("window") else {"memory_size": 6})
    policy, data = Case("make_actor", spec, options | {"observation_norm": NORM}).build(), logged(spec)
    files = exported(policy, tmp_path, [format])
    found = verify_export(policy, files, data, decisions=5)
    assert found.passed and [file.agent for file in found.files] == [None, 0, 1, 2]
    other = Case("make_actor", spec, options | {"observation_norm": ([0.0] * 4, [1.0] * 4)}).build()
    assert not verify_export(other, files[:1], data, decisions=1).passed
    own, one = (_memory_of(policy, files[1], each) for each in (data, _one_episode(spec)))
    assert torch.allclose(own[:10], one[:10]) and not torch.allclose(own[10:], one[10:])  # it begins anew at row 10
    with pytest.raises(ValueError, match="has memory, and the policy has none: it was made of another policy"):
        verify_export(Case("make_actor", spec).build(), files[:1], data)


def _one_episode(spec):
    data = logged(spec)
    data.data["collector", "traj_ids"].zero_()
    return data


def _memory_of(policy, file, data):
    """What an agent's file remembers before each logged row."""
    return ExportedFile(file).taken_from(EvaluatedPolicy("policy", policy, data, "mode").seen(data.data))["memory"]


def test_the_file_of_another_policy_is_found(tmp_path):
    for spec in (CONTINUOUS, MASKED):
        policy, data = Case("make_actor", spec).build(), logged(spec)
        torch.manual_seed(1)
        other = make_actor(spec, hidden=(8,), final_scale=1.0)
        found = verify_export(policy, [export_policy(other, tmp_path / "p.pt2")], data, decisions=2)
        assert not found.passed and not found.files[0].passed
        assert "DIFFERS" in found.table() and "do not act as the policy does" in found.table()
        (file,) = found.files
        assert (
            file.ties == 0.0 and file.excess == pytest.approx(1 - file.equal)
            if spec.discrete
            else file.difference > 1e-3
        )


def test_actions_of_equal_scores_are_ties(tmp_path):
    policy = make_actor(MASKED, hidden=(8,), final_scale=0.0)
    with torch.no_grad():
        layer = policy.module[0].module.mlp.layers[-1]
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([[0.0, 1.0, 1.0 - 1e-7, 0.0, 0.0]]))
    path = export_policy(policy, tmp_path / "p.pt2")
    with torch.no_grad():
        layer.bias[0, 2] = 1.0 + 2e-7  # rounding decides
    found = verify_export(policy, [path], logged(MASKED), decisions=2)
    (file,) = found.files
    assert file.passed and 0.1 < file.ties < 0.9 and file.equal == pytest.approx(1 - file.ties)


def test_large_bounds_allow_what_is_rounding_there(tmp_path):
    spec = replace(CONTINUOUS, action_low=-1e4, action_high=1e4)
    policy, other = Case("make_actor", spec).build(), Case("make_actor", spec).build()
    layer = other.module[0].module.network.mlp.layers[-1]
    with torch.no_grad():
        layer.bias.add_(0.05)
    data = logged(spec)
    (file,) = verify_export(policy, [export_policy(other, tmp_path / "p.pt2")], data, decisions=2).files
    assert file.passed and file.difference == pytest.approx(0.05, rel=0.01)
    assert file.excess == pytest.approx(5e-6, rel=0.01)


def test_what_cannot_be_compared_is_refused(tmp_path):
    policy, data = Case("make_actor", CONTINUOUS).build(), logged()
    good = export_policy(policy, tmp_path / "p.pt2")
    drawing = export_policy(policy, tmp_path / "q.pt2", mode="sample")
    whole = good.read_bytes()
    (tmp_path / "half.pt2").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "p.txt").write_text("")
    for file, error, sentence in (
        (tmp_path / "no.pt2", FileNotFoundError, "There is no exported policy at"),
        (tmp_path / "p.txt", ValueError, "ends neither in .pt2 nor in .onnx"),
        (tmp_path / "half.pt2", ValueError, "is no whole file of export_policy"),
        (drawing, ValueError, "draws its actions"),
        (export_policy(Case("make_actor", MASKED).build(), tmp_path / "m.pt2"), ValueError, "has an input action_mask"),
    ):
        with pytest.raises(error, match=sentence):
            verify_export(policy, [file], data)
    with pytest.raises(PolicyError, match="was made for 3 agents"):
        verify_export(Case("make_actor", MASKED).build(), [good], data)


def test_the_command_verifies_what_it_wrote_and_what_was_there(tmp_path, capsys):
    logged().save(tmp_path / "logs")
    save_policy(tmp_path / "policy.pt", Case("make_actor", CONTINUOUS).build())
    assert main([str(tmp_path), "--verify", str(tmp_path / "logs"), "--format", "torch"]) == 0
    out = capsys.readouterr().out
    assert "policy (eager torch)" in out and "60 logged rows" in out and out.count("ok") == 1
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    save_policy(tmp_path / "other.pt", make_actor(CONTINUOUS, hidden=(4,), final_scale=1.0))
    export_policy(tmp_path / "other.pt", tmp_path / "other.onnx", format="onnx")
    arguments = [str(tmp_path), "--verify", str(tmp_path / "logs"), "--existing"]
    assert main([*arguments, str(tmp_path / "other.onnx")]) == DIFFERS
    assert "DIFFERS" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "policy.pt2")]) == 1
    assert "a .pt2 may hold code; export it again" in capsys.readouterr().err
    assert not (tmp_path / "policy.onnx").exists()


def test_what_the_command_cannot_do_is_said_before_anything_is_written(tmp_path, capsys, monkeypatch):
    logged(MASKED).save(tmp_path / "logs")
    save_policy(tmp_path / "policy.pt", Case("make_actor", CONTINUOUS).build())
    (tmp_path / "notes.csv").write_text("mine")
    before = sorted(tmp_path.iterdir())
    for arguments, status, sentence in (
        (["--verify", str(tmp_path / "logs"), "--format", "torch"], 1, "the data has 3 agents, observations of 4"),
        (["--verify", str(tmp_path / "none")], 1, "does not exist"),
        (["--verify", "x", "--mode", "sample"], 2, "--mode sample draws them anew each time"),
        (["--existing", "x.onnx"], 2, "--existing names what --verify SOURCE looks at"),
        (["--verify", "x", "--existing", "x.onnx", "--per-agent"], 2, "leave other options out"),
        (["--verify", "x", "--existing", "x.onnx", "--format", "onnx"], 2, "leave other options out"),
        (["--verify", "x", "--existing", "x.onnx", "--opset", "18"], 2, "leave other options out"),
        (["--verify", "x", "--existing", "x.onnx", "--output", "y"], 2, "leave other options out"),
        (["--format", "torch", "--output", str(tmp_path / "y.onnx")], 1, "is to be written as torch, .pt2; name it so"),
        (["--format", "torch", "--output", str(tmp_path / "notes.csv")], 1, "is a file that no export wrote"),
        (["--per-agent", "--output", str(tmp_path / "notes.csv")], 1, "is a file that no export wrote"),
    ):
        try:
            assert main([str(tmp_path), *arguments]) == status
        except SystemExit as end:
            assert end.code == status
        assert sentence in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main([str(tmp_path), "--per-agent"]) == 1
    assert "use format='torch'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main([str(tmp_path), "--verify", str(tmp_path / "logs"), "--existing", "x.onnx"]) == 1
    assert "needs onnxruntime" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "notes.csv").read_text() == "mine"


def test_a_policy_of_the_datas_bounds_is_verified_on_the_logs_and_a_name_gets_its_ending(tmp_path, capsys):
    data = logged()
    data.save(tmp_path / "logs")
    narrow = data.with_bounds("data")
    save_policy(tmp_path / "policy.pt", Case("make_actor", narrow.spec, {"observation_norm": NORM}).build())
    arguments = ["--per-agent", "--format", "torch", "--output", str(tmp_path / "robot")]
    assert main([str(tmp_path), *arguments, "--verify", str(tmp_path / "logs")]) == 0
    assert capsys.readouterr().out.count("  ok") == 4 and (tmp_path / "robot.pt2").is_file()
    wide = Case("make_actor", CONTINUOUS).build()
    assert verify_export(wide, [export_policy(wide, tmp_path / "wide.pt2")], narrow, decisions=1).passed
    beyond = replace(narrow.spec, action_high=(2.0, 2.5))
    with pytest.raises(PolicyError, match=r"in \[-0\.\d+, 2\.5\], each component .*, the data has .* in \[-0.5, 2\]"):
        verify_export(Case("make_actor", beyond).build(), [], narrow)


@pytest.mark.thorough
def test_onnx_equals_torch_on_a_recording_of_starcraft(tmp_path):
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    data = load_dataset(f"pymarl:{recording('smac-3m-medium.h5')}")
    torch.manual_seed(0)
    policy = make_actor(data.spec, hidden=(64, 64), final_scale=1.0)
    found = verify_export(policy, exported(policy, tmp_path, ["onnx"]), data, decisions=10)
    assert found.passed and found.rows == len(data.data)
