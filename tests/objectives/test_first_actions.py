"""Indices that are none of the task's actions are refused at the first batch, where they count."""

from __future__ import annotations

import pytest
import torch
from objective_toys import DISCRETE, make_batch
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import make_actor, make_critic, make_loss
from torchrl_marl_offline.objectives import BehaviourCloning, SARSALoss

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
