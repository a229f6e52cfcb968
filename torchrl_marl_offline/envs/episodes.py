"""Unfinished episodes of an environment, with the transforms around it, as plain data that a checkpoint takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase, is_tensor_collection
from torch import Tensor
from torchrl.envs import TransformedEnv

from torchrl_marl_offline.envs.base import TeamEnv

if TYPE_CHECKING:
    from torchrl.envs import EnvBase


def save_episodes(env: EnvBase) -> dict[str, Any] | None:
    """Return what the running episodes of ``env`` and the coming ones depend on; ``None`` where it cannot be told.

    Args:
        env: an environment of :func:`~torchrl_marl_offline.make_env`, or one with TorchRL's transforms around it.
    """
    if isinstance(env, TransformedEnv):
        inside = save_episodes(env.base_env)
        return inside and {"inside": inside, "transform": _plain(env.transform.state_dict())}
    return env.episodes_state() if isinstance(env, TeamEnv) else None


def load_episodes(env: EnvBase, state: Mapping[str, Any]) -> None:
    """Go on with the episodes that :func:`save_episodes` returned.

    Raises:
        EpisodesLostError: see :meth:`~torchrl_marl_offline.envs.base.TeamEnv.load_episodes_state`.
        ValueError: it is another environment.
    """
    if isinstance(env, TransformedEnv) != ("inside" in state):
        raise ValueError("the checkpoint's environment and this run's have other transforms")
    if isinstance(env, TransformedEnv):
        load_episodes(env.base_env, state["inside"])
        env.transform.load_state_dict(state["transform"])
    else:
        env.load_episodes_state(state)


def flat_tensors(data: TensorDictBase) -> dict[str, Any]:
    """Return a copy of a tensordict as a dictionary of dictionaries of tensors, with its batch sizes."""
    entries = {
        name: flat_tensors(value) if is_tensor_collection(value) else value.clone() for name, value in data.items()
    }
    return {"batch_size": list(data.batch_size), "entries": entries}


def put_flat_tensors(data: TensorDictBase, state: Mapping[str, Any], *, device: torch.device) -> None:
    """Make of a tensordict what :func:`flat_tensors` returned, on ``device``."""
    for name in set(data.keys()) - set(state["entries"]):
        del data[name]
    for name, value in state["entries"].items():
        if isinstance(value, Tensor):
            data.set(name, value.to(device, copy=True))
            continue
        if data.get(name, None) is None:
            data.set(name, data.empty())
        inside = data.get(name)
        inside.batch_size = value["batch_size"]
        put_flat_tensors(inside, value, device=device)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the state of transforms: tensors, and what they add in dictionaries of tensors."""
    return {
        name: value.clone() if isinstance(value, Tensor) else _plain(value) if isinstance(value, Mapping) else value
        for name, value in state.items()
    }
