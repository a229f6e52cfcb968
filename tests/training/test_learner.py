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

from torchrl_marl_offline.training import Learner, PopulationBuffer, PopulationLearner, Trainer, split_population

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
    with pytest.raises(ValueError, match="A RunLogger is of one run"):
        Trainer(PopulationLearner(losses), many, steps=2, logger=make_trainer().logger)


@pytest.mark.parametrize("option", ["lr", "optimizer", "compile", "members_at_once"])
def test_who_gives_an_option_of_the_step_to_the_run_is_told_where_it_belongs(option):
    with pytest.raises(TypeError, match=rf"{option}= belongs to the step: Trainer\(Learner\(loss, {option}="):
        Trainer(RegressionLoss(), make_buffer(), steps=2, **{option: 1})


@pytest.mark.parametrize("every", [1, 2])
def test_steps_before_the_run_count_for_what_waits(data, tmp_path, every):
    """A learner that has taken steps of its own goes on in its rhythm, also after the run was resumed."""

    def trainer(output) -> Trainer:
        torch.manual_seed(0)
        learner = Learner(make_member(data, 1, **RULES), lr=1e-3, actor_every=every)
        rows = data.replay_buffer(batch_size=12, seed=4)
        for _ in range(3):
            learner.step(data.replay_buffer(batch_size=12, seed=5).sample())
        return Trainer(learner, rows, steps=8, output=output, checkpoint_every=3, progress=False)

    whole = trainer(tmp_path / "a")
    whole.train()
    again = trainer(tmp_path / "b")
    assert again.learner.updates == 3
    again.resume(tmp_path / "a" / "checkpoints" / "checkpoint-000000000006.torchrl")
    assert (again.step, again.learner.updates) == (6, 9)
    again.train()
    assert largest_difference(lone_tensors(again), lone_tensors(whole)) == 0


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda loss, data: Trainer(loss, data, steps=1), r"a replay buffer, such as .*; got OfflineDataset\."),
        (lambda loss, data: Trainer(loss, None, steps=1), "a replay buffer, .*; got NoneType"),
        (lambda loss, data: Trainer({"a": loss}, make_buffer(), steps=1), "are for a PopulationLearner"),
        (lambda loss, data: Trainer(torch.nn.Linear(2, 2), make_buffer(), steps=1), "a LossModule, .*; got Linear"),
        (lambda loss, data: Trainer(Learner, make_buffer(), steps=1), "a LossModule, .*; got the class Learner"),
        (lambda loss, data: Learner(loss, optimizer=torch.optim.Adam), "optimizer must be .*; got the class Adam"),
        (lambda loss, data: Learner(loss, optimizer=5), "optimizer must be one of torch's, .*; got int"),
        (lambda loss, data: Learner(loss, target_updater=5), "target_updater must be one of TorchRL's, .*; got int"),
        (lambda loss, data: PopulationLearner([loss]), "A population is a mapping from members' names"),
        (lambda loss, data: PopulationLearner({3: loss}), "A population is a mapping from members' names, strings"),
        (lambda loss, data: Learner(loss).load_state_dict({}), "not the state of such a learner: it lacks 'learner'"),
        (lambda loss, data: Learner(loss).load_state_dict(None), "not the state of such a learner"),
        (lambda loss, data: split_population(make_trainer()), "There is nothing to split"),
        (lambda loss, data: make_trainer().finish(), r"finish\(\) is for evaluators"),
    ],
)
def test_what_is_of_another_kind_is_refused_where_it_is_given(data, made, said):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=said):
        made(RegressionLoss(), data)


@pytest.mark.parametrize("found", [5, "s", [1], {"step": 3}, {"a": torch.zeros(2)}, {"a": {"b": 1}}, {1: 2}])
def test_what_an_evaluator_cannot_return(found):
    trainer = make_trainer(steps=4, eval_every=2, evaluators={"odd": lambda: found})
    with pytest.raises(TypeError, match="The evaluator 'odd' must return numbers by name"):
        trainer.train()


def test_evaluators_of_a_population(data, capsys):
    def run(found):
        trainer = make_population(data, (0, 1), rules=RULES, steps=2, eval_every=2, progress=True)
        trainer.evaluators["odd"] = lambda: found
        trainer.train()
        return [logger.eval.rows for logger in trainer.loggers.values()]

    rows = run({"m0": {"a": 1.0, "b": torch.tensor(2.0)}, "m1": None})
    assert rows == [[{"step": 2, "evaluator": "odd", "a": 1.0, "b": 2.0}], []]
    assert len(run({"m0": {"a": 1.0}, "m1": {"b": 2.0}})) == 2  # nothing that all have
    for found in ({"zz": {"a": 1.0}}, {"a": 1.0}, 3):
        with pytest.raises(TypeError, match="The evaluator 'odd' of a population must return a mapping from its memb"):
            run(found)


def test_an_evaluator_may_finish_the_run():
    trainer = make_trainer(steps=40, eval_every=10)
    trainer.evaluators["enough"] = lambda: trainer.finish() if trainer.step == 20 else {"seen": 1.0}
    assert trainer.train().step == 20 and trainer.finished


def test_a_trainer_has_few_parameters():
    """What makes a step is the learner's."""
    of_trainer, of_learner = (inspect.signature(kind).parameters.keys() for kind in (Trainer, Learner))
    assert len(of_trainer) <= 17 and not (of_trainer & of_learner)
