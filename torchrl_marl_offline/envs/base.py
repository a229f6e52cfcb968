"""The base class of the batched environments: specs, time limit, partial resets, and the one key layout."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    DONE,
    GROUP,
    STATE,
    SUCCESS,
    TERMINATED,
    TRUNCATED,
    TaskSpec,
    joined,
)
from torchrl_marl_offline.core.ranges import COUNT, REAL, SEED, SIZE, SIZE_OR_NONE
from torchrl_marl_offline.core.usable_mask import usable_mask
from torchrl_marl_offline.envs.counter_rng import CounterRandom

if TYPE_CHECKING:
    import numpy as np
    from tensordict import NestedKey

    from torchrl_marl_offline.envs.drawing import Scene

STEP_COUNT = "step_count"
_WHOLE = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})

Game = dict[str, Tensor]
GameEnv = TypeVar("GameEnv", bound="TeamEnv")


class Outcome(NamedTuple):
    """What one step of a game leads to, for ``B`` environments and ``n`` agents."""

    game: Game
    reward: Tensor  # [B, n]
    terminated: Tensor  # [B] bool
    success: Tensor | None = None  # [B] bool
    truncated: Tensor | None = None  # [B] bool, cut off by the game itself, before the time limit


class EpisodesLostError(RuntimeError):
    """The episodes that were running when a checkpoint was written cannot be gone on with."""


class View(NamedTuple):
    """What can be seen of a game."""

    observation: Tensor  # [B, n, o]
    state: Tensor  # [B, s]
    action_mask: Tensor | None = None  # [B, n, A] bool
    mask: Tensor | None = None  # [B, n] bool, which agents live
    goal: Tensor | None = None  # [B, n, g], what each agent is to reach
    achieved: Tensor | None = None  # [B, n, g], what it has reached


class TeamEnv(EnvBase):
    """A batched multi-agent environment with all agents in the group ``agents``.

    The batch size is ``[num_envs]``, for one environment too. Every tensor stays on ``device``; a step reads
    nothing back to the host. Besides the layout's keys, the environment writes ``"step_count"`` (int64
    ``[B, 1]``, 0 at a reset, as :class:`torchrl.envs.StepCounter` does) and, where the task has one,
    ``"success"`` (bool ``[B, 1]``). The time limit is ``truncated``, never ``terminated``; a step that ends the
    task at the limit is ``terminated`` alone.

    A subclass gives the rules as functions of a dictionary of tensors: :meth:`_start`, :meth:`_advance` and
    :meth:`_view`, all of them without side effects and for all environments at once; and :meth:`_scene`, if it can be
    drawn. One that keeps more than that dictionary says what by :meth:`_simulator_state`.

    Args:
        spec: sizes of the task.
        num_envs: number of environments ``B``.
        device: where the environments run.
        seed: seed of the starts; the same seed gives the same starts whatever ``num_envs`` and ``device``.
            ``None`` draws one from torch's global generator.
        max_episode_steps: the time limit, in steps.
        reference_returns: mean episode return of random play and of the reference expert, if known.
        has_success: whether :class:`Outcome` carries ``success``.
        has_agent_mask: whether :class:`View` carries ``mask``.
        goal_size: width ``g`` of what :class:`View` carries as ``goal`` and ``achieved``; 0: nothing.
        dtype: of observations, rewards and continuous actions.
    """

    checks_masks = False
    """Whether masks are somebody else's: then each is looked at, which on a GPU the host waits for."""

    own_rewards = False
    """Whether each agent has a reward of its own; evaluations then say how agents share what they earn."""

    @checked
    def __init__(
        self,
        *,
        spec: TaskSpec,
        num_envs: Annotated[int, SIZE],
        device: torch.device | str,
        seed: Annotated[int | None, SEED],
        max_episode_steps: Annotated[int, COUNT],
        reference_returns: Annotated[tuple[float, float] | None, REAL] = None,
        has_success: bool = False,
        has_agent_mask: bool = False,
        goal_size: Annotated[int, SIZE_OR_NONE] = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(device=torch.device(device), batch_size=[num_envs])
        self.num_envs = num_envs
        self.task_spec = spec
        self.max_episode_steps = max_episode_steps
        self.reference_returns = reference_returns
        self.has_success = has_success
        self.has_agent_mask = has_agent_mask
        self.goal_size = goal_size
        self.float_dtype = dtype
        self._make_specs()
        self._game: Game = {}
        self._step_count = self._zeros(torch.int64)
        self._false = self._zeros(torch.bool)
        self.set_seed(seed)

    @abc.abstractmethod
    def _start(self, rows: Tensor | None) -> Game:
        """Draw a start for the environments ``rows`` (int64 ``[R]``; ``None``: all of them) from ``self.random``."""

    @abc.abstractmethod
    def _advance(self, game: Game, action: Tensor) -> Outcome:
        """Apply the joint actions, ``[B, n, a]`` or ``[B, n]``."""

    @abc.abstractmethod
    def _view(self, game: Game) -> View:
        """Return what the agents and the mixer see."""

    def _scene(self, index: int) -> Scene:
        """Return what environment ``index`` looks like now."""
        raise NotImplementedError(f"{self.task_spec.task or type(self).__name__} has nothing to draw.")

    def render(self, index: int = 0, *, size: int = 256) -> np.ndarray:
        """Draw one of the environments as it is now; no display is needed.

        Args:
            index: which of them.
            size: height of the picture in pixels.

        Returns:
            uint8 ``[size, width, 3]``, the same width for every picture of a task.

        Raises:
            NotImplementedError: the task has nothing to draw, as a matrix game.
        """
        from torchrl_marl_offline.envs.drawing import draw  # matplotlib is slow to import

        if not self._game:
            raise RuntimeError("There is nothing to draw before the first reset().")
        return draw(self._scene(index), size=size)

    def facts(self) -> dict[str, Any]:
        """Return what recordings carry of the game, JSON-ready: its best return, where that is known."""
        best = getattr(self, "best_return", None)
        return {} if best is None else {"best_return": best}

    def episodes_state(self) -> dict[str, Any] | None:
        """Return all that the running episodes and the coming ones depend on, as tensors, numbers and words.

        ``None`` where that cannot be had: a simulator of somebody else's, a game in a process of its own.
        """
        simulator = self._simulator_state()
        if simulator is None:
            return None
        return {
            "task": self.task_spec.task,
            "game": {key: value.detach().clone() for key, value in self._game.items()},
            "step_count": self._step_count.clone(),
            "random": self.random.state_dict(),
            "simulator": simulator,
        }

    def load_episodes_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the episodes of :meth:`episodes_state`, in an environment that was made with the same arguments.

        Raises:
            ValueError: it was made for another number of environments, or is another task.
            EpisodesLostError: the simulator does not come to the same point again.
        """
        if state["task"] != self.task_spec.task:
            raise ValueError(f"the checkpoint's episodes are of {state['task']}, this run's of {self.task_spec.task}")
        there, here = len(state["step_count"]), self.num_envs
        if there != here:
            raise ValueError(f"the checkpoint's episodes are of num_envs={there}, this run has num_envs={here}")
        self.random.load_state_dict(state["random"])
        self._step_count = state["step_count"].to(self.device, copy=True)
        self._game = {key: value.to(self.device, copy=True) for key, value in state["game"].items()}
        self._load_simulator_state(state["simulator"])

    def _simulator_state(self) -> dict[str, Any] | None:
        """Return what steps depend on besides the game; ``None`` where that cannot be had."""
        return {}

    def _load_simulator_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`_simulator_state` returned; the game is there already."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out, for copies, what belongs to this process: a collector, the graph of a roll-out with gradients."""
        kept = {name: value for name, value in self.__dict__.items() if name != "_collector"}
        return kept | {"_game": {key: value.detach() for key, value in self._game.items()}}

    def _restart(self, reset: Tensor | None) -> Game:
        """Return the game with the environments ``reset`` (bool ``[B]``; ``None``: all) at a new start."""
        self.random.advance(reset)
        if reset is None:
            return self._start(None)
        # Starts cost more than steps, so they are drawn only where they are wanted.
        rows = reset.nonzero().squeeze(-1)
        start = self._start(rows)
        return {key: old.index_copy(0, rows, start[key]) for key, old in self._game.items()}

    def _where_reset(self, reset: Tensor, fresh: Game) -> Game:
        """Return ``fresh`` where ``reset`` (bool ``[B]``) is true, and the game as it is elsewhere."""
        wanted = {key: reset.view(-1, *[1] * (each.dim() - 1)) for key, each in fresh.items()}
        return {key: torch.where(wanted[key], each, self._game[key]) for key, each in fresh.items()}

    @property
    def scales_actions(self) -> bool:
        """Whether components of unequal bounds are mapped to [-1, 1], so that actions have no units of their own."""
        return getattr(getattr(self, "_ranges", None), "scaled", False)

    def _make_specs(self) -> None:
        spec, batch, at = self.task_spec, (self.num_envs,), {"device": self.device}
        n, real = spec.n_agents, {"device": self.device, "dtype": self.float_dtype}
        agents = {"observation": Unbounded(shape=(*batch, n, spec.observation_size), **real)}
        if spec.has_action_mask:
            agents["action_mask"] = self._bool_spec((*batch, n, spec.action_size))
        if self.has_agent_mask:
            agents["mask"] = self._bool_spec((*batch, n))
        if self.goal_size:
            for name in ("goal", "achieved"):
                agents[name] = Unbounded(shape=(*batch, n, self.goal_size), **real)
        observation = {
            GROUP: Composite(agents, shape=(*batch, n), **at),
            STATE: Unbounded(shape=(*batch, spec.state_size), **real),
            STEP_COUNT: Unbounded(shape=(*batch, 1), dtype=torch.int64, **at),
        }
        if self.has_success:
            observation[SUCCESS] = self._bool_spec((*batch, 1))
        self.observation_spec = Composite(observation, shape=batch, **at)
        if spec.discrete:
            action = Categorical(spec.action_size, shape=(*batch, n), dtype=torch.int64, **at)
        else:
            shape = (*batch, n, spec.action_size)
            bounds = spec.bounds_like(torch.zeros(n, spec.action_size, **real))
            low, high = (bound.expand(shape) if isinstance(bound, Tensor) else bound for bound in bounds)
            action = Bounded(low, high, shape=shape, **real)
        reward = Unbounded(shape=(*batch, n, 1), **real)
        self.action_spec = Composite({GROUP: Composite({"action": action}, shape=(*batch, n), **at)}, shape=batch, **at)
        self.reward_spec = Composite({GROUP: Composite({"reward": reward}, shape=(*batch, n), **at)}, shape=batch, **at)
        done = {key: self._bool_spec((*batch, 1)) for key in (DONE, TERMINATED, TRUNCATED)}
        self.done_spec = Composite(done, shape=batch, **at)

    def _bool_spec(self, shape: tuple[int, ...]) -> Categorical:
        return Categorical(2, shape=shape, dtype=torch.bool, device=self.device)

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self.num_envs, 1, dtype=dtype, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if not self._game:
            raise RuntimeError("There is no episode to go on with before the first reset().")
        outcome = self._advance(self._game, self._checked_action(tensordict.get(ACTION)))
        self._game = outcome.game
        self._step_count = self._step_count + 1
        terminated = outcome.terminated.unsqueeze(-1).clone()  # [B] -> [B, 1]
        truncated = self._step_count >= self.max_episode_steps
        if outcome.truncated is not None:
            truncated = truncated | outcome.truncated.unsqueeze(-1)
        truncated = truncated & ~terminated
        success = None if outcome.success is None else outcome.success.unsqueeze(-1)
        return self._pack(terminated, truncated, success, reward=outcome.reward.unsqueeze(-1))

    def _checked_action(self, action: Tensor) -> Tensor:
        """Return a joint action, int64 if discrete, and refuse what is none.

        On a GPU numbers are not looked at, for which the host would wait. NaN is none of an environment's business: it
        comes back as a return that is no number, by which a run that diverged is known.
        """
        spec = self.task_spec
        shape = (self.num_envs, spec.n_agents, *(() if spec.discrete else (spec.action_size,)))
        numbers = ""
        if action.shape == shape and (action.dtype in _WHOLE or not spec.discrete):
            action = action.long() if spec.discrete else action  # bytes would be taken for a mask
            if not spec.discrete or action.device.type != "cpu" or torch.compiler.is_compiling():
                return action
            low, high = (bound.item() for bound in action.aminmax())
            if low >= 0 and high < spec.action_size:
                return action
            numbers = f" from {low} to {high}"
        wanted = f"whole numbers from 0 to {spec.action_size - 1}" if spec.discrete else "numbers"
        got = f"{str(action.dtype).removeprefix('torch.')} {list(action.shape)}{numbers}"
        raise ValueError(f"Actions of {spec.task or type(self).__name__} are {wanted}, {list(shape)}, got {got}.")

    def _step_proc_data(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict  # complete and in shape already; to look again costs as much as a step of a small game

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs) -> TensorDictBase:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        reset = None if reset is None else reset.reshape(self.num_envs)
        if not self._game:
            reset = None
        self._game = self._restart(reset)
        zero = self._zeros(torch.int64)
        self._step_count = zero if reset is None else self._step_count * ~reset.unsqueeze(-1)
        return self._pack_start()

    def _pack_start(self) -> TensorDict:
        # each entry of its own: TorchRL writes into done entries in place when it resets
        terminated, truncated, success = (self._zeros(torch.bool) for _ in range(3))
        return self._pack(terminated, truncated, success if self.has_success else None)

    def _pack(
        self, terminated: Tensor, truncated: Tensor, success: Tensor | None, *, reward: Tensor | None = None
    ) -> TensorDict:
        view = self._view(self._game)
        agents = {"observation": view.observation}
        if view.action_mask is not None:
            legal = view.action_mask
            agents["action_mask"] = usable_mask(legal, view.mask, terminated) if self.checks_masks else legal
        if view.mask is not None:
            agents["mask"] = view.mask
        if view.goal is not None:
            agents |= {"goal": view.goal, "achieved": view.achieved}
        if reward is not None:
            agents["reward"] = reward
        shape = (self.num_envs, self.task_spec.n_agents)
        data = {
            GROUP: TensorDict._new_unsafe(agents, batch_size=torch.Size(shape), device=self.device),
            STATE: view.state,
            STEP_COUNT: self._step_count.clone(),
            DONE: terminated | truncated,
            TERMINATED: terminated,
            TRUNCATED: truncated,
        }
        if success is not None:
            data[SUCCESS] = success
        return TensorDict._new_unsafe(data, batch_size=self.batch_size, device=self.device)

    def _given(
        self,
        name: str,
        value: Any,
        size: tuple[int, ...],
        *,
        low: int = 0,
        high: int | tuple[int, ...] | None = None,
    ) -> Tensor:
        """Return what a position is made of as a tensor ``[num_envs, *size]``.

        Args:
            name: of the argument.
            value: tensor, or nested lists.
            size: of each environment's.
            low: smallest whole number.
            high: the largest, or those of the last axis; ``None``: finite numbers of any size.

        Raises:
            ValueError: it is nothing like that.
        """
        shape = (self.num_envs, *size)
        try:
            found = torch.as_tensor(value, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            found = torch.empty(0)
        got = str(list(found.shape)) if isinstance(value, Tensor) else f"{value!r:.60}"
        if high is None:
            wanted = "finite numbers"
            found = found if found.is_floating_point() else found.to(self.float_dtype)
            fits = found.shape == shape and bool(found.isfinite().all())
        else:
            wanted = f"whole numbers from {low} to {high}"
            fits = found.shape == shape
            if fits and found.numel():
                highest = torch.as_tensor(high, device=self.device)
                fits = bool(((found >= low) & (found <= highest) & (found == found.long())).all())
                got += f" from {found.min().item():g} to {found.max().item():g}"
            found = found.long()
        if not fits:
            raise ValueError(f"{name} must be {wanted}, {list(shape)}, in this {self.task_spec.task}, got {got}.")
        return found

    def _set_game(self, **tensors: Tensor) -> TensorDict:
        """Put every environment at the given position, at step 0, and return what a reset would."""
        self._game = {key: value.to(self.device) for key, value in tensors.items()}
        self._step_count = self._zeros(torch.int64)
        return self._pack_start()

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """Write a uniformly random action, among the legal ones where the task masks actions."""
        if not self.task_spec.has_action_mask or tensordict is None:
            return super().rand_action(tensordict)
        mask = tensordict.get(ACTION_MASK)
        if self.checks_masks:
            mask = usable_mask(mask, tensordict.get(AGENT_MASK, None))
        chosen = torch.multinomial(mask.flatten(0, -2).float(), 1)  # [B * n, 1]
        return tensordict.set(ACTION, chosen.view(mask.shape[:-1]))

    def _set_seed(self, seed: int | None) -> None:
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        self.random = CounterRandom(seed, num_envs=self.num_envs, device=self.device)


def facts_of(env: EnvBase) -> dict[str, Any]:
    """Return what recordings in an environment carry of its game; nothing where it is none of the library's."""
    game = getattr(env, "base_env", env)
    return game.facts() if isinstance(game, TeamEnv) else {}


def game_of(env: EnvBase, kind: type[GameEnv], refusal: str) -> GameEnv:
    """Return the game that a scripted team is to play in, without what was put around it.

    Args:
        env: the environment.
        kind: of the game.
        refusal: a sentence without its end, in which the name of what it is instead follows.

    Raises:
        ValueError: it is another.
    """
    game = getattr(env, "base_env", env)
    if isinstance(game, kind):
        return game
    raise ValueError(f"{refusal} {game.task_spec.task if isinstance(game, TeamEnv) else f'{env!r:.60}'}.")


def entry_read(team: object, tensordict: TensorDictBase, key: NestedKey, width: int | None = None) -> Tensor:
    """Return an entry that a scripted team reads, as the environment that it is for writes it.

    Args:
        team: that reads it.
        tensordict: what an environment wrote.
        key: of the entry.
        width: of its last dimension; ``None``: any.

    Raises:
        ValueError: there is none, or it has another width.
    """
    entry = tensordict.get(key, None)
    if entry is None or (width is not None and entry.shape[-1] != width):
        wanted = joined(key) if width is None else f"{joined(key)} of width {width}"
        got = "there is none" if entry is None else f"this one has {entry.shape[-1]}"
        raise ValueError(f"{type(team).__name__} reads {wanted}, and {got}; let it play where it was made for.")
    return entry
