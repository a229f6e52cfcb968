"""Rewards, ends and starts of MA-MuJoCo's scenarios: those of Gymnasium's v5, for a batch of environments.

All constants are read from the Gymnasium environment, so that its options count here too. ``B`` environments, ``R`` of
them starting; fields of ``MjData`` come flattened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchrl_marl_offline.envs.base import Game

if TYPE_CHECKING:
    from gymnasium.envs.mujoco.mujoco_env import MujocoEnv


class Scenario:
    """The rules of a scenario.

    Args:
        env: the Gymnasium environment, unwrapped.
        dtype: of the physics.
        device: of the physics.
    """

    fields: tuple[str, ...] = ()
    """Fields of ``MjData`` that the reward needs besides positions and velocities."""

    normal_velocities = False
    """Whether starting velocities are normally distributed; uniformly otherwise."""

    def __init__(self, env: MujocoEnv, *, dtype: torch.dtype, device: torch.device) -> None:
        self.env, self.model, self.dt = env, env.model, env.dt
        self.at = {"dtype": dtype, "device": device}
        self.rest_qpos = torch.as_tensor(env.init_qpos.copy(), **self.at)
        self.rest_qvel = torch.as_tensor(env.init_qvel.copy(), **self.at)

    @property
    def draws(self) -> int:
        """How many uniform numbers a start takes."""
        return self.model.nq + self.model.nv

    def start(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Turn float64 numbers in [0, 1), ``[R, draws]``, into positions ``[R, nq]`` and velocities ``[R, nv]``."""
        scale = self.env._reset_noise_scale
        position, velocity = uniform.split((self.model.nq, self.model.nv), dim=-1)
        noise = normal(velocity) if self.normal_velocities else 2 * velocity - 1
        qpos = self.rest_qpos + scale * (2 * position - 1)
        return qpos.to(self.at["dtype"]), (self.rest_qvel + scale * noise).to(self.at["dtype"])

    def extras(self, game: Game) -> Tensor:
        """Return what is observed but is no field of ``MjData``, ``[B, k]``."""
        return game["qpos"][:, :0]

    def reward(self, before: Game, after: Game, control: Tensor) -> Tensor:
        """Return the team's reward ``[B]`` for ``control``, ``[B, nu]``."""
        raise NotImplementedError

    def terminated(self, game: Game) -> Tensor:
        """Return where the episode is over, bool ``[B]``."""
        return torch.zeros(len(game["qpos"]), dtype=torch.bool, device=self.at["device"])

    def body(self, game: Game, body: int | str, field: str = "xpos") -> Tensor:
        """Return the place of a body, ``[B, 3]``, by its number or name."""
        number = body if isinstance(body, int) else self.model.body(body).id
        return game[field][:, 3 * number : 3 * number + 3]


class Runner(Scenario):
    """Run along x: ``w · Δx/Δt + alive − c · Σ u²``."""

    normal_velocities = True

    def reward(self, before: Game, after: Game, control: Tensor) -> Tensor:
        """See :class:`Scenario`."""
        speed = (self.place(after) - self.place(before)) / self.dt
        return self.env._forward_reward_weight * speed - self.costs(after, control)

    def place(self, game: Game) -> Tensor:
        """Return what has to move, ``[B]``."""
        return game["qpos"][:, 0]

    def costs(self, game: Game, control: Tensor) -> Tensor:
        """Return what is subtracted, ``[B]``."""
        return self.env._ctrl_cost_weight * control.square().sum(-1)


class Swimmer(Runner):
    """As :class:`Runner`, starting with uniformly distributed velocities."""

    normal_velocities = False


class CoupledRunners(Runner):
    """Two cheetahs on a rope: the mean of what each would get."""

    def place(self, game: Game) -> Tensor:
        """See :class:`Runner`."""
        qpos = game["qpos"]
        return (qpos[:, 0] + qpos[:, self.model.nq // 2]) / 2

    def costs(self, game: Game, control: Tensor) -> Tensor:
        """See :class:`Runner`."""
        return super().costs(game, control) / 2


class Walker(Runner):
    """A runner that has to stay healthy: above the ground and upright."""

    normal_velocities = False

    def reward(self, before: Game, after: Game, control: Tensor) -> Tensor:
        """See :class:`Scenario`."""
        return super().reward(before, after, control) + self.env._healthy_reward * self.healthy(after)

    def terminated(self, game: Game) -> Tensor:
        """See :class:`Scenario`."""
        return ~self.healthy(game) & self.env._terminate_when_unhealthy

    def healthy(self, game: Game) -> Tensor:
        """Return who is healthy, bool ``[B]``."""
        height, angle = game["qpos"][:, 1], game["qpos"][:, 2]
        return between(height, self.env._healthy_z_range) & between(angle, self.env._healthy_angle_range)


class Hopper(Walker):
    """A walker whose coordinates also have to stay in a range."""

    def healthy(self, game: Game) -> Tensor:
        """See :class:`Walker`."""
        state = torch.cat([game["qpos"][:, 2:], game["qvel"]], -1)
        return super().healthy(game) & between(state, self.env._healthy_state_range).all(-1)


class Ant(Walker):
    """A walker that pays for contact forces, each clipped; its place is that of its torso."""

    fields = ("cfrc_ext", "xpos")
    normal_velocities = True

    def place(self, game: Game) -> Tensor:
        """See :class:`Runner`."""
        return self.body(game, self.env._main_body)[:, 0]

    def costs(self, game: Game, control: Tensor) -> Tensor:
        """See :class:`Runner`."""
        forces = game["cfrc_ext"].clamp(*self.env._contact_force_range)
        return super().costs(game, control) + self.env._contact_cost_weight * forces.square().sum(-1)

    def healthy(self, game: Game) -> Tensor:
        """See :class:`Walker`."""
        low, high = self.env._healthy_z_range
        height = game["qpos"][:, 2]
        finite = game["qpos"].isfinite().all(-1) & game["qvel"].isfinite().all(-1)
        return finite & (low <= height) & (height <= high)


class Humanoid(Walker):
    """A walker that pays for contact forces, their sum clipped; its place is its center of mass."""

    fields = ("cfrc_ext", "xipos")

    def __init__(self, env: MujocoEnv, **at) -> None:
        super().__init__(env, **at)
        mass = torch.as_tensor(env.model.body_mass.copy(), **self.at)
        self.share = mass / mass.sum()

    def place(self, game: Game) -> Tensor:
        """See :class:`Runner`."""
        return (game["xipos"][:, 0::3] * self.share).sum(-1)

    def costs(self, game: Game, control: Tensor) -> Tensor:
        """See :class:`Runner`."""
        contact = self.env._contact_cost_weight * game["cfrc_ext"].square().sum(-1)
        return super().costs(game, control) + contact.clamp(*self.env._contact_cost_range)

    def healthy(self, game: Game) -> Tensor:
        """See :class:`Walker`."""
        return between(game["qpos"][:, 2], self.env._healthy_z_range)


class HumanoidStandup(Scenario):
    """Get up: ``z / timestep + 1 − c · Σ u² − impact``, without an end."""

    fields = ("cfrc_ext",)

    def reward(self, before: Game, after: Game, control: Tensor) -> Tensor:
        """See :class:`Scenario`."""
        env = self.env
        impact = (env._impact_cost_weight * after["cfrc_ext"].square().sum(-1)).clamp(*env._impact_cost_range)
        effort = env._ctrl_cost_weight * control.square().sum(-1)
        return after["qpos"][:, 2] / self.model.opt.timestep + 1 - effort - impact


class Reacher(Scenario):
    """Bring the fingertip to the target: minus their distance, minus Σ u²."""

    fields = ("xpos",)

    def start(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Scenario`; the target is uniform in a disc of radius 0.2 and does not move."""
        position, velocity = uniform.split((self.model.nq, self.model.nv), dim=-1)
        qpos = self.rest_qpos + 0.1 * (2 * position - 1)
        qvel = self.rest_qvel + 0.005 * (2 * velocity - 1)
        radius, angle = 0.2 * position[:, -2].sqrt(), 2 * torch.pi * position[:, -1]
        qpos[:, -2], qpos[:, -1] = radius * angle.cos(), radius * angle.sin()
        qvel[:, -2:] = 0
        return qpos.to(self.at["dtype"]), qvel.to(self.at["dtype"])

    def extras(self, game: Game) -> Tensor:
        """See :class:`Scenario`; from the target to the fingertip."""
        return self.body(game, "fingertip") - self.body(game, "target")

    def reward(self, before: Game, after: Game, control: Tensor) -> Tensor:
        """See :class:`Scenario`."""
        distance = torch.linalg.vector_norm(self.extras(after), dim=-1)
        effort = control.square().sum(-1)
        return -self.env._reward_dist_weight * distance - self.env._reward_control_weight * effort


class Pusher(Scenario):
    """Push the object to the goal: minus the distances hand–object and object–goal, minus Σ u²."""

    fields = ("xpos",)
    _tries = 64  # all of them fail with probability 1e-27

    @property
    def draws(self) -> int:
        """See :class:`Scenario`."""
        return 2 * self._tries + self.model.nv

    def start(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Scenario`; the object is uniform in [-0.3, 0] × [-0.2, 0.2], farther than 0.17 from the goal."""
        tries, velocity = uniform.split((2 * self._tries, self.model.nv), dim=-1)
        low, high = tries.new_tensor([-0.3, -0.2]), tries.new_tensor([0.0, 0.2])
        places = low + (high - low) * tries.unflatten(-1, (-1, 2))  # [R, tries, 2]
        first = (torch.linalg.vector_norm(places, dim=-1) > 0.17).to(torch.uint8).argmax(-1)
        qpos = self.rest_qpos.to(uniform.dtype).repeat(len(uniform), 1)
        qpos[:, -4:-2] = places[torch.arange(len(places), device=places.device), first]
        qpos[:, -2:] = 0
        qvel = self.rest_qvel + 0.005 * (2 * velocity - 1)
        qvel[:, -4:] = 0
        return qpos.to(self.at["dtype"]), qvel.to(self.at["dtype"])

    def reward(self, before: Game, after: Game, control: Tensor) -> Tensor:
        """See :class:`Scenario`."""
        env, thing = self.env, self.body(after, "object")
        near = torch.linalg.vector_norm(thing - self.body(after, "tips_arm"), dim=-1)
        away = torch.linalg.vector_norm(thing - self.body(after, "goal"), dim=-1)
        effort = control.square().sum(-1)
        return -env._reward_dist_weight * away - env._reward_near_weight * near - env._reward_control_weight * effort


class InvertedPendulum(Scenario):
    """1 for every step in which the pole stands, to within 0.2 rad."""

    def reward(self, before: Game, after: Game, control: Tensor) -> Tensor:
        """See :class:`Scenario`."""
        return (~self.terminated(after)).to(self.at["dtype"])

    def terminated(self, game: Game) -> Tensor:
        """See :class:`Scenario`."""
        finite = game["qpos"].isfinite().all(-1) & game["qvel"].isfinite().all(-1)
        return ~finite | (game["qpos"][:, 1].abs() > 0.2)


class InvertedDoublePendulum(Scenario):
    """10 for every step in which the tip is above 1 m, minus ``0.01 x² + (y − 2)² + 0.001 v₁² + 0.005 v₂²``."""

    fields = ("site_xpos",)
    normal_velocities = True

    def reward(self, before: Game, after: Game, control: Tensor) -> Tensor:
        """See :class:`Scenario`."""
        x, y = after["site_xpos"][:, 0], after["site_xpos"][:, 2]
        first, second = after["qvel"][:, 1], after["qvel"][:, 2]
        costs = 0.01 * x**2 + (y - 2) ** 2 + 1e-3 * first**2 + 5e-3 * second**2
        return self.env._healthy_reward * ~self.terminated(after) - costs

    def terminated(self, game: Game) -> Tensor:
        """See :class:`Scenario`."""
        return game["site_xpos"][:, 2] <= 1


SCENARIOS: dict[str, type[Scenario]] = {
    "Ant": Ant,
    "CoupledHalfCheetah": CoupledRunners,
    "HalfCheetah": Runner,
    "Hopper": Hopper,
    "Humanoid": Humanoid,
    "HumanoidStandup": HumanoidStandup,
    "InvertedDoublePendulum": InvertedDoublePendulum,
    "InvertedPendulum": InvertedPendulum,
    "ManySegmentAnt": Ant,
    "ManySegmentSwimmer": Swimmer,
    "Pusher": Pusher,
    "Reacher": Reacher,
    "Swimmer": Swimmer,
    "Walker2d": Walker,
}


def between(value: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return where a value lies strictly between the bounds."""
    return (bounds[0] < value) & (value < bounds[1])


def normal(uniform: Tensor) -> Tensor:
    """Turn float64 multiples of 2⁻⁵³ in [0, 1) into normally distributed numbers."""
    return torch.special.ndtri(uniform + 2.0**-54)
