"""Small data and policies whose diagnoses can be computed by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from objective_toys import CONTINUOUS, DISCRETE
from population_toys import make_data
from tensordict.nn import TensorDictModule
from torchrl.modules import Actor
from trainers import trainer_for

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.run_presets import preset_of
from torchrl_marl_offline.data import OfflineDataset, from_arrays
from torchrl_marl_offline.objectives import OfflineMARLLoss, PolicyExtraction
from torchrl_marl_offline.objectives.action_distributions import mode_of
from torchrl_marl_offline.objectives.batch import Batch

OBSERVATION, ACTION = ("agents", "observation"), ("agents", "action")


def data_for(*, discrete: bool, deaths: bool = False, episodes: int = 12, length: int = 7) -> OfflineDataset:
    """Episodes in the sizes of the toy losses; every third terminates, the others are cut off.

    With ``deaths`` the first agent is dead in the last three rows of each.
    """
    spec, g = DISCRETE if discrete else CONTINUOUS, torch.Generator().manual_seed(0)
    rows, n = episodes * length, spec.n_agents
    ends = torch.zeros(rows, dtype=torch.bool)
    ends[length - 1 :: length] = True
    terminal = ends & (torch.arange(rows) // length % 3 == 0)
    options: dict[str, Any] = {}
    if discrete:
        mask = torch.rand(rows, n, 4, generator=g) < 0.6
        mask[..., 1] = True
        actions = (torch.rand(rows, n, 4, generator=g) * mask).argmax(-1)
        options |= {"action_mask": mask, "n_actions": 4}
    else:
        actions = torch.rand(rows, n, 2, generator=g) * 1.6 - 0.8
    if deaths:
        options["agent_mask"] = torch.ones(rows, n, dtype=torch.bool)
        options["agent_mask"][torch.arange(rows) % length >= length - 3, 0] = False
    return from_arrays(
        observations=torch.randn(rows, n, spec.observation_size, generator=g),
        actions=actions,
        rewards=torch.randn(rows, n, generator=g),
        terminals=terminal,
        truncations=ends & ~terminal,
        state=torch.randn(rows, spec.state_size, generator=g),
        **options,
    )


def policy_data(episodes: int = 10, length: int = 20) -> OfflineDataset:
    """Two agents; an action is half of what its agent observes."""
    rows, g = episodes * length, torch.Generator().manual_seed(1)
    observations = torch.rand(rows, 2, 2, generator=g) * 1.6 - 0.8
    ends = torch.arange(rows) % length == length - 1
    return from_arrays(observations=observations, actions=observations / 2, rewards=torch.ones(rows, 2), terminals=ends)


class Halving(torch.nn.Module):
    """The policy of :func:`policy_data`, moved by ``shift``."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(shift))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation / 2 + self.shift


def halving_actor(shift: float) -> Actor:
    return Actor(TensorDictModule(Halving(shift), [OBSERVATION], [ACTION]), in_keys=[OBSERVATION], out_keys=[ACTION])


@dataclass(frozen=True)
class Imitation(PolicyExtraction):
    """The square of the distance to the recorded actions: for policies without a density."""

    needs_critic: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ()

    def element_loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (mode_of(batch.policy) - batch.action).square().mean(-1), {}


def imitating_loss(shift: float) -> OfflineMARLLoss:
    return OfflineMARLLoss(halving_actor(shift), None, value_learning=None, extraction=Imitation())


SETTINGS = {"hidden": (8,), "decomposition": "mixer"}


def config_of(**changes: Any) -> dict[str, Any]:
    """Return what a command leaves of its settings in a run's folder."""
    return {"algorithm": "recipe", "settings": SETTINGS, "preset": "quick", "dataset": None} | changes


def train_run(folder: Path, place: Path, *, steps: int = 30) -> Path:
    """Train as the command does on data that is saved in ``place``, and leave the settings."""
    data = make_data()
    data.save(place, overwrite=True)
    torch.manual_seed(0)
    loss = make_loss(data.spec, **preset_of("quick", "recipe") | SETTINGS)
    buffer = data.replay_buffer(batch_size=16, seed=0, keys=loss.in_keys)
    trainer_for(loss, buffer, steps=steps, output=folder, log_every=2, progress=False).train()
    (folder / "config.json").write_text(json.dumps(config_of(dataset=str(place))))
    return folder
