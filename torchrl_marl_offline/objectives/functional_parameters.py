"""Networks and losses evaluated under tensors that are not their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor, nn

Saved = list[tuple[dict[str, Tensor | None], str, Tensor | None]]


@contextmanager
def parameters_in(network: nn.Module, params: TensorDictBase) -> Iterator[None]:
    """Let ``network`` use ``params`` within the block.

    What ``params.to_module(network)`` does, at a tenth of the cost in a loss of eight network passes; under
    :func:`torch.compile`, which knows ``to_module``, it is the same call.
    """
    if torch.compiler.is_compiling():
        with params.to_module(network, preserve_module_state=False):
            yield
        return
    saved: Saved = []
    _put(network, params, saved)
    try:
        yield
    finally:
        for slot, name, tensor in saved:
            slot[name] = tensor


def _put(module: nn.Module, params: TensorDictBase, saved: Saved) -> None:
    tree = params._param_td if isinstance(params, TensorDictParams) else params
    for name, value in tree.items():
        if isinstance(value, Tensor):
            slot = module._parameters if name in module._parameters else module._buffers
            saved.append((slot, name, slot[name]))
            slot[name] = value
        else:
            _put(module._modules[name], value, saved)


def tensors_of(loss: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer of ``loss``, targets included, by the names of its ``state_dict()``."""
    return dict(nn.Module.named_parameters(loss)) | dict(loss.named_buffers())


@contextmanager
def tensors_in(loss: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let ``loss`` use ``tensors``, named as in :func:`tensors_of`, within the block.

    Unlike :func:`torch.func.functional_call` it reaches inside of
    :class:`~tensordict.TensorDictParams`.
    """
    trees: dict[str, TensorDict] = {}
    saved: list[tuple[dict, str, object]] = []
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if isinstance(loss._modules.get(group), TensorDictParams):
            trees.setdefault(group, TensorDict()).set(tuple(rest.split(".")), tensor)
            continue
        path, _, leaf = name.rpartition(".")
        module = loss.get_submodule(path)
        slot = module._parameters if leaf in module._parameters else module._buffers
        saved.append((slot, leaf, slot[leaf]))
        slot[leaf] = tensor
    for group, tree in trees.items():
        saved.append((loss._modules, group, loss._modules[group]))
        loss._modules[group] = tree
    try:
        yield
    finally:
        for slot, leaf, value in reversed(saved):
            slot[leaf] = value
