"""One battle of StarCraft II: TorchRL's ``SMACv2Env`` with what the key layout wants besides."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Categorical, Composite
from torchrl.envs.libs.smacv2 import SMACv2Env

from torchrl_marl_offline.core.layout import ACTION_MASK, AGENT_MASK, DONE, SUCCESS, TERMINATED, TRUNCATED

NO_OP = 0  # legal for the dead alone


class StarCraftBattle(SMACv2Env):
    """A battle of batch size ``[]`` that adds ``("agents", "mask")``, ``"success"`` and ``"truncated"``.

    smacv2 says only that an episode is over. Here it is ``terminated`` when a side has lost, and ``truncated`` when the
    map's limit is reached while both stand, or when the game has crashed and was started again. ``"success"`` is
    smacv2's ``battle_won``.

    smacv2 gives its seed to the game alone, and draws teams and starts from generators that nobody seeds, and from
    Python's: all of them follow ``seed`` here, and Python's generator is left as it was.

    Args:
        map_name: of smacv2.
        seed: of the game and of smacv2.
        **arguments: of ``smacv2.env.StarCraft2Env``.
    """

    def __init__(self, map_name: str, *, seed: int, **arguments: Any) -> None:
        self._python_state = random.Random(seed).getstate()
        with self._python_chance():
            # only with continuing_episode does smacv2 say that the limit has ended the episode; it has no other effect
            super().__init__(map_name, seed=seed, continuing_episode=True, **arguments)

    def _build_env(self, *args: Any, **kwargs: Any) -> Any:
        env = super()._build_env(*args, **kwargs)
        distributions = getattr(env, "env_key_to_distribution_map", {})
        _seed_generators([*distributions.values()], np.random.default_rng(kwargs["seed"]))
        reset = env.reset

        def reset_and_look() -> tuple[Any, Any]:
            # smacv2 returns nothing after a start that it had to draw again
            return reset() or (env.get_obs(), env.get_state())

        env.reset = reset_and_look
        return env

    @contextmanager
    def _python_chance(self) -> Iterator[None]:
        outside = random.getstate()
        random.setstate(self._python_state)
        try:
            yield
        finally:
            self._python_state = random.getstate()
            random.setstate(outside)

    def _make_specs(self, env: Any) -> None:
        super()._make_specs(env)
        kind = {"n": 2, "dtype": torch.bool, "device": self.device}
        self.observation_spec[AGENT_MASK] = Categorical(shape=(self.n_agents,), **kind)
        self.observation_spec[SUCCESS] = Categorical(shape=(1,), **kind)
        self.done_spec = Composite({key: Categorical(shape=(1,), **kind) for key in (DONE, TERMINATED, TRUNCATED)})

    def _to_tensor(self, value: Any) -> Tensor:
        return torch.tensor(np.asarray(value), device=self.device, dtype=torch.float32)  # TorchRL's is slow, and warns

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        with self._python_chance():
            return self._add(super()._reset(tensordict, **kwargs))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        crashes = self.force_restarts
        with self._python_chance():
            data = self._add(super()._step(tensordict))
        cut = data["info", "episode_limit"].view(1) | (self.force_restarts > crashes)
        return data.set(TRUNCATED, data[DONE] & cut).set(TERMINATED, data[DONE] & ~cut)

    def _add(self, data: TensorDictBase) -> TensorDictBase:
        data.set(AGENT_MASK, ~data[ACTION_MASK][..., NO_OP])
        return data.set(SUCCESS, data["info", "battle_won"].view(1).clone())


def _seed_generators(things: list[Any], seeds: np.random.Generator) -> None:
    """Replace NumPy's generators in the attributes of ``things``, and of theirs."""
    for thing in things:
        for name, value in vars(thing).items():
            if isinstance(value, np.random.Generator):
                setattr(thing, name, np.random.default_rng(int(seeds.integers(2**63))))
            elif hasattr(value, "generate"):
                _seed_generators([value], seeds)
