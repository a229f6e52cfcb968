"""Small recordings and a toy environment whose every value is known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_marl_offline.data import OfflineDataset, TaskSpec, from_arrays


def recording(name: str) -> Path:
    """Return the path of a recording, or skip."""
    folder = os.environ.get("TORCHRL_MARL_OFFLINE_DATA")
    if not folder:
        pytest.skip("TORCHRL_MARL_OFFLINE_DATA, the folder of the recordings, is not set")
    return Path(folder) / "pymarl" / name


def episodes(lengths: list[int], *, terminated: bool = True, n: int = 2) -> OfflineDataset:
    """Episode e, time t: observation (e, t), continuous action t % 100 / 100, reward 1 of each agent."""
    pairs = torch.tensor([(e, t) for e, length in enumerate(lengths) for t in range(length)], dtype=torch.float32)
    ends = torch.zeros(len(pairs), dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    observation = pairs.unsqueeze(1).repeat(1, n, 1)
    following = observation + torch.tensor([0.0, 1.0])
    return from_arrays(
        observations=observation,
        next_observations=following,
        actions=observation[..., 1:] % 100 / 100,
        rewards=torch.ones(len(pairs), n),
        terminals=ends & terminated,
        truncations=ends & (not terminated),
    )


def pymarl_episode_arrays(
    lengths: list[int], *, longest: int, n: int = 2, n_actions: int = 3, terminated: list[bool] | None = None
) -> dict:
    """Padded PyMARL arrays; observation (e, t), state (e, t, 7), action (e + t) % 3, reward t + 1, all legal."""
    e_count, steps = len(lengths), longest + 1
    arrays = {
        "obs": torch.full((e_count, steps, n, 2), -1.0),
        "state": torch.full((e_count, steps, 3), -1.0),
        "actions": torch.zeros(e_count, steps, n, 1, dtype=torch.int64),
        "avail_actions": torch.zeros(e_count, steps, n, n_actions, dtype=torch.int32),
        "reward": torch.zeros(e_count, steps, 1),
        "terminated": torch.zeros(e_count, steps, 1, dtype=torch.uint8),
        "filled": torch.zeros(e_count, steps, 1, dtype=torch.int64),
    }
    for e, length in enumerate(lengths):
        for t in range(length + 1):
            arrays["obs"][e, t] = torch.tensor([float(e), float(t)])
            arrays["state"][e, t] = torch.tensor([float(e), float(t), 7.0])
            arrays["actions"][e, t] = (e + t) % n_actions
            arrays["avail_actions"][e, t] = 1
            arrays["filled"][e, t] = 1
            if t < length:
                arrays["reward"][e, t] = t + 1
        arrays["terminated"][e, length - 1] = int(terminated[e] if terminated else True)
    return {name: values.numpy() for name, values in arrays.items()}


def write_h5(path: Path, arrays: dict) -> Path:
    """Write arrays as an HDF5 file."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


class CountingEnv(EnvBase):
    """Each episode lasts 1 step (terminates, a success) or 9 (truncates), by a coin thrown at its reset.

    The observation of both agents is (serial number of the slot's episode, time). Agent 1 may never take action 0.
    """

    max_episode_steps = 9

    def __init__(self, num_envs: int = 3, *, truncates: bool = True) -> None:
        super().__init__(device="cpu", batch_size=[num_envs])
        self.truncates = truncates
        self.task_spec = TaskSpec(2, 2, 3, 3, discrete=True, has_action_mask=True, task="toys/counting")
        shape = (num_envs,)
        self.observation_spec = Composite(
            {
                "agents": Composite(
                    {
                        "observation": Unbounded((*shape, 2, 2)),
                        "action_mask": Binary(3, shape=(*shape, 2, 3), dtype=torch.bool),
                    },
                    shape=shape,
                ),
                "state": Unbounded((*shape, 3)),
                "success": Binary(1, shape=(*shape, 1), dtype=torch.bool),
            },
            shape=shape,
        )
        action = Composite({"action": Categorical(3, shape=(*shape, 2))}, shape=shape)
        self.action_spec = Composite({"agents": action}, shape=shape)
        reward = Composite({"reward": Bounded(0, 1, (*shape, 2, 1))}, shape=shape)
        self.reward_spec = Composite({"agents": reward}, shape=shape)
        flag = Binary(1, shape=(*shape, 1), dtype=torch.bool)
        self.done_spec = Composite({"done": flag, "terminated": flag.clone(), "truncated": flag.clone()}, shape=shape)
        self.generator = torch.Generator()
        self._set_seed(0)

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(seed or 0)
        zeros = torch.zeros(self.batch_size, dtype=torch.int64)
        self.serial, self.time, self.length = zeros - 1, zeros.clone(), zeros.clone()

    def _view(self, success: torch.Tensor) -> TensorDict:
        pair = torch.stack([self.serial, self.time], -1).float()
        mask = torch.ones(*self.batch_size, 2, 3, dtype=torch.bool)
        mask[:, 1, 0] = False
        return TensorDict(
            {
                ("agents", "observation"): pair.unsqueeze(-2).repeat(1, 2, 1),
                ("agents", "action_mask"): mask,
                "state": torch.cat([pair, torch.full_like(pair[:, :1], 7.0)], -1),
                "success": success.unsqueeze(-1),
            },
            self.batch_size,
        )

    def _reset(self, tensordict: TensorDict | None = None, **kwargs) -> TensorDict:
        fresh = torch.ones(self.batch_size, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            fresh = tensordict["_reset"].reshape(self.batch_size)
        coin = torch.randint(0, 2, self.batch_size, generator=self.generator)
        self.length = torch.where(fresh, 1 + 8 * coin, self.length)
        self.serial = torch.where(fresh, self.serial + 1, self.serial)
        self.time = torch.where(fresh, 0, self.time)
        return self._view(torch.zeros(self.batch_size, dtype=torch.bool))

    def _step(self, tensordict: TensorDict) -> TensorDict:
        self.time = self.time + 1
        short = (self.length == 1) & (self.time == 1)
        long = (self.length == 9) & (self.time >= 9) & self.truncates
        out = self._view(short)
        action = tensordict["agents", "action"]
        out["agents", "reward"] = (action == 2).float().unsqueeze(-1)
        out["terminated"], out["truncated"] = short.unsqueeze(-1), long.unsqueeze(-1)
        out["done"] = out["terminated"] | out["truncated"]
        return out
