"""What every preset and every combination of decomposition, value learning and extraction must do."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from objective_toys import (
    CASES,
    COMBINATIONS,
    DISCRETE,
    PRESET_CASES,
    PRESETS,
    SYSTEM_CASES,
    Case,
    gradients,
    loss_terms,
    make_batch,
    noise_of_its_place,
)
from selection import some_of, thorough
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.core.noise import NoiseRequest
from torchrl_marl_offline.modules import HyperNetworkMixer, ScaleInvariantValueNorm
from torchrl_marl_offline.objectives import AWR, BRAC, TDLoss

OWN_NETWORKS = {
    "loss_actor": {"actor_network"},
    "loss_qvalue": {"qvalue_network", "mixer_network"},
    "loss_value": {"value_network"},
    "loss_behaviour": {"behaviour_network"},
}


def once(cases: list[Case]) -> list:
    """Have each algorithm always tested with continuous and with discrete actions, once."""
    seen: set[tuple] = set()
    return [
        thorough(case) if (kind := (case.preset, case.discrete)) in seen else seen.add(kind) or case for case in cases
    ]


# One of each decomposition, learning rule and extraction rule, and every algorithm with both kinds of actions.
FEW = [
    Case("mixer", "iql", "awr"),
    Case("mixer", "td", "brac", discrete=True),
    Case("vdn", "sarsa", "brac"),
    Case("centralized", "iql", "brac", discrete=True),
    Case("independent", "td", "awr"),
    Case("qatten", "iql", "brac"),
    Case("qplex", "iql", "awr", discrete=True),
    Case("graph", "sarsa", "awr"),
    *some_of(PRESET_CASES[: len(PRESETS)], every=2),
    *some_of(PRESET_CASES[len(PRESETS) :], every=2, first=1),
    *once(SYSTEM_CASES),
]

every = pytest.mark.parametrize("case", CASES, ids=str)
a_third = pytest.mark.parametrize("case", some_of(CASES, every=3), ids=str)
few = pytest.mark.parametrize("case", FEW, ids=str)


@pytest.fixture(autouse=True)
def _same_noise_in_every_row(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("case") in SYSTEM_CASES:
        monkeypatch.setattr(NoiseRequest, "draw", noise_of_its_place)


def to_double(batch: TensorDict) -> TensorDict:
    return batch.apply(lambda x: x.double() if x.is_floating_point() else x)


def network_of(parameter_name: str) -> str:
    return parameter_name.split("_params.")[0]


def assert_same(a: dict, b: dict, **tolerance) -> None:
    assert a.keys() == b.keys()
    for key in a.keys():  # noqa: SIM118 -- a tensordict iterates over its rows
        torch.testing.assert_close(a[key], b[key], **tolerance, msg=lambda m, key=key: f"{key}: {m}")


@every
def test_gradients_reach_every_parameter_and_each_term_only_its_own_network(case: Case) -> None:
    loss = case.build(value_norm=ScaleInvariantValueNorm())
    batch = make_batch(case.spec, 16)
    before = batch.clone()
    output = loss(batch)
    terms = loss_terms(output)
    parameters = dict(loss.named_parameters())
    reached = set()
    for term, value in terms.items():
        assert value.shape == () and value.isfinite()
        grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
        touched = {name for name, grad in zip(parameters, grads) if grad is not None and grad.count_nonzero()}
        assert {network_of(name) for name in touched} <= OWN_NETWORKS[term], term
        if term == "loss_qvalue" and case.decomposition == "mixer":
            assert "mixer_network" in {network_of(name) for name in touched}
        reached |= touched
    assert reached == set(parameters)
    sum(terms.values()).backward()
    targets = [b for name, b in loss.named_buffers() if name.startswith("target_")]
    assert bool(targets) == (loss.value_learning is not None)
    assert all(t.grad is None and not t.requires_grad for t in targets)
    assert list(output.keys()) == loss.out_keys
    assert not any(value.requires_grad for key, value in output.items() if key not in terms)
    for key in before.keys(True, True):
        torch.testing.assert_close(batch[key], before[key], rtol=0, atol=0)
    added = set(batch.keys(True, True)) - set(before.keys(True, True))
    if loss.value_learning is None:
        assert not added
    else:
        assert added == {"td_error"} and batch["td_error"].shape == (16,) and not batch["td_error"].requires_grad
        assert (batch["td_error"] > 0).all()


@a_third
def test_entries_that_do_not_count_may_be_nan(case: Case) -> None:
    loss = case.build(value_norm=ScaleInvariantValueNorm()).double()
    batch = to_double(make_batch(case.spec, 12))
    keep = torch.arange(12) % 3 != 0
    expected = gradients(loss, batch[keep]) | dict(loss(batch[keep]).items())
    batch["collector", "mask"] = keep
    for key in list(batch.keys(True, True)):
        if batch[key].is_floating_point():
            batch[key][~keep] = math.nan
    found = gradients(loss, batch) | dict(loss(batch).items())
    assert_same(found, expected, rtol=1e-4, atol=1e-6)
    assert all(value.isfinite().all() for value in found.values())


@a_third
def test_dead_agents_may_be_nan(case: Case) -> None:
    loss = case.build(value_norm=ScaleInvariantValueNorm())
    results = []
    for filling in (math.nan, 3.0):
        batch = make_batch(case.spec, 12)
        alive = torch.rand(12, 3, generator=torch.Generator().manual_seed(3)) < 0.6
        alive[:, 0] = True
        batch["agents", "mask"] = alive
        batch["next", "agents", "mask"] = alive
        for key in list(batch.keys(True, True)):
            if "agents" in key and batch[key].is_floating_point():
                batch[key][~alive] = filling
            elif key[-1] == "action_mask":
                batch[key][~alive] = False
        results.append(
            gradients(loss, batch) | dict(loss(batch).items()) | {"td_error": batch.get("td_error", torch.ones(1))}
        )
    assert_same(*results)
    assert all(value.isfinite().all() for value in results[0].values())


def test_an_agent_that_dies_now_may_have_a_nan_successor() -> None:
    case = Case("mixer", "iql", "awr")
    loss = case.build()
    batch = make_batch(case.spec, 6)
    batch["agents", "mask"] = torch.ones(6, 3, dtype=torch.bool)
    batch["next", "agents", "mask"] = torch.ones(6, 3, dtype=torch.bool)
    batch["next", "agents", "mask"][:, 2] = False
    batch["next", "agents", "observation"][:, 2] = math.nan
    batch["next", "agents", "reward"][:, 2] = 5.0
    output = loss(batch)
    assert all(value.isfinite() for value in output.values())
    batch["next", "agents", "reward"][:, 2] = 0.0  # the reward of its last step still counts
    assert output["td_target"] != loss(batch)["td_target"]


def test_dead_agents_are_left_out_of_averages_under_any_group_name() -> None:
    case = Case("independent", "sarsa", "awr")
    loss = case.build(reduction="none")
    batch = make_batch(case.spec, 6)
    alone = loss(batch.clone())["loss_qvalue"]
    only_first = torch.tensor([True, False, False]).expand(6, 3)
    batch["agents", "mask"] = only_first
    with_mask = loss(batch)
    elements, _ = per_agent_squares(loss, batch)
    torch.testing.assert_close(with_mask["loss_qvalue"], elements[:, 0])
    torch.testing.assert_close(alone, elements.mean(-1))
    loss.set_keys(agent_mask=("agents", "alive"))
    batch["agents", "alive"] = only_first
    del batch["agents", "mask"]
    batch["agents", "observation"][:, 1:] = math.nan
    batch["next", "agents", "observation"][:, 1:] = math.nan
    torch.testing.assert_close(loss(batch)["loss_qvalue"], with_mask["loss_qvalue"])


def per_agent_squares(loss, batch: TensorDict) -> tuple[torch.Tensor, torch.Tensor]:
    """The SARSA critic's squared errors [B, n], summed over heads, from the loss's networks one by one."""
    target_q = loss.team.action_value(batch["next"], batch["next", "agents", "action"], target=True).total_min
    y = batch["next", "agents", "reward"] + 0.9 * ~batch["next", "terminated"].unsqueeze(-1) * target_q
    q = loss.team.action_value(batch, batch["agents", "action"]).total
    return (q - y.detach()).pow(2).sum(-1), y


@few
def test_keyword_tensors_equal_a_tensordict(case: Case) -> None:
    loss = case.build()
    batch = make_batch(case.spec, 7)
    expected = loss(batch)
    tensors = {"_".join(key if isinstance(key, tuple) else (key,)): batch[key] for key in loss.in_keys}
    found = loss(**tensors)
    found = found if isinstance(found, tuple) else (found,)
    assert_same(dict(zip(loss.out_keys, found)), expected)
    term = next(iter(loss_terms(expected)))
    loss.select_out_keys(term)
    torch.testing.assert_close(loss(**tensors), expected[term])
    loss.reset_out_keys()
    assert loss.out_keys == list(expected.keys())


@pytest.mark.parametrize("decomposition", ["mixer", "vdn", "independent", "centralized"])
def test_keyword_tensors_of_one_agent_and_unreduced(decomposition: str) -> None:
    case = Case(decomposition, "sarsa", "awr", discrete=True)
    loss = case.build(reduction="none")
    batch = make_batch(case.spec, 7)
    tensors = {"_".join(key if isinstance(key, tuple) else (key,)): batch[key] for key in loss.in_keys}
    for found, expected in zip(loss(**tensors), loss(batch).values()):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("decomposition", ["vdn", "independent"])
@pytest.mark.parametrize("preset", ["BehaviourCloning", "AWRLoss", "BRACLoss"])
def test_keyword_tensors_that_all_have_the_agents_dimension(preset: str, decomposition: str, discrete: bool) -> None:
    case = Case(decomposition, preset=preset, discrete=discrete)
    loss = case.build(reduction="none")
    batch = make_batch(case.spec, 7)
    tensors = {"_".join(key): batch[key] for key in loss.in_keys}  # dispatch takes [B, n] for the batch
    torch.testing.assert_close(loss(**tensors), loss(batch)["loss_actor"])


@a_third
def test_reductions_agree(case: Case) -> None:
    outputs = {}
    for reduction in ("none", "mean", "sum"):
        loss = case.build(reduction=reduction)
        outputs[reduction] = loss(make_batch(case.spec, 6))
        assert list(outputs[reduction].keys()) == loss.out_keys
    for term, rows in outputs["none"].items():
        assert rows.shape == (6,)
        torch.testing.assert_close(outputs["mean"][term], rows.mean())
        torch.testing.assert_close(outputs["sum"][term], rows.sum())


@few
def test_time_is_a_batch_dimension(case: Case) -> None:
    rows = make_batch(case.spec, 12)
    windows = rows.reshape(3, 4)
    loss = case.build(value_norm=ScaleInvariantValueNorm())
    assert_same(loss(windows), loss(rows), rtol=1e-4, atol=1e-6)
    if loss.value_learning is not None:
        torch.testing.assert_close(windows["td_error"].flatten(), rows["td_error"])
    unreduced = case.build(reduction="none")
    assert all(value.shape == (3, 4) for value in unreduced(windows).values())


@few
def test_priority_weights(case: Case) -> None:
    batch = make_batch(case.spec, 4)
    rows = case.build(reduction="none")(batch.clone())
    weight = torch.tensor([0.0, 1.0, 2.0, 5.0])
    batch["priority_weight"] = weight
    for term, value in loss_terms(case.build()(batch)).items():
        torch.testing.assert_close(value, (rows[term] * weight).sum() / 8.0)


@few
def test_state_dict_deepcopy_and_dtype(case: Case) -> None:
    norm = (
        {} if case.preset in ("AWRLoss", "BRACLoss", "BehaviourCloning") else {"value_norm": ScaleInvariantValueNorm()}
    )
    loss, other = case.build(seed=1, **norm), case.build(seed=2, **norm)
    batch = make_batch(case.spec, 6)
    expected = loss(batch)
    assert any(not torch.equal(other(batch)[key], expected[key]) for key in loss_terms(expected))
    missing = other.load_state_dict(loss.state_dict())
    assert not missing.missing_keys and not missing.unexpected_keys
    assert_same(other(batch), expected)
    clone = copy.deepcopy(loss)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.1)
    assert_same(clone(batch), expected)
    assert any(not torch.equal(loss(batch)[key], expected[key]) for key in loss_terms(expected))
    double = clone.to(torch.float64)(to_double(batch))
    assert all(value.dtype == torch.float64 for value in double.values())
    assert_same({k: v.float() for k, v in double.items()}, expected, rtol=1e-3, atol=1e-5)


@few
def test_reset_parameters_recursive(case: Case) -> None:
    loss = case.build()
    before = {name: p.clone() for name, p in loss.named_parameters()}
    loss.reset_parameters_recursive()
    for name, parameter in loss.named_parameters():
        assert parameter.requires_grad
        # scales and shifts of layer normalization start from the same constants again
        assert "norm" in name or not torch.equal(parameter, before[name]), name
    assert all(value.isfinite() for value in loss(make_batch(case.spec, 6)).values())


@pytest.mark.parametrize("case", [Case(), Case("independent", "td", "awr", discrete=True)], ids=str)
def test_stateful_networks_go_out_and_in(case: Case) -> None:
    loss = case.build()
    for name in ("actor_network", "qvalue_network"):
        network = loss.get_stateful_net(name)
        source = {k: torch.randn_like(v) for k, v in network.state_dict().items()}
        network.load_state_dict(source)
        loss.from_stateful_net(name, network)
        params = getattr(loss, f"{name}_params")
        for key, value in source.items():
            torch.testing.assert_close(params[tuple(key.split("."))].data, value)


@pytest.mark.parametrize("case", COMBINATIONS[:6] + PRESET_CASES[:3], ids=str)
def test_soft_update_moves_the_targets(case: Case) -> None:
    loss = case.build(tau=0.25)
    live = {name: b.clone() for name, b in loss.named_buffers() if name.startswith("target_")}
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(1.0)
    loss.updater.step()
    moved = 0
    after = dict(loss.named_buffers())
    for name, before in live.items():
        if name.removeprefix("target_") in dict(loss.named_parameters()):
            torch.testing.assert_close(after[name], before + 0.25)
            moved += 1
    assert moved == sum(1 for name, _ in loss.named_parameters() if not name.startswith(("actor", "value")))


@pytest.mark.parametrize("case", some_of([c for c in COMBINATIONS if c.decomposition == "mixer"], every=5), ids=str)
def test_the_mixer_learns(case: Case) -> None:
    loss = case.build(tau=0.05)
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    batch = make_batch(case.spec, 8)
    for _ in range(100):
        optimizer.zero_grad()
        sum(loss_terms(loss(batch)).values()).backward()
        optimizer.step()
        loss.updater.step()
    mixer = [name for name, _ in loss.named_parameters() if name.startswith("mixer_network")]
    assert len(mixer) == 12
    for name, parameter in loss.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} has not moved"
    targets = loss.target_mixer_network_params
    assert any(not torch.equal(targets[k].data, v.data) for k, v in loss.mixer_network_params.items(True, True))


def test_a_frozen_mixer_does_not_move() -> None:
    case = Case("mixer", "td", "brac")
    loss = case.build(critic=case.critic(frozen=True))
    mixer = {k: v.clone() for k, v in loss.mixer_network_params.data.items(True, True)}
    critic = {k: v.clone() for k, v in loss.qvalue_network_params.data.items(True, True)}
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2, weight_decay=0.1)
    batch = make_batch(case.spec, 8)
    for _ in range(10):
        optimizer.zero_grad()
        sum(loss_terms(loss(batch)).values()).backward()
        optimizer.step()
        loss.updater.step()
    for key, value in mixer.items():
        assert torch.equal(loss.mixer_network_params[key], value)
        torch.testing.assert_close(loss.target_mixer_network_params[key].data, value)
    assert any(not torch.equal(loss.qvalue_network_params[k].data, v) for k, v in critic.items())


@few
def test_in_keys_are_ordered_and_settable(case: Case) -> None:
    loss = case.build()
    keys = loss.in_keys
    assert keys == case.build(seed=2).in_keys and len(set(keys)) == len(keys)
    batch = make_batch(case.spec, 4)
    expected = loss(batch)
    assert_same(loss(batch.select(*keys)), expected)  # they suffice
    for key in keys:
        name = key if isinstance(key, str) else ".".join(key)
        with pytest.raises(
            KeyError, match=re.escape(f"{type(loss).__name__} needs the entry {name}, which the batch lacks")
        ):
            loss(batch.exclude(key))
    loss.in_keys = keys[:2]
    assert loss.in_keys == keys[:2]
    loss.set_keys(priority="priority")
    assert loss.in_keys == keys


@few
def test_set_keys(case: Case) -> None:
    loss = case.build()
    batch = make_batch(case.spec, 4)
    expected = loss(batch.clone())
    with pytest.raises(ValueError, match="nonsense is not an accepted tensordict key"):
        loss.set_keys(nonsense="x")
    loss.set_keys(reward=("team", "gain"), terminated="over", priority=("sampler", "error"))
    if loss.value_learning is not None:
        assert ("next", "team", "gain") in loss.in_keys and ("next", "over") in loss.in_keys
    renamed = batch.clone()
    renamed["next", "team", "gain"] = renamed["next", "agents", "reward"]
    renamed["next", "over"] = renamed["next"].pop("terminated")
    del renamed["next", "agents", "reward"]
    assert_same(loss(renamed), expected)
    assert (("sampler", "error") in renamed.keys(True)) == (loss.value_learning is not None)
    loss.set_keys(reward=None, terminated=None, priority=None)
    assert loss.tensor_keys.reward == ("agents", "reward")
    assert_same(loss(batch), expected)


@pytest.mark.parametrize("decomposition", ["mixer", "vdn", "centralized", "independent"])
@pytest.mark.parametrize("learning", ["td", "iql"])
def test_an_ensemble_of_modules_with_and_without_vmap(decomposition: str, learning: str) -> None:
    case = Case(decomposition, learning, "brac")
    single = Case("independent" if decomposition in ("mixer", "vdn") else decomposition)
    outputs = []
    for deactivate in (False, True):
        torch.manual_seed(5)
        critics = [single.critic(num_heads=1) for _ in range(3)]
        mixer = None
        if decomposition == "mixer":
            mixer = HyperNetworkMixer(3, 5, embed_size=4, hidden_size=8)
        elif decomposition == "vdn":
            mixer = case.critic().module[-1].module
        if mixer is not None:
            mixer_keys = [("agents", "state_action_value"), "state"][: 1 + mixer.needs_state]
            mixer = TensorDictModule(mixer, in_keys=mixer_keys, out_keys=["state_action_value"])
        loss = case.build(critic=critics, mixer=mixer, deactivate_vmap=deactivate)
        batch = make_batch(case.spec, 5)
        values = loss.team.action_value(batch, batch["agents", "action"])
        assert values.total.shape == (5, 3 if decomposition == "independent" else 1, 3)
        # the ensemble is the modules, not a new draw
        local = values.total if values.local is None else values.local
        one = critics[1](batch.select(("agents", "observation"), ("agents", "action"), "state"))
        key = "state_action_value" if decomposition == "centralized" else ("agents", "state_action_value")
        torch.testing.assert_close(local[..., 1].flatten(), one[key].flatten())
        outputs.append(gradients(loss, batch) | dict(loss(batch).items()))
        assert all(name in outputs[-1] for name, _ in loss.named_parameters())
        copied = copy.deepcopy(loss)
        assert_same(copied(batch), loss(batch))
    assert_same(*outputs)


def test_copies_of_one_critic() -> None:
    case = Case("independent", "td", "awr")
    loss = case.build(num_qvalue_nets=2)
    batch = make_batch(case.spec, 5)
    assert loss.team.action_value(batch, batch["agents", "action"]).total.shape == (5, 3, 4)
    assert all(v.shape[0] == 2 for v in loss.qvalue_network_params.values(True, True))


@pytest.mark.parametrize("discrete", [False, True])
def test_exploration_type_rules_execution_but_not_the_loss(discrete: bool) -> None:
    case = Case("mixer", "td", "awr", discrete=discrete)
    loss, actor = case.build(), case.actor()
    batch = make_batch(case.spec, 6)
    outputs = []
    for kind in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
        with set_exploration_type(kind):
            outputs.append(loss(batch))
            actions = [actor(batch.select("agents").clone())["agents", "action"] for _ in range(2)]
            assert torch.equal(*actions) == (kind is ExplorationType.DETERMINISTIC)
    assert_same(*outputs)


@pytest.mark.fault("3.6")
@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", float("nan")), ("temperature", -1.0), ("expectile", 1), ("max_next_value", float("nan"))],
)
def test_a_coefficient_is_not_scheduled_out_of_its_range(name, value) -> None:
    loss = Case("vdn", "iql", "awr").build(max_next_value=1e3)
    before = getattr(loss, name).clone()
    with pytest.raises(ValueError, match=f"^{name} must"):
        setattr(loss, name, value)
    assert getattr(loss, name) == before
    setattr(loss, name, 0.25)
    assert getattr(loss, name) == 0.25


def test_coefficients_are_buffers_that_can_be_scheduled() -> None:
    batch = make_batch(DISCRETE, 6)
    loss = Case("mixer", "iql", "awr", discrete=True).build()
    assert {"temperature", "expectile"} <= set(dict(loss.named_buffers()))
    before = loss(batch)
    loss.temperature = 0.0
    loss.expectile = 0.5
    after = loss(batch)
    assert isinstance(loss.temperature, torch.Tensor) and loss.state_dict()["expectile"] == 0.5
    torch.testing.assert_close(after["effective_sample_size"], torch.tensor(1.0))
    torch.testing.assert_close(after["loss_actor"], -after["log_prob"])
    assert before["effective_sample_size"] < 1.0 and after["loss_value"] != before["loss_value"]
    brac = Case(preset="BRACLoss", discrete=True).build()
    brac.alpha = 0.0
    assert brac(batch)["loss_actor"] != Case(preset="BRACLoss", discrete=True).build()(batch)["loss_actor"]


def test_a_mask_of_another_name_is_honoured() -> None:
    case = Case("mixer", "sarsa", "awr")
    loss = case.build(value_norm=ScaleInvariantValueNorm())
    batch = make_batch(case.spec, 8)
    keep = torch.arange(8) % 2 == 0
    expected = loss(batch[keep])
    loss.loss_mask_key = ("mine", "valid")
    batch["mine", "valid"] = keep
    batch["collector", "mask"] = torch.zeros(8, dtype=torch.bool)  # not the one that is asked for
    assert_same(loss(batch), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case("mixer", "iql", "awr"),
        thorough(Case("vdn", "sarsa", "brac", discrete=True)),
        *map(thorough, [Case("qplex", "iql", "brac", discrete=True), Case("graph", "td", "brac", discrete=True)]),
        # conservative, discrete; rectification; implicit constraint; global to local
        *map(thorough, [SYSTEM_CASES[3], SYSTEM_CASES[6], *SYSTEM_CASES[7::3]]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules:FutureWarning")
def test_compiles_without_a_graph_break(case: Case) -> None:
    torch._dynamo.reset()
    loss = case.build(value_norm=ScaleInvariantValueNorm())
    batch = make_batch(case.spec, 6)
    batch["collector", "mask"] = torch.arange(6) < 5
    expected = loss(batch.clone())
    loss.in_keys  # noqa: B018 -- a lazy cache
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    output = compiled(batch.clone())
    assert_same(output, expected, rtol=1e-4, atol=1e-6)
    sum(loss_terms(output).values()).backward()
    found = {name: p.grad.clone() for name, p in loss.named_parameters()}
    assert_same(found, gradients(loss, batch), rtol=1e-4, atol=1e-6)


def test_brac_samples_discrete_actions_unless_told_otherwise() -> None:
    case = Case("mixer", "td", "brac", discrete=True)
    batch = make_batch(case.spec, 32)
    sampling = case.build(extraction=BRAC(sample=True))
    torch.manual_seed(0)
    first = sampling(batch)["policy_qvalue"]  # the normalized objective has the mean 0 whatever is sampled
    assert not torch.isclose(first, sampling(batch)["policy_qvalue"], rtol=1e-5)
    mode = case.build(extraction=BRAC(sample=False))
    assert mode(batch)["policy_qvalue"] == mode(batch)["policy_qvalue"]


def test_awr_without_a_value_network_subtracts_the_value_of_the_policy() -> None:
    case = Case("independent", "td", "awr")
    loss = case.build(extraction=AWR(weights="clipped", temperature=1.0, standardize=False))
    batch = make_batch(case.spec, 5)
    q = loss.team.action_value(batch, batch["agents", "action"]).local_min
    mode = loss.team.policy(batch).deterministic_sample
    v = loss.team.action_value(batch, mode).local_min
    log_prob = loss.team.policy(batch).log_prob(batch["agents", "action"])
    expected = -((q - v).squeeze(-1).exp() * log_prob).mean()
    torch.testing.assert_close(loss(batch)["loss_actor"], expected)


@pytest.mark.parametrize("advantage", ["local", "joint"])
@pytest.mark.parametrize("standardize", [False, True])
def test_awr_by_its_equation(advantage: str, standardize: bool) -> None:
    case = Case("mixer", "iql", "awr")
    loss = case.build(extraction=AWR(weights="clipped", temperature=0.5, advantage=advantage, standardize=standardize))
    batch = make_batch(case.spec, 5)
    with torch.no_grad():
        q, v = loss.team.action_value(batch, batch["agents", "action"], target=True), loss.team.state_value(batch)
    if advantage == "local":
        a = (q.local.amin(-1) - v.local.squeeze(-1)).detach()
    else:
        a = (q.total.amin(-1) - v.total.squeeze(-1)).expand(5, 3)
    if standardize:
        a = (a - a.mean()) / a.std(correction=0)
    log_prob = loss.team.policy(batch).log_prob(batch["agents", "action"])
    output = loss(batch)
    weight = (0.5 * a).exp()
    torch.testing.assert_close(output["loss_actor"], -(weight * log_prob).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output["effective_sample_size"], weight.sum() ** 2 / (15 * weight.pow(2).sum()))


@pytest.mark.parametrize("decomposition", ["mixer", "independent"])
@pytest.mark.parametrize("normalize", [False, True])
def test_brac_by_its_equation(decomposition: str, normalize: bool) -> None:
    case = Case(decomposition, "td", "brac")
    loss = case.build(extraction=BRAC(alpha=0.3, normalize=normalize), reduction="none")
    batch = make_batch(case.spec, 5)
    policy = loss.team.policy(batch)
    q = loss.team.action_value(batch, policy.deterministic_sample).total.amin(-1)  # [B, k]
    if normalize:
        q = (q - q.mean()) / q.abs().mean()
    cloning = policy.log_prob(batch["agents", "action"]).mean(-1)
    torch.testing.assert_close(loss(batch)["loss_actor"], -q.mean(-1) - 0.3 * cloning, rtol=1e-4, atol=1e-5)


def test_no_warning_without_targets_and_one_without_an_updater() -> None:
    case = Case()
    loss = TDLoss(case.actor(), case.critic())
    with pytest.warns(UserWarning, match="target network updater"):
        loss(make_batch(case.spec, 4))
    SoftUpdate(loss, tau=0.1)
    loss(make_batch(case.spec, 4))


@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules:FutureWarning")
def test_losses_of_several_sizes_compile_in_one_process() -> None:
    """From the second on torch takes sizes for symbols."""
    torch._dynamo.reset()
    for case in (Case("vdn", "td", "brac", discrete=True), Case("vdn", "td", "brac")):
        loss, batch = case.build(), make_batch(case.spec, 6)
        loss.in_keys  # noqa: B018 -- a lazy cache
        torch.manual_seed(0)
        expected = loss(batch.clone())["loss_qvalue"]
        torch.manual_seed(0)
        compiled = torch.compile(loss, fullgraph=True, backend="eager")(batch.clone())["loss_qvalue"]
        torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-6)
