"""Whole methods by name: networks, rules and settings from numbers and words, as studies and scripts need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, OPEN_UNIT, POSITIVE, WIDTHS, check_all
from torchrl_marl_offline.core.relevance import ReadWith, check_read, unread
from torchrl_marl_offline.method_parts import Parts, builds
from torchrl_marl_offline.method_systems import (
    make_b3c,
    make_bcq,
    make_cql,
    make_icq,
    make_mac_flow,
    make_mac_flow_discrete,
    make_omac,
    make_omar,
    make_omiga,
    make_omsd,
    make_td3_bc,
)
from torchrl_marl_offline.modules.actors import make_actor
from torchrl_marl_offline.objectives.extraction import AWR, BRAC
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.objectives.presets import BehaviourCloning
from torchrl_marl_offline.objectives.value_learning import IQL, SARSA, TD

POPULATION_SETTINGS = (
    "temperature",
    "alpha",
    "expectile",
    "min_q_weight",
    "rectification",
    "beta",
    "gamma",
    "lr",
    "seed",
)
"""Settings that may differ between the members of a population: numbers that enter the arithmetic as tensors."""


@builds(
    decomposition="mixer",
    svn=True,
    hidden=(512, 512, 512, 512),
    activation="gelu",
    layer_norm=True,
    distribution="gaussian",
)
def make_recipe(
    parts: Parts,
    *,
    value_learning: Literal["td", "sarsa", "iql"] = "iql",
    extraction: Literal["awr", "brac"] = "awr",
    temperature: Annotated[float, NON_NEGATIVE, ReadWith("extraction", "awr")] = AWR.temperature,
    weights: Annotated[Literal["bounded", "softmax", "clipped"], ReadWith("extraction", "awr")] = AWR.weights,
    advantage: Annotated[Literal["joint", "local"], ReadWith("extraction", "awr")] = "joint",
    online_advantage: Annotated[bool, ReadWith("extraction", "awr")] = AWR.online,
    alpha: Annotated[float, NON_NEGATIVE, ReadWith("extraction", "brac")] = 1.0,
    expectile: Annotated[float, OPEN_UNIT, ReadWith("value_learning", "iql")] = 0.9,
) -> OfflineMARLLoss:
    r"""The recipe: any combination of its axes (Lee et al. 2026, arXiv:2603.08399); by default Mix + SVN + IQL + AWR.

    .. math::
        y = r + \gamma \bar V_{tot}(s'), \qquad
        \mathbb{E}\Big(\frac{Q_{tot} - y}{\mathbb{E}|Q_{tot} - \mathbb{E} Q_{tot}|}\Big)^2, \qquad
        \mathbb{E}\,\ell^2_\tau(\bar Q_{tot} - V_{tot}), \qquad -e^{\alpha (Q_{tot} - V_{tot})} \log \pi_a(u_a | o_a)

    with :math:`Q_{tot} = f(Q_1, \ldots, Q_n; s)` of a monotonic mixer and :math:`V_{tot}` through its target
    (:class:`ScaleInvariantValueNorm`, :class:`IQL`, :class:`AWR`). Other axes: :class:`TD` and :class:`SARSA`,
    :class:`BRAC`, every decomposition.

    Published: four hidden layers of 512 with layer normalization in the critic, two heads; batches of 640, learning
    rate 3e-4, :math:`\gamma` 0.99, targets' rate 0.005, 500,000 steps (a million on StarCraft), 10 episodes every
    50,000. Temperatures and expectiles were searched for; their values are not in the text.

    What differs: both heads are trained (the listing: the smaller one at each row); the weights are
    those of :class:`AWR`, of the team's advantage by default, where equation 11 has local ones. The released
    code never trained its mixer, which is ``frozen`` here; fixes the policies' deviation (``scale=1.0``; learned here,
    so that an ``alpha`` of :class:`BRAC` weighs up to 25 times as much once it is small), and its default ``alpha`` is
    0.03; clips the weights (``weights="clipped"``); takes the advantage of the online critic
    (``online_advantage=True``), under :class:`TD` and :class:`SARSA` each agent's own (``advantage="local"``).

    Args:
        parts: networks and options, of :func:`~torchrl_marl_offline.method_parts.make_parts`' settings.
        value_learning: :class:`TD`, :class:`SARSA` or :class:`IQL`.
        extraction: :class:`AWR` or :class:`BRAC`.
        temperature: of :class:`AWR`.
        weights: of :class:`AWR`; ``"clipped"`` is the released code's.
        advantage: of :class:`AWR`.
        online_advantage: ``online`` of :class:`AWR`.
        alpha: of :class:`BRAC`.
        expectile: of :class:`IQL`.
    """
    rules = {"td": TD, "sarsa": SARSA, "iql": lambda: IQL(expectile)}
    weighted = {"advantage": advantage, "weights": weights, "online": online_advantage}
    extractions = {"awr": lambda: AWR(temperature, **weighted), "brac": lambda: BRAC(alpha)}
    for name, value, known in (
        ("value_learning", value_learning, rules),
        ("extraction", extraction, extractions),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
    return OfflineMARLLoss(
        parts.actor,
        parts.critic,
        parts.value() if value_learning == "iql" else None,
        value_learning=rules[value_learning](),
        extraction=extractions[extraction](),
        **parts.options,
    )


def make_cloning(
    spec: TaskSpec,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (512, 512, 512, 512),
    share_params: bool = True,
    scale: Annotated[float | Literal["learned", "state_dependent"], POSITIVE] = "learned",
) -> OfflineMARLLoss:
    """Build :class:`BehaviourCloning` with the recipe's actor."""
    return BehaviourCloning(make_actor(spec, hidden=hidden, share_params=share_params, scale=scale))


ALGORITHMS: dict[str, Callable[..., OfflineMARLLoss]] = {
    "recipe": make_recipe,
    "cloning": make_cloning,
    "td3_bc": make_td3_bc,
    "b3c": make_b3c,
    "cql": make_cql,
    "omar": make_omar,
    "icq": make_icq,
    "omac": make_omac,
    "omiga": make_omiga,
    "omsd": make_omsd,
    "bcq": make_bcq,
    "mac_flow": make_mac_flow,
    "mac_flow_discrete": make_mac_flow_discrete,
}
"""Builders by name; each takes a :class:`TaskSpec` and keyword settings that JSON and TOML can hold."""


def make_loss(spec: TaskSpec, *, algorithm: str = "recipe", **settings: Any) -> OfflineMARLLoss:
    """Build the networks and the loss of an algorithm named in :data:`ALGORITHMS`.

    Parameters are drawn from torch's global generator: call :func:`torch.manual_seed` before.

    Args:
        spec: the task's sizes.
        algorithm: its name.
        **settings: of the algorithm: its builder's, such as :func:`make_recipe`'s, and but for :func:`make_cloning`
            those of :func:`~torchrl_marl_offline.method_parts.make_parts`; :func:`settings_of` lists them.

    Raises:
        ValueError: for an unknown algorithm, or a setting that it does not have.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> loss = make_loss(spec, decomposition="vdn", extraction="brac", alpha=0.1, hidden=(64, 64))
        >>> loss.alpha
        tensor(0.1000)
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}; got {algorithm!r}.")
    known = settings_of(algorithm)
    for name in settings:
        if name not in known:
            raise ValueError(f"{algorithm} has no setting {name!r}; it has {', '.join(known)}.")
    check_settings(algorithm, settings)
    return ALGORITHMS[algorithm](spec, **settings)


def check_settings(algorithm: str, settings: Mapping[str, Any]) -> None:
    """Check an algorithm's settings as far as they can be without a task.

    Args:
        algorithm: its name.
        settings: those that were given.

    Raises:
        ValueError: a number outside its range, or a setting that changes nothing beside the others.
    """
    builder = ALGORITHMS[algorithm]
    check_all(builder, settings)
    check_read(builder, settings, settings_of(algorithm) | dict(settings))


def is_read(algorithm: str, name: str, settings: Mapping[str, Any]) -> bool:
    """Say whether an algorithm has a setting that changes something beside ``settings``; others have their defaults."""
    known = settings_of(algorithm)
    return name in known and not unread(ALGORITHMS[algorithm], name, known | dict(settings))


class _OfAlgorithm:
    """The condition of a script's option that is a setting of the algorithm that another option names."""

    def refusal(self, option: str, values: Mapping[str, Any], name: Callable[[str], str]) -> str | None:
        """Return why an option is not read beside ``values``, or None where it is; a value of None is a default."""
        known, algorithm = settings_of(values["algorithm"]), values["algorithm"]
        if option not in known:
            return f"{name(option)} is no setting of {name('algorithm')} {algorithm}; leave it out."
        asked = {key: value for key, value in values.items() if key in known and value is not None}
        return unread(ALGORITHMS[algorithm], option, known | asked, name=name)


OF_ALGORITHM = _OfAlgorithm()
"""Marks an option of a script that is a setting of its ``algorithm``."""


def settings_of(algorithm: str) -> dict[str, Any]:
    """Return the settings of an algorithm and their defaults."""
    return dict(ALGORITHMS[algorithm].__kwdefaults__ or {})
