"""JaxMARL's SMAX as two jitted functions over a batch of battles; tensors come and go by dlpack."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

Array = Any  # jax.Array; JAX is optional


class Battles(NamedTuple):
    """The battles that go on, a pytree whose leaves begin with the number of environments ``B``."""

    state: Any  # JaxMARL's
    key: Array  # uint32 [B, 2], of the episode's chance
    episode: Array  # int32 [B]


class Seen(NamedTuple):
    """What the layout wants of a battle, bools as uint8."""

    observation: Array  # float32 [B, n, o]
    state: Array  # float32 [B, s]
    legal: Array  # uint8 [B, n, A]
    alive: Array  # uint8 [B, n]


class Ends(NamedTuple):
    """What a step brings besides."""

    reward: Array  # float32 [B, n]
    terminated: Array  # uint8 [B]
    won: Array  # uint8 [B]


class Rules:
    """SMAX against JaxMARL's heuristic enemy, for any number of battles at once.

    The chance of a battle depends on (seed, environment, episode, step) and on nothing else: each is folded into the
    key of the seed in turn.

    Args:
        scenario: JaxMARL's name of it, such as ``"2s3z"``.
        **options: those of ``jaxmarl.environments.smax.HeuristicEnemySMAX``.
    """

    def __init__(self, scenario: str, **options: Any) -> None:
        with _streams_kept():
            from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario
        import jax

        self.game = HeuristicEnemySMAX(scenario=map_name_to_scenario(scenario), **options)
        self.step = jax.jit(jax.vmap(self._step))
        self.restart = jax.jit(jax.vmap(self._restart, in_axes=(None, 0, 0, 0)))

    def no_battles(self, num_envs: int) -> Battles:
        """Return placeholders before the first episode."""
        import jax

        kind = jax.eval_shape(self._begin, jax.random.PRNGKey(0), 0, 0)[0]
        return jax.tree.map(lambda leaf: jax.numpy.zeros((num_envs, *leaf.shape), leaf.dtype), kind)

    def _begin(self, seed: Array, index: Array, episode: Array) -> tuple[Battles, Seen]:
        import jax

        chance = jax.random.fold_in(jax.random.fold_in(seed, index), episode)
        start, key = jax.random.split(chance)
        observations, state = self.game.reset(start)
        return Battles(state, key, jax.numpy.int32(episode)), self._look(observations, state)

    def _restart(self, seed: Array, index: Array, wanted: Array, battle: Battles) -> tuple[Battles, Seen]:
        """Begin the next episode where ``wanted`` (uint8); the rest of what is seen means nothing."""
        import jax

        fresh, seen = self._begin(seed, index, battle.episode + 1)
        wanted = wanted.astype(bool)
        return jax.tree.map(lambda new, old: jax.numpy.where(wanted, new, old), fresh, battle), seen

    def _step(self, battle: Battles, action: Array) -> tuple[Battles, Seen, Ends]:
        import jax

        key = jax.random.fold_in(battle.key, battle.state.state.step)
        actions = dict(zip(self.game.agents, action))
        observations, state, rewards, _, _ = self.game.step_env(key, battle.state, actions)
        alive = state.state.unit_alive
        lost, beaten = ~alive[: self.game.num_allies].any(), ~alive[self.game.num_allies :].any()
        reward = jax.numpy.stack([rewards[agent] for agent in self.game.agents]).astype("float32")
        ends = Ends(reward, (lost | beaten).astype("uint8"), (beaten & ~lost).astype("uint8"))
        return battle._replace(state=state), self._look(observations, state), ends

    def _look(self, observations: dict[str, Array], state: Any) -> Seen:
        import jax.numpy as jnp

        agents, legal = self.game.agents, self.game.get_avail_actions(state)
        return Seen(
            observation=jnp.stack([observations[agent] for agent in agents]).astype("float32"),
            state=self.game.get_world_state(state).astype("float32"),
            legal=jnp.stack([legal[agent] for agent in agents]).astype("uint8"),
            alive=state.state.unit_alive[: len(agents)].astype("uint8"),
        )


@contextmanager
def _streams_kept() -> Iterator[None]:
    """Import JaxMARL, which prints, and which leaves ``sys.stdout`` and ``sys.stderr`` as the process began with."""
    kept = sys.stdout, sys.stderr, sys.__stdout__
    sys.stdout = sys.__stdout__ = io.StringIO()
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.__stdout__ = kept


@cache
def rules(scenario: str, options: tuple[tuple[str, Any], ...] = ()) -> Rules:
    """Return the rules of a scenario, the same object each time: JAX compiles them once for each number of battles."""
    return Rules(scenario, **dict(options))


def seed_key(seed: int, *, device: Any) -> Array:
    """Return JAX's key for a seed of up to 64 bits."""
    import jax
    import numpy as np

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
            f"smax on {str(device)!r} needs a JAX that sees this device: pip install 'jax[cuda13]' (or cuda12), or "
            f"take device='cpu'."
        ) from error


def to_jax(tensor: Tensor) -> Array:
    """Hand a tensor over without a copy."""
    import jax

    return jax.dlpack.from_dlpack(tensor.contiguous())


def to_torch(array: Array) -> Tensor:
    """Hand an array over without a copy, uint8 as bool."""
    tensor = torch.from_dlpack(array)
    return tensor.view(torch.bool) if tensor.dtype == torch.uint8 else tensor
