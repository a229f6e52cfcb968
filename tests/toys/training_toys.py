"""The smallest loss, buffer and environments that exercise the training loop, for the tests and their processes."""

from __future__ import annotations

import random

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    LazyTensorStorage,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule
from trainers import trainer_for

from torchrl_marl_offline.training import Trainer


class RegressionLoss(LossModule):
    """Regress a network on a target, with a target network and noise from all three global generators.

    Every number of a step depends on the weights, the targets, the batch and the random states, so that a resume which
    forgets any of them gives other weights.
    """

    value_network: TensorDictModule
    value_network_params: nn.Module
    target_value_network_params: nn.Module

    def __init__(self, *, poison_at: int | None = None, host_noise: bool = True) -> None:
        super().__init__()
        network = TensorDictModule(
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), in_keys=["x"], out_keys=["value"]
        )
        self.convert_to_functional(network, "value_network", create_target_params=True)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self._poison_at, self.host_noise = poison_at, host_noise
        self.in_keys, self.out_keys = ["x", "y"], ["loss_value", "value_abs"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.calls += 1
        with self.value_network_params.to_module(self.value_network):
            value = self.value_network(tensordict.select("x"))["value"]
        with torch.no_grad(), self.target_value_network_params.to_module(self.value_network):
            target = self.value_network(tensordict.select("x"))["value"]
        noise = torch.randn_like(target)
        if self.host_noise:
            noise = noise + random.random() + np.random.rand()
        error = (value - 0.5 * target - tensordict["y"] - 0.1 * noise).square().mean()
        if self._poison_at is not None:
            error = error * torch.where(self.calls == self._poison_at, float("nan"), 1.0)
        return TensorDict({"loss_value": error, "value_abs": value.detach().abs().mean()})


def make_buffer(*, generator: bool = True, without_replacement: bool = False) -> TensorDictReplayBuffer:
    data = torch.Generator().manual_seed(5)
    x = torch.randn(64, 4, generator=data)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(64),
        sampler=SamplerWithoutReplacement() if without_replacement else None,
        batch_size=10,
        generator=torch.Generator().manual_seed(3) if generator else None,
    )
    buffer.extend(TensorDict({"x": x, "y": x.sum(-1, keepdim=True)}, [64]))
    return buffer


def make_trainer(output=None, *, seed: int = 0, poison_at=None, host_noise=True, buffer=None, **options) -> Trainer:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    loss = RegressionLoss(poison_at=poison_at, host_noise=host_noise)
    written = {} if output is None else {"checkpoint_every": 5}
    options = {"steps": 60, "lr": 1e-2, "log_every": 7, "progress": False} | written | options
    return trainer_for(loss, make_buffer() if buffer is None else buffer, output=output, **options)


def weights(trainer: Trainer) -> torch.Tensor:
    """All weights, targets and Adam moments as one vector."""
    tensors = [value for value in trainer.loss.state_dict().values() if isinstance(value, torch.Tensor)]
    state = trainer.learner.optimizer.state_dict()["state"]
    tensors += [value for moments in state.values() for value in moments.values()]
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


class CountdownEnv(EnvBase):
    """Slot ``i`` plays episodes of lengths ``lengths[i][0], lengths[i][1], ...`` (cycled), so that every return is
    known by hand.

    Two agents; at each step agent 0 gets ``slot + 1`` and agent 1 three times that, so the team gets ``2 (slot + 1)``:
    an episode of length L in slot i returns ``2 L (i + 1)``. Success: reached at the first step of episodes longer than
    2. Action 1 is always illegal. With ``noisy`` the reward has noise from the environment's own generator added.
    """

    def __init__(self, lengths: list[list[int]], *, masked: bool = True, success: bool = True, noisy: bool = False):
        self.plan, self.masked, self.has_success, self.noisy = lengths, masked, success, noisy
        slots = len(lengths)
        super().__init__(batch_size=torch.Size([slots]), device="cpu")
        agents = {"observation": Unbounded((slots, 2, 3))}
        if masked:
            agents["action_mask"] = Binary(3, (slots, 2, 3), dtype=torch.bool)
        observation = {"agents": Composite(agents, shape=(slots, 2))}
        if success:
            observation["success"] = Binary(1, (slots, 1), dtype=torch.bool)
        self.observation_spec = Composite(observation, shape=(slots,))
        self.action_spec = Composite(
            {"agents": Composite({"action": Categorical(3, (slots, 2))}, shape=(slots, 2))}, shape=(slots,)
        )
        self.reward_spec = Composite(
            {"agents": Composite({"reward": Unbounded((slots, 2, 1))}, shape=(slots, 2))}, shape=(slots,)
        )
        self.max_episode_steps = max(max(row) for row in lengths)
        self.reference_returns = (0.0, 10.0)
        self.generator = torch.Generator()
        self.seeds: list[int] = []

    def _set_seed(self, seed: int | None) -> None:
        self.seeds.append(seed)
        self.generator.manual_seed(seed)
        slots = self.batch_size[0]
        self.episode, self.clock = torch.full((slots,), -1), torch.zeros(slots, dtype=torch.int64)

    def _observe(self, success: torch.Tensor) -> TensorDict:
        slots = self.batch_size[0]
        agents = {"observation": torch.zeros(slots, 2, 3)}
        if self.masked:
            agents["action_mask"] = torch.tensor([True, False, True]).expand(slots, 2, 3).clone()
        result = TensorDict({"agents": TensorDict(agents, [slots, 2])}, [slots])
        if self.has_success:
            result["success"] = success.unsqueeze(-1)
        return result

    def _reset(self, tensordict: TensorDictBase | None = None, **_) -> TensorDict:
        slots = self.batch_size[0]
        reset = torch.ones(slots, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict.keys():  # noqa: SIM118
            reset = tensordict["_reset"].flatten()
        self.episode, self.clock = self.episode + reset.long(), self.clock.masked_fill(reset, 0)
        return self._observe(torch.zeros(slots, dtype=torch.bool))

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        slots = self.batch_size[0]
        self.clock = self.clock + 1
        length = torch.tensor([row[int(e) % len(row)] for row, e in zip(self.plan, self.episode)])
        base = torch.arange(1.0, slots + 1)
        if self.noisy:
            base = base + torch.randn(slots, generator=self.generator)
        result = self._observe((self.clock == 1) & (length > 2))
        result["agents", "reward"] = torch.stack([base, 3 * base], -1).unsqueeze(-1)
        done = (self.clock >= length).unsqueeze(-1)
        return result.update({"done": done, "terminated": done})


class ContinuousEnv(EnvBase):
    """One step, one agent; the reward is the action: the return shows which action was executed."""

    def __init__(self, slots: int = 4):
        super().__init__(batch_size=torch.Size([slots]), device="cpu")
        self.observation_spec = Composite(
            {"agents": Composite({"observation": Unbounded((slots, 1, 1))}, shape=(slots, 1))}, shape=(slots,)
        )
        self.action_spec = Composite(
            {"agents": Composite({"action": Bounded(-9.0, 9.0, (slots, 1, 1))}, shape=(slots, 1))}, shape=(slots,)
        )
        self.reward_spec = Composite(
            {"agents": Composite({"reward": Unbounded((slots, 1, 1))}, shape=(slots, 1))}, shape=(slots,)
        )

    def _set_seed(self, seed: int | None) -> None:
        torch.manual_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **_) -> TensorDict:
        slots = self.batch_size[0]
        return TensorDict({"agents": TensorDict({"observation": torch.zeros(slots, 1, 1)}, [slots, 1])}, [slots])

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        result = self._reset()
        done = torch.ones(*self.batch_size, 1, dtype=torch.bool)
        result["agents", "reward"] = tensordict["agents", "action"].clone()
        return result.update({"done": done, "terminated": done})
