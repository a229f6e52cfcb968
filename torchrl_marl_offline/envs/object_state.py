"""The numbers inside a simulator written in Python, as plain data that a checkpoint takes."""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMBERS = (Tensor, bool, int, float, complex, str, type(None))
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
_LEFT_ALONE = (*_FUNCTIONS, type, types.ModuleType, enum.Enum, torch.device, torch.dtype, np.dtype)
_SPACES = ("gym.", "gymnasium.")  # constants, and their generators draw nothing here


class OtherShapeError(ValueError):
    """The object is not built as the one whose state was read."""


def read_state(thing: Any) -> list[Any]:
    """Return a copy of every number that can be reached from ``thing`` through attributes and containers.

    Functions, classes and the like are left out. An object that is met again is written down once. Tensors that share
    memory share it in the copy too, and are detached from their graphs.

    Args:
        thing: an object whose parts are tensors, arrays, numbers, words, lists, tuples, dictionaries and further such
            objects.

    Returns:
        nested lists and dictionaries of tensors, numbers and words.
    """
    return _read(thing, set(), _Copies())


def write_state(thing: Any, state: list[Any], *, device: torch.device) -> None:
    """Put what :func:`read_state` returned into an object that is built in the same way.

    Args:
        thing: the object.
        state: of another one.
        device: where the object's tensors lie.

    Raises:
        OtherShapeError: it is not; the object may have been changed in part.
    """
    _write(thing, state, _Copies(device))


def _read(thing: Any, seen: set[int], copies: _Copies) -> list[Any]:
    if _is_data(thing):
        return ["data", copies(thing)]
    if isinstance(thing, np.ndarray):
        return ["array", torch.from_numpy(thing.copy())]
    if _is_left_alone(thing):
        return ["left alone"]
    if id(thing) in seen:
        return ["met before"]
    seen.add(id(thing))
    if isinstance(thing, dict):
        # keys may be objects; the order is that in which the program made them
        return ["dict", [_read(each, seen, copies) for each in thing.values()]]
    if isinstance(thing, list | tuple):
        return ["list", [_read(each, seen, copies) for each in thing]]
    return ["object", {name: _read(each, seen, copies) for name, each in vars(thing).items()}]


def _write(thing: Any, state: list[Any], copies: _Copies) -> None:
    kind, *found = state
    if kind in ("left alone", "met before"):
        return
    (content,) = found
    if kind == "object":
        for name in set(vars(thing)) - set(content):
            if _is_data(vars(thing)[name]):
                delattr(thing, name)  # made later than the state was read: some simulators ask whether it is there
        parts: Iterator[tuple[Any, list[Any]]] = iter(content.items())
        _write_parts(parts, lambda name: getattr(thing, name, None), vars(thing).__setitem__, copies)
        return
    if not isinstance(thing, dict | list | tuple) or len(thing) != len(content):
        raise OtherShapeError(f"{len(content)} parts are wanted where there is {type(thing).__name__}")
    keys = list(thing) if isinstance(thing, dict) else range(len(thing))
    place = thing.__setitem__ if not isinstance(thing, tuple) else _refuse
    _write_parts(zip(keys, content), thing.__getitem__, place, copies)


def _write_parts(
    parts: Iterator[tuple[Any, list[Any]]],
    get: Callable[[Any], Any],
    place: Callable[[Any, Any], None],
    copies: _Copies,
) -> None:
    for key, state in parts:
        if state[0] == "data":
            place(key, copies(state[1]))
        elif state[0] == "array":
            place(key, state[1].numpy().copy())
        elif get(key) is None and state[0] in ("object", "dict", "list"):
            raise OtherShapeError(f"there is no {key}")
        else:
            _write(get(key), state, copies)


def _refuse(key: Any, value: Any) -> None:
    raise OtherShapeError("a number of a tuple of objects has changed")


def _is_data(thing: Any) -> bool:
    if isinstance(thing, dict):
        return all(isinstance(key, str | int | float | bool) for key in thing) and all(map(_is_data, thing.values()))
    if isinstance(thing, list | tuple):
        return type(thing) in (list, tuple) and all(map(_is_data, thing))
    return isinstance(thing, _NUMBERS) and not isinstance(thing, enum.Enum)


class _Copies:
    """Copies of data; tensors of one memory come to share one memory of the copies, as they are written in place."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._memory: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def __call__(self, data: Any) -> Any:
        if isinstance(data, Tensor):
            return self._tensor(data)
        if isinstance(data, dict):
            return {key: self(each) for key, each in data.items()}
        if isinstance(data, list | tuple):
            return type(data)(self(each) for each in data)
        return data

    def _tensor(self, data: Tensor) -> Tensor:
        storage = data.untyped_storage()
        known = storage.data_ptr(), data.device
        if known not in self._memory:
            memory = torch.empty(0, dtype=torch.uint8, device=data.device).set_(storage)
            # the first is kept, so that its address stays taken
            self._memory[known] = memory, memory.to(self._device or data.device, copy=True)
        copy = self._memory[known][1]
        place = data.storage_offset(), data.size(), data.stride()
        return torch.empty(0, dtype=data.dtype, device=copy.device).set_(copy.untyped_storage(), *place)


def _is_left_alone(thing: Any) -> bool:
    if isinstance(thing, _LEFT_ALONE) or type(thing).__module__.startswith(_SPACES):
        return True
    return not isinstance(thing, dict | list | tuple) and not hasattr(thing, "__dict__")
