"""An environment of TorchRL with groups of agents and boxes for actions."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import EnvBase


class Toy(EnvBase):
    """Two groups: "x" of two agents that end in their third step, "y" of one that ends in its fourth.

    Observations are the time, for "y" in a nest; rewards the action.
    """

    def __init__(self, actions, *, batch=(3,), done_at_root=False, root_reward=False, **options):
        super().__init__(batch_size=batch)
        self.done_at_root, self.root_reward = done_at_root, root_reward
        nest = Composite(far=Unbounded((*batch, 1, 2)), near=Unbounded((*batch, 1, 1, 1)), shape=(*batch, 1))
        self.observation_spec = Composite(
            x=Composite(observation=Unbounded((*batch, 2, 2)), shape=(*batch, 2)),
            y=Composite(observation=nest, mask=Binary(1, (*batch, 1), dtype=torch.bool), shape=(*batch, 1)),
            **options,
            shape=batch,
        )
        self.action_spec = Composite(
            {name: Composite(action=each, shape=each.shape[: len(batch) + 1]) for name, each in actions.items()},
            shape=batch,
        )
        rewards = {
            name: Composite(reward=Unbounded((*batch, n, 1)), shape=(*batch, n)) for name, n in (("x", 2), ("y", 1))
        }
        self.reward_spec = Composite({"reward": Unbounded((*batch, 1))} if root_reward else rewards, shape=batch)
        flags = {key: Binary(1, (*batch, 1), dtype=torch.bool) for key in ("done", "terminated")}
        groups = {
            name: Composite(
                {key: Binary(1, (*batch, n, 1), dtype=torch.bool) for key in ("done", "terminated")}, shape=(*batch, n)
            )
            for name, n in (("x", 2), ("y", 1))
        }
        self.done_spec = Composite(flags if done_at_root else groups, shape=batch)
        self.time = torch.zeros(batch)

    def _pack(self):
        time, batch = self.time, self.batch_size
        x = time.view(*batch, 1, 1).expand(*batch, 2, 2)
        data = {
            ("x", "observation"): x,
            ("y", "observation", "far"): x[..., :1, :] + 0.5,
            ("y", "observation", "near"): time.view(*batch, 1, 1, 1),
            ("y", "mask"): (time < 2).view(*batch, 1),
        }
        over = {"x": (time >= 3).view(*batch, 1, 1).expand(*batch, 2, 1), "y": (time >= 4).view(*batch, 1, 1)}
        for key in ("done", "terminated"):
            if self.done_at_root:
                data[key] = over["y"].reshape(*batch, 1).clone()
            else:
                data |= {(name, key): flag.clone() for name, flag in over.items()}
        return TensorDict({key: each.clone() for key, each in data.items()}, batch)

    def _reset(self, td=None, **kwargs):
        resets = (
            [] if td is None else [td.get(key) for key in (("x", "_reset"), "_reset") if td.get(key, None) is not None]
        )
        again = resets[0].flatten(len(self.batch_size)).any(-1) if resets else torch.ones_like(self.time).bool()
        self.time = torch.where(again, 0.0, self.time)
        return self._pack()

    def _step(self, td):
        self.time = self.time + 1
        out = self._pack()
        if self.root_reward:
            return out.set("reward", self.time.unsqueeze(-1))
        for name, n in (("x", 2), ("y", 1)):
            action = td[name, "action"].float().reshape(*self.batch_size, n, -1)
            out[name, "reward"] = (action * torch.arange(1, action.shape[-1] + 1)).sum(-1, keepdim=True)
        return out

    def _set_seed(self, seed):
        self.seeded = seed
