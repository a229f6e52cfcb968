"""What would train nothing, or another loss, is refused before the first step and the first file."""

from __future__ import annotations

import pytest
import torch
from population_toys import make_data, make_member
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate
from trainers import trainer_for
from training_toys import RegressionLoss, make_buffer

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.data import from_arrays
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.training import Learner, PopulationBuffer, Trainer


def data_of(*, rows=6, agents=2, observation=3, action=2, discrete=False, **more):
    actions = torch.zeros(rows, agents, dtype=torch.int64) if discrete else torch.zeros(rows, agents, action)
    ends = torch.zeros(rows, dtype=torch.bool)
    ends[-1] = rows > 1
    options = {"n_actions": 3} if discrete else {}
    observations = torch.zeros(rows, agents, observation)
    arrays = {"observations": observations, "actions": actions, "rewards": torch.ones(rows), "terminals": ends}
    return from_arrays(**arrays, **options, **more)


def trainer_of(dataset, of=None, **settings):
    loss = make_loss((dataset if of is None else of).spec, hidden=(4,), **settings)
    buffer = make_replay_buffer(dataset.data, batch_size=4, seed=0, keys=loss.in_keys)
    return Trainer(loss, buffer, steps=2, progress=False)


def without_rows(dataset):
    dataset.data["collector", "mask"] = torch.zeros(len(dataset), dtype=torch.bool)
    return dataset


@pytest.mark.parametrize(
    ("dataset", "settings"),
    [
        (lambda: data_of(agent_mask=torch.zeros(6, 2, dtype=torch.bool)), {}),
        (lambda: without_rows(data_of()), {}),
        (lambda: data_of(rows=1), {}),  # cut off after its first row
        (lambda: data_of(rows=1), {"algorithm": "cloning"}),
    ],
)
def test_data_in_which_no_row_counts_are_refused_before_anything_is_written(tmp_path, dataset, settings):
    dataset = dataset()
    loss = make_loss(dataset.spec, hidden=(4,), **settings)
    buffer = make_replay_buffer(dataset.data, batch_size=4, seed=0, keys=loss.in_keys)
    with pytest.raises(ValueError, match="No row of the data counts: "):
        Trainer(loss, buffer, steps=2, output=tmp_path / "run", progress=False).train()
    assert not (tmp_path / "run").exists()


def test_a_rule_without_a_target_for_any_row_is_refused():
    dataset = data_of()
    dataset.data["collector", "has_next_action"] = torch.zeros(6, dtype=torch.bool)
    dataset.data["next", "terminated"] = torch.zeros(6, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="No row of the data counts"):
        trainer_of(dataset, value_learning="sarsa").train()
    assert trainer_of(dataset, value_learning="iql").train().step == 2


def test_a_batch_without_a_row_that_counts_is_no_obstacle():
    dataset = without_rows(data_of())
    dataset.data["collector", "mask"][3] = True  # the seed's first batch draws others
    trainer = trainer_of(dataset)
    drawn = [trainer.buffer.sample()["collector", "mask"].any().item() for _ in range(12)]
    assert not all(drawn) and trainer_of(dataset).train().step == 2


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"agents": 3}, "for 2 agents, the buffer's rows have 3"),
        ({"observation": 4}, "for 3 numbers in an observation, the buffer's rows have 4"),
        ({"action": 1}, "for 2 numbers in an action, the buffer's rows have 1"),
        ({"discrete": True}, "for continuous actions, the buffer's are discrete"),
        ({"state": torch.zeros(6, 5)}, "for 6 numbers in a state, the buffer's rows have 5"),
    ],
)
def test_a_loss_for_other_sizes_than_the_buffers_is_refused(other, sentence):
    with pytest.raises(ValueError, match=sentence):
        trainer_of(data_of(**other), of=data_of()).train()


@pytest.mark.parametrize("decomposition", ["mixer", "qplex", "centralized"])
def test_a_critic_for_another_size_of_the_state_is_refused_before_the_first_step(decomposition):
    options = {"of": data_of(), "decomposition": decomposition, "value_learning": "sarsa"}
    trainer = trainer_of(data_of(state=torch.zeros(6, 5)), **options)
    with pytest.raises(ValueError, match="for 6 numbers in a state, the buffer's rows have 5"):
        trainer.train()
    assert trainer.step == 0


def test_an_empty_buffer_is_refused():
    empty = TensorDictReplayBuffer(storage=LazyTensorStorage(4), batch_size=2)
    with pytest.raises(ValueError, match="The buffer is empty"):
        Trainer(RegressionLoss(), empty, steps=1, progress=False).train()


def test_an_optimizer_of_other_parameters_is_refused_and_one_of_some_is_told_of():
    loss, other = (make_member(make_data(), 0) for _ in range(2))
    buffer = make_replay_buffer(make_data().data, batch_size=4, seed=0, keys=loss.in_keys)
    with pytest.raises(ValueError, match="holds none of the loss's parameters"):
        Trainer(Learner(loss, optimizer=torch.optim.Adam(other.parameters())), buffer, steps=1, progress=False)
    actor = torch.optim.Adam(loss.actor_network_params.parameters())
    with pytest.warns(UserWarning, match="leaves out parameters of the loss that require gradients, of qvalue"):
        Trainer(Learner(loss, optimizer=actor), buffer, steps=1, progress=False)
    for parameter in loss.actor_network_params.parameters():
        parameter.requires_grad_(False)
    rest = torch.optim.Adam([parameter for parameter in loss.parameters() if parameter.requires_grad])
    Trainer(Learner(loss, optimizer=rest), buffer, steps=1, progress=False)  # what is frozen is meant to be left out


def test_a_target_updater_of_another_loss_is_refused():
    loss, other = RegressionLoss(), RegressionLoss()
    with pytest.raises(ValueError, match="target_updater belongs to another loss"):
        Trainer(Learner(loss, target_updater=SoftUpdate(other, tau=0.5)), make_buffer(), steps=1, progress=False)
    Trainer(Learner(loss, target_updater=SoftUpdate(loss, tau=0.5)), make_buffer(), steps=1, progress=False)


def population(losses, **options):
    buffer = PopulationBuffer(make_data().data, batch_size=4, seeds=range(len(losses)))
    return trainer_for(losses, buffer, steps=1, progress=False, **options)


def test_members_that_share_what_they_train_are_refused():
    loss, other = (make_member(make_data(), seed) for seed in range(2))
    with pytest.raises(
        ValueError, match=r"a and b share actor_network_params.*; members of a population have networks"
    ):
        population({"a": loss, "b": loss})
    first, second = (dict(each.named_parameters()) for each in (loss, other))
    name = next(name for name in first if name.startswith("actor_network"))
    second[name].data = first[name].data
    with pytest.raises(ValueError, match="a and b share actor_network_params"):
        population({"a": loss, "b": other})


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "a\nb", "a\0b", "x" * 300])
def test_a_members_name_that_is_no_folders_is_refused_before_anything_is_written(tmp_path, name):
    losses = {name: make_member(make_data(), 0), "b": make_member(make_data(), 1)}
    with pytest.raises(ValueError, match="A member becomes the name of a folder"):
        population(losses, output=tmp_path / "run")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"evaluators": {"a": 3}}, "evaluators must be a function, got 3."),
        ({"eval_at_start": "no"}, "eval_at_start must be True or False, got 'no'."),
        ({"progress": 1}, "progress must be True or False, got 1."),
    ],
)
def test_what_would_do_nothing_or_something_else_is_refused_where_it_is_given(options, sentence):
    with pytest.raises(ValueError) as error:
        trainer_for(RegressionLoss(), make_buffer(), **({"steps": 5, "progress": False} | options))
    assert str(error.value) == sentence
