"""Delayed updates of actor and targets, critics first, annealed rates: alone, in populations, resumed, in studies."""

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
    make_member,
    make_population,
    member_tensors,
)
from study_toys import STUDY, write_study

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.functional_parameters import tensors_of
from torchrl_marl_offline.study import plan_study, read_study
from torchrl_marl_offline.study.jobs import Job
from torchrl_marl_offline.study.training import make_trainer
from torchrl_marl_offline.training import (
    ForeachSoftUpdate,
    Learner,
    PopulationBuffer,
    PopulationLearner,
    default_optimizer,
    split_population,
)
from torchrl_marl_offline.training.run.run_settings import differing, run_settings
from torchrl_marl_offline.training.step.gradients import CompiledGradients, Gradients
from torchrl_marl_offline.training.step.rhythm import Rhythm

RULES = {"value_learning": "td", "extraction": "brac"}
NEVER_MOVES = r"actor_every must have a multiple above critic_first \(\d\) and at most steps"


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


def test_critics_first_then_the_actor_alone(data):
    trainer = make_alone(data, 0, rules=RULES, critic_first=3, actor_every=2, steps=7, log_every=1)
    found = []
    trainer._prepare()
    for _ in range(7):
        before = lone_tensors(trainer)
        trainer._update()
        found.append({name for name in moved(before, lone_tensors(trainer)) if "network" in name})
    first = {"qvalue_network", "mixer_network", "target_qvalue_network", "target_mixer_network"}
    assert found == [first] * 3 + [{"actor_network"}, set(), {"actor_network"}, set()]


@pytest.mark.parametrize("rhythm", [{"critic_first": 3}, {}, {"critic_first": 3, "actor_every": 2}], ids=str)
def test_annealed_it_is_the_loop_with_torchs_own_schedule(data, rhythm):
    steps = 8
    trainer = make_alone(data, 1, rules=RULES, anneal_over=steps, steps=steps, **rhythm)
    other = make_alone(data, 1, rules=RULES)
    first, every = rhythm.get("critic_first", 0), rhythm.get("actor_every", 1)
    loss, rate = other.loss, RATES[1]
    actor = [p for name, p in loss.named_parameters() if name.startswith("actor_network_params")]
    critic = [p for name, p in loss.named_parameters() if p.requires_grad and not name.startswith("actor_network")]
    optimizers = [torch.optim.Adam(group, lr=rate) for group in (critic, actor)]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, steps - first) for each in optimizers]
    updater, gradients = ForeachSoftUpdate(loss, tau=0.05), Gradients(loss)
    for step in range(1, steps + 1):
        gradients(other.buffer.sample())
        if first == 0 or step <= first:
            optimizers[0].step()
            updater.step()
        if step > first and step % every == 0:
            optimizers[1].step()
        for schedule in schedules if step > first else ():
            schedule.step()
    trainer.train()
    assert largest_difference(lone_tensors(trainer), tensors_of(loss)) < 1e-6


def test_members_with_critics_first_and_annealed_rates_are_runs_alone(data):
    options = {"rules": RULES, "actor_every": 2, "critic_first": 3, "anneal_over": 9, "steps": 9}
    population = make_population(data, (0, 1), **options)
    population.train()
    for member in (0, 1):
        alone = make_alone(data, member, **options)
        alone.train()
        assert largest_difference(member_tensors(population, member), lone_tensors(alone)) <= 1e-6
        optimizer = population.learner.optimizer.member_optimizer(member, default_optimizer(alone.loss))
        (group,) = alone.learner.optimizer.param_groups
        counts = [
            [each.state[p]["step"].item() for p in group["params"]] for each in (optimizer, alone.learner.optimizer)
        ]
        assert counts[0] == counts[1] and set(counts[0]) == {3.0}  # updates 4, 6 and 8 of the actor


@pytest.mark.parametrize("stop", [2, 5])
def test_critics_first_and_annealed_rates_are_resumed_bit_for_bit(data, tmp_path, stop):
    options = {"rules": RULES, "critic_first": 3, "anneal_over": 9, "checkpoint_every": stop}
    for make, members in ((make_population, (0, 1)), (make_alone, 1)):
        name = make.__name__
        whole = make(data, members, tmp_path / f"{name}-whole", steps=9, **options)
        whole.train()
        cut = make(data, members, tmp_path / f"{name}-cut", steps=stop if stop > 3 else 4, **options)
        cut.train()
        again = make(data, members, tmp_path / f"{name}-cut", steps=9, **options)
        again.resume()
        again.train()
        tensors = member_tensors if members == (0, 1) else (lambda trainer, _: lone_tensors(trainer))
        assert largest_difference(tensors(whole, 0), tensors(again, 0)) == 0
    other = make_alone(data, 1, tmp_path / "make_alone-cut", steps=9, **(options | {"critic_first": 1}))
    with pytest.raises(Exception, match="critic_first was 3 and is 1 now"):
        other.resume()


@pytest.mark.parametrize("limits", ["bootstrap", "terminal"])
def test_other_time_limits_and_keys_are_not_gone_on_with(data, tmp_path, limits):
    other = {"bootstrap": "terminal", "terminal": "bootstrap"}[limits]
    for make, members in ((make_population, (0, 1)), (make_alone, 1)):
        output = tmp_path / make.__name__
        make(data, members, output, rules=RULES | {"time_limits": limits}, steps=2, checkpoint_every=1).train()
        with pytest.raises(Exception, match=r"key terminated was (done|terminated) and is (done|terminated) now"):
            make(data, members, output, rules=RULES | {"time_limits": other}, steps=4).resume()
        make(data, members, output, rules=RULES | {"time_limits": limits}, steps=4).resume()
    renamed = make_alone(data, 1, tmp_path / "make_alone", rules=RULES | {"time_limits": limits}, steps=4)
    renamed.loss.set_keys(action=("agents", "joint"))
    settings = run_settings(renamed.loss, renamed.learner.optimizer, None, {})
    assert differing(renamed.learner.settings, settings) == (
        "key action was ('agents', 'action') and is ('agents', 'joint') now"
    )


def test_rhythms_that_fit_nothing_are_refused(data):
    with pytest.raises(ValueError, match="critic_first is for a loss that trains an actor_network and others"):
        Learner(make_loss(data.spec, algorithm="cloning", hidden=(8,)), critic_first=2)
    with pytest.raises(ValueError, match=r"critic_first must be below steps \(4\)"):
        make_alone(data, 0, rules=RULES, critic_first=4, steps=4)
    with pytest.raises(ValueError, match="anneal_over counts all updates and must be above critic_first"):
        make_alone(data, 0, rules=RULES, critic_first=4, anneal_over=3, steps=9)


@pytest.mark.parametrize(
    ("first", "every", "steps"), [(4, 4, 6), (4, 3, 5), (5, 5, 6), (3, 2, 4), (4, 3, 6), (5, 6, 6)]
)
def test_an_actor_that_would_never_move_is_refused_by_trainers_and_studies(data, tmp_path, first, every, steps):
    options = {"critic_first": first, "actor_every": every}
    keys = "\n".join(f"{key} = {value}" for key, value in (options | {"steps": steps}).items())
    file = write_study(tmp_path, STUDY.replace("steps = 40", keys))

    def make_both():
        make_alone(data, 0, rules=RULES, steps=steps, **options)
        plan_study(read_study(file))

    if any(step % every == 0 for step in range(first + 1, steps + 1)):
        return make_both()
    with pytest.raises(ValueError, match=NEVER_MOVES):
        make_both()
    with pytest.raises(ValueError, match=NEVER_MOVES):
        plan_study(read_study(file))


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
    assert trainer.learner.rhythm == trainer.learner.optimizer.rhythm == Rhythm(actor_every=2)


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


@pytest.mark.parametrize("rhythm", [{"critic_first": 2}, {"actor_every": 2}], ids=str)
@pytest.mark.parametrize("as_population", [False, True])
def test_the_clipping_is_of_the_networks_that_move(data, rhythm, as_population):
    """An actor that rests changes nothing, though its gradient is 100 times the critic's."""
    loss = make_member(data, 0, **RULES, alpha=1e6)
    twin = make_member(data, 1, **RULES, alpha=1e6)
    if as_population:
        options = {"lr": 1.0, "clip_grad_norm": 0.5, **rhythm}
        learner, rows = (
            PopulationLearner({"a": loss, "b": twin}, **options),
            PopulationBuffer(data.data, batch_size=12, seeds=(0, 1)),
        )
        norm = learner._gradient_norm
        learner.gradients = learner._make_gradients(compiled=False)
        learner.gradients(rows.sample())
        resting = {"actor"}
        before = norm(resting)
        clipped = {
            key: value.grad.clone() for key, value in learner.population.tensors().items() if value.grad is not None
        }
        others = [grad[0] for key, grad in clipped.items() if not key.startswith("actor")]
        assert (before["grad_norm"] > 100 * before["grad_norm_qvalue"]).all()
    else:
        learner = Learner(loss, optimizer=torch.optim.SGD(loss.parameters(), lr=1.0), clip_grad_norm=0.5, **rhythm)
        start = {key: value.clone() for key, value in loss.named_parameters()}
        metrics = learner.step(data.replay_buffer(batch_size=12, seed=0).sample())
        assert metrics["grad_norm"] > 100 * metrics["grad_norm_qvalue"]
        others = [value - start[key] for key, value in loss.named_parameters() if not key.startswith("actor")]
        assert all(torch.equal(value, start[key]) for key, value in loss.named_parameters() if key.startswith("actor"))
    length = torch.stack([each.detach().norm() for each in others]).norm()
    assert length.item() == pytest.approx(0.5, rel=1e-4)
