"""Delayed updates of the actor and the targets: in one run, in populations, compiled, resumed and in studies."""

from __future__ import annotations

import pytest
import torch
from population_toys import (
    RATES,
    everything,
    largest_difference,
    lone_tensors,
    make_alone,
    make_data,
    make_population,
    member_tensors,
)
from study_toys import STUDY, write_study

from torchrl_marl_offline.core.functional_parameters import tensors_of
from torchrl_marl_offline.study import plan_study, read_study
from torchrl_marl_offline.study.jobs import Job
from torchrl_marl_offline.study.training import make_trainer
from torchrl_marl_offline.training import ForeachSoftUpdate, Learner, default_optimizer, split_population
from torchrl_marl_offline.training.step.gradients import CompiledGradients, Gradients

RULES = {"value_learning": "td", "extraction": "brac"}


@pytest.fixture(scope="module")
def data():
    return make_data()


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Return the networks of which something changed."""
    return {name.split("_params")[0] for name in before if not torch.equal(before[name], after[name])}


def test_the_actor_and_the_targets_move_at_every_third_update_alone(data):
    trainer = make_alone(data, 0, rules=RULES, actor_every=3, steps=6, log_every=1)
    found = []
    trainer._prepare()
    for _ in range(6):
        before = lone_tensors(trainer)
        trainer._update()
        found.append({name for name in moved(before, lone_tensors(trainer)) if "network" in name})
    critic = {"qvalue_network", "mixer_network"}
    everything_moved = critic | {"actor_network", "target_qvalue_network", "target_mixer_network"}
    assert found == [critic, critic, everything_moved] * 2


@pytest.mark.parametrize("traced", [False, True])
def test_it_is_the_loop_that_one_would_write(data, traced):
    trainer = make_alone(data, 1, rules=RULES, actor_every=2, steps=7)
    if traced:
        trainer.learner.gradients = CompiledGradients(trainer.loss, backend=None)
    other = make_alone(data, 1, rules=RULES)
    loss, rate = other.loss, RATES[1]
    actor = [p for name, p in loss.named_parameters() if name.startswith("actor_network_params")]
    critic = [p for name, p in loss.named_parameters() if p.requires_grad and not name.startswith("actor_network")]
    optimizers = [torch.optim.Adam(group, lr=rate) for group in (critic, actor)]
    updater, gradients = ForeachSoftUpdate(loss, tau=0.05), Gradients(loss)
    for step in range(1, 8):
        gradients(other.buffer.sample())
        optimizers[0].step()
        if step % 2 == 0:
            optimizers[1].step()
            updater.step()
    trainer.train()
    assert largest_difference(lone_tensors(trainer), tensors_of(loss)) < 1e-6
    assert optimizers[1].state[actor[0]]["step"].item() == 3


@pytest.mark.parametrize("steps", [5, 8])
def test_a_member_is_the_run_alone(data, steps):
    """Also in the count of the actor's steps, by which Adam corrects its moments."""
    population = make_population(data, (0, 1), rules=RULES, actor_every=3, steps=steps, clip_grad_norm=0.7)
    population.train()
    for member in (0, 1):
        alone = make_alone(data, member, rules=RULES, actor_every=3, steps=steps, clip_grad_norm=0.7)
        alone.train()
        assert largest_difference(member_tensors(population, member), lone_tensors(alone)) <= 1e-6
        optimizer = population.learner.optimizer.member_optimizer(member, default_optimizer(alone.loss))
        (group,) = alone.learner.optimizer.param_groups
        counts = [
            [each.state[p]["step"].item() for p in group["params"]] for each in (optimizer, alone.learner.optimizer)
        ]
        assert counts[0] == counts[1] and set(counts[0]) == {steps, steps // 3}


def test_on_a_device_members_move_alike(data):
    """The form of Adam for GPUs, which a CPU can compute."""
    ends = []
    for batched in (False, True):
        population = make_population(data, (0, 1), rules=RULES, actor_every=2, steps=6)
        if batched:
            population.learner.optimizer._fused_step = population.learner.optimizer._batched_step
        population.train()
        ends.append(member_tensors(population, 1))
    assert largest_difference(*ends) < 1e-6


@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_keeps_its_rhythm(tmp_path, data, stop):
    whole = make_population(data, (0, 1), tmp_path / "whole", rules=RULES, actor_every=2, steps=9)
    whole.train()
    options = {"rules": RULES, "actor_every": 2, "steps": 9, "checkpoint_every": stop}
    make_population(data, (0, 1), tmp_path / "part", **options).train()
    again = make_population(data, (0, 1), tmp_path / "part", **options)
    again.resume(tmp_path / f"part/checkpoints/checkpoint-{stop:012d}.torchrl")
    again.train()
    assert torch.equal(everything(again), everything(whole))
    split = make_population(data, (0, 1), tmp_path / "split", **{**options, "steps": stop})
    split.train()
    split_population(split)
    alone = make_alone(data, 1, split.member_folder("m1"), rules=RULES, actor_every=2, steps=9)
    alone.resume()
    alone.train()
    assert largest_difference(lone_tensors(alone), member_tensors(whole, 1)) <= 1e-6


def test_a_study_has_it_as_a_setting(tmp_path, data):
    text = STUDY.replace("steps = 40", "steps = 40\nactor_every = 2")
    study = read_study(write_study(tmp_path, text))
    population = plan_study(study).populations[0]
    job = Job(tmp_path / "job", tmp_path, population, study.datasets[0], study.evaluation, study.settings)
    trainer = make_trainer(job, study.datasets[0].load(tmp_path / "data"))
    assert trainer.learner.actor_every == trainer.learner.optimizer.actor_every == 2


def test_what_it_cannot_be(data):
    with pytest.raises(ValueError, match="actor_every must be at least 1, got 0"):
        make_alone(data, 0, actor_every=0)
    from torchrl_marl_offline import SARSALoss, Trainer, make_critic, make_loss

    loss = SARSALoss(make_critic(data.spec, hidden=(4,))).make_value_estimator(gamma=0.9)
    buffer = data.replay_buffer(batch_size=4, keys=loss.in_keys)
    with pytest.raises(ValueError, match="actor_every is for a loss that trains an actor_network; leave it out"):
        Learner(loss, actor_every=2)
    whole = make_loss(data.spec, hidden=(8,))
    with pytest.raises(ValueError, match=r"actor_every must be at most steps \(2\), got 3\."):
        Trainer(Learner(whole, actor_every=3), buffer, steps=2)
