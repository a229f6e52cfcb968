"""The rules of JaxMARL's SMAX."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from torchrl_marl_offline.envs.jax_games import Array, Ends, JaxRules, Seen, streams_kept


class SmaxRules(JaxRules):
    """SMAX against JaxMARL's heuristic enemy.

    Args:
        scenario: JaxMARL's name of it, such as ``"2s3z"``.
        **options: those of ``jaxmarl.environments.smax.HeuristicEnemySMAX``.
    """

    def __init__(self, scenario: str, **options: Any) -> None:
        with streams_kept():
            from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

        super().__init__(HeuristicEnemySMAX(scenario=map_name_to_scenario(scenario), **options))

    def _steps_taken(self, state: Any) -> Array:
        return state.state.step

    def _ends(self, state: Any, rewards: Any, dones: Mapping[str, Array], infos: Mapping[str, Any]) -> Ends:
        import jax.numpy as jnp

        alive = state.state.unit_alive
        lost, beaten = ~alive[: self.game.num_allies].any(), ~alive[self.game.num_allies :].any()
        reward = jnp.stack([rewards[agent] for agent in self.game.agents]).astype("float32")
        return Ends(reward, (lost | beaten).astype("uint8"), (beaten & ~lost).astype("uint8"))

    def _look(self, observations: dict[str, Array], state: Any) -> Seen:
        import jax.numpy as jnp

        agents, legal = self.game.agents, self.game.get_avail_actions(state)
        return Seen(
            observation=jnp.stack([observations[agent] for agent in agents]).astype("float32"),
            state=self.game.get_world_state(state).astype("float32"),
            legal=jnp.stack([legal[agent] for agent in agents]).astype("uint8"),
            alive=state.state.unit_alive[: len(agents)].astype("uint8"),
        )


@cache
def rules(scenario: str, options: tuple[tuple[str, Any], ...] = ()) -> SmaxRules:
    """Return the rules of a scenario, the same object each time."""
    return SmaxRules(scenario, **dict(options))
