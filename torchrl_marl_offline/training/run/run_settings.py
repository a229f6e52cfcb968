"""What a run's numbers depend on beside its checkpoint, so that going on with other settings does not go unnoticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor, nn

CONFIG_FILE = "config.json"
"""The settings of a run that a command started, in its folder."""
_OF_THE_MACHINE = ("foreach", "fused", "capturable", "differentiable", "params", "training", "device")
_LONGEST = 64


def run_settings(
    loss: nn.Module, optimizer: Any, target_updater: Any, options: Mapping[str, Any]
) -> dict[str, str | int | float | bool | None]:
    """Return settings by name, at the start of a run: of the optimizer, the targets, the loss's rules and networks.

    Args:
        loss: its modules' kinds and plain attributes, its keys, and its scalar coefficients, as they are now.
        optimizer: the numbers of its groups.
        target_updater: its rate.
        options: further settings.
    """
    found: dict[str, Any] = dict(options)
    found["optimizer"] = type(optimizer).__name__
    groups = getattr(optimizer, "param_groups", None) or [vars(optimizer)]
    for number, group in enumerate(groups):
        prefix = f"optimizer group {number} " if len(groups) > 1 else ""
        found |= {prefix + name: value for name, value in _plain(group).items()}
    if target_updater is not None:
        found["target updater"] = type(target_updater).__name__
        own = _plain(vars(target_updater))
        if "eps" in own:
            own["tau"] = round(1 - own.pop("eps"), 12)  # TorchRL keeps the complement
        found |= {name if name == "tau" else f"target updater {name}": value for name, value in own.items()}
    template = getattr(loss, "template", loss)
    return found | _of_modules(template) | _keys(template) | _coefficients(loss)


RENAMED = dict.fromkeys(
    [f"{name}Loss" for name in ("MATD3BC", "MACQL", "OMAR", "MAICQ", "OMAC", "OMIGA", "OMSD", "MABCQ", "MACFlow")],
    "OfflineMARLLoss",
) | {"OMAR": "RectifiedGradient", "OMAC": "LocalIQL", "OMIGA": "GlobalToLocal"}
"""Classes of losses and rules that earlier checkpoints name, and what they are now."""


def differing(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Name the first setting that a checkpoint and this run have both, with other values; or return ``None``."""
    for name in sorted(own.keys() & saved.keys()):
        before = saved[name]
        if isinstance(before, str) and name in ("loss kind", "value_learning", "extraction"):
            before = RENAMED.get(before, before)
        if own[name] != before and own[name] == own[name]:
            return f"{name} was {saved[name]} and is {own[name]} now"
    return None


def _of_modules(loss: nn.Module) -> dict[str, Any]:
    found = {}
    for name, module in loss.named_modules():
        found[f"{name or 'loss'} kind"] = type(module).__name__
        for attribute, value in _plain(vars(module)).items():
            found[f"{name}.{attribute}".removeprefix(".")] = value
    return found


def _keys(loss: nn.Module) -> dict[str, Any]:
    """Return the entries that a loss reads, by what they are to it: another one may be what ends an episode."""
    keys = getattr(loss, "tensor_keys", None)
    names = [field.name for field in fields(keys)] if is_dataclass(keys) else []
    return {f"key {name}": _value(getattr(keys, name)) for name in names}


def _coefficients(loss: nn.Module) -> dict[str, Any]:
    """Return the loss's own scalar buffers, such as a temperature; of a population, every member's.

    Not those of its parts, such as a value norm's mean, which training moves.
    """
    sizes = (1, len(getattr(loss, "members", [None])))
    own = {n.replace("|", "."): b for n, b in loss.named_buffers() if b.is_floating_point() and b.numel() in sizes}
    return {f"coefficient {n}": _value(b) for n, b in own.items() if "." not in n or n.endswith((".gamma", ".lmbda"))}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is a number, a word, or made of them, under names that are no secrets."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(name, str) or name.startswith("_") or name in _OF_THE_MACHINE:
            continue
        if is_dataclass(value) and not isinstance(value, type):
            found[name] = type(value).__name__
            inner = {field.name: getattr(value, field.name) for field in fields(value)}
            found |= {f"{name}.{key}": entry for key, entry in _plain(inner).items()}
        elif (plain := _value(value)) is not _OTHER:
            found[name] = plain
    return found


_OTHER = object()


def _value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return value.__qualname__
    if isinstance(value, Tensor):
        return str(value.detach().cpu().tolist()) if value.numel() <= _LONGEST else _OTHER
    if (
        isinstance(value, tuple)
        and len(value) <= _LONGEST
        and all(isinstance(v, bool | int | float | str) for v in value)
    ):
        return str(value)
    return _OTHER
