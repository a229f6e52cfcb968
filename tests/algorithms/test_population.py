"""The systems of the field in populations and as traced functions: the numbers of the loss alone, noise included."""

from __future__ import annotations

import itertools

import pytest
import torch
from objective_toys import CONTINUOUS, DISCRETE, SYSTEM_CASES, Case, make_batch
from population_toys import largest_difference, lone_tensors, make_data, member_tensors
from selection import some_of
from torchrl.objectives import SoftUpdate
from trainers import trainer_for

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.training import PopulationBuffer
from torchrl_marl_offline.training.step.gradients import CompiledGradients, Gradients

SEEDS, RATES = (4, 9), (1e-3, 2e-3)
SETTINGS = {  # of each of two members
    "recipe": ({"temperature": 1.0, "expectile": 0.7}, {"temperature": 3.0, "expectile": 0.9}),
    "brac": ({"alpha": 0.03}, {"alpha": 0.3}),
    "td3_bc": ({"alpha": 2.5}, {"alpha": 1.0}),
    "b3c": ({"alpha": 2.5, "max_next_value": 0.2}, {"alpha": 10.0, "max_next_value": 0.1}),
    "cql": ({"min_q_weight": 0.5}, {"min_q_weight": 5.0}),
    "omar": ({"rectification": 0.5, "min_q_weight": 1.0}, {"rectification": 0.9, "min_q_weight": 0.1}),
    "cfcql": ({"min_q_weight": 0.5, "deviation_weight": 0.5}, {"min_q_weight": 5.0, "deviation_weight": 0.5}),
    "spacql": ({"min_q_weight": 0.5, "num_heads": 3}, {"min_q_weight": 5.0, "num_heads": 3}),
    "icq": ({"beta": 1000.0, "temperature": 1.0}, {"beta": 1.0, "temperature": 10.0}),
    "omac": ({"expectile": 0.7, "temperature": 3.0}, {"expectile": 0.5, "temperature": 1.0}),
    "omiga": ({"alpha": 10.0}, {"alpha": 1.0}),
    "bcq": ({"gamma": 0.9, "behaviour_hidden": (8,)}, {"gamma": 0.5, "behaviour_hidden": (8,)}),
    "mac_flow": ({"alpha": 3.0}, {"alpha": 0.3}),
    "omsd": ({"beta": 0.1, "expectile": 0.7}, {"beta": 1.0, "expectile": 0.9}),
}
RUNS = [(name, {}, False) for name in SETTINGS]
RUNS += [
    (name, {}, True) for name in ("brac", "cql", "omar", "cfcql", "spacql", "icq", "omiga", "bcq", "mac_flow", "omsd")
]
RUNS += [("omar", {"sampler": "cem"}, False), ("omar", {"sampler": "random"}, False)]
RUNS += [("omar", {"decomposition": "centralized"}, False), ("omiga", {"decomposition": "mixer", "svn": True}, False)]
RUNS += [("cql", {"batch_norm": False}, False), ("omar", {"batch_norm": True}, True)]  # by default the other way round
RUNS += [("omiga", {"decomposition": "mixer", "batch_norm": True}, False)]
RUNS += [("recipe", {"batch_norm": True, "distribution": "tanh_gaussian"}, False)]
RUNS += [("recipe", {"extraction": "weighted_brac", "alpha": 0.3}, discrete) for discrete in (False, True)]
RUNS += [("omsd", {"batch_norm": True}, False)]  # whose critic is the team's


def member(data, index: int, algorithm: str, options: dict):
    torch.manual_seed(SEEDS[index])
    return make_loss(data.spec, algorithm=algorithm, hidden=(8,), **SETTINGS[algorithm][index], **options)


@pytest.mark.parametrize(("algorithm", "options", "discrete"), some_of(RUNS, every=3), ids=str)
def test_a_member_is_the_run_alone(algorithm: str, options: dict, discrete: bool) -> None:
    # through a normalizing critic an actor's last bias has next to no gradient but rounding, which Adam blows up
    exact = options.get("batch_norm", algorithm in ("cql", "omar", "cfcql", "spacql") and not discrete)
    dtype, tolerance = (torch.float64, 1e-10) if exact else (torch.float32, 2e-6)
    data = make_data(discrete=discrete, dtype=dtype)
    common = {"steps": 6, "log_every": 3, "progress": False, "tau": 0.05}
    losses = {f"m{index}": member(data, index, algorithm, options).to(dtype) for index in range(2)}
    buffer = PopulationBuffer(data.data, batch_size=12, seeds=SEEDS)
    population = trainer_for(losses, buffer, lr=RATES, **common)
    start = [member_tensors(population, index) for index in range(2)]
    population.train()
    for index in range(2):
        loss = member(data, index, algorithm, options).to(dtype)
        torch.manual_seed(SEEDS[index])  # of the noise
        rows = make_replay_buffer(data.data, batch_size=12, seed=SEEDS[index])
        alone = trainer_for(loss, rows, lr=RATES[index], **common)
        assert largest_difference(lone_tensors(alone), start[index]) == 0
        alone.train()
        found = member_tensors(population, index)
        assert largest_difference(found, lone_tensors(alone)) < tolerance
        assert largest_difference(found, start[index]) > 1e-3
    finals = [member_tensors(population, index) for index in range(2)]
    assert all(largest_difference(*pair) > 1e-2 for pair in itertools.combinations(finals, 2))


@pytest.mark.parametrize(
    "case",
    some_of(SYSTEM_CASES, every=5),
    ids=str,
)
def test_traced_it_is_the_loss_as_it_stands(case: Case) -> None:
    found = []
    for kind in (Gradients, lambda loss: CompiledGradients(loss, backend=None)):
        loss = case.build()
        differentiate = kind(loss)
        torch.manual_seed(3)
        for seed in range(3):
            metrics = differentiate(make_batch(case.spec, 6, seed=seed))
        after = torch.get_rng_state()
        found.append(({n: p.grad.clone() for n, p in loss.named_parameters()}, metrics, after))
    (gradients, metrics, after), traced = found
    torch.testing.assert_close(traced[0], gradients, rtol=0, atol=0)
    torch.testing.assert_close(traced[1], metrics, rtol=0, atol=0)
    assert torch.equal(traced[2], after)


@pytest.mark.parametrize("algorithm", ["td3_bc", "cql", "omar"])
def test_conservative_systems_normalize_inputs_where_actions_are_continuous(algorithm: str) -> None:
    def normalized(spec: TaskSpec, **options) -> set[str]:
        loss = make_loss(spec, algorithm=algorithm, hidden=(8,), **options)
        return {name.split("_")[0] for name, _ in loss.named_buffers() if name.endswith(".0.variance")}

    everywhere = {"actor", "qvalue", "target"}
    assert normalized(CONTINUOUS) == (set() if algorithm == "td3_bc" else everywhere)
    assert normalized(CONTINUOUS, batch_norm=True) == everywhere
    assert normalized(CONTINUOUS, batch_norm=False) == set()
    if algorithm != "td3_bc":
        assert normalized(DISCRETE) == set()
        assert normalized(DISCRETE, batch_norm=True) == everywhere


@pytest.mark.parametrize("algorithm", ["cql", "omsd"])
def test_traced_it_keeps_running_statistics(algorithm: str) -> None:
    found = []
    for kind in (Gradients, lambda loss: CompiledGradients(loss, backend=None)):
        torch.manual_seed(0)
        loss = make_loss(CONTINUOUS, algorithm=algorithm, hidden=(8,), batch_norm=True)
        SoftUpdate(loss, tau=0.1)
        statistics = [name for name, _ in loss.named_buffers() if name.endswith((".0.mean", ".0.variance"))]
        start = {name: dict(loss.named_buffers())[name].clone() for name in statistics}
        differentiate = kind(loss)
        torch.manual_seed(3)
        for seed in range(3):
            differentiate(make_batch(CONTINUOUS, 6, seed=seed))
        gradients = {name: p.grad.clone() for name, p in loss.named_parameters()}
        buffers = {name: dict(loss.named_buffers())[name].clone() for name in statistics}
        assert {"actor", "qvalue", "target"} <= {name.split("_")[0] for name in statistics}
        assert not any(torch.equal(buffers[name], start[name]) for name in statistics)
        found.append((gradients, buffers))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_the_target_state_values_follow() -> None:
    loss = Case("linear", preset="omiga").build(tau=0.25)
    before = {name: b.clone() for name, b in loss.named_buffers() if name.startswith("target_value_network")}
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(1.0)
    batch = make_batch(loss_spec := Case("linear").spec, 4)
    values = [loss.team.state_value(batch["next"], target=target).local for target in (False, True)]
    assert before and not torch.equal(*values) and loss_spec.n_agents == values[0].shape[1]
    loss.updater.step()
    for name, old in before.items():
        torch.testing.assert_close(dict(loss.named_buffers())[name], old + 0.25)
