"""Critics, mixers and the value norm."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torchrl.modules import QMixer, VDNMixer
from torchrl.modules.value_norm import ValueNorm

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.modules import (
    DECOMPOSITIONS,
    HyperNetworkMixer,
    ScaleInvariantValueNorm,
    SumMixer,
    make_critic,
    make_value,
)
from torchrl_marl_offline.modules.critics import encode_action

SPEC = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=2)
DISCRETE = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=6, discrete=True)
LOCAL, TEAM = ("agents", "state_action_value"), "state_action_value"


def inputs(spec: TaskSpec, *batch: int) -> TensorDict:
    action = (
        torch.randint(0, spec.action_size, (*batch, 3)) if spec.discrete else torch.randn(*batch, 3, spec.action_size)
    )
    agents = {"observation": torch.randn(*batch, 3, 4), "action": action}
    return TensorDict({"agents": agents, "state": torch.randn(*batch, 5)}, list(batch))


def test_actions_are_read_as_one_hot_codes() -> None:
    index = torch.tensor([[2, 0, 5]])
    code = encode_action(index, DISCRETE, torch.float64)
    assert_close(code, torch.eye(6, dtype=torch.float64)[[2, 0, 5]].unsqueeze(0))
    assert encode_action(code, DISCRETE, torch.float32) is code


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
@pytest.mark.parametrize("spec", [SPEC, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("batch", [(), (7,), (2, 5)])
def test_shapes_and_what_each_value_depends_on(decomposition: str, spec: TaskSpec, batch: tuple[int, ...]) -> None:
    critic = make_critic(spec, decomposition=decomposition, hidden=(8,), num_heads=3)
    td = inputs(spec, *batch)
    out = critic(td.clone())
    if decomposition not in ("centralized", "graph"):
        assert out[LOCAL].shape == (*batch, 3, 3)
        other = td.clone()
        other["agents", "observation"][..., 1, :] += 1.0
        changed = ~torch.isclose(critic(other)[LOCAL], out[LOCAL]).all(-1)
        assert changed[..., 1].all() and not changed[..., 0].any() and not changed[..., 2].any()
    if decomposition != "independent":
        assert out[TEAM].shape == (*batch, 3)
        if spec.discrete:  # the code of an action is worth what the action is
            coded = td.clone()
            coded["agents", "action"] = F.one_hot(td["agents", "action"], 6).float()
            assert_close(critic(coded)[TEAM], out[TEAM])
    if decomposition == "vdn":
        assert_close(out[TEAM], out[LOCAL].sum(-2))
    value = make_value(spec, decomposition=decomposition, hidden=(8,))(td.clone())
    if decomposition in ("centralized", "graph"):
        assert value["state_value"].shape == (*batch, 1)
    else:
        assert value["agents", "state_value"].shape == (*batch, 3, 1)


def test_a_centralized_critic_may_read_all_observations() -> None:
    td = inputs(SPEC, 7)
    critic = make_critic(SPEC, decomposition="centralized", joint_observation=True, hidden=(8,))
    value = make_value(SPEC, decomposition="centralized", joint_observation=True, hidden=(8,))
    assert "state" not in critic.in_keys + value.in_keys
    assert critic(td)[TEAM].shape == (7, 2) and value(td)["state_value"].shape == (7, 1)


@pytest.mark.parametrize("decomposition", sorted({*DECOMPOSITIONS} - {"graph"}))
@pytest.mark.parametrize("spec", [SPEC, DISCRETE], ids=["continuous", "discrete"])
def test_inputs_may_be_normalized_by_the_batch(decomposition: str, spec: TaskSpec) -> None:
    torch.manual_seed(0)
    networks = [
        make(spec, decomposition=decomposition, hidden=(8,), batch_norm=True) for make in (make_critic, make_value)
    ]
    td = inputs(spec, 64)
    scaled = td.clone()
    observed = "state" if decomposition == "centralized" else ("agents", "observation")
    scaled[observed] = 100 * scaled[observed] - 7
    for network in networks:
        key = network[0].out_keys[0] if isinstance(network, TensorDictSequential) else network.out_keys[0]
        assert_close(network(scaled.clone())[key], network(td.clone())[key], rtol=1e-3, atol=1e-3)
        network.eval()  # the running statistics are not there yet
        assert not torch.allclose(network(scaled.clone())[key], network(td.clone())[key], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("make", [make_critic, make_value])
def test_a_graph_is_not_normalized(make) -> None:
    with pytest.raises(ValueError, match="batch_norm=True does not go with decomposition='graph'"):
        make(SPEC, decomposition="graph", batch_norm=True)


@pytest.mark.parametrize("share_params", [True, False])
def test_sharing(share_params: bool) -> None:
    critic = make_critic(SPEC, decomposition="independent", hidden=(8,), share_params=share_params)
    assert critic.module.network.mlp.layers[0].weight.shape == ((2, 9, 8) if share_params else (2, 3, 6, 8))


@pytest.mark.parametrize("make", [make_critic, make_value])
def test_an_unknown_decomposition(make) -> None:
    with pytest.raises(
        ValueError,
        match="decomposition must be 'centralized', 'mixer', 'vdn', 'independent', 'linear', 'nonmonotonic', 'qatten', "
        "'qplex' or 'graph', got 'qmix'",
    ):
        make(SPEC, decomposition="qmix")


def test_a_frozen_mixer_has_no_gradient() -> None:
    critic = make_critic(SPEC, hidden=(8,), frozen=True)
    critic(inputs(SPEC, 4))[TEAM].sum().backward()
    local, mixer = critic.module
    assert all(p.grad is None for p in mixer.parameters()) and all(p.grad.any() for p in local.parameters())


def small_mixer(**options) -> HyperNetworkMixer:
    return HyperNetworkMixer(3, 5, embed_size=4, hidden_size=8, **options)


def slopes(mixer: nn.Module) -> torch.Tensor:
    values = torch.randn(200, 3, 1, requires_grad=True)
    total = mixer(values, 3.0 * torch.randn(200, 5))
    return torch.autograd.grad(total.sum(), values)[0]


def test_monotonicity() -> None:
    assert (slopes(small_mixer()) >= 0).all() and slopes(small_mixer()).max() > 0
    assert (slopes(small_mixer(monotonic=False)) < 0).any()


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("monotonic", [True, False])
def test_the_mixer_by_its_equation(layer_norm: bool, monotonic: bool) -> None:
    mixer = small_mixer(layer_norm=layer_norm, monotonic=monotonic)
    q, s = torch.randn(3), torch.randn(5)
    generated = []
    for i, last in enumerate(mixer.last):
        columns = slice(8 * i, 8 * (i + 1))
        hidden = s @ mixer.first.weight[:, columns] + mixer.first.bias[0, columns]
        if layer_norm:
            hidden = F.layer_norm(hidden, (8,), eps=1e-6)
        generated.append(last(hidden.relu()))
    w1, b1, w2, b2 = generated
    if monotonic:
        w1, w2 = w1.abs(), w2.abs()
    expected = F.elu(q @ w1.view(3, 4) + b1) @ w2 + b2
    assert_close(mixer(q.view(1, 3, 1), s.view(1, 5)).view(1), expected)


@pytest.mark.parametrize("batch", [(), (6,), (2, 3)])
def test_heads_are_mixed_one_by_one(batch: tuple[int, ...]) -> None:
    values, state = torch.randn(*batch, 3, 4), torch.randn(*batch, 5)
    for mixer, arguments in ((small_mixer(), (state,)), (SumMixer(3), ())):
        total = mixer(values, *arguments)
        assert total.shape == (*batch, 4)
        for head in range(4):
            assert_close(total[..., head : head + 1], mixer(values[..., head : head + 1], *arguments))


def test_the_sum_equals_torchrl_s() -> None:
    values = torch.randn(6, 3, 1)
    assert_close(SumMixer(3)(values), VDNMixer(3, "cpu")(values))


def test_the_mixers_are_interchangeable_with_torchrl_s() -> None:
    values, state = torch.randn(6, 3, 1), torch.randn(6, 5)
    ours, theirs = small_mixer(), QMixer((5,), 4, 3, "cpu")
    assert ours(values, state).shape == theirs(values, state).shape == (6, 1)
    assert (ours.n_agents, ours.needs_state, ours.state_shape) == (
        theirs.n_agents,
        theirs.needs_state,
        theirs.state_shape,
    )
    td = inputs(SPEC, 6)
    for mixer in (ours, theirs, VDNMixer(3, "cpu")):
        critic = make_critic(SPEC, mixer=mixer, hidden=(8,), num_heads=1)
        out = critic(td.clone())
        assert_close(out[TEAM], mixer(out[LOCAL], *([td["state"]] if mixer.needs_state else [])))
    assert isinstance(critic, TensorDictSequential) and isinstance(critic.module[-1], TensorDictModule)


@pytest.mark.parametrize(
    ("values", "state"),
    [((6, 2, 1), (6, 5)), ((6, 3, 1), (6, 4)), ((6, 3, 1), (7, 5)), ((2, 3, 3, 1), (6, 5))],
    ids=["agents", "state width", "batch", "batch dimensions"],
)
def test_wrong_shapes(values: tuple[int, ...], state: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"wants values \[\*B, 3, heads\] and state \[\*B, 5\] of one batch shape, got"
    ):
        small_mixer()(torch.zeros(values), torch.zeros(state))


def test_value_norm_by_hand() -> None:
    norm = ScaleInvariantValueNorm(epsilon=0.5)
    assert isinstance(norm, ValueNorm) and norm.scale().eq(1).all()
    norm.update(torch.tensor([[1.0], [2.0], [6.0]]))  # mean 3, deviations 2, 1, 3
    assert_close(norm.loc, torch.tensor([3.0]))
    assert_close(norm.scale(), torch.tensor([2.5]))
    assert_close(norm.normalize(torch.tensor([[8.0]])), torch.tensor([[2.0]]))
    assert_close(norm.denormalize(torch.tensor([[2.0]])), torch.tensor([[8.0]]))
    norm.update(torch.tensor([[1.0], [1.0]]))  # no history
    assert_close(norm.loc, torch.tensor([1.0]))
    assert_close(norm.scale(), torch.tensor([0.5]))


def test_value_norm_with_a_mask_and_a_shape() -> None:
    norm = ScaleInvariantValueNorm(shape=(2,), epsilon=0.0)
    values = torch.tensor([[1.0, 10.0], [3.0, float("nan")], [float("nan"), 30.0]])
    norm.update(values, ~values.isnan())
    assert_close(norm.loc, torch.tensor([2.0, 20.0]))
    assert_close(norm.scale(), torch.tensor([1.0, 10.0]))
    with pytest.raises(ValueError, match="initialised with shape"):
        norm.update(torch.zeros(4, 3))


def test_value_norm_statistics_are_constants_and_saved() -> None:
    norm = ScaleInvariantValueNorm()
    values = torch.tensor([[1.0], [5.0]], requires_grad=True)
    norm.update(values)
    norm.normalize(values).sum().backward()
    assert_close(values.grad, torch.full((2, 1), 0.5))
    other = ScaleInvariantValueNorm()
    other.load_state_dict(norm.state_dict())
    assert_close(other.scale(), norm.scale())
    assert copy.deepcopy(norm).double().scale().dtype == torch.float64
