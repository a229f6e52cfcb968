"""Policies as files: what is needed to build one again, and its parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.plain_tensors import load_plain_tensors
from torchrl_marl_offline.data.layout import TaskSpec
from torchrl_marl_offline.modules.actors import make_actor
from torchrl_marl_offline.training.online_learners import make_deterministic_actor, make_greedy_actor

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase

POLICY_FILE = "policy.pt"
_SLACK = 2**20  # numbers, beyond the bytes of the file
BUILDERS = {
    "make_actor": make_actor,
    "make_deterministic_actor": make_deterministic_actor,
    "make_greedy_actor": make_greedy_actor,
}
"""What can be saved, by the name of the function that builds it."""


@dataclass(frozen=True)
class SavedPolicy:
    """What :func:`load_policy` returns.

    Attributes:
        policy: reads observations and writes ``("agents", "action")``.
        spec: the task it was made for.
        metadata: what :func:`save_policy` was told.
    """

    policy: TensorDictModuleBase
    spec: TaskSpec
    metadata: dict[str, Any]


def save_policy(path: str | Path, policy: TensorDictModuleBase, metadata: dict[str, Any] | None = None) -> Path:
    """Write a policy, in one step.

    Args:
        path: the file.
        policy: built by one of :data:`BUILDERS`, which remember how in ``policy.build``.
        metadata: strings, numbers, lists and dictionaries.

    Raises:
        TypeError: the policy does not say how it was built.
    """
    build = getattr(policy, "build", None)
    if build is None or build["builder"] not in BUILDERS:
        raise TypeError(
            f"A {type(policy).__name__} does not say how it was built; only policies of {', '.join(BUILDERS)} can be "
            "saved. Save its state_dict() yourself."
        )
    content = {**build, "metadata": metadata or {}, "parameters": policy.state_dict()}
    # by a stream: torch's own writing to a path does not say why it fails
    with replacing_file(path) as temporary, temporary.open("wb") as stream:
        torch.save(content, stream)
    return user_path(path)


def load_policy(path: str | Path, *, device: torch.device | str = "cpu") -> SavedPolicy:
    """Read a policy that :func:`save_policy` wrote; nothing in the file is executed.

    Args:
        path: the file, or the folder of a run: its ``policy.pt``, else that of its stage ``online``, else the only one
            of its subfolders.
        device: where the policy goes.

    Raises:
        FileNotFoundError: there is none, or the folder leaves open which.
        ValueError: the file is damaged or something else.
    """
    file = policy_file(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no policy at {file}; name a file of save_policy(), or a run's folder with one."
        )
    try:
        content = load_plain_tensors(file)
        spec = TaskSpec(**content["spec"])
        with _UpTo(file.stat().st_size + _SLACK):
            policy = BUILDERS[content["builder"]](spec, **content["options"])
        policy.load_state_dict(content["parameters"])
    except Exception as error:  # a damaged file raises almost anything
        raise ValueError(f"{file} is no whole policy of save_policy(): {type(error).__name__}: {error}") from error
    return SavedPolicy(policy.to(device), spec, content["metadata"])


def policy_file(path: str | Path) -> Path:
    """Return the file of a policy, given it or a run's folder; a run of two stages, offline then online, has two.

    Raises:
        FileNotFoundError: the folder has none of its own, and several below it.
    """
    folder = user_path(path)
    if not folder.is_dir():
        return folder
    own, online = folder / POLICY_FILE, folder / "online" / POLICY_FILE
    below = [file for pattern in ("*", "members/*") for file in sorted(folder.glob(f"{pattern}/{POLICY_FILE}"))]
    if own.is_file() or not below:
        return own
    if online in below or len(below) == 1:
        return online if online in below else below[0]
    shown = ", ".join(str(file.parent) for file in below[:4]) + (", ..." if len(below) > 4 else "")
    raise FileNotFoundError(f"{folder} has no policy of its own but {len(below)} below it; name one of {shown}.")


class _UpTo(TorchDispatchMode):
    """Refuses tensors larger than what a file can fill, before they take memory.

    Args:
        elements: the most that one tensor may have.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Look at the sizes that an operation is given, then let it run."""
        for given in args:
            sizes = given if isinstance(given, list | tuple) else [given, given]  # a number may be both sides, as eye's
            if all(type(size) is int for size in sizes) and math.prod(sizes) > self.elements:
                raise ValueError(f"its settings ask for {given} numbers, which its parameters are not")
        return func(*args, **(kwargs or {}))
