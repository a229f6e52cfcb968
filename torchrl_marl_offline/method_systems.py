"""Builders of the systems of the field, with their published settings as defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torchrl_marl_offline.core.ranges import (
    FEW,
    FEW_OR_NONE,
    NON_NEGATIVE,
    OPEN_UNIT,
    POSITIVE,
    REAL,
    SEVERAL,
    UNIT,
    WIDTHS,
)
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.method_parts import Parts, builds
from torchrl_marl_offline.modules.behaviour import make_behaviour_policy, make_vae
from torchrl_marl_offline.modules.diffusion import make_score
from torchrl_marl_offline.modules.flow import make_flow
from torchrl_marl_offline.modules.sequential import make_sequential_policy
from torchrl_marl_offline.objectives.conservative import CQL
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.objectives.samplers import (
    ActionSampler,
    CEMSampler,
    GaussianSampler,
    RandomSampler,
    SoftmaxSampler,
)
from torchrl_marl_offline.objectives.score import ScoreMatching, SequentialCloning
from torchrl_marl_offline.objectives.systems import (
    MABCQLoss,
    MACFlowLoss,
    MACQLLoss,
    MAICQLoss,
    MATD3BCLoss,
    OMACLoss,
    OMARLoss,
    OMIGALoss,
    OMSDLoss,
)

# the deviation is that of conservative Q-learning's samples of the policy; no other term reads it
DETERMINISTIC = {"share_params": False, "scale": 0.2}
# with continuous actions, as in the released code of OMAR: without it the policies of conservative Q-learning saturate;
# with discrete ones, whose policies have no bounds to run into, it is no help (benchmarks/RESULTS.md)
CONSERVATIVE = {**DETERMINISTIC, "batch_norm": None}


@builds(**DETERMINISTIC)
def make_td3_bc(
    parts: Parts,
    *,
    alpha: Annotated[float, NON_NEGATIVE] = 2.5,
    noise: Annotated[float, NON_NEGATIVE] = 0.2,
    noise_clip: Annotated[float, NON_NEGATIVE, ReadWith("noise", above=0)] = 0.5,
    others: Literal["data", "policy"] = "data",
) -> OfflineMARLLoss:
    """Build :class:`MATD3BCLoss`, with the networks of OMAR's comparison."""
    rules = {"alpha": alpha, "noise": noise, "noise_clip": noise_clip, "others": others}
    return MATD3BCLoss(parts.actor, _continuous(parts, "td3_bc").critic, **rules, **parts.options)


@builds(**DETERMINISTIC, decomposition="mixer")
def make_b3c(
    parts: Parts,
    *,
    alpha: Annotated[float, NON_NEGATIVE] = 2.5,
    noise: Annotated[float, NON_NEGATIVE] = 0.2,
    noise_clip: Annotated[float, NON_NEGATIVE, ReadWith("noise", above=0)] = 0.5,
) -> OfflineMARLLoss:
    """Build B3C (arXiv:2501.18138): :class:`MATD3BCLoss` through a mixer, its targets clipped.

    ``max_next_value`` is the largest return in the data. ``alpha`` and the noise are those of TD3+BC: B3C's own were
    not at hand.
    """
    if parts.options["max_next_value"] is None:
        raise ValueError("b3c clips its targets: set max_next_value to the largest return in the data.")
    rules = {"alpha": alpha, "noise": noise, "noise_clip": noise_clip, "others": "policy"}
    return MATD3BCLoss(parts.actor, _continuous(parts, "b3c").critic, **rules, **parts.options)


@builds(**CONSERVATIVE)
def make_cql(
    parts: Parts,
    *,
    min_q_weight: Annotated[float, NON_NEGATIVE] = 1.0,
    num_random: Annotated[int, FEW_OR_NONE] = 10,
    num_policy: Annotated[int, FEW_OR_NONE] = 10,
    noise: Annotated[float, NON_NEGATIVE] = 0.2,
    noise_clip: Annotated[float, NON_NEGATIVE, ReadWith("noise", above=0)] = 0.5,
) -> OfflineMARLLoss:
    """Build :class:`MACQLLoss`."""
    return MACQLLoss(
        parts.actor,
        parts.critic,
        learning=_conservative(min_q_weight, num_random, num_policy, noise, noise_clip),
        **parts.options,
    )


@builds(**CONSERVATIVE)
def make_omar(
    parts: Parts,
    *,
    rectification: Annotated[float, UNIT] = 0.5,
    sampler: Literal["softmax", "cem", "random"] = "softmax",
    iterations: Annotated[int, FEW, ReadWith("sampler", "softmax", "cem")] = 3,
    samples: Annotated[int, SEVERAL] = 10,
    sampler_loc: Annotated[float, REAL, ReadWith("sampler", "softmax", "cem")] = 0.0,
    sampler_scale: Annotated[float, POSITIVE, ReadWith("sampler", "softmax", "cem")] = 2.0,
    sampler_centre: Annotated[Literal["previous", "updated"], ReadWith("sampler", "softmax")] = SoftmaxSampler.centre,
    min_q_weight: Annotated[float, NON_NEGATIVE] = 1.0,
    num_random: Annotated[int, FEW_OR_NONE] = 10,
    num_policy: Annotated[int, FEW_OR_NONE] = 10,
    noise: Annotated[float, NON_NEGATIVE] = 0.2,
    noise_clip: Annotated[float, NON_NEGATIVE, ReadWith("noise", above=0)] = 0.5,
) -> OfflineMARLLoss:
    """Build :class:`OMARLoss`."""
    gaussian = {"loc": sampler_loc, "scale": sampler_scale}
    return OMARLoss(
        parts.actor,
        parts.critic,
        rectification=rectification,
        sampler=_sampler(sampler, iterations, samples, centre=sampler_centre, **gaussian),
        learning=_conservative(min_q_weight, num_random, num_policy, noise, noise_clip),
        **parts.options,
    )


@builds(decomposition="linear")
def make_icq(
    parts: Parts, *, beta: Annotated[float, POSITIVE] = 1000.0, temperature: Annotated[float, NON_NEGATIVE] = 10.0
) -> OfflineMARLLoss:
    """Build :class:`MAICQLoss`."""
    return MAICQLoss(parts.actor, parts.critic, beta=beta, temperature=temperature, **parts.options)


@builds(decomposition="linear", hidden=(256, 256))
def make_omac(
    parts: Parts, *, expectile: Annotated[float, OPEN_UNIT] = 0.7, temperature: Annotated[float, NON_NEGATIVE] = 3.0
) -> OfflineMARLLoss:
    """Build :class:`OMACLoss`."""
    rules = {"expectile": expectile, "temperature": temperature}
    return OMACLoss(parts.actor, parts.critic, parts.value(), **rules, **parts.options)


@builds(decomposition="linear", hidden=(256, 256), num_heads=1, scale="state_dependent")
def make_omiga(parts: Parts, *, alpha: Annotated[float, POSITIVE] = 10.0) -> OfflineMARLLoss:
    """Build :class:`OMIGALoss`."""
    return OMIGALoss(parts.actor, parts.critic, parts.value(), alpha=alpha, **parts.options)


@builds(**DETERMINISTIC, decomposition="centralized", hidden=(256, 256))
def make_omsd(
    parts: Parts,
    *,
    expectile: Annotated[float, OPEN_UNIT] = 0.7,
    beta: Annotated[float, POSITIVE] = 0.01,
    normalize: bool = False,
    time_weight: Literal["score", "uniform", "variance"] = "score",
) -> OfflineMARLLoss:
    """Build :class:`OMSDLoss`; for a discrete task with a sequential policy in the place of the score."""
    if parts.spec.discrete:
        behaviour, learning = make_sequential_policy(parts.spec, **parts.network), SequentialCloning()
    else:
        behaviour, learning = make_score(parts.spec, **parts.network), ScoreMatching()
    rules = {"expectile": expectile, "beta": beta, "normalize": normalize, "time_weight": time_weight}
    networks = parts.actor, parts.critic, parts.value(), behaviour
    return OMSDLoss(*networks, behaviour_learning=learning, **rules, **parts.options)


@builds(**DETERMINISTIC, hidden=(400, 300))
def make_bcq(
    parts: Parts,
    *,
    samples: Annotated[int, FEW] = 10,
    threshold: Annotated[float, UNIT] = 0.3,
    min_weight: Annotated[float, UNIT] = 0.75,
    perturbation: Annotated[float, POSITIVE] = 0.05,
    kl_weight: Annotated[float, NON_NEGATIVE] = 0.5,
    behaviour_hidden: Annotated[Sequence[int], WIDTHS] = (750, 750),
) -> OfflineMARLLoss:
    """Build :class:`MABCQLoss`; for a discrete task with a cloned policy in the place of the autoencoder."""
    network = parts.network | {"hidden": behaviour_hidden}
    if parts.spec.discrete:
        behaviour = make_behaviour_policy(parts.spec, **network)
    else:
        sizes = {"perturbation": perturbation, "perturbation_hidden": parts.network["hidden"]}
        behaviour = make_vae(parts.spec, **sizes, **network)
    rules = {"samples": samples, "threshold": threshold, "min_weight": min_weight, "kl_weight": kl_weight}
    return MABCQLoss(parts.actor, parts.critic, behaviour, **rules, **parts.options)


# what the two releases of MAC-Flow share
FLOW = {"decomposition": "vdn", "distribution": "one_step", "activation": "gelu", "layer_norm": True}


@builds(**FLOW, hidden=(512,) * 4, gamma=0.995)
def make_mac_flow(
    parts: Parts,
    *,
    alpha: Annotated[float, NON_NEGATIVE] = 1.0,
    normalize: bool = True,
    flow_steps: Annotated[int, FEW] = 10,
    min_weight: Annotated[float, UNIT] = 0.5,
    joint_observation: bool = True,
) -> OfflineMARLLoss:
    """Build :class:`MACFlowLoss` with the settings of its release for continuous actions.

    The flow sees all observations, or the state.
    """
    rules = {"alpha": alpha, "normalize": normalize, "flow_steps": flow_steps, "min_weight": min_weight}
    return _mac_flow(parts, joint_observation, **rules)


@builds(**FLOW, hidden=(256,) * 4)
def make_mac_flow_discrete(
    parts: Parts,
    *,
    alpha: Annotated[float, NON_NEGATIVE] = 3.0,
    normalize: bool = False,
    flow_steps: Annotated[int, FEW] = 10,
    min_weight: Annotated[float, UNIT] = 0.5,
    joint_observation: bool = True,
) -> OfflineMARLLoss:
    """Build :class:`MACFlowLoss` with the settings of its release for discrete actions: :func:`make_mac_flow`'s rules.

    The released one has memory; this one has none.
    """
    rules = {"alpha": alpha, "normalize": normalize, "flow_steps": flow_steps, "min_weight": min_weight}
    return _mac_flow(parts, joint_observation, **rules)


def _mac_flow(parts: Parts, joint_observation: bool, **rules: Any) -> OfflineMARLLoss:
    network = {name: parts.network[name] for name in ("hidden", "activation")}
    behaviour = make_flow(parts.spec, joint_observation=joint_observation, **network)
    return MACFlowLoss(parts.actor, parts.critic, behaviour, **rules, **parts.options)


def _continuous(parts: Parts, algorithm: str) -> Parts:
    if parts.spec.discrete:
        raise ValueError(
            f"{algorithm} is for continuous actions; for a discrete task use cql, omar or the recipe's brac."
        )
    return parts


def _conservative(min_q_weight: float, num_random: int, num_policy: int, noise: float, noise_clip: float) -> CQL:
    return CQL(
        min_q_weight=min_q_weight, num_random=num_random, num_policy=num_policy, noise=noise, noise_clip=noise_clip
    )


def _sampler(
    name: str, iterations: int, samples: int, *, centre: Literal["previous", "updated"], **gaussian: float
) -> ActionSampler:
    samplers = {"softmax": SoftmaxSampler, "cem": CEMSampler, "random": RandomSampler}
    if name not in samplers:
        raise ValueError(f"sampler must be one of {', '.join(samplers)}; got {name!r}.")
    if issubclass(samplers[name], SoftmaxSampler):
        return SoftmaxSampler(iterations=iterations, samples=samples, centre=centre, **gaussian)
    if issubclass(samplers[name], GaussianSampler):
        return samplers[name](iterations=iterations, samples=samples, **gaussian)
    return samplers[name](iterations=iterations, samples=samples)
