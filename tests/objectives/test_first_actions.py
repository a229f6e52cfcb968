"""Indices that are none of the task's actions are refused at the first batch, where they count."""

from __future__ import annotations

import pytest
import torch
from objective_toys import DISCRETE, make_batch
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import make_actor, make_critic, make_loss
from torchrl_marl_offline.objectives import BehaviourCloning, OfflineMARLLoss, SARSALoss
from torchrl_marl_offline.training import Population
from torchrl_marl_offline.training.populations.population import PopulationGradients

ALGORITHMS = ("recipe", "brac", "cloning", "cql", "cfcql", "icq", "bcq")
LAST = DISCRETE.action_size - 1


def loss_of(algorithm: str):
    torch.manual_seed(0)
    loss = make_loss(DISCRETE, algorithm=algorithm, hidden=(8,))
    if algorithm != "cloning":
        SoftUpdate(loss, tau=0.1)
    return loss


def bad_batch(index: int, *, key=("agents", "action")):
    batch = make_batch(DISCRETE, 6)
    batch[key][3, 1] = index
    return batch


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("index", [LAST + 1, -1])
def test_of_every_algorithm(algorithm: str, index: int) -> None:
    loss = loss_of(algorithm)
    wanted = rf"agents.action has {index} at row 3 of agent 1, and the task's actions are 0 to {LAST}; mend the data"
    for _ in range(2):  # a refused batch is none that was looked at
        with pytest.raises(ValueError, match=wanted):
            loss(bad_batch(index))
    loss(make_batch(DISCRETE, 6))


def test_the_next_action_where_it_is_read() -> None:
    critic = make_critic(DISCRETE, decomposition="vdn", hidden=(8,))
    loss = SARSALoss(critic)
    SoftUpdate(loss, tau=0.1)
    batch = bad_batch(LAST + 1, key=("next", "agents", "action"))
    batch["next", "terminated"][:] = False
    with pytest.raises(ValueError, match=rf"next.agents.action has {LAST + 1} at row 3 of agent 1"):
        loss(batch)
    batch["next", "terminated"][3] = True  # nothing is bootstrapped there
    loss(batch)


def test_a_placeholder_that_does_not_count() -> None:
    batch = bad_batch(-1)
    batch["collector", "mask"] = torch.arange(6) != 3
    loss_of("cql")(batch)
    batch = bad_batch(-1)
    batch["agents", "mask"] = torch.ones(6, DISCRETE.n_agents, dtype=torch.bool)
    batch["agents", "mask"][3, 1] = False
    loss_of("cql")(batch)


def test_with_masks_of_legal_actions_their_number_counts() -> None:
    batch = bad_batch(LAST + 1)
    batch["agents", "action_mask"] = torch.ones(6, DISCRETE.n_agents, LAST + 1, dtype=torch.bool)
    actor = make_actor(DISCRETE, hidden=(8,))
    del actor.build  # as a network of one's own
    with pytest.raises(ValueError, match=f"has {LAST + 1} at row 3 of agent 1"):
        BehaviourCloning(actor)(batch)


def gradients_of(losses: dict[str, OfflineMARLLoss], *, compiled: bool) -> PopulationGradients:
    generators = [torch.Generator().manual_seed(number) for number in range(len(losses))]
    options = {"compiled": compiled, "backend": None, "members_at_once": 1}
    return PopulationGradients(Population(losses), generators=generators, **options)


@pytest.mark.parametrize("compiled", [False, True])
def test_every_member_of_a_population_is_looked_at(compiled: bool) -> None:
    gradients = gradients_of({name: loss_of("brac") for name in ("first", "second")}, compiled=compiled)
    before = {name: tensor.clone() for name, tensor in gradients.population.tensors().items()}
    good = make_batch(DISCRETE, 6)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"agents.action has {LAST + 1} at row 1, 3 of agent 1"):
            gradients(torch.stack([good, bad_batch(LAST + 1)]))
    metrics = gradients(torch.stack([good, good]))
    assert torch.isfinite(metrics["loss_actor"]).all()
    after = gradients.population.tensors()
    assert all(torch.equal(before[name], after[name]) for name in before)  # to look changes nothing


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_of_a_population_that_are_no_series_are_refused(compiled: bool) -> None:
    losses = {name: loss_of("recipe") for name in ("first", "second")}
    for loss in losses.values():
        loss.make_value_estimator("tdlambda", gamma=0.9, lmbda=0.9)
    batch = make_batch(DISCRETE, 6)
    batch["next", "done"][:] = False
    batch["next", "terminated"][:] = False
    with pytest.raises(ValueError, match="rows 0 and 1 of the batch are not consecutive steps"):
        gradients_of(losses, compiled=compiled)(torch.stack([batch, batch]))
