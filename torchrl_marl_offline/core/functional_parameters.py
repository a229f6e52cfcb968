"""Networks and losses evaluated under tensors that are not their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor, nn

Saved = list[tuple[dict[str, Any], str, Any]]

_SLOTS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a network's tensors may be exchanged where modules keep them, decided at its first evaluation."""


@contextmanager
def parameters_in(network: nn.Module, params: TensorDictBase) -> Iterator[None]:
    """Let ``network`` use ``params`` within the block.

    What ``params.to_module(network)`` does, at a tenth of the cost in a loss of eight network passes. It is the same
    call under :func:`torch.compile`, which knows ``to_module``, and for networks with modules that want to hear of
    their new tensors, such as :class:`torch.nn.GRU`, which computes with a list of its own.
    """
    if torch.compiler.is_compiling() or not _has_slots(network, params):
        with params.to_module(network, preserve_module_state=False):
            yield
        return
    saved: Saved = []
    places = _known_places(network, params) if isinstance(params, TensorDictParams) else None
    if places is None:
        _put(network, params, saved)
    else:
        for slot, name, source in places:
            held, given = slot[name], source[name]
            if held is not given:  # networks hold a loss's own parameters already
                saved.append((slot, name, held))
                slot[name] = given
    try:
        yield
    finally:
        for slot, name, tensor in reversed(saved):  # tied parameters are put in twice
            slot[name] = tensor


def _has_slots(network: nn.Module, params: TensorDictBase) -> bool:
    known = _SLOTS.get(network)
    if known is None:
        known = _SLOTS[network] = _fits(network, params)
    return known


def _fits(module: nn.Module, params: TensorDictBase) -> bool:
    """Whether ``params`` lie where ``module`` keeps its tensors, and it does not mind that they are exchanged."""
    for name, value in tree_of(params).items():
        if isinstance(value, Tensor):
            plain = type(module).__setattr__ is nn.Module.__setattr__
            if not plain or (name not in module._parameters and name not in module._buffers):
                return False
        else:
            child = module._modules.get(name)
            if child is None or not (isinstance(child, TensorDictParams) or _fits(child, value)):
                return False
    return True


def _put(module: nn.Module, params: TensorDictBase, saved: Saved) -> None:
    for name, value in tree_of(params).items():
        if isinstance(value, Tensor):
            slot = module._parameters if name in module._parameters else module._buffers
            saved.append((slot, name, slot[name]))
            slot[name] = value
            continue
        child = module._modules[name]
        if isinstance(child, TensorDictParams):  # of TorchRL's MultiAgentMLP; its module is given all of it at once
            saved.append((child.__dict__, "_param_td", child._param_td))
            child.__dict__["_param_td"] = tree_of(value).copy()  # to_module wants one that it may unlock
        else:
            _put(child, value, saved)


Places = list[tuple[dict[str, Any], str, dict[str, Any]]]
"""Where a module keeps a tensor, the tensor's name, and where parameters that stand for it are kept."""

_PLACES: WeakKeyDictionary[nn.Module, list[tuple[TensorDictBase, Places | None]]] = WeakKeyDictionary()
"""The places of a network's tensors, for the last two trees of parameters that it was given: its own, its target's."""


def _known_places(network: nn.Module, params: TensorDictParams) -> Places | None:
    """Return where the tensors of a loss's own parameters go, found once; None where a child wants them as one."""
    tree, known = tree_of(params), _PLACES.setdefault(network, [])
    for place in known:
        if place[0] is tree:
            return place[1]
    places: Places = []
    found = places if _find_places(network, tree, places) else None
    known[:] = [*known[-1:], (tree, found)]
    return found


def _find_places(module: nn.Module, tree: TensorDictBase, places: Places) -> bool:
    # the dict inside of a TensorDict: a tensor that is set anew is found in it, without the cost of get()
    held = getattr(tree, "_tensordict", None)
    for name, value in tree.items():
        if isinstance(value, Tensor):
            if held is None:
                return False
            places.append((module._parameters if name in module._parameters else module._buffers, name, held))
        elif isinstance(module._modules[name], TensorDictParams) or not _find_places(
            module._modules[name], value, places
        ):
            return False
    return True


def tree_of(params: TensorDictBase) -> TensorDictBase:
    """Return the tensordict that parameters lie in."""
    return params._param_td if isinstance(params, TensorDictParams) else params


def check_uses_given_parameters(network: nn.Module, role: str) -> None:
    """Refuse a network that computes with parameters of its own, whatever it is given.

    A loss evaluates a network under other parameters than its own: its targets, an ensemble's, a population's. A module
    that also keeps its parameters elsewhere than where modules register them, and reads them there, would not see
    these.

    Args:
        network: part of a loss.
        role: which part, for the error.

    Raises:
        ValueError: such as for :class:`~torchrl.modules.MultiAgentMLP` with ``use_td_params=False``.
    """
    own, of_every_module = {id(parameter) for parameter in network.parameters()}, vars(nn.Module())
    for module in network.modules():
        if isinstance(module, TensorDictParams) or type(module).__setattr__ is not nn.Module.__setattr__:
            continue  # those that want to hear of new tensors, such as torch.nn.GRU, keep their lists up to date
        for name, value in vars(module).items():
            if name not in of_every_module and any(id(tensor) in own for tensor in _held(value)):
                remedy = "build it with use_td_params=True" if hasattr(module, "use_td_params") else "leave that out"
                raise ValueError(
                    f"The {role} has a {type(module).__name__} that also keeps its parameters in {name!r}, where it "
                    f"would not see those that the loss gives it, such as a target's; {remedy}."
                )


def _held(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an attribute that is no module."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, TensorDictBase):
        yield from value.values(True, True)
    elif isinstance(value, (list, tuple, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _held(entry)


def fit_batch_sizes(network: nn.Module, params: TensorDictBase, outer: tuple[int, ...] = ()) -> None:
    """Give parts of ``params`` the batch sizes that they have in ``network``, after the ensemble's ``outer``.

    TorchRL's copies lose those of a :class:`~tensordict.TensorDictParams` inside of a network, such as the agents'
    ``[n]`` of its ``MultiAgentMLP``.
    """
    for name, value in tree_of(params).items():
        child = None if isinstance(value, Tensor) else network._modules.get(name)
        if isinstance(child, TensorDictParams):
            _take_batch_sizes(value, child, outer)
        elif child is not None:
            fit_batch_sizes(child, value, outer)


def _take_batch_sizes(params: TensorDictBase, like: TensorDictBase, outer: tuple[int, ...]) -> None:
    tree = tree_of(params)
    if tree.batch_size != (size := torch.Size([*outer, *like.batch_size])):
        tree.batch_size = size
    for name, value in tree.items():
        if not isinstance(value, Tensor):
            _take_batch_sizes(value, like.get(name), outer)


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


def named_tensors(params: TensorDictBase, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its name."""
    for name, value in tree_of(params).items():
        if isinstance(value, Tensor):
            yield f"{prefix}.{name}", value
        else:
            yield from named_tensors(value, f"{prefix}.{name}")


class GivenTensors(TensorDict):
    """Tensors in the place of a loss's parameters; networks read them as they are.

    ``to_module`` of an ordinary tensordict wraps what needs no gradient, such as targets, in new parameters, which a
    trace would take for constants.
    """

    @classmethod
    def like(cls, held: TensorDictBase, given: Mapping[int, Tensor]) -> GivenTensors:
        """Return ``held`` with ``given`` in the place of its tensors, by their ids, and its batch sizes."""
        tree = tree_of(held)
        entries = {
            name: given.get(id(value), value) if isinstance(value, Tensor) else cls.like(value, given)
            for name, value in tree.items()
        }
        return cls(entries, batch_size=tree.batch_size)

    __hash__ = object.__hash__  # modules that look through a loss's children keep them in a set

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
    given: dict[int, Tensor] = {}
    saved: Saved = []
    if "_cache" in loss.__dict__:  # where losses of TorchRL keep detached copies of their parameters
        saved.append((loss.__dict__, "_cache", loss.__dict__["_cache"]))
        loss.__dict__["_cache"] = {}
    groups = {name: held for name, held in loss._modules.items() if isinstance(held, TensorDictParams)}
    for group, held in groups.items():  # by what they replace: a name is that of one of the places of a tied parameter
        given |= {id(value): tensors[name] for name, value in named_tensors(held, group) if name in tensors}
    for name, tensor in tensors.items():
        if name.partition(".")[0] in groups:
            continue
        path, _, leaf = name.rpartition(".")
        module = loss.get_submodule(path)
        slot = module._parameters if leaf in module._parameters else module._buffers
        saved.append((slot, leaf, slot[leaf]))
        slot[leaf] = tensor
    for group, held in groups.items():
        saved.append((loss._modules, group, held))
        loss._modules[group] = GivenTensors.like(held, given)
    try:
        yield
    finally:
        for slot, leaf, value in reversed(saved):
            slot[leaf] = value
