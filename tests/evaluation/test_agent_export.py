"""Each agent's own policy: what the team's does in its row, from its own observation alone."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch
from export_toys import CASES, CONTINUOUS, MASKED, NORM, Case, Exported, act
from selection import some_of, thorough
from tensordict.nn import TensorDictModule, TensorDictSequential

from torchrl_marl_offline import save_policy
from torchrl_marl_offline.commands.export import main
from torchrl_marl_offline.core.layout import OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.evaluation.agent_export import (
    OwnAction,
    OwnRememberingAction,
    agent_policy,
    agent_spec,
    export_agent_policies,
    signature,
)
from torchrl_marl_offline.evaluation.policy_export import RememberingAction, example_inputs, memory_size_of

UNEQUAL = replace(
    CONTINUOUS,
    action_low=((0.0, -0.3), (-5.0, 0.7), (100.0, -1e-3)),
    action_high=((5.0, 0.3), (-4.0, 0.7), (300.0, 1e-3)),
)
"""Each agent and component has its own bounds; one never changes."""


@pytest.mark.parametrize("case", [*CASES, Case("make_actor", MASKED, {"share_params": False})], ids=str)
def test_an_agents_own_policy_is_its_row_of_the_teams(case):
    policy = case.build()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    inputs = example_inputs(case.spec, 200, generator=torch.Generator().manual_seed(1))
    together = act(policy, inputs)
    for agent in range(3):
        own = agent_policy(policy, agent)
        with torch.no_grad():
            alone = OwnAction(own)(*(value[:, agent] for value in inputs.values()))
        assert alone.shape == together[:, agent].shape and alone.dtype == together.dtype
        torch.testing.assert_close(alone, together[:, agent], rtol=0.0, atol=1e-6)
        assert own.build["spec"]["n_agents"] == 1
    assert not torch.equal(together[:, 0], together[:, 1])  # the agents differ, so that each has its own share
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_parameters_of_other_agents_are_left_out():
    policy = Case("make_actor", CONTINUOUS, {"share_params": False}).build()
    own = agent_policy(policy, 2)
    count = sum(parameter.numel() for parameter in policy.parameters())
    assert sum(parameter.numel() for parameter in own.parameters()) == count / 3


@pytest.mark.parametrize(
    ("case", "formats"),
    some_of(
        [
            (Case("make_actor", MASKED, {"observation_norm": NORM}), ["torch", "onnx"]),
            (Case("make_actor", CONTINUOUS, {"share_params": False}), ["torch", "onnx"]),
            (Case("make_actor", CONTINUOUS, {"batch_norm": True}), ["onnx"]),
            (Case("make_actor", UNEQUAL, {"observation_norm": NORM}), ["torch", "onnx"]),
            (Case("make_greedy_actor", MASKED), ["torch"]),
        ],
        every=3,
    ),
    ids=str,
)
def test_files_of_agents_and_what_is_said_of_them(tmp_path, case, formats):
    if "onnx" in formats:
        pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
        pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    policy = case.build()
    listed = export_agent_policies(save_policy(tmp_path / "policy.pt", policy, {"step": 7}), tmp_path / "p.onnx")
    assert listed == tmp_path / "p_agents.json"
    told = json.loads(listed.read_text())
    assert (told["task"], told["mode"], [each["agent"] for each in told["agents"]]) == (
        case.spec.task,
        "mode",
        [0, 1, 2],
    )
    inputs = example_inputs(case.spec, 50)
    for agent, each in enumerate(told["agents"]):
        assert [entry["name"] for entry in each["inputs"]] == list(inputs)
        (output,) = each["outputs"]
        if case.spec.discrete:
            assert output == {"name": "action", "shape": ["batch"], "dtype": "int64", "n_actions": 5}
            assert each["inputs"][1] == {"name": "action_mask", "shape": ["batch", 5], "dtype": "bool"}
        else:
            own = (list(case.spec.lows[agent]), list(case.spec.highs[agent]))
            assert (output["shape"], output["low"], output["high"]) == (["batch", 2], *own)
        for format in formats:
            exported = Exported(tmp_path / each["files"][format])
            assert exported.metadata["agent"] == agent and exported.metadata["policy"] == {"step": 7}
            for rows in (50, 1):
                alone = {name: value[:rows, agent].contiguous() for name, value in inputs.items()}
                torch.testing.assert_close(exported(alone), act(policy, inputs)[:rows, agent], rtol=1e-6, atol=1e-6)
            if not case.spec.discrete:
                far = exported({"observation": 100 * torch.randn(1000, 4)})
                assert (far >= torch.tensor(output["low"])).all() and (far <= torch.tensor(output["high"])).all()


def test_a_policy_that_draws_is_split_too():
    own = agent_policy(Case("make_actor", CONTINUOUS, {"scale": 0.1}).build(), 1)
    observation = torch.ones(2000, 4)
    with torch.no_grad():
        drawn, mode = OwnAction(own, mode="sample")(observation), OwnAction(own)(observation)
    inner = (mode[0] > -0.1) & (mode[0] < 1.6)
    assert (drawn.std(0)[inner] - 0.1).abs().max() < 0.02 if inner.any() else drawn.std() > 0
    assert drawn.min() >= -0.5 and drawn.max() <= 2.0


def of_the_others(policy, keys: list):
    """The same policy behind a module that adds what other agents observe, or the state."""
    reads = TensorDictModule(
        (lambda x: x + x.mean(-2, keepdim=True)) if len(keys) == 1 else (lambda x, s: x + s[..., None, :4]),
        in_keys=keys,
        out_keys=[OBSERVATION],
    )
    mixed = TensorDictSequential(reads, policy)
    mixed.build = policy.build
    mixed.state_dict = copy.deepcopy(policy).state_dict
    return mixed


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ([OBSERVATION], "Agent 0's action depends on what other agents observe, so that the policy cannot be split"),
        ([OBSERVATION, STATE], "The policy also reads state, which an agent does not see by itself"),
    ],
)
def test_a_policy_that_is_not_decentralized_is_refused(tmp_path, keys, sentence):
    policy = of_the_others(Case("make_actor", CONTINUOUS).build(), keys)
    with pytest.raises(ValueError, match=sentence):
        export_agent_policies(policy, tmp_path / "p", formats=["torch"])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said_before_the_first_file(tmp_path, monkeypatch):
    policy = Case("make_actor", CONTINUOUS).build()
    with pytest.raises(ValueError, match="formats must be some of torch, onnx, got"):
        export_agent_policies(policy, tmp_path / "p", formats=[])
    with pytest.raises(ValueError, match="mode must be 'mode' or 'sample', got 'mean'"):
        export_agent_policies(policy, tmp_path / "p", mode="mean")
    with pytest.raises(TypeError, match="A Linear does not say for which task it was built"):
        export_agent_policies(torch.nn.Linear(1, 1), tmp_path / "p", formats=["torch"])
    policy.build = policy.build | {"builder": "mine"}
    with pytest.raises(TypeError, match="A policy of mine cannot be split, only policies of make_actor, "):
        export_agent_policies(policy, tmp_path / "p", formats=["torch"])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="needs onnx and onnxscript"):
        export_agent_policies(policy, tmp_path / "p")
    assert not list(tmp_path.iterdir())


ALIKE_WITHIN = replace(
    CONTINUOUS, action_low=((-2.0, -2.0),) * 2 + ((0.0, 0.0),), action_high=((2.0, 2.0),) * 2 + ((5.0, 5.0),)
)
"""Bounds that are those of the agent, but the same for its components."""
MEMORIES = [
    Case("make_actor", CONTINUOUS, {"memory": "gru", "memory_size": 6, "observation_norm": NORM}),
    Case("make_actor", MASKED, {"memory": "lstm", "memory_size": 6, "share_params": False}),
    Case("make_actor", CONTINUOUS, {"memory": "window:3", "distribution": "one_step"}),
    Case("make_actor", UNEQUAL, {"memory": "lstm", "memory_size": 5}),
    Case("make_actor", ALIKE_WITHIN, {"memory": "gru", "memory_size": 5, "distribution": "gaussian"}),
    Case("make_actor", ALIKE_WITHIN, {"memory": "window:2", "distribution": "gaussian", "share_params": False}),
]


@pytest.mark.parametrize(
    ("case", "format"),
    [*((case, "") for case in MEMORIES), (MEMORIES[0], "torch")]
    + [thorough((case, "torch")) for case in MEMORIES[1:]]
    + [thorough((case, "onnx")) for case in MEMORIES],
    ids=str,
)
def test_an_agents_own_memory_goes_on_as_its_part_of_the_teams(tmp_path, case, format):
    """1,000 steps of two environments, whose episodes begin anew at different times; nothing of the others is given."""
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
        pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    policy, spec = case.build(), case.spec
    size = memory_size_of(policy)
    steps = example_inputs(spec, 2000, generator=torch.Generator().manual_seed(1), memory_size=size)
    steps = {name: value.unflatten(0, (1000, 2)) for name, value in steps.items()}
    steps["is_init"] = torch.rand(1000, 2, 1, generator=torch.Generator().manual_seed(2)) < 0.02
    steps["is_init"][0] = True
    wanted = along(RememberingAction(policy), steps, torch.full((2, spec.n_agents, size), 7.0))
    told = []
    if format:
        listed = export_agent_policies(policy, tmp_path / "p", formats=[format])
        told = json.loads(listed.read_text())["agents"]
    for agent in range(3):
        if format:
            assert told[agent]["outputs"][1] == {"name": "next_memory", "shape": ["batch", size], "dtype": "float32"}
            assert [each["name"] for each in told[agent]["inputs"]] == list(steps)
            exported = Exported(tmp_path / told[agent]["files"][format])
            assert exported.metadata["outputs"] == ["action", "next_memory"]
            act_alone = exported.all_outputs
        else:
            act_alone = OwnRememberingAction(agent_policy(policy, agent))
        alone = {name: value if name == "is_init" else value[:, :, agent].contiguous() for name, value in steps.items()}
        found = along(act_alone, alone, torch.full((2, size), -3.0))
        difference = (found - wanted[:, :, agent]).abs() / wanted[:, :, agent].abs().clamp_min(1.0)
        assert difference.max() <= 1e-5


@torch.no_grad()
def along(act, steps, memory):
    """The actions of a policy that is given the memory that it returned."""
    found = []
    for time in range(len(steps["is_init"])):
        inputs = {name: value[time] for name, value in steps.items()} | {"memory": memory}
        action, memory = act(*inputs.values()) if isinstance(act, RememberingAction) else act(inputs)
        found.append(action.double())
    return torch.stack(found)


def test_bounds_are_those_of_the_agent():
    spec = agent_spec(CONTINUOUS, 1)
    assert (spec.n_agents, spec.action_low, spec.action_high) == (1, -0.5, 2.0)
    (output,) = signature(spec, {})["outputs"]
    assert output["low"] == [-0.5, -0.5] and output["high"] == [2.0, 2.0]
    assert TaskSpec(**CONTINUOUS.to_dict()) == CONTINUOUS


def test_the_command_writes_each_agents_policy(tmp_path, capsys):
    policy = Case("make_actor", CONTINUOUS).build()
    save_policy(tmp_path / "policy.pt", policy)
    assert main([str(tmp_path), "--per-agent", "--format", "torch", "--output", str(tmp_path / "o" / "team.pt2")]) == 0
    names = ["team.pt2", "team_agent_0.pt2", "team_agent_1.pt2", "team_agent_2.pt2", "team_agents.json"]
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == names
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(tmp_path / "o" / name) for name in names]
    assert lines[2].partition(": ")[2].startswith("torch, agent 1, ")
    inputs = example_inputs(CONTINUOUS, 5)
    alone = Exported(tmp_path / "o" / "team_agent_2.pt2")({"observation": inputs["observation"][:, 2]})
    torch.testing.assert_close(alone, act(policy, inputs)[:, 2], rtol=0.0, atol=1e-6)
