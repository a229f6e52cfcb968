"""Bounds of a continuous action: one number, one for each component, or one for each agent and component."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Bound = float | tuple[float, ...] | tuple[tuple[float, ...], ...]
"""A number, ``[a]`` or ``[n, a]`` of them, which is broadcast to ``[*B, n, a]``."""


def as_bound(value: Any) -> Any:
    """Return numbers, arrays and tensors as a number or as tuples, which can be compared, hashed and written."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(as_bound, value)) if isinstance(value, list | tuple) else value


def checked_bounds(low: Any, high: Any, *, agents: int, components: int, names: tuple[str, str]) -> tuple[Bound, Bound]:
    """Return both bounds in their shortest form: two numbers for all components, or tuples, one row for all agents.

    Two plain numbers are returned as they are. A component whose bounds are equal is a constant; it needs bounds of its
    own, so that plain numbers always have something between them.

    Args:
        low: numbers, lists, arrays or tensors, in a shape of :data:`Bound`.
        high: the same.
        agents: ``n``.
        components: ``a``.
        names: of the two, for the errors.

    Raises:
        ValueError: of another shape, not finite, or a low bound above its high one.
    """
    low, high = as_bound(low), as_bound(high)
    plain = not isinstance(low, tuple) and not isinstance(high, tuple)
    sizes = {"agents": agents, "components": components}
    rows = [written_out(bound, name=name, **sizes) for bound, name in zip((low, high), names)]
    for agent, pairs in enumerate(zip(*rows)):
        for component, (lower, upper) in enumerate(zip(*pairs)):
            where = "" if plain else f" of agent {agent}, component {component}"
            if not (math.isfinite(lower) and math.isfinite(upper)):
                raise ValueError(f"{names[0]} and {names[1]} must be finite, got {lower} and {upper}{where}.")
            if lower > upper or (plain and lower == upper):
                order = "lie below" if plain else "not lie above"
                raise ValueError(f"{names[0]} must {order} {names[1]}, got {lower} and {upper}{where}.")
    if plain:
        return low, high
    if all(len({number for row in each for number in row}) == 1 for each in rows) and rows[0] != rows[1]:
        return rows[0][0][0], rows[1][0][0]
    short = [each[0] if len(set(each)) == 1 else tuple(each) for each in rows]
    return short[0], short[1]


def written_out(bound: Any, *, agents: int, components: int, name: str = "A bound") -> list[tuple[float, ...]]:
    """Return ``[n, a]`` numbers: for each agent those of its components.

    Raises:
        ValueError: the bound has another shape.
    """
    if not isinstance(bound, tuple):
        return [(float(bound),) * components] * agents
    nested = [isinstance(each, tuple) for each in bound]
    rows = list(bound) if all(nested) else [bound] * agents
    whole = all(nested) or not any(nested)
    sizes = {len(row) for row in rows}
    if not whole or sizes != {components} or len(rows) != agents:
        raise ValueError(
            f"{name} has the shape of {bound}; give one number, a list of {components}, one for each component, or "
            f"{agents} such lists, one for each agent."
        )
    return [tuple(map(float, row)) for row in rows]


def numbers_of(bound: Bound) -> Iterator[float]:
    """Yield all numbers of a bound."""
    if isinstance(bound, Iterable):
        for each in bound:
            yield from numbers_of(each)
    else:
        yield bound


def as_text(low: Bound, high: Bound) -> str:
    """Return both bounds as a sentence has them: ``"[-1, 1]"``, or the numbers between which those of all lie."""
    if not isinstance(low, tuple) and not isinstance(high, tuple):
        return f"[{low:g}, {high:g}]"
    return f"[{min(numbers_of(low)):g}, {max(numbers_of(high)):g}], each component in its own part"


class ComponentBound:
    """A bound of each component, as a tensor on the device of what it bounds.

    Args:
        bound: ``[a]`` or ``[n, a]`` numbers.
    """

    def __init__(self, bound: tuple) -> None:
        self.bound = bound
        self._cached: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """Return the bound with the device and dtype of ``x``; it is moved once."""
        import torch

        cached = self._cached
        if cached is None or cached.device != x.device or cached.dtype != x.dtype:
            cached = torch.tensor(self.bound, device=x.device, dtype=x.dtype)
            if type(cached) is torch.Tensor and not cached.is_meta:
                self._cached = cached
        return cached

    def __deepcopy__(self, memo: dict[int, Any]) -> ComponentBound:
        return ComponentBound(self.bound)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComponentBound) and self.bound == other.bound

    def __hash__(self) -> int:
        return hash(self.bound)

    def __repr__(self) -> str:
        return f"ComponentBound({self.bound})"


def following(bound: Bound) -> float | ComponentBound:
    """Return what a network keeps of a bound: a plain number as it is."""
    return ComponentBound(bound) if isinstance(bound, tuple) else bound


def like(bound: float | ComponentBound | Tensor, x: Tensor) -> float | Tensor:
    """Return what a network kept of a bound, as arithmetic with ``x`` takes it."""
    return bound.like(x) if isinstance(bound, ComponentBound) else bound
