"""States put back into live components: all of them, or none."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_OF_NETWORKS = re.compile(r"_network_params\.|^network_params\.")


class Holder:
    """Takes the state of a component from a checkpoint, so that it can be looked at before anything is changed."""

    state: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it is there to be loaded into."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


def restore(components: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Load every component's state; where one does not fit, all are left as they were.

    First every state is looked at: tensors of a module by name, shape and type, other components by their method
    ``check_state_dict``, where they have one. What still fails while it is loaded is undone.

    Args:
        components: name -> what has ``state_dict`` and ``load_state_dict``.
        states: name -> what its ``state_dict`` returned.

    Raises:
        ValueError: a state does not fit; the message names the component and what differs.
    """
    for name, component in components.items():
        with _naming(name):
            _check(component, states[name])
    before = {name: copy.deepcopy(part.state_dict()) for name, part in components.items() if _can_be_undone(part)}
    try:
        for name in sorted(components):
            with _naming(name):
                components[name].load_state_dict(states[name])
    except BaseException:
        for name, state in before.items():
            components[name].load_state_dict(state)
        raise


class _naming:
    """Turn whatever a component raises over a state into a ``ValueError`` that names the component."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, Exception):
            raise ValueError(f"{self.name}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _check(component: Any, state: Any) -> None:
    if hasattr(component, "check_state_dict"):
        component.check_state_dict(state)
    elif isinstance(component, nn.Module):
        check_tensors(component.state_dict(), state)


def check_tensors(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Compare the tensors that both have, and the names of a loss's parameters.

    A module says itself which names it cannot do without, but for the networks of a TorchRL loss: these take what they
    know of a state and leave the rest as it was drawn.

    Raises:
        ValueError: one differs in shape or type, or networks have other parameters.
    """
    names = [{name for name, each in state.items() if isinstance(each, Tensor)} for state in (own, saved)]
    of_networks = [{name for name in each if _OF_NETWORKS.search(name)} for each in names]
    for found, there, here in (
        (of_networks[0] - names[1], "is not", "is"),
        (of_networks[1] - names[0], "is", "is not"),
    ):
        if found:
            raise ValueError(f"{min(found)} {there} in the checkpoint and {here} here")
    for name, tensor in own.items():
        other = saved.get(name)
        if not isinstance(tensor, Tensor) or not isinstance(other, Tensor):
            continue
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            raise ValueError(
                f"{name} is {tuple(other.shape)} {_word(other)} in the checkpoint and {tuple(tensor.shape)} "
                f"{_word(tensor)} here"
            )


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _can_be_undone(component: Any) -> bool:
    """Say whether asking for a component's state changes nothing, so that it can be kept and put back."""
    return not getattr(component, "saving_writes_files", False)
