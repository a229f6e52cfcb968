"""The card of a suite's dataset: what is known of its task and its data, kept in the dataset's own metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict  # what pydantic needs before Python 3.12

from torchrl_marl_offline.data.quality.stitchable import stitchable_share
from torchrl_marl_offline.evaluation.agent_shares import shares_of
from torchrl_marl_offline.suites.entries import Making, Recorded, Suite, SuiteEntry, SuiteError
from torchrl_marl_offline.suites.reference_scores import best_recorded, random_team

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SUITE_KEY = "suite"
"""Under which a dataset's metadata holds its card."""


def identity(suite: Suite, entry: SuiteEntry, making: Making) -> dict[str, Any]:
    """Return what a dataset of a suite is told by: another one has other data."""
    return {
        "suite": suite.name,
        "version": suite.version,
        "name": entry.name,
        "group": entry.group,
        "task": entry.task,
        "task_options": dict(entry.options),
        "seed": making.seed,
    }


def make_card(suite: Suite, entry: SuiteEntry, making: Making, recorded: Recorded) -> dict[str, Any]:
    """Return the card of what was recorded, JSON-ready; equal recordings have equal cards.

    It holds the identity; ``about``; ``agents`` and ``actions``; ``optimum`` (``value``, ``kind``, ``how``); the
    references ``random`` and ``best_recorded`` (``value``, ``how``); ``behaviour``, in words, and ``recorded_return``,
    its mean; ``normalized``: the last two on the scale of which 0 is a random team and 1 the optimum; ``stitchable``
    (:func:`~torchrl_marl_offline.data.stitchable_share`); where agents have rewards of their own ``shares``.

    Raises:
        SuiteError: the optimum is not above a random team, so that there is no scale.
    """
    dataset = recorded.dataset
    optimum = entry.optimum(entry, making)._asdict()
    random = random_team(entry, making)._asdict()
    if not optimum["value"] > random["value"]:
        raise SuiteError(
            f"The optimum of {entry.name}, {optimum['value']:.6g}, is not above a random team's return, "
            f"{random['value']:.6g}; mend the entry's optimum."
        )
    best = (recorded.best or best_recorded(dataset))._asdict()
    mean = dataset.episode_returns().double().mean().item()
    card = identity(suite, entry, making) | {
        "about": entry.about,
        "agents": dataset.spec.n_agents,
        "actions": dataset.spec.action_size,
        "discrete": dataset.spec.discrete,
        "transitions": len(dataset),
        "episodes": dataset.n_episodes,
        "behaviour": dataset.metadata.get("behaviour"),
        "optimum": _rounded(optimum),
        "random": _rounded(random),
        "best_recorded": _rounded(best),
        "recorded_return": round(mean, 6),
        "stitchable": stitchable_share(dataset).to_dict(),
    }
    card["normalized"] = {
        "best_recorded": round(normalized(card, best["value"]), 6),
        "recorded_return": round(normalized(card, mean), 6),
    }
    own = dataset.agent_returns()
    if ((own - own[:, :1]).abs() > 0).any():
        card["shares"] = _rounded(shares_of(own)._asdict())
    return card


class _Value(TypedDict):
    value: float
    how: str


class _Optimum(_Value):
    kind: str


class _Normalized(TypedDict):
    best_recorded: float


class _Stitchable(TypedDict):
    share: float | None
    how: str


class _Shares(TypedDict):
    total: float
    least: float
    gini: float | None


class _Card(TypedDict):
    """What is read of a card that lies in a folder."""

    name: str
    group: str
    task: str
    task_options: dict[str, Any]
    seed: int
    about: str
    agents: int
    discrete: bool
    transitions: int
    episodes: int
    behaviour: str | None
    optimum: _Optimum
    random: _Value
    best_recorded: _Value
    recorded_return: float
    stitchable: _Stitchable
    normalized: _Normalized
    shares: NotRequired[_Shares]
    bytes: int
    seconds: float | None


@cache
def _cards() -> TypeAdapter:
    from pydantic import TypeAdapter

    return TypeAdapter(_Card)


def check_card(card: Any) -> None:
    """Refuse what is no card as files hold it, with ``bytes`` and ``seconds``.

    Raises:
        ValueError: it says what is wrong of which fact.
    """
    from pydantic import ValidationError

    try:
        _cards().validate_python(card, strict=True)
        json.dumps(card, allow_nan=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "card"
        raise ValueError(f"{place}: {first['msg']}") from error
    if not card["optimum"]["value"] > card["random"]["value"]:
        raise ValueError("optimum.value: it is not above that of a random team")


def normalized(card: Mapping[str, Any], value: float) -> float:
    """Return a return on the scale of which 0 is a random team and 1 the optimum."""
    low, high = card["random"]["value"], card["optimum"]["value"]
    return (value - low) / (high - low)


def _rounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in facts.items()}
