"""``mpe/simple_tag`` and ``mpe/simple_world``: three predators, a team, hunt a faster prey."""

from __future__ import annotations

from typing import Annotated

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import Scene, arena, discs
from torchrl_marl_offline.envs.mpe_physics import (
    Integration,
    checked_integration,
    contact_forces,
    integrate,
    others_index,
)
from torchrl_marl_offline.envs.mpe_prey import Opponent, flee, is_published, make_prey

_PREDATORS = 3
_PREDATOR_RADIUS = 0.075
_OBSTACLE_RADIUS = 0.2
FOOD_RADIUS = 0.03
FOREST_RADIUS = 0.3
_PREY_STREAM = 1


class Pursuit(TeamEnv):
    """What :class:`SimpleTag` and :class:`SimpleWorld` share; see there."""

    task: str
    prey_radius: float
    touch_reward: float
    n_obstacles: int
    n_food: int = 0
    n_forests: int = 0
    published_returns: tuple[float, float]

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 25,
        opponent: Opponent = "evade",
        dtype: torch.dtype = torch.float32,
        integration: Integration = "velocity_first",
    ) -> None:
        self.integration = checked_integration(integration)
        self.n_landmarks = self.n_obstacles + self.n_food + self.n_forests
        self.prey_observation_size = 4 + 2 * self.n_landmarks + 2 * _PREDATORS + self.n_forests
        width = self.prey_observation_size + 2  # a predator also sees the prey's velocity
        spec = TaskSpec(
            n_agents=_PREDATORS,
            observation_size=width,
            state_size=_PREDATORS * width,
            action_size=2,
            task=self.task,
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=max_steps,
            reference_returns=self.published_returns if is_published(opponent, self.task) else None,
            dtype=dtype,
        )
        at = {"dtype": dtype, "device": self.device}
        self._others = others_index(_PREDATORS + 1, self.device)
        self._thrust = torch.tensor([[3.0**2]] * _PREDATORS + [[4.0**2]], **at)
        self._max_speed = torch.tensor([[1.0]] * _PREDATORS + [[1.3]], **at)
        self._radius = torch.tensor([_PREDATOR_RADIUS] * _PREDATORS + [self.prey_radius], **at)
        bodies = torch.cat([self._radius, torch.full((self.n_obstacles,), _OBSTACLE_RADIUS, **at)])
        self._reach = self._radius.unsqueeze(-1) + bodies
        self._prey = make_prey(opponent, self)

    def set_state(self, agent_pos: Tensor, agent_vel: Tensor, landmark_pos: Tensor) -> TensorDict:
        """Put everything at given places and return the first observation.

        Args:
            agent_pos: the predators, then the prey, ``[B, 4, 2]``.
            agent_vel: their velocities, ``[B, 4, 2]``.
            landmark_pos: obstacles, then food, then forests, ``[B, m, 2]``.
        """
        return self._set_game(
            position=self._given("agent_pos", agent_pos, (_PREDATORS + 1, 2)),
            velocity=self._given("agent_vel", agent_vel, (_PREDATORS + 1, 2)),
            landmark=self._given("landmark_pos", landmark_pos, (self.n_landmarks, 2)),
        )

    def _start(self, rows: Tensor | None) -> Game:
        drawn = self.random.uniform(2 * (_PREDATORS + 1 + self.n_landmarks), rows=rows) * 2 - 1
        drawn = drawn.to(self.float_dtype).unflatten(-1, (-1, 2))
        position, landmark = drawn.split((_PREDATORS + 1, self.n_landmarks), dim=1)
        return {"position": position, "velocity": torch.zeros_like(position), "landmark": landmark * 0.9}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        position, velocity, landmark = game["position"], game["velocity"], game["landmark"]
        with torch.no_grad():
            fled = self._prey(self.observe(game)[1])
        if fled.shape != (self.num_envs, 2):
            raise ValueError(f"The opponent must return actions [{self.num_envs}, 2], got {list(fled.shape)}.")
        action = torch.cat([action, fled.to(action.dtype).unsqueeze(1)], 1)  # [B, 3, 2] and [B, 2] -> [B, 4, 2]
        bodies = torch.cat([position, landmark[:, : self.n_obstacles]], 1)
        force = self._thrust * action.clamp(-1, 1) + contact_forces(position, bodies, self._reach)
        position, velocity = integrate(
            position, velocity, force, integration=self.integration, max_speed=self._max_speed
        )
        game = {"position": position, "velocity": velocity, "landmark": landmark}
        return Outcome(game, self.reward(position), self._false.squeeze(-1))

    def reward(self, position: Tensor) -> Tensor:
        """Return the reward of each predator, ``[B, 3]``, at the positions ``[B, 4, 2]`` of predators and prey."""
        to_prey = torch.linalg.vector_norm(position[:, :_PREDATORS] - position[:, _PREDATORS:], dim=-1)
        touching = to_prey < self._radius[:_PREDATORS] + self._radius[_PREDATORS:]
        team = self.touch_reward * touching.sum(-1, keepdim=True) - 0.1 * to_prey.sum(-1, keepdim=True)
        return team.expand(-1, _PREDATORS).contiguous()

    def _view(self, game: Game) -> View:
        observation, _ = self.observe(game)
        return View(observation, observation.flatten(-2))  # the state shares the observation's memory

    def observe(self, game: Game) -> tuple[Tensor, Tensor]:
        """Return what the predators see, ``[B, 3, o]``, and what the prey sees, ``[B, o - 2]``."""
        position, velocity, landmark = game["position"], game["velocity"], game["landmark"]
        to_landmarks = landmark.unsqueeze(-3) - position.unsqueeze(-2)  # [B, 4, m, 2]
        to_agents = (position.unsqueeze(-3) - position.unsqueeze(-2)).flatten(-3, -2)  # [B, 16, 2]
        to_others = to_agents.index_select(-2, self._others).view(*position.shape[:-1], 2 * _PREDATORS)
        seen = [velocity, position, to_landmarks.flatten(-2), to_others]
        prey_velocity = velocity[:, _PREDATORS:].expand(-1, _PREDATORS + 1, -1)
        inside = []
        if self.n_forests:
            distance = torch.linalg.vector_norm(to_landmarks[..., -self.n_forests :, :], dim=-1)
            hidden = distance < self._radius.unsqueeze(-1) + FOREST_RADIUS
            inside = [hidden.to(position.dtype) * 2 - 1]
        predators = torch.cat([*seen, prey_velocity, *inside], -1)[:, :_PREDATORS]
        return predators.contiguous(), torch.cat([each[:, _PREDATORS] for each in (*seen, *inside)], -1)

    def _scene(self, index: int) -> Scene:
        position, landmark = self._game["position"][index], self._game["landmark"][index]
        obstacles, food, forests = landmark.split((self.n_obstacles, self.n_food, self.n_forests))
        shapes = discs(forests, FOREST_RADIUS, "#a5d6a7") + discs(obstacles, _OBSTACLE_RADIUS, "#777777")
        shapes += discs(food, FOOD_RADIUS, "#dd8452") + discs(position[:_PREDATORS], _PREDATOR_RADIUS, "#c44e52")
        return arena(position, shapes + discs(position[_PREDATORS:], self.prey_radius, "#4c72b0"))

    def evasion(self, observation: Tensor) -> Tensor:
        """Return the scripted evasion for the prey's observations ``[B, o - 2]``: see :func:`.mpe_prey.flee`."""
        to_landmarks = observation[:, 4 : 4 + 2 * self.n_landmarks].unflatten(-1, (-1, 2))
        to_predators = observation[:, 4 + 2 * self.n_landmarks :][:, : 2 * _PREDATORS].unflatten(-1, (-1, 2))
        to_obstacles = to_landmarks[:, : self.n_obstacles]
        return flee(observation[:, 2:4], to_predators, to_obstacles, _OBSTACLE_RADIUS + self.prey_radius)

    def prey_chance(self) -> Tensor:
        """Return the prey's random numbers of this step, float64 ``[B, 2]`` in [0, 1)."""
        return self.random.uniform(2, stream=_PREY_STREAM, first=2 * self._step_count)


class SimpleTag(Pursuit):
    """Three predators touch a faster prey: ``mpe/simple_tag``.

    Physics per step of 0.1, as in :class:`~torchrl_marl_offline.envs.mpe.SimpleSpread`, with force = a² u + contact and
    a speed limit. Predators: radius 0.075, a = 3, limit 1.0. Prey: radius 0.05, a = 4, limit 1.3. Two obstacles of
    radius 0.2 stand in the way. Predators and prey start uniformly in [-1, 1]² and at rest, obstacles in [-0.9, 0.9]².
    An episode is truncated after 25 steps.

    The reward, the same for all three, is OMAR's (Pan et al., "Plan better amid conservatism", ICML 2022): -0.1 Σ of
    the predators' distances to the prey, plus 10 for each predator that touches it, at the new positions.

    Observation, 16: own velocity, own position, obstacles relative to oneself (2 × 2), other agents relative to
    oneself in their order, the prey last (3 × 2), the prey's velocity. State, 48: the three observations. Action: u in
    [-1, 1]²; components outside are clipped. The prey sees the same but its own velocity a second time: 14. (In the
    published recordings the prey is a fourth agent, so that their state has 64 numbers.)

    The prey is part of the environment and no agent. ``opponent`` is one of

    - ``"evade"``: a scripted evasion, see :func:`~torchrl_marl_offline.envs.mpe_prey.flee`; ``"still"``: no thrust;
      ``"random"``: uniform thrust, from the environment's own chance;
    - the path of a file of MLP weights, see :meth:`~torchrl_marl_offline.envs.mpe_prey.PreyNetwork.from_file`, such as
      the ``pretrained_adv_model.pt`` that OMAR and og-marl publish;
    - a policy: a callable from observations ``[B, 14]`` to actions ``[B, 2]``, or a TensorDictModule that reads
      ``("agents", "observation")`` ``[B, 1, 14]`` and writes ``("agents", "action")`` ``[B, 1, 2]``. Its chance, if it
      has any, is its own.

    ``reference_returns`` are those published, −4.1 for random play and 185.6 for the expert. They hold against the
    published prey only, so they are ``None`` against any other.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: seed of the starts and of a random prey.
        max_steps: time limit.
        opponent: the prey.
        dtype: float32, or float64 to compare with other implementations.
        integration: as in :class:`~torchrl_marl_offline.envs.mpe.SimpleSpread`.
    """

    task = "mpe/simple_tag"
    prey_radius = 0.05
    touch_reward = 10.0
    n_obstacles = 2
    published_returns = (-4.1, 185.6)


class SimpleWorld(Pursuit):
    """:class:`SimpleTag` in another world: ``mpe/simple_world``. What differs:

    The prey's radius is 0.045 and a touch pays 5. There are one obstacle (radius 0.2), two foods (0.03) and two forests
    (0.3), all uniform in [-0.9, 0.9]²; food and forests can be walked through, and food matters only to a prey that was
    trained to seek it.

    Observation, 24: own velocity, own position, obstacle, foods and forests relative to oneself (5 × 2), other agents
    relative to oneself (3 × 2), the prey's velocity, and for each forest 1 or −1, whether oneself touches it. Nothing
    is hidden: as published, every agent is a leader, who sees into forests. State, 72. The prey sees 22.

    Published returns: −6.8 for random play, 79.5 for the expert.
    """

    task = "mpe/simple_world"
    prey_radius = 0.045
    touch_reward = 5.0
    n_obstacles = 1
    n_food = 2
    n_forests = 2
    published_returns = (-6.8, 79.5)
