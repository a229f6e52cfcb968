"""The step on a GPU: one CUDA graph with the numbers of the plain step, and nothing in it that waits for the device."""

from __future__ import annotations

import pytest
import torch
from trainers import trainer_for

from torchrl_marl_offline import PopulationBuffer, Trainer, collect, evaluate, make_env, make_loss
from torchrl_marl_offline.evaluation import evaluate_population

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # torch's compiler, when imported
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),  # its advice
]
AXES = [
    {"decomposition": "mixer", "value_learning": "iql", "extraction": "awr"},
    {"decomposition": "vdn", "value_learning": "td", "extraction": "brac"},
    {"algorithm": "omar"},
]


@pytest.fixture(scope="module", params=["mpe/simple_spread", "games/grid_navigation"])
def data(request):
    return collect(make_env(request.param, num_envs=20), episodes=20, seed=0)


def build(data, seed: int, **axes):
    torch.manual_seed(seed)
    return make_loss(data.spec, hidden=(32, 32), **axes).to("cuda")


def trainer_of(data, axes, **options) -> Trainer:
    loss = build(data, 0, **axes)
    buffer = data.replay_buffer(batch_size=64, seed=0, device="cuda", keys=loss.in_keys)
    return trainer_for(loss, buffer, **{"steps": 30, "progress": False} | options)


def population_of(data, axes, **options) -> Trainer:
    losses = {f"{seed}": build(data, seed, **axes) for seed in range(3)}
    buffer = PopulationBuffer(data.data, batch_size=64, seeds=range(3), device="cuda", keys=losses["0"].in_keys)
    return trainer_for(losses, buffer, **{"steps": 30, "progress": False} | options)


@pytest.mark.parametrize("make", [trainer_of, population_of])
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_the_graph_has_the_numbers_of_the_plain_step(data, axes, make):
    plain, graph = make(data, axes, compile="off"), make(data, axes, compile="on")
    for trainer in (plain, graph):
        torch.manual_seed(1)  # of the noise
        trainer.train()
    assert graph.learner._step_on._graph is not None
    found, start = dict(graph._named_parameters()), dict(make(data, axes)._named_parameters())
    for name, expected in plain._named_parameters():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4, msg=name)
        assert not expected.requires_grad or not torch.equal(start[name], expected), name


@pytest.mark.parametrize("make", [trainer_of, population_of])
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_a_step_never_waits_for_the_device(data, axes, make, compile):
    trainer = make(data, axes, compile=compile)
    trainer._prepare()
    for _ in range(5):  # compiles, captures
        trainer._update()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            trainer._update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("make", [trainer_of, population_of])
@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_run_that_stopped_goes_on_with_the_same_numbers(data, make, compile, tmp_path):
    whole = make(data, AXES[1], compile=compile)  # which seeds, so that the noise is the same
    whole.train()
    make(data, AXES[1], compile=compile, steps=15, output=tmp_path).train()
    resumed = make(data, AXES[1], compile=compile, output=tmp_path)
    assert resumed.resume() == 15
    resumed.train()
    found = dict(resumed._named_parameters())
    for name, expected in whole._named_parameters():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_policies_are_evaluated_in_environments_there(data):
    env = make_env(data.spec.task, num_envs=6, device="cuda")
    alone, population = trainer_of(data, AXES[0]), population_of(data, AXES[0])
    one = evaluate(alone.loss.actor_network, env, episodes=6, seed=0)
    many = evaluate_population(population.learner.population, env, episodes=2, seed=0)
    assert len(one.lengths) == 6 and all(len(found.lengths) == 2 for found in many.values())
    assert all(found.returns.isfinite().all() for found in (one, *many.values()))
