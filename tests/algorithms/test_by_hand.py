"""The systems of the field by numbers computed by hand: the batch and the networks of ``systems_toys``.

The policy's actions are (.4, .8), (0, .4), (-.4, .2); the agents' weights (1, 2), (.5, 1), (2, 4).
"""

from __future__ import annotations

import math

import pytest
import torch
from algorithm_toys import cql_loss, icq_loss, omac_loss, omar_loss, omiga_loss, td3_bc_loss
from objective_toys import gradients
from systems_toys import actor, batch, column, critic, discrete_actor, discrete_batch, log_density, ready, value
from torch.testing import assert_close

from torchrl_marl_offline.core.noise import given_noise
from torchrl_marl_offline.objectives import (
    CQL,
    CEMSampler,
    PolicyGradient,
    RandomSampler,
    SARSALoss,
    SoftmaxSampler,
)
from torchrl_marl_offline.objectives.batch_weights import batch_softmax

ROWS = {"reduction": "none"}
PLAIN = CQL(min_q_weight=2.0, num_random=2, num_policy=1)
ACTOR, CRITIC, VALUE = (f"{name}_network_params.module" for name in ("actor", "qvalue", "value"))
TO_DATA = ((0.1, -0.8), (0.0, 0.6), (-0.1, 0.3))
"""From the policy's actions to the recorded ones."""


def gradient_of(loss, rows, term: str, name: str) -> torch.Tensor:
    loss.reduction = "mean"
    (found,) = (grad for key, grad in gradients(loss, rows, term).items() if key.endswith(name))
    return found


def test_td3_bc() -> None:
    loss = ready(td3_bc_loss(actor(), critic(team=False), **ROWS))
    # halves of the range times .2, clipped at .5: next actions (.4 + .2, .4 - .5), (.8 + .4 -> 1, 0 + 0)
    noise = [column((1.0, -5.0), (2.0, 0.0), (0.0, 0.0))]
    with given_noise(noise):
        found = loss(batch())
    # next values (1.6, .9), (3, 0); targets (1.8, 3.45), (1.5, 2), (2, 4)
    assert_close(found["loss_qvalue"], torch.tensor([(0.09 + 2.1025) / 2, 2.25 / 2, (12.25 + 9.0) / 2]))
    # values (1.4, 2.8), (0, 1.4), (-1.4, .7), of sizes 2.8 / 3 and 4.9 / 3: lambda 2.678571 and 1.530612
    # squared errors (.01, .64), (0, .36), (.01, .09)
    expected = torch.tensor([(-3.74 - 3.645714) / 2, (0.0 - 1.782857) / 2, (3.76 - 0.981429) / 2])
    assert_close(found["loss_actor"], expected, rtol=1e-5, atol=1e-5)
    with given_noise(noise):
        slope = gradient_of(loss, batch(), "loss_actor", "k")
    # 2 (pi - u) o - lambda o: -2.878571 + 0 + 2.478571 of one, .138776 - 2.730612 - 1.065306 of the other agent
    assert_close(slope, torch.tensor(-4.057142 / 6), rtol=1e-5, atol=1e-5)


def test_noise_and_searches_are_in_halves_of_the_action_range() -> None:
    loss = ready(td3_bc_loss(actor(low=-1.0, high=3.0), critic(team=False), **ROWS))
    with given_noise([column((1.0, -5.0), (1.0, 0.0), (0.0, 0.0))]):
        found = loss(batch())["loss_qvalue"]
    # next actions (.4 + .4, .4 - 1), (.8 + .4, 0); next values (1.8, .4), (3.2, 0)
    assert_close(found, torch.tensor([(0.16 + 1.44) / 2, 2.56 / 2, (12.25 + 9.0) / 2]))
    for loc, noise, expected in ((0.0, 0.0, 1.0), (0.5, 0.0, 2.0), (0.0, 0.25, 2.0), (0.0, -1.0, -1.0)):
        sampler = SoftmaxSampler(iterations=1, samples=2, loc=loc)
        with given_noise([torch.full((3, 2, 2, 1), noise)]):
            candidates, _ = sampler.propose(lambda actions: actions[..., 0], torch.zeros(3, 2, 1), -1.0, 3.0)
        assert_close(candidates, torch.full((3, 2, 2, 1), expected))


def test_critic_clipping() -> None:
    # next local values (2, 0), (2.5, .5); targets with bound 1: (1.5, 3), (.5, 2.25), (2, 4)
    loss = ready(SARSALoss(critic(team=False), max_next_value=1.0, **ROWS))
    assert_close(loss(batch())["loss_qvalue"], torch.tensor([(0.0 + 1.0) / 2, (0.25 + 0.0625) / 2, 21.25 / 2]))
    loss.max_next_value = 100.0
    unclipped = ready(SARSALoss(critic(team=False), **ROWS))
    assert torch.equal(loss(batch())["loss_qvalue"], unclipped(batch())["loss_qvalue"])
    assert float(loss.state_dict()["max_next_value"]) == 100.0


def test_conservative_with_discrete_actions() -> None:
    options = {"extraction": PolicyGradient(sample=False)}
    loss = ready(cql_loss(discrete_actor(), critic(team=False), learning=CQL(min_q_weight=2.0), **options, **ROWS))
    found = loss(discrete_batch())["loss_qvalue"]
    loss.min_q_weight = 0.0
    without = loss(discrete_batch())["loss_qvalue"]
    # exponentials 1, 2, 4 of the actions: of the legal ones 7 and 3, 2 and 5, 7 and 6; recorded 4, 1, 2, 4, 1, 2
    rows = [math.log(7 / 4) + math.log(3), math.log(5 / 4), math.log(7) + math.log(3)]
    assert_close(found - without, torch.tensor(rows))  # times 2, halved over the agents
    slopes = [gradient_of(loss, discrete_batch(), "loss_qvalue", "g")]
    loss.min_q_weight = 2.0
    slopes.append(gradient_of(loss, discrete_batch(), "loss_qvalue", "g"))
    # the mean index under the softmax less the recorded one: -4/7, 2/3, 0, -2/5, 10/7, 2/3
    assert_close(slopes[1] - slopes[0], torch.tensor(2 / 6 * (6 / 7 + 4 / 3 - 2 / 5) * math.log(2)))


def test_conservative_with_continuous_actions() -> None:
    noise = [torch.tensor([0.25, 0.75]).reshape(1, 2, 1, 1).expand(3, 2, 2, 1), torch.ones(3, 1, 2, 1)]
    found = {}
    for weight in (0.0, 2.0):
        learning = CQL(min_q_weight=weight, num_random=2, num_policy=1)
        loss = ready(cql_loss(actor(), critic(team=False), learning=learning, **ROWS))
        with given_noise(noise):
            found[weight] = loss(batch())["loss_qvalue"]
    # actions -.5 and .5 of density 1/2, and .25 above the mode, one deviation, of density exp(-.032645)
    assert log_density(0.25) == pytest.approx(-0.032645, abs=1e-6)
    penalty = [
        [
            math.log((2 * math.exp(-0.5) + 2 * math.exp(0.5) + math.exp(min(a + 0.25, 1.0) + 0.032645)) / 3) - u
            for a, u in zip(actions, recorded)
        ]
        for actions, recorded in zip(((0.4, 0.8), (0.0, 0.4), (-0.4, 0.2)), ((0.5, 0.0), (0.0, 1.0), (-0.5, 0.5)))
    ]
    assert penalty[0][0] == pytest.approx(0.271590, abs=1e-5)
    assert_close(found[2.0] - found[0.0], torch.tensor(penalty).sum(-1), rtol=1e-4, atol=1e-5)


def test_actor_rectification() -> None:
    sampler = SoftmaxSampler(iterations=1, samples=2)
    loss = ready(omar_loss(actor(), critic(team=False), rectification=0.25, sampler=sampler, learning=PLAIN, **ROWS))
    # candidates 2 * .15 and 2 * -.2; the value rises with the action, so the best are the larger of .3 and the policy's
    candidates = torch.tensor([0.15, -0.2]).reshape(1, 2, 1, 1).expand(3, 2, 2, 1)
    noise = [candidates, torch.zeros(3, 2, 2, 1), torch.zeros(3, 1, 2, 1)]
    with given_noise(noise):
        found = loss(batch())["loss_actor"]
    # distances squared (0, 0), (.09, 0), (.49, .01); values (1.4, 2.8), (0, 1.4), (-1.4, .7)
    expected = [(-1.05 - 2.1) / 2, (0.0225 - 1.05) / 2, (0.1225 + 1.05 + 0.0025 - 0.525) / 2]
    assert_close(found, torch.tensor(expected))
    with given_noise(noise):
        slope = gradient_of(loss, batch(), "loss_actor", "k")
    # .5 (pi - u) o - .75 o: (-.75, -1.5), (0, -.75), (.35 + .75, -.025 - .375)
    assert_close(slope, torch.tensor((-0.75 - 1.5 - 0.75 + 1.1 - 0.4) / 6))


def test_rectification_of_discrete_policies_is_towards_the_best_legal_action() -> None:
    loss = ready(omar_loss(discrete_actor(), critic(team=False), rectification=1.0, learning=PLAIN, **ROWS))
    rows = discrete_batch()
    best = torch.tensor([[[0, 0, 1], [0, 1, 0]], [[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]]])
    expected = (loss.team.policy(rows).probs - best).pow(2).mean((-1, -2))
    assert_close(loss(rows)["loss_actor"], expected)
    assert expected[1] < expected.max()  # there is one legal action for one of the agents


def values_are(numbers: list[float]):
    return torch.tensor(numbers).reshape(1, -1, 1)


def test_samplers() -> None:
    candidates = column((1.0, -1.0, 0.0)).unsqueeze(-1)  # [1, 3, 1, 1]
    zero = torch.zeros(1, 1, 1, 1)
    # weights 1/2, 1/4, 1/4
    for centre, variance in (("previous", 2 / 3), ("updated", (0.5625 + 1.5625 + 0.0625) / 3)):
        mean, deviation, kept = SoftmaxSampler(centre=centre).refine(candidates, values_are([math.log(2), 0, 0]), zero)
        assert_close(mean.flatten(), torch.tensor([0.25]))
        assert_close(deviation.flatten(), torch.tensor([math.sqrt(variance)]))
        assert kept is None
    mean, deviation, kept = CEMSampler(elites=2).refine(candidates, values_are([3.0, 1.0, 2.0]), zero)
    assert_close(mean.flatten(), torch.tensor([0.5]))
    assert_close(deviation.flatten(), torch.tensor([math.sqrt(0.5)]))
    assert_close(kept[0].flatten(), torch.tensor([1.0, 0.0]))
    assert_close(kept[1].flatten(), torch.tensor([3.0, 2.0]))


@pytest.mark.parametrize("kind", [SoftmaxSampler, CEMSampler, RandomSampler])
def test_samplers_find_the_top_of_a_hill(kind) -> None:
    top = torch.tensor([0.9, -0.3])
    seen = []

    def score(actions):
        seen.append(actions)
        return -30 * (actions - top).pow(2).sum(-1)

    torch.manual_seed(0)
    candidates, values = kind(iterations=4, samples=50).propose(score, torch.zeros(6, 3, 2), -1.0, 1.0)
    assert sum(actions.shape[-3] for actions in seen) == 200
    assert all(actions.abs().max() <= 1 for actions in seen)
    best = candidates.gather(-3, values.argmax(-2, keepdim=True).unsqueeze(-1).expand(6, 1, 3, 2))
    assert (best.squeeze(-3) - top).abs().max() < (0.35 if kind is RandomSampler else 0.15)


def test_weights_of_a_batch() -> None:
    x = torch.tensor([[0.0, 5.0], [math.log(3), 5.0], [9.0, 5.0]])
    mask = torch.tensor([[True, True], [True, True], [False, True]])
    assert_close(batch_softmax(x, mask), torch.tensor([[0.5, 1.0], [1.5, 1.0], [0.0, 1.0]]))
    assert_close(batch_softmax(x[:2]), torch.tensor([[0.5, 1.0], [1.5, 1.0]]))
    assert_close(batch_softmax(x, torch.zeros_like(mask)), torch.zeros(3, 2))
    assert batch_softmax(torch.tensor([[1e4], [0.0]])).isfinite().all()


def test_implicit_constraint() -> None:
    loss = ready(icq_loss(actor(), critic(team=True), beta=6.0, temperature=2.0, **ROWS))
    found = loss(batch())
    # next team values 1 * (2 + 2 * 0) + 1 = 3 and 2 * (2.5 + 2 * .5) + 2 = 9; softmax of .5 and 1.5, times 2
    weights = (0.537883, 1.462117)
    targets = (2 + 0.5 * weights[0] * 3, 1 + 0.5 * weights[1] * 9, 3.0)
    squares = [(q - y) ** 2 for q, y in zip((6.5, 2.5, 3.0), targets)]
    assert_close(found["loss_qvalue"], torch.tensor(squares), rtol=1e-5, atol=1e-5)
    # weighted advantages (.1, -1.6), (0, .6), (-.2, 1.2), times 2
    sums = [sum(map(math.exp, each)) for each in ((0.2, 0.0, -0.4), (-3.2, 1.2, 2.4))]
    assert sums == pytest.approx([2.891723, 14.384055], abs=1e-5)
    terms = [
        [-3 * math.exp(x) / total * log_density(d) for x, total, d in zip(row, sums, distances)]
        for row, distances in zip(((0.2, -3.2), (0.0, 1.2), (-0.4, 2.4)), TO_DATA)
    ]
    assert_close(found["loss_actor"], torch.tensor(terms).mean(-1), rtol=1e-4, atol=1e-5)


def test_rows_without_a_next_action_have_no_weight() -> None:
    rows = batch()
    rows["collector", "has_next_action"] = torch.tensor([True, False, False])
    loss = ready(icq_loss(actor(), critic(team=True), beta=6.0, **ROWS))
    found = loss(rows)["loss_qvalue"]
    assert_close(found, torch.tensor([(6.5 - 3.5) ** 2, 0.0, 0.0]))  # the only weight is 1


def test_coupled_value_factorization() -> None:
    loss = ready(omac_loss(actor(), critic(team=True), value(), expectile=0.75, temperature=0.5, **ROWS))
    found = loss(batch())
    # state values (.5, 1), (0, .5), (-.5, .25); advantages (1, 1), (0, 1.5), (-1, .75)
    assert_close(found["loss_value"], torch.tensor([1.5 / 2, 1.6875 / 2, (0.25 + 0.421875) / 2]))
    # next (.5, .5), (1, 0): 1 * (.5 + 2 * .5) + 1 = 2.5 and 2 * 1 + 2 = 4; targets 3.25, 3, 3
    assert_close(found["loss_qvalue"], torch.tensor([3.25**2, 0.25, 0.0]))
    advantages = ((1.0, 2.0), (0.0, 1.5), (-2.0, 3.0))  # times the weights
    terms = [[-math.exp(a / 2) * log_density(d) for a, d in zip(*pair)] for pair in zip(advantages, TO_DATA)]
    assert_close(found["loss_actor"], torch.tensor(terms).mean(-1), rtol=1e-5, atol=1e-5)
    # tau-weighted -2 A o: -1.5 and -3, 0 and -2.25, -.5 and -.5625
    slope = gradient_of(loss, batch(), "loss_value", "k")
    assert_close(slope, torch.tensor(-(1.5 + 3.0 + 2.25 + 0.5 + 0.5625) / 6))


def test_global_to_local() -> None:
    loss = ready(omiga_loss(actor(), critic(team=True), value(), alpha=2.0, **ROWS))
    found = loss(batch())
    assert_close(found["loss_qvalue"], torch.tensor([3.25**2, 0.25, 0.0]))  # as above: V's target is V yet
    # exponents (.5, 1), (0, .75), (-1, 1.5), of which the largest is 1.5; w V / 2: (.25, 1), (0, .25), (-.5, .5)
    rows = [(0.423662 + 0.829661) / 2, (0.223130 + 0.528149) / 2, (-0.029480 + 1.111565) / 2]
    assert_close(found["loss_value"], torch.tensor(rows), rtol=1e-5, atol=1e-5)
    exponents = ((0.5, 1.0), (0.0, 0.75), (-1.0, 1.5))
    terms = [[-math.exp(z) * log_density(d) for z, d in zip(*pair)] for pair in zip(exponents, TO_DATA)]
    assert_close(found["loss_actor"], torch.tensor(terms).mean(-1), rtol=1e-5, atol=1e-5)
    slope = gradient_of(loss, batch(), "loss_value", "k")
    assert_close(slope, torch.tensor(-1.881709 / 6), rtol=1e-5, atol=1e-5)


def test_global_to_local_bootstraps_at_the_target_values() -> None:
    loss = ready(omiga_loss(actor(), critic(team=True), value(), alpha=2.0, **ROWS))
    before = loss(batch())
    with torch.no_grad():
        loss.value_network_params["module", "k"].mul_(2)
    after = loss(batch())
    assert torch.equal(after["loss_qvalue"], before["loss_qvalue"])
    assert not torch.equal(after["loss_value"], before["loss_value"])


def test_exponents_are_clipped_and_bounded_from_below() -> None:
    loss = ready(omiga_loss(actor(), critic(team=True), value(), alpha=0.01, **ROWS))
    # exponents (100, 200), (0, 150), (-200, 300), clipped at 10: the loss is divided by exp(10)
    terms = torch.tensor([[1.0, 1.0], [math.exp(-10), 1.0], [math.exp(-20), 1.0]])
    linear = math.exp(-10) * torch.tensor([[50.0, 200.0], [0.0, 50.0], [-100.0, 100.0]])
    assert_close(loss(batch())["loss_value"], (terms + linear).mean(-1), rtol=1e-4, atol=1e-6)
    low = batch()
    low["agents", "action"] = low["agents", "action"] - 20.0  # every exponent is below -1
    loss.regularization = 2.0
    assert loss(low)["loss_value"].isfinite().all()
    exponents = torch.tensor([[-9.5, -10.0], [-5.0, -9.25], [-10.0, -10.0]])
    linear = torch.tensor([[0.25, 1.0], [0.0, 0.25], [-0.5, 0.5]])
    expected = ((exponents + 1).exp() + math.exp(1) * linear).mean(-1)
    assert_close(loss(low)["loss_value"], expected, rtol=1e-5, atol=1e-6)
