"""A game of two agents and four states whose values are known exactly, and logged episodes of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_marl_offline.data import OfflineDataset, from_arrays

STATES, AGENTS, ACTIONS = 4, 2, 2
ENDS = 0.15
GAMMA = 0.9


@dataclass(frozen=True)
class Game:
    """Chances ``[S, A, A, S]`` of the next state, rewards ``[S, A, A, n]`` of agents; every step may be the last."""

    chances: Tensor
    rewards: Tensor

    @classmethod
    def draw(cls, seed: int) -> Game:
        g = torch.Generator().manual_seed(seed)
        chances = torch.rand(STATES, ACTIONS, ACTIONS, STATES, generator=g).pow(3)
        rewards = torch.randn(STATES, ACTIONS, ACTIONS, AGENTS, generator=g)
        return cls(chances / chances.sum(-1, keepdim=True), rewards)

    def value(self, policies: Tensor, limit: int | None = None) -> float:
        """Return the value of independent policies ``[n, S, A]`` at uniform starts, by dynamic programming."""
        joint = policies[0].unsqueeze(2) * policies[1].unsqueeze(1)  # [S, A, A]
        reward = (joint * self.rewards.mean(-1)).sum((1, 2)).double()
        moves = torch.einsum("sab,sabt->st", joint, self.chances).double() * (1 - ENDS) * GAMMA
        if limit is None:
            return torch.linalg.solve(torch.eye(STATES, dtype=torch.float64) - moves, reward).mean().item()
        value = torch.zeros(STATES, dtype=torch.float64)
        for _ in range(limit):
            value = reward + moves @ value
        return value.mean().item()

    def record(self, policies: Tensor, *, episodes: int, seed: int, limit: int = 1000) -> OfflineDataset:
        """Log episodes of independent policies ``[n, S, A]``; observations are the state, one-hot."""
        g = torch.Generator().manual_seed(seed)
        rows: dict[str, list] = {name: [] for name in ("state", "action", "reward", "terminal", "cut")}
        for _ in range(episodes):
            state = int(torch.randint(STATES, (1,), generator=g))
            for step in range(limit):
                action = [int(torch.multinomial(policies[i, state], 1, generator=g)) for i in range(AGENTS)]
                over = bool(torch.rand(1, generator=g) < ENDS)
                rows["state"].append(state)
                rows["action"].append(action)
                rows["reward"].append(self.rewards[state, action[0], action[1]])
                rows["terminal"].append(over)
                rows["cut"].append(not over and step == limit - 1)
                state = int(torch.multinomial(self.chances[state, action[0], action[1]], 1, generator=g))
                if over:
                    break
        seen = torch.nn.functional.one_hot(torch.tensor(rows["state"]), STATES).float()
        return from_arrays(
            observations=seen.unsqueeze(1).expand(-1, AGENTS, -1).contiguous(),
            actions=torch.tensor(rows["action"]),
            rewards=torch.stack(rows["reward"]),
            terminals=torch.tensor(rows["terminal"]),
            truncations=torch.tensor(rows["cut"]),
            state=seen,
            n_actions=ACTIONS,
        )


class TablePolicy:
    """Independent policies ``[n, S, A]`` as a plain function of observations: it draws, or takes the most likely."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation = tensordict["agents", "observation"]
        chances = torch.einsum("bns,nsa->bna", observation[..., :STATES], self.table)
        drawn = torch.multinomial(chances.flatten(0, 1), 1).reshape(chances.shape[:-1])
        return tensordict.set(("agents", "action"), drawn)


def sharp(policies: Tensor) -> Tensor:
    """Return the deterministic policies of the most likely actions."""
    return torch.nn.functional.one_hot(policies.argmax(-1), ACTIONS).float()


def drawn_policies(seed: int, temperature: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(AGENTS, STATES, ACTIONS, generator=g) * temperature).softmax(-1)
