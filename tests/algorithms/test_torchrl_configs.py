"""Our algorithms and loss beside TorchRL's own in its Hydra configurations."""

from __future__ import annotations

import warnings

import hydra
import pytest
import torch
import torchrl.objectives
from hydra.core.config_store import ConfigStore
from objective_toys import CONTINUOUS, make_batch

from torchrl_marl_offline import SARSA, Algorithm, make_loss
from torchrl_marl_offline.algorithms import ALGORITHMS, settings_of
from torchrl_marl_offline.algorithms.algorithm import make_algorithm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchrl.trainers.algorithms.configs

SPEC = {"n_agents": 3, "observation_size": 4, "state_size": 6, "action_size": 2}


def composed(*overrides: str):
    with hydra.initialize(version_base=None):
        return hydra.compose(overrides=list(overrides))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_a_configuration_with_its_defaults(name):
    settings = ["algorithm.max_next_value=3.0"] if name == "b3c" else []
    found = hydra.utils.instantiate(composed(f"+algorithm={name}", *settings).algorithm)
    expected = make_algorithm(name, **({"max_next_value": 3.0} if settings else {}))
    assert isinstance(found, Algorithm) and type(found) is type(expected)
    for key in settings_of(name):
        ours, theirs = getattr(found, key), getattr(expected, key)
        assert (list(ours) if isinstance(theirs, tuple) else ours) == (
            list(theirs) if isinstance(theirs, tuple) else theirs
        )


def test_a_loss_by_its_name_is_the_one_of_make_loss():
    words = ["+loss=marl_omar", "loss.rectification=0.7", "loss.hidden=[8]"]
    config = composed(*words)
    config.loss.spec = SPEC
    torch.manual_seed(0)
    found = hydra.utils.instantiate(config.loss)
    torch.manual_seed(0)
    expected = make_loss(CONTINUOUS, algorithm="omar", rectification=0.7, hidden=(8,))
    batch = make_batch(CONTINUOUS, 6)
    for loss in (found, expected):
        torch.manual_seed(1)
        torchrl.objectives.SoftUpdate(loss, tau=0.1)
    torch.manual_seed(2)
    ours = found(batch.clone())
    torch.manual_seed(2)
    theirs = expected(batch.clone())
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs.keys())  # noqa: SIM118


def test_a_loss_is_composed_of_networks_and_rules_that_are_named():
    config = composed("+loss=offline_marl", "loss.gamma=0.5", "loss.value_learning._target_=torchrl_marl_offline.SARSA")
    network = {"spec": {"_target_": "torchrl_marl_offline.TaskSpec"} | SPEC, "hidden": [8]}
    config.loss.actor = {"_target_": "torchrl_marl_offline.make_actor"} | network
    config.loss.critic = {"_target_": "torchrl_marl_offline.make_critic", "decomposition": "vdn"} | network
    loss = hydra.utils.instantiate(config.loss, _convert_="all")
    assert loss.value_learning == SARSA() and loss.is_team and float(loss.value_estimator.gamma) == 0.5


def test_torchrls_own_losses_are_still_there():
    assert {"sac.yaml", "iql.yaml", "marl_recipe.yaml"} <= set(ConfigStore.instance().repo["loss"])
