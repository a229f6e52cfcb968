"""Equality with TorchRL's own losses, with the equations, and with finite differences."""

from __future__ import annotations

import pytest
import torch
from objective_toys import Case, gradients, loss_terms, make_batch
from single_agent_toys import ACTION, OBSERVATION, plain_networks, single_agent_batches, wrap
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close
from torchrl.modules import QMixer, VDNMixer
from torchrl.objectives import BCLoss, SoftUpdate
from torchrl.objectives import IQLLoss as TorchRLIQLLoss
from torchrl.objectives.multiagent import MAPPOLoss

from torchrl_marl_offline.modules import ScaleInvariantValueNorm
from torchrl_marl_offline.objectives import AWR, BRAC, IQL, BehaviourCloning, OfflineMARLLoss


@pytest.mark.parametrize("masked", [False, True])
def test_one_agent_equals_torchrl_iql_term_by_term(masked: bool) -> None:
    networks = plain_networks()
    flat, agents = single_agent_batches()
    theirs = TorchRLIQLLoss(*wrap(networks, ()), num_qvalue_nets=2, loss_function="l2", temperature=3.0, expectile=0.8)
    theirs.make_value_estimator(gamma=0.9)
    policy, critics, value = wrap(networks, ("agents",))
    rule = AWR(weights="clipped", temperature=3.0, standardize=False, exponent_range=(-1e9, 1e9))
    ours = OfflineMARLLoss(policy, critics, value, value_learning=IQL(0.8), extraction=rule)
    ours.make_value_estimator(gamma=0.9)
    for loss in (theirs, ours):
        updater = SoftUpdate(loss, tau=0.5)
        with torch.no_grad():  # targets unlike the live networks
            for parameter in loss.qvalue_network_params.values(True, True):
                parameter.mul_(1.5)
        updater.step()
    if masked:
        # TorchRL's critic term loses the mask on its way, so its loss gets only the rows that count
        keep = torch.arange(32) % 3 != 0
        flat, agents["collector", "mask"] = flat[keep], keep
    for term in ("loss_actor", "loss_qvalue", "loss_value"):
        expected, found = gradients(theirs, flat, term), gradients(ours, agents, term)
        assert_close(ours(agents)[term], theirs(flat)[term])
        reached = {name: g for name, g in expected.items() if g.count_nonzero()}
        assert reached and reached.keys() == {name for name, g in found.items() if g.count_nonzero()}
        for name, grad in reached.items():
            assert_close(found[name], grad)


@pytest.mark.filterwarnings("ignore:The name target_actor_network_params:UserWarning")
def test_one_agent_equals_torchrl_behaviour_cloning() -> None:
    networks = plain_networks()
    flat, agents = single_agent_batches()
    theirs = BCLoss(wrap(networks, ())[0])
    ours = BehaviourCloning(wrap(networks, ("agents",))[0])
    assert_close(ours(agents)["loss_actor"], theirs(flat)["loss_bc"])
    for expected, found in zip(gradients(theirs, flat).values(), gradients(ours, agents).values()):
        assert_close(found, expected)


@pytest.mark.parametrize("decomposition", ["mixer", "vdn", "centralized", "independent"])
@pytest.mark.parametrize("heads", ["all", "min"])
def test_scale_invariant_normalization_divides_the_gradient_by_the_squared_scale(
    decomposition: str, heads: str
) -> None:
    case = Case(decomposition, "sarsa", "awr")
    batch = make_batch(case.spec, 16).apply(lambda x: x.double() if x.is_floating_point() else x)
    plain = case.build(heads=heads).double()
    normal = case.build(heads=heads, value_norm=ScaleInvariantValueNorm()).double()
    values = plain.qvalue(batch)
    sigma = (values - values.mean()).abs().mean() + 1e-6
    expected, found = gradients(plain, batch, "loss_qvalue"), gradients(normal, batch, "loss_qvalue")
    assert_close(normal(batch)["value_norm_scale"], sigma)
    assert expected and expected.keys() == found.keys() and abs(sigma - 1) > 0.1
    for name, grad in expected.items():
        assert_close(found[name], grad / sigma**2, rtol=1e-6, atol=1e-9)
    assert_close(gradients(normal, batch, "loss_actor"), gradients(plain, batch, "loss_actor"))


def test_the_bellman_fixed_point_stays() -> None:
    case = Case("independent", "sarsa", "awr")
    loss = case.build(critic=case.critic(num_heads=1), value_norm=ScaleInvariantValueNorm())
    batch = make_batch(case.spec, 8)
    batch["next", "terminated"] = torch.ones(8, 1, dtype=torch.bool)
    batch["next", "agents", "reward"] = loss.qvalue(batch).unsqueeze(-1).clone()
    assert_close(loss(batch)["loss_qvalue"], torch.tensor(0.0))
    assert all(not grad.any() for grad in gradients(loss, batch, "loss_qvalue").values())
    batch["next", "agents", "reward"] += 1.0
    assert loss(batch)["loss_qvalue"] > 0


def test_scale_invariant_norm_serves_in_torchrl_mappo() -> None:
    torch.manual_seed(0)
    actor = wrap(plain_networks(), ("agents",))[0]
    critic = TensorDictModule(
        nn.Sequential(nn.Linear(5, 3), nn.Unflatten(-1, (3, 1))),
        in_keys=["state"],
        out_keys=[("agents", "state_value")],
    )
    batch = TensorDict(
        {
            "agents": {"observation": torch.randn(16, 3, OBSERVATION), "action": torch.rand(16, 3, ACTION) - 0.5},
            "state": torch.randn(16, 5),
        },
        [16],
    )
    batch["agents", "advantage"] = torch.randn(16, 3, 1)
    batch["agents", "value_target"] = 50.0 * torch.randn(16, 3, 1)
    batch["agents", "log_prob"] = actor.get_dist(batch).log_prob(batch["agents", "action"]).detach()
    norm = ScaleInvariantValueNorm()
    loss = MAPPOLoss(actor, critic, value_norm=norm, loss_critic_type="l2", entropy_bonus=False, critic_coeff=1.0)
    loss.set_keys(
        action=("agents", "action"),
        value=("agents", "state_value"),
        advantage=("agents", "advantage"),
        value_target=("agents", "value_target"),
        sample_log_prob=("agents", "log_prob"),
    )
    target = batch["agents", "value_target"]
    sigma = (target - target.mean()).abs().mean()
    value = critic(batch.clone())["agents", "state_value"]
    found = loss(batch)["loss_critic"]
    assert_close(norm.scale(), sigma.reshape(1))
    assert_close(found, ((value - target) / sigma).pow(2).mean(), rtol=1e-4, atol=1e-6)


TERMS = [
    ("loss_actor", Case("mixer", "iql", "awr"), {}),
    ("loss_actor", Case("mixer", "td", "brac"), {"extraction": BRAC(alpha=0.5, normalize=False)}),
    ("loss_qvalue", Case("mixer", "td", "awr"), {}),
    ("loss_qvalue", Case("mixer", "iql", "awr", discrete=True), {"heads": "min"}),
    ("loss_qvalue", Case("centralized", "sarsa", "awr"), {}),
    ("loss_qvalue", Case("independent", "td", "brac", discrete=True), {}),
    ("loss_value", Case("mixer", "iql", "awr"), {}),
    ("loss_value", Case("independent", "iql", "brac"), {}),
    ("loss_value", Case("centralized", "iql", "brac"), {}),
    ("loss_actor", Case(preset="BehaviourCloning", discrete=True), {}),
]


@pytest.mark.parametrize(("term", "case", "options"), TERMS, ids=str)
def test_gradients_by_finite_differences(term: str, case: Case, options: dict) -> None:
    loss = case.build(**options).double()
    batch = make_batch(case.spec, 6).apply(lambda x: x.double() if x.is_floating_point() else x)
    expected = gradients(loss, batch, term)
    parameters = dict(loss.named_parameters())
    step, generator = 1e-6, torch.Generator().manual_seed(0)
    checked = 0
    for name in (name for name, grad in expected.items() if grad.count_nonzero()):
        flat = parameters[name].data.view(-1)
        for index in torch.randint(len(flat), (2,), generator=generator).tolist():
            centre, ends = flat[index].item(), []
            for sign in (1, -1):
                flat[index] = centre + sign * step
                with torch.no_grad():
                    ends.append(loss(batch)[term].item())
            flat[index] = centre
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(
                expected[name].view(-1)[index].item(), rel=1e-4, abs=1e-7
            ), name
            checked += 1
    assert checked >= 6


@pytest.mark.parametrize("mixer", ["qmix", "vdn"])
def test_torchrl_mixers_work_in_the_loss(mixer: str) -> None:
    case = Case("mixer", "iql", "awr")
    net = VDNMixer(3, "cpu") if mixer == "vdn" else QMixer((5,), 4, 3, "cpu")
    loss = case.build(critic=case.critic(mixer=net))
    batch = make_batch(case.spec, 6)
    values = loss.team.action_value(batch, batch["agents", "action"])
    assert values.total.shape == (6, 1, 2)
    for head in range(2):  # TorchRL's take one head at a time
        inputs = [values.local[..., head : head + 1]] + ([batch["state"]] if mixer == "qmix" else [])
        assert_close(values.total[:, 0, head : head + 1], net(*inputs))
    grads = gradients(loss, batch, "loss_qvalue")
    assert any(name.startswith("mixer_network") for name in grads) == (mixer == "qmix")
    if mixer == "vdn":
        ours = Case("vdn", "iql", "awr").build()
        ours.load_state_dict(loss.state_dict())
        assert_close(dict(loss_terms(ours(batch))), dict(loss_terms(loss(batch))))
