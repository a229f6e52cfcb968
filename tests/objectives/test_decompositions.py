"""Nonmonotonic mixing, Qatten, QPLEX and coordination graphs in the loss, in populations and as traced functions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from objective_toys import CONTINUOUS, DISCRETE, Case, gradients, loss_terms, make_batch
from population_toys import largest_difference, lone_tensors, make_data, member_tensors
from selection import some_of
from tensordict.nn import TensorDictModule
from torch import Tensor
from torch.testing import assert_close
from torchrl.modules.models.multiagent import Mixer
from trainers import trainer_for

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.modules import DuelingCritic, DuplexMixer, ScaleInvariantValueNorm, make_actor, make_value
from torchrl_marl_offline.objectives import AWR, IQL, TD, OfflineMARLLoss
from torchrl_marl_offline.training import PopulationBuffer
from torchrl_marl_offline.training.step.gradients import CompiledGradients, Gradients

ACTION, OBSERVATION = ("agents", "action"), ("agents", "observation")
LOCAL, ADVANTAGE, TEAM = ("agents", "state_action_value"), ("agents", "advantage"), "state_action_value"
NEW = ("nonmonotonic", "qatten", "qplex", "graph")
EVERY = [
    Case(decomposition, learning, extraction, discrete=(learning == "sarsa") != (extraction == "awr"))
    for decomposition in NEW
    for learning in ("td", "sarsa", "iql")
    for extraction in ("awr", "brac")
]
SYSTEMS = [Case(d, preset=preset, discrete=preset == "cql") for d in NEW for preset in ("cql", "omar")]
SYSTEMS += [Case(d, preset=preset) for d in NEW[:3] for preset in ("omiga", "omac", "icq")]


@pytest.mark.parametrize("case", [*EVERY, *SYSTEMS], ids=str)
def test_training_changes_every_parameter(case: Case) -> None:
    loss = case.build(tau=0.05, value_norm=ScaleInvariantValueNorm())
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    batch = make_batch(case.spec, 8)
    for _ in range(5):
        optimizer.zero_grad()
        sum(loss_terms(loss(batch)).values()).backward()
        optimizer.step()
        loss.updater.step()
    for name, parameter in loss.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} has not moved"


# ------------------------------------------------------------ what the loss hands to a mixer


@pytest.mark.parametrize("discrete", [False, True])
def test_the_mixer_reads_the_action_that_is_asked_for(discrete: bool) -> None:
    case = Case("qplex", "iql", "awr", discrete=discrete)
    loss, critic, batch = case.build(), case.critic(), make_batch(case.spec, 6)
    loss.qvalue_network_params.to_module(critic.module[0])
    loss.mixer_network_params.to_module(critic.module[1])
    asked = batch[ACTION].roll(1, 0)
    out = critic(batch.clone().set(ACTION, asked))
    found = loss.team.action_value(batch, asked)
    assert_close(found.total.squeeze(-2), out[TEAM])
    assert_close(found.local, out[LOCAL])
    assert not torch.isclose(loss.team.action_value(batch, batch[ACTION]).total, found.total).all()
    code = torch.nn.functional.one_hot(asked, 4).float() if discrete else asked
    candidates = code.unsqueeze(1)  # [B, 1, n, a]
    one_each = loss.batch(batch).candidates(candidates, team=True)  # [B, 1, n, heads]
    for agent in range(3):
        joint = batch[ACTION].clone()
        joint[:, agent] = asked[:, agent]
        assert_close(one_each[:, 0, agent], loss.team.action_value(batch, joint).total.squeeze(1))


def test_duplex_values_in_the_loss() -> None:
    case = Case("qplex", "iql", "awr")
    rule = AWR(weights="clipped", temperature=0.5, advantage="joint", standardize=False)
    loss = case.build(extraction=rule, reduction="none")
    batch = make_batch(case.spec, 6)
    for value in loss.parameters():  # so that targets differ
        value.data.add_(0.05 * torch.randn_like(value))
    critic, value = case.critic(), case.value()
    loss.target_qvalue_network_params.data.to_module(critic.module[0])
    loss.target_mixer_network_params.data.to_module(critic.module[1])
    loss.value_network_params.to_module(value)
    mixer = critic.module[1].module
    with torch.no_grad():
        q_tot = critic(batch.clone())[TEAM].amin(-1)  # the smaller of the mixed heads
        v_tot, next_v_tot = (
            mixer(value(half.clone())["agents", "state_value"], half["state"]).squeeze(-1)
            for half in (batch, batch["next"])
        )
    found, output = loss.team.state_value(batch), loss(batch)
    assert_close(found.total.flatten(), v_tot)
    gap = q_tot - v_tot
    assert_close(output["loss_value"], torch.where(gap > 0, 0.8, 0.2) * gap.square())
    log_prob = loss.team.policy(batch).log_prob(batch[ACTION]).mean(-1)
    assert_close(output["loss_actor"], -(0.5 * gap).exp() * log_prob)
    reward, over = batch["next", "agents", "reward"].mean(-2).squeeze(-1), batch["next", "terminated"].squeeze(-1)
    y = reward + 0.9 * ~over * next_v_tot
    q = loss.team.action_value(batch, batch[ACTION]).total.squeeze(1)
    assert_close(output["loss_qvalue"], (q - y.unsqueeze(-1)).square().sum(-1))


def test_state_values_need_no_action() -> None:
    batch = make_batch(DISCRETE, 6)
    loss = Case("qplex", "iql", "awr", discrete=True).build()
    assert ("next", *ACTION) not in loss.in_keys and ("next", "agents", "action_mask") not in loss.in_keys
    expected = loss(batch.clone())["loss_qvalue"]
    del batch["next", "agents", "action"], batch["next", "agents", "action_mask"]
    assert_close(loss(batch)["loss_qvalue"], expected)


@pytest.mark.parametrize("decomposition", NEW[:3])
@pytest.mark.parametrize("discrete", [False, True])
def test_credit_is_the_slope_of_the_target_mixer(decomposition: str, discrete: bool) -> None:
    case = Case(decomposition, "td", "awr", discrete=discrete)
    loss, batch = case.build(), make_batch(case.spec, 6)
    values, beside = loss.team.critic_outputs(batch, batch[ACTION], target=True)
    assert set(beside) == ({"agents.action", "agents.advantage"} if decomposition == "qplex" else set())
    values = values.detach().requires_grad_()
    if decomposition == "qplex":  # which moves with the values, around the same baseline
        beside["agents.advantage"] = values - (values - beside["agents.advantage"]).detach()
    (slope,) = torch.autograd.grad(loss.team.mix(batch, values, target=True, **beside).sum(), values)
    assert_close(loss.team.credit(batch, values), slope)
    weighted = case.build(extraction=AWR(weights="clipped", advantage="weighted", standardize=False, temperature=0.3))
    local = (
        weighted.team.action_value(batch, batch[ACTION]).local_min
        - weighted.team.action_value(batch, weighted.policy_action(batch)).local_min
    ).detach()
    credit = weighted.team.credit(batch, weighted.team.action_value(batch, batch[ACTION]).local_min.detach())
    log_prob = weighted.team.policy(batch).log_prob(batch[ACTION])
    expected = -((0.3 * local * credit).squeeze(-1).exp() * log_prob).mean()
    assert_close(weighted(batch)["loss_actor"], expected, rtol=1e-4, atol=1e-5)


class OneHead(Mixer):
    """A mixer that takes one head at a time, and reads the action and another output of the critic."""

    def __init__(self, whole: DuplexMixer) -> None:
        super().__init__(needs_state=True, state_shape=(5,), n_agents=3, device=None)
        self.whole = whole

    def forward(self, values: Tensor, state: Tensor, *more: Tensor) -> Tensor:
        assert values.shape[-1] == 1 and all(entry.shape[-1] == 1 for entry in more[1:])
        return self.whole(values, state, *more)


@pytest.mark.parametrize("learning", [TD(), IQL(0.8)], ids=["td", "iql"])
@pytest.mark.parametrize("deactivate_vmap", [False, True])
def test_an_ensemble_and_a_mixer_of_one_head(learning, deactivate_vmap: bool) -> None:
    mixer = DuplexMixer(CONTINUOUS, hidden_size=8)
    critics = [
        TensorDictModule(DuelingCritic(CONTINUOUS, hidden=(8,), num_heads=1), [OBSERVATION, ACTION], [LOCAL, ADVANTAGE])
        for _ in range(3)
    ]
    batch, outputs = make_batch(CONTINUOUS, 6), []
    actor = make_actor(CONTINUOUS, hidden=(8,))
    value = make_value(CONTINUOUS, hidden=(8,)) if isinstance(learning, IQL) else None
    for module in (mixer, OneHead(mixer)):
        last = TensorDictModule(module, [LOCAL, "state", ACTION, ADVANTAGE], [TEAM])
        loss = OfflineMARLLoss(
            actor, critics, value, mixer=last, value_learning=learning, deactivate_vmap=deactivate_vmap
        ).make_value_estimator(gamma=0.9)
        loss.__dict__["_has_update_associated"] = dict.fromkeys(loss.__dict__["_has_update_associated"], True)
        values = loss.team.action_value(batch, batch[ACTION])
        out = critics[1](batch.clone())
        assert_close(values.local[..., 1:2], out[LOCAL])
        expected = mixer(out[LOCAL], batch["state"], batch[ACTION], out[ADVANTAGE])
        assert_close(values.total[:, 0, 1:2], expected)
        outputs.append(dict(loss(batch).items()))
    assert_close(*outputs)


# -------------------------------------------------------------------- graph


def test_a_graph_counts_as_a_critic_of_the_team() -> None:
    batch = make_batch(CONTINUOUS, 6)
    outputs = [
        Case("graph", "iql").build(extraction=AWR(temperature=2.0, advantage=kind))(batch)["loss_actor"]
        for kind in ("local", "joint")
    ]
    assert_close(*outputs)
    for preset in ("omiga", "omac"):
        with pytest.raises(ValueError, match=r"fits each agent's own value, and a .* has none; use IQL, or another"):
            Case("graph", preset=preset).build()
    loss = OfflineMARLLoss(None, Case("graph").critic(), Case("mixer").value(), value_learning=IQL(), extraction=None)
    loss.__dict__["_has_update_associated"] = dict.fromkeys(loss.__dict__["_has_update_associated"], True)
    with pytest.raises(ValueError, match=r"needs a team state value; .* 'centralized' or 'graph'"):
        loss(batch)


# -------------------------------------------- dead agents, populations, traces


@pytest.mark.parametrize("decomposition", NEW)
@pytest.mark.parametrize("discrete", [False, True])
def test_dead_agents_count_as_the_mixers_count_them(decomposition: str, discrete: bool) -> None:
    """With zeros for their observations and actions; what they recorded does not reach the team's value."""
    case = Case(decomposition, "sarsa", "awr", discrete=discrete)
    loss, batch = case.build(), make_batch(case.spec, 8)
    alive = torch.ones(8, 3, dtype=torch.bool)
    alive[::2, 1] = False
    zeroed = batch.clone()
    for rows, filling in ((zeroed, 0.0), (batch, math.nan)):
        rows["next", "agents", "reward"][~alive] = filling
        for half in (rows, rows["next"]):
            half[OBSERVATION][~alive] = filling
            half[ACTION][~alive] = filling if not discrete else int(rows is batch)
            if discrete:
                half["agents", "action_mask"][~alive] = False
    expected = loss(zeroed.clone())["loss_qvalue"]
    batch["agents", "mask"], batch["next", "agents", "mask"] = alive, alive
    assert_close(loss(batch)["loss_qvalue"], expected)


RULES = [
    ("nonmonotonic", {"value_learning": "td", "extraction": "brac"}, False),
    ("qatten", {"value_learning": "iql", "extraction": "awr"}, True),
    ("qplex", {"value_learning": "iql", "extraction": "awr"}, False),
    ("qplex", {"value_learning": "td", "extraction": "brac"}, True),
    ("graph", {"value_learning": "iql", "extraction": "brac"}, False),
    ("graph", {"value_learning": "sarsa", "extraction": "awr"}, True),
]


@pytest.mark.parametrize(("decomposition", "rules", "discrete"), RULES, ids=str)
def test_a_member_is_the_run_alone(decomposition: str, rules: dict, discrete: bool) -> None:
    data, seeds, rates = make_data(discrete=discrete), (4, 9), (1e-3, 2e-3)
    common = {"steps": 5, "log_every": 5, "progress": False, "tau": 0.05}

    def member(index: int) -> OfflineMARLLoss:
        torch.manual_seed(seeds[index])
        return make_loss(data.spec, decomposition=decomposition, hidden=(8,), **rules)

    losses = {f"m{index}": member(index) for index in range(2)}
    population = trainer_for(losses, PopulationBuffer(data.data, batch_size=12, seeds=seeds), lr=rates, **common)
    start = [member_tensors(population, index) for index in range(2)]
    population.train()
    finals = []
    for index in range(2):
        loss = member(index)
        torch.manual_seed(seeds[index])  # of the noise
        rows = make_replay_buffer(data.data, batch_size=12, seed=seeds[index])
        alone = trainer_for(loss, rows, lr=rates[index], **common)
        alone.train()
        finals.append(member_tensors(population, index))
        assert largest_difference(finals[-1], lone_tensors(alone)) < 2e-6
        assert largest_difference(finals[-1], start[index]) > 1e-3
    assert all(largest_difference(*pair) > 1e-2 for pair in itertools.combinations(finals, 2))


@pytest.mark.parametrize("case", some_of(EVERY[::5], every=3), ids=str)
def test_traced_it_is_the_loss_as_it_stands(case: Case) -> None:
    found = []
    for kind in (Gradients, lambda loss: CompiledGradients(loss, backend=None)):
        loss = case.build(value_norm=ScaleInvariantValueNorm())
        differentiate = kind(loss)
        for seed in range(2):
            metrics = differentiate(make_batch(case.spec, 6, seed=seed))
        found.append(({n: p.grad.clone() for n, p in loss.named_parameters()}, metrics))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_gradients_stay_with_the_networks_that_learn() -> None:
    loss, batch = Case("qplex", "td", "brac", discrete=True).build(), make_batch(DISCRETE, 6)
    of_actor = {name.split("_params")[0] for name in gradients(loss, batch, "loss_actor")}
    assert of_actor == {"actor_network"}
    action = torch.nn.functional.one_hot(batch[ACTION], 4).float().requires_grad_()
    loss.team.action_value(batch, action, detach=True).total.sum().backward()
    assert (action.grad.abs().sum((0, 2)) > 0).all()  # every agent's action is seen
