"""SMAX, JaxMARL's battles in the manner of the StarCraft Multi-Agent Challenge, in the key layout."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE
from torchrl_marl_offline.envs import smax_battles
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, Shape

SCENARIOS: tuple[str, ...] = (
    *("3m", "8m", "25m", "2s3z", "3s5z", "5m_vs_6m", "10m_vs_11m", "27m_vs_30m", "3s5z_vs_3s6z", "3s_vs_5z"),
    *("6h_vs_8z", "smacv2_5_units", "smacv2_10_units", "smacv2_20_units"),
)
"""JaxMARL's scenarios, known without importing it."""


class Smax(TeamEnv):
    """A battle of SMAX against JaxMARL's heuristic enemy: ``smax/<scenario>`` (Rutherford et al., 2024).

    The allies are the group ``agents``; the game, its observations and its rewards (the share of the enemy's health
    taken, and 1 for a victory, to every agent, dead or alive) are JaxMARL's. ``"state"`` is its ``world_state``:
    health, position, cooldown and type of every unit, zeros for the dead, then teams and types. It is not scaled:
    positions are up to 32, and the cooldown of who does not shoot falls by 0.5 a step without limit. ``record`` has
    ``normalize_state=`` for such states, ``make_loss`` ``inputs=``.
    ``("agents", "mask")`` is false for the dead, whose only legal action is to stop (4). ``terminated`` is the death of
    a whole side; ``success`` is a victory: all enemies dead and somebody alive. The time limit is ``truncated`` only.

    A step of all environments is one jitted call, and so is the restart of those whose episode has ended; tensors and
    JAX's arrays share their memory through dlpack, except the actions, which are converted to int32. The first step
    and the first restart for each number of environments compile, which takes some seconds. An environment plays the
    same battles for the same seed whatever ``num_envs`` is, up to how the compiler orders sums.

    Args:
        scenario: its name, such as ``"2s3z"``.
        num_envs: number of environments.
        device: where they run; JAX must see it.
        seed: seed of all chance.
        max_steps: time limit.
        **options: those of ``jaxmarl.environments.smax.HeuristicEnemySMAX``, all hashable, such as
            ``attack_mode="random"``, ``see_enemy_actions=False`` or ``observation_type="conic"``.

    Raises:
        ValueError: ``action_type`` is not ``"discrete"``.
        RuntimeError: JAX does not see the device.
    """

    @checked
    def __init__(
        self,
        *,
        scenario: str,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        max_steps: Annotated[int, COUNT] = 100,
        **options: Hashable,
    ) -> None:
        if options.get("action_type", "discrete") != "discrete":
            raise ValueError(f"action_type must be 'discrete' for smax/{scenario}, got {options['action_type']!r}.")
        self._battle = scenario, tuple(sorted(options.items()))
        self._bring_jax(num_envs, torch.device(device))
        game = self._rules.game
        spec = TaskSpec(
            n_agents=game.num_allies,
            observation_size=game.obs_size,
            state_size=game.state_size,
            action_size=game.num_ally_actions,
            discrete=True,
            has_action_mask=True,
            task=f"smax/{scenario}",
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=max_steps,
            has_success=True,
            has_agent_mask=True,
        )

    def _start(self, rows: Tensor | None = None) -> Game:
        return self._restart(None)

    def _restart(self, reset: Tensor | None) -> Game:
        wanted = torch.ones(self.num_envs, dtype=torch.bool, device=self.device) if reset is None else reset
        self._battles, seen = self._rules.restart(
            self._seed_key, self._index, smax_battles.to_jax(wanted.to(torch.uint8)), self._battles
        )
        fresh = _game(seen)
        return fresh if reset is None else self._where_reset(reset, fresh)

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        action = smax_battles.to_jax(action.to(torch.int32))
        self._battles, seen, ends = self._rules.step(self._battles, action)
        reward, terminated, won = (smax_battles.to_torch(each) for each in ends)
        return Outcome(_game(seen), reward, terminated, won)

    def _view(self, game: Game) -> View:
        return View(**game)

    def _set_seed(self, seed: int | None) -> None:
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        self._seed_key = smax_battles.seed_key(seed, device=self._jax_device)
        self._battles = self._battles._replace(episode=self._battles.episode * 0)

    def _simulator_state(self) -> dict[str, Any]:
        import jax

        battles = [torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(self._battles)]
        return {"battles": battles, "seed": torch.from_numpy(np.array(self._seed_key))}

    def _load_simulator_state(self, state: Mapping[str, Any]) -> None:
        import jax

        *leaves, self._seed_key = [
            jax.device_put(tensor.cpu().numpy(), self._jax_device) for tensor in [*state["battles"], state["seed"]]
        ]
        self._battles = jax.tree.unflatten(jax.tree.structure(self._battles), leaves)

    def __getstate__(self) -> dict[str, Any]:
        """Leave JAX's own objects out of copies."""
        ours = {"_jax_device", "_rules", "_battles", "_index", "_seed_key"}
        kept = {name: value for name, value in super().__getstate__().items() if name not in ours}
        return kept | {"_copied": self._simulator_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        copied = state.pop("_copied")
        super().__setstate__(state)
        self._bring_jax(self.num_envs, self.device)
        self._load_simulator_state(copied)

    def _bring_jax(self, num_envs: int, device: torch.device) -> None:
        import jax

        self._jax_device = smax_battles.jax_device(device)
        self._rules = smax_battles.rules(*self._battle)
        self._battles = jax.device_put(self._rules.no_battles(num_envs), self._jax_device)
        self._index = jax.device_put(np.arange(num_envs, dtype=np.int32), self._jax_device)

    def _scene(self, index: int) -> Scene:
        game, units = self._rules.game, self._battles.state.state
        places, alive, types = (
            np.asarray(each[index]) for each in (units.unit_positions, units.unit_alive, units.unit_types)
        )
        radii, letters = np.asarray(game.unit_type_radiuses), game.unit_type_shorthands
        shapes = [
            Shape(
                [tuple(place)],
                radius=float(radii[kind]),
                colour=AGENT_COLOURS[int(unit >= game.num_allies)],
                label=letters[kind],
            )
            for unit, (place, kind) in enumerate(zip(places.tolist(), types.tolist()))
            if alive[unit]
        ]
        return Scene((0.0, 0.0), (float(game.map_width), float(game.map_height)), shapes)


def _game(seen: smax_battles.Seen) -> Game:
    observation, state, legal, alive = (smax_battles.to_torch(each) for each in seen)
    return {"observation": observation, "state": state, "action_mask": legal, "mask": alive}
