"""The numbers inside a simulator written in Python, as plain data that a checkpoint takes."""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMBERS = (Tensor, bool, int, float, complex, str, type(None))
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
_LEFT_ALONE = (*_FUNCTIONS, type, types.ModuleType, torch.device, torch.dtype, np.dtype)
_SPACES = ("gym.", "gymnasium.")  # constants, and their generators draw nothing here


class OtherShapeError(ValueError):
    """The object is not built as the one whose state was read."""


def read_state(thing: Any, *, known: Sequence[Any] = ()) -> list[Any]:
    """Return a copy of every number that can be reached from ``thing`` through attributes and containers.

    Functions, classes and the like are left out. An object that is met again is written down as a reference. Tensors
    that share memory share it in the copy too, and are detached from their graphs.

    Args:
        thing: an object whose parts are tensors, arrays, numbers, words, lists, tuples, dictionaries and further such
            objects.
        known: objects that can be told apart in every such ``thing``. What refers now to one of them and now to
            another, as a goal does that is drawn among landmarks, is restored only if it refers to these.

    Returns:
        nested lists and dictionaries of tensors, numbers and words.
    """
    return _Reader(known).read(thing)


def write_state(thing: Any, state: list[Any], *, device: torch.device, known: Sequence[Any] = ()) -> None:
    """Put what :func:`read_state` returned into an object that is built in the same way.

    Args:
        thing: the object.
        state: of another one.
        device: where the object's tensors lie.
        known: its objects that stand for those that were known there, in the same order.

    Raises:
        OtherShapeError: it is built in another way; it may have been changed in part.
    """
    _Writer(device, known).fill(thing, state)


class _Reader:
    def __init__(self, known: Sequence[Any]) -> None:
        self._copied = _Copies()
        self._names = {id(each): name for name, each in enumerate(known)}
        self._read: set[int] = set()

    def read(self, thing: Any) -> list[Any]:
        """Return ``[kind, content]`` of data, ``[kind, name, content]`` of what can be referred to."""
        if _is_data(thing):
            return ["data", self._copied(thing)]
        if isinstance(thing, np.ndarray):
            return ["array", torch.from_numpy(thing.copy())]
        if isinstance(thing, enum.Enum):
            return ["enum", thing.name]
        if _is_left_alone(thing):
            return ["left alone"]
        name = self._names.setdefault(id(thing), len(self._names))
        if name in self._read:
            return ["reference", name]
        self._read.add(name)
        if isinstance(thing, dict):
            # keys may be objects; the order is that in which the program made them
            return ["dict", name, [self.read(each) for each in thing.values()]]
        if isinstance(thing, list | tuple):
            return ["list", name, [self.read(each) for each in thing]]
        return ["object", name, {key: self.read(each) for key, each in vars(thing).items()}]


class _Writer:
    def __init__(self, device: torch.device, known: Sequence[Any]) -> None:
        self._copied = _Copies(device)
        self._things: dict[int, Any] = dict(enumerate(known))

    def fill(self, thing: Any, state: list[Any]) -> None:
        """Write the content of an object or a container."""
        kind, name, content = state
        self._things[name] = thing
        if kind == "object":
            for key in set(vars(thing)) - set(content):
                if _is_data(vars(thing)[key]):
                    delattr(thing, key)  # made later than the state was read: some simulators ask whether it is there
            self._fill_parts(content.items(), lambda key: vars(thing).get(key), vars(thing).__setitem__)
            return
        if isinstance(thing, list):
            thing[len(content) :] = [None] * (len(content) - len(thing))  # of what is known, there may be more or fewer
        if not isinstance(thing, dict | list | tuple) or len(thing) != len(content):
            raise OtherShapeError(f"{len(content)} parts are wanted in {type(thing).__name__} {thing!r:.80}")
        keys = list(thing) if isinstance(thing, dict) else range(len(thing))
        place = _refuse if isinstance(thing, tuple) else thing.__setitem__
        self._fill_parts(zip(keys, content), thing.__getitem__, place)

    def _fill_parts(
        self,
        parts: Iterable[tuple[Any, list[Any]]],
        get: Callable[[Any], Any],
        place: Callable[[Any, Any], None],
    ) -> None:
        for key, state in parts:
            here = get(key)
            match state[0]:
                case "data":
                    place(key, self._copied(state[1]))
                case "array":
                    place(key, state[1].cpu().numpy().copy())
                case "enum" if isinstance(here, enum.Enum):
                    place(key, type(here)[state[1]])
                case "object" | "dict" | "list" | "reference":
                    thing = self._things.get(state[1], here)
                    if thing is None or (_is_data(thing) and state[0] == "object"):
                        raise OtherShapeError(f"there is no {key}")
                    if thing is not here:
                        place(key, thing)
                    if state[0] != "reference":
                        self.fill(thing, state)


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


def _refuse(key: Any, value: Any) -> None:
    raise OtherShapeError("a tuple of objects holds others than it did")


def _is_data(thing: Any) -> bool:
    if isinstance(thing, dict):
        return all(isinstance(key, str | int | float | bool) for key in thing) and all(map(_is_data, thing.values()))
    if isinstance(thing, list | tuple):
        return type(thing) in (list, tuple) and all(map(_is_data, thing))
    return isinstance(thing, _NUMBERS) and not isinstance(thing, enum.Enum)


def _is_left_alone(thing: Any) -> bool:
    if isinstance(thing, _LEFT_ALONE) or type(thing).__module__.startswith(_SPACES):
        return True
    return not isinstance(thing, dict | list | tuple) and not hasattr(thing, "__dict__")
