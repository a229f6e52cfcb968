"""Any TorchRL multi-agent environment in the library's key layout, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec
from torchrl.envs import Compose, EnvBase, StepCounter, TransformedEnv, VmasEnv
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import DONE, STATE, SUCCESS, TERMINATED, TRUNCATED, TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, SEED
from torchrl_marl_offline.envs.action_ranges import ActionRanges, pad_last
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.time_limit import time_limit


@checked
def from_torchrl(
    env: EnvBase,
    *,
    group_map: dict[str, Sequence[str]] | Sequence[str] | None = None,
    seed: Annotated[int | None, SEED] = None,
    max_steps: Annotated[int | None, COUNT] = None,
    own_bounds: bool = False,
) -> TorchRLTeam:
    """Bring a TorchRL environment whose agents are in groups into the key layout of this library.

    The agents of all groups form the one group ``agents``, group by group. Per group ``g`` of ``n_g`` agents the
    environment has ``(g, "observation")`` ``[*B, n_g, ...]`` (a tensor or a nest of them), ``(g, "action")`` and
    ``(g, "reward")`` (or one ``"reward"`` for all), and possibly ``(g, "action_mask")`` and ``(g, "mask")``.

    - Observations are flattened, concatenated and padded with zeros to the widest.
    - Actions are all categorical (or one-hot), or all bounded; they are padded as by
      :class:`~torchrl_marl_offline.envs.action_ranges.ActionRanges`.
    - ``"state"`` is the environment's, where it has one, or else the padded observations in a row, as
      :func:`~torchrl_marl_offline.from_arrays` has it.
    - A ``"success"`` at the root, if there is one, is passed on.
    - Ends: the environment's ``done``, ``terminated`` and ``truncated`` at the root, or else those of its groups; then
      an episode ends for the team when it has ended for every agent. The time limit is ``truncated``.

    Seeds are handed to the environment, so equal seeds give equal roll-outs as far as it keeps to that; whether they
    depend on the number of environments is its own affair. Its episodes are no part of checkpoints: online training
    that is resumed begins new ones, and says so (see :class:`~torchrl_marl_offline.training.CollectorSource`).

    Args:
        env: of batch size ``[]`` (one environment) or ``[num_envs]``.
        group_map: group -> names of its agents, or the groups alone; by default ``env.group_map``, or whatever has an
            action. Only needed to choose or to order groups.
        seed: handed to the environment.
        max_steps: time limit; by default that of a :class:`torchrl.envs.StepCounter`, or of whatever is wrapped.
        own_bounds: where bounds of actions differ between agents or components, leave actions in their own units,
            instead of scaling each to [-1, 1].

    Raises:
        TypeError: it is no TorchRL environment.
        ValueError: it cannot be brought into the layout; the message says why.

    Examples:
        >>> from torchrl.envs import VmasEnv
        >>> from torchrl_marl_offline.envs import from_torchrl
        >>> env = from_torchrl(VmasEnv("simple_tag", num_envs=2), max_steps=25, seed=0)
        >>> env.rollout(3)["agents", "observation"].shape  # three adversaries and one agent, in two groups
        torch.Size([2, 3, 4, 16])
    """
    if not isinstance(env, EnvBase):
        raise TypeError(f"env must be a TorchRL environment, got {type(env).__name__}.")
    base = env.base_env if isinstance(env, TransformedEnv) else env
    if isinstance(base, VmasEnv) and base.max_steps is not None:
        raise ValueError(
            "VmasEnv reports its time limit as a termination: make it without max_steps, and give max_steps here."
        )
    if len(env.batch_size) > 1:
        raise ValueError(f"env must have batch size [] or [num_envs], got {list(env.batch_size)}.")
    options = {"group_map": group_map, "seed": seed, "own_bounds": own_bounds}
    return TorchRLTeam(env, max_steps=_limit(env, max_steps), **options)


def _limit(env: EnvBase, max_steps: int | None) -> int:
    layer = env
    while isinstance(layer, TransformedEnv):
        for transform in layer.transform if isinstance(layer.transform, Compose) else [layer.transform]:
            if max_steps is None and isinstance(transform, StepCounter):
                max_steps = transform.max_steps
        layer = layer.base_env
    return time_limit(env, max_steps)


@dataclass
class _Group:
    """One group of the wrapped environment."""

    name: str
    agents: int
    observation: list[tuple[str, ...]]
    width: int
    action: TensorSpec
    number: int

    @property
    def discrete(self) -> bool:
        return not isinstance(self.action, Bounded)


class TorchRLTeam(TeamEnv):
    """What :func:`from_torchrl` returns.

    Args:
        env: the environment.
        group_map: its groups.
        seed: handed to it.
        max_steps: time limit.
        own_bounds: leave actions of unequal bounds in their own units.
    """

    checks_masks = True

    def __init__(
        self,
        env: EnvBase,
        *,
        group_map: dict[str, Sequence[str]] | Sequence[str] | None,
        seed: int | None,
        max_steps: int,
        own_bounds: bool = False,
    ) -> None:
        self._wrapped = (env,)  # in a tuple: a module of a module would be moved and counted twice
        self._single = not env.batch_size
        seen = env.full_observation_spec
        self._groups = [_read_group(env, name) for name in _group_names(env, group_map)]
        discrete = {group.discrete for group in self._groups}
        if len(discrete) > 1:
            raise ValueError(f"Some groups of {env} have discrete and some continuous actions; make them of one kind.")
        (discrete,) = discrete
        sizes = [(group.width, group.number) for group in self._groups for _ in range(group.agents)]
        self.observation_sizes, numbers = (tuple(column) for column in zip(*sizes))
        self._numbers, self._ranges = numbers, None if discrete else _ranges(self._groups, own_bounds)
        self._has_state = STATE in seen.keys(True) and not isinstance(seen[STATE], Composite)
        keys = set(seen.keys(True, True))
        self._masked = any((group.name, "action_mask") in keys for group in self._groups)
        spec = TaskSpec(
            n_agents=len(numbers),
            observation_size=max(self.observation_sizes),
            state_size=self._flat(seen[STATE].zero()).shape[-1]
            if self._has_state
            else len(numbers) * max(self.observation_sizes),
            action_size=max(numbers),
            discrete=discrete,
            action_low=self._ranges.low if self._ranges else -1.0,
            action_high=self._ranges.high if self._ranges else 1.0,
            has_action_mask=discrete and (self._masked or len(set(numbers)) > 1),
            task=f"torchrl/{type(env.base_env if isinstance(env, TransformedEnv) else env).__name__}",
        )
        self._current: TensorDictBase | None = None
        super().__init__(
            spec=spec,
            num_envs=1 if self._single else env.batch_size[0],
            device=env.device or "cpu",
            seed=seed,
            max_episode_steps=max_steps,
            has_agent_mask=any((group.name, "mask") in keys for group in self._groups),
            has_success=SUCCESS in keys,
        )

    def _start(self, rows: Tensor | None) -> Game:
        self._current = self._wrapped[0].reset()
        return self._read(self._current)

    def _restart(self, reset: Tensor | None) -> Game:
        if reset is None or bool(reset.all()):
            return self._start(None)
        env = self._wrapped[0]
        asked = self._current.clone()
        for key in env.reset_keys:
            done = key[:-1] if isinstance(key, tuple) else ()
            like = asked.get((*done, DONE))
            asked.set(key, reset.view(-1, *[1] * (like.dim() - 1)).expand_as(like))
        self._current = env.reset(asked)
        return self._where_reset(reset, self._read(self._current))

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        env, first = self._wrapped[0], 0
        parts = None if self._ranges is None else self._ranges.split(action)
        for group in self._groups:
            members = range(first, first + group.agents)
            if parts is None:
                chosen = action[:, first : first + group.agents]
                if bool((chosen >= group.number).any()):
                    raise ValueError(f"Group {group.name!r} has {group.number} actions; mind the mask of the others.")
                chosen = F.one_hot(chosen, group.number) if isinstance(group.action, OneHot) else chosen
            else:
                chosen = torch.stack([parts[i] for i in members], 1)
            chosen = chosen.to(group.action.dtype).reshape(group.action.shape)
            self._current.set((group.name, "action"), chosen)
            first += group.agents
        stepped = env.step(self._current).get("next")
        self._current = env.step_mdp(self._current)
        reward = torch.cat([self._of_group(stepped, group, "reward") for group in self._groups], 1)
        ends = {key: self._ended(stepped, key) for key in (DONE, TERMINATED, TRUNCATED)}
        truncated = ends[TRUNCATED] | (ends[DONE] & ~ends[TERMINATED])
        success = self._flat(stepped.get(SUCCESS)).any(-1) if self.has_success else None
        return Outcome(self._read(stepped), reward.to(self.float_dtype), ends[TERMINATED], success, truncated=truncated)

    def _simulator_state(self) -> None:
        """Return nothing: TorchRL's environments have no way to tell theirs."""
        return

    def __getstate__(self) -> dict[str, Any]:
        """Leave a graph out of copies; whether they can be made is up to the wrapped environment."""
        current = None if self._current is None else self._current.detach()
        return super().__getstate__() | {"_current": current}

    def _of_group(self, data: TensorDictBase, group: _Group, key: str) -> Tensor:
        """Return one number for each agent of a group, ``[B, n_g]``."""
        found = data.get((group.name, key), None)
        found = data.get(key) if found is None else found
        return self._batched(found).flatten(1).expand(self.num_envs, group.agents)

    def _ended(self, data: TensorDictBase, key: str) -> Tensor:
        """Return whether the episode has ended in this way, bool ``[B]``."""
        found = data.get(key, None)
        if found is not None:
            return self._batched(found).flatten(1).any(-1)
        groups = [data.get((group.name, key), None) for group in self._groups]
        if any(each is None for each in groups):
            return torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return torch.stack([self._batched(each).flatten(1).all(-1) for each in groups], -1).all(-1)

    def _read(self, data: TensorDictBase) -> Game:
        spec = self.task_spec
        seen: list[Tensor] = []
        for group in self._groups:
            parts = [self._batched(data.get(key)).flatten(2).to(self.float_dtype) for key in group.observation]
            seen += torch.cat(parts, -1).unbind(1)  # [B, n_g, o_g] -> n_g x [B, o_g]
        observation = pad_last(seen, spec.observation_size)
        state = self._flat(data.get(STATE)) if self._has_state else observation.flatten(1)
        game = {"observation": observation, "state": state.to(self.float_dtype)}
        if self.has_agent_mask:
            masks = [data.get((group.name, "mask"), None) for group in self._groups]
            alive = [
                torch.ones(self.num_envs, group.agents, dtype=torch.bool, device=self.device)
                if mask is None
                else self._batched(mask).reshape(self.num_envs, group.agents)
                for group, mask in zip(self._groups, masks)
            ]
            game["mask"] = torch.cat(alive, 1)
        if spec.has_action_mask:
            game["action_mask"] = self._legal(data)
        return game

    def _legal(self, data: TensorDictBase) -> Tensor:
        shape = (self.num_envs, self.task_spec.n_agents, self.task_spec.action_size)
        legal = torch.zeros(shape, dtype=torch.bool, device=self.device)
        first = 0
        for group in self._groups:
            mask = data.get((group.name, "action_mask"), None)
            part = legal[:, first : first + group.agents, : group.number]
            part.copy_(torch.ones_like(part) if mask is None else self._batched(mask).view_as(part))
            first += group.agents
        return legal

    def _batched(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(0) if self._single else tensor

    def _flat(self, tensor: Tensor) -> Tensor:
        return self._batched(tensor).flatten(1)

    def _view(self, game: Game) -> View:
        return View(game["observation"], game["state"], game.get("action_mask"), game.get("mask"))

    def _set_seed(self, seed: int | None) -> None:
        super()._set_seed(seed)
        if seed is not None:
            self._wrapped[0].set_seed(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the wrapped environment."""
        self._wrapped[0].close(raise_if_closed=raise_if_closed)
        super().close(raise_if_closed=raise_if_closed)


def _group_names(env: EnvBase, group_map: dict | Sequence[str] | None) -> list[str]:
    keys = env.action_keys
    acting = [key[0] for key in keys if isinstance(key, tuple) and len(key) == 2 and key[1] == "action"]
    if len(acting) != len(keys):
        raise ValueError(f"Every action key must be (group, 'action'); those of this environment are {keys}.")
    names = list(group_map if group_map is not None else _own_groups(env) or acting)
    if sorted(names) != sorted(acting):
        raise ValueError(f"group_map must name every group that acts, {acting}, once; it names {names}.")
    return names


def _own_groups(env: EnvBase) -> dict | None:
    """Return the environment's own ``group_map``; one that steps copies of another has none until it has started."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return None if isinstance(env, BatchedEnvBase) else getattr(env, "group_map", None)


def _read_group(env: EnvBase, name: str) -> _Group:
    dims = len(env.batch_size)
    action = env.full_action_spec[name, "action"]
    usable = isinstance(action, Bounded | Categorical | OneHot)
    if not usable or isinstance(action, MultiCategorical | MultiOneHot):  # these are subclasses
        raise ValueError(
            f"The actions of group {name!r} are {type(action).__name__}; only Bounded, Categorical and OneHot of one "
            f"size within a group can be used (put agents of other sizes into groups of their own)."
        )
    group = env.full_observation_spec.get(name, None)
    keys = list(group.keys(True, True)) if isinstance(group, Composite) else []
    keys = [key if isinstance(key, tuple) else (key,) for key in keys]
    found = [key for key in keys if key[0] == "observation"]
    if not found:
        raise ValueError(f"Group {name!r} has no observation: it has {keys} and should have 'observation'.")
    shapes = [group[key].shape[dims:] for key in found]  # [n_g, ...] each
    width = sum(torch.Size(shape[1:]).numel() for shape in shapes)
    number = torch.Size(action.shape[dims + 1 :]).numel() if isinstance(action, Bounded) else int(action.space.n)
    return _Group(name, shapes[0][0], [(name, *key) for key in found], width, action, number)


def _ranges(groups: Sequence[_Group], own_bounds: bool) -> ActionRanges:
    lows, highs = [], []
    for group in groups:
        at = (group.agents, group.number)
        # the bounds of every environment are the same, so those of the last one are read
        lows += group.action.low.reshape(-1, *at)[-1].unbind(0)
        highs += group.action.high.reshape(-1, *at)[-1].unbind(0)
    device = groups[0].action.device or torch.device("cpu")
    return ActionRanges(lows, highs, device=device, own_bounds=own_bounds)
