"""A PettingZoo environment in the library's key layout, in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE
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
    action_mask: bool | None = None,
    own_bounds: bool = False,
) -> PettingZooTeam:
    """Bring a cooperative PettingZoo environment into the key layout, as :func:`~torchrl_marl_offline.make_env` does.

    All of ``possible_agents``, in that order, form the group ``agents``. Copies are stepped one after another in this
    process.

    - Observations are flattened by Gymnasium (a discrete one is one-hot) and padded with zeros to the widest.
    - Actions are all discrete or all boxes. Discrete ones count from 0; where agents have unequal numbers of them, or
      the environment gives an ``"action_mask"`` in its observations or infos (at the reset or after a first step, which
      is tried), there is ``("agents", "action_mask")``, and an action that it forbids is an error.
      Boxes are padded as in VMAS tasks: see :class:`~torchrl_marl_offline.envs.action_ranges.ActionRanges`.
    - ``"state"`` is what the environment's ``state()`` returns, where it has that method (a dictionary is flattened in
      the order of its keys), or else the padded observations in a row, as :func:`~torchrl_marl_offline.from_arrays` has
      it.
    - ``("agents", "mask")`` is false for agents that are not there: not in ``agents``, or terminated or truncated
      before, whether or not ``agents`` still names them. Their observation, after the last one, and their reward are 0,
      their action is ignored, and only action 0 is legal.
    - The episode ends when no agent is left: ``truncated`` if any of the last ones was truncated alone (with both flags
      it terminated) or at the time limit, and else ``terminated``.
    - Each reset has a seed of its own that depends on ``seed``, on the copy and on the episode, so that the same seed
      gives the same roll-out whatever ``num_envs``, if the environment has no other chance than its own.

    Args:
        env: a parallel environment, one by turns whose agents act at the same time (converted by PettingZoo's
            ``aec_to_parallel``), or a function that makes one; a function if ``num_envs`` is above 1.
        num_envs: number of copies.
        device: where tensors go.
        seed: of the resets.
        max_steps: time limit; by default the environment's own ``max_cycles`` or the like.
        action_mask: whether there is a mask; by default it is looked for. Only needed where it first appears later.
        own_bounds: where bounds of actions differ between agents or components, leave actions in their own units,
            instead of scaling each to [-1, 1].

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
    if hasattr(env, "possible_agents") and not isinstance(env, type):
        if num_envs > 1:
            raise ValueError(f"One environment was given for num_envs={num_envs}: give a function that makes one.")
        envs = [_parallel(env)]
    elif callable(env):
        envs = [_parallel(env()) for _ in range(num_envs)]
    else:
        raise TypeError(f"env must be a PettingZoo environment or a function that makes one, got {type(env).__name__}.")
    return PettingZooTeam(
        envs, device=device, seed=seed, max_steps=max_steps, action_mask=action_mask, own_bounds=own_bounds
    )


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
        action_mask: whether there is a mask; ``None`` looks for it.
        own_bounds: leave actions of unequal bounds in their own units.
    """

    checks_masks = True

    def __init__(
        self,
        envs: list[ParallelEnv],
        *,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        max_steps: int | None = None,
        action_mask: bool | None = None,
        own_bounds: bool = False,
    ) -> None:
        self._envs, one = envs, envs[0]
        self._seeds: list[int] = [0] * len(envs)  # how each running episode came about: its seed and its actions
        self._played: list[list[Tensor]] = [[] for _ in envs]
        self.agent_names = list(one.possible_agents)
        limit = time_limit(one, max_steps)
        found = one.reset(seed=0)
        self._spaces = [_Spaces(one, name) for name in self.agent_names]
        self.observation_sizes = tuple(spaces.observation_size for spaces in self._spaces)
        discrete, numbers = _discrete_sizes(self._spaces)
        masked = self._find_mask(one, *found) if action_mask is None else action_mask
        self._ended: list[set[str]] = [set() for _ in envs]
        self._last: list[tuple[dict, dict]] = [({}, {}) for _ in envs]
        ranges = None
        if not discrete:
            boxes = [spaces.action for spaces in self._spaces]
            lows, highs = ([getattr(box, end).ravel() for box in boxes] for end in ("low", "high"))
            ranges = ActionRanges(lows, highs, device="cpu", own_bounds=own_bounds)
        self._ranges, self._numbers = ranges, numbers
        self._has_state = _state(one) is not None
        spec = TaskSpec(
            n_agents=len(self.agent_names),
            observation_size=max(self.observation_sizes),
            state_size=_state(one).size if self._has_state else len(numbers) * max(self.observation_sizes),
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

    def _find_mask(self, env: ParallelEnv, observations: dict, infos: dict) -> bool:
        """Say whether an environment masks actions: at its reset, or after a first step."""
        spaces = dict(zip(self.agent_names, self._spaces))
        if any(each.mask_in_observation or each.has_mask(observations, infos) for each in self._spaces):
            return True
        if not all(each.discrete for each in self._spaces):
            return False
        first = {name: spaces[name].to_action(0) for name in env.agents}
        observations, *_, infos = env.step(first)
        found = any(each.has_mask(observations, infos) for each in self._spaces)
        env.reset(seed=0)
        return found

    def _start(self, rows: Tensor | None) -> Game:
        seeds = (self.random.uniform(1, rows=rows).flatten() * 2**31).long().tolist()
        indices = range(self.num_envs) if rows is None else rows.tolist()
        return self._stack([self._start_copy(index, seed) for index, seed in zip(indices, seeds)])

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        if self.task_spec.has_action_mask:
            self._check_legal(game, action)
        steps = [self._step_copy(index, row) for index, row in enumerate(action.cpu())]
        games, rewards, terminated, truncated = zip(*steps)
        flags = (torch.tensor(each, device=self.device) for each in (terminated, truncated))
        reward = torch.tensor(rewards, dtype=self.float_dtype, device=self.device)
        terminated, truncated = flags
        return Outcome(self._stack(games), reward, terminated, truncated=truncated)

    def _step_copy(self, index: int, action: Tensor) -> tuple[dict[str, np.ndarray], list[float], bool, bool]:
        """Step one copy by ``action`` ``[n, ...]``: its game, the agents' rewards, terminated, truncated."""
        env = self._envs[index]
        acting = set(env.agents) - self._ended[index]
        if not acting:
            raise RuntimeError(f"Environment {index} is done and has not been reset: reset it before the next step.")
        self._played[index].append(action.detach().clone())
        parts = action if self._ranges is None else [each[0].numpy() for each in self._ranges.split(action[None])]
        chosen = {}
        for i, (name, spaces) in enumerate(zip(self.agent_names, self._spaces)):
            if name in acting:
                chosen[name] = spaces.to_action(parts[i])
            elif name in env.agents:  # it has ended, but an environment that still names it waits for its action
                chosen[name] = spaces.idle(*self._last[index])
        observations, rewards, terminated, truncated, infos = env.step(chosen)
        left, ended, cut_off = self._who_is_left(index, acting, terminated, truncated)
        game = self._read(index, observations, infos, left, left | acting)
        rewards = [float(rewards.get(name, 0.0)) if name in acting else 0.0 for name in self.agent_names]
        return game, rewards, ended and not cut_off, ended and cut_off

    def _start_copy(self, index: int, seed: int) -> dict[str, np.ndarray]:
        env = self._envs[index]
        self._seeds[index], self._played[index], self._ended[index] = seed, [], set()
        observations, infos = env.reset(seed=seed)
        return self._read(index, observations, infos, set(env.agents), set(env.agents))

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

    def _who_is_left(
        self, index: int, acting: set[str], terminated: dict, truncated: dict
    ) -> tuple[set[str], bool, bool]:
        """Note who has ended in a copy; return who counts as alive, if the episode is over, if anybody was cut off."""
        done = {name for name in acting if terminated.get(name, False)}
        cut_off = {name for name in acting if truncated.get(name, False)} - done
        named = set(self._envs[index].agents)
        ended = self._ended[index]
        ended &= named  # one that was gone and comes back lives again
        ended |= (done | cut_off) & named
        if left := named - ended:
            return left, False, bool(cut_off)
        # whoever is there at the end counts as alive: the episode ended for all, and nobody has died alone
        return acting - done if cut_off else acting, True, bool(cut_off)

    def _check_legal(self, game: Game, action: Tensor) -> None:
        chosen = action.clamp(0, self.task_spec.action_size - 1).unsqueeze(-1)
        illegal = ~game["action_mask"].gather(-1, chosen).squeeze(-1) & game["mask"]
        illegal &= action < torch.tensor(self._numbers, device=action.device)  # the others are found later
        if illegal.any():
            index, agent = illegal.nonzero()[0].tolist()
            raise ValueError(
                f"Action {int(action[index, agent])} of {self.agent_names[agent]!r} is illegal now in environment "
                f"{index}: mind the mask, ('agents', 'action_mask')."
            )

    def _read(
        self, index: int, observations: dict, infos: dict, alive: set[str], shown: set[str]
    ) -> dict[str, np.ndarray]:
        """Return one copy's part of the game; ``shown`` are those whose observation is read, the last one too."""
        self._last[index] = observations, infos
        spec = self.task_spec
        seen = np.zeros((spec.n_agents, spec.observation_size), np.float32)
        legal = np.zeros((spec.n_agents, spec.action_size), bool)
        for i, (name, spaces) in enumerate(zip(self.agent_names, self._spaces)):
            if name in observations and name in shown:
                seen[i, : spaces.observation_size] = spaces.flatten(observations[name])
            if name in alive and spec.discrete:
                legal[i, : self._numbers[i]] = spaces.mask(observations, infos, expected=spec.has_action_mask)
            else:
                legal[i, 0] = True
        state = _state(self._envs[index]) if self._has_state else seen.ravel()
        if state.size != spec.state_size:
            raise ValueError(f"state() has {state.size} numbers now and had {spec.state_size} at the start.")
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
        self.mask_in_observation = isinstance(seen, Dict) and _MASK in seen.spaces
        rest = {key: space for key, space in seen.spaces.items() if key != _MASK} if self.mask_in_observation else {}
        self._nested = set(rest) == {_SEEN}
        self.observation = rest[_SEEN] if self._nested else Dict(rest) if rest else seen
        try:
            self.observation_size = flatdim(self.observation)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"The observations of {name!r}, {seen}, cannot be flattened to a vector.") from error
        if not isinstance(self.action, Box | Discrete):
            raise ValueError(f"The actions of {name!r} are {self.action}; only Discrete and Box can be used.")
        self.discrete = isinstance(self.action, Discrete)
        self.number = int(self.action.n) if self.discrete else self.action.low.size

    def flatten(self, observation: Any) -> np.ndarray:
        from gymnasium.spaces import Dict, flatten

        if isinstance(observation, Mapping):  # with its mask, perhaps, which the space may not declare
            rest = {key: value for key, value in observation.items() if key != _MASK}
            undeclared = not isinstance(self.observation, Dict) and set(rest) == {_SEEN}
            observation = rest[_SEEN] if self._nested or undeclared else rest
        return flatten(self.observation, observation)

    def _mask(self, observations: dict, infos: dict) -> np.ndarray | None:
        for entry in (observations.get(self.name), infos.get(self.name)):
            if isinstance(entry, Mapping) and entry.get(_MASK) is not None:
                mask = np.asarray(entry[_MASK]).astype(bool).ravel()
                if mask.size != self.number:
                    raise ValueError(f"The action_mask of {self.name!r} is for {mask.size} actions, not {self.number}.")
                return mask
        return None

    def has_mask(self, observations: dict, infos: dict) -> bool:
        return self.discrete and self._mask(observations, infos) is not None

    def mask(self, observations: dict, infos: dict, *, expected: bool) -> np.ndarray:
        mask = self._mask(observations, infos)
        if mask is not None and not expected:
            raise ValueError(
                f"{self.name!r} has an action_mask now and had none at the start: give from_pettingzoo(..., "
                "action_mask=True)."
            )
        return np.ones(self.number, bool) if mask is None else mask

    def idle(self, observations: dict, infos: dict) -> Any:
        """Return an action that is legal and that nobody chose."""
        if not self.discrete:
            return np.clip(np.zeros(self.action.shape, self.action.dtype), self.action.low, self.action.high)
        mask = self._mask(observations, infos)
        return self.to_action(0 if mask is None else int(mask.argmax()))

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
            f"Some agents have discrete and some continuous actions "
            f"({', '.join(str(each.action) for each in spaces)}), but the layout wants one kind for all; wrap the "
            "environment so that the discrete ones choose by the sign or the rounding of a number."
        )
    return kinds.pop(), [each.number for each in spaces]


def _state(env: ParallelEnv) -> np.ndarray | None:
    method = getattr(env, "state", None)
    if not callable(method):  # an attribute of that name is the environment's own affair
        return None
    try:
        state = method()
    except (NotImplementedError, AttributeError):
        return None
    return None if state is None else _numbers(state)


def _numbers(value: Any) -> np.ndarray:
    """Return all numbers of nested dictionaries and sequences of arrays in a row, dictionaries by their sorted keys."""
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value, key=str)]
    if isinstance(value, list | tuple) and value:
        return np.concatenate([_numbers(each) for each in value])
    try:
        return np.asarray(value, np.float32).ravel()
    except (TypeError, ValueError) as error:
        raise ValueError(f"state() returns {value!r}, which is no number: leave it out of the state.") from error
