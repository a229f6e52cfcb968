"""``mpe/simple_spread`` of the multi-agent particle environments (MPE), as the OMAR data was recorded on it."""

from __future__ import annotations

from typing import Annotated

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, arena, discs
from torchrl_marl_offline.envs.mpe_physics import (
    Integration,
    checked_integration,
    contact_forces,
    integrate,
    others_index,
)

SENSITIVITY = 5.0
"""Force of an action of 1."""


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

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 25,
        dtype: torch.dtype = torch.float32,
        integration: Integration = "velocity_first",
    ) -> None:
        self.integration = checked_integration(integration)
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
        self._others = others_index(self.n_agents, self.device)

    def set_state(self, agent_pos: Tensor, agent_vel: Tensor, landmark_pos: Tensor) -> TensorDict:
        """Put agents and landmarks at given places, each ``[B, 3, 2]``, and return the first observation."""
        return self._set_game(
            position=self._given("agent_pos", agent_pos, (self.n_agents, 2)),
            velocity=self._given("agent_vel", agent_vel, (self.n_agents, 2)),
            landmark=self._given("landmark_pos", landmark_pos, (self.n_landmarks, 2)),
        )

    def _start(self, rows: Tensor | None) -> Game:
        drawn = self.random.uniform(2 * (self.n_agents + self.n_landmarks), rows=rows) * 2 - 1
        drawn = drawn.to(self.float_dtype).unflatten(-1, (-1, 2))
        position, landmark = drawn.split((self.n_agents, self.n_landmarks), dim=1)
        return {"position": position, "velocity": torch.zeros_like(position), "landmark": landmark}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        position, velocity, landmark = game["position"], game["velocity"], game["landmark"]
        force = SENSITIVITY * action.clamp(-1, 1) + contact_forces(position, position, 2 * self.radius)
        position, velocity = integrate(position, velocity, force, integration=self.integration)
        game = {"position": position, "velocity": velocity, "landmark": landmark}
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

    def _scene(self, index: int) -> Scene:
        position, landmark = self._game["position"][index], self._game["landmark"][index]
        shapes = discs(landmark, 0.05, "#222222") + discs(position, self.radius, AGENT_COLOURS, alpha=0.8)
        return arena(position, shapes)
