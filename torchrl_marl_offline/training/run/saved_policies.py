"""Policies as files: what is needed to build one again, and its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.hub_client import named_on_hub
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.plain_tensors import load_plain_tensors
from torchrl_marl_offline.core.put_back import evaluation_mode
from torchrl_marl_offline.core.regular_files import lies_at, require_regular
from torchrl_marl_offline.modules.actors import make_actor
from torchrl_marl_offline.modules.greedy_actors import make_deterministic_actor, make_greedy_actor
from torchrl_marl_offline.training.run.fetched_policy import POLICY_FILE, fetched_policy

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from tensordict.nn import TensorDictModuleBase

_SLACK_NUMBERS, _SLACK_TENSORS = 2**16, 64  # what building may make beside the parameters
_LISTS = 4  # options may be lists of a number for each column: observation_norm is two
_LONGEST_REASON, _MOST_SIZES = 300, 64
_REMEDY = "save it again, or take the policy of another run or of an earlier checkpoint"
_PARTS = {"builder": str, "spec": dict, "options": dict, "parameters": dict, "metadata": dict}
BUILDERS = {
    "make_actor": make_actor,
    "make_deterministic_actor": make_deterministic_actor,
    "make_greedy_actor": make_greedy_actor,
}
"""What can be saved, by the name of the function that builds it."""


@dataclass(frozen=True)
class SavedPolicy:
    """What :func:`load_policy` returns: the policy, which it also is as a function, and what is known of it.

    Attributes:
        policy: reads observations and writes ``("agents", "action")``. It can be trained on; to act with it by itself,
            call its ``eval()`` first.
        spec: the task it was made for.
        metadata: what :func:`save_policy` was told.
    """

    policy: TensorDictModuleBase
    spec: TaskSpec
    metadata: dict[str, Any]

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the policy's action into a tensordict, in evaluation: a row's action does not depend on others."""
        with evaluation_mode(self.policy):
            return self.policy(tensordict)


def bare(policy: Any) -> Any:
    """Return the module of a policy that was loaded, and any other as it is."""
    return policy.policy if isinstance(policy, SavedPolicy) else policy


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
            of its subfolders; or ``"hf:OWNER/NAME"`` or ``"hf:OWNER/NAME@REVISION"``, which
            :func:`~torchrl_marl_offline.push_policy` published, and which is fetched.
        device: where the policy goes.

    Raises:
        HubError: a policy of the hub cannot be had.
        FileNotFoundError: there is none, or the folder leaves open which.
        ValueError: the file is damaged or something else, would build more than its parameters, or a parameter is NaN
            or infinite.
    """
    file = policy_file(path)
    if not lies_at(file) or not file.exists():
        raise FileNotFoundError(
            f"There is no policy at {file}; name a file of save_policy(), or a run's folder with one."
        )
    require_regular(file)
    try:
        content = load_plain_tensors(file)
        parameters = _checked_parameters(content)
        most = _MOST_SIZES + 4 * sum(parameter.numel() for parameter in parameters.values())  # bounds [n, a] are two
        if _entries(content["spec"], most) > most:
            raise ValueError("its spec is no TaskSpec")
        spec = TaskSpec(**content["spec"])
        with _UpTo(parameters.values(), content["options"]):
            policy = BUILDERS[content["builder"]](spec, **content["options"])
        policy.load_state_dict(parameters)
    except Exception as error:  # a damaged file raises almost anything
        reason = " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".") or type(error).__name__
        raise ValueError(f"{file} is no whole policy of save_policy(): {reason}; {_REMEDY}.") from error
    return SavedPolicy(policy.to(device), spec, content["metadata"])


def _checked_parameters(content: Any) -> dict[str, torch.Tensor]:
    """Return the parameters of a file's content, all of whose parts are what they should be."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    for name, kind in _PARTS.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"its {name} is a {type(content.get(name)).__name__}, no {kind.__name__}")
    if content["builder"] not in BUILDERS:
        raise ValueError(f"its builder {content['builder'][:80]!r} is none of {', '.join(BUILDERS)}")
    for name, value in content["parameters"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"its parameter {name!r} is a {type(value).__name__}")
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"its parameter {name!r} is NaN or infinite")
    return content["parameters"]


def policy_file(path: str | Path) -> Path:
    """Return the file of a policy, given it, a run's folder or a name on the hub, from which it is fetched.

    A run of two stages, offline then online, has two.

    Raises:
        FileNotFoundError: the folder has none of its own, and several below it.
        HubError: a policy of the hub cannot be had.
    """
    if named_on_hub(path):
        return fetched_policy(path)
    folder = user_path(path)
    if not folder.is_dir():
        return folder
    own, online = folder / POLICY_FILE, folder / "online" / POLICY_FILE
    below = [file for pattern in ("*", "members/*") for file in sorted(folder.glob(f"{pattern}/{POLICY_FILE}"))]
    if lies_at(own) or not below:
        return own
    if online in below or len(below) == 1:
        return online if online in below else below[0]
    shown = ", ".join(str(file.parent) for file in below[:4]) + (", ..." if len(below) > 4 else "")
    raise FileNotFoundError(f"{folder} has no policy of its own but {len(below)} below it; name one of {shown}.")


class _UpTo(TorchDispatchMode):
    """Refuses to build more tensors, or numbers, than a file has parameters to fill, whatever option asks for them.

    What is too much is refused before it takes memory: one tensor by its size, many by their sum and number.

    Args:
        parameters: of the file.
        options: of the builder; more entries than there are parameters, or columns of one, are refused at once.

    Raises:
        ValueError: see above; the same on the way.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], options: dict[str, Any]) -> None:
        super().__init__()
        parameters = list(parameters)
        self.numbers = _SLACK_NUMBERS + sum(parameter.numel() for parameter in parameters)
        self.tensors = _SLACK_TENSORS + len(parameters)
        most = _LISTS * max([self.tensors, *(size for parameter in parameters for size in parameter.shape)])
        if _entries(options, most) > most:
            raise ValueError(f"its options list more than {most:,} numbers beside {len(parameters)} parameters")

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Look at the sizes that an operation is given, then let it run."""
        for given in args:
            sizes = given if isinstance(given, list | tuple) else [given, given]  # a number may be both sides, as eye's
            if all(type(size) is int for size in sizes) and math.prod(sizes) > self.numbers:
                raise ValueError(f"its options ask for {given} numbers, which its parameters are not")
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not any(isinstance(given, torch.Tensor) for given in args):
            self.numbers -= made.numel()
            self.tensors -= 1
            if min(self.numbers, self.tensors) < 0:
                raise ValueError("its options ask for more or larger layers than its parameters fill")
        return made


def _entries(content: Any, most: int) -> int:
    """Return how many values there are, what is in two lists counted twice; the count ends beyond ``most``."""
    waiting, count = [content], 0
    while waiting and count <= most:
        value = waiting.pop()
        inner = list(value.values()) if isinstance(value, dict) else value
        if isinstance(inner, list | tuple):
            count += len(inner)
            waiting += inner
    return count
