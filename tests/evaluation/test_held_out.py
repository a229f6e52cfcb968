from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from population_toys import make_data
from tensordict import TensorDict
from torch import nn
from torchrl.objectives import LossModule

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.data import from_arrays
from torchrl_marl_offline.evaluation import IllegalActionError, evaluate_held_out
from torchrl_marl_offline.evaluation.held_out import discounted_returns
from torchrl_marl_offline.modules import make_actor, make_critic
from torchrl_marl_offline.objectives import TDLoss


def make_dataset(*, discrete: bool = True, **extra) -> SimpleNamespace:
    """Two episodes of 3 and 2 steps, 2 agents; the first terminates, the second is cut off."""
    reward = torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 4.0], [1.0, 1.0], [5.0, 7.0]])
    action = torch.tensor([[0, 2], [0, 0], [2, 2], [0, 2], [2, 0]])
    if not discrete:
        action = action.float().unsqueeze(-1)
    agents = {"observation": torch.zeros(5, 2, 1), "action": action} | extra
    data = TensorDict(
        {
            "agents": TensorDict(agents, [5, 2]),
            "next": TensorDict(
                {
                    "agents": TensorDict({"reward": reward.unsqueeze(-1)}, [5, 2]),
                    "terminated": torch.tensor([0, 0, 1, 0, 0]).bool().unsqueeze(-1),
                },
                [5],
            ),
            "collector": {"mask": torch.tensor([True, True, True, True, False])},
        },
        [5],
    )
    spec = SimpleNamespace(discrete=discrete)
    return SimpleNamespace(data=data, spec=spec, episode_lengths=torch.tensor([3, 2]))


def always_two(tensordict):
    assert ("agents", "action") not in tensordict.keys(include_nested=True), "the answer must not be shown"
    return tensordict.set(("agents", "action"), torch.full((*tensordict.batch_size, 2), 2))


def test_discounted_returns_by_hand():
    reward = torch.tensor([1.0, 0.0, 2.0, 1.0, 5.0])
    assert discounted_returns(reward, torch.tensor([3, 2]), 0.5).tolist() == [1.5, 1.0, 2.0, 3.5, 5.0]
    both = discounted_returns(torch.stack([reward, 2 * reward], -1), torch.tensor([3, 2]), 0.5)
    assert both[:, 1].tolist() == [3.0, 2.0, 4.0, 7.0, 10.0]


def test_agreement_by_hand_and_the_masked_row_does_not_count():
    # rows 0-3: agent 0 agrees in row 2, agent 1 in rows 0, 2 and 3
    result = evaluate_held_out(always_two, make_dataset(), batch_size=2)
    assert result.rows == 4
    assert result.agreement == pytest.approx(4 / 8)
    assert result.agreement_per_agent.tolist() == pytest.approx([1 / 4, 3 / 4])
    assert result.checked_actions == 0
    assert result.agreement_choice is None
    assert result.calibration is None


def test_dead_agents_and_forced_actions():
    alive = torch.tensor([[1, 1], [1, 0], [1, 0], [0, 1], [1, 1]]).bool()
    mask = torch.ones(5, 2, 3, dtype=torch.bool)
    mask[0, 1] = torch.tensor([False, False, True])  # agent 1 has no choice in row 0
    result = evaluate_held_out(always_two, make_dataset(mask=alive, action_mask=mask))
    # alive: agent 0 in rows 0, 1, 2 (agrees in 2); agent 1 in rows 0, 3 (agrees in both)
    assert result.agreement == pytest.approx(3 / 5)
    assert result.agreement_per_agent.tolist() == pytest.approx([1 / 3, 1.0])
    assert result.agreement_choice == pytest.approx(2 / 4)
    assert result.checked_actions == 2 * 5 * 2
    assert result.summary()["illegal_actions"] == 0


def test_an_illegal_proposal_raises():
    mask = torch.ones(5, 2, 3, dtype=torch.bool)
    mask[3, 0, 2] = False
    with pytest.raises(
        IllegalActionError, match=r"1 illegal actions out of 10; the first is action 2 of agent 0 in row"
    ):
        evaluate_held_out(always_two, make_dataset(action_mask=mask))


def test_continuous_actions_are_compared_by_absolute_error():
    result = evaluate_held_out(
        lambda td: td.set(("agents", "action"), torch.ones(*td.batch_size, 2, 1)), make_dataset(discrete=False)
    )
    assert result.error == pytest.approx(1.0)  # every recorded action is 0 or 2
    assert result.agreement is None


def test_calibration_of_a_team_by_hand():
    # Team returns at gamma 0.5 of the rows that count: 2.75, 1.5, 3, 4
    returns = torch.tensor([2.75, 1.5, 3.0, 4.0, 6.0])
    result = evaluate_held_out(
        always_two, make_dataset(), qvalue=lambda td: 2 * returns.unsqueeze(-1) + 1, gamma=0.5, bins=2
    ).calibration
    assert result.correlation == pytest.approx(1.0)
    assert result.slope == pytest.approx(0.5)
    assert result.bias == pytest.approx(returns[:4].mean().item() + 1)
    assert result.table.tolist() == [[(4 + 6.5) / 2, (1.5 + 2.75) / 2, 2], [(7 + 9) / 2, 3.5, 2]]
    assert result.truncated == pytest.approx(1 / 4)


def test_team_reward_sum_and_values_of_each_agent():
    double = torch.tensor([5.5, 3.0, 6.0, 8.0, 12.0])
    summed = evaluate_held_out(
        always_two, make_dataset(), qvalue=lambda td: double, gamma=0.5, team_reward="sum"
    ).calibration
    assert summed.bias == pytest.approx(0.0)
    own = torch.tensor([[1.5, 4.0], [1.0, 2.0], [2.0, 4.0], [3.5, 4.5], [5.0, 7.0]])
    each = evaluate_held_out(always_two, make_dataset(), qvalue=lambda td: own.unsqueeze(-1), gamma=0.5).calibration
    assert each.bias == pytest.approx(0.0)
    assert each.slope == pytest.approx(1.0)
    constant = evaluate_held_out(always_two, make_dataset(), qvalue=lambda td: torch.ones(5)).calibration
    assert math.isnan(constant.correlation)
    with pytest.raises(ValueError, match="1 or 2 values a row, got 3"):
        evaluate_held_out(always_two, make_dataset(), qvalue=lambda td: torch.ones(5, 3))


def test_a_loss_stands_for_its_actor():
    from tensordict.nn import TensorDictModule

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.choice = nn.Parameter(torch.tensor(2.0))

        def forward(self, observation):
            return self.choice.long().expand(observation.shape[:-1])

    class ActorLoss(LossModule):
        actor_network: TensorDictModule
        actor_network_params: nn.Module
        target_actor_network_params: nn.Module

        def __init__(self):
            super().__init__()
            actor = TensorDictModule(Constant(), in_keys=[("agents", "observation")], out_keys=[("agents", "action")])
            self.convert_to_functional(actor, "actor_network", create_target_params=False)

    assert evaluate_held_out(ActorLoss(), make_dataset()).agreement == pytest.approx(4 / 8)


@pytest.mark.parametrize("batch_size", [4096, 8])
def test_a_policy_with_memory_goes_along_the_episodes(batch_size: int) -> None:
    """Episodes of unequal lengths: what is proposed is what the loss's one pass over time says."""
    lengths = torch.tensor([3, 6, 1, 4])
    ends = torch.zeros(14, dtype=torch.bool)
    ends[lengths.cumsum(0) - 1] = True
    torch.manual_seed(0)
    dataset = from_arrays(
        observations=torch.randn(14, 2, 3), actions=torch.rand(14, 2, 1), rewards=torch.zeros(14, 2), terminals=ends
    )
    rules = {"memory": "lstm", "memory_size": 4, "hidden": (8,), "decomposition": "mixer"}
    loss = make_loss(dataset.spec, **rules)
    found = evaluate_held_out(loss, dataset, qvalue=loss.qvalue, batch_size=batch_size)
    mode = loss.policy_action(dataset.data)
    error = (mode - dataset.data["agents", "action"]).abs().mean().item()
    assert found.error == pytest.approx(error, rel=1e-5)
    assert found.calibration is not None


@pytest.mark.fault("3.18")
def test_values_that_remember_see_whole_episodes_where_the_policy_does_not() -> None:
    data = make_data(discrete=True)
    critic = make_critic(data.spec, decomposition="independent", hidden=(4,), memory="gru", memory_size=4)
    loss = TDLoss(make_actor(data.spec, hidden=(4,)), critic)
    found = [
        evaluate_held_out(loss, data, qvalue=loss.qvalue, gamma=0.9, batch_size=size).calibration for size in (3, 1000)
    ]
    assert found[0].bias == pytest.approx(found[1].bias, rel=1e-5)
    torch.testing.assert_close(found[0].table, found[1].table)
