"""Sequences, and memory computed step by step, for the tests of networks with memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from objective_toys import HIDDEN, Case, make_batch
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_marl_offline.core.layout import IS_INIT, OBSERVATION, TaskSpec
from torchrl_marl_offline.envs.base import Outcome, TeamEnv, View
from torchrl_marl_offline.modules import HistoryEncoder, make_value

KINDS = ("gru", "lstm", "window:3")


def memory_options(kind: str) -> dict:
    return {"memory": kind} | ({} if kind.startswith("window") else {"memory_size": 5})


@dataclass(frozen=True)
class CaseWithMemory(Case):
    """A loss whose networks have memory."""

    memory: str = "gru"

    def __str__(self) -> str:
        return f"{super().__str__()}-{self.memory}"

    def critic(self, **options):
        return super().critic(**memory_options(self.memory), **options)

    def value(self):
        return make_value(self.spec, decomposition=self.decomposition, hidden=HIDDEN, **memory_options(self.memory))

    def actor(self, **options):
        return super().actor(**memory_options(self.memory), **options)


def with_memory(case: Case, kind: str = "gru") -> CaseWithMemory:
    return CaseWithMemory(**vars(case), memory=kind)


def make_sequences(spec: TaskSpec, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> TensorDict:
    """Draw ``[*B, T]`` rows of which each next observation and state are the following row's; no episode ends."""
    batch = make_batch(spec, *shape, seed=seed).apply(lambda x: x.to(dtype) if x.is_floating_point() else x)
    *rows, length = shape
    g = torch.Generator().manual_seed(seed + 1)
    observation = torch.randn(*rows, length + 1, spec.n_agents, spec.observation_size, generator=g, dtype=dtype)
    state = torch.randn(*rows, length + 1, spec.state_size, generator=g, dtype=dtype)
    batch["agents", "observation"], batch["state"] = observation[..., :-1, :, :].clone(), state[..., :-1, :].clone()
    batch["next", "agents", "observation"] = observation[..., 1:, :, :].clone()
    batch["next", "state"] = state[..., 1:, :].clone()
    for key in ("done", "terminated", "truncated"):
        batch["next", key] = torch.zeros(*shape, 1, dtype=torch.bool)
    return batch


def end_episode(batch: TensorDict, row: tuple[int, ...], *, terminated: bool = True) -> TensorDict:
    """Let an episode end at a row: its next observation is another one than the following row's."""
    batch["next", "done"][row] = True
    batch["next", "terminated" if terminated else "truncated"][row] = True
    batch["next", "agents", "observation"][row] += 3.0
    return batch


class StepByStep:
    """An encoder by torch's own cells, for one row and one agent at a time.

    Args:
        encoder: whose parameters the cells take, and whose gradients theirs are to be.
    """

    def __init__(self, encoder: HistoryEncoder) -> None:
        self.encoder, self.kind = encoder, encoder.kind

    def cell(self, agent: int) -> nn.Module:
        cell = self.encoder.cell
        n, features, inputs = cell.n_agents, cell.features, cell.of_input.in_features
        kind = nn.GRUCell if self.kind == "gru" else nn.LSTMCell

        def own(layer, name: str) -> Tensor:
            stacked = getattr(layer, name)
            return stacked if cell.share_params else stacked[agent]

        parameters = {
            "weight_ih": own(cell.of_input, "weight").T,
            "weight_hh": own(cell.of_memory, "weight").T,
            "bias_ih": own(cell.of_input, "bias").reshape(-1),
            "bias_hh": own(cell.of_memory, "bias").reshape(-1),
        }
        made, ids = kind(inputs, features, dtype=torch.float64), torch.eye(n, dtype=torch.float64)[agent]

        def step(x: Tensor, state):
            x = torch.cat([x, ids]) if cell.has_ids else x
            return torch.func.functional_call(made, parameters, (x, state))

        return step

    def after(self, observations: list[Tensor], agent: int) -> Tensor:
        """Return what is remembered ``[S]`` after observations ``[o]``, the first of which began the episode."""
        if self.kind.startswith("window"):
            count = int(self.kind.partition(":")[2])
            zeros = [torch.zeros_like(observations[0])] * count
            return torch.cat([*zeros, *observations][-count:])
        size = self.encoder.cell.features
        zeros = torch.zeros(size, dtype=torch.float64)
        state, step = (zeros if self.kind == "gru" else (zeros, zeros)), self.cell(agent)
        for observation in observations:
            state = step(observation, state)
        return state if self.kind == "gru" else torch.cat(state)


def remembered_by_hand(encoder: HistoryEncoder, batch: TensorDict) -> tuple[Tensor, Tensor]:
    """Return the memory after each row's observation and after its next one, ``[B, T, n, S]`` each, by loops."""
    seen, ahead = batch["agents", "observation"], batch["next", "agents", "observation"]
    if encoder.joint:
        seen, ahead = seen.flatten(-2).unsqueeze(-2), ahead.flatten(-2).unsqueeze(-2)
    begins = batch.get("is_init", torch.zeros(*batch.shape, 1, dtype=torch.bool))
    by_hand = StepByStep(encoder)
    now, following = [], []
    for b in range(batch.shape[0]):
        for t in range(batch.shape[1]):
            since = max(
                s for s in range(t + 1) if s == 0 or bool(begins[b, s]) or bool(batch["next", "done"][b, s - 1])
            )
            for agent in range(seen.shape[-2]):
                history = [seen[b, s, agent] for s in range(since, t + 1)]
                now.append(by_hand.after(history, agent))
                following.append(by_hand.after([*history, ahead[b, t, agent]], agent))
    shape = (*batch.shape, seen.shape[-2], -1)
    return torch.stack(now).reshape(shape), torch.stack(following).reshape(shape)


class CueEnv(TeamEnv):
    """One of two cues is seen at the first step alone; who names it at the last step, of four, earns 1, else 0.

    Without memory no team earns more than 1/2 on average. The observation has the cue and the step, one-hot.
    """

    steps = 4

    def __init__(self, num_envs: int, *, seed: int | None = 0) -> None:
        spec = TaskSpec(n_agents=2, observation_size=6, state_size=6, action_size=2, discrete=True)
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device="cpu",
            seed=seed,
            max_episode_steps=self.steps,
            reference_returns=(0.5, 1.0),
        )

    def _start(self, rows: Tensor | None) -> dict[str, Tensor]:
        count = self.num_envs if rows is None else len(rows)
        cue = (self.random.uniform(1, rows=rows)[:, 0] < 0.5).long()
        return {"cue": cue, "time": torch.zeros(count, dtype=torch.int64)}

    def _advance(self, game: dict[str, Tensor], action: Tensor) -> Outcome:
        time = game["time"] + 1
        at_end = time == self.steps
        reward = ((action == game["cue"].unsqueeze(-1)) & at_end.unsqueeze(-1)).float()
        return Outcome({"cue": game["cue"], "time": time}, reward, at_end)

    def _view(self, game: dict[str, Tensor]) -> View:
        cue = torch.nn.functional.one_hot(game["cue"], 2).float() * (game["time"] == 0).unsqueeze(-1)
        seen = torch.cat([cue, torch.nn.functional.one_hot(game["time"] % self.steps, self.steps).float()], -1)
        return View(seen.unsqueeze(1).expand(-1, 2, -1).contiguous(), seen)


class UnevenEnv(TeamEnv):
    """Episodes of 3 or 5 steps, whose observations are numbers that do not come twice.

    An agent is rewarded by the index of its action.
    """

    def __init__(self, num_envs: int, *, seed: int | None = 0) -> None:
        spec = TaskSpec(n_agents=2, observation_size=3, state_size=2, action_size=3, discrete=True)
        super().__init__(spec=spec, num_envs=num_envs, device="cpu", seed=seed, max_episode_steps=5)

    def _start(self, rows: Tensor | None) -> dict[str, Tensor]:
        drawn = self.random.uniform(2, rows=rows).float()
        return {"number": drawn[:, 0], "length": 3 + 2 * (drawn[:, 1] < 0.5).long(), "time": torch.zeros(len(drawn))}

    def _advance(self, game: dict[str, Tensor], action: Tensor) -> Outcome:
        time = game["time"] + 1
        return Outcome(game | {"time": time}, action.float(), time == game["length"])

    def _view(self, game: dict[str, Tensor]) -> View:
        number, time = game["number"], game["time"]
        seen = torch.stack([number, torch.sin(7 * number + time), time / 5], -1)
        return View(torch.stack([seen, -seen], 1), torch.stack([number, time], -1))


class Watched(nn.Module):
    """A policy that keeps what it read at each step and what it remembered."""

    def __init__(self, policy) -> None:
        super().__init__()
        self.policy, self.steps = policy, []
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys

    def forward(self, tensordict):
        out = self.policy(tensordict)
        names = (OBSERVATION, IS_INIT, ("agents", "policy_history"))
        self.steps.append([out.get(name).clone() for name in names])
        return out
