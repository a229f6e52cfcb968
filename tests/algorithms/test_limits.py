"""The limits in which one system of the field is another, illegal actions, what is refused, and builders by name."""

from __future__ import annotations

import pytest
import torch
from algorithm_toys import omac_loss, omar_loss, omiga_loss, td3_bc_loss
from objective_toys import Case, gradients, make_batch
from systems_toys import one_hot, updated
from torch.testing import assert_close
from torchrl.modules import VDNMixer
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.algorithms import ALGORITHMS, make_loss, settings_of
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.modules import make_actor, make_critic, make_value
from torchrl_marl_offline.objectives import (
    AWR,
    CQL,
    ICQ,
    SARSA,
    TD,
    TD3BC,
    BehaviourCloning,
    CEMSampler,
    Cloning,
    GlobalToLocal,
    OfflineMARLLoss,
    PolicyGradient,
    RectifiedGradient,
    SoftmaxSampler,
)

ROWS = 5


def same_gradients(a, b, batch, term: str, **tolerance) -> None:
    found, expected = gradients(a, batch, term), gradients(b, batch, term)
    assert expected.keys() == found.keys() and any(grad.any() for grad in expected.values())
    for name, grad in expected.items():
        assert_close(found[name], grad, **tolerance)


def test_with_one_agent_and_much_regularization_omiga_is_cloning() -> None:
    spec = TaskSpec(n_agents=1, observation_size=4, state_size=5, action_size=2)
    torch.manual_seed(0)
    critic = make_critic(spec, decomposition="vdn", hidden=(8,))
    actor = make_actor(spec, hidden=(8,), final_scale=1.0)
    omiga = updated(omiga_loss(actor, critic, make_value(spec, decomposition="vdn", hidden=(8,)), alpha=1e6))
    batch = make_batch(spec, ROWS)
    assert (omiga.team.credit(batch, torch.zeros(ROWS, 1, 1)) == 1).all()
    cloning = BehaviourCloning(actor)
    assert_close(omiga.actor_loss(batch)[0], cloning.actor_loss(batch)[0])
    omiga.temperature = 1.0
    assert not torch.allclose(omiga.actor_loss(batch)[0], cloning.actor_loss(batch)[0], rtol=1e-2)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("decomposition", ["independent", "centralized", "mixer"])
def test_without_rectification_omar_is_conservative_ascent(decomposition: str, discrete: bool) -> None:
    case = Case(decomposition, preset="cql", discrete=discrete)
    cql = case.build(extraction=PolicyGradient())
    omar = Case(decomposition, preset="omar", discrete=discrete).build(rectification=0.0)
    batch = make_batch(case.spec, ROWS)
    for term in ("loss_actor", "loss_qvalue"):
        results = []
        for loss in (cql, omar):
            torch.manual_seed(2)
            with_noise = gradients(loss, batch, term)
            torch.manual_seed(2)
            results.append((with_noise, loss(batch)[term]))
        if term == "loss_actor" or discrete:  # the search of the other takes noise from the generator before
            assert_close(results[1], results[0])
    no_search = {"learning": CQL(num_random=4, num_policy=4)}
    values = [case.build(**no_search), Case(decomposition, preset="omar", discrete=discrete).build(**no_search)]
    found = []
    for loss in values:
        torch.manual_seed(2)
        found.append(loss.qvalue_loss(batch)[0])
    assert_close(found[1], found[0])


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("decomposition", ["independent", "centralized", "mixer"])
def test_without_penalty_conservative_learning_is_td(decomposition: str, discrete: bool) -> None:
    case = Case(decomposition, "td", "awr", discrete=discrete)
    td, cql = case.build(), case.build(value_learning=CQL(min_q_weight=0.0))
    batch = make_batch(case.spec, ROWS)
    assert_close(cql(batch)["loss_qvalue"], td(batch)["loss_qvalue"])
    same_gradients(cql, td, batch, "loss_qvalue")
    cql.min_q_weight = 1.0
    assert cql(batch)["loss_qvalue"] != td(batch)["loss_qvalue"]


@pytest.mark.parametrize("discrete", [False, True])
def test_without_temperature_icq_is_sarsa_with_cloning(discrete: bool) -> None:
    case = Case("linear", preset="icq", discrete=discrete)
    icq = case.build(beta=1e7, temperature=0.0)
    torch.manual_seed(1)
    plain = updated(OfflineMARLLoss(case.actor(), case.critic(), value_learning=SARSA(), extraction=Cloning()))
    batch = make_batch(case.spec, ROWS)
    for term in ("loss_actor", "loss_qvalue"):
        same_gradients(icq, plain, batch, term, rtol=1e-4, atol=1e-5)
    icq.beta = 0.1
    assert not torch.allclose(icq(batch)["loss_qvalue"], plain(batch)["loss_qvalue"], rtol=1e-2)


def test_omac_with_one_agent_is_iql() -> None:
    spec = TaskSpec(n_agents=1, observation_size=4, state_size=5, action_size=2)
    losses = []
    for local in (True, False):
        torch.manual_seed(0)
        parts = [make_actor(spec, hidden=(8,)), make_critic(spec, decomposition="vdn", hidden=(8,))]
        value = make_value(spec, decomposition="vdn", hidden=(8,))
        if local:
            loss = omac_loss(*parts, value, expectile=0.9, temperature=1.0)
        else:
            loss = OfflineMARLLoss(*parts, value, extraction=AWR(1.0, weights="clipped", standardize=False))
        losses.append(updated(loss))
    batch = make_batch(spec, ROWS)
    for term in ("loss_actor", "loss_qvalue", "loss_value"):
        same_gradients(*losses, batch, term)


def test_without_noise_smoothing_is_none() -> None:
    case = Case("mixer", "td")
    batch = make_batch(case.spec, ROWS)
    losses = [case.build(value_learning=rule) for rule in (TD(), TD(noise=0.2, noise_clip=0.0), TD(noise=1e-9))]
    found = [loss(batch)["loss_qvalue"] for loss in losses]
    assert_close(found[1:], [found[0]] * 2)
    assert case.build(value_learning=TD(noise=0.2))(batch)["loss_qvalue"] != found[0]


# --------------------------------------------------------------------------- illegal actions


@pytest.mark.parametrize("decomposition", ["independent", "centralized", "linear"])
@pytest.mark.parametrize("preset", ["cql", "omar", "icq"])
def test_illegal_actions_do_not_count(decomposition: str, preset: str, monkeypatch) -> None:
    """However high the critic values actions that no agent may take here, the loss and its gradients are the same."""
    case = Case(decomposition, preset=preset, discrete=True)
    loss = case.build(**({"rectification": 0.5} if preset == "omar" else {}))
    batch = make_batch(case.spec, ROWS)
    never = case.spec.action_size - 1
    for half in (batch, batch["next"]):
        half["agents", "action_mask"][..., never] = False
        half["agents", "action_mask"][..., 1] = True
        taken = half["agents", "action"]
        half["agents", "action"] = torch.where(taken == never, torch.ones_like(taken), taken)
    inner, bonuses = loss.team.critic_outputs, [0.0]

    def critic(tensordict, action, **options):
        values, beside = inner(tensordict, action, **options)
        chosen = action if action.is_floating_point() else one_hot(case.spec, action)
        illegal = chosen[..., never].detach().unsqueeze(-1)  # [*, n, 1]
        if decomposition == "centralized":
            illegal = illegal.amax(-2, keepdim=True)
        return values + bonuses[0] * illegal, beside

    monkeypatch.setitem(vars(loss.team), "critic_outputs", critic)
    found = []
    for bonus in (0.0, 1e3):
        bonuses[0] = bonus
        torch.manual_seed(0)
        found.append(gradients(loss, batch))
    assert_close(found[1], found[0])
    batch["agents", "action_mask"] = torch.ones(ROWS, 3, case.spec.action_size, dtype=torch.bool)
    torch.manual_seed(0)
    changed = gradients(loss, batch)
    assert any(not torch.allclose(changed[name], grad) for name, grad in found[1].items())  # now it is legal


# --------------------------------------------------------------------------- refusals and builders


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CQL(min_q_weight=-1.0), "min_q_weight must be at least 0, got -1.0"),
        (lambda: CQL(num_random=0, num_policy=0), "one must be above 0; both are 0"),
        (lambda: TD(noise=-0.1), "noise must be at least 0, got -0.1"),
        (lambda: ICQ(beta=0.0), "beta must be above 0, got 0.0"),
        (lambda: GlobalToLocal(0.0), "regularization must be above 0, got 0.0"),
        (lambda: RectifiedGradient(rectification=1.5), "rectification must lie between 0 and 1, got 1.5"),
        (lambda: PolicyGradient(others="all"), "others must be 'data' or 'policy', got 'all'"),
        (lambda: TD3BC(alpha=-1.0), "alpha must be at least 0, got -1.0"),
        (lambda: SoftmaxSampler(centre="new"), "centre must be 'previous' or 'updated', got 'new'"),
        (lambda: CEMSampler(elites=11), r"elites must be at most samples \(10\), got 11"),
        (lambda: SoftmaxSampler(samples=1), "samples must be at least 2, got 1"),
        (lambda: AWR(baseline="zero"), "baseline must be 'mode' or 'expected', got 'zero'"),
    ],
)
def test_settings_that_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("algorithm", ["omiga", "omac"])
@pytest.mark.parametrize("decomposition", ["centralized", "graph"])
@pytest.mark.parametrize("discrete", [False, True])
def test_what_fits_agents_values_is_refused_by_a_critic_of_the_team_when_it_is_built(
    algorithm, decomposition, discrete
) -> None:
    spec = TaskSpec(2, 3, 6, 2, discrete=discrete)
    with pytest.raises(ValueError, match="fits each agent's own value, and a critic of the team alone"):
        make_loss(spec, algorithm=algorithm, decomposition=decomposition, hidden=(8,))


def test_what_does_not_fit_together_is_refused() -> None:
    discrete = Case("independent", preset="td3_bc", discrete=True)
    with pytest.raises(ValueError, match="TD3BC regresses on continuous actions; for a discrete task use BRAC"):
        discrete.build()(make_batch(discrete.spec, 4))
    case = Case("mixer", preset="omiga")
    loss = case.build(critic=case.critic(mixer=VDNMixer(3, "cpu")))
    with pytest.raises(ValueError, match="VDNMixer does not tell the weights of the agents"):
        loss(make_batch(case.spec, 4))
    with pytest.raises(ValueError, match="BRAC and another rule both have a coefficient 'alpha'"):

        class Weighed(TD):
            def coefficients(self):
                return {"alpha": 1.0}

        Case("vdn", "td", "brac").build(value_learning=Weighed())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("discrete", [False, True])
def test_every_algorithm_by_name(algorithm: str, discrete: bool) -> None:
    case = Case(discrete=discrete)
    settings = {"hidden": (8,)} | ({"max_next_value": 1.0} if algorithm == "b3c" else {})
    if discrete and algorithm in ("td3_bc", "b3c"):
        with pytest.raises(ValueError, match=f"{algorithm} is for continuous actions"):
            make_loss(case.spec, algorithm=algorithm, **settings)
        return
    loss = make_loss(case.spec, algorithm=algorithm, **settings)
    assert {"hidden"} <= set(settings_of(algorithm))
    if loss.value_learning is not None:
        SoftUpdate(loss, tau=0.1)
    output = loss(make_batch(case.spec, 4))
    assert all(value.isfinite() for value in output.values())


def test_builders_refuse_what_they_do_not_know() -> None:
    spec = Case().spec
    with pytest.raises(ValueError, match=r"omar has no setting 'expectile'; it has .*decomposition"):
        make_loss(spec, algorithm="omar", expectile=0.9)
    with pytest.raises(ValueError, match="sampler must be 'softmax', 'cem' or 'random', got 'grid'"):
        make_loss(spec, algorithm="omar", sampler="grid")
    with pytest.raises(ValueError, match="b3c clips its targets: set max_next_value"):
        make_loss(spec, algorithm="b3c")


def test_systems_are_presets_of_their_published_rules() -> None:
    case = Case("linear")
    parts = case.actor(), case.critic()
    assert omar_loss(*parts).extraction == RectifiedGradient() and omar_loss(*parts).value_learning == CQL(noise=0.2)
    td3 = td3_bc_loss(*parts)
    assert td3.value_learning == TD(noise=0.2, noise_clip=0.5) and td3.extraction == TD3BC(alpha=2.5)
    omiga = omiga_loss(*parts, case.value(), alpha=4.0)
    assert float(omiga.regularization) == 4.0 and float(omiga.temperature) == 0.25
