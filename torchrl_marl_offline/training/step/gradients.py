"""The loss of a batch and its gradients: as it stands, or traced once and compiled as one function of tensors.

Every form leaves the gradients in ``parameter.grad`` and returns the loss's one-element outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.checkpoint import GlobalRNGState

from torchrl_marl_offline.core.functional_parameters import tensors_in, tensors_of
from torchrl_marl_offline.core.noise import NoiseRequest, given_noise, recorded_noise
from torchrl_marl_offline.core.parts import COMPILED, heard_by, part
from torchrl_marl_offline.core.put_back import preserved_rng
from torchrl_marl_offline.training.run.metrics import scalars
from torchrl_marl_offline.training.step.compile_failures import is_of_compiler, say_that_it_failed

if TYPE_CHECKING:
    from torchrl.objectives import LossModule

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")


class Gradients:
    """Differentiate a loss as it stands.

    Args:
        loss: any TorchRL loss; its outputs that start with ``"loss"`` are summed.
        precision: of the matrix products; see :func:`in_precision`.
        forward: what to call in place of ``loss``.
    """

    def __init__(
        self, loss: LossModule, *, precision: Precision = "fp32", forward: Callable[..., TensorDictBase] | None = None
    ) -> None:
        self.loss, self.precision = loss, precision
        self._forward = loss if forward is None else forward
        self._proven = forward is None
        self._tensors: dict[str, Tensor] | None = None

    def _first_output(self, batch: TensorDictBase) -> TensorDictBase:
        """Call what was given in place of the loss; where compiling fails here, the loss takes over."""
        saved = {name: value.clone() for name, value in self.loss.named_buffers()}
        generators = GlobalRNGState().state_dict()
        try:
            output = self._forward(batch)
        except Exception as error:
            if not is_of_compiler(error):
                raise
            say_that_it_failed(error)
            self._forward = self.loss
            GlobalRNGState().load_state_dict(generators)
            with torch.no_grad():
                for name, value in self.loss.named_buffers():
                    value.copy_(saved[name])
            output = self.loss(batch)
        self._proven = True
        return output

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Set every trainable parameter's ``grad`` and return the metrics, each of shape ``[]``."""
        unheard = nullcontext() if self._forward is self.loss else heard_by(None)
        with part("loss arithmetic"), unheard, in_precision(self.precision, batch.device):
            output = self._forward(batch) if self._proven else self._first_output(batch)
        with part("backward"):
            if self._tensors is None:
                self._tensors = tensors_of(self.loss)  # the optimizer, too, keeps those that were there first
            set_gradients(self._tensors, {})
            total_loss(output).backward()
        return scalars(output)


class CompiledGradients:
    """Differentiate a loss by one compiled function of its tensors, forward and backward together.

    The loss is traced once for each form of batch (keys and shapes) into operations on tensors, without the modules,
    tensordicts and autograd around them, which torch's compiler then fuses. Its numbers are those of
    :class:`Gradients` up to the rounding of fused operations. Everything that a step reads is an input: parameters,
    targets, buffers such as a scheduled temperature, the batch, and the noise, which is drawn before from the same
    generator in the same order.

    Args:
        loss: any TorchRL loss whose ``forward`` does not depend on the values of tensors.
        precision: see :func:`in_precision`.
        backend: of :func:`torch.compile`; ``None`` runs the traced operations one by one.
    """

    def __init__(self, loss: LossModule, *, precision: Precision = "fp32", backend: str | None = "inductor") -> None:
        self.loss, self.precision, self.backend = loss, precision, backend
        self._traced: dict[tuple, TracedFunction] = {}

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Set every trainable parameter's ``grad`` and return the metrics, each of shape ``[]``."""
        tensors = tensors_of(self.loss)
        with part(COMPILED):
            traced = self._trace(tensors, batch)
            noise = [request.draw(leaf_device(batch)) for request in traced.noise]
            metrics, gradients = traced(tensors, batch, noise)
        set_gradients(tensors, gradients)
        return metrics

    def _trace(self, tensors: Mapping[str, Tensor], batch: TensorDictBase) -> TracedFunction:
        signature = signature_of(batch)
        if signature not in self._traced:
            function = single_gradients(self.loss, self.precision)
            self._traced[signature] = TracedFunction(function, tensors, batch, backend=self.backend)
        return self._traced[signature]


Differentiated = tuple[dict[str, Tensor], dict[str, Tensor]]
GradientFunction = Callable[[Mapping[str, Tensor], TensorDictBase, list[Tensor]], Differentiated]


def single_gradients(loss: LossModule, precision: Precision) -> GradientFunction:
    """Return the function from a loss's tensors, a batch and noise to metrics and gradients, by name."""

    def function(tensors: Mapping[str, Tensor], batch: TensorDictBase, noise: list[Tensor]) -> Differentiated:
        trainable = {name: t.detach().requires_grad_() for name, t in tensors.items() if t.requires_grad}
        with tensors_in(loss, {**tensors, **trainable}), noise_given(noise), in_precision(precision, batch.device):
            output = loss(batch)
        gradients = torch.autograd.grad(total_loss(output), list(trainable.values()), allow_unused=True)
        found = {name: gradient for name, gradient in zip(trainable, gradients) if gradient is not None}
        return scalars(output), found

    return function


class TracedFunction:
    """A function of named tensors, a batch and noise as one graph of tensor operations.

    Args:
        function: what is traced; it runs twice here, on copies of the buffers that it writes to.
        tensors: parameters, targets and buffers by name; those that do not require gradients may be written to.
        batch: of the form that will be given.
        backend: of :func:`torch.compile`, or ``None``.
        draw: gives numbers in the shape in which ``function`` takes them.
    """

    def __init__(
        self,
        function: GradientFunction,
        tensors: Mapping[str, Tensor],
        batch: TensorDictBase,
        *,
        backend: str | None,
        draw: Callable[[NoiseRequest, torch.device], Tensor] = NoiseRequest.draw,
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        names, keys, batch_size = list(tensors), sorted_keys(batch), batch.batch_size
        shape: dict[str, list[str]] = {}

        def flat(values: list[Tensor], leaves: list[Tensor], noise: list[Tensor]) -> list[Tensor]:
            given = TensorDict(dict(zip(keys, leaves)), batch_size)
            metrics, gradients = function(dict(zip(names, values)), given, noise)
            shape["metrics"], shape["gradients"] = list(metrics), list(gradients)
            return [*metrics.values(), *gradients.values()]

        def copies() -> tuple[list[Tensor], list[Tensor]]:
            return list(copies_of(tensors).values()), [batch.get(key).clone() for key in keys]

        with preserved_rng(), heard_by(None):
            with recorded_noise() as self.noise:
                flat(*copies(), None)
            drawn = [draw(request, leaf_device(batch)) for request in self.noise]
            try:
                graph = make_fx(flat)(*copies(), drawn)
            except RuntimeError as error:
                raise RuntimeError(f"The loss cannot be traced, use compile='off': {error}") from error
        _check_reads_only_inputs(graph)
        self._keys, self._metrics, self._gradients = keys, shape["metrics"], shape["gradients"]
        self._graph, self._backend = graph, backend
        self._run: Callable[..., list[Tensor]] | None = graph if backend is None else None

    def _first_run(self, *inputs: list[Tensor]) -> list[Tensor]:
        """Compile, and run; where compiling fails here, the traced operations are run one by one from now on."""
        try:
            run = compile_graph(self._graph, self._backend)
            found = run(*inputs)
        except Exception as error:
            say_that_it_failed(error)
            run, found = self._graph, self._graph(*inputs)
        self._run = run
        return found

    def __call__(self, tensors: Mapping[str, Tensor], batch: TensorDictBase, noise: list[Tensor]) -> Differentiated:
        """Run the graph."""
        with torch.no_grad():
            run = self._first_run if self._run is None else self._run
            found = run(list(tensors.values()), [batch.get(key) for key in self._keys], noise)
        count = len(self._metrics)
        return dict(zip(self._metrics, found[:count])), dict(zip(self._gradients, found[count:]))


def _check_reads_only_inputs(graph: torch.fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(graph, node.target, None), torch.nn.Parameter):
            raise RuntimeError(
                "The loss reads a parameter that is not among its own, which a trace would never see change; use "
                "compile='off'."
            )


def compile_graph(graph: torch.fx.GraphModule, backend: str) -> Callable[..., list[Tensor]]:
    """Compile a traced graph; its inputs always have the shapes of the trace, so that nothing is checked at a call."""
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe} if backend == "inductor" else None
    return torch.compile(graph, backend=backend, dynamic=False, fullgraph=True, options=options)


def check_precision(precision: Precision) -> Precision:
    """Return ``precision`` if it is one of :data:`PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}.")
    return precision


@contextmanager
def in_precision(precision: Precision, device: torch.device | None) -> Iterator[None]:
    """Within the block, multiply matrices in this precision.

    Args:
        precision: ``"fp32"``; ``"tf32"``: 10 bits of mantissa on NVIDIA's tensor cores; ``"bf16"``: autocast to
            bfloat16, with the networks' outputs, losses, gradients of parameters and the optimizer in fp32.
        device: of the batch.

    Raises:
        ValueError: for an unknown precision, or TF32 without a GPU.
    """
    kind = "cpu" if device is None else device.type
    if check_precision(precision) == "tf32":
        if kind != "cuda":
            raise ValueError("precision='tf32' needs an NVIDIA GPU; use 'fp32', or 'bf16'.")
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    cast: AbstractContextManager = nullcontext()
    if precision == "bf16":
        # the cache of casts holds tensors of a trace or of another member
        cast = torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=False)
    with cast:
        yield


def copies_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors of which some require gradients, so that a trial run may write to them."""
    return {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in tensors.items()}


def set_gradients(tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    """Give every parameter among ``tensors`` its gradient of this step, or none.

    Laid out in memory as the parameter, as after ``backward()``: the fused Adam takes the two for one order.
    """
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            gradient = gradients.get(name)
            if gradient is not None and gradient.stride() != tensor.stride():
                gradient = torch.empty_like(tensor).copy_(gradient)
            tensor.grad = gradient


def total_loss(output: TensorDictBase) -> Tensor:
    """Sum the outputs that start with ``"loss"``."""
    names = [name for name in output.keys() if isinstance(name, str) and name.startswith("loss")]  # noqa: SIM118
    if not names:
        raise KeyError(f'The loss module returned {list(output.keys())}, nothing that starts with "loss".')
    return sum(output.get(name) for name in names)


def noise_given(noise: list[Tensor] | None) -> AbstractContextManager:
    """Hand ``noise`` to the loss, or let it draw its own."""
    return nullcontext() if noise is None else given_noise(noise)


def sorted_keys(batch: TensorDictBase) -> list[Any]:
    """Return the keys of all leaves, in an order that does not depend on how the batch was put together."""
    return sorted(batch.keys(True, True), key=str)


def signature_of(batch: TensorDictBase) -> tuple:
    """Return what two batches must share for one trace to serve both."""
    leaves = ((key, batch.get(key)) for key in sorted_keys(batch))
    return (batch.batch_size, *((key, leaf.shape, leaf.dtype, leaf.device) for key, leaf in leaves))


def leaf_device(batch: TensorDictBase) -> torch.device:
    """Return the device of the batch."""
    return batch.device or next(iter(batch.values(True, True))).device
