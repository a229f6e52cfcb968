"""What members of a population must have in common is found in the losses: nothing that differs goes unseen."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy
import pytest
import torch
from population_toys import make_alone, make_data, make_member
from tensordict.nn import TensorDictModule
from torch import nn
from torch.nn.utils import parametrize
from torchrl.objectives import TD3BCLoss, ValueEstimators

from torchrl_marl_offline import ScaleInvariantValueNorm, make_actor, make_critic
from torchrl_marl_offline.algorithms import ALGORITHMS, is_read, make_loss, members_settings, settings_of
from torchrl_marl_offline.objectives import AWR, BRAC, IQL, SARSA, TD, OfflineMARLLoss
from torchrl_marl_offline.objectives.extraction import PolicyExtraction
from torchrl_marl_offline.training import ForeachSoftUpdate, Population
from torchrl_marl_offline.training.populations.alike import first_difference

RECIPE = {"decomposition": "mixer", "value_learning": "iql", "extraction": "awr"}
pytestmark = pytest.mark.fault("3.1")


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture
def losses(data):
    return [make_member(data, member, **RECIPE) for member in (0, 1)]


def mlp_of(loss, network: str):
    return getattr(loss, network).module.network.mlp


# --------------------------------------------------------------------------- what differs is named


def other_activation(network):
    def plant(loss):
        mlp_of(loss, network).activation = torch.sin

    return plant


def other_norm_eps(loss):
    mlp_of(loss, "qvalue_network").norms[0].eps = 1e-3


def signed_weights(loss):
    loss.mixer_network.module.monotonic = False


def other_epsilon(loss):
    loss.value_norm.epsilon = 0.1


def other_target(kind):
    def plant(loss):
        loss.make_value_estimator(kind, gamma=0.99)

    return plant


def other_key(**keys):
    def plant(loss):
        loss.set_keys(**keys)

    return plant


def averaged_rewards(loss):
    loss._value_estimator.average_rewards = True


def by_loop(loss):
    loss.deactivate_vmap = True


def other_randomness(loss):
    loss.set_vmap_randomness("same")


def other_execution(loss):
    loss.actor_network.module[1].default_interaction_type = None


def other_bounds(loss):
    loss.actor_network.module[1].distribution_kwargs["low"] = -2.0


def other_scale(loss):
    loss.actor_network.module[0].module.state_dependent = True


def hooked(loss):
    loss.qvalue_network.register_forward_hook(lambda module, args, output: output)


def evaluated(loss):
    loss.qvalue_network.eval()


def unmasked(loss):
    loss.agent_mask = lambda *args: None


def soft_rule(loss):
    loss.extraction = replace(loss.extraction, max_relative_weight=5.0)


def other_rule(loss):
    loss.value_learning = SARSA()


def held(loss):
    loss._held = ("actor_network_params",)


def less_precise(loss):
    loss.temperature.data = loss.temperature.double()


def other_layer(loss):
    mlp_of(loss, "qvalue_network").norms = None


def fewer_inputs(loss):
    loss.in_keys = loss.in_keys[1:]


@pytest.mark.parametrize(
    ("plant", "path"),
    [
        (
            other_activation("qvalue_network"),
            "qvalue_network.module.network.mlp.activation is gelu in a and .*sin.* in b",
        ),
        (
            other_activation("value_network"),
            "value_network.module.network.mlp.activation is gelu in a and .*sin.* in b",
        ),
        (other_norm_eps, "qvalue_network.module.network.mlp.norms.0.eps is 1e-06 in a and 0.001 in b"),
        (other_layer, "qvalue_network.module.network.mlp.*norms"),
        (signed_weights, "mixer_network.module.monotonic is True in a and False in b"),
        (other_epsilon, "value_norm.epsilon is .* in a and .* in b"),
        (other_target("td1"), "TD0Estimator.* in a and .*TD1Estimator.* in b"),
        (other_target(ValueEstimators.TDLambda), "TD0Estimator.* in a and .*TDLambdaEstimator.* in b"),
        (averaged_rewards, "_value_estimator.average_rewards is False in a and True in b"),
        (other_key(reward="team_reward"), "_tensor_keys.reward is .*agents.* in a and team_reward in b"),
        (other_key(terminated="done"), "_tensor_keys.terminated is terminated in a and done in b"),
        (other_key(priority="urgency"), "_tensor_keys.priority is td_error in a and urgency in b"),
        (by_loop, "deactivate_vmap is False in a and True in b"),
        (other_randomness, "vmap_randomness is .* in a and same in b"),
        (other_execution, "default_interaction_type is .*deterministic.* in a and None in b"),
        (other_bounds, r"distribution_kwargs.low is -1.0 in a and -2.0 in b"),
        (other_scale, "actor_network.module.0.module.state_dependent is False in a and True in b"),
        (hooked, r"qvalue_network._forward_hooks"),
        (evaluated, "qvalue_network.training is True in a and False in b"),
        (unmasked, "agent_mask is not there in a and .*lambda.* in b"),
        (soft_rule, "extraction.max_relative_weight is 30.0 in a and 5.0 in b"),
        (other_rule, "value_learning is IQL.* in a and SARSA.* in b"),
        (held, "_held is "),
        (less_precise, "temperature is .*float32.* in a and .*float64.* in b"),
        (fewer_inputs, "in_keys is "),
    ],
    ids=lambda plant: getattr(plant, "__qualname__", "").replace(".<locals>.plant", ""),
)
def test_a_difference_in_structure_is_refused_by_name(losses, plant, path):
    a, b = losses
    Population({"a": a, "b": b})
    plant(b)
    with pytest.raises(ValueError, match=rf"(?s){path}.*; members of a population .*in two populations"):
        Population({"a": a, "b": b})


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"decomposition": "nonmonotonic"}, "monotonic"),
        ({"activation": "relu"}, "activation is gelu"),
        ({"layer_norm": False}, "norms"),
        ({"frozen": True}, "mixer_network_params.* is trained in a and not"),
        ({"share_params": False}, "share_params is True"),
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else "",
)
def test_settings_that_networks_are_built_by_are_seen(data, changes, path):
    a, b = (make_member(data, 0, **RECIPE | change) for change in ({}, changes))
    with pytest.raises(ValueError, match=rf"{path}.* in b"):
        Population({"a": a, "b": b})


def test_a_norm_with_another_epsilon_is_refused(data):
    spec = data.spec

    def build(**norm):
        networks = make_actor(spec, hidden=(4,)), make_critic(spec, decomposition="vdn", hidden=(4,))
        options = {"value_learning": TD(), "extraction": BRAC(), "value_norm": ScaleInvariantValueNorm(**norm)}
        return OfflineMARLLoss(*networks, **options).make_value_estimator(gamma=0.9)

    assert first_difference(build(), build(epsilon=1e-6)) is None  # the default, written out
    assert first_difference(build(), build(epsilon=1e-2)).path == "value_norm.epsilon"


class Table:
    """An object of one's own, without any means to compare it."""

    def __init__(self, size: int, **more) -> None:
        self.size = size
        self.__dict__.update(more)


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class Steered(nn.Module):
    """Keeps a method of another object, as strategies do."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.table = Table(factor)

    def scale(self, x):
        return x * self.table.size


def scaling(factor):
    return lambda x: x * factor


def by_default(factor):
    def scale(x, factor=factor):
        return x * factor

    return scale


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, value)
    nn.init.zeros_(layer.bias)
    return layer


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


def parametrized(form: type) -> nn.Module:
    layer = linear(1.0)
    parametrize.register_parametrization(layer, "weight", form())
    return layer


def made_of_text(factor):
    class Rule:
        def scale(self, x):
            return x * factor

    return Rule()


KINDS = {
    "flag": lambda second: second,
    "number": lambda second: 0.2 if second else 0.1,
    "whole number and number": lambda second: 1.5 if second else 1,
    "nothing": lambda second: 0.0 if second else None,
    "text": lambda second: "b" if second else "a",
    "tensor": lambda second: torch.tensor([1.0, 2.0 + second]),
    "shape of a tensor": lambda second: torch.zeros(2 + second),
    "type of a tensor": lambda second: torch.zeros(2, dtype=torch.float64 if second else torch.float32),
    "array": lambda second: numpy.arange(3) + second,
    "list": lambda second: [1, [2, 3 + second]],
    "longer list": lambda second: [1] * (1 + second),
    "mapping": lambda second: {"low": {"of": 1 + second}},
    "another name in a mapping": lambda second: {"b" if second else "a": 1},
    "set": lambda second: {1, 2 + second},
    "key": lambda second: ("agents", "reward" if second else "action"),
    "function": lambda second: torch.sin if second else torch.relu,
    "function of one's own": lambda second: by_default if second else scaling,
    "closure": lambda second: scaling(2.0 + second),
    "default of a function": lambda second: by_default(2.0 + second),
    "partial": lambda second: functools.partial(torch.clamp, min=0.0 - second),
    "method": lambda second: Steered(2.0 + second).scale,
    "class": lambda second: nn.ReLU if second else nn.GELU,
    "module": lambda second: nn.ReLU() if second else nn.GELU(),
    "attribute of a module": lambda second: nn.Dropout(0.1 + second / 2),
    "modules in a list": lambda second: [nn.LeakyReLU(0.1 + second)],
    "tensors of a module that nothing carries": lambda second: [linear(1.0 + second)],
    "parametrization": lambda second: [parametrized(Halved if second else Doubled)],
    "object": lambda second: Table(1 + second),
    "object in an object": lambda second: Table(1, inner=Table(1 + second)),
    "one attribute more": lambda second: Table(1, more=3) if second else Table(1),
    "object of slots": lambda second: Slotted(1 + second),
    "class made by a function": lambda second: made_of_text(2.0 + second),
    "dtype": lambda second: torch.float64 if second else torch.float32,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("place", ["network", "rule"])
def test_every_kind_of_attribute_is_compared_in_networks_and_rules(losses, kind, place):
    a, b = losses

    def put(loss, value):
        if place == "network":
            mlp_of(loss, "qvalue_network").planted = value
        else:
            loss.extraction = Own(1.0, value)

    put(a, kind(False))
    put(b, kind(False))  # made anew: equal, and not the same object
    assert first_difference(a, b) is None
    put(b, kind(True))
    found = first_difference(a, b)
    assert "planted" in found.path or "planted" in found.first + found.other
    assert found.first != found.other


@dataclass
class Own(PolicyExtraction):
    """A rule of one's own, with a coefficient and something else."""

    temperature: float
    planted: object = None

    def coefficients(self):
        return {"temperature": self.temperature}

    def element_loss(self, batch):
        return AWR(self.temperature).element_loss(batch)


def test_buffers_of_a_mixer_without_parameters_are_not_carried(losses):
    class Weighted(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.in_keys = []
            self.register_buffer("weight", torch.tensor(weight))

    for loss, weight in zip(losses, (1.0, 2.0)):
        loss.__dict__["mixer_network"] = Weighted(weight)
        del loss._modules["mixer_network_params"], loss._modules["target_mixer_network_params"]
    assert first_difference(*losses).path == "mixer_network.weight"


def test_losses_of_torchrl_are_compared_too():
    def build(**options):
        actor = TensorDictModule(nn.Linear(3, 2), ["observation"], ["action"])
        value = TensorDictModule(nn.Linear(5, 1), ["observation", "action"], ["state_action_value"])
        loss = TD3BCLoss(actor, value, bounds=(-1, 1), **options)
        loss.make_value_estimator(gamma=0.9)
        return loss

    assert first_difference(build(), build()) is None
    assert first_difference(build(), build(policy_noise=0.5)).path == "policy_noise"
    assert first_difference(build(), build(loss_function="l1")).path == "loss_function"


# --------------------------------------------------------------------------- what does not differ is taken


def test_equal_networks_of_which_one_writes_out_a_default_are_alike(data):
    def build(**options):
        critic = make_critic(data.spec, decomposition="vdn", hidden=(4,))
        actor = make_actor(data.spec, hidden=(4,), **options)
        return OfflineMARLLoss(actor, critic, value_learning=SARSA(), extraction=AWR()).make_value_estimator(gamma=0.9)

    plain = build()
    for options in ({"activation": "gelu"}, {"share_params": True}, {"distribution": "gaussian"}):
        assert first_difference(plain, build(**options)) is None
    assert first_difference(plain, build(activation="relu")).path.endswith("activation")


def test_what_using_a_loss_leaves_in_it_does_not_count(data, losses):
    used, fresh = losses
    ForeachSoftUpdate(used, tau=0.1)
    trainer = make_alone(data, 0, rules=RECIPE, steps=1)
    trainer.train()
    used(data.data[:8].clone())
    used.in_keys, used.out_keys, used.target_qvalue_network_params  # noqa: B018
    with torch.no_grad():
        used.actor_network(data.data[:8].clone())
    for other in (fresh, trainer.loss):
        assert first_difference(used, other) is None and first_difference(other, used) is None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_members_of_a_study_may_differ_in_all_settings_of_a_population(data, algorithm):
    own = {"max_next_value": 3.0} if algorithm == "b3c" else {}  # which has no default
    known = settings_of(algorithm) | own
    numbers = {
        name: 0.7 * value
        for name, value in known.items()
        if name in members_settings(algorithm) and is_read(algorithm, name, {})
    }
    assert numbers.keys() >= own.keys()
    a, b = (make_loss(data.spec, algorithm=algorithm, hidden=(4,), **given) for given in (own, numbers))
    assert first_difference(a, b) is None


def test_a_rule_of_ones_own_may_differ_in_its_coefficient_alone(losses):
    a, b = losses
    a.extraction, b.extraction = Own(1.0, scaling(2.0)), Own(3.0, scaling(2.0))
    assert first_difference(a, b) is None
    b.extraction = Own(3.0, scaling(2.5))
    assert first_difference(a, b).path == "extraction.planted.factor"
    a.value_learning, b.value_learning = IQL(0.7), IQL(0.9)
    b.extraction = Own(3.0, scaling(2.0))
    assert first_difference(a, b) is None
