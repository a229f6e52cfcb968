"""What a network was built with, so that files and comparisons can say it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import in_python

Parameters = ParamSpec("Parameters")
Network = TypeVar("Network", bound=TensorDictModuleBase)


def remembers_build(builder: Callable[Parameters, Network]) -> Callable[Parameters, Network]:
    """Let what ``builder(spec, **options)`` returns tell in ``build`` what it was called with, for files and checks.

    NumPy's numbers and arrays are told as Python's, with which a file can be loaded.
    """

    @wraps(builder)
    def build(*args: Parameters.args, **options: Parameters.kwargs) -> Network:
        network = builder(*args, **options)
        given: dict[str, Any] = {"spec": args[0]} | options if args else dict(options)
        spec: TaskSpec = given.pop("spec")
        network.build = {"builder": builder.__name__, "spec": spec.to_dict(), "options": in_python(given)}
        return network

    return build
