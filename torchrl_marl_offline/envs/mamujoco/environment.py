"""MA-MuJoCo, batched: one class for all scenarios, on the CPU's threads or a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, COUNT_OR_NONE, SEED, SIZE, THREADS
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.mamujoco.names import split_name
from torchrl_marl_offline.envs.mamujoco.observations import ObservationMap
from torchrl_marl_offline.envs.mamujoco.physics import STATE_FIELDS, Physics, ThreadedMujoco
from torchrl_marl_offline.envs.mamujoco.reference import make_reference
from torchrl_marl_offline.envs.mamujoco.scenarios import SCENARIOS
from torchrl_marl_offline.envs.mamujoco.warp_physics import WarpMujoco

if TYPE_CHECKING:
    import numpy as np


class MultiAgentMujoco(TeamEnv):
    """A robot whose joints are shared out among agents: ``mamujoco/<scenario>-<partition>`` (Peng et al., 2021).

    The tasks are gymnasium-robotics' ``mamujoco_v1``, with the physics, rewards and ends of Gymnasium's v5: from the
    same state, the same actions give the same observations, states, rewards and ends. Its environment also is where
    sizes, constants and the model are read from. All agents get the team's reward. ``mamujoco/<scenario>`` is
    the robot with one agent, who sees the state. Short names such as ``mamujoco/2ant`` stand in
    :data:`~torchrl_marl_offline.envs.mamujoco.names.ALIASES`.

    Unequal observations and actions are padded with zeros (padding of an action is ignored); the true sizes are in
    ``observation_sizes`` and ``action_sizes``. State: gymnasium-robotics' ``state()``. Being unhealthy is
    ``terminated``, the time limit ``truncated``. Contact forces and the places of bodies are those of the simulator's
    last evaluation, a fraction of a step before the joints' positions, as in Gymnasium. Other than there, actions
    beyond the bounds are clipped before they are paid for.

    The recordings that other papers publish are of older physics with other observations, so that their scores
    are no references here.

    Args:
        name: of the task, such as ``"Ant-2x4"`` or ``"2ant"``.
        num_envs: number of environments.
        device: where they run.
        seed: seed of the starts, which are distributed as Gymnasium's.
        max_steps: time limit; by default Gymnasium's, which is 1,000 for all but the arms.
        agent_obsk: up to how many joints away an agent sees; ``None`` for one agent that sees and does everything.
        backend: ``"mujoco"``, double precision on the CPU's threads, or ``"warp"``, single precision on a GPU (or, to
            try it, on the CPU); by default what suits the device.
        threads: threads of the backend ``"mujoco"``; by default torch's number.
        dtype: of observations, rewards and actions.
        **options: ``local_categories``, ``global_categories`` and ``agent_factorization`` of gymnasium-robotics, and
            those of the Gymnasium environment, such as ``ctrl_cost_weight``.

    Examples:
        >>> env = make_env("mamujoco/6halfcheetah", num_envs=64, seed=0)
        >>> env.rollout(10, break_when_any_done=False)["agents", "observation"].shape
        torch.Size([64, 10, 6, 9])
    """

    @checked
    def __init__(
        self,
        *,
        name: str,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int | None, COUNT] = None,
        agent_obsk: Annotated[int | None, COUNT_OR_NONE] = 1,
        backend: Literal["mujoco", "warp"] | None = None,
        threads: Annotated[int | None, THREADS] = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        device = torch.device(device)
        backend = backend or ("mujoco" if device.type == "cpu" else "warp")
        if backend not in ("mujoco", "warp"):
            raise ValueError(f"backend must be 'mujoco' or 'warp', got {backend!r}.")
        scenario, partition = split_name(name)
        reference = make_reference(scenario, partition, agent_obsk=agent_obsk, **options)
        simulator: type[Physics] = ThreadedMujoco if backend == "mujoco" else WarpMujoco
        base = reference.single_agent_env
        self._rules = SCENARIOS[scenario](base.unwrapped, dtype=simulator.dtype, device=device)
        self._observe = ObservationMap(reference, self._rules)
        self._physics = simulator(
            base.unwrapped.model,
            frame_skip=base.unwrapped.frame_skip,
            fields=sorted({*self._rules.fields, *self._observe.fields}.difference(STATE_FIELDS)),
            num_envs=num_envs,
            device=device,
            threads=threads,
        )
        self.observation_sizes = self._observe.observation_sizes
        self.action_sizes = tuple(space.shape[0] for space in reference.action_spaces.values())
        bounds = next(iter(reference.action_spaces.values()))
        spec = TaskSpec(
            n_agents=len(self.action_sizes),
            observation_size=max(self.observation_sizes),
            state_size=self._observe.state_size,
            action_size=max(self.action_sizes),
            action_low=float(bounds.low[0]),
            action_high=float(bounds.high[0]),
            task=f"mamujoco/{name}",
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=base._max_episode_steps if max_steps is None else max_steps,
            dtype=dtype,
        )
        self._motor_index = self._motors(reference)
        self._renderer = None

    def set_state(self, qpos: Tensor, qvel: Tensor) -> TensorDict:
        """Put the joints at given positions ``[B, nq]`` and velocities ``[B, nv]``; returns what a reset would."""
        model = self._rules.model
        for which, value, size in (("qpos", qpos, model.nq), ("qvel", qvel, model.nv)):
            if value.shape != (self.num_envs, size):
                raise ValueError(f"{which} must have the shape {[self.num_envs, size]}, got {list(value.shape)}.")
        return self._set_game(**self._physics.start(qpos, qvel))

    def render(self, index: int = 0, *, size: int = 256) -> np.ndarray:
        """Draw one of the environments as it is now; no display is needed.

        Args:
            index: which of them.
            size: height and width of the picture in pixels.

        Returns:
            uint8 ``[size, size, 3]``.

        Raises:
            RuntimeError: if there is neither EGL nor OSMesa (nor a display), or before the first reset.
        """
        from torchrl_marl_offline.envs.mamujoco.rendering import Renderer

        if not self._game:
            raise RuntimeError("There is nothing to draw before the first reset().")
        if self._renderer is None or self._renderer.size != size:
            self._renderer = Renderer(self._rules.env, size=size)
        return self._renderer(self._game["qpos"][index], self._game["qvel"][index])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the window of the renderer out of copies."""
        return super().__getstate__() | {"_renderer": None}

    def _start(self, rows: Tensor | None) -> Game:
        return self._physics.start(*self._rules.start(self.random.uniform(self._rules.draws, rows=rows)))

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        action = action.clamp(self.task_spec.action_low, self.task_spec.action_high)
        control = action.flatten(1).index_select(-1, self._motor_index).to(self._physics.dtype)
        after = self._physics.step(game, control)
        reward = self._rules.reward(game, after, control).to(self.float_dtype)
        reward = reward.unsqueeze(-1).repeat(1, self.task_spec.n_agents)  # [B] -> [B, n]
        return Outcome(after, reward, self._rules.terminated(after))

    def _view(self, game: Game) -> View:
        view = self._observe(game)
        return View(view.observation.to(self.float_dtype), view.state.to(self.float_dtype))

    def _motors(self, reference) -> Tensor:
        """Return where in the flattened actions ``[n * a]`` each motor's control stands."""
        width = self.task_spec.action_size
        places = {
            node.act_ids: agent * width + i
            for agent, nodes in enumerate(reference.agent_action_partitions)
            for i, node in enumerate(nodes)
        }
        if sorted(places) != list(range(self._rules.model.nu)):
            raise ValueError("agent_factorization must give every motor to exactly one agent.")
        return torch.tensor([places[motor] for motor in sorted(places)], device=self.device)
