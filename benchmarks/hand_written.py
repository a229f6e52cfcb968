"""The recipe's step by hand: IQL + AWR + mixer + SVN in plain torch, to hold the library against.

No modules, no tensordicts, nothing general: tensors, functions, one fused Adam. It starts from the parameters of a
library loss, so that the two can be compared number by number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sizes import Size
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_marl_offline import OfflineMARLLoss
from torchrl_marl_offline.core.functional_parameters import tensors_of

EMBED = 32
Tensors = list[Tensor]


class HandWritten:
    """One run of the recipe with ``advantage="joint"``, standardized, two heads, all trained, mean team reward.

    Args:
        loss: where the parameters are copied from.
        size: of the task and the batch.
        gamma: discount.
        expectile: of implicit Q-learning.
        temperature: of the weights.
        lr: Adam's learning rate.
        tau: of the targets.
    """

    def __init__(
        self,
        loss: OfflineMARLLoss,
        size: Size,
        *,
        gamma: float,
        expectile: float,
        temperature: float,
        lr: float = 3e-4,
        tau: float = 0.005,
    ) -> None:
        self.size, self.gamma, self.expectile, self.temperature, self.tau = size, gamma, expectile, temperature, tau
        groups: dict[str, list[Tensor]] = {}
        for name, tensor in tensors_of(loss).items():
            if "_params." in name and ".cell." not in name:
                copied = tensor.detach().clone()
                groups.setdefault(name.split(".")[0], []).append(copied.requires_grad_(tensor.requires_grad))
        depth = len(size.hidden) + 1
        actor = groups["actor_network_params"]
        self.log_scale, self.actor = actor[0], (actor[1::2], actor[2::2], [], [])
        self.critic, self.target_critic, self.value = (
            _layers(groups[name], depth)
            for name in ("qvalue_network_params", "target_qvalue_network_params", "value_network_params")
        )
        self.mixer, self.target_mixer = groups["mixer_network_params"], groups["target_mixer_network_params"]
        groups |= self._take_memories(loss)
        trained = [t for group in groups.values() for t in group if t.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=lr, fused=True)
        asked = [name for name in groups if name.startswith("target_")]
        self.targets = [t.detach() for name in asked for t in groups[name]]
        self.sources = [t.detach() for name in asked for t in groups[name.removeprefix("target_")]]
        self.ids = torch.eye(size.spec.n_agents, device=trained[0].device).expand(size.batch_size, -1, -1)

    def _take_memories(self, loss: OfflineMARLLoss) -> dict[str, Tensors]:
        """Take what remembers, of which a loss of observations has none; returns its tensors by group."""
        return {}

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the critic's, the value's and the actor's loss."""
        n, rows = self.size.spec.n_agents, self.size.batch_size
        seen = torch.cat([batch["observation"], self.ids], -1).flatten(0, 1)
        done = torch.cat([batch["observation"], batch["action"], self.ids], -1).flatten(0, 1)
        after = torch.cat([batch["next_observation"], self.ids], -1).flatten(0, 1)
        q = _stack(done, *self.critic).view(2, rows, n).permute(1, 2, 0)
        v = _stack(seen, *self.value).view(rows, n, 1)
        with torch.no_grad():
            target_q = _stack(done, *self.target_critic).view(2, rows, n).permute(1, 2, 0)
            next_v = _stack(after, *self.value).view(rows, n, 1)
        mode = _plain(seen, *self.actor).view(rows, n, -1)
        return self._terms(batch, q, v, target_q, next_v, mode)

    def _terms(
        self, batch: dict[str, Tensor], q: Tensor, v: Tensor, target_q: Tensor, next_v: Tensor, mode: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three losses of local values ``[rows, n, heads]`` and of modes of policies ``[rows, n, a]``."""
        with torch.no_grad():
            next_total = self._mix(next_v, batch["next_state"], self.target_mixer)
            reward = batch["reward"].mean(-2)
            target = reward + self.gamma * (1 - batch["terminated"]) * next_total
        q_total = self._mix(q, batch["state"], self.mixer)
        mixed = self._mix(torch.cat([target_q, v], -1), batch["state"], self.target_mixer)
        minimum = q_total.detach().amin(-1)
        location = minimum.mean()
        deviation = (minimum - location).abs().mean() + 1e-6
        critic = (((q_total - location) / deviation - (target - location) / deviation) ** 2).sum(-1).mean()
        difference = mixed[:, :2].detach().amin(-1) - mixed[:, 2]
        value = (torch.where(difference > 0, self.expectile, 1 - self.expectile) * difference**2).mean()
        advantage = difference.detach()
        centred = advantage - advantage.mean()
        scaled = centred / (centred.square().mean().sqrt() + 1e-6)
        weight = (self.temperature * scaled).clamp(-50, 10).exp().clamp_max(100)
        scale = self.log_scale.clamp(-5, 2)
        log_prob = (-0.5 * ((batch["action"] - mode) / scale.exp()) ** 2 - scale - 0.9189385332046727).sum(-1)
        return critic, value, -(weight.unsqueeze(-1) * log_prob).mean()

    def step(self, batch: dict[str, Tensor]) -> None:
        """Make one update."""
        sum(self.losses(batch)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(self.targets, self.sources, self.tau)

    def _mix(self, values: Tensor, state: Tensor, mixer: list[Tensor]) -> Tensor:
        weight, bias, scale, shift, *last = mixer
        n, rows = self.size.spec.n_agents, len(state)
        hidden = torch.addmm(bias.squeeze(0), state, weight).view(rows, 4, -1)
        hidden = F.relu(
            torch.addcmul(shift.squeeze(1), F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6), scale.squeeze(1))
        )
        w1, b1, w2, b2 = (F.linear(hidden[:, i], last[2 * i], last[2 * i + 1]) for i in range(4))
        first = torch.bmm(values.transpose(1, 2), w1.abs().view(rows, n, EMBED)) + b1.unsqueeze(1)
        return (torch.bmm(F.elu(first), w2.abs().unsqueeze(-1)) + b2.unsqueeze(1)).squeeze(-1)


class HandWrittenRecurrent(HandWritten):
    """The same of histories, by a :class:`torch.nn.GRU` for each network and for the target critic.

    Rows are those of slices ``[S, T]`` of episodes within which none begins or ends. So the values of the next
    histories are those of the following rows, and one step more at a slice's end.

    Args:
        loss: as there, with ``memory="gru"``.
        size: as there; of the rows of all slices.
        slice_len: rows ``T`` of a slice.
        **settings: as there.
    """

    def __init__(self, loss: OfflineMARLLoss, size: Size, *, slice_len: int, **settings: float) -> None:
        self.slice_len = slice_len
        super().__init__(loss, size, **settings)

    def _take_memories(self, loss: OfflineMARLLoss) -> dict[str, Tensors]:
        found: dict[str, list[Tensor]] = {}
        for name, tensor in tensors_of(loss).items():
            if ".cell." in name:  # weight and bias of the input, then of the state
                found.setdefault(name.split("_network_params")[0], []).append(tensor)
        self.memories = {name: _gru(tensors) for name, tensors in found.items()}
        return {f"{name}_memory": list(gru.parameters()) for name, gru in self.memories.items()}

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the critic's, the value's and the actor's loss; rows are slice after slice."""
        n, rows, length = self.size.spec.n_agents, self.size.batch_size, self.slice_len
        seen = torch.cat([batch["observation"], self.ids], -1)
        after = torch.cat(
            [batch["next_observation"].view(rows // length, length, n, -1)[:, -1], self.ids[: rows // length]], -1
        )
        seen = seen.view(rows // length, length, n, -1).transpose(0, 1).flatten(1, 2)  # [T, S n, in]
        longer = torch.cat([seen, after.flatten(0, 1).unsqueeze(0)])
        ids, chosen = (self._over_time(x) for x in (self.ids, batch["action"]))
        after_ids = torch.cat([ids, ids[:1]])
        q = _stack(self._read("qvalue", seen, chosen, ids), *self.critic)
        v = _stack(self._read("value", longer, after_ids), *self.value)
        mode = _plain(self._read("actor", seen, ids), *self.actor)
        with torch.no_grad():
            target_q = _stack(self._read("target_qvalue", seen, chosen, ids), *self.target_critic)
        q, target_q, v, mode = (self._by_rows(x) for x in (q, target_q, v, mode.unsqueeze(0)))
        v, next_v = v[:, :-1], v[:, 1:].detach()
        flat = (x.flatten(0, 1) for x in (q, v, target_q, next_v, mode))
        return self._terms(batch, *flat)

    def _over_time(self, x: Tensor) -> Tensor:
        """Bring rows ``[S T, n, c]`` in the order of time, ``[T, S n, c]``."""
        return x.view(-1, self.slice_len, *x.shape[1:]).transpose(0, 1).flatten(1, 2)

    def _read(self, name: str, seen: Tensor, *others: Tensor) -> Tensor:
        """Return what a network reads, ``[T S n, c]``."""
        return torch.cat([self.memories[name](seen)[0], *others], -1).flatten(0, 1)

    def _by_rows(self, x: Tensor) -> Tensor:
        """Bring ``[heads, T S n, c]`` in the order of slices, ``[S, T, n, heads c]``."""
        n, slices = self.size.spec.n_agents, self.size.batch_size // self.slice_len
        return x.view(len(x), -1, slices, n, x.shape[-1]).permute(2, 1, 3, 0, 4).flatten(-2)


def _gru(tensors: Tensors) -> nn.GRU:
    weight, bias, of_state, bias_of_state = (tensor.detach().clone() for tensor in tensors)
    gru = nn.GRU(len(weight), len(of_state))
    given = (weight.T, of_state.T, bias[0], bias_of_state[0])
    for parameter, tensor in zip(gru.parameters(), given, strict=True):
        parameter.data.copy_(tensor)
        parameter.requires_grad_(tensors[0].requires_grad)
    return gru


def gather(data: TensorDictBase, index: Tensor) -> dict[str, Tensor]:
    """Return the rows of a dataset in the layout of the hand-written step."""
    leaves = {
        "observation": ("agents", "observation"),
        "action": ("agents", "action"),
        "state": "state",
        "reward": ("next", "agents", "reward"),
        "next_observation": ("next", "agents", "observation"),
        "next_state": ("next", "state"),
    }
    rows = {name: data.get(key).index_select(0, index) for name, key in leaves.items()}
    return rows | {"terminated": data.get(("next", "terminated")).index_select(0, index).float()}


def _layers(tensors: list[Tensor], depth: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Split weights, biases, and the normalization's scales and shifts."""
    linear, norm = tensors[: 2 * depth], tensors[2 * depth :]
    return linear[0::2], linear[1::2], norm[0::2], norm[1::2]


def _stack(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], scales: list[Tensor], shifts: list[Tensor]
) -> Tensor:
    x = x.expand(len(weights[0]), -1, -1)
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        x = torch.baddbmm(bias, x, weight)
        if i < len(scales):
            x = torch.addcmul(shifts[i], F.layer_norm(F.gelu(x), x.shape[-1:], eps=1e-6), scales[i])
    return x


def _plain(x: Tensor, weights: Tensors, biases: Tensors, *_: Tensors) -> Tensor:
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        x = torch.addmm(bias.squeeze(0), x, weight)
        x = F.gelu(x) if i < len(weights) - 1 else x
    return x
