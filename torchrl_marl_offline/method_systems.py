"""Builders of the systems of the field, with their published settings as defaults."""

from __future__ import annotations

from typing import Literal

from torchrl_marl_offline.method_parts import Parts, builds
from torchrl_marl_offline.objectives.conservative import CQL
from torchrl_marl_offline.objectives.offline_marl import OfflineMARLLoss
from torchrl_marl_offline.objectives.samplers import ActionSampler, CEMSampler, RandomSampler, SoftmaxSampler
from torchrl_marl_offline.objectives.systems import (
    MACQLLoss,
    MAICQLoss,
    MATD3BCLoss,
    OMACLoss,
    OMARLoss,
    OMIGALoss,
)

# the deviation is that of conservative Q-learning's samples of the policy; no other term reads it
DETERMINISTIC = {"share_params": False, "scale": 0.2}


@builds(**DETERMINISTIC)
def make_td3_bc(
    parts: Parts,
    *,
    alpha: float = 2.5,
    noise: float = 0.2,
    noise_clip: float = 0.5,
    others: Literal["data", "policy"] = "data",
) -> OfflineMARLLoss:
    """Build :class:`MATD3BCLoss`, with the networks of OMAR's comparison."""
    rules = {"alpha": alpha, "noise": noise, "noise_clip": noise_clip, "others": others}
    return MATD3BCLoss(parts.actor, _continuous(parts, "td3_bc").critic, **rules, **parts.options)


@builds(**DETERMINISTIC, decomposition="mixer")
def make_b3c(parts: Parts, *, alpha: float = 2.5, noise: float = 0.2, noise_clip: float = 0.5) -> OfflineMARLLoss:
    """Build B3C: :class:`MATD3BCLoss` through a mixer; ``max_next_value`` is the largest return in the data."""
    if parts.options["max_next_value"] is None:
        raise ValueError("b3c clips its targets: set max_next_value to the largest return in the data.")
    rules = {"alpha": alpha, "noise": noise, "noise_clip": noise_clip, "others": "policy"}
    return MATD3BCLoss(parts.actor, _continuous(parts, "b3c").critic, **rules, **parts.options)


@builds(**DETERMINISTIC)
def make_cql(
    parts: Parts,
    *,
    min_q_weight: float = 1.0,
    num_random: int = 10,
    num_policy: int = 10,
    noise: float = 0.2,
    noise_clip: float = 0.5,
) -> OfflineMARLLoss:
    """Build :class:`MACQLLoss`."""
    return MACQLLoss(
        parts.actor,
        parts.critic,
        learning=_conservative(min_q_weight, num_random, num_policy, noise, noise_clip),
        **parts.options,
    )


@builds(**DETERMINISTIC)
def make_omar(
    parts: Parts,
    *,
    rectification: float = 0.5,
    sampler: Literal["softmax", "cem", "random"] = "softmax",
    iterations: int = 3,
    samples: int = 10,
    min_q_weight: float = 1.0,
    num_random: int = 10,
    num_policy: int = 10,
    noise: float = 0.2,
    noise_clip: float = 0.5,
) -> OfflineMARLLoss:
    """Build :class:`OMARLoss`."""
    return OMARLoss(
        parts.actor,
        parts.critic,
        rectification=rectification,
        sampler=_sampler(sampler, iterations, samples),
        learning=_conservative(min_q_weight, num_random, num_policy, noise, noise_clip),
        **parts.options,
    )


@builds(decomposition="linear")
def make_icq(parts: Parts, *, beta: float = 1000.0, temperature: float = 10.0) -> OfflineMARLLoss:
    """Build :class:`MAICQLoss`."""
    return MAICQLoss(parts.actor, parts.critic, beta=beta, temperature=temperature, **parts.options)


@builds(decomposition="linear", hidden=(256, 256))
def make_omac(parts: Parts, *, expectile: float = 0.7, temperature: float = 3.0) -> OfflineMARLLoss:
    """Build :class:`OMACLoss`."""
    rules = {"expectile": expectile, "temperature": temperature}
    return OMACLoss(parts.actor, parts.critic, parts.value(), **rules, **parts.options)


@builds(decomposition="linear", hidden=(256, 256), num_heads=1)
def make_omiga(parts: Parts, *, alpha: float = 10.0) -> OfflineMARLLoss:
    """Build :class:`OMIGALoss`."""
    return OMIGALoss(parts.actor, parts.critic, parts.value(), alpha=alpha, **parts.options)


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


def _sampler(name: str, iterations: int, samples: int) -> ActionSampler:
    samplers = {"softmax": SoftmaxSampler, "cem": CEMSampler, "random": RandomSampler}
    if name not in samplers:
        raise ValueError(f"sampler must be one of {', '.join(samplers)}; got {name!r}.")
    return samplers[name](iterations=iterations, samples=samples)
