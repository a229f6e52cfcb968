"""Many runs out of one: every combination of a grid's values, with several seeds each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from torchrl_marl_offline.commands.options import kinds_of
from torchrl_marl_offline.commands.script_settings import SettingsError
from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import FEW, check


@checked
def expand_grid(
    values: Mapping[str, Any],
    hints: Mapping[str, Any],
    *,
    seeds: Annotated[int, FEW],
    grid: Sequence[str] = (),
    may_differ: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Return the members of a population: every combination of a grid, with ``seeds`` seeds each.

    Args:
        values: of one run, by name; ``"seed"`` is the one from which the seeds count on.
        hints: their annotations.
        seeds: how many.
        grid: ``"name=value,value,..."``, each of a number.
        may_differ: the names that a grid can have.

    Returns:
        A name such as ``"temperature=3-seed=0"``, which can name a folder, -> what differs.

    Raises:
        SettingsError: a name that cannot differ, a value that is no number, outside its range or there twice.

    Example:
        >>> hints = {"seed": int, "lr": float}
        >>> list(expand_grid({"seed": 0, "lr": 0.1}, hints, seeds=2, grid=["lr=0.1,0.2"], may_differ=["lr"]))
        ['lr=0.1-seed=0', 'lr=0.1-seed=1', 'lr=0.2-seed=0', 'lr=0.2-seed=1']
    """
    names = [name for name in may_differ if name in values and name != "seed"]
    axes: dict[str, list[Any]] = {}
    for word in grid:
        name, equals, listed = word_of_grid(word).partition("=")
        if not equals or not listed or name not in names:
            raise SettingsError(
                f"--grid takes NAME=VALUE,VALUE,... with a name out of {', '.join(names)}; got {word!r}."
            )
        if name in axes:
            raise SettingsError(f"--grid gives {name} twice; put its values behind one {name}=.")
        axes[name] = _axis(name, listed, hints[name])
    axes["seed"] = list(range(values["seed"], values["seed"] + seeds))
    _check_axis(axes["seed"][-1:], hints["seed"], "--seeds")
    points = [dict(zip(axes, point)) for point in itertools.product(*axes.values())]
    members = {"-".join(f"{k}={_short(v)}" for k, v in point.items()): point for point in points}
    if len(members) < len(points):
        raise SettingsError(f"--grid {' '.join(grid)} names a value twice; leave one out.")
    return members


def word_of_grid(word: str) -> str:
    """Return ``name=values`` with the name as Python writes it: an option is typed with hyphens."""
    name, equals, values = word.partition("=")
    return name.replace("-", "_") + equals + values


def _short(value: float) -> str:
    """Return a number in few digits, where they say which it is."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _axis(name: str, listed: str, hint: Any) -> list[Any]:
    kind = int if kinds_of(hint)[0] is int else float
    try:
        axis = [kind(value) for value in listed.split(",")]
    except ValueError as error:
        raise SettingsError(f"--grid {name}={listed} wants numbers between its commas.") from error
    _check_axis(axis, hint, f"--grid {name}")
    return axis


def _check_axis(values: Sequence[Any], hint: Any, where: str) -> None:
    for value in values:
        try:
            check(where, value, hint)
        except ValueError as error:
            raise SettingsError(str(error)) from None
