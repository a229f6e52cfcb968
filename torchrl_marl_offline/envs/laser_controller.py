"""Hand-written teams for the laser worlds: along a shortest plan, along it for a while, or at random."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, STATE
from torchrl_marl_offline.core.ranges import SEED, UNIT
from torchrl_marl_offline.envs.base import STEP_COUNT, entry_read, game_of
from torchrl_marl_offline.envs.laser_grid import LaserGrid
from torchrl_marl_offline.envs.scripted import Chance, steps_taken

LaserKind = Literal["expert", "dropped", "random"]


class LaserController(TensorDictModuleBase):
    """Plays a shortest plan of the solver's in ``lle/*``, by legal actions only.

    - ``"expert"``: in every state of the plan, the plan's actions; in all others, where ``epsilon`` may lead, uniformly
      random legal ones, until the team comes to a state of the plan again. It reads nothing but the state.
    - ``"dropped"``: the same until a step that is drawn anew for each episode, uniformly among those of the plan; from
      that step on all agents act at random. A row begins an episode where ``"step_count"`` is 0, as the environments of
      this library write it at a reset.
    - ``"random"``: uniform over the legal actions.

    Args:
        env: the environment that it is to play in; its ``plan`` is what is played.
        kind: one of the above.
        epsilon: probability with which an agent takes a uniformly random legal action instead.
        seed: of the chance; ``None`` takes torch's global generator.

    Raises:
        ValueError: the environment is another task, or its world has no plan within the time limit.

    Examples:
        >>> from torchrl_marl_offline.envs import LaserController, make_env
        >>> env = make_env("lle/mutual-0", num_envs=8)
        >>> play = env.rollout(25, LaserController(env))
        >>> bool(play["next", "success"][:, -1].all()), play.shape[1] == len(env.plan)
        (True, True)
    """

    @checked
    def __init__(
        self,
        env: EnvBase,
        kind: LaserKind = "expert",
        *,
        epsilon: Annotated[float, UNIT] = 0.0,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        game = game_of(env, LaserGrid, "LaserController plays in environments of lle/*, not")
        self.in_keys, self.out_keys = [STATE, ACTION_MASK, STEP_COUNT], [ACTION]
        super().__init__()
        if game.plan is None and kind != "random":
            raise ValueError(
                f"The world of {game.task_spec.task} has no plan of up to {game.max_episode_steps} steps; take a "
                "larger max_steps."
            )
        self.kind, self.epsilon = kind, epsilon
        if kind != "random":
            self.register_buffer("plan", torch.tensor(game.plan, device=game.device), persistent=False)  # [T, n]
            self.register_buffer("path", game.states_along(game.plan), persistent=False)  # [T, s]
        self._chance = Chance(seed)
        self._drop: Tensor | None = None  # [*B, 1]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``.

        Raises:
            KeyError: the team is ``"dropped"``, and there is no ``"step_count"``.
        """
        mask = entry_read(self, tensordict, ACTION_MASK)
        random = self._chance.legal(mask)
        if self.kind == "random":
            return tensordict.set(ACTION, random)
        there = (entry_read(self, tensordict, STATE, self.path.shape[-1]).unsqueeze(-2) == self.path).all(-1)  # [*B, T]
        planned = self.plan[there.to(torch.uint8).argmax(-1)]  # [*B, n]
        follows = there.any(-1, keepdim=True)
        if self.kind == "dropped":
            step = steps_taken(tensordict, type(self).__name__)
            self._drop = self._chance.until(self._drop, step, len(self.plan))
            follows = follows & (step < self._drop)
        action = torch.where(follows, planned, random)
        if self.epsilon:
            action = self._chance.explored(action, random, self.epsilon)
        return tensordict.set(ACTION, action)
