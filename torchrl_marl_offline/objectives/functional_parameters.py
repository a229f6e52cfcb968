"""Networks and losses evaluated under tensors that are not their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


def copy_with_networks(loss: nn.Module) -> nn.Module:
    """Return a deep copy of a TorchRL loss whose networks hold the copy's parameters.

    A deep copy alone leaves them apart: ``loss.actor_network`` would not follow the training of the copy.
    """
    copied = copy.deepcopy(loss)
    for group, params in copied._modules.items():
        network = copied.__dict__.get(group.removesuffix("_params"))
        if isinstance(params, TensorDictParams) and network is not None and not params.batch_size:
            params.to_module(network)
    return copied


class GivenTensors(TensorDict):
    """Tensors in the place of a loss's parameters; networks read them as they are.

    ``to_module`` of an ordinary tensordict wraps what needs no gradient, such as targets, in new parameters, which a
    trace would take for constants.
    """

    @property
    def data(self) -> TensorDictBase:
        """Return the tensors without gradient; :func:`torch.vmap` allows it so."""
        return self.detach()

    def to_module(self, module: nn.Module, **options: Any) -> Any:
        """Put the tensors into ``module``."""
        return super().to_module(module, **{"preserve_module_state": False} | options)


@contextmanager
def tensors_in(loss: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let ``loss`` use ``tensors``, named as in :func:`tensors_of`, within the block.

    Unlike :func:`torch.func.functional_call` it reaches inside of
    :class:`~tensordict.TensorDictParams`.
    """
    trees: dict[str, TensorDict] = {}
    saved: list[tuple[dict, str, object]] = []
    if "_cache" in loss.__dict__:  # where losses of TorchRL keep detached copies of their parameters
        saved.append((loss.__dict__, "_cache", loss.__dict__["_cache"]))
        loss.__dict__["_cache"] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        held = loss._modules.get(group)
        if isinstance(held, TensorDictParams):
            tree = trees.setdefault(group, GivenTensors(batch_size=held.batch_size))  # [E] of an ensemble
            tree.set(tuple(rest.split(".")), tensor)
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
