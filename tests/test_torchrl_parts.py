"""Losses with the networks, policies, buffers and environments that users of TorchRL have."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torchrl_toys as toys
from memory_toys import make_sequences
from objective_toys import CONTINUOUS, DISCRETE, Case, gradients, loss_terms, make_batch
from population_toys import largest_difference, make_data
from selection import some_of
from tensordict import TensorDict, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import distributions as D
from torch import nn
from torchrl.data import Bounded, Categorical, Composite, LazyTensorStorage, OneHot, TensorDictReplayBuffer, Unbounded
from torchrl.data.replay_buffers.samplers import SliceSampler
from torchrl.modules import Actor, GRUModule, LSTMModule, MultiAgentConvNet, MultiAgentMLP, set_recurrent_mode
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.core.functional_parameters import parameters_in, tensors_in, tensors_of
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.data.next_action import NextAction
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.modules import DuplexMixer
from torchrl_marl_offline.objectives import (
    AWR,
    BRAC,
    CQL,
    ICQ,
    IQL,
    SARSA,
    TD,
    TD3BC,
    Cloning,
    OfflineMARLLoss,
    PolicyExtraction,
    PolicyGradient,
    RectifiedGradient,
    SARSALoss,
    SoftmaxSampler,
    ValueLearning,
)
from torchrl_marl_offline.objectives.action_distributions import mode_of, per_agent
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.training.populations.population import Population, PopulationBuffer, PopulationGradients
from torchrl_marl_offline.training.step.gradients import CompiledGradients, Gradients

SEARCH = SoftmaxSampler(iterations=1, samples=3)
FEW = {"num_random": 2, "num_policy": 2}
OF_ACTIONS = {
    "TD3BC": (TD(noise=0.2), TD3BC()),
    "TD, sampled": (TD(sample=True), PolicyGradient()),
    "CQL": (CQL(**FEW, noise=0.2), PolicyGradient()),
    "OMAR": (CQL(**FEW), RectifiedGradient(sampler=SEARCH)),
}
OF_LIKELIHOODS = {"AWR": AWR(), "BRAC": BRAC(), "Cloning": Cloning()}
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def updated(loss: OfflineMARLLoss) -> OfflineMARLLoss:
    loss.make_value_estimator(gamma=0.9)
    if loss.value_learning is not None:
        SoftUpdate(loss, tau=0.1)
    return loss


def team_loss(form: dict, mixer: str | None, learning=TD(), extraction=BRAC(), **options) -> OfflineMARLLoss:  # noqa: B008
    """A loss over MultiAgentMLP networks of one form."""
    value = toys.value(**form) if isinstance(learning, IQL) else None
    actor = toys.gaussian(lambda loc, scale: D.Independent(D.Normal(loc, scale), 1), **form)
    options = {"mixer": toys.mixer(mixer)} | options
    return updated(
        OfflineMARLLoss(actor, toys.critic(**form), value, value_learning=learning, extraction=extraction, **options)
    )


def check_contract(loss: OfflineMARLLoss, batch: TensorDict) -> None:
    """Finite terms; gradients to every parameter; targets matter; rows that do not count may be NaN."""
    found = gradients(loss, batch.clone())
    output = loss(batch.clone())
    assert all(term.isfinite() for term in output.values())
    assert found.keys() == dict(loss.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in found.values())
    networks = {name.partition("_params.")[0] for name, gradient in found.items() if gradient.count_nonzero()}
    assert networks == {name.partition("_params.")[0] for name in found}
    short = loss(batch[:-1].clone())
    masked = batch.clone()
    masked["collector", "mask"] = torch.arange(len(batch)) < len(batch) - 1
    for key in list(masked.keys(True, True)):
        if masked[key].is_floating_point():
            masked[key][-1] = math.nan
    for name, term in loss_terms(loss(masked)).items():
        torch.testing.assert_close(term, short[name], rtol=1e-4, atol=1e-5)
    clone = copy.deepcopy(loss)
    assert clone(batch.clone())["loss_actor"] == output["loss_actor"]
    if loss.value_learning is not None:
        with torch.no_grad():
            for name, target in clone.named_buffers():
                if name.startswith("target_"):
                    target.add_(0.5)
        moved = clone(batch.clone())
        assert any(moved[name] != output[name] for name in ("loss_qvalue", "loss_value") if name in moved)


@pytest.mark.fault("4.1")
@pytest.mark.parametrize("mixer", [None, "VDNMixer", "QMixer"])
@pytest.mark.parametrize("form", some_of(toys.FORMS, every=2), ids=str)
def test_multi_agent_mlp_fits_every_combination_of_rules(form: dict, mixer: str | None) -> None:
    batch = make_batch(CONTINUOUS, 5)
    for learning in (TD(), SARSA(), IQL(0.8)):
        for extraction in (AWR(temperature=1.0), BRAC()):
            check_contract(team_loss(form, mixer, learning, extraction), batch)


@pytest.mark.fault("4.1")
@pytest.mark.parametrize("form", toys.FORMS, ids=str)
def test_an_ensemble_of_multi_agent_mlps_is_its_members_with_and_without_vmap(form: dict) -> None:
    batch = make_batch(CONTINUOUS, 5)
    found = []
    for deactivate in (False, True):
        torch.manual_seed(3)
        members = [toys.critic(**form) for _ in range(2)]
        loss = updated(SARSALoss(members, deactivate_vmap=deactivate))
        values = loss.team.action_value(batch, batch[toys.ACTION]).total
        torch.testing.assert_close(values[..., 1:], members[1](batch.clone())[toys.LOCAL_Q])
        found.append(gradients(loss, batch.clone()))
        loss.reset_parameters_recursive()
        assert loss(batch.clone())["loss_qvalue"].isfinite()
    assert largest_difference(*found) < 1e-5


class Nested(nn.Module):
    """Computes with parameters that lie in a TensorDictParams, as TorchRL's networks for many agents do."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(6, 1)
        self.own = TensorDictParams(TensorDict({"weight": layer.weight.data, "bias": layer.bias.data}))

    def forward(self, observation, action):
        rows = torch.cat([observation, action], -1)
        return nn.functional.linear(rows, self.own.get("weight"), self.own.get("bias"))


class Tied(nn.Module):
    """One layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(6, 6)
        self.last = nn.Linear(6, 1)

    def forward(self, observation, action):
        return self.last(self.second(self.first(torch.cat([observation, action], -1)).tanh()))


class Recurrent(nn.Module):
    """Agents as time: torch's recurrent networks compute with a list of their own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.last = nn.GRU(6, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, observation, action):
        return self.last(self.gru(torch.cat([observation, action], -1))[0])


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        options = {"num_cells": [2], "kernel_sizes": 1, "strides": 1, "in_features": 1}
        self.net = MultiAgentConvNet(3, False, False, **options)
        self.last = nn.Linear(12, 1)

    def forward(self, observation, action):
        rows = torch.cat([observation, action], -1)
        pictures = rows.reshape(-1, 3, 1, 3, 2)
        return self.last(self.net(pictures)).reshape(*rows.shape[:-1], 1)


@pytest.mark.fault("4.1")
@pytest.mark.parametrize("module", [Nested, Tied, Recurrent, Pictures, lambda: toys.net(6, 1, **toys.UNSHARED)])
def test_networks_use_the_parameters_that_they_are_given_and_get_their_own_back(module) -> None:
    network = TensorDictModule(module(), in_keys=[toys.OBSERVATION, toys.ACTION], out_keys=[toys.LOCAL_Q])
    batch = make_batch(CONTINUOUS, 4)
    loss = updated(SARSALoss(network))
    own = network(batch.clone())[toys.LOCAL_Q]
    with torch.no_grad():
        for name, target in loss.named_buffers():
            if name.startswith("target_"):
                target.zero_()
    assert not loss.team.action_value(batch, batch[toys.ACTION], target=True).total.any()
    assert own.any() and torch.equal(network(batch.clone())[toys.LOCAL_Q], own)
    assert torch.equal(loss.team.action_value(batch, batch[toys.ACTION]).total, own)
    given = {name: torch.zeros_like(tensor) for name, tensor in tensors_of(loss).items()}
    with tensors_in(loss, given):
        assert not loss.team.action_value(batch, batch[toys.ACTION]).total.any()
    assert torch.equal(loss.team.action_value(batch, batch[toys.ACTION]).total, own)
    with parameters_in(network, loss.target_qvalue_network_params):
        assert not network(batch.clone())[toys.LOCAL_Q].any()
    assert torch.equal(network(batch.clone())[toys.LOCAL_Q], own)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 1))
        self.weights = [self.weight]

    def forward(self, observation, action):
        return torch.cat([observation, action], -1) @ self.weights[0]


@pytest.mark.fault("4.1")
@pytest.mark.parametrize("share", [True, False])
def test_networks_that_ignore_given_parameters_are_refused(share: bool) -> None:
    options = {"share_params": share, "centralized": False, "depth": 1, "num_cells": 4, "use_td_params": False}
    keys = [toys.OBSERVATION, toys.ACTION]
    ignorant = TensorDictModule(MultiAgentMLP(6, 1, 3, **options), in_keys=keys, out_keys=[toys.LOCAL_Q])
    with pytest.raises(ValueError, match=r"The critic has a MultiAgentMLP .* build it with use_td_params=True"):
        SARSALoss(ignorant)
    with pytest.raises(ValueError, match="The critic has a MultiAgentMLP"):
        SARSALoss([toys.critic(), ignorant])
    policy = TensorDictModule(MultiAgentMLP(4, 2, 3, **options), in_keys=keys[:1], out_keys=[toys.ACTION])
    with pytest.raises(ValueError, match="The actor has a MultiAgentMLP"):
        OfflineMARLLoss(policy, toys.critic(), value_learning=TD(), extraction=TD3BC())
    listed = TensorDictModule(Listed(), in_keys=keys, out_keys=[toys.LOCAL_Q])
    with pytest.raises(ValueError, match="The critic has a Listed that also keeps its parameters in 'weights'"):
        SARSALoss(listed)


@pytest.mark.fault("4.1")
@pytest.mark.parametrize("form", [{}, toys.UNSHARED], ids=str)
def test_multi_agent_mlp_in_a_traced_step_and_in_populations(form: dict) -> None:
    batch = make_batch(CONTINUOUS, 6)
    torch.manual_seed(2)
    losses = {name: team_loss(form, "VDNMixer", TD(), AWR(temperature=1.0)) for name in ("a", "b")}
    found = {}
    for name, loss in losses.items():
        Gradients(loss)(batch.clone())
        found[name] = {key: p.grad.clone() for key, p in loss.named_parameters()}
    CompiledGradients(losses["b"], backend=None)(batch.clone())
    assert largest_difference({key: p.grad for key, p in losses["b"].named_parameters()}, found["b"]) < 1e-5
    population = Population(losses)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    PopulationGradients(population, generators=generators)(torch.stack([batch, batch]))
    for index, name in enumerate(losses):
        stacked = {key: t.grad[index] for key, t in population.tensors().items() if t.grad is not None}
        assert largest_difference(stacked, found[name]) < 1e-5
    acted = population.act(torch.cat([batch, batch]).select(toys.OBSERVATION))[toys.ACTION]
    for part, loss in zip(acted.split(6), losses.values()):
        torch.testing.assert_close(part, mode_of(loss.team.policy(batch)), rtol=1e-5, atol=1e-6)


@pytest.mark.fault("4.2")
@pytest.mark.parametrize("make", toys.DETERMINISTIC.values(), ids=toys.DETERMINISTIC)
def test_deterministic_actors_serve_rules_that_need_no_likelihood(make) -> None:
    batch = make_batch(CONTINUOUS, 5)
    for learning, extraction in OF_ACTIONS.values():
        parts = {"value_learning": learning, "extraction": extraction, "action_spec": (-1.0, 1.0)}
        loss = updated(OfflineMARLLoss(make(), toys.critic(), **parts))
        terms = gradients(loss, batch.clone())
        assert terms.keys() == dict(loss.named_parameters()).keys()
        executed = loss.actor_network(batch.clone())[toys.ACTION]
        torch.testing.assert_close(mode_of(loss.team.policy(batch)), executed)


@pytest.mark.fault("4.2")
@pytest.mark.fault("3.13")
@pytest.mark.parametrize("rule", OF_LIKELIHOODS.values(), ids=OF_LIKELIHOODS)
@pytest.mark.parametrize("make", toys.DETERMINISTIC.values(), ids=toys.DETERMINISTIC)
def test_rules_that_need_a_likelihood_refuse_a_deterministic_actor(make, rule) -> None:
    with pytest.raises(ValueError, match=f"{type(rule).__name__} needs the log-probabilities of a stochastic policy"):
        updated(OfflineMARLLoss(make(), toys.critic(), value_learning=TD(), extraction=rule))(make_batch(CONTINUOUS, 4))


@pytest.mark.fault("4.2")
def test_a_deterministic_actor_that_writes_no_continuous_action() -> None:
    whole = TensorDictModule(lambda o: o.argmax(-1), in_keys=[toys.OBSERVATION], out_keys=[toys.ACTION])
    other = TensorDictModule(nn.Linear(4, 2), in_keys=[toys.OBSERVATION], out_keys=["elsewhere"])
    for actor, message in ((whole, "writes whole numbers"), (other, r"writes \['elsewhere'\], not the action")):
        loss = updated(OfflineMARLLoss(actor, toys.critic(), value_learning=TD(), extraction=PolicyGradient()))
        with pytest.raises(ValueError, match=message):
            loss(make_batch(CONTINUOUS, 4))


def bounded(low: float, high: float, *shape: int) -> Composite:
    return Composite(agents=Composite(action=Bounded(low, high, shape)))


@pytest.mark.fault("4.2")
@pytest.mark.parametrize(
    "spec",
    [
        (-0.5, 0.25),
        [torch.full((3, 2), -0.5), torch.full((2,), 0.25)],
        Bounded(-0.5, 0.25, (3, 2)),
        Bounded(-0.5, 0.25, (7, 3, 2)),
        bounded(-0.5, 0.25, 3, 2),
        bounded(-0.5, 0.25, 7, 3, 2),
    ],
)
def test_bounds_may_be_numbers_or_a_spec(spec) -> None:
    loss = OfflineMARLLoss(
        toys.plain(), toys.critic(), value_learning=CQL(**FEW), extraction=PolicyGradient(), action_spec=spec
    )
    drawn, log_prob = CQL(**FEW)._sampled(loss.team.policy(make_batch(CONTINUOUS, 200)))
    assert drawn.min() >= -0.5 and drawn.max() <= 0.25 and drawn.min() < -0.49 and drawn.max() > 0.24
    torch.testing.assert_close(log_prob, torch.full_like(log_prob, -2 * math.log(0.75)))
    assert not {"action_low", "action_high"} & loss.state_dict().keys()


@pytest.mark.fault("4.2")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ((1.0, -1.0), "must have finite bounds, the low below the high"),
        ((-1.0, math.inf), "must have finite bounds"),
        ((math.nan, 1.0), "must have finite bounds"),
        (Unbounded((3, 2)), "has no bounds; leave it out"),
        (Composite(a=Bounded(-1, 1, (2,)), b=Bounded(-1, 1, (2,))), r"not the action .*; pass that of the action"),
        (Bounded(torch.tensor([[[-1.0]], [[-2.0]]]), torch.ones(2, 1, 1)), "other bounds for other environments"),
    ],
)
def test_bounds_that_are_none(spec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OfflineMARLLoss(toys.plain(), toys.critic(), value_learning=TD(), extraction=TD3BC(), action_spec=spec)
    with pytest.raises(TypeError, match=r"action_spec must be a TorchRL spec or \(low, high\), got 3"):
        OfflineMARLLoss(toys.plain(), toys.critic(), value_learning=TD(), extraction=TD3BC(), action_spec=3)


@pytest.mark.parametrize("spec", [Categorical(4, (3,)), Composite(agents=Composite(action=OneHot(4, (3, 4))))])
def test_a_spec_of_discrete_actions_needs_no_bounds(spec) -> None:
    case = Case("vdn", "td", "brac", discrete=True)
    found, expected = (updated(case.build(**given))(make_batch(DISCRETE, 6)) for given in ({"action_spec": spec}, {}))
    assert found.keys() == expected.keys() and found["loss_qvalue"].isfinite()
    rules = {"value_learning": CQL(**FEW), "extraction": PolicyGradient()}
    loss = OfflineMARLLoss(toys.plain(), toys.critic(), **rules, action_spec=spec)
    with pytest.raises(ValueError, match="needs the bounds of the actions"):
        updated(loss)(make_batch(CONTINUOUS, 4))


@pytest.mark.fault("4.2")
def test_bounds_come_from_the_actors_spec_and_their_absence_is_named() -> None:
    batch = make_batch(CONTINUOUS, 4)
    rules = {"value_learning": CQL(**FEW), "extraction": RectifiedGradient(sampler=SEARCH)}
    updated(OfflineMARLLoss(toys.actor_with_spec(), toys.critic(), **rules))(batch.clone())
    updated(OfflineMARLLoss(toys.STOCHASTIC["Beta"](), toys.critic(), **rules))(batch.clone())
    for make in (toys.plain, toys.STOCHASTIC["torch's Normal"]):
        with pytest.raises(
            ValueError, match=r"needs the bounds of the actions.* pass the loss action_spec=\(low, high\)"
        ):
            updated(OfflineMARLLoss(make(), toys.critic(), **rules))(batch.clone())


@pytest.mark.fault("4.3")
@pytest.mark.parametrize("make", toys.STOCHASTIC.values(), ids=toys.STOCHASTIC)
def test_any_distribution_of_continuous_actions_serves_every_rule(make) -> None:
    batch = make_batch(CONTINUOUS, 5)
    batch[toys.ACTION] = batch[toys.ACTION].abs().clamp(0.05, 0.95)  # within the support of all of them
    rules = [*OF_ACTIONS.values(), *((TD(), rule) for rule in OF_LIKELIHOODS.values())]
    for learning, extraction in rules:
        parts = {"value_learning": learning, "extraction": extraction, "action_spec": (0.0, 1.0)}
        loss = updated(OfflineMARLLoss(make(), toys.critic(), **parts))
        assert gradients(loss, batch.clone()).keys() == dict(loss.named_parameters()).keys()
        assert all(term.isfinite() for term in loss(batch.clone()).values())
        assert loss.team.policy(batch).log_prob(batch[toys.ACTION]).shape == (5, 3)


@pytest.mark.fault("4.3")
@pytest.mark.parametrize("make", some_of(toys.CATEGORICAL.values(), every=2))
def test_any_distribution_of_discrete_actions_serves_every_rule(make) -> None:
    batch = make_batch(DISCRETE, 6)
    codes = batch.clone()
    codes[toys.ACTION] = nn.functional.one_hot(batch[toys.ACTION], 4).bool()  # as one-hot environments record them
    single = batch.clone()
    single[toys.ACTION] = batch[toys.ACTION].unsqueeze(-1)
    for learning in (TD(), TD(sample=True), CQL()):
        for extraction in (*OF_LIKELIHOODS.values(), PolicyGradient(), RectifiedGradient()):
            parts = {"value_learning": learning, "extraction": extraction}
            loss = updated(OfflineMARLLoss(make(), toys.critic(DISCRETE), **parts))
            assert gradients(loss, batch.clone()).keys() == dict(loss.named_parameters()).keys()
            outputs = []
            for form in (batch, codes, single):
                torch.manual_seed(1)
                outputs.append(loss(form.clone()))
            for name, term in outputs[0].items():
                assert term == outputs[1][name] == outputs[2][name]
    codes[toys.ACTION] = 2 * codes[toys.ACTION].long()  # several numbers for each agent, not codes
    with pytest.raises(ValueError, match=r"one index for each agent, \[\*B, n\], or one-hot codes, \[\*B, n, A\]"):
        loss(codes)


@pytest.mark.fault("4.3")
def test_modes_are_what_is_executed() -> None:
    loc, scale = torch.randn(4, 3, 2), torch.rand(4, 3, 2) + 0.1
    normal = D.Normal(loc, scale)
    mixed = D.MixtureSameFamily(D.Categorical(torch.ones(4, 3, 2, 2)), D.Normal(torch.stack([loc, -loc], -1), 1.0))
    for policy, mode in (
        (normal, loc),
        (D.Independent(normal, 2), loc),
        (D.TransformedDistribution(normal, [D.TanhTransform(), D.AffineTransform(1.0, 2.0)]), 1 + 2 * loc.tanh()),
        (D.Independent(D.TransformedDistribution(normal, [D.TanhTransform()]), 1), loc.tanh()),
        (mixed, 0 * loc),
    ):
        torch.testing.assert_close(mode_of(per_agent(policy)), mode)
    logits = torch.randn(4, 3, 5)
    for policy in (
        D.Categorical(logits=logits),
        D.OneHotCategorical(logits=logits),
        D.Independent(D.Categorical(logits=logits), 1),
    ):
        assert torch.equal(mode_of(per_agent(policy)), logits.argmax(-1))


@pytest.mark.fault("4.5")
def test_reduction_none_is_torchrls_default() -> None:
    batch = make_batch(CONTINUOUS, 5)
    outputs = []
    for reduction in (None, "mean"):
        torch.manual_seed(0)
        outputs.append(team_loss({}, None, reduction=reduction)(batch.clone()))
    assert outputs[0]["loss_actor"].shape == () and outputs[0]["loss_actor"] == outputs[1]["loss_actor"]


@dataclass(frozen=True)
class Scaled(PolicyExtraction):
    """A rule of a user's own."""

    scale: float = 1.0
    metrics: ClassVar[tuple[str, ...]] = ("distance",)
    returned: ClassVar[tuple[str, ...]] = ("distance",)

    def coefficients(self) -> dict[str, float]:
        return {"gumbel_scale": self.scale}

    def element_loss(self, batch):
        error = (mode_of(batch.policy) - batch.action).pow(2).mean(-1)
        return batch.coefficient("gumbel_scale") * error, dict.fromkeys(self.returned, error.detach().mean())


@pytest.mark.fault("4.5")
def test_a_rules_own_coefficient_is_scheduled_like_the_librarys() -> None:
    loss, batch = team_loss({}, None, TD(), Scaled()), make_batch(CONTINUOUS, 5)
    before = loss(batch.clone())["loss_actor"]
    loss.gumbel_scale = 3.0
    assert loss.state_dict()["gumbel_scale"] == 3.0
    torch.testing.assert_close(loss(batch.clone())["loss_actor"], 3 * before)
    loss.gumbel_scale = 2
    torch.testing.assert_close(loss(batch.clone())["loss_actor"], 2 * before)


@pytest.mark.fault("4.5")
@pytest.mark.parametrize(
    ("declared", "returned", "message"),
    [
        (("distance", "angle"), ("distance",), "Missing declares the metric 'angle', and does not return it"),
        (("distance",), ("distance", "angle"), "Missing returns 'angle', which is not among its metrics"),
        (("loss_distance",), ("loss_distance",), "Missing declares the metric 'loss_distance'; names that start"),
        (("qvalue",), ("qvalue",), "Missing declares the metric 'qvalue', which is that of the critic, too"),
    ],
)
def test_metrics_other_than_declared_are_named(declared, returned, message: str) -> None:
    missing = type("Missing", (Scaled,), {"metrics": declared, "returned": returned})
    with pytest.raises(ValueError, match=message):
        team_loss({}, None, TD(), missing())(make_batch(CONTINUOUS, 4))


@pytest.mark.fault("4.5")
def test_coefficients_and_value_learning_metrics_that_cannot_be() -> None:
    named = type("Named", (Scaled,), {"coefficients": lambda self: {"reduction": 1.0}})
    with pytest.raises(ValueError, match="A coefficient cannot be named 'reduction'"):
        team_loss({}, None, TD(), named())
    declaring = type("Declaring", (TD,), {"metrics": ("spread",)})
    with pytest.raises(ValueError, match=r"Declaring declares the metrics \['spread'\]; a value-learning rule has no"):
        team_loss({}, None, declaring())
    silent = type("Silent", (TD,), {"metrics": ("critic_penalty",)})
    with pytest.raises(ValueError, match="Silent declares the metric 'critic_penalty', and does not return it"):
        team_loss({}, None, silent())(make_batch(CONTINUOUS, 4))


def walk(*shape: int) -> TensorDict:
    """Steps in their order, ``[B, T]``, of episodes of four; the last step of an episode terminates."""
    batch = make_batch(CONTINUOUS, *shape).exclude(("next", "agents", "action"))
    time = torch.arange(shape[-1]).expand(shape)
    done = (time % 4 == 3).unsqueeze(-1)
    observation = torch.randn(*shape[:-1], shape[-1] + 1, 3, 4)
    batch[toys.OBSERVATION], batch["next", *toys.OBSERVATION] = observation[..., :-1, :, :], observation[..., 1:, :, :]
    batch["next", "done"], batch["next", "terminated"] = done, done.clone()
    return batch


@pytest.mark.fault("4.6")
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("rule", [SARSA(), ICQ()], ids=["SARSA", "ICQ"])
def test_the_transform_adds_the_next_action_to_torchrls_buffer(flat: bool, rule: ValueLearning) -> None:
    data = walk(2, 10)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(20, ndim=1), batch_size=20, transform=NextAction())
    buffer.extend(data.reshape(-1) if flat else data.reshape(-1).clone())
    held = buffer[:].reshape(2, 10)
    known = torch.arange(10) % 4 != 3
    known[-1] = False
    assert torch.equal(held["collector", "has_next_action"], known.expand(2, 10))
    assert torch.equal(held["next", "agents", "action"][:, known], held[toys.ACTION][:, 1:][:, known[:-1]])
    loss = updated(OfflineMARLLoss(None, toys.critic(), value_learning=rule, extraction=None))
    before = loss(buffer.sample())["td_target"]
    assert before.isfinite()
    with pytest.raises(KeyError, match=r"next\.agents\.action.*torchrl_marl_offline\.NextAction adds it"):
        loss(data)


@pytest.mark.fault("4.6")
def test_next_actions_of_collected_batches_windows_and_slices() -> None:
    data = walk(2, 10)
    expected = NextAction().inv(data)
    assert expected["next", "agents", "action"].shape == (2, 10, 3, 2)
    assert ("next", "agents", "action") not in data.keys(True)
    named = data.clone().transpose(0, 1).contiguous()
    named.names = ["time", None]
    found = NextAction()(named)
    assert torch.equal(found["collector", "has_next_action"].T, expected["collector", "has_next_action"])
    traced = walk(1, 4).reshape(-1)
    traced["next", "done"][:] = False
    traced["collector", "traj_ids"] = torch.tensor([0, 0, 1, 1])
    assert NextAction()(traced)["collector", "has_next_action"].tolist() == [True, False, True, False]
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(20),
        sampler=SliceSampler(slice_len=4, end_key=("next", "done"), strict_length=True),
        batch_size=8,
        transform=NextAction(),
    )
    buffer._storage.set(range(20), walk(20))  # written without the transform
    assert buffer.sample()["collector", "has_next_action"].reshape(2, 4)[:, :3].all()


@pytest.mark.fault("4.6")
def test_next_actions_are_not_made_up() -> None:
    shuffled = walk(12)[torch.tensor([3, 1, 7, 5, 0, 9])]
    with pytest.raises(ValueError, match=r"no row that follows on the one before it; extend .* or draw slices"):
        NextAction()(shuffled)
    with pytest.raises(TypeError, match="append it to a replay buffer, not to an environment"):
        NextAction()._call(shuffled)


@pytest.mark.fault("4.6")
def test_buffers_are_made_of_datasets_too() -> None:
    data = make_data()
    options = {"batch_size": 6, "slice_len": 3}
    whole, rows = (PopulationBuffer(each, seeds=[1, 2], **options).sample() for each in (data, data.data))
    assert (whole == rows).all()
    assert (make_replay_buffer(data, seed=1, **options).sample().exclude("index") == rows[0]).all()
    for wrong in ([1, 2], None, "folder"):
        with pytest.raises(TypeError, match="A buffer is made of transitions or of a dataset, got a"):
            PopulationBuffer(wrong, seeds=[1], batch_size=2)


@pytest.mark.fault("3.13")
def test_the_weights_of_qplex_get_no_gradient_through_the_advantage_that_its_authors_detach() -> None:
    spec = TaskSpec(n_agents=2, observation_size=1, state_size=1, action_size=1)
    mixer = DuplexMixer(spec, attention_heads=1, hidden_size=2)
    weight = torch.tensor([[2.0, 0.5]], requires_grad=True)
    importance = torch.tensor([[[3.0], [1.5]]], requires_grad=True)
    offset = torch.zeros(1, 2)
    values, advantage = torch.tensor([[[1.0], [4.0]]]), torch.tensor([[[-0.5], [-2.0]]], requires_grad=True)
    mixer.generate = lambda state: (weight, offset, None, None)
    mixer.importance = lambda *inputs: importance
    total = mixer.mix(values, torch.zeros(1, 1), torch.zeros(1, 2, 1), advantage)
    # 2 * 1 + .5 * 4 = 4;  (3 - 1) * 2 * -.5 + (1.5 - 1) * .5 * -2 = -2.5
    torch.testing.assert_close(total, torch.tensor([[1.5]]))
    total.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[1.0, 4.0]]))  # not 1 + 2 * -.5 and 4 + .5 * -2
    torch.testing.assert_close(importance.grad, torch.tensor([[[-1.0], [-1.0]]]))  # w A
    torch.testing.assert_close(advantage.grad, torch.tensor([[[4.0], [0.25]]]))  # (lambda - 1) w, for a policy


@pytest.mark.fault("3.13")
def test_a_critic_of_qplex_does_not_learn_through_its_advantages_and_a_policy_follows_them() -> None:
    case = Case("qplex", "td", "brac")
    loss, batch = updated(case.build()), make_batch(case.spec, 4)
    action = batch[toys.ACTION].clone().requires_grad_()
    _, beside = loss.team.critic_outputs(batch, action, target=False)
    learned = [entry for entry in beside.values() if entry is not action]
    assert learned and not any(entry.requires_grad for entry in learned)
    _, beside = loss.team.critic_outputs(batch, action, target=False, detach=True)
    assert all(entry.requires_grad for entry in beside.values())


MEMORIES = {"GRU": (GRUModule, ["h"]), "LSTM": (LSTMModule, ["h", "c"])}


@pytest.mark.fault("4.6")
@pytest.mark.parametrize(("kind", "hidden"), MEMORIES.values(), ids=MEMORIES)
def test_hidden_states_that_a_batch_lacks_are_zeros(kind, hidden) -> None:
    batch = make_sequences(CONTINUOUS, 2, 6, dtype=torch.float32)
    loss = updated(
        OfflineMARLLoss(None, toys.remembering_critic(kind, *hidden), value_learning=SARSA(), extraction=None)
    )
    assert not {*hidden, "is_init"} & {key for key in loss.in_keys if isinstance(key, str)}
    without = loss(batch.clone())["loss_qvalue"]
    given = batch.clone()
    for part in (given, given["next"]):
        for name in hidden:
            part[name] = torch.zeros(2, 6, 1, 5)
        part["is_init"] = torch.zeros(2, 6, 1, dtype=torch.bool)
    torch.testing.assert_close(loss(given)["loss_qvalue"], without)
    given[hidden[0]] += 1.0
    assert loss(given)["loss_qvalue"] != without  # those that it has are used
    batch["next", "done"][:, 2] = True  # memory starts anew behind it
    with set_recurrent_mode(True):
        whole = loss.team.action_value(loss.batch(batch).tensordict, batch[toys.ACTION]).total
        parts = [loss.team.action_value(part, part[toys.ACTION]).total for part in (batch[:, :3], batch[:, 3:])]
    torch.testing.assert_close(whole, torch.cat(parts, 1))


@pytest.mark.fault("3.9")
@pytest.mark.parametrize("shape", [(4,), (2, 4)], ids=str)
@pytest.mark.parametrize(("kind", "hidden"), MEMORIES.values(), ids=MEMORIES)
def test_equal_actions_have_equal_values_by_a_critic_with_memory(kind, hidden, shape) -> None:
    batch = make_sequences(CONTINUOUS, *shape, dtype=torch.float32)
    rules = {"value_learning": CQL(**FEW), "extraction": RectifiedGradient(sampler=SEARCH), "action_spec": (-1.0, 1.0)}
    loss = updated(OfflineMARLLoss(toys.plain(), toys.remembering_critic(kind, *hidden), **rules))
    recorded = batch[toys.ACTION]
    with set_recurrent_mode(True):
        six = Batch(loss.team, batch).candidates(recorded.unsqueeze(-3).expand(*shape, 6, 3, 2))
        once = loss.team.action_value(batch, recorded).total  # [*B, 1, H]
    torch.testing.assert_close(six, once.unsqueeze(-3).expand_as(six))
    assert all(term.isfinite() for term in loss(batch).values())


@pytest.mark.fault("3.9")
def test_samples_are_in_their_place_whatever_the_critic_is_made_of() -> None:
    batch = make_batch(CONTINUOUS, 2, 4)
    actions = torch.randn(2, 4, 5, 3, 2)
    for critic, mixer in ((toys.critic(), None), (toys.team_critic(), None), (toys.critic(), toys.mixer("QMixer"))):
        loss = SARSALoss(critic, mixer=mixer)
        for team in (False, True):
            values = loss.batch(batch).candidates(actions, team=team)
            assert values.shape == (2, 4, 5, 3, 1)
            if loss.team.is_central or (team and mixer is not None):
                joint = batch[toys.ACTION].clone()
                joint[..., 1, :] = actions[:, :, 3, 1]
                expected = loss.team.action_value(batch, joint).total.squeeze(-2)
            else:
                expected = loss.team.critic_outputs(batch, actions[:, :, 3], target=False)[0][..., 1, :]
            torch.testing.assert_close(values[:, :, 3, 1], expected)


def test_an_actor_of_torchrl_is_deterministic_although_it_has_a_distribution() -> None:
    actor = Actor(toys.net(4, 2), in_keys=[toys.OBSERVATION], out_keys=[toys.ACTION])
    assert hasattr(actor, "get_dist")
    assert OfflineMARLLoss(actor, toys.critic(), value_learning=TD(), extraction=TD3BC()).team.is_deterministic


def test_codes_of_whole_numbers_are_discrete_actions():
    """TorchRL's environments and policies write one-hot actions as int64."""
    batch = make_batch(DISCRETE, 8)
    batch["next", "agents", "action"] = batch["agents", "action"].roll(1, 0)
    coded = batch.clone()
    for key in (("agents", "action"), ("next", "agents", "action")):
        coded[key] = torch.nn.functional.one_hot(batch[key], 4)
    for learning, extraction in (("sarsa", "awr"), ("td", "brac"), ("iql", "awr")):
        loss = Case("mixer", learning, extraction, discrete=True).build()
        torch.manual_seed(0)
        expected = loss(batch)
        torch.manual_seed(0)
        found = loss(coded)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)
    coded["agents", "action"] = torch.full((8, 3, 4), 2)  # four indices of each agent, or what?
    with pytest.raises(ValueError, match=r"agents\.action has whole numbers .* one-hot codes"):
        loss(coded)


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 3, 1), (8, 3)])
def test_next_values_of_another_shape_are_refused_by_name(shape):
    class Mine(TD):
        def next_value(self, following):
            return torch.zeros(shape)

    loss = Case("mixer", "td", "brac").build(value_learning=Mine())
    with pytest.raises(ValueError, match=r"next_value of Mine must return \[8, 1, 1\], \[\*B, k, 1\] with k = 1, one"):
        loss(make_batch(CONTINUOUS, 8))


def test_populations_refuse_networks_with_memory():
    loss = OfflineMARLLoss(None, toys.remembering_critic(GRUModule, "hidden"), value_learning=SARSA(), extraction=None)
    with pytest.raises(ValueError, match=r"^b has a network with memory .* cannot be trained in a population"):
        Population({"b": loss})
