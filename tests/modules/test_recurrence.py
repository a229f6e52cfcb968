"""Recurrent networks over time as one operation: against torch's cells, in stacks, of members, as torch wants them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchrl_marl_offline.modules.recurrence import unroll_gru, unroll_lstm

KINDS = {"gru": (unroll_gru, nn.GRUCell, 3), "lstm": (unroll_lstm, nn.LSTMCell, 4)}
LENGTH, ROWS, SIZE = 4, 3, 2
every_kind = pytest.mark.parametrize("kind", KINDS)


def given(kind: str, *stack: int, seed: int = 0, resets: bool = True) -> list[Tensor]:
    """Return inputs, beginnings, weight and bias."""
    g, width = torch.Generator().manual_seed(seed), KINDS[kind][2] * SIZE
    begins = torch.zeros(LENGTH, *stack, ROWS, 1, dtype=torch.bool)
    begins[0] = True
    begins[2, ..., 1, :] = resets
    shapes = (LENGTH, *stack, ROWS, width), (*stack, SIZE, width), (*stack, 1, width)
    inputs, weight, bias = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    return [inputs, begins, weight, bias]


def by_cells(kind: str, inputs: Tensor, begins: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Unroll torch's cell, whose product of the input is the identity, of one set of weights."""
    width = inputs.shape[-1]
    cell = KINDS[kind][1](width, SIZE, dtype=torch.float64)
    eye, zeros = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    parameters = {"weight_ih": eye, "bias_ih": zeros, "weight_hh": weight.T, "bias_hh": bias[0]}
    state = torch.zeros(ROWS, SIZE if kind == "gru" else 2 * SIZE, dtype=torch.float64)
    found = []
    for x, anew in zip(inputs, begins):
        state = torch.where(anew, 0.0, state)
        before = state if kind == "gru" else tuple(state.chunk(2, -1))
        after = torch.func.functional_call(cell, parameters, (x, before))
        state = after if kind == "gru" else torch.cat(after, -1)
        found.append(state)
    return torch.stack(found)


def gradients(value: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, value.numel(), dtype=torch.float64).view(value.shape)
    return torch.autograd.grad((weights * value).sum(), tensors)


def trained(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in tensors if tensor.is_floating_point()]


@pytest.mark.parametrize("resets", [True, False], ids=["resets", "none"])
@every_kind
def test_values_and_gradients_are_those_of_torch_s_cells(kind: str, resets: bool) -> None:
    inputs = given(kind, resets=resets)
    own = trained(inputs)
    found, expected = KINDS[kind][0](*inputs), by_cells(kind, *inputs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for one, other in zip(gradients(found, own), gradients(expected, own)):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    with torch.no_grad():
        assert torch.equal(KINDS[kind][0](*inputs), found)


@pytest.mark.parametrize("stack", [(2,), (2, 2)], ids=str)
@every_kind
def test_a_stack_is_each_for_itself(kind: str, stack: tuple[int, ...]) -> None:
    inputs = given(kind, *stack)
    own = trained(inputs)
    found = KINDS[kind][0](*inputs)
    for index in torch.cartesian_prod(*map(torch.arange, stack)).view(-1, len(stack)).tolist():
        at = tuple(index)
        alone = [inputs[0][(slice(None), *at)], inputs[1][(slice(None), *at)], inputs[2][at], inputs[3][at]]
        expected = by_cells(kind, *alone)
        torch.testing.assert_close(found[(slice(None), *at)], expected, atol=1e-12, rtol=0)
    expected = torch.stack(
        [
            by_cells(kind, *(x.flatten(d, -3).unbind(d)[i] for x, d in zip(inputs, (1, 1, 0, 0))))
            for i in range(2 ** len(stack))
        ],
        1,
    ).view_as(found)
    for one, other in zip(gradients(found, own), gradients(expected, own)):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("stack", [(), (2,)], ids=str)
@every_kind
def test_members_of_vmap_are_each_for_themselves(kind: str, stack: tuple[int, ...]) -> None:
    members = [given(kind, *stack, seed=seed) for seed in range(3)]
    together = [torch.stack(each) for each in zip(*members)]
    own = trained(together)
    unroll = KINDS[kind][0]
    found = torch.vmap(unroll)(*together)
    expected = torch.stack([unroll(*(x[i] for x in together)) for i in range(3)])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for one, other in zip(gradients(found, own), gradients(expected, own)):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    shared = torch.vmap(unroll, (0, None, None, 0))(together[0], *members[0][1:3], together[3])
    alone = torch.stack([unroll(together[0][i], *members[0][1:3], together[3][i]) for i in range(3)])
    torch.testing.assert_close(shared, alone, atol=1e-12, rtol=0)


@every_kind
def test_a_gradient_of_a_gradient_is_an_error_in_words(kind: str) -> None:
    inputs = given(kind)
    own = trained(inputs)
    first = torch.autograd.grad(KINDS[kind][0](*inputs).square().sum(), own, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        first[0].sum().backward()


@every_kind
def test_torch_finds_the_operation_as_it_wants_it(kind: str) -> None:
    inputs = given(kind)
    trained(inputs)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    checked = torch.library.opcheck(getattr(torch.ops.torchrl_marl_offline, kind), (*inputs, True), test_utils=utils)
    assert set(checked.values()) == {"SUCCESS"}


@every_kind
def test_products_under_autocast_are_in_its_precision_and_states_are_not(kind: str) -> None:
    inputs = [x.float() if x.is_floating_point() else x for x in given(kind)]
    own = trained(inputs)
    exact = KINDS[kind][0](*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = KINDS[kind][0](*inputs)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.05
    for one, other in zip(gradients(found, own), gradients(exact, own)):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("stack", [(), (2,)], ids=str)
@every_kind
def test_one_row_is_that_row_of_many_and_nothing_given_is_written_to(kind: str, stack: tuple[int, ...]) -> None:
    inputs, begins, weight, bias = given(kind, *stack)
    unroll = KINDS[kind][0]
    whole = unroll(inputs, begins, weight, bias)
    for row in range(ROWS):
        one = [inputs[..., row : row + 1, :].clone(), begins[..., row : row + 1, :].clone(), weight, bias]
        before = [tensor.clone() for tensor in one]
        torch.testing.assert_close(unroll(*one), whole[..., row : row + 1, :], rtol=0, atol=1e-12)
        assert all(torch.equal(tensor, earlier) for tensor, earlier in zip(one, before))
        with torch.no_grad():
            torch.testing.assert_close(unroll(*one), whole[..., row : row + 1, :], rtol=0, atol=1e-12)
        assert all(torch.equal(tensor, earlier) for tensor, earlier in zip(one, before))
