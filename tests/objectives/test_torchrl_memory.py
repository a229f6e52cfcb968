"""Losses of networks with TorchRL's memory, which reads the batch's last dimension as time."""

from __future__ import annotations

import pytest
import torch
from memory_toys import end_episode, make_sequences
from objective_toys import CONTINUOUS, DISCRETE
from tensordict import TensorDict
from torch import Tensor
from torchrl.modules import GRUModule, LSTMModule, set_recurrent_mode
from torchrl.objectives import SoftUpdate
from torchrl_toys import ACTION, OBSERVATION, remembering_actor, remembering_critic

from torchrl_marl_offline.core.layout import IS_INIT, MASK
from torchrl_marl_offline.modules import make_critic
from torchrl_marl_offline.objectives import SARSA, Cloning, OfflineMARLLoss
from torchrl_marl_offline.objectives.action_distributions import mode_of
from torchrl_marl_offline.training import Learner

MEMORIES = {"GRU": (GRUModule, ("h",)), "LSTM": (LSTMModule, ("h", "c"))}
every_memory = pytest.mark.parametrize(("kind", "hidden"), MEMORIES.values(), ids=MEMORIES)


def of_critic(kind: type, *hidden: str) -> OfflineMARLLoss:
    torch.manual_seed(0)
    loss = OfflineMARLLoss(None, remembering_critic(kind, *hidden), value_learning=SARSA(), extraction=None)
    loss.updater = SoftUpdate(loss, tau=0.5)
    return loss


def of_actor(kind: type, *hidden: str) -> OfflineMARLLoss:
    torch.manual_seed(0)
    actor = remembering_actor(kind, *hidden, spec=DISCRETE)
    return OfflineMARLLoss(actor, None, value_learning=None, extraction=Cloning())


def sequences(*shape: int) -> TensorDict:
    return make_sequences(CONTINUOUS, *shape, dtype=torch.float32)


def value_of(loss: OfflineMARLLoss, batch: TensorDict) -> Tensor:
    return loss(batch.clone())["loss_qvalue"].detach()


@pytest.mark.fault("4.8")
@every_memory
def test_values_and_policies_read_time_also_where_the_loss_is_not_called(kind, hidden) -> None:
    loss, batch = of_critic(kind, *hidden), end_episode(sequences(2, 6), (slice(None), 2))
    found = loss.qvalue(batch)
    parts = [loss.qvalue(part) for part in (batch[:, :3], batch[:, 3:])]  # memory starts anew behind the end
    torch.testing.assert_close(found, torch.cat(parts, 1))
    network, inputs = loss.qvalue_network, TensorDict({key: batch[key] for key in (OBSERVATION, ACTION)}, [2, 6])
    inputs[IS_INIT] = torch.tensor([1, 0, 0, 1, 0, 0], dtype=torch.bool).expand(2, 6).unsqueeze(-1)
    with torch.no_grad(), set_recurrent_mode(True), loss.qvalue_network_params.to_module(network):
        torch.testing.assert_close(found, network(inputs)["state_action_value"])
    other = batch.clone()
    other[OBSERVATION][:, 0] += 1.0
    changed = (loss.qvalue(other) != found).any(-1)
    assert changed[:, :3].all() and not changed[:, 3:].any()


@pytest.mark.fault("4.8")
def test_policies_are_asked_without_an_action() -> None:
    loss, batch = of_actor(GRUModule, "h"), make_sequences(DISCRETE, 2, 4, dtype=torch.float32)
    mode = loss.policy_action(batch)
    assert torch.equal(mode, loss.policy_action(batch.exclude(ACTION)))
    assert torch.equal(mode, mode_of(loss.batch(batch).policy))
    scores = loss.batch(batch).policy.logits
    batch[OBSERVATION][:, 0] += 5.0
    assert (loss.batch(batch).policy.logits != scores).any(-1).all()


@pytest.mark.fault("4.8")
@every_memory
def test_the_burn_in_is_seen_and_what_is_no_number_is_not(kind, hidden) -> None:
    loss, batch = of_critic(kind, *hidden), sequences(2, 6)
    batch[MASK] = torch.ones(2, 6, dtype=torch.bool)
    batch[MASK][:, :2] = False
    before = value_of(loss, batch)
    seen = batch.clone()
    seen[OBSERVATION][:, 0] += 1.0
    assert value_of(loss, seen) != before
    unread = batch.clone()
    unread["next", "agents", "reward"][:, :2] = 100.0
    torch.testing.assert_close(value_of(loss, unread), before)
    for part in (unread, unread["next"]):
        part[OBSERVATION][:, 0] = torch.nan
    assert value_of(loss, unread).isfinite()


@pytest.mark.fault("4.8")
@every_memory
def test_copies_before_the_beginning_are_forgotten_by_values_and_next_values(kind, hidden) -> None:
    loss, batch = of_critic(kind, *hidden), sequences(2, 4)
    batch[MASK] = torch.ones(2, 4, dtype=torch.bool)
    batch[IS_INIT] = torch.tensor([1, 0, 0, 0], dtype=torch.bool).expand(2, 4).unsqueeze(-1).clone()
    padded = torch.cat([batch[:, :1], batch[:, :1], batch], 1)
    padded[IS_INIT][:, :2] = False
    padded[MASK][:, :2] = False
    torch.testing.assert_close(value_of(loss, padded), value_of(loss, batch))


@pytest.mark.fault("4.8")
@every_memory
def test_next_values_know_nothing_of_an_earlier_episode_whatever_a_batch_says(kind, hidden) -> None:
    """A collector's ("next", "is_init") is false everywhere."""
    loss, batch = of_critic(kind, *hidden), end_episode(sequences(2, 6), (slice(None), 2), terminated=False)
    batch[IS_INIT] = torch.zeros(2, 6, 1, dtype=torch.bool)
    batch["next", IS_INIT] = torch.zeros(2, 6, 1, dtype=torch.bool)
    parts = [value_of(loss, part) for part in (batch[:, :3], batch[:, 3:])]
    torch.testing.assert_close(value_of(loss, batch), torch.stack(parts).mean())


@pytest.mark.fault("4.8")
@every_memory
def test_rows_that_are_no_steps_of_episodes_are_refused(kind, hidden) -> None:
    batch = sequences(2, 6)
    for wrong in (batch[:, torch.tensor([1, 0, 2, 3, 4, 5])], batch[:, 0]):
        with pytest.raises(ValueError, match=r"rows 0 and 1 of the batch are not consecutive .*: sample sequences"):
            of_critic(kind, *hidden)(wrong)
    with pytest.raises(ValueError, match="needs steps of episodes, not a single one: sample sequences"):
        of_critic(kind, *hidden)(batch[0, 0])


@pytest.mark.fault("4.8")
@pytest.mark.parametrize(
    "is_init",
    [torch.zeros(2, 6, 1), torch.zeros(2, 6, 3, dtype=torch.bool), torch.zeros(2, 6, 1, dtype=torch.int64)],
    ids=["float", "agents", "int"],
)
@pytest.mark.parametrize("of_next", [False, True])
def test_beginnings_of_another_kind_are_refused_by_name(is_init: Tensor, *, of_next: bool) -> None:
    ours = make_critic(CONTINUOUS, decomposition="independent", hidden=(4,), memory="gru", memory_size=4)
    batch = sequences(2, 6)
    batch["next", "agents", "action"] = batch[ACTION]
    (batch["next"] if of_next else batch)[IS_INIT] = is_init
    for critic in (ours, remembering_critic(GRUModule, "h")):
        loss = OfflineMARLLoss(None, critic, value_learning=SARSA(), extraction=None)
        name = r"next\.is_init" if of_next else "is_init"
        with pytest.raises(ValueError, match=rf"^{name} must be bools \[2, 6, 1\]; the batch has"):
            loss.qvalue_loss(batch)


@pytest.mark.fault("4.8")
@every_memory
def test_ensembles_that_cannot_be_computed_side_by_side_are_refused_when_they_are_made(kind, hidden) -> None:
    def make(count: int, **options: bool) -> OfflineMARLLoss:
        critics = [remembering_critic(kind, *hidden) for _ in range(count)]
        return OfflineMARLLoss(None, critics, value_learning=SARSA(), extraction=None, **options)

    with pytest.raises(ValueError, match=r"side by side by torch.vmap, which torch's GRU and LSTM cannot be; give dea"):
        make(2)
    with pytest.raises(ValueError, match="side by side"):
        OfflineMARLLoss(
            None, remembering_critic(kind, *hidden), value_learning=SARSA(), extraction=None, num_qvalue_nets=2
        )
    loss, batch = make(2, deactivate_vmap=True), sequences(2, 4)
    assert loss.team.action_value(batch, batch[ACTION]).total.shape == (2, 4, 1, 2)


@pytest.mark.fault("4.8")
@every_memory
@pytest.mark.parametrize("compile", ["on", {"mode": "default"}], ids=str)
def test_compiling_is_refused_when_the_learner_is_made(kind, hidden, compile) -> None:
    loss = of_actor(kind, *hidden)
    with pytest.raises(
        ValueError, match="look at where episodes begin, which nothing compiled can; give compile='off'"
    ):
        Learner(loss, lr=1e-3, compile=compile)
    batch = make_sequences(DISCRETE, 2, 4, dtype=torch.float32)
    assert Learner(loss, lr=1e-3, compile="auto").step(batch)["loss_actor"].isfinite()
