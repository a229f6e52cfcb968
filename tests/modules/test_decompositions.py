"""Qatten, QPLEX and coordination graphs: by hand, by their equations, and what each can express."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from objective_toys import CONTINUOUS, DISCRETE, make_batch
from selection import some_of
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.modules import (
    DECOMPOSITIONS,
    AttentionMixer,
    DuelingCritic,
    DuplexMixer,
    GraphCritic,
    GreedyCritic,
    HyperNetworkMixer,
    SumMixer,
    make_critic,
    make_value,
)

LOCAL, ADVANTAGE, TEAM = ("agents", "state_action_value"), ("agents", "advantage"), "state_action_value"
OBSERVATION, ACTION = ("agents", "observation"), ("agents", "action")
TINY_SPEC = TaskSpec(n_agents=2, observation_size=1, state_size=1, action_size=1)
SMALL = {"hidden": (8,), "embed_size": 4, "mixer_hidden_size": 8}


@torch.no_grad()
def constant(mixer, *generated: list[float]) -> None:
    """Let every state generate these numbers."""
    for layer, numbers in zip(mixer.last, generated, strict=True):
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(numbers))


def column(*numbers: float) -> Tensor:
    return torch.tensor([numbers]).unsqueeze(-1)


# ------------------------------------------------------------------ Qatten


def attention_mixer(**options) -> AttentionMixer:
    return AttentionMixer(3, 5, 4, attention_heads=2, embed_size=3, hidden_size=8, **options)


def test_attention_by_hand() -> None:
    mixer = AttentionMixer(2, 1, 1, attention_heads=2, embed_size=1, hidden_size=4, layer_norm=False)
    constant(mixer, [math.log(2), 0.0], [3.0, -2.0], [0.5])
    with torch.no_grad():
        mixer.keys.weight.fill_(1.0)
    state, observation = torch.ones(1, 1), column(1.0, 0.0)
    # the first head's logits are ln 2 and 0, of shares 2/3 and 1/3; the second's shares are halves
    assert_close(mixer.credit(column(7.0, 7.0), state, observation), column(3.0, 2.0))
    assert_close(mixer(column(1.0, 10.0), state, observation), torch.tensor([[23.5]]))
    mixer.monotonic = False
    assert_close(mixer.credit(column(7.0, 7.0), state, observation), column(1.0, 0.0))


@pytest.mark.parametrize("layer_norm", [True, False])
def test_attention_by_its_equation(layer_norm: bool) -> None:
    mixer = attention_mixer(layer_norm=layer_norm)
    q, s, o = torch.randn(3), torch.randn(5), torch.randn(3, 4)
    query, w, c = (part.squeeze(0) for part in mixer.generate(s.unsqueeze(0)))
    total = c.squeeze()
    for head in range(2):
        rows = slice(3 * head, 3 * head + 3)
        logits = torch.stack([query[rows] @ (mixer.keys.weight[rows] @ o[a]) / math.sqrt(3) for a in range(3)])
        share = logits.exp() / logits.exp().sum()
        total = total + w[head].abs() * (share * q).sum()
    assert_close(mixer(q.view(1, 3, 1), s.unsqueeze(0), o.unsqueeze(0)).squeeze(), total)


# ------------------------------------------------------------------- QPLEX


def duplex_mixer(spec: TaskSpec = CONTINUOUS, **options) -> DuplexMixer:
    return DuplexMixer(spec, attention_heads=2, hidden_size=8, **options)


def test_duplex_by_hand() -> None:
    mixer = DuplexMixer(TINY_SPEC, attention_heads=1, hidden_size=4)
    # w is 2 and 3, b 0.5 and -1; lambda is 0.5 * 0.5 * 4 of the first agent, 0.5 * 0.75 * 4 of the second
    constant(mixer, [-2.0, 3.0], [0.5, -1.0], [-4.0], [0.0, math.log(3)])
    with torch.no_grad():
        mixer.of_action.layers[-1].weight.zero_()
        mixer.of_action.layers[-1].bias.zero_()
    q, v, state, action = column(1.0, 2.0), column(3.0, 5.0), torch.ones(1, 1), column(0.3, -0.3)
    assert_close(mixer(v, state), torch.tensor([[20.5]]))
    assert_close(mixer(q, state, action, q - v), torch.tensor([[20.5 - 4.0 - 13.5]]))
    assert_close(mixer.credit(q, state, action), column(2.0, 4.5))
    with torch.no_grad():
        mixer.of_action.layers[-1].bias[0, 0] = math.log(3)
    assert_close(mixer.credit(q, state, action), column(3.0, 4.5))


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_duplex_by_its_equation(spec: TaskSpec) -> None:
    mixer, batch = duplex_mixer(spec), make_batch(spec, 6)
    q, v = torch.randn(2, 6, 3, 2)
    w, b, key, attention = mixer.generate(batch["state"])
    code = batch[ACTION] if not spec.discrete else torch.eye(spec.action_size)[batch[ACTION]]
    of_action = mixer.of_action(torch.cat([batch["state"], code.reshape(6, -1)], -1))
    expected = torch.zeros(6, 2)
    for row, a, head in itertools.product(range(6), range(3), range(2)):
        terms = [
            of_action[row, 3 * k + a].sigmoid() * attention[row, 3 * k + a].sigmoid() * key[row, k].abs()
            for k in range(2)
        ]
        scale = w[row, a].abs()
        around = scale * v[row, a, head] + b[row, a]
        expected[row, head] += around + sum(terms) * scale * (q[row, a, head] - v[row, a, head])
    assert_close(mixer(q, batch["state"], batch[ACTION], q - v), expected)
    other = batch[ACTION].roll(1, 0)
    assert not torch.isclose(mixer(q, batch["state"], other, q - v), expected).any()


def test_with_equal_importance_duplex_is_vdn_around_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, batch = duplex_mixer(), make_batch(CONTINUOUS, 6)
    monkeypatch.setattr(DuplexMixer, "importance", lambda self, state, *_: torch.ones(*state.shape[:-1], 3, 1))
    q, v = torch.randn(2, 6, 3, 2)
    assert_close(mixer(q, batch["state"], batch[ACTION], q - v), mixer(q, batch["state"]))  # the baseline cancels
    constant(mixer, [1.0] * 3, [0.0] * 3, [1.0] * 2, [0.0] * 6)
    assert_close(mixer(q, batch["state"], batch[ACTION], q - v), SumMixer(3)(q))


def test_state_values_have_no_advantage() -> None:
    mixer, batch = duplex_mixer(), make_batch(CONTINUOUS, 6)
    v = torch.randn(6, 3, 1)
    assert_close(mixer(v, batch["state"]), mixer(v, batch["state"], batch[ACTION], torch.zeros_like(v)))
    for incomplete in ((batch[ACTION],), (None, v)):
        with pytest.raises(ValueError, match="DuplexMixer wants the joint action and the advantages of action values"):
            mixer(v, batch["state"], *incomplete)
    with pytest.raises(ValueError, match=r"DuplexMixer wants values \[\*B, 3, heads\] and state \[\*B, 5\]"):
        mixer(v[:, :2], batch["state"])


def test_a_greedy_critic_by_hand() -> None:
    spec = TaskSpec(n_agents=2, observation_size=1, state_size=1, action_size=3, discrete=True, has_action_mask=True)
    critic = GreedyCritic(spec, num_heads=1, hidden=(), share_params=False)
    with torch.no_grad():
        critic.network.mlp.layers[0].weight.copy_(torch.tensor([[[[1.0, 2.0, 4.0]], [[0.0, -1.0, -2.0]]]]))
        critic.network.mlp.layers[0].bias.zero_()
    observation = column(1.0, 3.0)
    mask = torch.tensor([[[True, True, False], [False, True, True]]])
    q, advantage = critic(observation, torch.tensor([[0, 2]]), mask)
    assert_close(q, column(1.0, -6.0))
    assert_close(advantage, column(1.0 - 2.0, -6.0 + 3.0))
    assert_close(critic(observation, torch.tensor([[0, 2]]))[1], column(1.0 - 4.0, -6.0))
    nothing_legal = mask.clone()
    nothing_legal[:, 1] = False
    assert_close(critic(observation, torch.tensor([[0, 2]]), nothing_legal)[1], column(1.0 - 2.0, -6.0))
    code = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], requires_grad=True)
    (slope,) = torch.autograd.grad(critic(observation, code)[1].sum(), code)
    assert_close(slope, torch.tensor([[[1.0, 2.0, 4.0], [0.0, -3.0, -6.0]]]))
    assert not critic(observation, torch.tensor([[0, 2]]))[1].requires_grad  # the network does not see it


def test_the_best_actions_of_the_agents_are_together_the_teams_best() -> None:
    batch = make_batch(DISCRETE, 20)
    critic = make_critic(DISCRETE, decomposition="qplex", **SMALL)
    joint = torch.tensor(list(itertools.product(range(4), repeat=3)))  # [64, 3]
    rows = batch.unsqueeze(1).expand(20, 64).clone()
    rows[ACTION] = joint.expand(20, 64, 3).clone()
    legal = rows["agents", "action_mask"].gather(-1, rows[ACTION].unsqueeze(-1)).all(-2)  # [20, 64, 1]
    out = critic(rows)
    total = out[TEAM].masked_fill(~legal, -torch.inf)
    best = joint[total.argmax(1)]  # [20, heads, 3]
    local = critic.module[0].module.network(batch[OBSERVATION])
    local = local.masked_fill(~batch["agents", "action_mask"], -torch.inf)
    assert torch.equal(best, local.argmax(-1).movedim(0, 1))
    assert_close(total.amax(1), critic.module[1].module((out[LOCAL] - out[ADVANTAGE])[:, 0], batch["state"]))


def test_no_advantage_of_a_dueling_critic_is_positive() -> None:
    critic, batch = DuelingCritic(CONTINUOUS, hidden=(8,)), make_batch(CONTINUOUS, 50)
    q, advantage = critic(batch[OBSERVATION], batch[ACTION])
    assert q.shape == advantage.shape == (50, 3, 2) and (advantage < 0).all() and advantage.requires_grad
    assert_close(advantage, -torch.log1p(critic.shortfall(batch[OBSERVATION], batch[ACTION]).exp()))
    other_q, other_advantage = critic(batch[OBSERVATION], -batch[ACTION])
    assert_close(other_q - other_advantage, q - advantage)
    assert not torch.isclose(other_q, q).any()


# ------------------------------------------------------------------- graph


@torch.no_grad()
def test_a_graph_by_hand() -> None:
    spec = TaskSpec(n_agents=2, observation_size=1, state_size=1, action_size=1)
    critic = GraphCritic(spec, num_heads=1, hidden=(1,), activation="relu", layer_norm=False)
    agents, pairs = critic.network.mlp, critic.pairs.mlp
    for mlp in (agents, pairs):
        for layer in mlp.layers:
            layer.bias.zero_()
            layer.weight.fill_(1.0)
    agents.layers[0].weight[0, :, 0] = torch.tensor([1.0, 2.0, 0.0, 10.0])  # o, u, and the ids
    # o and u of one, its ids, then of the other
    pairs.layers[0].weight[0, :, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 4.0])
    observation, action = column(1.0, 3.0), column(2.0, -1.0)
    # f_1 = 1 + 4, f_2 = 3 - 2 + 10; g(1, 2) = 1 + 1 + 4, g(2, 1) = 3 - 2
    assert_close(critic(observation, action), torch.tensor([[(5.0 + 11.0) / 2 + (6.0 + 1.0) / 2]]))


@pytest.mark.parametrize("with_action", [True, False])
def test_a_graph_by_its_equation(with_action: bool) -> None:
    critic, batch = GraphCritic(DISCRETE, with_action=with_action, hidden=(8, 8)), make_batch(DISCRETE, 2, 5)
    n, ids = 3, torch.eye(3)
    x = batch[OBSERVATION]
    x = torch.cat([x, torch.eye(4)[batch[ACTION]]], -1) if with_action else x
    x = torch.cat([x, ids.expand(2, 5, 3, 3)], -1).flatten(0, 1)  # [10, n, in]
    agents = sum(critic.network.mlp(x[:, a]) for a in range(n)) / n  # [heads, 10, 1]
    pairs = 0.0
    for a, b in itertools.combinations(range(n), 2):
        orders = [torch.cat([x[:, i], x[:, j]], -1) for i, j in ((a, b), (b, a))]
        pairs = pairs + (critic.pairs.mlp(orders[0]) + critic.pairs.mlp(orders[1])) / 2 / 3
    expected = (agents + pairs).squeeze(-1).T.view(2, 5, 2)
    assert_close(critic(batch[OBSERVATION], batch[ACTION] if with_action else None), expected)


def test_a_graph_of_one_agent_has_no_pairs() -> None:
    spec = TaskSpec(n_agents=1, observation_size=4, state_size=5, action_size=2)
    critic, batch = GraphCritic(spec, hidden=(8,)), make_batch(spec, 6)
    assert critic.pairs is None
    assert_close(
        critic(batch[OBSERVATION], batch[ACTION]),
        critic.network(torch.cat([batch[OBSERVATION], batch[ACTION]], -1)).squeeze(-1).squeeze(-1).T,
    )


# ----------------------------------------------------------- all of the new


def arguments(mixer: nn.Module, batch: TensorDict, values: Tensor, baseline: Tensor) -> list[Tensor]:
    more = {AttentionMixer: [batch[OBSERVATION]], DuplexMixer: [batch[ACTION], values - baseline]}
    return [values, batch["state"], *more.get(type(mixer), [])]


MIXERS = {
    "qatten": attention_mixer,
    "qatten, any sign": lambda: attention_mixer(monotonic=False),
    "qplex": duplex_mixer,
    "nonmonotonic": lambda: make_critic(CONTINUOUS, decomposition="nonmonotonic", **SMALL).module[1].module,
}


@pytest.mark.parametrize("name", MIXERS)
def test_credit_signs_and_heads(name: str) -> None:
    mixer, batch = MIXERS[name](), make_batch(CONTINUOUS, 100)
    values, baseline = torch.randn(100, 3, 2, requires_grad=True), torch.randn(100, 3, 2)
    given = arguments(mixer, batch, values, baseline)
    total = mixer(*given)
    (slope,) = torch.autograd.grad(total.sum(), values)
    assert_close(mixer.credit(*given[:3]), slope)
    assert bool((slope > 0).all()) == (name in ("qatten", "qplex"))
    assert mixer.accepts_heads and total.shape == (100, 2)
    assert_close(mixer(*arguments(mixer, batch, values[..., 1:], baseline[..., 1:])), total[..., 1:])
    shaped = [entry.unflatten(0, (4, 25)) for entry in given]
    assert_close(mixer(*shaped).flatten(0, 1), total)


def test_nonmonotonic_is_the_mixer_without_absolute_values() -> None:
    outputs = []
    for options in ({"decomposition": "nonmonotonic"}, {"decomposition": "mixer", "monotonic": False}):
        torch.manual_seed(3)
        critic = make_critic(CONTINUOUS, **SMALL, **options)
        assert type(critic.module[1].module) is HyperNetworkMixer
        outputs.append(critic(make_batch(CONTINUOUS, 6))[TEAM])
    assert torch.equal(*outputs)
    torch.manual_seed(3)
    assert not torch.isclose(make_critic(CONTINUOUS, **SMALL)(make_batch(CONTINUOUS, 6))[TEAM], outputs[0]).all()


@pytest.mark.parametrize("decomposition", ["nonmonotonic", "linear", "qatten", "qplex"])
def test_a_frozen_mixer(decomposition: str) -> None:
    critic = make_critic(CONTINUOUS, decomposition=decomposition, frozen=True, **SMALL)
    critic(make_batch(CONTINUOUS, 6))[TEAM].sum().backward()
    local, mixer = critic.module
    assert not any(p.requires_grad for p in mixer.parameters()) and all(p.grad.any() for p in local.parameters())


OPTIONS = {"mixer": {"mixer": SumMixer(3)}, "frozen": {"frozen": True}, "monotonic": {"monotonic": False}}
MEANT = {
    "mixer": "'mixer'",
    "frozen": "'mixer' or 'nonmonotonic' or 'linear' or 'qatten' or 'qplex'",
    "monotonic": "'mixer' or 'nonmonotonic' or 'linear' or 'qatten'",
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_options_where_they_change_nothing(decomposition: str, option: str) -> None:
    options = {"decomposition": decomposition, **OPTIONS[option], **SMALL}
    if f"'{decomposition}'" in MEANT[option]:
        make_critic(CONTINUOUS, **options)
        return
    with pytest.raises(ValueError, match=f"{option}= goes with decomposition={MEANT[option]}, not '{decomposition}'"):
        make_critic(CONTINUOUS, **options)


def test_networks_of_agents_may_be_apart() -> None:
    critic = make_critic(DISCRETE, decomposition="qplex", share_params=False, **SMALL)
    assert critic.module[0].module.network.mlp.layers[0].weight.shape == (2, 3, 4, 8)
    critic = make_critic(DISCRETE, decomposition="graph", share_params=False, **SMALL)
    assert critic.module.network.mlp.layers[0].weight.shape == (2, 3, 8, 8)
    assert critic.module.pairs.mlp.layers[0].weight.shape == (2, 22, 8)
    value = make_value(DISCRETE, decomposition="graph", share_params=False, hidden=(8,))
    assert value.module.pairs.mlp.layers[0].weight.shape == (1, 14, 8)


PAYOFF = torch.tensor([0.0, 1.0, 1.0, 8.0])
"""Of the two-step game's second state: the best sum of one value per agent misses each entry by 1.5."""


@pytest.mark.parametrize(
    "decomposition", some_of([d for d in DECOMPOSITIONS if d not in ("independent", "centralized")], every=2)
)
def test_who_can_express_the_two_step_game(decomposition: str) -> None:
    spec = TaskSpec(n_agents=2, observation_size=3, state_size=3, action_size=2, discrete=True)
    critic = make_critic(
        spec, decomposition=decomposition, num_heads=1, hidden=(16,), embed_size=8, mixer_hidden_size=16
    )
    state = torch.eye(3)[2].expand(4, 3)
    agents = {
        "observation": state.unsqueeze(1).expand(4, 2, 3),
        "action": torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]),
    }
    batch = TensorDict({"agents": agents, "state": state}, [4])
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for _ in range(250):
        error = critic(batch.clone())[TEAM].squeeze(-1) - PAYOFF
        optimizer.zero_grad()
        error.pow(2).mean().backward()
        optimizer.step()
    if decomposition in ("vdn", "linear", "qatten"):
        assert 1.49 < error.pow(2).mean().sqrt() < 1.6
    else:
        assert error.abs().max() < 0.2
