"""The bounds of the actions, for rules that search or sample between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec

ActionSpec = TensorSpec | Sequence[float | Tensor | Sequence[float]]
"""A TorchRL spec of the agents' action, or of all that an environment acts by; or ``(low, high)``."""


def bounds_of_spec(action_spec: ActionSpec, key: NestedKey) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest action, each broadcastable to ``[*B, n, a]``.

    Args:
        action_spec: a bounded TorchRL spec, with or without the environments' batch size, a composite of several with
            one at ``key``, or ``(low, high)``, numbers or tensors.
        key: of the action.

    Raises:
        TypeError: for something else.
        ValueError: for bounds that are not finite, or the wrong way round, and for a spec without bounds.
    """
    if isinstance(action_spec, TensorSpec):
        low, high = _of_spec(action_spec, key)
    elif isinstance(action_spec, (tuple, list)) and len(action_spec) == 2:
        low, high = (torch.as_tensor(bound, dtype=torch.get_default_dtype()) for bound in action_spec)
    else:
        raise TypeError(f"action_spec must be a TorchRL spec or (low, high), got {action_spec!r}.")
    low, high = _shared(low), _shared(high)
    if not (low.isfinite().all() and high.isfinite().all() and (low < high).all()):
        raise ValueError(f"action_spec must have finite bounds, the low below the high; got {low} and {high}.")
    return low, high


def is_of_discrete_actions(action_spec: ActionSpec, key: NestedKey) -> bool:
    """Say whether this is the spec of discrete actions, which have no bounds and need none.

    Raises:
        ValueError: for a composite without the action.
    """
    kinds = (Categorical, OneHot, MultiCategorical, MultiOneHot)
    return isinstance(action_spec, TensorSpec) and isinstance(_leaf(action_spec, key), kinds)


def _leaf(spec: TensorSpec, key: NestedKey) -> TensorSpec:
    if not isinstance(spec, Composite):
        return spec
    leaves = {unravel_key(name): leaf for name, leaf in spec.items(True, True) if leaf is not None}
    found = leaves.get(unravel_key(key), next(iter(leaves.values())) if len(leaves) == 1 else None)
    if found is None:
        raise ValueError(f"action_spec has {list(leaves)}, not the action {key!r}; pass that of the action.")
    return found


def _of_spec(spec: TensorSpec, key: NestedKey) -> tuple[Tensor, Tensor]:
    spec = _leaf(spec, key)
    if not isinstance(spec, Bounded) or not spec.dtype.is_floating_point:
        raise ValueError(f"action_spec is a {type(spec).__name__} of {spec.dtype}, which has no bounds; leave it out.")
    return spec.space.low.detach().clone(), spec.space.high.detach().clone()


def _shared(bound: Tensor) -> Tensor:
    """Return what all environments of a batch have in common, ``[n, a]`` at most."""
    while bound.ndim > 2:
        if not (bound == bound[:1]).all():
            raise ValueError("action_spec has other bounds for other environments; pass one environment's.")
        bound = bound[0]
    return bound
