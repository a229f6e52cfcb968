"""Hand-written teams that steer to their goals in scenarios of VMAS, sparse or not."""

from __future__ import annotations

from typing import Annotated

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, SEED
from torchrl_marl_offline.envs.base import game_of
from torchrl_marl_offline.envs.scripted import Chance
from torchrl_marl_offline.envs.vmas_scenarios import VmasScenario

STEERING = {
    "navigation": ("goal", "drift"),
    "give_way": ("first_waits", "second_waits", "nobody_waits"),
    "dispersion": ("apart", "nearest"),
    "dropout": ("nearest_goes", "all_go"),
}
"""The kinds of teams by scenario, the good ones first."""

_GAIN, _DAMPING = 4.0, 1.5
_GOAL = 2.29  # where the goals of give_way are, to the right and to the left
_NICHE = 0.44  # height of the middle of its niche, in which one agent lets the other pass


class SteeringController(TensorDictModuleBase):
    """Steers to goals in ``vmas/navigation``, ``give_way``, ``dispersion`` and ``dropout``, and in their sparse forms.

    The action is ``4 (target - p) - 1.5 v`` with Gaussian noise, clipped to the bounds. The target depends on the
    positions at the moment alone:

    - navigation: each agent's goal (``"goal"``), or 0.3 to the right of it (``"drift"``);
    - give_way: ``"first_waits"`` and ``"second_waits"``: this agent goes into the niche and leaves it when the other,
      which keeps away until then, has passed; ``"nobody_waits"``: both go straight on and block each other;
    - dispersion: the foods that are left are shared by the agents in order (``"apart"``), or each agent goes to the
      nearest, which from one start is the same for all (``"nearest"``);
    - dropout: the agent that is nearest goes to the goal (``"nearest_goes"``), or all do (``"all_go"``), at a cost.

    Args:
        env: the environment that it is to play in.
        kind: one of these; ``None``: the first of the scenario's.
        noise: standard deviation of the noise on the action, in units of the largest action.
        seed: of the noise; ``None`` takes torch's global generator.

    Raises:
        ValueError: the environment is another task, or the scenario has no such team.

    Examples:
        >>> from torchrl_marl_offline.envs import SteeringController, make_env
        >>> env = make_env("vmas/dispersion_sparse", num_envs=20, seed=0)
        >>> play = env.rollout(100, SteeringController(env), break_when_any_done=False)
        >>> bool(play["next", "success"].any(1).all())
        True
    """

    @checked
    def __init__(
        self,
        env: EnvBase,
        kind: str | None = None,
        *,
        noise: Annotated[float, NON_NEGATIVE] = 0.0,
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        refusal = f"SteeringController plays in {', '.join(f'vmas/{name}' for name in STEERING)}, not in"
        game: VmasScenario = game_of(env, VmasScenario, refusal)
        if game.scenario not in STEERING:
            raise ValueError(f"{refusal} {game.task_spec.task}.")
        kinds = STEERING[game.scenario]
        if kind is not None and kind not in kinds:
            raise ValueError(f"kind must be one of {', '.join(kinds)} in {game.task_spec.task}, got {kind!r}.")
        self.in_keys, self.out_keys = [OBSERVATION], [ACTION]
        super().__init__()
        self.kind, self.noise, self.spec = kind or kinds[0], noise, game.task_spec
        self._away = {
            "navigation": self._to_goals,
            "give_way": self._past_each_other,
            "dispersion": self._to_food,
            "dropout": self._one_or_all,
        }[game.scenario]
        self._chance = Chance(seed)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        observation = tensordict.get(OBSERVATION)  # [*B, n, o]
        away, goes = self._away(observation)  # [*B, n, 2], [*B, n]
        action = (_GAIN * away - _DAMPING * observation[..., 2:4]) * goes.unsqueeze(-1)
        low, high = self.spec.bounds_like(action)
        action = action.clamp(low, high)
        if self.noise:
            drawn = torch.empty_like(action).normal_(generator=self._chance(action.device))
            action = (action + self.noise * high * drawn).clamp(low, high)
        return tensordict.set(ACTION, action)

    def _to_goals(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        away = -observation[..., 4:6]
        if self.kind == "drift":
            away = away + away.new_tensor([0.3, 0.0])
        return away, _all(observation)

    def _to_food(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        food = observation[..., 4:].unflatten(-1, (-1, 3))  # [*B, n, m, 3]
        left = food[..., 2] < 0.5
        if self.kind == "nearest":
            rank = torch.linalg.vector_norm(food[..., :2], dim=-1)
        else:
            place = torch.arange(food.shape[-3], device=food.device).unsqueeze(-1)
            count = left.sum(-1, keepdim=True).clamp_min(1)
            rank = (left.cumsum(-1) - 1 - place % count).abs().to(food.dtype)
        chosen = rank.masked_fill(~left, torch.inf).argmin(-1)[..., None, None]
        return food.gather(-2, chosen.expand(*chosen.shape[:-1], 3)).squeeze(-2)[..., :2], _all(observation)

    def _one_or_all(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        away = observation[..., 4:6]
        if self.kind == "all_go":
            return away, _all(observation)
        nearest = torch.linalg.vector_norm(away, dim=-1).argmin(-1, keepdim=True)
        return away, torch.zeros_like(away[..., 0]).scatter_(-1, nearest, 1.0)

    def _past_each_other(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        position = observation[..., :2]  # the first agent starts on the left
        goals = position.new_tensor([[_GOAL, 0.0], [-_GOAL, 0.0]])
        if self.kind == "nobody_waits":
            return goals - position, _all(observation)
        waiting = 0 if self.kind == "first_waits" else 1
        waits, passes = position[..., waiting, :], position[..., 1 - waiting, :]
        side = 1.0 if waiting == 0 else -1.0  # where the one that waits goes afterwards, and the other comes from
        passed = side * (passes[..., 0] - waits[..., 0]) < -0.4
        x, y = waits.unbind(-1)
        in_niche = y > _NICHE - 0.08
        enters = (x.abs() < 0.04) | (y > 0.08)
        inside = torch.stack([torch.zeros_like(x), torch.where(enters, _NICHE, 0.0)], -1)
        outside = torch.stack([torch.where(y > 0.08, 0.0, side * _GOAL), torch.zeros_like(y)], -1)
        target_of_waiting = torch.where(passed.unsqueeze(-1), outside, inside)
        free = in_niche | passed
        ahead = torch.where(free, -side * _GOAL, side * 0.6)
        target_of_passing = torch.stack([ahead, torch.zeros_like(ahead)], -1)
        targets = [target_of_waiting, target_of_passing]
        return torch.stack(targets if waiting == 0 else targets[::-1], -2) - position, _all(observation)


def _all(observation: Tensor) -> Tensor:
    return torch.ones_like(observation[..., 0])
