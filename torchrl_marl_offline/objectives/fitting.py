"""Do the networks and the rules of a loss fit together? Everything that can be known before the first batch."""

from __future__ import annotations

import math
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictParams
from torch import Tensor, nn
from torchrl.modules.value_norm import ValueNorm

from torchrl_marl_offline.modules.distributions import OneStepCategorical, no_samples_density
from torchrl_marl_offline.objectives.action_distributions import no_density
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.behaviour_learning import BehaviourLearning
from torchrl_marl_offline.objectives.extraction import PolicyExtraction
from torchrl_marl_offline.objectives.first_batch import is_readable
from torchrl_marl_offline.objectives.team import distribution_without_density, is_deterministic_actor
from torchrl_marl_offline.objectives.value_learning import ValueLearning

Rule = ValueLearning | PolicyExtraction | BehaviourLearning

OF_CRITIC = ("qvalue", "qvalue_abs", "td_target", "td_error_abs", "value_norm_scale", "state_value", "td_error")
"""Metrics of every loss with a critic."""


def check_networks(
    loss: str,
    actor: TensorDictModuleBase | None,
    critic: Any,
    value: TensorDictModuleBase | None,
    behaviour: TensorDictModuleBase | None,
    *,
    learning: ValueLearning | None,
    extraction: PolicyExtraction | None,
    behaviour_learning: BehaviourLearning | None,
    value_norm: ValueNorm | None,
) -> None:
    """Refuse networks that a rule lacks, or that nothing would train.

    Raises:
        ValueError: the message says what to pass or to leave out.
    """
    if learning is None and extraction is None and behaviour_learning is None:
        raise ValueError(f"{loss} has nothing to train: pass value_learning=, extraction=, or both.")
    for word, given, kind, example in (
        ("value_learning", learning, ValueLearning, "IQL()"),
        ("extraction", extraction, PolicyExtraction, "AWR()"),
        ("behaviour_learning", behaviour_learning, BehaviourLearning, "FlowMatching()"),
    ):
        if given is not None and not isinstance(given, kind):
            shown = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
            raise TypeError(f"{word} must be a {kind.__name__}, such as {example}, or None; got {shown}.")
    if value_norm is not None and not isinstance(value_norm, ValueNorm):
        raise TypeError(
            "value_norm must be a ValueNorm, such as ScaleInvariantValueNorm(), or None; got a "
            f"{type(value_norm).__name__}."
        )
    critics = critic if isinstance(critic, (list, tuple)) else [critic]
    for word, networks in (("actor", [actor]), ("critic", critics), ("value", [value]), ("behaviour", [behaviour])):
        for network in networks:
            if network is not None and not isinstance(network, TensorDictModuleBase):
                raise TypeError(
                    f"{word} must be a TensorDictModule, which says what it reads and writes; got a "
                    f"{type(network).__name__}."
                )
    if isinstance(critic, Sequence) and not critic:
        raise ValueError("critic is an empty list; pass one critic, or several as an ensemble.")
    rule = extraction if extraction is not None else learning
    if actor is None and (extraction is not None or (learning is not None and learning.needs_actor)):
        raise ValueError(f"{type(rule).__name__} needs an actor; pass one, for instance from make_actor(spec).")
    for rule in (extraction, learning):
        if rule is not None and rule.needs_log_prob and actor is not None:
            if is_deterministic_actor(actor):
                raise ValueError(no_density(type(rule).__name__))
            if (kind := distribution_without_density(actor)) is not None:
                raise ValueError(f"{type(rule).__name__} needs log-probabilities. {no_samples_density(kind)}")
    if extraction is not None and extraction.needs_discrete_log_prob:
        kind = distribution_without_density(actor)
        if kind is not None and issubclass(kind, OneStepCategorical):
            raise ValueError(f"{type(extraction).__name__} needs log-probabilities. {no_samples_density(kind)}")
    if critic is None and (learning is not None or (extraction is not None and extraction.needs_critic)):
        rule = learning if learning is not None else extraction
        raise ValueError(f"{type(rule).__name__} needs a critic; pass one, for instance from make_critic(spec).")
    if learning is not None and learning.needs_value and value is None:
        raise ValueError(
            f"{type(learning).__name__} needs a state-value network; pass value=make_value(spec, decomposition=...)."
        )
    if learning is not None and not learning.needs_value and value is not None:
        raise ValueError(f"{type(learning).__name__} would never train the value network; leave value= out.")
    if behaviour is not None and behaviour_learning is None:
        raise ValueError(f"{loss} would never train its behaviour model; pass behaviour_learning=.")
    for rule in (behaviour_learning, learning, extraction):
        asked = rule is not None and (rule is behaviour_learning or rule.needs_behaviour)
        if behaviour is None and asked:
            raise ValueError(f"{type(rule).__name__} needs a model of the data's actions; pass behaviour=.")
        if asked and rule is not extraction:
            rule.check_behaviour(behaviour)


def check_ensemble(critics: Sequence[nn.Module]) -> None:
    """Refuse a list of critics that cannot be computed side by side.

    Raises:
        ValueError: it names the first difference between two.
    """
    if len(critics) == 1:
        return
    first, *others = map(_structure, critics)
    for number, other in enumerate(others, start=2):
        for name in dict.fromkeys([*first, *other]):
            here, there = first.get(name, "not there"), other.get(name, "not there")
            if here != there:
                raise ValueError(
                    f"The critics of a list must be alike: {name} is {here} in the first and {there} in number "
                    f"{number}; build all of them with the same options."
                )


_PLAIN = (bool, int, float, str, types.FunctionType, types.BuiltinFunctionType)


def _structure(network: nn.Module) -> dict[str, str]:
    """Return what the networks of an ensemble have in common, in words by name: classes and options before tensors."""
    modules = {name: each for name, each in network.named_modules() if not isinstance(each, TensorDictParams)}
    classes = {f"the class of {name or 'the critic'}": type(each).__name__ for name, each in modules.items()}
    keys = {name: str(getattr(network, name, None)) for name in ("in_keys", "out_keys")}
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    plain = {
        f"{path}.{name}".lstrip("."): getattr(value, "__qualname__", repr(value))
        for path, each in modules.items()
        for name, value in vars(each).items()
        if name != "training" and not name.startswith("_") and isinstance(value, _PLAIN)
    }
    return keys | classes | plain | {name: f"{list(each.shape)} of {each.dtype}" for name, each in tensors.items()}


def check_metrics(rules: Sequence[Rule | None]) -> None:
    """Refuse names of metrics that would be taken for losses, or for other metrics.

    Raises:
        ValueError: it names the rule and the metric.
    """
    taken = dict.fromkeys(OF_CRITIC, "the critic")
    for rule in rules:
        if rule is None:
            continue
        name = type(rule).__name__
        if not isinstance(rule.metrics, tuple) or not all(isinstance(metric, str) for metric in rule.metrics):
            raise ValueError(f"{name}.metrics must be a tuple of names, such as ('log_prob',); it is {rule.metrics!r}.")
        if isinstance(rule, ValueLearning) and set(rule.metrics) - {"critic_penalty"}:
            raise ValueError(
                f"{name} declares the metrics {list(rule.metrics)}; a value-learning rule has no other than "
                "'critic_penalty'."
            )
        for metric in rule.metrics:
            if metric.startswith("loss"):
                raise ValueError(
                    f"{name} declares the metric {metric!r}; names that start with 'loss' are summed to what is "
                    "trained, so give it another."
                )
            if metric in taken:
                raise ValueError(
                    f"{name} declares the metric {metric!r}, which is that of {taken[metric]}, too; give it another "
                    "name."
                )
            taken[metric] = name


def check_tensor(rule: Rule, method: str, found: Any) -> None:
    """Refuse what a rule's method returned if it is no tensor.

    Raises:
        TypeError: the message names the rule.
    """
    if not isinstance(found, Tensor):
        raise TypeError(f"{method} of {type(rule).__name__} must return a tensor; got {type(found).__name__}.")


def check_elements(rule: Rule, method: str, elements: Any, batch: Batch) -> Tensor:
    """Return what a rule's method returned if it has one entry for each agent ``[*B, n]``, or for the team ``[*B, 1]``.

    Raises:
        TypeError: it is no tensor.
        ValueError: it has another shape; the message names the rule.
    """
    check_tensor(rule, method, elements)
    size, agents = tuple(batch.tensordict.batch_size), batch.action.shape[batch.tensordict.ndim]
    if elements.shape not in ((*size, agents), (*size, 1)):
        raise ValueError(
            f"{method} of {type(rule).__name__} must return {[*size, agents]}, [*B, n], or {[*size, 1]} for the team; "
            f"got {list(elements.shape)}."
        )
    return elements


def check_pair(rule: Rule, found: Any) -> tuple[Any, Mapping[str, Tensor]]:
    """Return the loss and the metrics that a rule's ``element_loss`` returned.

    Raises:
        TypeError: it is no such pair.
        ValueError: a metric is not one number.
    """
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        shown = "a single tensor" if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(
            f"element_loss of {type(rule).__name__} must return its loss [*B, n] and a dict of metrics, which may be "
            f"empty; got {shown}."
        )
    for name, metric in found[1].items():
        if not isinstance(metric, Tensor) or metric.numel() != 1:
            shown = list(metric.shape) if isinstance(metric, Tensor) else type(metric).__name__
            raise ValueError(
                f"The metric {name!r} of {type(rule).__name__} must be one number, such as batch.mean(x); got {shown}."
            )
    return found


def check_has_gradient(rule: Rule, elements: Tensor, network: nn.Module | None) -> None:
    """Refuse what a rule returned where no gradient reaches the network that it is to train.

    Raises:
        ValueError: it names the rule.
    """
    if elements.requires_grad or not torch.is_grad_enabled() or network is None:
        return
    if not is_readable(elements):  # within torch.vmap, a tensor says nothing of its gradient
        return
    if any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"element_loss of {type(rule).__name__} returns numbers without a gradient, so that nothing would be "
            "trained; leave out detach() or no_grad() on the way from the policy, or from the model of the data."
        )


def check_row_mask(rule: ValueLearning, mask: Any, batch: Batch) -> Tensor | None:
    """Return a rule's mask of rows if it is one.

    Raises:
        TypeError: it is no tensor of bools, or of another shape.
    """
    size = batch.tensordict.batch_size
    if mask is None or (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == size):
        return mask
    shown = f"{list(mask.shape)} of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
    raise TypeError(f"row_mask of {type(rule).__name__} must return bools {list(size)}, [*B], or None; got {shown}.")


def check_coefficients(rule: Rule, found: Any) -> Mapping[str, float]:
    """Return a rule's coefficients if they are numbers by name.

    Raises:
        ValueError: they are not; the message names the rule.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"coefficients of {type(rule).__name__} must return a dict; got {type(found).__name__}.")
    for name, number in found.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
            raise ValueError(f"The coefficient {name!r} of {type(rule).__name__} must be a number; got {number!r}.")
    return found


def check_returned(rule: Rule, found: Collection[str]) -> None:
    """Refuse metrics of a rule that are not those that it declares: ``out_keys`` are made of these.

    Raises:
        ValueError: it names the rule and the metric.
    """
    declared = rule.metrics
    if len(found) == len(declared) and all(name in found for name in declared):
        return
    if missing := [name for name in declared if name not in found]:
        raise ValueError(f"{type(rule).__name__} declares the metric {missing[0]!r}, and does not return it.")
    unknown = next(name for name in found if name not in declared)
    raise ValueError(f"{type(rule).__name__} returns {unknown!r}, which is not among its metrics; declare it.")
