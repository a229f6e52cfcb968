"""JaxMARL's games as two jitted functions over a batch of them; tensors come and go by dlpack."""

from __future__ import annotations

import abc
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View

Array = Any  # jax.Array; JAX is optional


class Games(NamedTuple):
    """The games that go on, a pytree whose leaves begin with the number of environments ``B``."""

    state: Any  # JaxMARL's
    key: Array  # uint32 [B, 2], of the episode's chance
    episode: Array  # int32 [B]


class Seen(NamedTuple):
    """What the layout wants of a game, bools as uint8."""

    observation: Array  # float32 [B, n, o]
    state: Array  # float32 [B, s]
    legal: Array | None = None  # uint8 [B, n, A]
    alive: Array | None = None  # uint8 [B, n]


class Ends(NamedTuple):
    """What a step brings besides."""

    reward: Array  # float32 [B, n]
    terminated: Array  # uint8 [B]
    won: Array | None = None  # uint8 [B]


class JaxRules(abc.ABC):
    """A game of JaxMARL, for any number of games at once.

    The chance of a game depends on (seed, environment, episode, step) and on nothing else: each is folded into the key
    of the seed in turn. JaxMARL's own ``step`` begins a new game where one has ended, and returns its observation in
    the place of the last one; here ``step_env`` is called, so that the last one is the true one.

    Args:
        game: the environment of JaxMARL.
    """

    def __init__(self, game: Any) -> None:
        import jax

        self.game = game
        self.step = jax.jit(jax.vmap(self._step))
        self.restart = jax.jit(jax.vmap(self._restart, in_axes=(None, 0, 0, 0)))

    @abc.abstractmethod
    def _look(self, observations: Any, state: Any) -> Seen:
        """Return what is seen of one game."""

    @abc.abstractmethod
    def _ends(self, state: Any, rewards: Any, dones: Mapping[str, Array], infos: Mapping[str, Any]) -> Ends:
        """Return what a step of one game brings besides."""

    def _steps_taken(self, state: Any) -> Array:
        """Return the number of steps since the start of one game."""
        return state.step

    def no_games(self, num_envs: int) -> Games:
        """Return placeholders before the first episode."""
        import jax

        kind = jax.eval_shape(self._begin, jax.random.PRNGKey(0), 0, 0)[0]
        return jax.tree.map(lambda leaf: jax.numpy.zeros((num_envs, *leaf.shape), leaf.dtype), kind)

    def _begin(self, seed: Array, index: Array, episode: Array) -> tuple[Games, Seen]:
        import jax

        chance = jax.random.fold_in(jax.random.fold_in(seed, index), episode)
        start, key = jax.random.split(chance)
        observations, state = self.game.reset(start)
        return Games(state, key, jax.numpy.int32(episode)), self._look(observations, state)

    def _restart(self, seed: Array, index: Array, wanted: Array, games: Games) -> tuple[Games, Seen]:
        """Begin the next episode where ``wanted`` (uint8); the rest of what is seen means nothing."""
        import jax

        fresh, seen = self._begin(seed, index, games.episode + 1)
        wanted = wanted.astype(bool)
        return jax.tree.map(lambda new, old: jax.numpy.where(wanted, new, old), fresh, games), seen

    def _step(self, games: Games, action: Array) -> tuple[Games, Seen, Ends]:
        import jax

        key = jax.random.fold_in(games.key, self._steps_taken(games.state))
        actions = dict(zip(self.game.agents, action))
        observations, state, rewards, dones, infos = self.game.step_env(key, games.state, actions)
        ends = self._ends(state, rewards, dones, infos)
        return games._replace(state=state), self._look(observations, state), ends


class JaxTeam(TeamEnv):
    """A game of JaxMARL in the key layout.

    A step of all environments is one jitted call, and so is the restart of those whose episode has ended; tensors and
    JAX's arrays share their memory through dlpack, except the actions, which are converted to int32.

    A subclass calls :meth:`_bring_jax` before the constructor.
    """

    _rules: Any

    @abc.abstractmethod
    def _make_rules(self) -> JaxRules:
        """Return the rules, the same object each time: JAX compiles them once for each number of games."""

    def _start(self, rows: Tensor | None = None) -> Game:
        return self._restart(None)

    def _restart(self, reset: Tensor | None) -> Game:
        wanted = torch.ones(self.num_envs, dtype=torch.bool, device=self.device) if reset is None else reset
        self._games, seen = self._rules.restart(
            self._seed_key, self._index, to_jax(wanted.to(torch.uint8)), self._games
        )
        fresh = _as_game(seen)
        return fresh if reset is None else self._where_reset(reset, fresh)

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        self._games, seen, ends = self._rules.step(self._games, to_jax(action.to(torch.int32)))
        won = None if ends.won is None else to_torch(ends.won)
        return Outcome(_as_game(seen), to_torch(ends.reward), to_torch(ends.terminated), won)

    def _view(self, game: Game) -> View:
        return View(**game)

    def _set_seed(self, seed: int | None) -> None:
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        super()._set_seed(seed)  # draws nothing here, but is a part of the episodes' state
        self._seed_key = seed_key(seed, device=self._jax_device)
        self._games = self._games._replace(episode=self._games.episode * 0)

    def _simulator_state(self) -> dict[str, Any]:
        import jax

        games = [torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(self._games)]
        return {"games": games, "seed": torch.from_numpy(np.array(self._seed_key))}

    def _load_simulator_state(self, state: Mapping[str, Any]) -> None:
        import jax

        *leaves, self._seed_key = [
            jax.device_put(tensor.cpu().numpy(), self._jax_device) for tensor in [*state["games"], state["seed"]]
        ]
        self._games = jax.tree.unflatten(jax.tree.structure(self._games), leaves)

    def __getstate__(self) -> dict[str, Any]:
        """Leave JAX's own objects out of copies."""
        ours = {"_jax_device", "_rules", "_games", "_index", "_seed_key"}
        kept = {name: value for name, value in super().__getstate__().items() if name not in ours}
        state = self._simulator_state()
        # as arrays: pickle does not bring torch's tensors of unsigned numbers back
        games, seed = [each.numpy() for each in state["games"]], state["seed"].numpy()
        return kept | {"_copied": {"games": games, "seed": seed}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        copied = state.pop("_copied")
        super().__setstate__(state)
        self._bring_jax(self.num_envs, self.device)
        games, seed = [torch.from_numpy(each) for each in copied["games"]], torch.from_numpy(copied["seed"])
        self._load_simulator_state({"games": games, "seed": seed})

    def _bring_jax(self, num_envs: int, device: torch.device) -> None:
        self._jax_device = jax_device(device)
        import jax

        self._rules = self._make_rules()
        self._games = jax.device_put(self._rules.no_games(num_envs), self._jax_device)
        self._index = jax.device_put(np.arange(num_envs, dtype=np.int32), self._jax_device)


def _as_game(seen: Seen) -> Game:
    game = {"observation": seen.observation, "state": seen.state, "action_mask": seen.legal, "mask": seen.alive}
    return {name: to_torch(each) for name, each in game.items() if each is not None}


@contextmanager
def streams_kept() -> Iterator[None]:
    """Import JaxMARL, which prints, and which leaves ``sys.stdout`` and ``sys.stderr`` as the process began with."""
    kept = sys.stdout, sys.stderr, sys.__stdout__
    sys.stdout = sys.__stdout__ = io.StringIO()
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.__stdout__ = kept


def seed_key(seed: int, *, device: Any) -> Array:
    """Return JAX's key for a seed of up to 64 bits."""
    import jax

    low, high = (np.uint32(part & 0xFFFFFFFF) for part in (seed, seed >> 32))
    return jax.device_put(jax.random.fold_in(jax.random.PRNGKey(low), high), device)


def jax_device(device: torch.device) -> Any:
    """Return JAX's name of a device.

    Raises:
        RuntimeError: JAX does not see it.
    """
    if device.type == "cuda":
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes most of torch's memory
    import jax

    kind = {"cpu": "cpu", "cuda": "gpu"}.get(device.type, device.type)
    try:
        return jax.devices(kind)[device.index or 0]
    except (RuntimeError, IndexError) as error:
        raise RuntimeError(
            f"A game of JaxMARL on {str(device)!r} needs a JAX that sees this device: pip install 'jax[cuda13]' (or "
            f"cuda12), or take device='cpu'."
        ) from error


def to_jax(tensor: Tensor) -> Array:
    """Hand a tensor over without a copy."""
    import jax

    return jax.dlpack.from_dlpack(tensor.contiguous())


def to_torch(array: Array) -> Tensor:
    """Hand an array over without a copy, uint8 as bool."""
    tensor = torch.from_dlpack(array)
    return tensor.view(torch.bool) if tensor.dtype == torch.uint8 else tensor
