"""Do the networks and the rules of a loss fit together? Everything that can be known before the first batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.objectives.action_distributions import no_density
from torchrl_marl_offline.objectives.behaviour_learning import BehaviourLearning
from torchrl_marl_offline.objectives.extraction import PolicyExtraction
from torchrl_marl_offline.objectives.team import is_deterministic_actor
from torchrl_marl_offline.objectives.value_learning import ValueLearning

Rule = ValueLearning | PolicyExtraction | BehaviourLearning

OF_CRITIC = ("qvalue", "qvalue_abs", "td_target", "td_error_abs", "value_norm_scale", "state_value", "td_error")
"""Metrics of every loss with a critic."""


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


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
) -> None:
    """Refuse networks that a rule lacks, or that nothing would train.

    Raises:
        ValueError: the message says what to pass or to leave out.
    """
    if learning is None and extraction is None and behaviour_learning is None:
        raise ValueError(f"{loss} has nothing to train: pass value_learning=, extraction=, or both.")
    rule = extraction if extraction is not None else learning
    if actor is None and (extraction is not None or (learning is not None and learning.needs_actor)):
        raise ValueError(f"{type(rule).__name__} needs an actor; pass one, for instance from make_actor(spec).")
    if extraction is not None and extraction.needs_log_prob and is_deterministic_actor(actor):
        raise ValueError(no_density(type(extraction).__name__))
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
