"""Where two losses differ in anything but the values of the tensors that a population stacks.

Nothing is listed by hand: the whole tree of a loss is walked, its networks, rules, value norm and value estimator, and
every attribute is compared that is not such a tensor.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from enum import Enum
from numbers import Number
from typing import Any, NamedTuple

import numpy
import torch
from tensordict import TensorDictBase, TensorDictParams
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_marl_offline.core.functional_parameters import tensors_of
from torchrl_marl_offline.objectives.team import TeamNetworks

_BY_PROPERTY = {"_in_keys": "in_keys", "_out_keys": "out_keys", "_vmap_randomness": "vmap_randomness"}
"""Attributes of a loss that are filled at the first use of a property: the property is compared."""

_STATE = {"_has_update_associated", "_dist", "_compiled_call_impl"}
"""What using a loss leaves in it, and no number depends on: warnings given, the last distribution, compiled code."""

_OF_CLASSES = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__"}


class _Nothing:
    def __repr__(self) -> str:
        return "not there"


_NOTHING = _Nothing()


class Difference(NamedTuple):
    """Where two losses differ.

    Attributes:
        path: of the attribute, such as ``qvalue_network.module.network.mlp.activation``.
        first: its value in the first loss, in words.
        other: and in the other.
    """

    path: str
    first: str
    other: str


def first_difference(first: LossModule, other: LossModule) -> Difference | None:
    """Return the first attribute in which two losses differ, or ``None`` where tensors' values tell them apart alone.

    Not compared: parameters and buffers, which a population carries; the coefficients of rules, which are buffers of
    the loss; private attributes with "cache" in their names and :class:`functools.cached_property`; which of a
    network's options were written out (their effects are compared). Tensors that are neither parameters nor buffers
    must be equal.
    """
    found = next(_Comparison(first, other).compare(first, other, ""), None)
    if found is None:
        return None
    path, *values = found
    shown = [_shown(value) for value in values]
    if shown[0] == shown[1]:
        shown[1] = f"another {shown[1]}"
    return Difference(path or "the loss", *shown)


Found = Iterator[tuple[str, Any, Any]]


class _Comparison:
    """One walk over two trees at once, which knows what each loss carries and where it has been."""

    def __init__(self, first: LossModule, other: LossModule) -> None:
        self.losses = first, other
        self.carried = _carried(first), _carried(other)
        self.seen: dict[tuple[int, int], tuple[Any, Any]] = {}  # holds what it names, or an id might be used again

    def compare(self, a: Any, b: Any, path: str) -> Found:
        """Yield where ``a`` and ``b`` differ."""
        if a is b or (id(a), id(b)) in self.seen:
            return
        if isinstance(a, Number | str | bytes | Enum | type(None)):
            if not (isinstance(b, type(a) | Number) and _equal(a, b)):
                yield path, a, b
            return
        self.seen[id(a), id(b)] = a, b
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            yield from self._tensors(a, b, path)
        elif isinstance(a, tuple) and isinstance(b, tuple):
            yield from self._in_order(a, b, path)
        elif isinstance(a, type) and isinstance(b, type):
            yield from self._classes(a, b, path)
        elif next(self.compare(type(a), type(b), path), None):
            yield path, a, b
        else:
            yield from self._of_one_class(a, b, path)

    def _of_one_class(self, a: Any, b: Any, path: str) -> Found:
        match a:
            case TensorDictParams() if _leaves(a) <= self.carried[0] and _leaves(b) <= self.carried[1]:
                yield from self.compare(a.batch_size, b.batch_size, f"{path}.batch_size")
            case TensorDictBase():
                yield from self._mappings(dict(a.items()), dict(b.items()), path)
                yield from self.compare(a.batch_size, b.batch_size, f"{path}.batch_size")
            case Iterator():
                pass  # what a constructor has used up, such as that of TorchRL's MLP
            case Mapping():
                yield from self._mappings(a, b, path)
            case list():
                yield from self._in_order(a, b, path)
            case types.FunctionType():
                yield from self._functions(a, b, path)
            case types.MethodType():
                yield from self.compare(a.__func__, b.__func__, path)
                yield from self.compare(a.__self__, b.__self__, path)
            case functools.partial():
                yield from self._in_order((a.func, a.args, a.keywords), (b.func, b.args, b.keywords), path)
            case property():
                yield from self._in_order((a.fget, a.fset), (b.fget, b.fset), path)
            case weakref.ref():
                yield from self.compare(a(), b(), path)
            case torch.Generator():
                yield from self.compare(a.get_state(), b.get_state(), f"{path}.state")
            case numpy.ndarray():
                if not numpy.array_equal(a, b):
                    yield path, a, b
            case set() | frozenset():
                if a != b:
                    yield path, a, b
            case _ if hasattr(a, "__dict__") or _attributes(a):
                yield from self._objects(a, b, path)
            case _:
                if a != b:
                    yield path, a, b

    def _tensors(self, a: Tensor, b: Tensor, path: str) -> Found:
        if id(a) in self.carried[0] and id(b) in self.carried[1]:
            return
        if _form(a) != _form(b):
            yield path, _form(a), _form(b)
        elif not a.is_meta and not torch.equal(a.nan_to_num(), b.nan_to_num()):
            yield path, a, b

    def _in_order(self, a: Any, b: Any, path: str) -> Found:
        if len(a) != len(b):
            yield path, a, b
            return
        for index, (mine, others) in enumerate(zip(a, b)):
            inner = next(self.compare(mine, others, f"{path}[{index}]"), None)
            if inner is not None:  # a list of keys or of numbers says more as a whole
                yield inner if _shown(a) == _shown(b) else (path, a, b)
                return

    def _mappings(self, a: Mapping, b: Mapping, path: str) -> Found:
        for key in dict.fromkeys([*a, *b]):
            yield from self.compare(a.get(key, _NOTHING), b.get(key, _NOTHING), f"{path}.{key}".lstrip("."))

    def _functions(self, a: types.FunctionType, b: types.FunctionType, path: str) -> Found:
        if a.__code__ != b.__code__:
            yield path, a, b
            return
        for name in ("__defaults__", "__kwdefaults__", "__dict__"):
            yield from self.compare(getattr(a, name), getattr(b, name), f"{path}.{name}")
        yield from self._mappings(_closure(a), _closure(b), path)

    def _classes(self, a: type, b: type, path: str) -> Found:
        """Take classes for one that a function made twice of the same text, as parametrizations are."""
        own = [{name: value for name, value in vars(each).items() if name not in _OF_CLASSES} for each in (a, b)]
        if a.__qualname__ != b.__qualname__ or not all(_made_in_python(each) for each in (a, b)):
            yield path, a, b
            return
        yield from self._in_order(a.__bases__, b.__bases__, path)
        yield from self._mappings(*own, path)

    def _objects(self, a: Any, b: Any, path: str) -> Found:
        mine, others = _attributes(a), _attributes(b)
        left_out = self._coefficients(a, b)
        for name in sorted(dict.fromkeys([*mine, *others]), key=lambda name: _depth(name, mine)):
            if name in left_out or _is_cache(type(a), name):
                continue
            if isinstance(a, LossModule) and name in _BY_PROPERTY:
                name = _BY_PROPERTY[name]
                pair = getattr(a, name), getattr(b, name)
            else:
                pair = mine.get(name, _elsewhere(a, name)), others.get(name, _elsewhere(b, name))
            yield from self._attribute(name, *pair, path)

    def _attribute(self, name: str, a: Any, b: Any, path: str) -> Found:
        own = f"{path}.{name}".lstrip(".")
        if name == "build" and _is_record(a) and _is_record(b):
            yield from self.compare(a["spec"], b["spec"], f"{own}.spec")
        elif name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):  # by numbers of their own
            yield from self._in_order([*a.values()], [*b.values()], own)
        elif name == "_modules" and a.keys() == b.keys() and list(a) != list(b):
            yield path or own, list(a), list(b)
        elif name in ("_modules", "_parameters", "_buffers"):
            yield from self._mappings(a, b, path)
        else:
            yield from self.compare(a, b, own)

    def _coefficients(self, a: Any, b: Any) -> set[str]:
        """Return the attributes of a rule that its loss has taken for buffers."""
        for rule, loss in zip((a, b), self.losses):
            if not any(rule is held for held in vars(loss).values()):
                return set()
        if not callable(getattr(a, "coefficients", None)):
            return set()
        return {
            n for n in a.coefficients() if n in b.coefficients() and all(n in loss._buffers for loss in self.losses)
        }


def _carried(loss: LossModule) -> set[int]:
    """Return the ids of the tensors that a population stacks, and of those in whose place it puts them."""
    found = {id(tensor) for tensor in tensors_of(loss).values()}
    for name, network in vars(loss).items():
        if isinstance(network, nn.Module) and f"{name}_params" in loss._modules:
            found |= {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    for params in loss._modules.values():
        if isinstance(params, TensorDictParams):
            found |= _leaves(params)
    return found


def _leaves(params: TensorDictBase) -> set[int]:
    return {id(leaf) for leaf in params.values(True, True)}


def _attributes(item: Any) -> dict[str, Any]:
    slots = [name for kind in type(item).__mro__ for name in _slots(kind)]
    return {n: getattr(item, n) for n in slots if hasattr(item, n)} | dict(getattr(item, "__dict__", {}))


def _slots(kind: type) -> list[str]:
    slots = kind.__dict__.get("__slots__", ())
    slots = [slots] if isinstance(slots, str) else slots
    return [name for name in slots if name not in ("__dict__", "__weakref__")]


def _elsewhere(item: Any, name: str) -> Any:
    """Return what an object has by a name that is no attribute of its own: a registered child, a class's default."""
    for registered in ("_modules", "_parameters", "_buffers") if isinstance(item, nn.Module) else ():
        if name in vars(item)[registered]:
            return vars(item)[registered][name]
    found = next((vars(kind)[name] for kind in type(item).__mro__ if name in vars(kind)), _NOTHING)
    return _NOTHING if hasattr(found, "__get__") else found


def _is_cache(kind: type, name: str) -> bool:
    private = name.startswith("_") and "cache" in name
    return private or name in _STATE or isinstance(getattr(kind, name, None), functools.cached_property)


def _depth(name: str, attributes: Mapping[str, Any]) -> int:
    """Order attributes so that causes come before what follows: flags, children, networks, what is derived of them."""
    if (name != "_modules" and name.startswith("_")) or isinstance(attributes.get(name), TeamNetworks):
        return 3
    return 1 if name == "_modules" else 2 if isinstance(attributes.get(name), nn.Module) else 0


def _is_record(value: Any) -> bool:
    """Say whether a value is what a network was built with; see :mod:`torchrl_marl_offline.modules.build`."""
    return isinstance(value, Mapping) and value.keys() == {"builder", "spec", "options"}


def _made_in_python(kind: type) -> bool:
    return bool(kind.__flags__ & (1 << 9))  # Py_TPFLAGS_HEAPTYPE


def _closure(function: types.FunctionType) -> dict[str, Any]:
    return dict(zip(function.__code__.co_freevars, map(_content, function.__closure__ or ())))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _NOTHING


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))


def _form(tensor: Tensor) -> tuple:
    return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad


def _shown(value: Any) -> str:
    match value:
        case str():
            text = value
        case type() | types.FunctionType() | types.BuiltinFunctionType():
            text = value.__qualname__
        case nn.Module():
            text = type(value).__name__
        case _:
            text = " ".join(repr(value).split())
    return text if len(text) <= 120 else text[:117] + "..."
