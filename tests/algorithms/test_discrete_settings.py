"""Settings that change nothing where actions are discrete are refused there, whichever algorithm has them."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import torch
from objective_toys import CONTINUOUS, DISCRETE, make_batch
from selection import thorough
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import make_loss
from torchrl_marl_offline.algorithms import ALGORITHMS, is_read, settings_of
from torchrl_marl_offline.core.annotations import parameters_of

OTHERS = {"hidden": [(5,)], "behaviour_hidden": [(5,)], "activation": ["tanh"], "max_next_value": [-5.0]}
SMALL = {"hidden": (4,), "behaviour_hidden": (4,)}
BOTH = [name for name in sorted(ALGORITHMS) if ALGORITHMS[name].supports_discrete]
ALIKE_HERE = [("batch_norm", False), ("weights", "softmax"), ("flow_steps", 11)]
"""None stands for the first where actions are discrete; no weight of these rows reaches the bound of the second; and
the best action of a flow that was not trained is the same after one more step."""
OFTEN = ("bcq", "omar", "omsd")


def other_values(name: str, hint: Any, default: Any) -> list[Any]:
    """Return values that a setting may have beside its default."""
    if name in OTHERS:
        return OTHERS[name]
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    kinds = [hint] if typing.get_origin(hint) in (None, typing.Literal) else typing.get_args(hint)
    words = [word for kind in kinds if typing.get_origin(kind) is typing.Literal for word in typing.get_args(kind)]
    values = [word for word in words if word != default]
    if bool in kinds:
        return values + [value for value in (True, False) if value != default]
    number = default if isinstance(default, int | float) else 0.3
    if float in kinds:
        return [*values, 0.7 * number + 0.05]
    return [*values, int(number) + 1] if int in kinds else values


def figures(spec: Any, algorithm: str, **settings: Any) -> list[float]:
    """Return the losses and the number of parameters; raises ValueError where a setting is refused."""
    small = {name: value for name, value in SMALL.items() if name in settings_of(algorithm)}
    torch.manual_seed(0)
    loss = make_loss(spec, algorithm=algorithm, **small | settings)
    if ALGORITHMS[algorithm].has_critic:
        SoftUpdate(loss, tau=0.1)
    batch = make_batch(spec, 6)
    torch.manual_seed(1)
    found = [value.item() for key, value in loss(batch).items() if key.startswith("loss_")]
    return [*found, sum(each.numel() for each in loss.parameters())]


def changes(spec: Any, algorithm: str, name: str, value: Any) -> bool | None:
    """Say whether a value of a setting changes anything; None where it is refused."""
    try:
        return figures(spec, algorithm, **{name: value}) != figures(spec, algorithm)
    except ValueError:
        return None


@pytest.mark.parametrize("algorithm", [name if name in OFTEN else thorough(name) for name in BOTH])
def test_what_changes_continuous_actions_alone_is_refused_of_discrete_ones(algorithm: str) -> None:
    told, silent = 0, []
    for name, (hint, _) in parameters_of(ALGORITHMS[algorithm]).items():
        default = settings_of(algorithm)[name]
        if name == "memory" or not is_read(algorithm, name, {}):
            continue
        for value in other_values(name, hint, default):
            if not changes(CONTINUOUS, algorithm, name, value):
                continue
            of_discrete = changes(DISCRETE, algorithm, name, value)
            told += of_discrete is None
            if of_discrete is False and (name, value) not in ALIKE_HERE:
                silent.append((name, value))
    assert silent == [] and (told > 0 or algorithm.startswith("mac_flow"))
