"""Regression targets and the critic's term by numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from objective_toys import CONTINUOUS, Case, gradients, make_batch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.data import LazyTensorStorage, MultiStep, TensorDictReplayBuffer
from torchrl.modules import RunningValueNorm, VDNMixer
from torchrl.objectives import SoftUpdate, ValueEstimators
from torchrl.objectives.value import TD0Estimator, TDLambdaEstimator
from torchrl.objectives.value.functional import td1_return_estimate, td_lambda_return_estimate

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.modules import ScaleInvariantValueNorm, SumMixer, make_actor, make_critic, make_value
from torchrl_marl_offline.objectives import IQL, SARSA, IQLLoss, OfflineMARLLoss, SARSALoss

LOCAL, TEAM = ("agents", "state_action_value"), "state_action_value"


class TwoHeads(nn.Module):
    """Q = (o + u, 2 o + u) for observations and actions of width one."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return observation * self.slope + action  # [*B, n, 1] -> [*B, n, 2]


def table_critic(*, team: bool) -> TensorDictModule:
    local = TensorDictModule(TwoHeads(), in_keys=[("agents", "observation"), ("agents", "action")], out_keys=[LOCAL])
    if not team:
        return local
    return TensorDictSequential(local, TensorDictModule(SumMixer(2), in_keys=[LOCAL], out_keys=[TEAM]))


def table_batch() -> TensorDict:
    """Two rows of two agents; the first goes on, the second terminates."""

    def column(*rows: tuple[float, float]) -> Tensor:
        return torch.tensor(rows).unsqueeze(-1)

    agents = TensorDict({"observation": column((1.0, 2.0), (3.0, 0.0)), "action": column((0.5, 0.0), (0.0, 1.0))}, [2])
    successor = {
        "agents": {
            "observation": column((1.0, 1.0), (9.0, 9.0)),
            "action": column((1.0, -1.0), (9.0, 9.0)),
            "reward": column((1.0, 3.0), (2.0, 4.0)),
        },
        "terminated": torch.tensor([[False], [True]]),
        "done": torch.tensor([[False], [True]]),
    }
    return TensorDict({"agents": agents, "next": successor}, [2])


def sarsa(*, team: bool, **options) -> SARSALoss:
    loss = SARSALoss(table_critic(team=team), **options).make_value_estimator(gamma=0.5)
    SoftUpdate(loss, tau=0.1)
    return loss


# Local values: row 0: (1.5, 2.5), (2, 4); row 1: (3, 6), (1, 1). Next, row 0: (2, 3), (0, 1).
# Independent targets: row 0: 1 + .5 * 2 = 2 and 3 + .5 * 0 = 3; row 1: 2 and 4.
# Team values: row 0: (3.5, 6.5), next (2, 4); row 1: (4, 7). Mean rewards 2 and 3: targets 2 + .5 * 2 = 3 and 3.


def test_independent_agents_regress_on_their_own_targets() -> None:
    loss = sarsa(team=False, reduction="none")
    batch = table_batch()
    # heads summed: row 0: .25 + .25, 1 + 1; row 1: 1 + 16, 9 + 9; then the mean over agents
    assert_close(loss(batch)["loss_qvalue"], torch.tensor([1.25, 17.5]))
    assert_close(batch["td_error"], torch.tensor([0.75, 2.0]))  # minimum head: .5, 1 and 1, 3
    only_min = sarsa(team=False, reduction="none", heads="min")
    assert_close(only_min(batch)["loss_qvalue"], torch.tensor([0.625, 5.0]))


def test_a_team_regresses_on_one_target() -> None:
    batch = table_batch()
    assert_close(sarsa(team=True, reduction="none")(batch)["loss_qvalue"], torch.tensor([0.25 + 12.25, 1.0 + 16.0]))
    assert_close(sarsa(team=True, reduction="none", heads="min")(batch)["loss_qvalue"], torch.tensor([0.25, 1.0]))
    # summed rewards 4 and 6: targets 4 + .5 * 2 = 5 and 6
    summed = sarsa(team=True, reduction="none", team_reward="sum")
    assert_close(summed(batch)["loss_qvalue"], torch.tensor([2.25 + 2.25, 4.0 + 1.0]))
    batch["next", "team"] = torch.tensor([[4.0], [6.0]])
    given = sarsa(team=True, reduction="none")
    given.set_keys(reward="team")
    assert_close(given(batch)["loss_qvalue"], torch.tensor([4.5, 5.0]))


def test_metrics() -> None:
    output = sarsa(team=True)(table_batch())
    expected = {"qvalue": 3.75, "qvalue_abs": 3.75, "td_target": 3.0, "td_error_abs": 0.75, "loss_qvalue": 14.75}
    assert {key: pytest.approx(float(value.detach())) for key, value in output.items()} == expected


def test_heads_differ_in_who_is_trained() -> None:
    batch = table_batch()
    grads = {
        h: gradients(sarsa(team=True, heads=h), batch)["qvalue_network_params.module.slope"] for h in ("all", "min")
    }
    # d/dw1: mean of 2 * (.5) * 3 and 2 * 1 * 3; d/dw2: mean of 2 * 3.5 * 3 and 2 * 4 * 3
    assert_close(grads["all"], torch.tensor([4.5, 22.5]))
    assert_close(grads["min"], torch.tensor([4.5, 0.0]))


def test_value_normalization_uses_the_minimum_head() -> None:
    # minimum heads 3.5 and 4: mu 3.75, sigma .25
    for heads, expected in {"min": (0.25 + 1.0) / 2, "all": 14.75}.items():
        output = sarsa(team=True, heads=heads, value_norm=ScaleInvariantValueNorm(epsilon=0.0))(table_batch())
        assert_close(output["loss_qvalue"], torch.tensor(expected * 16.0))
        assert_close(output["value_norm_scale"], torch.tensor(0.25))


def test_a_torchrl_value_norm_serves_too() -> None:
    norm = RunningValueNorm(shape=1)
    loss = sarsa(team=True, value_norm=norm)
    batch = table_batch()
    batch["collector", "mask"] = torch.tensor([True, False])
    output = loss(batch)
    assert output["loss_qvalue"].isfinite() and output["value_norm_scale"] > 0
    assert_close(norm.denormalize(norm.normalize(torch.tensor([[2.0]]))), torch.tensor([[2.0]]))


def test_rows_whose_next_action_is_unknown_count_only_if_they_terminate() -> None:
    batch = table_batch()
    batch["collector", "has_next_action"] = torch.tensor([False, False])
    unreduced = sarsa(team=True, reduction="none", value_norm=ScaleInvariantValueNorm(epsilon=1.0))(batch)
    assert unreduced["loss_qvalue"][0] == 0
    # only the second row counts, also in the statistics: mu 4, sigma 0 + 1
    output = sarsa(team=True, value_norm=ScaleInvariantValueNorm(epsilon=1.0))(batch)
    expected = {"loss_qvalue": 17.0, "qvalue": 4.0, "td_target": 3.0, "td_error_abs": 1.0, "value_norm_scale": 1.0}
    for key, value in expected.items():
        assert float(output[key].detach()) == pytest.approx(value), key
    batch["priority_weight"] = torch.tensor([3.0, 2.0])
    assert_close(sarsa(team=True)(batch)["loss_qvalue"], torch.tensor(17.0))
    batch["next", "agents", "action"][0] = 1e6  # a placeholder
    assert_close(sarsa(team=True)(batch)["loss_qvalue"], torch.tensor(17.0))


def test_implicit_q_learning_by_hand() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.5))

        def forward(self, observation: Tensor) -> Tensor:
            return observation * self.slope

    value = TensorDictModule(Half(), in_keys=[("agents", "observation")], out_keys=[("agents", "state_value")])
    loss = IQLLoss(table_critic(team=True), value, expectile=0.75, reduction="none").make_value_estimator(gamma=0.5)
    SoftUpdate(loss, tau=0.1)
    output = loss(table_batch())
    # V: 1.5 and 1.5; next 1. Targets for Q: 2 + .5 and 3. Q: (3.5, 6.5), (4, 7)
    assert_close(output["loss_qvalue"], torch.tensor([1.0 + 16.0, 1.0 + 16.0]))
    assert_close(output["loss_value"], torch.tensor([0.75 * 4.0, 0.75 * 6.25]))
    loss.expectile = 0.25
    assert_close(loss(table_batch())["loss_value"], torch.tensor([0.25 * 4.0, 0.25 * 6.25]))


def test_several_steps_to_the_next_observation() -> None:
    batch = table_batch()
    batch["steps_to_next_obs"] = torch.tensor([[3], [1]])
    # targets: 2 + .125 * 2 = 2.25 and 3
    found = sarsa(team=True, reduction="none")(batch)["loss_qvalue"]
    assert_close(found, torch.tensor([1.25**2 + 4.25**2, 17.0]))


def test_multi_step_returns_from_a_window() -> None:
    case = Case("vdn", "td", "awr")
    loss = case.build()
    window = make_batch(case.spec, 1, 5)
    for key in ("done", "terminated", "truncated"):
        window["next", key] = torch.zeros(1, 5, 1, dtype=torch.bool)
    window["next", "reward"] = window["next", "agents", "reward"].mean(-2)
    # MultiStep looks for a reward and a done at the root
    stepped = MultiStep(gamma=0.9, n_steps=2)(window.clone())
    loss.set_keys(reward="reward")
    loss(stepped.reshape(-1))
    with torch.no_grad():
        next_td = window["next"][:, 1]
        bootstrap = loss.team.action_value(next_td, loss.policy_action(next_td), target=True).total_min.squeeze(-1)
    reward = window["next", "reward"]
    expected = reward[:, 0] + 0.9 * reward[:, 1] + 0.81 * bootstrap
    q = loss.qvalue(window[:, 0])
    rows = stepped.reshape(-1)
    loss(rows)
    assert_close(rows["td_error"][:1], (q - expected).abs().squeeze(-1).detach())


def consecutive(batch: TensorDict) -> TensorDict:
    """Let the rows ``[B, T]`` of an episode follow on each other."""
    for key in (("agents", "observation"), ("agents", "action"), "state"):
        here, ahead = batch[key], batch["next"][key]
        ahead[:, :-1] = torch.where(
            batch["next", "done"][:, :-1].view(-1, here.shape[1] - 1, *[1] * (here.ndim - 2)),
            ahead[:, :-1],
            here[:, 1:],
        )
    return batch


def windows() -> TensorDict:
    batch = make_batch(CONTINUOUS, 2, 4)
    done = torch.zeros(2, 4, 1, dtype=torch.bool)
    done[0, 1] = done[:, 3] = True
    batch["next", "done"], batch["next", "terminated"] = done, done.clone()
    batch["next", "terminated"][1, 3] = False  # a time limit
    return consecutive(batch)


@pytest.mark.parametrize("decomposition", ["mixer", "independent"])
@pytest.mark.parametrize("kind", ["TD0", "TD1", "TDLambda"])
def test_targets_over_time(decomposition: str, kind: str) -> None:
    case = Case(decomposition, "sarsa", "awr")
    loss = case.build()
    options = {"gamma": 0.8} | ({"lmbda": 0.6} if kind == "TDLambda" else {})
    assert loss.make_value_estimator(getattr(ValueEstimators, kind), **options) is loss
    batch = windows()
    with torch.no_grad():
        next_value = loss.team.action_value(batch["next"], batch["next", "agents", "action"], target=True).total_min
    reward = batch["next", "agents", "reward"]
    reward = reward if decomposition == "independent" else reward.mean(-2, keepdim=True)  # [B, T, k, 1]
    # by a loop backwards in time
    expected = torch.empty_like(next_value)
    carried = next_value[:, -1]
    for t in reversed(range(4)):
        end = batch["next", "done"][:, t].unsqueeze(-1)
        alive = (~batch["next", "terminated"][:, t]).unsqueeze(-1)
        lmbda = {"TD0": 0.0, "TD1": 1.0, "TDLambda": 0.6}[kind]
        mixed = torch.where(end, next_value[:, t], (1 - lmbda) * next_value[:, t] + lmbda * carried)
        carried = expected[:, t] = reward[:, t] + 0.8 * alive * mixed
    q = loss.team.action_value(batch, batch["agents", "action"]).total
    total = (q - expected).pow(2).sum(-1).mean()
    assert_close(loss(batch)["loss_qvalue"], total)
    per_row = {"done": batch["next", "done"].unsqueeze(-2).expand_as(next_value)}
    per_row["terminated"] = batch["next", "terminated"].unsqueeze(-2).expand_as(next_value)
    args = (next_value, reward, per_row["done"], per_row["terminated"])
    if kind == "TD1":
        assert_close(td1_return_estimate(0.8, *args, time_dim=1), expected)
    if kind == "TDLambda":
        assert_close(td_lambda_return_estimate(0.8, 0.6, *args, time_dim=1), expected)


def test_value_estimators_by_name_class_and_instance() -> None:
    batch = make_batch(CONTINUOUS, 6)
    losses = [Case("vdn", "td", "awr").build() for _ in range(4)]
    losses[0].make_value_estimator(gamma=0.7)
    losses[1].make_value_estimator("td0", gamma=0.7)
    losses[2].make_value_estimator(TD0Estimator, gamma=0.7)
    losses[3].make_value_estimator(TD0Estimator(gamma=0.7, value_network=None))
    found = [loss(batch)["loss_qvalue"] for loss in losses]
    assert len({x.item() for x in found}) == 1
    losses[0].make_value_estimator(gamma=0.0)
    assert losses[0](batch)["loss_qvalue"] != found[0]
    assert isinstance(losses[0].value_estimator, TD0Estimator)
    losses[0].make_value_estimator(TDLambdaEstimator, gamma=0.7, lmbda=0.5)
    assert_close(losses[0](batch.unsqueeze(1))["loss_qvalue"], found[0], rtol=1e-4, atol=1e-5)


def test_estimators_that_need_more_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="GAE does not; choose TD0, TD1 or TDLambda"):
        Case().build().make_value_estimator(ValueEstimators.GAE)


def test_a_default_estimator_is_made_on_demand() -> None:
    loss = OfflineMARLLoss(None, make_critic(CONTINUOUS, hidden=(4,)), value_learning=SARSA(), extraction=None)
    SoftUpdate(loss, tau=0.1)
    loss.set_keys(priority="error")  # before there is an estimator
    assert loss._value_estimator is None
    assert loss(make_batch(CONTINUOUS, 3))["loss_qvalue"].isfinite()
    assert float(loss.value_estimator.gamma) == pytest.approx(0.99)


def test_qvalue_is_the_minimum_head_without_gradient() -> None:
    loss = sarsa(team=True)
    batch = table_batch()
    assert_close(loss.qvalue(batch), torch.tensor([[3.5], [4.0]]))
    assert not loss.qvalue(batch).requires_grad
    assert_close(sarsa(team=False).qvalue(batch), torch.tensor([[1.5, 2.0], [3.0, 1.0]]))


def test_in_a_replay_buffer_pipeline_with_torchrl_parts() -> None:
    spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=2)
    loss = OfflineMARLLoss(
        make_actor(spec, hidden=(8,)),
        make_critic(spec, hidden=(8,), mixer=VDNMixer(2, device="cpu")),
        make_value(spec, hidden=(8,)),
        value_learning=IQL(0.7),
    ).make_value_estimator(gamma=0.9)
    updater = SoftUpdate(loss, tau=0.1)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(50), batch_size=16)
    buffer.extend(make_batch(spec, 50))
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    for _ in range(3):
        output = loss(buffer.sample())
        optimizer.zero_grad()
        sum(output[k] for k in output.keys() if k.startswith("loss")).backward()  # noqa: SIM118
        optimizer.step()
        updater.step()
    assert all(v.isfinite() for v in output.values())
