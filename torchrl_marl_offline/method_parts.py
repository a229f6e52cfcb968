"""Networks from numbers and words, and builders that add rules to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Annotated, Any, Literal, get_type_hints

from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import DISCOUNT, FEW, POSITIVE, REAL, WIDTHS
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.modules.actors import make_actor
from torchrl_marl_offline.modules.critics import READ_BY, TEAM, Decomposition, make_critic, make_value
from torchrl_marl_offline.modules.value_norm import ScaleInvariantValueNorm
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss


@dataclass(frozen=True)
class Parts:
    """What a loss is made of beside its rules.

    Attributes:
        spec: the task's sizes.
        actor: its policies.
        critic: its critic, mixer included.
        value: returns the state-value network.
        network: ``hidden``, ``share_params`` and ``activation``, for further networks.
        options: of :class:`OfflineMARLLoss`.
    """

    spec: TaskSpec
    actor: TensorDictModuleBase
    critic: TensorDictModuleBase
    value: Callable[[], TensorDictModuleBase]
    network: dict[str, Any]
    options: dict[str, Any]


def make_parts(
    spec: TaskSpec,
    *,
    decomposition: Decomposition = "independent",
    frozen: Annotated[bool, ReadWith("decomposition", *READ_BY["frozen"])] = False,
    num_heads: Annotated[int, FEW] = 2,
    svn: bool = False,
    heads: Annotated[Literal["all", "min"], ReadWith("num_heads", above=1)] = "all",
    team_reward: Annotated[Literal["mean", "sum"], ReadWith("decomposition", *TEAM)] = "mean",
    max_next_value: Annotated[float | None, REAL] = None,
    gamma: Annotated[float, DISCOUNT] = 0.99,
    hidden: Annotated[Sequence[int], WIDTHS] = (64, 64),
    share_params: bool = True,
    activation: str = "relu",
    layer_norm: bool = False,
    batch_norm: bool | None = False,
    distribution: Literal["gaussian", "tanh_gaussian", "one_step"] = "tanh_gaussian",
    scale: Annotated[float | Literal["learned", "state_dependent"], POSITIVE] = "learned",
) -> Parts:
    """Draw the networks that a method needs.

    Args:
        spec: the task's sizes.
        decomposition: how the team's value is made of the agents' values; see :func:`make_critic`.
        frozen: leave the mixer at its random initial parameters (an ablation).
        num_heads: critic heads.
        svn: :class:`ScaleInvariantValueNorm` on the critic's loss.
        heads: train all critic heads, or at each row the smallest alone.
        team_reward: mean or sum of the agents' rewards.
        max_next_value: upper bound of the next value in the critic's target.
        gamma: discount.
        hidden: widths of the hidden layers of all networks.
        share_params: agents share parameters.
        activation: activation of all hidden layers.
        layer_norm: layer normalization in critics, state values and mixers.
        batch_norm: normalize the inputs of policies, critics and state values by the batch; None: where actions are
            continuous and the decomposition is not ``"graph"``, which reads pairs of agents.
        distribution: of continuous actions; see :func:`make_actor`.
        scale: the Gaussian's standard deviation; see :func:`make_actor`.
    """
    network = {"hidden": hidden, "share_params": share_params, "activation": activation}
    if batch_norm is None:
        batch_norm = not spec.discrete and decomposition != "graph"
    valued = {"decomposition": decomposition, "layer_norm": layer_norm, "batch_norm": batch_norm} | network
    actor = make_actor(spec, distribution=distribution, scale=scale, batch_norm=batch_norm, **network)
    critic = make_critic(spec, frozen=frozen, num_heads=num_heads, **valued)
    options = {"heads": heads, "team_reward": team_reward, "max_next_value": max_next_value}
    options["value_norm"] = ScaleInvariantValueNorm() if svn else None
    return Parts(spec, actor, critic, lambda: make_value(spec, **valued), network, options)


def builds(**published: Any) -> Callable[[Callable[..., OfflineMARLLoss]], Callable[..., OfflineMARLLoss]]:
    """Make a builder ``(spec, **settings)`` of a function that adds rules to :class:`Parts`.

    The builder's settings are those of :func:`make_parts`, with the ``published`` defaults in place of its own, and the
    function's keyword arguments; they stand in the builder's ``__kwdefaults__`` and annotations, as if it were written
    out.
    """

    def decorate(rules: Callable[..., OfflineMARLLoss]) -> Callable[..., OfflineMARLLoss]:
        shared, own = {**make_parts.__kwdefaults__, **published}, dict(rules.__kwdefaults__ or {})

        def build(spec: TaskSpec, **settings: Any) -> OfflineMARLLoss:
            settings = shared | own | settings
            parts = make_parts(spec, **{name: settings[name] for name in shared})
            loss = rules(parts, **{name: settings[name] for name in own})
            return loss.make_value_estimator(gamma=settings["gamma"])

        build.__kwdefaults__ = shared | own
        # as if it were written out: for help, type hints, ranges and what is read only beside other settings
        hints = get_type_hints(make_parts, include_extras=True) | get_type_hints(rules, include_extras=True)
        build.__annotations__ = {name: hints[name] for name in ("spec", *shared, *own, "return")}
        build.__signature__ = Signature(
            [Parameter("spec", Parameter.POSITIONAL_OR_KEYWORD, annotation=TaskSpec)]
            + [
                Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
                for name, default in build.__kwdefaults__.items()
            ]
        )
        build.__name__, build.__qualname__, build.__doc__ = rules.__name__, rules.__qualname__, rules.__doc__
        build.__module__ = rules.__module__
        return build

    return decorate
