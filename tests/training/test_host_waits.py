"""No step lets the host wait for its GPU between logging points: seen from the operations, without a GPU."""

from __future__ import annotations

import pytest
import torch
from host_waits import HostWaits
from objective_toys import CASES, COMBINATIONS, SYSTEM_CASES, Case, make_batch
from population_toys import make_data
from selection import some_of
from tensordict import TensorDict
from torchrl.modules import TanhNormal as TorchRLTanhNormal
from trainers import trainer_for

from torchrl_marl_offline.algorithms import ALGORITHMS, make_loss
from torchrl_marl_offline.training import PopulationBuffer, Trainer
from torchrl_marl_offline.training.populations.population_optimizer import PopulationAdam
from torchrl_marl_offline.training.step.gradients import CompiledGradients, Gradients

CONTINUOUS_ONLY = ("td3_bc", "b3c")
RUNS = [(name, discrete) for name in ALGORITHMS for discrete in (False, True)]
RUNS = [(name, discrete) for name, discrete in RUNS if not (discrete and name in CONTINUOUS_ONLY)]


def trainer_of(algorithm: str, discrete: bool, *, population: bool) -> Trainer:
    data = make_data(discrete=discrete)
    own = {"max_next_value": 1.0} if algorithm == "b3c" else {}
    losses = {name: make_loss(data.spec, algorithm=algorithm, hidden=(8,), **own) for name in "ab"}
    options = {"steps": 9, "progress": False, "clip_grad_norm": 1.0}
    if population:
        return trainer_for(losses, PopulationBuffer(data.data, batch_size=12, seeds=range(2)), **options)
    loss = losses["a"]
    return trainer_for(loss, data.replay_buffer(batch_size=12, seed=0, keys=loss.in_keys), **options)


@pytest.mark.parametrize("population", [False, True], ids=["run", "population"])
@pytest.mark.parametrize(("algorithm", "discrete"), some_of(RUNS, every=2), ids=str)
def test_no_step_makes_the_host_wait(algorithm: str, discrete: bool, population: bool, monkeypatch) -> None:
    monkeypatch.setattr(PopulationAdam, "_fused_step", PopulationAdam._batched_step)  # what a GPU takes
    trainer = trainer_of(algorithm, discrete, population=population)
    trainer._prepare()
    trainer._update()  # creates moments
    with HostWaits() as waits:
        trainer._update()
    assert "index_select" in waits.names and waits.names & {"_fused_adam_", "addcmul_"}
    assert not waits.found
    with HostWaits() as waits:  # here it waits, and should
        trainer._log()
    assert waits.found


@pytest.mark.parametrize("case", some_of(CASES, every=3), ids=str)
def test_no_loss_makes_the_host_wait(case: Case) -> None:
    check(Gradients(loss := case.build()), make_batch(case.spec, 6))
    assert any(p.grad is not None for p in loss.parameters())


@pytest.mark.parametrize("case", some_of([COMBINATIONS[0], *SYSTEM_CASES[::3]], every=3), ids=str)
def test_no_traced_loss_makes_the_host_wait(case: Case) -> None:
    check(CompiledGradients(case.build(), backend=None), make_batch(case.spec, 6))


def check(gradients: Gradients | CompiledGradients, batch: TensorDict) -> None:
    gradients(batch.clone())
    with HostWaits() as waits:
        gradients(batch.clone())
    assert len(waits.names) > 5 and not waits.found


def test_what_would_make_the_host_wait_is_seen() -> None:
    x, mask = torch.rand(3), torch.tensor([True, False, True])
    for operation, name in [
        (lambda: x.sum().item(), "_local_scalar_dense"),
        (x.tolist, "tolist"),
        (x.cpu, "cpu"),
        (lambda: x[mask], "index.Tensor"),
        (lambda: x.index_put_((mask,), torch.zeros(())), "index_put_"),
        (lambda: bool(mask.all()), "_local_scalar_dense"),
        (lambda: mask.nonzero(), "nonzero"),
        (lambda: torch.tensor([1.0, 2.0]), "lift_fresh"),
        (lambda: TorchRLTanhNormal(x, x), "lift_fresh"),
        (lambda: x + torch.zeros(3), "zeros on no device"),
    ]:
        with HostWaits() as waits:
            operation()
        assert name in waits.found
    with HostWaits() as waits:
        x[torch.arange(2, device=x.device)], x.new_full((2,), 3.0), torch.where(mask, x, 0.0), x.repeat_interleave(2)
        x + torch.zeros(())  # a number, which may lie anywhere
    assert not waits.found
