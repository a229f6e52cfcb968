"""The presets beside each other: what one trains, the other sees."""

from __future__ import annotations

import pytest
import torch
from objective_toys import CONTINUOUS, DISCRETE, Case, gradients, loss_terms, make_batch
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.modules import ScaleInvariantValueNorm
from torchrl_marl_offline.objectives import AWR, AWRLoss, BehaviourCloning, BRACLoss, IQLLoss, OfflineMARLLoss, TDLoss


def step(loss, optimizer, batch) -> None:
    optimizer.zero_grad()
    sum(loss_terms(loss(batch)).values()).backward()
    optimizer.step()


@pytest.mark.parametrize("decomposition", ["mixer", "independent", "centralized"])
def test_a_policy_loss_follows_the_critic_that_another_loss_trains(decomposition: str) -> None:
    case = Case(decomposition)
    torch.manual_seed(0)
    actor, critic, value = case.actor(), case.critic(), case.value()
    critic_loss, policy_loss = IQLLoss(critic, value), AWRLoss(actor, critic, value)
    updater = SoftUpdate(critic_loss, tau=0.1)
    critic_optimizer = torch.optim.Adam(critic_loss.parameters(), 1e-2)
    policy_optimizer = torch.optim.Adam(policy_loss.parameters(), 1e-2, weight_decay=0.1)
    batch = make_batch(case.spec, 8)
    networks = ["qvalue_network", "value_network"] + ["mixer_network"] * (decomposition == "mixer")
    before = policy_loss(batch)["advantage"]
    for _ in range(3):
        step(critic_loss, critic_optimizer, batch)
        updater.step()
        trained = {n: getattr(critic_loss, f"{n}_params").clone().data for n in networks}
        step(policy_loss, policy_optimizer, batch)
        for name in networks:
            seen = getattr(policy_loss, f"{name}_params").data
            for key, expected in trained[name].items(True, True):
                assert torch.equal(seen[key], expected), f"{name} {key}"
                # nor does the policy's optimizer change the critic
                assert torch.equal(getattr(critic_loss, f"{name}_params").data[key], expected)
    assert policy_loss(batch)["advantage"] != before
    # the user's own modules are the ones that were trained
    inputs = batch.select(("agents", "observation"), ("agents", "action"), "state").clone()
    out = critic(inputs)
    key = ("agents", "state_action_value") if decomposition == "independent" else "state_action_value"
    torch.testing.assert_close(out[key].amin(-1).flatten(), critic_loss.qvalue(batch).flatten())
    policy = policy_loss.team.policy(batch).deterministic_sample
    torch.testing.assert_close(actor.get_dist(inputs).deterministic_sample, policy)


def test_a_critic_loss_follows_the_actor_that_another_loss_trains() -> None:
    case = Case("vdn")
    actor, critic = case.actor(), case.critic()
    critic_loss, cloning = TDLoss(actor, critic), BehaviourCloning(actor)
    SoftUpdate(critic_loss, tau=0.1)
    batch = make_batch(case.spec, 8)
    before = critic_loss(batch)["td_target"]
    step(cloning, torch.optim.Adam(cloning.parameters(), 1e-1), batch)
    assert critic_loss(batch)["td_target"] != before


def test_parameters_are_what_a_loss_trains() -> None:
    case = Case("mixer")
    actor, critic, value = case.actor(), case.critic(), case.value()
    own = {
        TDLoss(actor, critic): ["qvalue_network", "mixer_network"],
        IQLLoss(critic, value): ["qvalue_network", "mixer_network", "value_network"],
        AWRLoss(actor, critic, value): ["actor_network"],
        BRACLoss(actor, critic): ["actor_network"],
        BehaviourCloning(actor): ["actor_network"],
    }
    for loss, networks in own.items():
        found = {name.split("_params.")[0] for name, _ in loss.named_parameters()}
        assert found == set(networks), type(loss).__name__
        assert {n for n, _ in loss.named_parameters("outer")} == {f"outer.{n}" for n, _ in loss.named_parameters()}
    # the whole model goes into the checkpoint all the same
    assert any(k.startswith("qvalue_network") for k in AWRLoss(actor, critic).state_dict())


def test_a_policy_loss_does_not_clear_the_critic_s_gradients_or_draw_it_anew() -> None:
    case = Case("mixer")
    actor, critic, value = case.actor(), case.critic(), case.value()
    critic_loss, policy_loss = IQLLoss(critic, value), AWRLoss(actor, critic, value)
    SoftUpdate(critic_loss, tau=0.1)
    batch = make_batch(case.spec, 8)
    expected = gradients(critic_loss, batch)
    policy_loss.zero_grad()
    assert all(p.grad is not None for p in critic_loss.parameters())
    weights = [p.clone() for p in critic_loss.parameters()]
    policy_loss.reset_parameters_recursive()
    assert all(torch.equal(a, b) for a, b in zip(weights, critic_loss.parameters()))
    assert expected.keys() == dict(critic_loss.named_parameters()).keys()


def test_two_losses_equal_the_one_that_has_both_terms() -> None:
    case = Case("mixer", "iql", "awr")
    whole = case.build(value_norm=ScaleInvariantValueNorm())
    batch = make_batch(case.spec, 8)
    torch.manual_seed(1)
    actor, critic = case.actor(), case.critic()
    value = case.value()
    critic_loss = IQLLoss(critic, value, expectile=0.8, value_norm=ScaleInvariantValueNorm())
    critic_loss.make_value_estimator(gamma=0.9)
    SoftUpdate(critic_loss, tau=0.5)
    policy_loss = AWRLoss(actor, critic, value, rule=AWR(temperature=2.0))
    parts = gradients(critic_loss, batch) | gradients(policy_loss, batch)
    together = gradients(whole, batch)
    assert parts.keys() == together.keys()
    for name, grad in together.items():
        torch.testing.assert_close(parts[name], grad, msg=name)


def test_dtype_changes_keep_the_networks_shared() -> None:
    case = Case("mixer")
    actor, critic, value = case.actor(), case.critic(), case.value()
    critic_loss, policy_loss = IQLLoss(critic, value), AWRLoss(actor, critic, value)
    critic_loss.double(), policy_loss.double()
    with torch.no_grad():
        for parameter in critic_loss.parameters():
            parameter.add_(1.0)
    for name in ("qvalue_network", "mixer_network", "value_network"):
        live = getattr(critic_loss, f"{name}_params")
        for key, seen in getattr(policy_loss, f"{name}_params").items(True, True):
            torch.testing.assert_close(seen, live[key])


def test_a_policy_loss_refuses_an_ensemble_that_it_could_not_follow() -> None:
    case = Case("independent")
    critics = [case.critic(num_heads=1) for _ in range(2)]
    with pytest.raises(ValueError, match=r"AWRLoss trains no critic.*pass one critic with num_heads="):
        AWRLoss(case.actor(), critics)
    assert OfflineMARLLoss(case.actor(), critics, case.value()) is not None


def test_the_defaults_are_the_recipe() -> None:
    case = Case("mixer")
    loss = OfflineMARLLoss(case.actor(), case.critic(), case.value())
    assert float(loss.expectile) == pytest.approx(0.9) and loss.extraction == AWR()
    assert CONTINUOUS.n_agents == 3 and loss.in_keys[0] == ("agents", "action")


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_one_setting_for_all_qualities_is_the_recipes_axes(spec) -> None:
    names = {"decomposition": "vdn", "svn": False, "value_learning": "td", "extraction": "brac", "alpha": 0.03}
    losses = []
    for given in ({"algorithm": "brac"}, {"algorithm": "recipe", **names, "hidden": (64, 64)}):
        torch.manual_seed(0)
        loss = make_loss(spec, **given)
        SoftUpdate(loss, tau=0.1)
        torch.manual_seed(1)  # discrete policies draw their actions
        losses.append(gradients(loss, make_batch(spec, 16)))
    found, expected = losses
    assert found and found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name
