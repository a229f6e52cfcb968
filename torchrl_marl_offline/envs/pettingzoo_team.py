"""A PettingZoo environment in the library's key layout, in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor

from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE, checked
from torchrl_marl_offline.data.layout import TaskSpec
from torchrl_marl_offline.envs.action_ranges import ActionRanges
from torchrl_marl_offline.envs.base import EpisodesLostError, Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.time_limit import time_limit

if TYPE_CHECKING:
    from pettingzoo import AECEnv, ParallelEnv

_MASK, _SEEN = "action_mask", "observation"


@checked
def from_pettingzoo(
    env: ParallelEnv | AECEnv | Callable[[], ParallelEnv | AECEnv],
    *,
    num_envs: Annotated[int, SIZE] = 1,
    device: torch.device | str = "cpu",
    seed: Annotated[int | None, SEED] = None,
    max_steps: Annotated[int | None, COUNT] = None,
) -> PettingZooTeam:
    """Bring a cooperative PettingZoo environment into the key layout, as :func:`~torchrl_marl_offline.make_env` does.

    All of ``possible_agents``, in that order, form the group ``agents``. Copies are stepped one after another in this
    process.

    - Observations are flattened by Gymnasium (a discrete one is one-hot) and padded with zeros to the widest.
    - Actions are all discrete or all boxes. Discrete ones count from 0; where agents have unequal numbers of them, or
      the environment gives an ``"action_mask"`` in its observations or infos, there is ``("agents", "action_mask")``.
      Boxes are padded as in VMAS tasks: see :class:`~torchrl_marl_offline.envs.action_ranges.ActionRanges`.
    - ``"state"`` is the environment's ``state()``, where it has one, or else the true observations in a row.
    - ``("agents", "mask")`` is false for agents that are not in ``agents`` (not yet there, or gone): their observation,
      after the last one, and their reward are 0, their action is ignored, and only action 0 is legal.
    - The episode ends when no agent is left: ``truncated`` if any of the last ones was truncated or at the time limit,
      and else ``terminated``.
    - Each reset has a seed of its own that depends on ``seed``, on the copy and on the episode, so that the same seed
      gives the same roll-out whatever ``num_envs``, if the environment has no other chance than its own.

    Args:
        env: a parallel environment, one by turns whose agents act at the same time (converted by PettingZoo's
            ``aec_to_parallel``), or a function that makes one; a function if ``num_envs`` is above 1.
        num_envs: number of copies.
        device: where tensors go.
        seed: of the resets.
        max_steps: time limit; by default the environment's own ``max_cycles`` or the like.

    Raises:
        TypeError: it is no PettingZoo environment.
        ValueError: it cannot be brought into the layout; the message says why.

    Examples:
        >>> from mpe2 import simple_speaker_listener_v4
        >>> from torchrl_marl_offline.envs import from_pettingzoo
        >>> env = from_pettingzoo(simple_speaker_listener_v4.parallel_env, num_envs=2, seed=0)
        >>> env.rollout(3)["agents", "action_mask"].shape  # one agent has 3 actions, the other 5
        torch.Size([2, 3, 2, 5])
    """
    if hasattr(env, "possible_agents"):
        if num_envs > 1:
            raise ValueError(f"One environment was given for num_envs={num_envs}: give a function that makes one.")
        envs = [_parallel(env)]
    elif callable(env):
        envs = [_parallel(env()) for _ in range(num_envs)]
    else:
        raise TypeError(f"env must be a PettingZoo environment or a function that makes one, got {type(env).__name__}.")
    return PettingZooTeam(envs, device=device, seed=seed, max_steps=max_steps)


def _parallel(env: Any) -> ParallelEnv:
    from pettingzoo import AECEnv, ParallelEnv
    from pettingzoo.utils.conversions import aec_to_parallel

    if isinstance(env, AECEnv):
        if not env.metadata.get("is_parallelizable", False):
            raise ValueError(
                f"The agents of {env} act in turns, and the layout wants one action of all agents in every step; only "
                f"environments whose metadata has is_parallelizable=True can be converted."
            )
        return aec_to_parallel(env)
    if not isinstance(env, ParallelEnv):
        raise TypeError(f"env must be a PettingZoo environment, parallel or by turns, got {type(env).__name__}.")
    return env


class PettingZooTeam(TeamEnv):
    """What :func:`from_pettingzoo` returns.

    Args:
        envs: the copies.
        device: where tensors go.
        seed: of the resets.
        max_steps: time limit.
    """

    checks_masks = True

    def __init__(
        self,
        envs: list[ParallelEnv],
        *,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        self._envs, one = envs, envs[0]
        self._seeds: list[int] = [0] * len(envs)  # how each running episode came about: its seed and its actions
        self._played: list[list[Tensor]] = [[] for _ in envs]
        self.agent_names = list(one.possible_agents)
        limit = time_limit(one, max_steps)
        _, infos = one.reset(seed=0)
        self._spaces = [_Spaces(one, name) for name in self.agent_names]
        self.observation_sizes = tuple(spaces.observation_size for spaces in self._spaces)
        masked = any(
            _MASK in infos.get(name, {}) or spaces.mask_in_observation
            for name, spaces in zip(self.agent_names, self._spaces)
        )
        discrete, numbers = _discrete_sizes(self._spaces)
        ranges = None
        if not discrete:
            boxes = [spaces.action for spaces in self._spaces]
            ranges = ActionRanges([b.low.ravel() for b in boxes], [b.high.ravel() for b in boxes], device="cpu")
        self._ranges, self._numbers = ranges, numbers
        self._has_state = _state(one) is not None
        spec = TaskSpec(
            n_agents=len(self.agent_names),
            observation_size=max(self.observation_sizes),
            state_size=_state(one).size if self._has_state else sum(self.observation_sizes),
            action_size=max(numbers),
            discrete=discrete,
            action_low=ranges.low if ranges else -1.0,
            action_high=ranges.high if ranges else 1.0,
            has_action_mask=discrete and (masked or len(set(numbers)) > 1),
            task=f"pettingzoo/{one.metadata.get('name', type(one.unwrapped).__name__)}",
        )
        super().__init__(
            spec=spec,
            num_envs=len(envs),
            device=device,
            seed=seed,
            max_episode_steps=limit,
            has_agent_mask=True,
        )

    def _start(self, rows: Tensor | None) -> Game:
        seeds = (self.random.uniform(1, rows=rows).flatten() * 2**31).long().tolist()
        indices = range(self.num_envs) if rows is None else rows.tolist()
        return self._stack([self._start_copy(index, seed) for index, seed in zip(indices, seeds)])

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        steps = [self._step_copy(index, row) for index, row in enumerate(action.cpu())]
        games, rewards, terminated, truncated = zip(*steps)
        flags = (torch.tensor(each, device=self.device) for each in (terminated, truncated))
        reward = torch.tensor(rewards, dtype=self.float_dtype, device=self.device)
        terminated, truncated = flags
        return Outcome(self._stack(games), reward, terminated, truncated=truncated)

    def _step_copy(self, index: int, action: Tensor) -> tuple[dict[str, np.ndarray], list[float], bool, bool]:
        """Step one copy by ``action`` ``[n, ...]``: its game, the agents' rewards, terminated, truncated."""
        env = self._envs[index]
        if not env.agents:
            raise RuntimeError(f"Environment {index} is done and has not been reset: reset it before the next step.")
        self._played[index].append(action.detach().clone())
        parts = action if self._ranges is None else [each[0].numpy() for each in self._ranges.split(action[None])]
        acting = {name: i for i, name in enumerate(self.agent_names) if name in set(env.agents)}
        chosen = {name: self._spaces[i].to_action(parts[i]) for name, i in acting.items()}
        observations, rewards, _, truncated, infos = env.step(chosen)
        ended = not env.agents
        # whoever is there at the end counts as alive: the episode ended for all, and nobody has died alone
        game = self._read(env, observations, infos, set(acting) if ended else set(env.agents))
        cut_off = ended and any(truncated.get(name, False) for name in acting)
        rewards = [float(rewards.get(name, 0.0)) if name in acting else 0.0 for name in self.agent_names]
        return game, rewards, ended and not cut_off, cut_off

    def _start_copy(self, index: int, seed: int) -> dict[str, np.ndarray]:
        env = self._envs[index]
        self._seeds[index], self._played[index] = seed, []
        observations, infos = env.reset(seed=seed)
        return self._read(env, observations, infos, set(env.agents))

    def _simulator_state(self) -> dict[str, Any]:
        """Return how the running episodes came about: PettingZoo's environments have no other way to tell."""
        actions = [torch.stack(played) if played else None for played in self._played]
        return {"seeds": list(self._seeds), "actions": actions}

    def _load_simulator_state(self, state: Mapping[str, Any]) -> None:
        """Play the running episodes again up to where they were."""
        if not self._game:
            return
        games = []
        for index, (seed, actions) in enumerate(zip(state["seeds"], state["actions"])):
            games.append(self._start_copy(index, seed))
            for action in [] if actions is None else actions:
                games[-1] = self._step_copy(index, action)[0]
        found = self._stack(games)
        for key, value in self._game.items():
            if not torch.equal(found[key].nan_to_num(), value.nan_to_num()):
                raise EpisodesLostError(
                    f"{self.task_spec.task} does not play the same episode twice from one seed and the same actions: "
                    f"its {key} is another"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Bring copies to where the originals are: many environments (``EzPickle``) are copied by making another."""
        super().__setstate__(state)
        if any(hasattr(env.unwrapped, "_ezpickle_args") for env in self._envs):
            self._load_simulator_state(self._simulator_state())

    def _read(self, env: Any, observations: dict, infos: dict, alive: set[str]) -> dict[str, np.ndarray]:
        """Return one copy's part of the game; an agent's last observation is read too."""
        spec = self.task_spec
        seen = np.zeros((spec.n_agents, spec.observation_size), np.float32)
        legal = np.zeros((spec.n_agents, spec.action_size), bool)
        for i, (name, spaces) in enumerate(zip(self.agent_names, self._spaces)):
            if name in observations:
                seen[i, : spaces.observation_size] = spaces.flatten(observations[name])
            if name in alive and spec.discrete:
                legal[i, : self._numbers[i]] = spaces.mask(observations.get(name), infos.get(name, {}))
            else:
                legal[i, 0] = True
        if self._has_state:
            state = _state(env)
        else:
            state = np.concatenate([each[:size] for each, size in zip(seen, self.observation_sizes)])
        mask = np.array([name in alive for name in self.agent_names])
        return {"observation": seen, "state": state, "mask": mask, "action_mask": legal}

    def _stack(self, games: list[dict[str, np.ndarray]]) -> Game:
        return {key: torch.from_numpy(np.stack([each[key] for each in games])).to(self.device) for key in games[0]}

    def _view(self, game: Game) -> View:
        action_mask = game["action_mask"] if self.task_spec.has_action_mask else None
        return View(game["observation"], game["state"], action_mask, game["mask"])

    def render(self, index: int = 0, *, size: int = 256) -> np.ndarray:
        """Return the picture that the environment itself draws; its size is the environment's own."""
        frame = self._envs[index].render()
        if not isinstance(frame, np.ndarray):
            raise RuntimeError("The environment draws no picture: make it with render_mode='rgb_array'.")
        return frame[..., :3].astype(np.uint8)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close all copies."""
        for env in self._envs:
            env.close()
        super().close(raise_if_closed=raise_if_closed)


class _Spaces:
    """What one agent sees and does."""

    def __init__(self, env: ParallelEnv, name: str) -> None:
        from gymnasium.spaces import Box, Dict, Discrete, flatdim

        self.name = name
        seen, self.action = env.observation_space(name), env.action_space(name)
        self.mask_in_observation = isinstance(seen, Dict) and set(seen.spaces) == {_SEEN, _MASK}
        self.observation = seen[_SEEN] if self.mask_in_observation else seen
        try:
            self.observation_size = flatdim(self.observation)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"The observations of {name!r}, {seen}, cannot be flattened to a vector.") from error
        if not isinstance(self.action, Box | Discrete):
            raise ValueError(f"The actions of {name!r} are {self.action}; only Discrete and Box can be used.")
        self.discrete = isinstance(self.action, Discrete)
        self.number = int(self.action.n) if self.discrete else self.action.low.size

    def flatten(self, observation: Any) -> np.ndarray:
        from gymnasium.spaces import flatten

        return flatten(self.observation, observation[_SEEN] if self.mask_in_observation else observation)

    def mask(self, observation: Any, info: dict) -> np.ndarray:
        mask = observation[_MASK] if self.mask_in_observation else info.get(_MASK)
        return np.ones(self.number, bool) if mask is None else np.asarray(mask).astype(bool)

    def to_action(self, chosen: Any) -> Any:
        if self.discrete:
            if not chosen < self.number:
                raise ValueError(f"{self.name!r} has {self.number} actions, got action {int(chosen)}: mind the mask.")
            return int(chosen) + int(self.action.start)
        return chosen.astype(self.action.dtype).reshape(self.action.shape)


def _discrete_sizes(spaces: list[_Spaces]) -> tuple[bool, list[int]]:
    kinds = {each.discrete for each in spaces}
    if len(kinds) > 1:
        raise ValueError(
            f"Some agents have discrete and some continuous actions, but the layout wants one kind for all: "
            f"{', '.join(str(each.action) for each in spaces)}."
        )
    return kinds.pop(), [each.number for each in spaces]


def _state(env: ParallelEnv) -> np.ndarray | None:
    try:
        state = env.state()
    except (NotImplementedError, AttributeError):
        return None
    return np.asarray(state, np.float32).ravel()
