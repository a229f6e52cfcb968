"""Exported policies: equal to the policy, whatever built it, and files that are whole or do not load."""

from __future__ import annotations

import itertools
import json
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import objective_toys as toys
import processes
import pytest
import torch
from export_toys import CASES, CONTINUOUS, FORMATS, MASKED, NORM, Case, Exported, act
from selection import some_of, thorough
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import (
    BehaviourCloning,
    OfflineMARLLoss,
    Trainer,
    collect,
    from_arrays,
    load_policy,
    make_actor,
    make_env,
    save_policy,
)
from torchrl_marl_offline.commands.export import main
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, TaskSpec
from torchrl_marl_offline.evaluation.policy_export import ExecutedAction, example_inputs, export_policy
from torchrl_marl_offline.modules.history import encoder_of
from torchrl_marl_offline.training import Learner
from torchrl_marl_offline.training.run.saved_policies import BUILDERS


def test_every_builder_is_among_the_cases():
    assert {case.builder for case in CASES} == set(BUILDERS)


def export(policy, path: Path, format: str, **options) -> Exported:
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
        pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    return Exported(export_policy(policy, path, format=format, **options))


def extreme_inputs(spec: TaskSpec, rows: int) -> dict[str, torch.Tensor]:
    """Zeros, tiny, large and huge observations; masks with all, with one and with no legal action."""
    generator = torch.Generator().manual_seed(7)
    inputs = example_inputs(spec, rows, generator=generator)
    size = torch.tensor([0.0, 1e-30, 1e-3, 1.0, 10.0, 1e3, 1e6, 1e12]).repeat(rows)[:rows]
    inputs["observation"] *= size.view(-1, 1, 1)
    if "action_mask" in inputs:
        inputs["action_mask"][0::5] = True
        inputs["action_mask"][1::5] = torch.arange(5) == 3
        inputs["action_mask"][2::5] = False  # an agent that is padding
    return inputs


@cache
def inputs_of(spec: TaskSpec) -> list[dict[str, torch.Tensor]]:
    return [
        example_inputs(spec, 300, generator=torch.Generator().manual_seed(1)),
        extreme_inputs(spec, 200),
        example_inputs(spec, 1, generator=torch.Generator().manual_seed(2)),
    ]


@pytest.mark.parametrize(
    ("case", "format"),
    [*some_of([(case, "torch") for case in CASES], every=6), *some_of([(case, "onnx") for case in CASES], every=8)],
    ids=str,
)
def test_an_exported_policy_is_the_policy(tmp_path, case, format):
    policy = case.build()
    exported = export(policy, tmp_path / {"torch": "policy.pt2", "onnx": "policy.onnx"}[format], format)
    _, extreme, _ = inputs_of(case.spec)
    for inputs in inputs_of(case.spec):
        expected, found = act(policy, inputs), exported(inputs)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        if case.spec.discrete or format == "torch":
            assert torch.equal(found, expected)
        if not case.spec.discrete:
            size = inputs["observation"].abs().amax((1, 2)).clamp_min(1.0)  # rounding grows with what is rounded
            error = (found - expected).abs().amax((1, 2))
            assert (error / (size if inputs is extreme else 1.0)).max() <= 1e-6
            assert case.spec.action_low <= found.min() and found.max() <= case.spec.action_high
        if case.spec.has_action_mask:
            mask = inputs["action_mask"]
            legal = mask.gather(-1, found.unsqueeze(-1)).squeeze(-1)
            assert legal[mask.any(-1)].all()
    # The comparison means something: all actions occur.
    action = act(policy, inputs_of(case.spec)[0])
    assert len(action.unique()) == 5 if case.spec.discrete else action.std() > 0.1


@pytest.mark.parametrize("format", some_of(FORMATS, every=2))
def test_a_file_says_what_it_is(tmp_path, format):
    case = Case("make_actor", MASKED, {"observation_norm": NORM})
    path = save_policy(tmp_path / "run" / "policy.pt", case.build(), {"step": 7})
    for source in (path, path.parent):
        exported = export(source, tmp_path / f"policy{'.pt2' if format == 'torch' else '.onnx'}", format)
        told = exported.metadata
        assert TaskSpec(**told["spec"]) == MASKED
        assert told["inputs"] == ["observation", "action_mask"] and told["outputs"] == ["action"]
        assert told["mode"] == "mode" and told["policy"] == {"step": 7}
        assert told["build"]["builder"] == "make_actor"
        assert told["build"]["options"]["observation_norm"] == [list(numbers) for numbers in NORM]
        assert told["versions"]["torch"] == version("torch")
        if format == "onnx":
            inputs, (action,) = exported.session.get_inputs(), exported.session.get_outputs()
            assert [(i.name, i.shape, i.type) for i in [*inputs, action]] == [
                ("observation", ["batch", 3, 4], "tensor(float)"),
                ("action_mask", ["batch", 3, 5], "tensor(bool)"),
                ("action", ["batch", 3], "tensor(int64)"),
            ]


@pytest.mark.parametrize(("format", "spec"), some_of(itertools.product(FORMATS, [CONTINUOUS, MASKED]), every=3))
def test_a_sampling_policy_is_exported_too(tmp_path, spec, format):
    policy = Case("make_actor", spec, {} if spec.discrete else {"scale": 0.1}).build()
    path = tmp_path / f"policy{'.pt2' if format == 'torch' else '.onnx'}"
    exported = export(policy, path, format, mode="sample")
    assert exported.metadata["mode"] == "sample"
    one = {name: value[:1] for name, value in example_inputs(spec, 1).items()}
    many = {name: value.expand(20_000, *value.shape[1:]).contiguous() for name, value in one.items()}
    torch.manual_seed(0)
    found = exported(many)
    keys = {"observation": OBSERVATION, "action_mask": ACTION_MASK}
    td = TensorDict({keys[name]: value for name, value in one.items()}, [1])
    if spec.discrete:
        probs = policy.get_dist(td).probs[0]
        frequency = torch.stack([(found == action).float().mean(0) for action in range(spec.action_size)], -1)
        assert (frequency - probs).abs().max() < 0.02
        assert (frequency[probs == 0] == 0).all() and (probs == 0).any()
    else:
        loc = policy(td)["agents", "loc"][0].detach()
        inner = (loc - spec.action_low > 0.5) & (spec.action_high - loc > 0.5)  # nothing is clipped
        assert inner.any() and not inner.all()
        assert (found.mean(0) - loc)[inner].abs().max() < 0.004
        assert (found.std(0) - 0.1)[inner].abs().max() < 0.004
        assert found.min() >= spec.action_low and found.max() <= spec.action_high


def test_what_is_exported_needs_torch_alone(tmp_path):
    policy = Case("make_greedy_actor", MASKED).build()
    path = export_policy(policy, tmp_path / "policy.pt2")
    inputs = example_inputs(MASKED, 6)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = f"""
import sys, torch
inputs = torch.load({str(tmp_path / "inputs.pt")!r})
action = torch.export.load({str(path)!r}).module()(inputs["observation"], inputs["action_mask"])
print(action.tolist(), [name for name in ("torchrl", "tensordict", "torchrl_marl_offline") if name in sys.modules])
"""
    result = processes.run_new(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{act(policy, inputs).tolist()} []"


def test_a_trained_actor_is_exported_from_its_loss_and_left_as_it_was(tmp_path):
    dataset = collect(make_env("mpe/simple_spread", num_envs=4), episodes=4, seed=0)
    loss = BehaviourCloning(make_actor(dataset.spec, hidden=(8,), observation_norm=dataset.observation_statistics()))
    buffer = dataset.replay_buffer(batch_size=16, seed=0, keys=loss.in_keys)
    Trainer(Learner(loss, lr=0.1), buffer, steps=5, output=tmp_path, progress=False).train()
    actor = loss.actor_network
    before = {name: value.clone() for name, value in actor.state_dict().items()}
    of_the_loss = Exported(export_policy(actor, tmp_path / "loss.pt2"))
    of_the_run = Exported(export_policy(tmp_path, tmp_path / "run.pt2"))
    inputs = {"observation": dataset.data[OBSERVATION][:50]}
    expected = act(actor, inputs)
    assert torch.equal(of_the_loss(inputs), expected) and torch.equal(of_the_run(inputs), expected)
    assert of_the_run.metadata["policy"] == {"step": 5}
    assert actor.training and all(parameter.requires_grad for parameter in loss.parameters())
    assert all(torch.equal(value, before[name]) for name, value in actor.state_dict().items())


@pytest.mark.parametrize("format", some_of(FORMATS, every=2))
def test_a_half_written_file_does_not_load(tmp_path, format, monkeypatch):
    policy = Case("make_actor", CONTINUOUS).build()
    path = tmp_path / f"policy{'.pt2' if format == 'torch' else '.onnx'}"
    export(policy, path, format)
    whole = path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for part in (len(whole) // 3, len(whole) - 200):
        path.write_bytes(whole[:part])
        with pytest.raises(Exception, match=r"(?i)archive|protobuf|zip|parse|file"):
            Exported(path)
    path.write_bytes(whole)

    def killed(self, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        export_policy(policy, path, format=format)
    monkeypatch.undo()
    assert path.read_bytes() == whole


def test_what_cannot_be_exported_is_named(tmp_path):
    policy = Case("make_actor", CONTINUOUS).build()
    with pytest.raises(ValueError, match="format must be 'torch' or 'onnx', got 'tflite'"):
        export_policy(policy, tmp_path / "a", format="tflite")
    with pytest.raises(ValueError, match="mode must be 'mode' or 'sample', got 'mean'"):
        export_policy(policy, tmp_path / "a", mode="mean")
    with pytest.raises(TypeError, match="A Linear does not say for which task it was built; only policies of make_act"):
        export_policy(torch.nn.Linear(1, 1), tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no policy at"):
        export_policy(tmp_path, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_onnx_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="needs onnx and onnxscript; install them with pip install onnx onnxscript"):
        export_policy(Case("make_actor", CONTINUOUS).build(), tmp_path / "a.onnx", format="onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_exports_a_run(tmp_path, capsys):
    policy = Case("make_actor", CONTINUOUS).build()
    save_policy(tmp_path / "policy.pt", policy)
    result = processes.run("-m", "torchrl_marl_offline", "export", tmp_path)
    assert result.returncode == 0, result.stderr
    path = tmp_path / "policy.pt2"
    assert result.stdout == f"{path}: torch, {path.stat().st_size:,} bytes\n"
    inputs = example_inputs(CONTINUOUS, 9)
    assert torch.equal(Exported(path)(inputs), act(policy, inputs))
    assert main([str(tmp_path / "nothing"), "--format", "onnx"]) == 1
    assert capsys.readouterr().err.startswith("error: There is no policy at")


def test_an_export_never_takes_the_place_of_its_policy(tmp_path, capsys):
    save_policy(tmp_path / "policy.pt", Case("make_actor", CONTINUOUS).build())
    before = (tmp_path / "policy.pt").read_bytes()
    assert main([str(tmp_path), "--output", str(tmp_path / "policy.pt")]) == 1
    assert "is the policy that is exported; name another file" in capsys.readouterr().err
    assert (tmp_path / "policy.pt").read_bytes() == before


# The normalization of observations


def test_a_normalization_by_hand():
    torch.manual_seed(0)
    plain = make_actor(CONTINUOUS, hidden=(8,), final_scale=1.0)
    torch.manual_seed(0)
    normalized = make_actor(CONTINUOUS, hidden=(8,), final_scale=1.0, observation_norm=NORM)
    observation = torch.randn(6, 3, 4)
    shifted = observation * torch.tensor(NORM[1]) + torch.tensor(NORM[0])
    torch.testing.assert_close(act(normalized, {"observation": shifted}), act(plain, {"observation": observation}))
    assert (act(normalized, {"observation": observation}) - act(plain, {"observation": observation})).abs().max() > 0.1
    assert [name for name, _ in normalized.named_buffers()][-2:] == ["module.0.module.0.loc", "module.0.module.0.scale"]
    assert len(list(normalized.parameters())) == len(list(plain.parameters()))


@pytest.mark.parametrize("spec", [CONTINUOUS, MASKED], ids=["continuous", "masked"])
def test_a_normalization_lies_in_the_policys_file(tmp_path, spec):
    policy = make_actor(spec, hidden=(8,), observation_norm=NORM)
    saved = load_policy(save_policy(tmp_path / "policy.pt", policy)).policy
    assert json.loads(json.dumps(saved.build))["options"]["observation_norm"] == [list(numbers) for numbers in NORM]
    inputs = extreme_inputs(spec, 40)
    assert torch.equal(act(saved, inputs), act(policy, inputs))


def test_the_statistics_of_a_dataset_by_hand():
    observation = torch.tensor([[[0.0, 5.0], [4.0, 5.0]], [[2.0, 5.0], [90.0, 9.0]], [[70.0, 8.0], [80.0, 7.0]]])
    dataset = from_arrays(
        observations=observation,
        actions=torch.zeros(3, 2, 1),
        rewards=torch.zeros(3),
        terminals=torch.tensor([False, False, True]),
        agent_mask=torch.tensor([[True, True], [True, False], [True, True]]),
    )
    dataset.data["collector", "mask"][2] = False
    # the components' values that count: 0, 4, 2 and 5, 5, 5, which never change
    loc, scale = dataset.observation_statistics()
    assert loc == [2.0, 5.0]
    assert scale == pytest.approx([(8 / 3) ** 0.5, 1.0], rel=1e-6)
    dataset.data["collector", "mask"][:] = False
    with pytest.raises(ValueError, match="No observation of this dataset counts"):
        dataset.observation_statistics()


def test_the_statistics_are_torchs_whatever_the_blocks(monkeypatch):
    dataset = collect(make_env("mpe/simple_spread", num_envs=4), episodes=4, seed=0)
    expected = dataset.data[OBSERVATION].flatten(0, 1)
    for block in (7, 2**16):
        monkeypatch.setattr("torchrl_marl_offline.data.transitions.dataset._BLOCK", block)
        loc, scale = dataset.observation_statistics()
        torch.testing.assert_close(torch.tensor(loc), expected.mean(0))
        deviation = expected.std(0, correction=0)
        assert (deviation == 0).any()  # agents that say nothing
        torch.testing.assert_close(torch.tensor(scale), torch.where(deviation == 0, 1.0, deviation))


@pytest.mark.parametrize("spec", [toys.CONTINUOUS, toys.DISCRETE], ids=["continuous", "discrete"])
def test_a_loss_sees_normalized_observations(spec):
    losses = []
    for norm in (NORM, None):
        torch.manual_seed(0)
        losses.append(BehaviourCloning(make_actor(spec, hidden=(8,), final_scale=1.0, observation_norm=norm)))
    batch = toys.make_batch(spec, 16)
    normalized = batch.clone()
    normalized[OBSERVATION] = (batch[OBSERVATION] - torch.tensor(NORM[0])) / torch.tensor(NORM[1])
    found, expected, other = losses[0](batch), losses[1](normalized), losses[1](batch)
    torch.testing.assert_close(found["loss_actor"], expected["loss_actor"])
    assert (found["loss_actor"] - other["loss_actor"]).abs() > 1e-3


@pytest.mark.parametrize("case", [toys.Case(extraction="awr"), toys.Case(extraction="brac", discrete=True)], ids=str)
def test_a_normalization_lies_in_a_loss_and_is_never_trained(case):
    torch.manual_seed(0)
    actor = case.actor(observation_norm=NORM)
    rules = {"value_learning": toys.RULES["iql"], "extraction": toys.RULES[case.extraction]}
    loss = OfflineMARLLoss(actor, case.critic(), case.value(), **rules).make_value_estimator(gamma=0.9)
    updater = SoftUpdate(loss, tau=0.5)
    buffers = {name: buffer for name, buffer in loss.named_buffers() if name.startswith("actor_network_params")}
    numbers = [buffer.tolist() for name, buffer in sorted(buffers.items())]
    assert numbers == [pytest.approx(row) for row in NORM]
    assert set(buffers) <= set(loss.state_dict())
    assert not {buffer.data_ptr() for buffer in buffers.values()} & {p.data_ptr() for p in loss.parameters()}
    batch = toys.make_batch(case.spec, 16)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1, weight_decay=0.1)
    sum(toys.loss_terms(loss(batch)).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in loss.actor_network_params.parameters())
    optimizer.step()
    updater.step()
    loss.reset_parameters_recursive()
    after = {name: buffer for name, buffer in loss.named_buffers() if name.startswith("actor_network_params")}
    assert [buffer.tolist() for name, buffer in sorted(after.items())] == numbers


@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules:FutureWarning")
def test_a_normalization_compiles_without_a_graph_break():
    torch._dynamo.reset()
    loss = BehaviourCloning(make_actor(toys.CONTINUOUS, hidden=(8,), observation_norm=NORM))
    batch = toys.make_batch(toys.CONTINUOUS, 16)
    expected = loss(batch)["loss_actor"]
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(batch)["loss_actor"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        (
            (torch.zeros(4), torch.ones(4)),
            TypeError,
            "takes two lists of numbers, got Tensor and Tensor; use",
        ),
        (([0.0] * 3, [1.0] * 3), ValueError, "has numbers for 3 components, but an observation has 4"),
        (([0.0] * 4, [1.0] * 3), ValueError, "as many finite locs as finite scales"),
        (([0.0, 0.0, 0.0, float("nan")], [1.0] * 4), ValueError, "observation_norm must be finite, got nan"),
        (([0.0] * 4, [1.0, 1.0, 0.0, 1.0]), ValueError, "needs positive scales, got 0.0"),
    ],
)
def test_a_normalization_that_does_not_fit_is_refused(norm, error, message):
    with pytest.raises(error, match=message):
        make_actor(CONTINUOUS, hidden=(8,), observation_norm=norm)


def test_an_executed_action_is_a_function_of_tensors():
    policy = Case("make_actor", MASKED).build()
    inputs = example_inputs(MASKED, 8)
    assert torch.equal(ExecutedAction(policy)(**inputs), act(policy, inputs))


# ------------------------------------------------------------------------------ memory

OF_ACTOR = {"final_scale": 3.0, "observation_norm": NORM}
MEMORIES = [
    ("gru", Case("make_actor", CONTINUOUS, OF_ACTOR)),
    ("lstm", Case("make_actor", MASKED, OF_ACTOR)),
    ("window:3", Case("make_actor", CONTINUOUS, OF_ACTOR)),
    ("gru", Case("make_deterministic_actor", CONTINUOUS)),
    ("gru", Case("make_greedy_actor", MASKED)),
]


@pytest.mark.parametrize(("memory", "case"), MEMORIES, ids=lambda each: str(each)[:30])
@pytest.mark.parametrize("format", ["torch", thorough("onnx")])
def test_a_policy_with_memory_goes_on_from_the_memory_that_it_returned(tmp_path, memory, case, format):
    """1,000 steps of two environments, whose episodes begin anew at different times."""
    torch.manual_seed(0)
    spec, sizes = case.spec, {} if memory.startswith("window") else {"memory_size": 6}
    policy = BUILDERS[case.builder](spec, hidden=(16,), memory=memory, **sizes, **case.options)
    exported = export(policy, tmp_path / ("policy.pt2" if format == "torch" else "policy.onnx"), format)
    assert exported.metadata["outputs"] == ["action", "next_memory"]
    size = encoder_of(policy).memory_size
    steps = example_inputs(spec, 2000, generator=torch.Generator().manual_seed(1), memory_size=size)
    begins = torch.rand(1000, 2, 1, generator=torch.Generator().manual_seed(2)) < 0.02
    begins[0] = True
    carried, own = torch.full((2, spec.n_agents, size), 7.0), None
    assert exported.metadata["inputs"] == list(steps)
    largest = 0.0
    for time in range(1000):
        rows = slice(2 * time, 2 * time + 2)
        inputs = {name: value[rows] for name, value in steps.items()} | {"memory": carried, "is_init": begins[time]}
        action, carried = exported.all_outputs(inputs)
        td = TensorDict({OBSERVATION: inputs["observation"], "is_init": begins[time]}, [2])
        if "action_mask" in inputs:
            td.set(ACTION_MASK, inputs["action_mask"])
        if own is not None:
            td.set(("agents", "policy_memory"), own)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            out = policy(td)
        own = out["next", "agents", "policy_memory"]
        largest = max(largest, (carried - own).abs().max().item())
        if spec.discrete:
            assert torch.equal(action, out[ACTION])
        else:
            largest = max(largest, (action - out[ACTION]).abs().max().item())
    assert largest < 1e-5
