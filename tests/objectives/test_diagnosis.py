"""Gains, credit, agreement, distance and sizes of values: by hand, by differences, and of every combination."""

from __future__ import annotations

import math

import pytest
import torch
from objective_toys import CASES, CONTINUOUS, DISCRETE, make_batch
from selection import some_of
from tensordict.nn import TensorDictModule

from torchrl_marl_offline import LinearMixer, ScaleInvariantValueNorm, make_actor, make_critic
from torchrl_marl_offline.objectives import BRAC, TD, BehaviourCloning, OfflineMARLLoss
from torchrl_marl_offline.objectives.diagnosis import MEANINGS, agreement, batch_diagnosis

TEAM_MIXERS = ("mixer", "nonmonotonic", "vdn", "linear", "qatten", "qplex")
GAINS = {"mixer_gain", "discounted_gain", "credit_low", "credit_high"}


@pytest.mark.parametrize("case", some_of(CASES, every=5), ids=str)
def test_every_combination_is_diagnosed_and_nothing_moves(case):
    loss, batch = case.build(), make_batch(case.spec, 6)
    before = {name: value.clone() for name, value in loss.state_dict().items() if isinstance(value, torch.Tensor)}
    keys, generator = set(batch.keys(True, True)), torch.get_rng_state()
    found = batch_diagnosis(loss, batch)
    assert found.keys() <= MEANINGS.keys()
    assert all(value.shape == () and value.isfinite() and not value.requires_grad for value in found.values())
    if loss.value_learning is None:
        assert not found
    else:
        assert (found.keys() >= GAINS) == (case.decomposition in TEAM_MIXERS)
        assert ("policy_slope" in found) == (loss.team.actor is not None)
        assert float(found["qvalue_largest"]) == pytest.approx(float(loss.qvalue(batch).abs().max()), rel=1e-5)
    assert set(batch.keys(True, True)) == keys
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items() if name in before)
    assert all(parameter.grad is None for parameter in loss.parameters())


def loss_of(decomposition, spec=CONTINUOUS, *, scale_norm=False, normalize=False, **options):
    torch.manual_seed(3)
    critic = make_critic(spec, decomposition=decomposition, hidden=(8,), **options)
    actor = make_actor(spec, hidden=(8,), final_scale=1.0)
    norm = ScaleInvariantValueNorm() if scale_norm else None
    rules = {"value_learning": TD(), "extraction": BRAC(normalize=normalize)}
    return OfflineMARLLoss(actor, critic, value_norm=norm, **rules).make_value_estimator(gamma=0.9)


class Weighing(torch.nn.Module):
    """A mixer that also returns its weights."""

    def forward(self, values, state):
        weights = 2.0 + state[..., :1].abs().expand(values.shape[:-1])
        return (values.squeeze(-1) * weights).sum(-1, keepdim=True), weights


@pytest.mark.parametrize("places", [(0, 1), (1, 0)], ids=["before", "behind"])
def test_a_mixer_that_returns_more_is_known_by_its_key(places):
    spec, keys = CONTINUOUS, ["state_action_value", "weights"]
    inner = Weighing()
    if places[0]:
        inner.forward = lambda values, state: Weighing.forward(inner, values, state)[::-1]
    torch.manual_seed(3)
    critic = make_critic(spec, decomposition="independent", hidden=(8,), num_heads=1)
    local = ("agents", "state_action_value")
    mixer = TensorDictModule(inner, [local, "state"], [keys[place] for place in places])
    rules = {"value_learning": TD(), "extraction": BRAC()}
    loss = OfflineMARLLoss(make_actor(spec, hidden=(8,)), critic, mixer=mixer, **rules)
    batch = make_batch(spec, 6)
    weights = 2.0 + batch["state"][:, 0].abs()
    gain = batch_diagnosis(loss, batch)["mixer_gain"]
    assert float(gain) == pytest.approx(float(weights.mean()) * spec.n_agents**0.5, rel=1e-5)


def test_gain_of_a_sum_is_the_root_of_its_agents():
    found = batch_diagnosis(loss_of("vdn"), make_batch(CONTINUOUS, 5))
    assert float(found["mixer_gain"]) == pytest.approx(math.sqrt(3))
    assert float(found["discounted_gain"]) == pytest.approx(0.9 * math.sqrt(3))
    assert float(found["credit_low"]) == pytest.approx(1 / 3) == float(found["credit_high"])


def test_gain_and_credit_of_a_linear_mixer_are_its_weights():
    loss, batch = loss_of("linear"), make_batch(CONTINUOUS, 5)
    mixer = loss.team.mixer.module
    assert isinstance(mixer, LinearMixer)
    weights = mixer.weights(batch["state"])[0].squeeze(-1).detach()  # [5, 3]
    found = batch_diagnosis(loss, batch)
    assert float(found["mixer_gain"]) == pytest.approx(float(weights.norm(dim=-1).mean()), rel=1e-5)
    shares = weights.mean(0) / weights.mean(0).sum()
    assert float(found["credit_low"]) == pytest.approx(float(shares.min()), rel=1e-5)
    assert float(found["credit_high"]) == pytest.approx(float(shares.max()), rel=1e-5)


@pytest.mark.parametrize("decomposition", ["mixer", "nonmonotonic", "qatten", "qplex"])
def test_gain_is_that_of_finite_differences(decomposition):
    loss = loss_of(decomposition, num_heads=1).double()
    batch = make_batch(CONTINUOUS, 4).apply(lambda x: x.double() if x.is_floating_point() else x)
    with torch.no_grad():
        local, beside = loss.team.critic_outputs(batch, batch["agents", "action"], target=False)
        slopes = []
        for agent in range(3):
            step = torch.zeros_like(local)
            step[:, agent] = 1e-6
            ends = [loss.team.mix(batch, local + sign * step, target=False, **beside) for sign in (1, -1)]
            slopes.append((ends[0] - ends[1]).flatten() / 2e-6)
    gain = torch.stack(slopes).norm(dim=0).mean()
    assert float(batch_diagnosis(loss, batch)["mixer_gain"]) == pytest.approx(float(gain), rel=1e-6)


def test_closed_loop_gain_is_made_of_its_factors():
    batch = make_batch(CONTINUOUS, 5)
    found = batch_diagnosis(loss_of("mixer"), batch)
    product = float(found["discounted_gain"] * found["policy_slope"])
    assert float(found["closed_loop_gain"]) == pytest.approx(product)
    loss = loss_of("mixer", scale_norm=True)
    loss.value_norm.update(loss.qvalue(batch).unsqueeze(-1))
    scaled = batch_diagnosis(loss, batch)
    assert float(scaled["closed_loop_gain"]) == pytest.approx(product / float(loss.value_norm.scale()), rel=1e-5)
    loss = loss_of("mixer", normalize=True)
    value = loss.team.action_value(batch, loss.policy_action(batch)).total_min.abs().mean().detach()
    assert float(batch_diagnosis(loss, batch)["closed_loop_gain"]) == pytest.approx(product / float(value), rel=1e-5)


def test_slope_of_policies_is_that_of_finite_differences():
    loss = loss_of("mixer").double()
    batch = make_batch(CONTINUOUS, 4).apply(lambda x: x.double() if x.is_floating_point() else x)
    action, squares = loss.policy_action(batch), torch.zeros(4, dtype=torch.float64)
    for agent in range(3):
        for number in range(2):
            step = torch.zeros_like(action)
            step[:, agent, number] = 1e-6
            up, down = (loss.team.action_value(batch, action + sign * step).total_min for sign in (1, -1))
            squares += ((up - down).flatten().detach() / 2e-6).square()
    assert float(batch_diagnosis(loss, batch)["policy_slope"]) == pytest.approx(float(squares.sqrt().mean()), rel=1e-5)


def test_distance_is_that_between_recorded_and_chosen_actions():
    loss, batch = loss_of("mixer"), make_batch(CONTINUOUS, 5)
    batch["agents", "action"] = loss.policy_action(batch) + 0.25
    assert float(batch_diagnosis(loss, batch)["policy_distance"]) == pytest.approx(0.25, rel=1e-5)
    batch["agents", "action"] = loss.policy_action(batch)
    assert float(batch_diagnosis(loss, batch)["policy_distance"]) == pytest.approx(0.0, abs=1e-6)


def test_distance_of_discrete_policies_is_the_share_that_differs():
    loss, batch = loss_of("mixer", DISCRETE), make_batch(DISCRETE, 4)
    chosen = loss.team.policy(batch).straight_through_mode().argmax(-1)
    batch["agents", "action"] = chosen.clone()
    assert float(batch_diagnosis(loss, batch)["policy_distance"]) == 0.0
    batch["agents", "action"][0, 0] = (chosen[0, 0] + 1) % 4
    batch["agents", "action"][1, 2] = (chosen[1, 2] + 1) % 4
    assert float(batch_diagnosis(loss, batch)["policy_distance"]) == pytest.approx(2 / 12)


def test_rows_and_agents_that_do_not_count_change_nothing():
    loss, batch = loss_of("mixer"), make_batch(CONTINUOUS, 6)
    whole = batch_diagnosis(loss, batch[:4])
    batch["collector", "mask"] = torch.tensor([True] * 4 + [False] * 2)
    batch["state"][4:] = 1e6
    found = batch_diagnosis(loss, batch)
    for name, value in whole.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_agreement_is_a_mean_correlation():
    x = torch.randn(200, generator=torch.Generator().manual_seed(0))
    y = torch.randn(200, generator=torch.Generator().manual_seed(1))
    assert float(agreement(torch.stack([x, 3 * x + 1], -1))) == pytest.approx(1.0, abs=1e-5)
    assert float(agreement(torch.stack([x, -x], -1))) == pytest.approx(-1.0, abs=1e-5)
    three = torch.stack([x, y, x + y], -1)
    matrix = torch.corrcoef(three.T)
    assert float(agreement(three)) == pytest.approx(float((matrix.sum() - 3) / 6), abs=1e-5)
    mask = torch.ones(200, 3, dtype=torch.bool)
    mask[150:] = False
    assert float(agreement(three, mask)) == pytest.approx(float(agreement(three[:150])), abs=1e-5)
    assert float(agreement(torch.ones(5, 2))) == 0.0  # nothing varies


def test_without_a_critic_nothing_is_said():
    loss = BehaviourCloning(make_actor(CONTINUOUS, hidden=(8,)))
    assert batch_diagnosis(loss, make_batch(CONTINUOUS, 4)) == {}
