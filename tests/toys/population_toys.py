"""Small datasets, members and populations, for the tests of populations and their processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from trainers import trainer_for
from training_toys import CountdownEnv

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.functional_parameters import tensors_of
from torchrl_marl_offline.data import OfflineDataset, from_arrays
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.training import PopulationBuffer, Trainer
from torchrl_marl_offline.training.populations.population import PopulationGradients

SEEDS = (4, 9, 2, 7)
SETTINGS = (
    {"temperature": 1.0, "alpha": 0.5, "expectile": 0.7, "gamma": 0.9},
    {"temperature": 3.0, "alpha": 0.1, "expectile": 0.9, "gamma": 0.99},
    {"temperature": 0.3, "alpha": 2.0, "expectile": 0.5, "gamma": 0.5},
    {"temperature": 7.0, "alpha": 1.0, "expectile": 0.6, "gamma": 0.8},
)
RATES = (3e-4, 1e-3, 5e-4, 2e-3)
OF_RULE = {"awr": "temperature", "brac": "alpha", "iql": "expectile"}


def make_data(*, discrete: bool = False, episodes: int = 12, length: int = 7, dtype=torch.float32) -> OfflineDataset:
    """Two agents; every third episode terminates, the rest are cut off, whose last rows do not count."""
    g = torch.Generator().manual_seed(11)
    rows, ends = episodes * length, torch.zeros(episodes * length, dtype=torch.bool)
    ends[length - 1 :: length] = True
    terminal = ends & (torch.arange(rows) // length % 3 == 0)
    observations = torch.randn(rows, 2, 3, generator=g)
    if discrete:
        mask = torch.rand(rows, 2, 3, generator=g) < 0.6
        mask[..., 2] = True
        actions = (torch.rand(rows, 2, 3, generator=g) * mask).argmax(-1)
        options: dict[str, Any] = {"action_mask": mask, "n_actions": 3}
    else:
        actions, options = torch.rand(rows, 2, 2, generator=g) * 1.6 - 0.8, {}
    rewards = torch.randn(rows, 2, generator=g) + observations.sum(-1)
    dataset = from_arrays(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminals=terminal,
        truncations=ends & ~terminal,
        state=torch.randn(rows, 4, generator=g),
        **options,
    )
    if dtype != torch.float32:
        dataset.data = dataset.data.apply(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf)
    return dataset


def member_settings(member: int, rules: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {"gamma"} if "algorithm" not in rules else set()
    wanted |= {OF_RULE[rule] for rule in rules.values() if rule in OF_RULE}
    return {name: value for name, value in SETTINGS[member].items() if name in wanted}


def make_member(data: OfflineDataset, member: int, **rules: Any):
    torch.manual_seed(SEEDS[member])
    dtype = data.data["agents", "observation"].dtype
    loss = make_loss(data.spec, **{"hidden": (8,)} | member_settings(member, rules) | rules)
    return loss.to(dtype)


def make_population(
    data: OfflineDataset,
    members: Sequence[int],
    output=None,
    *,
    rules=None,
    rates=RATES,
    slice_len=None,
    burn_in=None,
    **options,
) -> Trainer:
    losses = {f"m{member}": make_member(data, member, **(rules or {})) for member in members}
    slices = {"slice_len": slice_len, "burn_in": burn_in}
    buffer = PopulationBuffer(data.data, batch_size=12, seeds=[SEEDS[m] for m in members], **slices)
    options = {"steps": 20, "log_every": 7, "progress": False, "tau": 0.05} | options
    return trainer_for(losses, buffer, lr=[rates[member] for member in members], output=output, **options)


def eager_and_traced(make: Callable[[], Trainer]) -> list[Trainer]:
    """Return two trained populations: one as it stands, one whose operations were traced and run one by one."""
    trainers = []
    for compiled in (False, True):
        trainer = make()
        generators = trainer.buffer.noise_generators
        trainer.learner.gradients = PopulationGradients(
            trainer.learner.population, compiled=compiled, backend=None, generators=generators
        )
        trainer.train()
        trainers.append(trainer)
    return trainers


def make_alone(
    data: OfflineDataset,
    member: int,
    output=None,
    *,
    rules=None,
    rates=RATES,
    slice_len=None,
    burn_in=None,
    **options,
) -> Trainer:
    loss = make_member(data, member, **(rules or {}))
    slices = {"slice_len": slice_len, "burn_in": burn_in}
    buffer = make_replay_buffer(data.data, batch_size=12, seed=SEEDS[member], **slices)
    options = {"steps": 20, "log_every": 7, "progress": False, "tau": 0.05} | options
    torch.manual_seed(SEEDS[member])  # of the noise
    return trainer_for(loss, buffer, lr=rates[member], output=output, **options)


def member_tensors(trainer: Trainer, member: int) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.learner.population.member_tensors(f"m{member}").items()}


def lone_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors_of(trainer.loss).items()}


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def everything(trainer: Trainer) -> torch.Tensor:
    """All tensors, moments, counters and generators of a population as one vector."""
    states = trainer.buffer.generators + trainer.buffer.noise_generators
    tensors = [*trainer.learner.population.tensors().values(), *(generator.get_state() for generator in states)]
    for part in trainer.learner.optimizer.state_dict().values():
        tensors += list(part.values()) if isinstance(part, dict) else [part]
    return torch.cat([tensor.detach().double().flatten() for tensor in [*tensors, trainer.learner.active]])


class SlotEnv(CountdownEnv):
    """Every slot plays the same episodes, and an agent is rewarded by the index of its action.

    A policy's return does not depend on the slots that it plays in, so that a population's evaluation can be compared
    with one of each member alone. The observation counts the steps.
    """

    def __init__(self, slots: int) -> None:
        super().__init__([[3, 5]] * slots, success=False)

    def _observe(self, success: torch.Tensor) -> TensorDict:
        result = super()._observe(success)
        clock = self.clock.float().reshape(-1, 1, 1).expand(-1, 2, 3) / 3
        agents = torch.tensor([1.0, -1.0]).reshape(1, 2, 1)
        result["agents", "observation"] = clock * agents + torch.tensor([0.3, -0.5, 0.9])
        return result.set("state", torch.zeros(*self.batch_size, 4))

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        result = super()._step(tensordict)
        return result.set(("agents", "reward"), tensordict["agents", "action"].float().unsqueeze(-1))
