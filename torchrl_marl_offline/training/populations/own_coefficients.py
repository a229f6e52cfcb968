"""Does a rule of a population compute with each member's coefficient, or with the first member's?"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torchrl.objectives import LossModule


@contextmanager
def attributes_refused(loss: LossModule, stacked: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, a rule of ``loss`` that reads a coefficient as its own attribute is refused, if members differ in it.

    The attribute stays what the first member's rule was made with, for all members.

    Args:
        loss: the form into which members' tensors are put.
        stacked: the members' tensors ``[P, ...]``, by name.

    Raises:
        ValueError: it names the rule and the coefficient.
    """
    rules = {}
    for holder, rule in vars(loss).items():
        named = rule.coefficients() if callable(getattr(rule, "coefficients", None)) else {}
        if differing := [name for name in named if name in stacked and _differ(stacked[name])]:
            rules[holder] = rule, _without(rule, differing)
    try:
        vars(loss).update({holder: guarded for holder, (_, guarded) in rules.items()})
        yield
    finally:
        vars(loss).update({holder: rule for holder, (rule, _) in rules.items()})


def _differ(members: Tensor) -> bool:
    return bool((members != members[:1]).any())


def _without(rule: Any, names: Collection[str]) -> Any:
    """Return a copy of a rule that raises where one of these attributes is read."""
    kind = type(rule)

    def refused(name: str) -> property:
        def read(_: Any) -> None:
            raise ValueError(
                f"{kind.__name__} reads its attribute {name!r}, which is the first member's in all of a population; "
                f"read batch.coefficient({name!r}), or train the losses one by one."
            )

        return property(read)

    guarded = copy.copy(rule)
    own = {"__slots__": (), "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    object.__setattr__(guarded, "__class__", type(kind)(kind.__name__, (kind,), own | {n: refused(n) for n in names}))
    return guarded
