"""Stacked networks against the same networks one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from torchrl_marl_offline.modules import AgentNetwork, BatchNorm, StackedLayerNorm, StackedLinear, StackedMLP


def plain_mlp(mlp: StackedMLP, index: tuple[int, ...]) -> nn.Sequential:
    """Build the stack's entry ``index`` from ordinary layers."""
    layers: list[nn.Module] = []
    for i, stacked in enumerate(mlp.layers):
        linear = nn.Linear(stacked.in_features, stacked.out_features)
        linear.weight.data = stacked.weight[index].detach().T.clone()
        linear.bias.data = stacked.bias[index].detach().squeeze(0).clone()
        layers.append(linear)
        if i < len(mlp.layers) - 1:
            layers.append(nn.GELU())
            if mlp.norms is not None:
                norm = nn.LayerNorm(stacked.out_features, eps=1e-6)
                norm.weight.data = mlp.norms[i].weight[index].detach().flatten().clone()
                norm.bias.data = mlp.norms[i].bias[index].detach().flatten().clone()
                layers.append(norm)
    return nn.Sequential(*layers)


def disturbed(module: nn.Module) -> nn.Module:
    """Give scales and shifts values other than one and zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("stack", [(), (2,), (2, 3)])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_stack_equals_separate_networks(stack: tuple[int, ...], layer_norm: bool) -> None:
    mlp = disturbed(StackedMLP(4, 2, (6, 5), stack=stack, layer_norm=layer_norm))
    x = torch.randn(*stack, 7, 4)
    out = mlp(x)
    assert out.shape == (*stack, 7, 2)
    for index in itertools.product(*map(range, stack)):
        assert_close(out[index], plain_mlp(mlp, index)(x[index]))
    shared = torch.randn(7, 4)  # the same rows for every entry
    for index in itertools.product(*map(range, stack)):
        assert_close(mlp(shared)[index], plain_mlp(mlp, index)(shared))


def test_gradients_of_a_stack_stay_in_their_entry() -> None:
    mlp = StackedMLP(4, 1, (6,), stack=(3,))
    mlp(torch.randn(5, 4))[1].sum().backward()
    for parameter in mlp.parameters():
        assert parameter.grad[1].any() and not parameter.grad[0].any() and not parameter.grad[2].any()


@pytest.mark.parametrize("name", ["gelu", "relu", "elu", "tanh", "silu"])
def test_activations(name: str) -> None:
    mlp = StackedMLP(3, 1, (4,), activation=name, layer_norm=False)
    x = torch.randn(2, 3)
    function = torch.tanh if name == "tanh" else getattr(F, name)
    first, last = mlp.layers
    expected = function(x @ first.weight + first.bias) @ last.weight + last.bias
    assert_close(mlp(x), expected)


def test_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of \['elu', .*got 'swish'"):
        StackedMLP(3, 1, activation="swish")


def test_initialization() -> None:
    layer = StackedLinear(16, 100, (3,))
    for parameter in layer.parameters():
        assert parameter.abs().max() <= 0.25 and parameter.abs().max() > 0.2
        assert parameter.detach().std() == pytest.approx(0.25 / 3**0.5, rel=0.1)
    mlp = StackedMLP(4, 2, (8,), final_scale=0.01)
    assert mlp.layers[-1].weight.abs().max() < 0.01 / 8**0.5 * 1.001
    before = mlp.layers[0].weight.clone()
    mlp.reset_parameters()
    assert not torch.equal(mlp.layers[0].weight, before)
    assert mlp.layers[-1].weight.abs().max() < 0.01 / 8**0.5 * 1.001
    norm = disturbed(StackedLayerNorm(4, (2,)))
    norm.reset_parameters()
    assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
    assert "stack=(3,), in=16, out=100" in repr(layer)


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
@pytest.mark.parametrize("heads", [None, 2])
def test_shared_agents_are_told_apart_by_their_id(batch: tuple[int, ...], heads: int | None) -> None:
    network = AgentNetwork(4, 2, 3, num_heads=heads, hidden=(6,))
    x = torch.randn(*batch, 3, 4)
    out = network(x)
    lead = () if heads is None else (heads,)
    assert out.shape == (*lead, *batch, 3, 2)
    for agent in range(3):
        one_hot = F.one_hot(torch.tensor(agent), 3).float().expand(*batch, 3)
        rows = torch.cat([x[..., agent, :], one_hot], -1).reshape(-1, 7)
        assert_close(out[..., agent, :].reshape(*lead, -1, 2), network.mlp(rows))
    same = network(x[..., :1, :].expand_as(x))
    assert not torch.allclose(same[..., 0, :], same[..., 1, :])


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
@pytest.mark.parametrize("heads", [None, 2])
def test_separate_agents_have_their_own_parameters(batch: tuple[int, ...], heads: int | None) -> None:
    network = AgentNetwork(4, 2, 3, num_heads=heads, share_params=False, hidden=(6,))
    x = torch.randn(*batch, 3, 4)
    out = network(x)
    lead = () if heads is None else (heads,)
    assert out.shape == (*lead, *batch, 3, 2)
    for head, agent in itertools.product(range(heads or 1), range(3)):
        index = (agent,) if heads is None else (head, agent)
        found = out[..., agent, :] if heads is None else out[head][..., agent, :]
        assert_close(found, plain_mlp(network.mlp, index)(x[..., agent, :]))
    out[..., 1, :].sum().backward()
    grad = network.mlp.layers[0].weight.grad.reshape(-1, 3, 4, 6)
    assert grad[:, 1].any() and not grad[:, 0].any() and not grad[:, 2].any()


def test_dtype_follows_the_module() -> None:
    network = AgentNetwork(4, 2, 3, hidden=(6,)).double()
    assert network(torch.randn(5, 3, 4, dtype=torch.float64)).dtype == torch.float64


def test_batch_normalization_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(3, 4), nn.BatchNorm1d(12, affine=False)
    for rows in (7, 20, 5):
        x = (3 * torch.randn(2, rows, 3, 4) + 5).requires_grad_()
        y = x.detach().clone().requires_grad_()
        weight = torch.randn(2, rows, 3, 4)
        out, expected = ours(x), theirs(y.reshape(-1, 12)).reshape(y.shape)
        assert_close(out, expected)
        (out * weight).sum().backward()
        (expected * weight).sum().backward()
        assert_close(x.grad, y.grad)
        assert_close(ours.mean.flatten(), theirs.running_mean)
        corrected = ours.variance.flatten() + 0.1 * (x.detach().reshape(-1, 12).var(0) / (2 * rows))
        assert_close(corrected, theirs.running_var)  # torch corrects the running variance for the batch's size
        theirs.running_var.copy_(ours.variance.flatten())
    statistics = ours.mean.clone(), ours.variance.clone()
    x = torch.randn(1, 3, 4)
    assert_close(ours.eval()(x), theirs.eval()(x.reshape(1, 12)).reshape(1, 3, 4))
    assert torch.equal(ours.mean, statistics[0]) and torch.equal(ours.variance, statistics[1])
    ours.reset_parameters()
    assert not ours.mean.any() and (ours.variance == 1).all()


def test_every_agents_input_is_normalized_by_its_own_batch() -> None:
    torch.manual_seed(0)
    network = AgentNetwork(4, 2, 3, num_heads=2, hidden=(8,))
    normalized = BatchNorm.before(network, 3, 4)
    assert BatchNorm.before(network, 3, 4, wanted=False) is network
    x = torch.randn(50, 3, 4)
    assert_close(normalized(x), network((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()))
    shifted = x * torch.tensor([1.0, 10.0, 1e3]).view(3, 1) + torch.tensor([0.0, -5.0, 1e2]).view(3, 1)
    assert_close(normalized(shifted), normalized(x), rtol=1e-3, atol=1e-3)


def test_a_single_row_has_no_statistics() -> None:
    norm = BatchNorm(3, 4)
    for shape in [(3, 4), (1, 3, 4), (1, 1, 3, 4)]:
        with pytest.raises(ValueError, match=r"no statistics of a single row.*actor\.eval\(\)"):
            norm(torch.zeros(shape))
    assert norm.eval()(torch.zeros(3, 4)).shape == (3, 4)
