"""Games of JaxMARL by its ``make``, in the key layout."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, NamedTuple

import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import COUNT, NON_NEGATIVE, SEED, SIZE
from torchrl_marl_offline.envs.jax_games import Array, Ends, JaxRules, JaxTeam, Seen, streams_kept


class _Kind(NamedTuple):
    """What JaxMARL does not say of a game.

    Attributes:
        made_by: the class that its ``make`` calls.
        limit: of the steps, where the game's own attribute ``max_steps`` does not say it.
        inner: whether it begins anew within an episode, after ``num_inner_steps``.
        own_rewards: whether agents are paid each for itself.
    """

    made_by: str
    limit: int | None = None
    inner: bool = False
    own_rewards: bool = False


GAMES: dict[str, _Kind] = {
    "overcooked_v2": _Kind("OvercookedV2"),
    "switch_riddle": _Kind("SwitchRiddle"),
    "coin_game": _Kind("CoinGame", limit=10, inner=True, own_rewards=True),
    "storm": _Kind("InTheGrid", limit=152, inner=True, own_rewards=True),
    "hanabi": _Kind("Hanabi", limit=100),
}
"""Names of JaxMARL's ``make``, known without importing it."""

_NOT_OPTIONS = ("self", "max_steps", "num_inner_steps", "num_outer_steps")


class JaxMarl(JaxTeam):
    """A game of JaxMARL: ``jaxmarl/<name>`` (Rutherford et al., 2024), batched inside JAX.

    - ``overcooked_v2``: Overcooked with recipes that may be hidden; 400 steps. ``shaping`` is the factor of the shaped
      rewards, each cook's own, that are added to the team's.
    - ``switch_riddle``: prisoners who see each other's only sign, a light bulb, have to tell when all were called;
      ``4 n - 6`` steps.
    - ``coin_game``: two agents collect coins of either's colour, and each loses when the other takes its own; 10 steps.
    - ``storm``: agents collect tokens of two kinds and then play the matrix game that these stand for; 152 steps.
    - ``hanabi``: cards whose owners do not see them, by turns: who is not to move can only do nothing, the last action.
      No game has 100 steps.

    Observations are flattened (of several arrays, in the order of their names), and padded with zeros to the widest.
    In ``storm`` that is what an agent sees of the grid, its column of JaxMARL's table of inventories (its own, what it
    has picked up, what it shows), and what all agents show. ``"state"`` is JaxMARL's world state, or else the
    observations in a row. ``("agents", "action_mask")`` is there where JaxMARL says which actions are legal, or where
    agents have unequal numbers of them. Rewards are the agents' own.

    ``terminated`` is the end by the rules: in ``hanabi``, and in the riddle once somebody tells. The time limit is
    ``truncated`` only, and the last observation is that of the same episode: JaxMARL's own limits, at which it puts the
    first observation of another game in its place, are set out of reach. So ``coin_game`` and ``storm`` are episodes of
    their inner steps, and not series of such games.

    A step of all environments is one jitted call. The first step and the first restart for each number of environments
    compile, which takes some seconds. An environment plays the same games for the same seed whatever ``num_envs`` is.

    Args:
        num_envs: number of environments.
        device: where they run; JAX must see it.
        seed: seed of all chance.
        game: JaxMARL's name of the game.
        max_steps: time limit; by default JaxMARL's.
        shaping: factor of shaped rewards, where the game has some.
        **options: those of JaxMARL's ``make``, such as ``layout="coord_ring"`` or ``num_agents=3``; lists may stand for
            arrays.

    Raises:
        ValueError: the game has no such option, or JaxMARL refuses it.
        RuntimeError: JAX does not see the device.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        game: str = "overcooked_v2",
        max_steps: Annotated[int | None, COUNT] = None,
        shaping: Annotated[float, NON_NEGATIVE] = 0.0,
        **options: Any,
    ) -> None:
        self._asked = game, max_steps, float(shaping), tuple(sorted((key, _frozen(options[key])) for key in options))
        self._bring_jax(num_envs, torch.device(device))
        rules = self._rules
        self.own_rewards = GAMES[game].own_rewards and not options.get("shared_rewards", False)
        super().__init__(
            spec=TaskSpec(
                n_agents=len(rules.game.agents),
                observation_size=max(rules.observation_sizes),
                state_size=rules.state_size,
                action_size=max(rules.numbers),
                discrete=True,
                has_action_mask=rules.masked,
                task=f"jaxmarl/{game}",
            ),
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=rules.limit,
        )

    def _make_rules(self) -> JaxMarlRules:
        return _rules(*self._asked)


class JaxMarlRules(JaxRules):
    """The rules of one of the :data:`GAMES`.

    Args:
        name: which.
        max_steps: time limit; by default JaxMARL's.
        shaping: factor of shaped rewards.
        **options: of JaxMARL's ``make``.
    """

    def __init__(self, name: str, max_steps: int | None, shaping: float, **options: Any) -> None:
        import jax

        self.limit, game = _made(name, max_steps, options)
        super().__init__(game)
        self.shaping = shaping
        self.numbers = [int(game.action_space(agent).n) for agent in game.agents]
        self._legal_of = _own(game, "get_legal_moves") or _own(game, "get_avail_actions")
        self.masked = self._legal_of is not None or len(set(self.numbers)) > 1
        observations, state = jax.eval_shape(game.reset, jax.random.PRNGKey(0))
        self.observation_sizes = [
            jax.eval_shape(self._of_each, observations)[agent].size for agent in range(len(game.agents))
        ]
        self.state_size = jax.eval_shape(self._look, observations, state).state.size
        if shaping:
            actions = {agent: jax.numpy.int32(0) for agent in game.agents}
            if "shaped_reward" not in jax.eval_shape(game.step_env, jax.random.PRNGKey(0), state, actions)[-1]:
                raise ValueError(f"jaxmarl/{name} has no shaped rewards; leave shaping out.")

    def _ends(self, state: Any, rewards: Any, dones: Mapping[str, Array], infos: Mapping[str, Any]) -> Ends:
        import jax.numpy as jnp

        paid = [rewards[agent] for agent in self.game.agents]
        if self.shaping:
            paid = [own + self.shaping * infos["shaped_reward"][agent] for own, agent in zip(paid, self.game.agents)]
        return Ends(jnp.stack(paid).astype("float32"), dones["__all__"].astype("uint8"))

    def _look(self, observations: Mapping[Any, Any], state: Any) -> Seen:
        import jax.numpy as jnp

        each, widest = self._of_each(observations), max(self.observation_sizes)
        observation = jnp.stack([jnp.pad(own, (0, widest - own.size)) for own in each])
        world = _own(self.game, "get_world_state")
        whole = observation.ravel() if world is None else _flat(world(state))
        return Seen(observation, whole, self._legal(state) if self.masked else None)

    def _legal(self, state: Any) -> Array:
        import jax.numpy as jnp

        most, agents = max(self.numbers), self.game.agents
        found = None if self._legal_of is None else self._legal_of(state)
        each = [jnp.ones(own) if found is None else found[agent] for own, agent in zip(self.numbers, agents)]
        return jnp.stack([jnp.pad(own.astype("uint8"), (0, most - own.size)) for own in each])

    def _of_each(self, observations: Mapping[Any, Any]) -> list[Array]:
        """Return each agent's observation, float32 ``[o]``."""
        import jax.numpy as jnp

        agents = self.game.agents
        if "inventory" not in observations:
            return [_flat(observations[agent]) for agent in agents]
        grid, table = observations["observations"], observations["inventory"]  # storm: [n, ...] and [5, n]
        return [jnp.concatenate([_flat(grid[i]), _flat(table[:, i]), _flat(table[3:])]) for i in range(len(agents))]


@cache
def _rules(name: str, max_steps: int | None, shaping: float, options: tuple[tuple[str, Any], ...]) -> JaxMarlRules:
    return JaxMarlRules(name, max_steps, shaping, **dict(options))


def _made(name: str, max_steps: int | None, options: dict[str, Any]) -> tuple[int, Any]:
    """Return the time limit and the game, whose own limits are beyond it.

    Raises:
        ValueError: it has no such option, or refuses one.
    """
    with streams_kept():
        from jaxmarl import environments, make
    import jax.numpy as jnp

    kind = GAMES[name]
    known = [
        key for key in inspect.signature(getattr(environments, kind.made_by)).parameters if key not in _NOT_OPTIONS
    ]
    if unknown := [key for key in options if key not in known]:
        raise ValueError(
            f"jaxmarl/{name} has no option {unknown[0]!r}; it has max_steps, shaping and JaxMARL's {', '.join(known)}."
        )
    options = {key: jnp.array(value) if isinstance(value, tuple) else value for key, value in options.items()}
    if kind.inner:
        limit = max_steps or kind.limit
        options |= {"num_inner_steps": limit + 1, "num_outer_steps": 1}
    try:
        game = make(name, **options)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise ValueError(f"JaxMARL does not make jaxmarl/{name} with these options: {error}") from error
    if not kind.inner:
        limit = max_steps or kind.limit or game.max_steps
        game.max_steps = limit + 1
    return limit, game


def _own(game: Any, name: str) -> Any:
    """Return a method that the game has of its own, and not of JaxMARL's base class, where it only raises."""
    from jaxmarl.environments.multi_agent_env import MultiAgentEnv

    here = getattr(type(game), name, None)
    return None if here is None or here is getattr(MultiAgentEnv, name, None) else getattr(game, name)


def _flat(observation: Any) -> Array:
    import jax

    return jax.numpy.concatenate([leaf.ravel().astype("float32") for leaf in jax.tree.leaves(observation)])


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def game_names() -> dict[str, str]:
    """Return what :func:`~torchrl_marl_offline.make_env` finds below ``jaxmarl/``."""
    return dict.fromkeys(GAMES, "jaxmarl_games:JaxMarl")
