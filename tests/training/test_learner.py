"""One training step: in a loop of one's own it is what a Trainer makes of it, and its state brings it back."""

from __future__ import annotations

import inspect

import pytest
import torch
from population_toys import (
    SEEDS,
    largest_difference,
    lone_tensors,
    make_alone,
    make_data,
    make_member,
    make_population,
    member_tensors,
)
from training_toys import RegressionLoss, make_buffer, make_trainer, weights

from torchrl_marl_offline.training import Learner, PopulationBuffer, PopulationLearner, Trainer

RULES = {"decomposition": "vdn", "value_learning": "td", "extraction": "brac"}


@pytest.fixture(scope="module")
def data():
    return make_data(discrete=True)


def test_a_loop_of_ones_own_equals_the_trainers():
    trainer = make_trainer(steps=20, clip_grad_norm=0.5)
    trainer.train()
    other = make_trainer(steps=20, clip_grad_norm=0.5)  # seeds the generators, and makes the same loss and buffer
    metrics = [other.learner.step(other.buffer.sample()) for _ in range(20)]
    assert torch.equal(weights(trainer), weights(other))
    assert other.learner.updates == 20 and other.step == 0
    assert metrics[-1].keys() == {"loss_value", "value_abs", "grad_norm"}
    assert all(value.shape == () and not value.requires_grad for value in metrics[-1].values())


@pytest.mark.parametrize("compile", ["off", "auto"])
def test_compiling_is_chosen_by_a_trainer_alone(compile):
    learner = Learner(RegressionLoss(), compile=compile)
    learner.step(make_buffer().sample())
    assert type(learner.gradients).__name__ == "Gradients"


def test_a_learners_state_brings_it_back(data):
    def learner(rate: float = 1e-3) -> Learner:
        return Learner(make_member(data, 1, **RULES), lr=rate, actor_every=2)

    batches = [data.replay_buffer(batch_size=12, seed=seed).sample() for seed in range(6)]
    first, second = learner(), learner()
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        first.step(batch)
        if number == 2:
            state = torch.utils._pytree.tree_map(lambda v: v.clone() if torch.is_tensor(v) else v, first.state_dict())
    second.load_state_dict(state)
    assert second.updates == 3
    for number, batch in enumerate(batches[3:], 3):
        torch.manual_seed(number)
        second.step(batch)
    tensors = [dict(each.loss.named_parameters()) for each in (first, second)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    with pytest.raises(ValueError, match=r"lr was 0\.001 and is 0\.1 now"):
        learner(0.1).load_state_dict(state)


def test_a_populations_loop_equals_the_trainers_and_its_state_brings_it_back(data):
    trainer = make_population(data, (0, 1), rules=RULES, steps=6)
    trainer.train()

    def parts(at: int):
        made = make_population(data, (0, 1), rules=RULES, steps=6)
        for _ in range(at):
            made.learner.step(made.buffer.sample())
        return made

    half, whole = parts(3), parts(6)
    again = make_population(data, (0, 1), rules=RULES, steps=6)
    again.buffer.load_state_dict(half.buffer.state_dict())
    again.learner.load_state_dict(half.learner.state_dict())
    for _ in range(3):
        again.learner.step(again.buffer.sample())
    for member in (0, 1):
        expected = member_tensors(trainer, member)
        for each in (whole, again):
            assert largest_difference(member_tensors(each, member), expected) == 0
    alone = make_alone(data, 1, rules=RULES, steps=6)
    alone.train()
    assert largest_difference(member_tensors(again, 1), lone_tensors(alone)) <= 1e-6


def test_a_learner_and_its_buffer_must_be_of_one_kind(data):
    losses = {f"m{member}": make_member(data, member, **RULES) for member in (0, 1)}
    many, rows = PopulationBuffer(data.data, batch_size=12, seeds=SEEDS[:2]), data.replay_buffer(batch_size=12)
    with pytest.raises(ValueError, match="A PopulationBuffer is for a PopulationLearner"):
        Trainer(Learner(losses["m0"]), many, steps=2)
    with pytest.raises(ValueError, match=r"A population draws from a PopulationBuffer\(.* got a TensorDictReplayBuf"):
        Trainer(PopulationLearner(losses), rows, steps=2)
    with pytest.raises(ValueError, match="keep_best= is for one run"):
        Trainer(PopulationLearner(losses), many, steps=2, output="x", keep_best=("a", "b"))
    with pytest.raises(ValueError, match="logger= is for one run"):
        Trainer(PopulationLearner(losses), many, steps=2, logger=make_trainer().logger)


@pytest.mark.parametrize("option", ["lr", "optimizer", "compile", "members_at_once"])
def test_who_gives_an_option_of_the_step_to_the_run_is_told_where_it_belongs(option):
    with pytest.raises(TypeError, match=rf"{option}= belongs to the step: Trainer\(Learner\(loss, {option}="):
        Trainer(RegressionLoss(), make_buffer(), steps=2, **{option: 1})


def test_an_evaluator_may_finish_the_run():
    trainer = make_trainer(steps=40, eval_every=10)
    trainer.evaluators["enough"] = lambda: trainer.finish() if trainer.step == 20 else {"seen": 1.0}
    assert trainer.train().step == 20 and trainer.finished


def test_a_trainer_has_few_parameters():
    """What makes a step is the learner's."""
    of_trainer, of_learner = (inspect.signature(kind).parameters.keys() for kind in (Trainer, Learner))
    assert len(of_trainer) <= 17 and not (of_trainer & of_learner)
