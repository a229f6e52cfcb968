"""The algorithms and the loss in TorchRL's Hydra configurations, ``torchrl.trainers.algorithms.configs``.

Once those are imported, ``+algorithm=recipe`` and ``+loss=marl_recipe`` (the same with networks, for a task) are known
to Hydra beside TorchRL's own groups, each setting with its default::

    defaults: [loss@loss: marl_omar, _self_]
    loss: {rectification: 0.7, spec: {n_agents: 3, observation_size: 18, state_size: 54, action_size: 2}}

and ``hydra.utils.instantiate(config.loss)`` returns the loss. ``+loss=offline_marl`` composes
:class:`~torchrl_marl_offline.OfflineMARLLoss` of networks and rules that the configuration names by ``_target_``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchrl_marl_offline.algorithms.algorithm import ALGORITHMS, make_loss, settings_of
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss

_HERE = __name__
_MISSING = "???"


def register_with_hydra(_module: Any = None) -> None:
    """Enter every algorithm that is registered, and the loss, into Hydra's store."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for name in ALGORITHMS:
        settings = {key: _plain(value) for key, value in settings_of(name).items()}
        make = {"_target_": "torchrl_marl_offline.algorithms.make_algorithm", "name": name} | settings
        build = {
            "_target_": f"{_HERE}.loss_of_config",
            "_convert_": "all",
            "algorithm": name,
            "spec": _MISSING,
        } | settings
        store.store(group="algorithm", name=name, node=make | {"_convert_": "all"})
        store.store(group="loss", name=f"marl_{name}", node=build)
    networks = {"actor": None, "critic": None, "value": None, "behaviour": None, "mixer": None}
    rules = {
        "value_learning": {"_target_": "torchrl_marl_offline.IQL"},
        "extraction": {"_target_": "torchrl_marl_offline.AWR"},
        "behaviour_learning": None,
    }
    whole = {"_target_": f"{_HERE}.composed_of_config", "gamma": 0.99, "value_norm": None}
    store.store(group="loss", name="offline_marl", node=whole | networks | rules)


def loss_of_config(*, spec: TaskSpec | Mapping[str, Any], algorithm: str, **settings: Any) -> OfflineMARLLoss:
    """Build an algorithm's networks and loss from what a configuration holds."""
    return make_loss(spec if isinstance(spec, TaskSpec) else TaskSpec(**spec), algorithm=algorithm, **settings)


def composed_of_config(*, actor: Any, critic: Any, gamma: float, **parts: Any) -> OfflineMARLLoss:
    """Compose a loss from the networks and rules that a configuration made."""
    return OfflineMARLLoss(actor, critic, **parts).make_value_estimator(gamma=gamma)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
