"""What a network was built with, so that files and comparisons can say it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.core.layout import TaskSpec

Network = TypeVar("Network", bound=TensorDictModuleBase)


def remembers_build(builder: Callable[..., Network]) -> Callable[..., Network]:
    """Let what ``builder(spec, **options)`` returns tell in ``build`` what it was called with, for files and checks."""

    @wraps(builder)
    def build(spec: TaskSpec, **options: Any) -> Network:
        network = builder(spec, **options)
        network.build = {"builder": builder.__name__, "spec": spec.to_dict(), "options": options}
        return network

    return build
