r"""Recurrent networks over time, each one operation with its gradient written down.

Autograd of a loop over time keeps and visits a dozen operations a step, and a compiler that unrolls the loop compiles
them ``T`` times. Here a loop is one operation, which compilers call as it is, and its gradient another one: backward
in time there are three operations a step for a GRU, since all factors that do not depend on the gradient are taken for
all steps at once, and so is the gradient of the weight.

The operations know :func:`torch.vmap`, for ensembles and populations; the gradient of a gradient is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Loop = Callable[[Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]


def unroll_gru(inputs: Tensor, begins: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""Return the hidden states of a GRU, from zeros on: with gates :math:`r, z` and the new content :math:`n`,

    .. math::
        r_t, z_t = \sigma(x_t + W h_{t-1} + b), \quad n_t = \tanh(x_t + r_t (W h_{t-1} + b)), \quad
        h_t = (1 - z_t) n_t + z_t h_{t-1}.

    Args:
        inputs: products :math:`x_t` of the inputs, ``[T, *stack, rows, 3 H]``, gates in this order.
        begins: ``[T, *stack, rows, 1]`` bool, where the state before is zero; nowhere before the first step.
        weight: ``[*stack, H, 3 H]``; under autocast products are in its precision.
        bias: ``[*stack, 1, 3 H]``.

    Returns:
        ``[T, *stack, rows, H]``.
    """
    return _unrolled(_GRU, inputs, begins, weight, bias)


def unroll_lstm(inputs: Tensor, begins: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""Return the hidden and the cell states of an LSTM side by side, from zeros on: with gates :math:`i, f, o`,

    .. math::
        c_t = f_t c_{t-1} + i_t \tanh(x_t + W h_{t-1} + b), \quad h_t = o_t \tanh(c_t).

    Args:
        inputs: products :math:`x_t` of the inputs, ``[T, *stack, rows, 4 H]``, of :math:`i, f`, the new content, and
            :math:`o`.
        begins: as for :func:`unroll_gru`.
        weight: ``[*stack, H, 4 H]``.
        bias: ``[*stack, 1, 4 H]``.

    Returns:
        ``[T, *stack, rows, 2 H]``.
    """
    return _unrolled(_LSTM, inputs, begins, weight, bias)


def _unrolled(loop: Loop, inputs: Tensor, begins: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind):
        weight = weight.to(torch.get_autocast_dtype(kind))
    return loop(inputs, begins, weight, bias, torch.is_grad_enabled())[0]


class _Steps:
    """States before each step, zeros where they begin anew, and products with a weight that may be a stack.

    Args:
        begins: ``[T, *stack, rows, 1]``.
        weight: ``[*stack, H, gates H]``.
    """

    def __init__(self, begins: Tensor, weight: Tensor) -> None:
        self.stack, self.weight = weight.shape[:-2], weight
        self.weight = self.flat(weight, 0)
        begins = self.flat(begins, 1)
        # of a GPU it would have to be waited for
        self.begins = begins if begins.device.type != "cpu" or bool(begins[1:].any()) else None

    def flat(self, x: Tensor, leading: int) -> Tensor:
        """Make one dimension of the stack, where it has more, behind so many others."""
        return x.flatten(leading, -3) if len(self.stack) > 1 else x

    def kept(self, x: Tensor, step: int | None = None) -> Tensor:
        """Return what goes from one state into the next, ``[stack, rows, c]`` of a step or of all steps."""
        if self.begins is None:
            return x
        return x.masked_fill(self.begins if step is None else self.begins[step], 0.0)

    def before(self, states: Tensor) -> Tensor:
        """Return the states before each step, of all after it."""
        return self.kept(torch.cat([torch.zeros_like(states[:1]), states[:-1]]))

    def added(self, base: Tensor, x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """Write ``base + x @ weight``, with the product in the precision of the weight."""
        if weight.dtype != x.dtype:
            return torch.add(base, torch.matmul(x.to(weight.dtype), weight), out=out)
        return (torch.addmm if weight.ndim == 2 else torch.baddbmm)(base, x, weight, out=out)

    def of_parameters(self, before: Tensor, of_product: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of weight and bias, of states and of products ``[T, stack, rows, c]``."""
        sides = [x.movedim(0, -3).flatten(-3, -2).to(self.weight.dtype) for x in (before, of_product)]
        of_weight = torch.matmul(sides[0].mT, sides[1])
        of_bias = of_product.sum((0, -2)).unsqueeze(-2)
        return tuple(each.reshape(*self.stack, *each.shape[-2:]) for each in (of_weight, of_bias))


def _gru(inputs: Tensor, begins: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states and, to ``keep`` for the gradient, the gates with the new content, and the product in it."""
    steps, size = _Steps(begins, weight), weight.shape[-2]
    found = _made_gru(inputs, begins, weight, bias, keep)
    x, states, gates, inner = (steps.flat(each, 1) for each in (inputs, *found))
    gates, inner = (each if keep else _one_for_all(each, len(x)) for each in (gates, inner))
    bias, state = steps.flat(bias, 0), x.new_zeros(states.shape[1:])
    product = torch.empty_like(x[0]).copy_(bias)  # of the first state, which is zero; never the bias itself
    of_gates, of_new = product.split([2 * size, size], -1)
    columns = (*x.split([2 * size, size], -1), *gates.split([2 * size, size], -1), *gates.split(size, -1)[:2])
    columns = zip(*(each.unbind(0) for each in (*columns, inner, states)))  # views, cheaper than by their numbers
    for t, (to_gates, to_new, both, new, reset, update, within, after) in enumerate(columns):
        if t:
            state = steps.kept(state, t)
            steps.added(bias, state, steps.weight, product)
        torch.add(to_gates, of_gates, out=both).sigmoid_()
        torch.addcmul(to_new, reset, within.copy_(of_new), out=new).tanh_()
        state = torch.lerp(new, state, update, out=after)
    return found


def _made_gru(
    inputs: Tensor, begins: Tensor, weight: Tensor, bias: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _made(inputs, keep, inputs.shape[-1] // 3, inputs.shape[-1], inputs.shape[-1] // 3)


def _gru_backward(
    gradient: Tensor, states: Tensor, gates: Tensor, inner: Tensor, begins: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of inputs, weight and bias."""
    steps, size = _Steps(begins, weight), weight.shape[-2]
    of_inputs = gates.new_empty(gates.shape)
    given, states, gates, inner, products = (steps.flat(x, 1) for x in (gradient, states, gates, inner, of_inputs))
    reset, update, new = gates.split(size, -1)
    before, of_new = steps.before(states), (1 - update) * (1 - new * new)
    of_reset, of_update = of_new * inner * reset * (1 - reset), (before - new) * update * (1 - update)
    factors = torch.cat([of_reset, of_update, of_new * reset], -1).unflatten(-1, (3, size))
    by_gate, update, transposed = products.unflatten(-1, (3, size)), steps.kept(update), steps.weight.mT
    of_states = torch.empty_like(before)
    of_states[-1] = given[-1]
    columns = list(zip(*(each.unbind(0) for each in (of_states, factors, by_gate, update, products, given))))
    for t in reversed(range(len(columns))):
        now, factor, of_gates, carried, product, _ = columns[t]
        torch.mul(now.unsqueeze(-2), factor, out=of_gates)
        if t:
            earlier, *_, seen = columns[t - 1]
            torch.addcmul(seen, now, carried, out=earlier)
            steps.added(earlier, steps.kept(product, t), transposed, earlier)
    of_weight, of_bias = steps.of_parameters(before, products)
    torch.mul(of_states, of_new, out=products[..., 2 * size :])
    return of_inputs, of_weight, of_bias


def _lstm(inputs: Tensor, begins: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden and cell states and, to ``keep`` for the gradient, the gates and the cells' outputs."""
    steps, size = _Steps(begins, weight), weight.shape[-2]
    found = _made_lstm(inputs, begins, weight, bias, keep)
    x, states, gates, outputs = (steps.flat(each, 1) for each in (inputs, *found))
    gates, outputs = (each if keep else _one_for_all(each, len(x)) for each in (gates, outputs))
    x, hidden, cell = x + steps.flat(bias, 0), *x.new_zeros(states.shape[1:]).split(size, -1)
    columns = (x, gates, gates[..., : 2 * size], *gates.split(size, -1), outputs, *states.split(size, -1))
    columns = zip(*(each.unbind(0) for each in columns))
    for t, (base, gate, both, let_in, forget, new, out, output, next_hidden, next_cell) in enumerate(columns):
        if t:
            hidden, cell = steps.kept(hidden, t), steps.kept(cell, t)
        steps.added(base, hidden, steps.weight, gate)
        both.sigmoid_()
        new.tanh_()
        out.sigmoid_()
        cell = torch.mul(forget, cell, out=next_cell).addcmul_(let_in, new)
        hidden = torch.mul(out, torch.tanh(cell, out=output), out=next_hidden)
    return found


def _made_lstm(
    inputs: Tensor, begins: Tensor, weight: Tensor, bias: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _made(inputs, keep, inputs.shape[-1] // 2, inputs.shape[-1], inputs.shape[-1] // 4)


def _lstm_backward(
    gradient: Tensor, states: Tensor, gates: Tensor, outputs: Tensor, begins: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of inputs, weight and bias."""
    steps, size = _Steps(begins, weight), weight.shape[-2]
    of_inputs = gates.new_empty(gates.shape)
    given, states, gates, outputs, products = (steps.flat(x, 1) for x in (gradient, states, gates, outputs, of_inputs))
    let_in, forget, new, out = gates.split(size, -1)
    before, through = steps.before(states), out * (1 - outputs * outputs)
    of_forget = before[..., size:] * forget * (1 - forget)
    factors = torch.cat([new * let_in * (1 - let_in), of_forget, let_in * (1 - new * new)], -1)
    factors, of_out = factors.unflatten(-1, (3, size)), outputs * out * (1 - out)
    by_gate, forget, transposed = products.unflatten(-1, (4, size)), steps.kept(forget), steps.weight.mT
    of_hidden, of_cell = (each.clone() for each in given[-1].split(size, -1))
    columns = (through, factors, of_out, *by_gate.split([3, 1], -2), forget, products, *given.split(size, -1))
    columns = list(zip(*(each.unbind(0) for each in columns)))
    for t in reversed(range(len(columns))):
        passed, factor, of_gate, by_three, by_out, carried, product, _, _ = columns[t]
        of_cell.addcmul_(of_hidden, passed)
        torch.mul(of_cell.unsqueeze(-2), factor, out=by_three)
        torch.mul(of_hidden, of_gate, out=by_out.squeeze(-2))
        if t:
            *_, seen_hidden, seen_cell = columns[t - 1]
            of_cell = torch.addcmul(seen_cell, of_cell, carried)
            steps.added(seen_hidden, steps.kept(product, t), transposed, of_hidden)
    of_weight, of_bias = steps.of_parameters(before[..., :size], products)
    return of_inputs, of_weight, of_bias


def _one_for_all(each: Tensor, length: int) -> Tensor:
    """Return room for one step as that of every step, where nothing of a step is kept."""
    return each.new_empty(each.shape[1:]).expand(length, *each.shape[1:])


def _made(inputs: Tensor, keep: bool, *widths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return room for states, and for what is kept of each step, of these widths."""
    length, *rows, _ = inputs.shape
    lengths = (length, length if keep else 0, length if keep else 0)
    return tuple(inputs.new_empty(steps, *rows, width) for steps, width in zip(lengths, widths))


# ------------------------------------------------------------------------------- as operations of torch


def _gradients_made(
    gradient: Tensor, states: Tensor, gates: Tensor, other: Tensor, begins: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    bias = gates.new_empty(*weight.shape[:-2], 1, weight.shape[-1])
    return gates.new_empty(gates.shape), weight.new_empty(weight.shape), bias


def _stacked(members: int, dims: tuple[int | None, ...], tensors: tuple[Any, ...], at: tuple[int | None, ...]) -> list:
    """Put the dimension of members, which some may lack, where the stack begins."""
    found = []
    for dim, tensor, place in zip(dims, tensors, at):
        if place is None:
            found.append(tensor)
        elif dim is None:
            found.append(tensor.unsqueeze(place).expand(*tensor.shape[:place], members, *tensor.shape[place:]))
        else:
            found.append(tensor.movedim(dim, place))
    return found


def _operation(name: str, loop: Callable, made: Callable, backward: Callable) -> Loop:
    """Register a loop with its gradient; both stack members of :func:`torch.vmap` in front of the weights'."""
    own = f"torchrl_marl_offline::{name}"
    forward_schema = "(Tensor inputs, Tensor begins, Tensor weight, Tensor bias, bool keep) -> (Tensor, Tensor, Tensor)"
    backward_schema = (
        "(Tensor gradient, Tensor states, Tensor gates, Tensor other, Tensor begins, Tensor weight)"
        " -> (Tensor, Tensor, Tensor)"
    )
    operation = torch.library.custom_op(own, loop, mutates_args=(), schema=forward_schema)
    gradient = torch.library.custom_op(f"{own}_backward", backward, mutates_args=(), schema=backward_schema)
    operation.register_fake(made)
    gradient.register_fake(_gradients_made)

    def keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, begins, weight, _, _ = inputs
        ctx.save_for_backward(*output, begins, weight)

    def differentiate(ctx: Any, of_states: Tensor, *_: Any) -> tuple:
        of_inputs, of_weight, of_bias = gradient(of_states, *ctx.saved_tensors)
        return of_inputs, None, of_weight, of_bias, None

    operation.register_autograd(differentiate, setup_context=keep)

    @operation.register_vmap
    def of_members(info: Any, dims: tuple, *given: Any) -> tuple[tuple, tuple]:
        return operation(*_stacked(info.batch_size, dims, given, (1, 1, 0, 0, None))), (1, 1, 1)

    @gradient.register_vmap
    def of_members_gradient(info: Any, dims: tuple, *given: Any) -> tuple[tuple, tuple]:
        return gradient(*_stacked(info.batch_size, dims, given, (1, 1, 1, 1, 1, 0))), (1, 0, 0)

    return operation


_GRU = _operation("gru", _gru, _made_gru, _gru_backward)
_LSTM = _operation("lstm", _lstm, _made_lstm, _lstm_backward)
