"""SMAX, JaxMARL's battles in the manner of the StarCraft Multi-Agent Challenge, in the key layout."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Annotated

import numpy as np
import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE
from torchrl_marl_offline.envs import smax_battles
from torchrl_marl_offline.envs.drawing import AGENT_COLOURS, Scene, Shape
from torchrl_marl_offline.envs.jax_games import JaxTeam

SCENARIOS: tuple[str, ...] = (
    *("3m", "8m", "25m", "2s3z", "3s5z", "5m_vs_6m", "10m_vs_11m", "27m_vs_30m", "3s5z_vs_3s6z", "3s_vs_5z"),
    *("6h_vs_8z", "smacv2_5_units", "smacv2_10_units", "smacv2_20_units"),
)
"""JaxMARL's scenarios, known without importing it."""


class Smax(JaxTeam):
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

    def _make_rules(self) -> smax_battles.SmaxRules:
        return smax_battles.rules(*self._battle)

    def _scene(self, index: int) -> Scene:
        game, units = self._rules.game, self._games.state.state
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
