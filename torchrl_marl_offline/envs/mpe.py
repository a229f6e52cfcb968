"""Particle tasks of the multi-agent particle environments (MPE), as the OMAR data was recorded on them."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from torchrl_marl_offline.data.layout import TaskSpec
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View

_DT = 0.1
_DAMPING = 0.25
_SENSITIVITY = 5.0
_CONTACT_FORCE = 100.0
_CONTACT_MARGIN = 1e-3


def contact_forces(position: Tensor, radius: float) -> Tensor:
    """Return the contact force on each of ``n`` equal, movable discs.

    Two discs push each other apart by ``100 · Δp/|Δp| · k · log(1 + exp(-(|Δp| - 2 r)/k))`` with ``k = 0.001``.
    Discs at exactly the same place do not push each other (the formula has no direction there).

    Args:
        position: ``[B, n, 2]``.
        radius: of every disc.

    Returns:
        forces ``[B, n, 2]``.
    """
    away = position.unsqueeze(-2) - position.unsqueeze(-3)  # [B, n, n, 2], from the other to oneself
    distance = torch.linalg.vector_norm(away, dim=-1, keepdim=True)
    overlap = _CONTACT_MARGIN * F.softplus((2 * radius - distance) / _CONTACT_MARGIN)
    return (away * (_CONTACT_FORCE * overlap / distance.clamp_min(1e-12))).sum(-2)


class SimpleSpread(TeamEnv):
    """Three agents cover three landmarks without touching each other: ``mpe/simple_spread``.

    Physics per step of 0.1: force = 5 u + contact, v <- 0.75 v + 0.1 force, p <- p + 0.1 v, for unit masses.
    Agents have radius 0.15 and collide; landmarks don't. All start uniformly in [-1, 1]² and at rest. An episode
    is truncated after 25 steps.

    The reward is that of OMAR (Pan et al., "Plan better amid conservatism", ICML 2022) and not that of
    PettingZoo, mpe2 or VMAS: every agent gets Σ over landmarks of min(1/d, 10), with d the distance of the nearest
    agent, minus 5 for each other agent closer than 0.3, at the new positions. The return is the sum over steps
    of the mean over agents: 159.8 for random play and 516.8 for the published expert.

    Observation, 18: own velocity, own position, landmarks relative to oneself (3 × 2), other agents relative to
    oneself in their order (2 × 2), and four zeros (silent communication). State, 54: the three observations.
    Action: u in [-1, 1]²; components outside are clipped.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: seed of the starts.
        max_steps: time limit.
        dtype: float32, or float64 to compare with other implementations.
        integration: ``"velocity_first"`` is the order of the original MPE and of the OMAR data;
            ``"position_first"`` moves with the old velocity, as mpe2 and PettingZoo do.
    """

    n_agents = 3
    n_landmarks = 3
    radius = 0.15

    def __init__(
        self,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        max_steps: int = 25,
        dtype: torch.dtype = torch.float32,
        integration: Literal["velocity_first", "position_first"] = "velocity_first",
    ) -> None:
        if integration not in ("velocity_first", "position_first"):
            raise ValueError(f"integration must be 'velocity_first' or 'position_first', got {integration!r}.")
        self.integration = integration
        spec = TaskSpec(
            n_agents=self.n_agents, observation_size=18, state_size=54, action_size=2, task="mpe/simple_spread"
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=max_steps,
            reference_returns=(159.8, 516.8),
            dtype=dtype,
        )
        agents = range(self.n_agents)
        others = [self.n_agents * i + j for i in agents for j in agents if i != j]
        self._others = torch.tensor(others, device=self.device)

    def set_state(self, agent_pos: Tensor, agent_vel: Tensor, landmark_pos: Tensor) -> TensorDict:
        """Put agents and landmarks at given places, each ``[B, 3, 2]``, and return the first observation."""
        return self._set_game(position=agent_pos, velocity=agent_vel, landmark=landmark_pos)

    def _start(self, rows: Tensor | None) -> Game:
        drawn = self.random.uniform(2 * (self.n_agents + self.n_landmarks), rows=rows) * 2 - 1
        drawn = drawn.to(self.float_dtype).unflatten(-1, (-1, 2))
        position, landmark = drawn.split((self.n_agents, self.n_landmarks), dim=1)
        return {"position": position, "velocity": torch.zeros_like(position), "landmark": landmark}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        position, velocity, landmark = game["position"], game["velocity"], game["landmark"]
        force = _SENSITIVITY * action.clamp(-1, 1) + contact_forces(position, self.radius)
        new_velocity = velocity * (1 - _DAMPING) + force * _DT
        moving = new_velocity if self.integration == "velocity_first" else velocity
        position = position + moving * _DT
        game = {"position": position, "velocity": new_velocity, "landmark": landmark}
        return Outcome(game, self.reward(position, landmark), self._false.squeeze(-1))

    def reward(self, position: Tensor, landmark: Tensor) -> Tensor:
        """Return the reward of each agent, ``[B, 3]``, at positions ``[B, 3, 2]``."""
        to_landmark = torch.linalg.vector_norm(position.unsqueeze(-2) - landmark.unsqueeze(-3), dim=-1)
        covered = to_landmark.amin(-2).reciprocal().clamp_max(10.0).sum(-1, keepdim=True)  # [B, 1]
        apart = torch.linalg.vector_norm(position.unsqueeze(-2) - position.unsqueeze(-3), dim=-1)
        touching = (apart < 2 * self.radius).sum(-1) - 1  # every agent touches itself
        return covered - 5.0 * touching

    def _view(self, game: Game) -> View:
        position, velocity, landmark = game["position"], game["velocity"], game["landmark"]
        to_agents = (position.unsqueeze(-3) - position.unsqueeze(-2)).flatten(-3, -2)  # [B, 9, 2]
        # Written part by part: on a CPU, one `cat` of this size would wait for all threads, also for busy ones.
        observation = position.new_empty(*position.shape[:-1], self.task_spec.observation_size)
        observation[..., 0:2] = velocity
        observation[..., 2:4] = position
        observation[..., 4:10] = (landmark.unsqueeze(-3) - position.unsqueeze(-2)).flatten(-2)
        observation[..., 10:14] = to_agents.index_select(-2, self._others).view(*position.shape[:-1], 4)
        observation[..., 14:18] = 0
        return View(observation, observation.flatten(-2))  # the state shares the observation's memory
